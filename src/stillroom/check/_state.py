"""Checks of what is kept: state dict, seeds, resume, copies, pickle, and the product that ships."""

from __future__ import annotations

import copy
import io
import pickle
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.blocks.taps import unwrapped
from stillroom.check._report import CheckError, Skip, warn
from stillroom.check._tools import (
    Source,
    differing,
    enough_steps,
    first_different_turn,
    fresh,
    measure,
    optimizers_of,
    quiet,
    same_bits,
    seeded,
    storage,
    teacher_networks,
    teacher_tensors,
    train,
    trained,
)
from stillroom.checkpoint import random_state, set_random_state
from stillroom.data.batch import Batch, tensors_in
from stillroom.method import Method

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _through_a_file(state: Any, what: str) -> Any:
    """Save and load as checkpoints are: without pickle on the way back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        return torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckError(
            f"{what} cannot be read by torch.load(weights_only=True): {str(error).splitlines()[0]}; keep only tensors, "
            "numbers, strings, lists and dicts in it"
        ) from error


def check_state_dict(method: Source, batch: Batch) -> Skip | None:
    """A state dict saved after two steps and loaded into a fresh copy restores the loss exactly."""
    source, target = trained(method, batch, steps=2), fresh(method)
    state = _through_a_file(source.state_dict(), "the state dict")
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        raise CheckError(
            f"a fresh copy refuses the state dict ({error}): create all parameters and buffers in __init__ (probe=)"
        ) from error
    target.enter_stage(source.stage)
    target.clock, target.stage_clock = source.clock, source.stage_clock
    if difference := first_different_turn(measure(target, batch), measure(source, batch)):
        raise CheckError(
            f"after loading the state dict, {difference}: what the loss depends on must be a parameter, a buffer, or "
            "in get_extra_state()"
        )
    return None


def check_determinism(method: Source, batch: Batch) -> Skip | None:
    """Two runs of three steps from one seed are equal bit for bit."""
    runs = []
    for _ in range(2):
        made = fresh(method)
        with seeded(3):
            totals = train(made, batch, optimizers_of(made), steps=enough_steps(made, 3))
        runs.append((totals, made.state_dict()))
    (first, first_state), (second, second_state) = runs
    for turn, (one, other) in enumerate(zip(first, second, strict=True)):
        if not same_bits(one, other):
            raise CheckError(
                f"two runs from one seed have totals {float(one):.9g} and {float(other):.9g} in turn {turn}: draw from "
                "torch's, NumPy's or Python's global generator, which are seeded, and from no clock, id() or set order"
            )
    if changed := differing(first_state, second_state):
        raise CheckError(f"two runs from one seed end with different {changed[0]!r}: seed every draw in after_step")
    return None


def check_resume(method: Source, batch: Batch) -> Skip | None:
    """Four steps equal two steps, a checkpoint (state dict, optimizers, random states) and two more in a fresh copy."""
    whole = fresh(method)
    steps = enough_steps(whole, 4)
    with seeded(5):
        expected = train(whole, batch, optimizers_of(whole), steps=steps)

    begun = fresh(method)
    optimizers = optimizers_of(begun)
    with seeded(5):
        found = train(begun, batch, optimizers, steps=steps // 2, of=steps)
        checkpoint = {
            "method": begun.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
            "random": random_state(),
        }
    checkpoint = _through_a_file(checkpoint, "the checkpoint")

    resumed = fresh(method)
    optimizers = optimizers_of(resumed)
    try:
        resumed.load_state_dict(checkpoint["method"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(checkpoint["optimizers"][name])
    except (RuntimeError, ValueError) as error:
        raise CheckError(f"a fresh copy refuses the checkpoint ({error}): create all state in __init__") from error
    with seeded(0):
        set_random_state(checkpoint["random"])
        found += train(resumed, batch, optimizers, steps=steps // 2, first=steps // 2, of=steps)

    remedy = "keep counters, memories and generators as buffers or in get_extra_state()"
    if len(found) != len(expected):
        raise CheckError(f"a resumed run took {len(found)} turns, an uninterrupted one {len(expected)}: {remedy}")
    for turn, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not same_bits(one, other):
            raise CheckError(
                f"turn {turn} of a run resumed after {steps // 2} of {steps} steps has total {float(one):.9g}, "
                f"uninterrupted {float(other):.9g}: {remedy}"
            )
    if changed := differing(resumed.state_dict(), whole.state_dict()):
        raise CheckError(f"a resumed run ends with another {changed[0]!r} than an uninterrupted one: {remedy}")
    return None


def check_deepcopy(method: Source, batch: Batch) -> Skip | None:
    """A deep copy, made after a step, gives the same losses by itself, and training it leaves the original alone."""
    original = quiet(fresh(method))
    measure(original, batch)
    try:
        twin = copy.deepcopy(original)
    except Exception as error:
        raise CheckError(
            f"copy.deepcopy after a step raises {type(error).__name__}: {error}; keep no activations on the method "
            "between batches"
        ) from error
    _refuse_shared_hooks(twin)
    other = batch[torch.arange(len(batch) - 1, -1, -1)]  # another batch: what the original saw last is stale for it
    try:
        found = measure(twin, other)
    except Exception as error:
        raise CheckError(
            f"a deep copy raises {type(error).__name__}: {error}; do its hooks work on the original? use "
            "stillroom.blocks.Taps"
        ) from error
    if difference := first_different_turn(found, measure(original, other)):
        raise CheckError(
            f"a deep copy gives {difference}: what it reads is still the original's; use stillroom.blocks.Taps"
        )
    before, reference = {k: v.detach().clone() for k, v in _tensors(original).items()}, copy.deepcopy(original)
    with seeded(0):
        train(twin, batch, optimizers_of(twin), steps=2)
    if changed := differing(_tensors(original), before):
        raise CheckError(f"training a deep copy changed {changed[0]!r} of the original: copy every tensor and module")
    if difference := first_different_turn(measure(original, batch), measure(reference, batch)):
        raise CheckError(f"after training a deep copy, the original's {difference}: they share state")
    return None


def _tensors(method: Method) -> dict[str, Tensor]:
    own = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    return {**own, **{f"teacher: {name}": tensor for name, tensor in teacher_tensors(method).items()}}


def _hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, inner in module.named_modules():
        for kind in _HOOKS:
            for hook in getattr(inner, kind).values():
                if not (getattr(hook, "__module__", None) or "").startswith("torch."):  # weight norm and its kin
                    yield name or type(inner).__name__, hook


def _refuse_shared_hooks(method: Method) -> None:
    for holder in (method, *teacher_networks(method)):
        for name, hook in _hooks(holder):
            if not isinstance(hook, types.FunctionType):
                continue
            captured = [cell.cell_contents for cell in hook.__closure__ or ()] + list(hook.__defaults__ or ())
            if any(isinstance(value, (nn.Module, Tensor, dict, list, set)) for value in captured):
                raise CheckError(
                    f"the hook on {name!r} is a function that captures {type(captured[0]).__name__} objects: a deep "
                    "copy shares it and writes into the original; use stillroom.blocks.Taps, or an object with __call__"
                )


def check_pickle(method: Source, batch: Batch) -> Skip | None:
    """The method can be pickled (for other processes), and what comes back gives the same losses."""
    made = fresh(method)
    try:
        content = pickle.dumps(made)
    except Exception as error:
        for name, network in (("student", made.student), *(("teacher", t) for t in _behind_teacher(made))):
            try:
                pickle.dumps(network)
            except Exception as inner:
                return Skip(f"the {name} itself cannot be pickled ({inner})")
        raise CheckError(
            f"pickle.dumps(method) raises {type(error).__name__}: {error}; replace lambdas and local functions by "
            "functions of a module or functools.partial"
        ) from error
    try:
        back = pickle.loads(content)
    except Exception as error:
        raise CheckError(f"pickle.loads of the method raises {type(error).__name__}: {error}") from error
    if difference := first_different_turn(measure(back, batch), measure(made, batch)):
        raise CheckError(f"after pickling, {difference}: write __getstate__ so that nothing the loss needs is lost")
    return None


def _behind_teacher(method: Method) -> list[Any]:
    return [module.network for module in method.modules() if isinstance(module, Frozen)]


def check_product(method: Source, batch: Batch) -> Skip | None:
    """`product` is a plain trained module: it says what the trained student says, without hooks, teacher or method.

    A product that is another network which the method keeps (an average) is taken as it is. One that is made anew
    (merged, pruned) and says something else than the student gives a warning, as do parameters its output never uses.
    """
    made = trained(method, batch, steps=3)
    product = made.product
    if not isinstance(product, nn.Module):
        raise CheckError(f"product is a {type(product).__name__}, expected a torch.nn.Module")
    for name, module in product.named_modules():
        if isinstance(module, (Method, Frozen)):
            raise CheckError(
                f"product holds the {type(module).__name__} {name!r}: ship the network alone, unwrapped(self.student)"
            )
    for name, hook in _hooks(product):
        raise CheckError(
            f"product has a hook on {name!r} ({getattr(hook, '__qualname__', type(hook).__qualname__)}): remove hooks "
            "after each forward (with Taps(...) as taps), or return a copy without them"
        )
    memory = {storage(tensor) for tensor in teacher_tensors(made).values()} - {0}
    for name, value in product.state_dict().items():
        if isinstance(value, Tensor) and storage(value) in memory:
            raise CheckError(f"product ships {name!r}, a tensor of the teacher: copy what the student takes over")
    product.eval()
    outputs = _answer(product, batch, "product(batch.inputs)")
    if outputs is None:
        raise CheckError("product(batch.inputs) gives no tensor: product takes what the student takes")
    before = _answer(fresh(method).product.eval(), batch, "product(batch.inputs)")
    if before is not None and same_bits(outputs.detach(), before.detach()):
        raise CheckError(
            "product answers the same before and after training: it is not, and does not follow, the student"
        )
    _compare_with_networks(made, product, batch, outputs)
    named = {name: p for name, p in product.named_parameters() if p.requires_grad}
    if named and outputs.requires_grad:
        gradients = torch.autograd.grad(outputs.sum(), list(named.values()), allow_unused=True)
        if unused := [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]:
            warn(f"product carries {unused[0]!r}, which its output never uses: ship a network without it")
    return None


def _answer(network: nn.Module, batch: Batch, what: str) -> Tensor | None:
    try:
        with seeded(0):
            return next(iter(tensors_in(network(batch.inputs))), None)
    except Exception as error:
        raise CheckError(f"{what} in eval mode raises {type(error).__name__}: {error}") from error


def _compare_with_networks(made: Method, product: nn.Module, batch: Batch, outputs: Tensor) -> None:
    """Warn where a product that was made anew says something else than each network that the method keeps."""
    if any(product is module for module in made.modules()):
        return
    for network in (unwrapped(made.student), *made.children()):
        if isinstance(network, Frozen):
            continue
        try:
            other = _answer(network.eval(), batch, "a network")
        except CheckError:  # not every child takes inputs
            continue
        if other is not None and other.shape == outputs.shape and torch.allclose(other, outputs, rtol=1e-3, atol=1e-4):
            return
    warn(
        "product is made anew and answers otherwise than the student and every network the method keeps: where it is "
        "merged or pruned, it must be equal to what was trained"
    )
