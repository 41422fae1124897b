"""One bilevel step: how a held-out loss, after one step of training, depends on what that step was weighed by.

The lower problem trains a network, theta' = theta - rate * grad L(theta, u). The upper one chooses u (weights of
samples, weights of loss terms, the parameters of a small network that makes them) so that a held-out loss falls at
theta'. The hypergradient is d L_held_out(theta') / d u. `hypergradient` differentiates through the step and takes any
u; `weight_hypergradient` takes weights that enter L linearly and needs no second derivative. Neither changes the
network: its weights stay, batch norm's statistics too.

Source: Ren et al. 2018, arXiv:1803.09050 (weights of samples by one look-ahead step); Liu et al. 2019, arXiv:1806.09055
(the same step for architectures).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call


class At:
    """A network at other weights than its own: called like it, while the network stays as it is.

    Args:
        network: what is called; its mode (training or not) counts.
        parameters: name -> value, of some or all parameters; the others are the network's own, without gradient.

    Raises:
        ValueError: the network has no parameter of such a name.

    Example:
        >>> network = nn.Linear(2, 1, bias=False)
        >>> bool((At(network, {"weight": torch.zeros(1, 2)})(torch.ones(3, 2)) == 0).all())
        True
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        known = dict(network.named_parameters())
        if strange := sorted(set(parameters) - set(known)):
            raise ValueError(f"the network has no parameter {strange[0]!r}; it has {', '.join(known)}")
        self.network = network
        self.parameters = dict(parameters)
        self._others = {name: value.detach() for name, value in known.items() if name not in parameters}
        self._buffers = {name: value.detach().clone() for name, value in network.named_buffers()}

    def __call__(self, *inputs: Any) -> Any:
        """Call the network."""
        return functional_call(self.network, (self.parameters, self._others, self._buffers), inputs)


Lower = Callable[[At], Tensor]
"""Training loss of a network, a scalar."""
Weighed = Callable[[At], tuple[Tensor, Tensor]]
"""Of a network, what has no weight (a scalar), and the terms that have one each (any shape)."""
Upper = Callable[[At], Tensor]
"""Held-out loss of a network, a scalar."""


@dataclass(frozen=True)
class Hypergradient:
    """How a held-out loss after one step depends on the upper variables.

    Attributes:
        value: the held-out loss at theta', without gradient.
        gradients: its derivative by each upper variable, of that one's shape, without gradient.
        ahead: the network at theta'.
    """

    value: Tensor
    gradients: tuple[Tensor, ...]
    ahead: At

    def attach(self, *variables: Tensor) -> Tensor:
        """Return a scalar that is the held-out loss and whose gradient by the variables is the hypergradient.

        Args:
            variables: the upper variables, still connected to what they were computed from.

        Raises:
            ValueError: another number of them, or another shape.
        """
        shapes = [tuple(gradient.shape) for gradient in self.gradients]
        if [tuple(variable.shape) for variable in variables] != shapes:
            given = [tuple(variable.shape) for variable in variables]
            raise ValueError(f"the hypergradient is by variables of shapes {shapes}, given shapes {given}")
        held = [(gradient * (v - v.detach())).sum() for gradient, v in zip(self.gradients, variables, strict=True)]
        return self.value + sum(held, torch.zeros_like(self.value))


def own_weights(network: nn.Module) -> At:
    """The network at its own weights: what is computed is differentiable by them and changes no buffer of it.

    Args:
        network: with trainable parameters.

    Raises:
        ValueError: it has nothing to train.
    """
    trained = {
        name: value.detach().requires_grad_() for name, value in network.named_parameters() if value.requires_grad
    }
    if not trained:
        raise ValueError("the network has no parameter that requires a gradient: there is no step to look ahead by")
    return At(network, trained)


def look_ahead(network: nn.Module, lower: Lower, *, rate: float, differentiable: bool = False) -> At:
    """The network after one step of plain gradient descent: theta' = theta - rate * grad lower(theta).

    Args:
        network: stays as it is.
        lower: training loss.
        rate: of the step, 0 or more.
        differentiable: whether theta' remembers how it came about, so that gradients flow through the step; otherwise
            it is a constant that gradients can be taken by.

    Raises:
        ValueError: rate below 0, or a network with nothing to train.
    """
    _check_rate(rate)
    with torch.enable_grad():
        here = own_weights(network)
        return _step(here, lower(here), rate, differentiable)


