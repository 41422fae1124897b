"""An exponential moving average of a network, with the unit of its decay stated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks.taps import unwrapped
from stillroom.losses._shared import at_least_float32, check_positive


class EMA(nn.Module):
    """Keeps a slow copy of a network: average = d * average + (1 - d) * network at every update.

    d is `decay` to the power of the units that have passed since the update before. So an average "per epoch" may be
    updated at every step by `update(1 / steps_per_epoch)`, one "per sample" by `update(len(batch))`, and both mean the
    same at any batch size. Use `decay_of(half_life)` to give the half-life in the same unit instead.

    The copy, `module`, is in eval mode whatever the module around it does, asks for no gradients and has the network's
    dtype. Weights narrower than float32 are averaged in float32 behind it, since a step of 1 - d would vanish in them.
    The network itself is not part of this module: it is not in its parameters or its state dict, and an owner of both
    that is copied gives an average of the copied network.

    Args:
        module: the network that is followed; the average starts as its copy.
        decay: of the average per unit, in [0, 1).
        unit: what `decay` counts: "step", "epoch" or "sample". It is stored in the state, and another one is refused.
        warmup: use min(decay, (1 + t) / (10 + t)) in place of decay, with t the units passed: a young average follows
            faster.
        buffers: "copy" takes floating buffers (statistics of batch norm) over at each update, "average" averages them
            as the weights are. Integer buffers are always copied.

    Attributes:
        module: the averaged network.

    Raises:
        ValueError: decay is out of range, or another word for unit or buffers.

    Example:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> ema = EMA(network, decay=decay_of(half_life=2))
        >>> before = network.weight.item()
        >>> _ = network.weight.data.add_(1)
        >>> ema.update(2)
        >>> round(ema.module.weight.item() - before, 4)
        0.5
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        decay: float = 0.999,
        unit: Literal["step", "epoch", "sample"] = "step",
        warmup: bool = False,
        buffers: Literal["copy", "average"] = "copy",
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), given {decay}")
        if unit not in ("step", "epoch", "sample"):
            raise ValueError(f'unit must be "step", "epoch" or "sample", given {unit!r}')
        if buffers not in ("copy", "average"):
            raise ValueError(f'buffers must be "copy" or "average", given {buffers!r}')
        self.decay = decay
        self.unit = unit
        self.warmup = warmup
        self.buffer_rule = buffers
        self.passed = 0.0
        self._followed = (unwrapped(module),)  # in a tuple: nn.Module registers modules, not tuples of them
        self.module = copy.deepcopy(unwrapped(module)).requires_grad_(False).eval()
        self._wide: dict[str, Tensor] = {}
        self._widen()

    @torch.no_grad()
    def update(self, passed: float = 1.0) -> None:
        """Move the average towards the network as it is now.

        Args:
            passed: units (steps, epochs or samples, as `unit` says) since the last update, above 0.

        Raises:
            ValueError: `passed` is not above 0.
            RuntimeError: the network has other weights than when the average began.
        """
        check_positive(passed=passed)
        decay = min(self.decay, (1 + self.passed) / (10 + self.passed)) if self.warmup else self.decay
        self.passed += passed
        step = 1 - decay**passed
        for name, mean, value, averaged in self._pairs():
            if not averaged:
                mean.copy_(value)
            elif name in self._wide:
                mean.copy_(self._wide[name].lerp_(value.to(self._wide[name]), step))
            else:
                mean.lerp_(value.to(mean), step)

    def _pairs(self) -> Iterator[tuple[str, Tensor, Tensor, bool]]:
        """Name, average, current value, and whether it is averaged, of every parameter and buffer."""
        followed = dict(self._followed[0].named_parameters()) | dict(self._followed[0].named_buffers())
        parameters = dict(self.module.named_parameters())
        means = parameters | dict(self.module.named_buffers())
        if {name: tensor.shape for name, tensor in followed.items()} != {name: t.shape for name, t in means.items()}:
            raise RuntimeError(
                f"the network has {len(followed)} weights and buffers that are not those of its average "
                f"({len(means)}): make the EMA after the network has its final form"
            )
        for name, mean in means.items():
            averaged = name in parameters or (self.buffer_rule == "average" and mean.is_floating_point())
            yield name, mean, followed[name], averaged

    def _widen(self) -> None:
        """Keep float32 averages behind what is narrower."""
        for name, mean in (*self.module.named_parameters(), *self.module.named_buffers()):
            wide = at_least_float32(mean.detach())
            if wide.dtype == mean.dtype:
                mean.data.copy_(self._wide.pop(name, wide))
            elif name not in self._wide:
                self._wide[name] = wide

    def forward(self, *inputs: Any) -> Any:
        """Ask the averaged network."""
        return self.module(*inputs)

    def train(self, mode: bool = True) -> EMA:
        """Set this module's mode; the averaged network stays in eval mode."""
        super().train(mode)
        self.module.eval()
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """What the state dict holds beside the averaged network: units passed and the float32 averages."""
        return {"passed": self.passed, "unit": self.unit, "wide": dict(self._wide)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the progress of another average.

        Raises:
            ValueError: its decay counts another unit, or its network had another dtype.
        """
        if state["unit"] != self.unit:
            raise ValueError(f"this average counts by {self.unit}, but the state by {state['unit']}: use its unit")
        if set(state["wide"]) != set(self._wide):
            raise ValueError(
                f"this average keeps {len(self._wide)} weights in float32 behind narrower ones, but the state keeps "
                f"{len(state['wide'])}: give the network the dtype that it had"
            )
        self.passed = state["passed"]
        self._wide = {name: state["wide"][name].to(wide, copy=True) for name, wide in self._wide.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMA:
        super()._apply(fn, recurse)
        self._wide = {name: at_least_float32(fn(wide)) for name, wide in self._wide.items()}
        self._widen()
        return self

    def extra_repr(self) -> str:
        """Show decay and unit where the module is printed."""
        return f"decay={self.decay:g} per {self.unit}{', warmup' if self.warmup else ''}, buffers={self.buffer_rule!r}"


def decay_of(half_life: float) -> float:
    """The decay whose average has forgotten half after so many units: 0.5 ** (1 / half_life).

    Args:
        half_life: in steps, epochs or samples, above 0.

    Raises:
        ValueError: not above 0.
    """
    check_positive(half_life=half_life)
    return 0.5 ** (1 / half_life)
