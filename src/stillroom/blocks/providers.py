"""Teacher providers: what answers `predict(batch) -> outputs` where one live network would not do.

A provider is made a teacher by `Frozen(provider)`, which methods do with whatever they are given as `teacher=`: it then
runs in eval mode and without gradients, moves with the method and stays outside its state dict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import UNKNOWN, Frozen, require_settled
from stillroom.data.batch import Batch, map_tensors, tensors_in
from stillroom.losses._shared import at_least_float32, check_positive

Provider = Callable[[Batch], Any]


class Average(nn.Module):
    """The weighted mean of several teachers, of their logits or of their probabilities.

    With weights w that sum to 1: sum_i w_i z_i of the logits z, or log(sum_i w_i softmax(z_i)) over the second axis.
    The logarithm of a probability is a logit, so both are used as any teacher's logits are. Computed in float32 or
    wider.

    Use: `Frozen(Average([first, second]))`.

    Args:
        teachers: networks, called with the inputs, or providers, called with the batch; one or more.
        weights: one number above 0 each, relative to each other; None weighs all the same.
        of: what is averaged, "logits" or "probabilities".

    Raises:
        ValueError: no teacher, another number of weights, a weight not above 0, or another word for `of`; when called,
            outputs of different shapes.
        TypeError: a teacher cannot be called; when called, outputs that are no tensors.
    """

    takes_batch = True

    def __init__(
        self,
        teachers: Sequence[nn.Module | Provider],
        *,
        weights: Sequence[float] | None = None,
        of: Literal["logits", "probabilities"] = "logits",
    ) -> None:
        super().__init__()
        if not teachers:
            raise ValueError("Average needs at least one teacher, given none")
        self.teachers = nn.ModuleList(_as_module(teacher) for teacher in teachers)
        weights = [1.0] * len(self.teachers) if weights is None else list(weights)
        if len(weights) != len(self.teachers):
            raise ValueError(f"Average needs a weight per teacher, given {len(weights)} for {len(teachers)} teachers")
        check_positive(**{f"weights[{row}]": weight for row, weight in enumerate(weights)})
        if of not in ("logits", "probabilities"):
            raise ValueError(f'of must be "logits" or "probabilities", given {of!r}')
        self.weights = tuple(weight / sum(weights) for weight in weights)
        self.of = of

    def forward(self, batch: Batch) -> Tensor:
        """Ask every teacher about a batch: `(N, C, ...)`."""
        outputs = [ask(teacher, batch) for teacher in self.teachers]
        for row, output in enumerate(outputs):
            if not isinstance(output, Tensor):
                raise TypeError(f"teacher {row} returned {type(output).__name__}, expected a tensor of logits")
            if output.shape != outputs[0].shape:
                raise ValueError(
                    f"teacher {row} returned shape {tuple(output.shape)}, but teacher 0 returned "
                    f"{tuple(outputs[0].shape)}: teachers that are averaged must have the same classes"
                )
        stacked = torch.stack([at_least_float32(output) for output in outputs])
        weights = torch.tensor(self.weights, dtype=stacked.dtype, device=stacked.device)
        weights = weights.view(-1, *[1] * (stacked.ndim - 1))
        if self.of == "logits":
            return (weights * stacked).sum(0)
        return (stacked.log_softmax(2) + weights.log()).logsumexp(0)


class Cached(nn.Module):
    """Remembers what a teacher said about each sample, and asks it only about samples that it has not seen.

    Answers are kept by `batch.index`, in main memory, `size` times the outputs of a sample. A miss is answered by what
    is then kept, so that a sample gets the same answer every time; in float32 that is bit for bit what the teacher said
    when it was asked. (Asked again in another batch, a live network may differ in the last bit.) Answers come back on
    the device of the inputs, in the dtype that the teacher answers in.

    A cache is right only if a sample always comes with the same inputs and its answer does not depend on the rest of
    the batch. The first is watched: a checksum of the inputs is kept per sample, and another one is refused.

    The state dict holds what is remembered, not the teacher: saved by `torch.save` and loaded with
    `weights_only=True`, it goes on in another run, whose teacher must be the same.

    Use: `Frozen(Cached(network, size=len(samples)))`.

    Args:
        provider: a network, called with the inputs, or a provider; frozen here. It returns a tensor `(N, ...)`.
        size: number of samples in the data set; `batch.index` lies in [0, size).
        dtype: what answers are kept in: float32 is exact for teachers that answer in float32 or narrower, float16 and
            bfloat16 take half of the memory and round.
        watch_inputs: keep and compare the checksums of the inputs; False saves a pass over the inputs.

    Raises:
        ValueError: size below 1, a dtype that is no float, a teacher that normalises by the batch; when called, a batch
            without an index, an index out of range, inputs that changed, or outputs of another shape than before or
            too large for `dtype`.
        TypeError: the provider cannot be called; when called, it returns no tensor.
    """

    takes_batch = True
    answers_from_memory = True  # there is nothing to tap

    def __init__(
        self,
        provider: nn.Module | Provider,
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        watch_inputs: bool = True,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be the number of samples, 1 or more, given {size}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a float dtype such as torch.float32 or torch.float16, given {dtype}")
        self.provider = provider if isinstance(provider, Frozen) else Frozen(provider)
        require_settled(self.provider)
        self.size = size
        self.dtype = dtype
        self.watch_inputs = watch_inputs
        self.answer_dtype = dtype
        # plain attributes: a cache must be cast or moved by nobody
        self.answers = torch.empty(0)
        self.known = torch.zeros(size, dtype=torch.bool)
        self.checksums = torch.zeros(size, dtype=torch.int64)

    def forward(self, batch: Batch) -> Tensor:
        """Answer a batch: `(N, ...)`, as the teacher does."""
        index = self._index(batch)
        checksums = checksum(batch.inputs).cpu() if self.watch_inputs else None
        known = self.known[index]
        if checksums is not None and (changed := known & (self.checksums[index] != checksums)).any():
            raise ValueError(
                f"sample {int(index[changed][0])} came with other inputs than its cached answer was given for, "
                "expected fixed inputs: switch random augmentation off, or use the teacher without a cache"
            )
        if not known.all():
            missing = ~known
            asked = batch if missing.all() else batch[missing.to(next(iter(tensors_in(batch.inputs))).device)]
            self._keep(index[missing], self.provider(asked))
            if checksums is not None:
                self.checksums[index[missing]] = checksums[missing]
        device = next(iter(tensors_in(batch.inputs))).device
        return self.answers[index].to(device, self.answer_dtype)

    def _index(self, batch: Batch) -> Tensor:
        if batch.index is None:
            raise ValueError(
                "this batch has no index, expected int64 sample numbers to find cached answers by: give batch.index, "
                "or use the teacher without a cache"
            )
        index = batch.index.cpu()
        if index.dtype != torch.int64 or index.ndim != 1:
            raise ValueError(f"batch.index must be int64 of shape (N,), given {index.dtype} of {tuple(index.shape)}")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.size:
            raise ValueError(
                f"batch.index must lie in [0, {self.size}), given {int(index.min())} to {int(index.max())}: "
                "make the cache for the whole data set"
            )
        return index

    def _keep(self, index: Tensor, answer: Any) -> None:
        if not isinstance(answer, Tensor):
            raise TypeError(f"a cached teacher must return a tensor (N, ...), given {type(answer).__name__}")
        kept = answer.detach().to("cpu", self.dtype)
        if not self.known.any():
            self.answers = torch.zeros(self.size, *answer.shape[1:], dtype=self.dtype)
            self.answer_dtype = answer.dtype
        if answer.shape != (len(index), *self.answers.shape[1:]):
            raise ValueError(
                f"the cached teacher returned shape {tuple(answer.shape)}, expected "
                f"{(len(index), *self.answers.shape[1:])} as before"
            )
        if kept.isinf().any() and answer.isfinite().all():
            raise ValueError(f"an answer of {float(answer.abs().max()):g} does not fit {self.dtype}: use torch.float32")
        self.answers[index] = kept
        self.known[index] = True

    def __len__(self) -> int:
        """How many samples have an answer."""
        return int(self.known.sum())

    def fingerprint(self) -> str:
        """The teacher's fingerprint, which does not change as the cache fills."""
        return self.provider.fingerprint()

    def get_extra_state(self) -> dict[str, Any]:
        """What the state dict holds: answers, which of them are known, and the checksums of the inputs."""
        dtype = str(self.answer_dtype).removeprefix("torch.")
        return {"answers": self.answers, "known": self.known, "checksums": self.checksums, "answer_dtype": dtype}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what another cache of the same size and dtype remembered.

        Raises:
            ValueError: size or dtype differ.
        """
        if len(state["known"]) != self.size or (state["known"].any() and state["answers"].dtype != self.dtype):
            raise ValueError(
                f"this cache is for {self.size} samples in {self.dtype}, but the state holds {len(state['known'])} in "
                f"{state['answers'].dtype}: make the cache as it was when it was saved"
            )
        self.answers, self.known, self.checksums = (state[key].clone() for key in ("answers", "known", "checksums"))
        self.answer_dtype = getattr(torch, state["answer_dtype"])


class FunctionTeacher:
    """Any function as a teacher: a scikit-learn model, a served model, a formula.

    Conversion: `predict` is called with the inputs as NumPy arrays in main memory (with `arrays=False` as they are), in
    the form they have in the batch; what it returns, an array, a tensor or nested lists of floats, becomes a float32
    tensor (float64 stays) on the device of the inputs. Probabilities become logits by their logarithm, each row divided
    by its sum after values below `smallest` are raised to it: a forest's exact zeros would be minus infinity.

    Use: `Frozen(FunctionTeacher(forest.predict_proba, probabilities=True, flat=True))`.

    Args:
        predict: inputs of N samples -> `(N, C, ...)` scores.
        classes: size of the second axis that is expected; None expects any.
        probabilities: whether `predict` returns probabilities (each row sums to 1) and not logits.
        smallest: the smallest probability, in (0, 1).
        arrays: whether `predict` takes NumPy arrays and not tensors.
        flat: whether inputs `(N, ...)` are flattened to `(N, D)` first, as scikit-learn expects.
        version: a text that changes whenever the function's answers do, such as "forest of May". A cache on disk finds
            answers by it, and refuses a function without one.

    Raises:
        TypeError: `predict` is not callable.
        ValueError: `smallest` is out of range; when called, outputs that are no floats, not finite, not of N rows, not
            of `classes` columns, or no probabilities.
    """

    def __init__(
        self,
        predict: Callable[[Any], Any],
        *,
        classes: int | None = None,
        probabilities: bool = False,
        smallest: float = 1e-6,
        arrays: bool = True,
        flat: bool = False,
        version: str | None = None,
    ) -> None:
        if not callable(predict):
            raise TypeError(f"predict must be a function of the inputs, given {type(predict).__name__}")
        if not 0 < smallest < 1:
            raise ValueError(f"smallest must be a probability in (0, 1), given {smallest}")
        self.predict = predict
        self.classes = classes
        self.probabilities = probabilities
        self.smallest = smallest
        self.arrays = arrays
        self.flat = flat
        self.version = version

    def fingerprint(self) -> str:
        """Twelve hex digits of a SHA-256 over `version` and how answers are made of scores; "function" without one."""
        if self.version is None:
            return UNKNOWN
        parts = (self.version, self.probabilities, self.smallest, self.arrays, self.flat)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def __call__(self, batch: Batch) -> Tensor:
        """Ask about a batch: `(N, C, ...)`."""
        inputs = map_tensors(batch.inputs, lambda tensor: tensor.flatten(1)) if self.flat else batch.inputs
        if self.arrays:
            inputs = map_tensors(inputs, _to_array)
        said = self.predict(inputs)
        output = said.detach() if isinstance(said, Tensor) else torch.from_numpy(np.array(said))
        self._check(output, len(batch))
        output = at_least_float32(output).to(next(iter(tensors_in(batch.inputs))).device)
        if not self.probabilities:
            return output
        raised = output.clamp_min(self.smallest)
        return (raised / raised.sum(1, keepdim=True)).log()

    def _check(self, output: Tensor, rows: int) -> None:
        if not output.is_floating_point():
            raise ValueError(
                f"predict returned {output.dtype}, expected float scores: return logits, or probabilities "
                "(predict_proba, not predict)"
            )
        columns = output.shape[1:2] if self.classes is None else (self.classes,)
        if output.ndim < 2 or output.shape[:2] != (rows, *columns):
            raise ValueError(
                f"predict returned shape {tuple(output.shape)}, expected ({rows}, {self.classes or 'classes'}): "
                "return a row of scores per sample"
            )
        if not output.isfinite().all():
            raise ValueError("predict returned NaN or infinity, expected finite scores: mend the function")
        if not self.probabilities:
            return
        sums = output.sum(1)
        if output.min() < 0 or (sums - 1).abs().max() > 1e-3:
            raise ValueError(
                f"predict returned values from {float(output.min()):.4g} in rows that sum to {float(sums.min()):.4g} "
                f"to {float(sums.max()):.4g}, expected probabilities: leave probabilities=False for logits"
            )


def ask(teacher: nn.Module, batch: Batch) -> Any:
    """Call a network with the inputs, and a provider or a frozen teacher with the batch."""
    takes_batch = isinstance(teacher, Frozen) or getattr(teacher, "takes_batch", False)
    return teacher(batch if takes_batch else batch.inputs)


def checksum(inputs: Any) -> Tensor:
    """A number per sample that changes with any bit of its inputs (but for rare accidents).

    The bits are read as integers and summed with weights by position, modulo 2^64, so that neither the order of
    summation nor the other samples play a part.

    Args:
        inputs: a tensor `(N, ...)`, or a nested list, tuple or dict of them.

    Returns:
        `(N,)`, int64.
    """
    total: Any = 0
    for number, tensor in enumerate(tensors_in(inputs)):
        rows = tensor.detach().reshape(len(tensor), -1).contiguous()
        width = next(width for width in (8, 4, 2, 1) if rows.shape[1] * rows.element_size() % width == 0)
        words = rows.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[width]).long()
        weights = (torch.arange(words.shape[1], device=words.device) + 1000003 * number) * 0x9E3779B97F4A7C1
        weights = (weights ^ (weights >> 29)) * 2 + 1  # odd, so that no single change of a value is lost
        total = total + (words * weights).sum(1)
    return total


def _to_array(tensor: Tensor) -> Any:
    return tensor.numpy(force=True)


def _as_module(teacher: Any) -> nn.Module:
    if not callable(teacher):
        raise TypeError(f"a teacher must be a module or a function predict(batch), given {type(teacher).__name__}")
    return teacher if isinstance(teacher, nn.Module) else Frozen(teacher)