def hypergradient(
    network: nn.Module, lower: Lower, upper: Upper, variables: Sequence[Tensor], *, rate: float
) -> Hypergradient:
    """Differentiate a held-out loss through the look-ahead step, by anything that the training loss depends on.

    d upper(theta - rate * grad lower(theta)) / d variables, by second derivatives of the training loss; also what the
    held-out loss depends on directly counts.

    Args:
        network: stays as it is.
        lower: training loss, made from the variables.
        upper: held-out loss.
        variables: tensors that require a gradient.
        rate: of the step, 0 or more; at 0 nothing depends on it.

    Returns:
        One gradient per variable; 0 for one that nothing depends on.

    Raises:
        ValueError: rate below 0, no variable, one without requires_grad, or a network with nothing to train.
    """
    if not variables or not all(variable.requires_grad for variable in variables):
        raise ValueError("variables must be one or more tensors that require a gradient: call requires_grad_() on them")
    ahead = look_ahead(network, lower, rate=rate, differentiable=True)
    with torch.enable_grad():
        value = upper(ahead)
        gradients = torch.autograd.grad(value, list(variables), allow_unused=True, materialize_grads=True)
    constant = {name: tensor.detach().requires_grad_() for name, tensor in ahead.parameters.items()}
    return Hypergradient(value.detach(), tuple(gradients), At(network, constant))


def weight_hypergradient(
    network: nn.Module, lower: Weighed, upper: Upper, weights: Tensor, *, rate: float
) -> Hypergradient:
    """The hypergradient by weights w of terms l, for the training loss base(theta) + sum_k w_k l_k(theta).

    With v = grad upper(theta'): d upper(theta') / d w_k = -rate * <v, grad l_k(theta)>. All k come from one pass in
    forward mode along v, without second derivatives: a term's weight should rise where its gradient agrees with the
    held-out loss's. Random layers (dropout) draw the same numbers in both passes over the training loss. Autocast is
    switched off inside: forward mode does not know it.

    Args:
        network: stays as it is; its operations must know forward-mode differentiation (otherwise use `hypergradient`).
        lower: gives base and terms. A mean over N samples divides its terms by N.
        upper: held-out loss.
        weights: as many as terms, in their shape; taken as constants.
        rate: of the step, 0 or more.

    Returns:
        One gradient, in the weights' shape.

    Raises:
        ValueError: rate below 0, weights and terms of different shapes, or a network with nothing to train.
    """
    _check_rate(rate)
    weights = weights.detach()
    here = own_weights(network)
    again = _Draws(weights.device)
    with _without_autocast(weights.device), torch.enable_grad():
        base, terms = lower(here)
        if terms.shape != weights.shape:
            raise ValueError(
                f"weights have shape {tuple(weights.shape)}, but the terms have shape {tuple(terms.shape)}: give a "
                "weight for each term"
            )
        ahead = _step(here, base + (weights * terms).sum(), rate, differentiable=False)
        value = upper(ahead)
        parameters = list(ahead.parameters.values())
        direction = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    along = dict(zip(ahead.parameters, direction, strict=True))
    _prepare_forward_mode()
    with _without_autocast(weights.device), torch.no_grad(), again.replayed(), forward_ad.dual_level():
        moving = {name: forward_ad.make_dual(p.detach(), along[name]) for name, p in here.parameters.items()}
        _, terms = lower(At(network, moving))
        slope = forward_ad.unpack_dual(terms).tangent
    slope = torch.zeros_like(weights) if slope is None else slope.detach()
    return Hypergradient(value.detach(), (-rate * slope,), ahead)


def _step(here: At, loss: Tensor, rate: float, differentiable: bool) -> At:
    old = list(here.parameters.values())
    slopes = torch.autograd.grad(loss, old, create_graph=differentiable, allow_unused=True, materialize_grads=True)
    new = {name: p - rate * slope for (name, p), slope in zip(here.parameters.items(), slopes, strict=True)}
    return At(here.network, new if differentiable else {n: p.detach().requires_grad_() for n, p in new.items()})


class _Draws:
    """The state of torch's random numbers, so that a second pass can draw what the first one drew."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw the same numbers again inside, and go on as before behind."""
        with torch.random.fork_rng([self.device] if self.cuda is not None else []):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield


def _without_autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)


@functools.cache
def _prepare_forward_mode() -> None:
    """Let torch load its forward-mode rules, once: it compiles some in a way that it warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def _check_rate(rate: float) -> None:
    if not 0 <= rate < float("inf"):
        raise ValueError(f"rate of the look-ahead step must be a number of 0 or more, given {rate}")
