"""Where a step stopped being finite: the same batch once more, with an eye on every module, forwards and backwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch, tensors_in
from stillroom.method import Losses, Method
from stillroom.tripwires import NotFiniteError

Turns = Callable[[Batch], Iterator[tuple[str, Losses]]]
MOST_NAMED = 8
"""So many sample numbers are named in a sentence."""
LARGEST_KEPT = 1 << 16
"""Values of a buffer that is copied before each step, as batch norm's are; memories of whole data sets are larger."""


class Replay:
    """Does a step again that has failed, to name the module and the samples that it began with.

    Args:
        method: whose step it is.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self._random: tuple[Any, ...] = ()
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []

    def remember(self) -> None:
        """Keep what a step changes besides the weights: random states, and buffers that are not too large to copy."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._random = (torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())  # noqa: NPY002
        self._buffers = [
            (module, name, buffer.clone())
            for module in self.method.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.numel() <= LARGEST_KEPT
        ]

    def _go_back(self) -> None:
        torch.set_rng_state(self._random[0])
        if self._random[1] is not None:
            torch.cuda.set_rng_state_all(self._random[1])
        np.random.set_state(self._random[2])  # noqa: NPY002
        random.setstate(self._random[3])
        for module, name, buffer in self._buffers:
            module._buffers[name] = buffer.clone()

    @contextmanager
    def explaining(
        self,
        step: int,
        batch: Batch,
        turns: Turns,
        trained: Mapping[str, Sequence[nn.Parameter]],
        kept: Path | None = None,
    ) -> Iterator[None]:
        """Let what is not finite in a step be reported with where it began.

        Args:
            step: its number.
            batch: what it was made of.
            turns: `batch -> (player, losses)`, as in the step.
            trained: player -> its parameters.
            kept: the checkpoint that a run may go on from; None where none is written.

        Raises:
            NotFiniteError: with the module, the samples and the remedy in its sentence.
        """
        try:
            yield
        except NotFiniteError as found:
            if self._random:
                found.place = self._search(batch, turns, trained, found)
                self._go_back()  # the buffers are those of the last good step again
            found.samples = [] if batch.index is None else batch.index.tolist()
            on = f"; {kept} is kept, and resume=True goes on from it" if kept is not None and kept.exists() else ""
            numbers = f" of samples {_listed(found.samples)}" if found.samples else ""
            raise NotFiniteError(
                f"{found.what} at step {step}{f': {found.place}' if found.place else ''}; the batch was that of step "
                f"{step}{numbers}; lower the learning rate, clip gradients (clip=1.0), or look for such values in the "
                f"data{on}",
                found,
            ) from found

    def _search(self, batch: Batch, turns: Turns, trained: Mapping[str, Any], found: NotFiniteError) -> str:
        for tensor in tensors_in(batch.inputs):
            if (rows := _bad_rows(tensor, batch)) is not None:
                return f"the inputs themselves are {_kind(tensor)}{_at(rows, batch)}"
        for name, parameter in self.method.named_parameters():
            if not _finite(parameter.detach()):
                return f"{name} is {_kind(parameter.detach())} already before this step, since an update before it"
        self._go_back()
        with _Watch(self.method, batch) as watch:
            try:
                for player, losses in turns(batch):
                    if watch.first or player != found.player:
                        if watch.first:
                            break
                        continue
                    bad = [name for name, term in losses.items() if not _finite(term.detach())]
                    if bad:
                        return f"every module's output is finite, so it begins in the term {bad[0]!r} itself"
                    self._backwards(losses, trained[player], watch, found)
                    break
            except Exception as error:  # the search must not hide what it searches for
                return f"a second pass over the batch failed ({type(error).__name__}), so the module is not known"
        if watch.first:
            return f"it begins in {watch.first}"
        return "a second pass over the batch was finite, so it hangs on something outside weights, buffers and batch"

    @staticmethod
    def _backwards(losses: Losses, parameters: Sequence[nn.Parameter], watch: _Watch, found: NotFiniteError) -> None:
        """Go back through one term after the other until one gives a gradient that is not finite."""
        for name, term in losses.items():
            if losses.weights[name] == 0 or not term.requires_grad:
                continue
            weighted = losses.weights[name] * term
            grads = torch.autograd.grad(weighted, parameters, retain_graph=True, allow_unused=True)
            if watch.first or not all(grad is None or _finite(grad) for grad in grads):
                found.term = name
                watch.first = watch.first or "no module of the method, but between them"
                watch.first += f", in the gradient of the term {name!r}"
                return


class _Watch:
    """Hooks on every module, the teacher's too, that keep the first tensor that is not finite.

    Args:
        method: whose modules are watched.
        batch: to name the rows that are not finite.
    """

    def __init__(self, method: Method, batch: Batch) -> None:
        self.batch, self.first, self.good_gradient = batch, "", set[str]()
        self.seen: dict[tuple[int, int], tuple[Tensor, list[str], list[str]]] = {}  # tensor, whose output, whose input
        self.modules: dict[str, nn.Module] = {}
        for name, module in method.named_modules():
            inner = module.network if isinstance(module, Frozen) else module
            parts = inner.named_modules(prefix=name) if isinstance(module, Frozen) and inner is not module else ()
            if name and not isinstance(module, Frozen):
                self.modules[name] = module
            if isinstance(inner, nn.Module):
                self.modules |= dict(parts)
        self.names = {id(module): name for name, module in reversed(self.modules.items())}
        self.hooks: list[Any] = []

    def __enter__(self) -> _Watch:
        for module in {id(module): module for module in self.modules.values()}.values():
            self.hooks.append(module.register_forward_pre_hook(self._enters))
            self.hooks.append(module.register_forward_hook(self._leaves))
        for name, module in self.modules.items():
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    self.hooks.append(parameter.register_hook(self._of_parameter(name, own)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _said(self, name: str) -> str:
        return f"{name} ({type(self.modules[name]).__name__})"

    def _enters(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        for tensor in tensors_in(given):
            self._look_back(tensor)[1].append(self.names[id(module)])

    def _leaves(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        name = self.names[id(module)]
        for tensor in tensors_in(output):
            if not self.first and not _finite(tensor.detach()):
                rows = _bad_rows(tensor.detach(), self.batch)
                self.first = f"{self._said(name)}, whose output is {_kind(tensor.detach())}{_at(rows, self.batch)}"
            self._look_back(tensor)[0].append(name)

    def _look_back(self, tensor: Tensor) -> tuple[list[str], list[str]]:
        """Watch the gradient that arrives at a tensor; return whose output and whose input it is, to be added to."""
        key = (id(tensor), tensor._version)
        if key not in self.seen:
            self.seen[key] = (tensor, [], [])
            if tensor.requires_grad:
                tensor.register_hook(lambda grad: self._arrives(key, grad))
        return self.seen[key][1:]

    def _arrives(self, key: tuple[int, int], grad: Tensor) -> None:
        _, outputs, inputs = self.seen[key]
        if _finite(grad):
            self.good_gradient.update(outputs)
        elif not self.first:
            rows = _at(_bad_rows(grad, self.batch), self.batch)
            passing = [name for name in inputs if name in self.good_gradient]
            if passing:  # the innermost module that got a finite gradient and passed this one on
                self.first = f"{self._said(passing[-1])}, which passes back a gradient that is {_kind(grad)}{rows}"
            elif outputs:
                self.first = f"what is computed from {self._said(outputs[0])}: its gradient is {_kind(grad)}{rows}"

    def _of_parameter(self, name: str, own: str) -> Callable[[Tensor], None]:
        def look(grad: Tensor) -> None:
            if not self.first and not _finite(grad):
                self.first = f"{self._said(name)}, where the gradient of {own} is {_kind(grad)}"

        return look


def _finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


def _kind(tensor: Tensor) -> str:
    return "NaN" if bool(torch.isnan(tensor).any()) else "infinite"


def _bad_rows(tensor: Tensor, batch: Batch) -> list[int] | None:
    """The rows that are not finite; empty where rows are not samples, None where all is finite."""
    if _finite(tensor):
        return None
    if not tensor.ndim or len(tensor) != len(batch):
        return []
    return [int(row) for row in (~torch.isfinite(tensor)).flatten(1).any(1).nonzero().flatten()]


def _at(rows: Sequence[int] | None, batch: Batch) -> str:
    """Which samples rows are, where that says something."""
    if not rows:
        return ""
    if len(rows) == len(batch):
        return " for every sample"
    numbers = [int(batch.index[row]) for row in rows] if batch.index is not None else list(rows)
    return f" for {'sample' if batch.index is not None else 'row'}{'s' * (len(rows) > 1)} {_listed(numbers)}"


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:MOST_NAMED]))
    return shown + (f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else "")
