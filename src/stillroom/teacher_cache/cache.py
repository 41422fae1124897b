"""A teacher asked once: its answers to every view of every sample lie in memory-mapped files."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen, parts_of, require_settled
from stillroom.blocks.identity import check_identity, identity
from stillroom.blocks.providers import Provider, checksum
from stillroom.data.batch import Batch, tensors_in
from stillroom.data.samples import Samples
from stillroom.data.stream import Stream
from stillroom.losses._shared import at_least_float32
from stillroom.method import Method, Needs
from stillroom.teacher_cache.files import AnswerFiles, alone_in
from stillroom.teacher_cache.pace import Pace, to_stderr

TEMPERATURES = (1.0, 4.0)
"""Where the distance between what the teacher said and what is kept of it is measured."""

_LOOKED_AT = 16  # samples whose inputs say whose answers these are, where reading all of them would take long
_FLUSH_EVERY = 32  # batches between two moments at which answers are surely on the disk


@dataclass(frozen=True)
class CacheOptions:
    """What is kept of a teacher's answers, and where.

    Attributes:
        folder: where the folders of answers are made.
        keep: "float32", "float16" or "top-K".

    Raises:
        ValueError: another word for `keep`.
    """

    folder: Path
    keep: str = "float16"

    def __post_init__(self) -> None:
        classes_kept(self.keep)


class CachedOnDisk(nn.Module):
    """Keeps a teacher's answers in files, so that it is asked once per sample and view, whatever is trained how often.

    `fit` opens it for its stream of batches and fills it before the first step; batches then carry the number of their
    view, and answers are read from the files. What has no place there (held-out samples) is answered by the teacher.
    The files lie in a folder named after the teacher (`blocks.identity`), the samples and their inputs, the
    augmentation, the number of views and what is kept; another run that finds it complete asks nothing. Filling that
    was interrupted goes on where it stood. Of samples that are fetched one by one, only the first 16 are looked at for
    the name: delete the folder if others change.

    A checksum of the inputs is kept per answer, and inputs that differ are refused. Of several teachers, keep what
    they say together: `CachedOnDisk(Average([...]), ...)`.

    Use: `KD(student, CachedOnDisk(teacher, "cache", keep="float16"))` with `Training(views=4)`.

    Args:
        teacher: a network or provider that returns a tensor of logits `(N, ...)`; frozen here. A function needs a
            `fingerprint()` of its own, that it is found by (`FunctionTeacher(..., version=...)`).
        folder: where the folders of answers are made.
        keep: "float32" is exact; "float16" rounds; "top-K" keeps the K largest logits of each row in float16, and the
            mass of the other classes, which is spread evenly over them. How far that is from what the teacher said is
            measured while the cache is filled: see `error`.
        progress: say on stderr how far filling is, every ten seconds that it takes.

    Raises:
        ValueError: another word for `keep`, a teacher that normalises by the batch, or a function without
            `fingerprint()`; when filled, an answer that is no tensor, not finite, too large for float16, or has fewer
            classes than are kept.

    Source: Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition", arXiv:2112.01528
    (answers to augmented views are stored and reused, as numbers of lower precision or of the top classes).
    """

    takes_batch = True
    answers_from_memory = True  # there is nothing to tap

    def __init__(
        self, teacher: nn.Module | Provider, folder: str | Path, *, keep: str = "float32", progress: bool = True
    ) -> None:
        super().__init__()
        self.provider = teacher if isinstance(teacher, Frozen) else Frozen(teacher)
        require_settled(self.provider)
        check_identity(self.provider)
        self.top = classes_kept(keep)
        self.folder, self.keep, self.progress = Path(folder), keep, progress
        self._files: AnswerFiles | None = None
        self._row_of = torch.empty(0, dtype=torch.int64)
        self.error: dict[str, float] = {}
        """Largest distance between what the teacher said and what is kept, over all answers of all files that were
        opened: of a logit ("logit"; not for "top-K"), and the total variation of the softmax at two temperatures
        ("tv_1", "tv_4"); for "top-K" also the largest mass that was spread ("tail")."""

    def open(self, stream: Stream, say: Callable[[str], None] | None = None) -> None:
        """Use the files that belong to a stream, filling them where answers are missing.

        One process fills at a time; others that want the same files wait.

        Args:
            stream: whose batches will be asked about; it must have views.
            say: takes a line about how far filling is, every ten seconds that it takes; None: it goes to stderr, with
                `progress`.

        Raises:
            ValueError: the stream has no views, an answer cannot be kept, or a function lost its `fingerprint()`.
            StorageError: the disk is too full for all answers, or the folder cannot be written.
        """
        if stream.views is None:
            raise ValueError(
                "a cache needs a number of views that can be answered in advance, but augmentation is drawn anew at "
                "every step: set Training(views=...)"
            )
        index = [stream.samples.index]
        if stream.pool is not None:
            index.append(stream.pool.index + stream._offset)
        numbers = torch.cat(index)
        place = self.folder / self._key(stream, numbers)
        with alone_in(place):
            files = AnswerFiles.find(place, views=stream.views, rows=len(numbers))
            if files is None or not files.complete:
                files = self._fill(place, stream, files, say or (to_stderr if self.progress else _to_nobody))
            self.error = {name: max(value, self.error.get(name, 0.0)) for name, value in files.error.items()}
        self._files = files
        self._row_of = torch.full((int(numbers.max()) + 1,), -1, dtype=torch.int64)
        self._row_of[numbers] = torch.arange(len(numbers))

    def forward(self, batch: Batch) -> Tensor:
        """Answer a batch `(N, ...)`: from the files where it is a view of the open stream, else by asking.

        Raises:
            ValueError: a sample comes with other inputs than its answer was given for.
        """
        view, files = batch.fields.get("view"), self._files
        if files is None or view is None or batch.index is None:
            return self.provider(batch)
        index = batch.index.cpu()
        if int(index.max()) >= len(self._row_of):
            return self.provider(batch)
        rows, views = self._row_of[index], view.cpu()
        if int(rows.min()) < 0 or int(views.max()) >= files.views:
            return self.provider(batch)
        found = torch.from_numpy(files.checksums[views.numpy(), rows.numpy()])
        if (changed := found != checksum(batch.inputs).cpu()).any():
            raise ValueError(
                f"sample {int(index[changed][0])} came with other inputs than its cached answer was given for: if "
                f"the data have changed, delete {files.place}; else leave the batches of the stream as they are, or "
                "use the teacher without a cache"
            )
        device = next(iter(tensors_in(batch.inputs))).device
        return self._decoded(files, views.numpy(), rows.numpy()).to(device)

    def fingerprint(self) -> str:
        """The teacher's fingerprint."""
        return self.provider.fingerprint()

    def _key(self, stream: Stream, numbers: Tensor) -> str:
        digest = hashlib.sha256(numbers.numpy().tobytes())
        first = next(stream.view_batches(0, _LOOKED_AT))
        parts = (identity(self.provider), self.keep, stream.views, repr(stream.augment), len(stream.samples))
        digest.update(repr((*parts, checksum(first.inputs).tolist())).encode())
        for samples in filter(None, (stream.samples, stream.pool)):
            for sums in _checksums(samples):
                digest.update(repr(sums.tolist()).encode())
        shown = re.sub(r"[^\w.-]", "-", self.provider.fingerprint())[:40]
        return f"{shown}-{digest.hexdigest()[:16]}"

    def _fill(self, place: Path, stream: Stream, files: AnswerFiles | None, say: Callable[[str], None]) -> AnswerFiles:
        device = next((one.device for one in _parameters(self.provider)), None)
        pending: list[tuple[int, slice]] = []
        pace = Pace(say)
        for view in range(stream.views or 0):
            begin = 0
            for batch in stream.view_batches(view):
                rows = slice(begin, begin + len(batch))
                begin = rows.stop
                if files is not None and files.known[view, rows].all():
                    continue
                answer = self.provider(batch if device is None else batch.to(device))
                self._check(answer, len(batch))
                if files is None:
                    total = len(stream.samples) + (0 if stream.pool is None else len(stream.pool))
                    files = AnswerFiles.make(place, self._layout(answer), views=stream.views or 0, rows=total)
                self._encode(files, view, rows, at_least_float32(answer).cpu(), checksum(batch.inputs))
                pending.append((view, rows))
                if len(pending) == _FLUSH_EVERY:
                    files.settle(pending)
                pace.step(
                    (view * files.rows + begin) / (files.views * files.rows),
                    f"the teacher's answers ({self.keep}, {files.bytes / 1e6:,.1f} MB) are kept in {place}",
                )
        if files is None:
            raise ValueError("there are 0 samples to ask the teacher about: give at least one")
        files.settle(pending)
        return files

    def _check(self, answer: Any, rows: int) -> None:
        if not isinstance(answer, Tensor) or len(answer) != rows or answer.ndim < 2:
            given = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"a cached teacher must return a tensor ({rows}, classes, ...), given {given}")
        if not answer.isfinite().all():
            raise ValueError("the teacher returned NaN or infinity, expected finite logits: mend the teacher")
        if self.top is not None and answer.shape[1] <= self.top:
            raise ValueError(
                f"the cache keeps the top {self.top} classes, but the teacher has {answer.shape[1]}: keep fewer, or "
                'use "float16"'
            )
        if self.keep != "float32" and float(answer.abs().max()) > 65504:
            raise ValueError(f'a logit of {float(answer.abs().max()):g} does not fit float16: keep "float32"')

    def _layout(self, answer: Tensor) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> dtype and shape of what is kept of a sample."""
        shape = tuple(answer.shape[1:])
        if self.top is None:
            return {"answers": (self.keep, shape)}
        kept = (self.top, *shape[1:])
        classes = "int16" if shape[0] < 2**15 else "int32"
        return {"answers": ("float16", kept), "classes": (classes, kept), "rest": ("float32", (1, *shape[1:]))} | {
            "width": ("int32", ())
        }

    def _encode(self, files: AnswerFiles, view: int, rows: slice, answer: Tensor, sums: Tensor) -> None:
        if self.top is None:
            files.kept["answers"][view, rows] = answer.numpy()
        else:
            values, classes = answer.topk(self.top, dim=1)
            rest = torch.ones_like(answer, dtype=torch.bool).scatter(1, classes, False)
            others = answer.masked_fill(~rest, -math.inf).logsumexp(1, keepdim=True)
            files.kept["answers"][view, rows] = values.numpy()
            files.kept["classes"][view, rows] = classes.numpy()
            files.kept["rest"][view, rows] = (others - math.log(answer.shape[1] - self.top)).numpy()
            files.kept["width"][view, rows] = answer.shape[1]
        files.checksums[view, rows] = sums.cpu().numpy()
        again = self._decoded(files, np.full(len(answer), view), np.arange(rows.start, rows.stop))
        self._measure(files, answer, again)

    def _measure(self, files: AnswerFiles, said: Tensor, kept: Tensor) -> None:
        found = {}
        if self.top is None:
            found["logit"] = float((said - kept).abs().max())
        for temperature in TEMPERATURES:
            gap = (said / temperature).softmax(1) - (kept / temperature).softmax(1)
            found[f"tv_{temperature:g}"] = float(gap.abs().sum(1).max() / 2)
        if self.top is not None:
            found["tail"] = float(1 - said.softmax(1).topk(self.top, dim=1).values.sum(1).min())
        for name, value in found.items():
            files.error[name] = max(files.error.get(name, 0.0), value)

    def _decoded(self, files: AnswerFiles, views: np.ndarray, rows: np.ndarray) -> Tensor:
        values = torch.from_numpy(files.kept["answers"][views, rows]).float()
        if self.top is None:
            return values
        classes = torch.from_numpy(files.kept["classes"][views, rows].astype(np.int64))
        rest = torch.from_numpy(files.kept["rest"][views, rows])
        width = int(files.kept["width"][views[0], rows[0]]) if len(rows) else self.top
        return rest.expand(-1, width, *rest.shape[2:]).scatter(1, classes, values)


def classes_kept(keep: str) -> int | None:
    """How many classes a word for what is kept means; None for all of them.

    Raises:
        ValueError: it is none of "float32", "float16", "top-K".
    """
    found = re.fullmatch(r"top-([1-9]\d*)", keep)
    if found is None and keep not in ("float32", "float16"):
        raise ValueError(f'a teacher cache keeps "float32", "float16" or "top-K" (such as top-32), given {keep!r}')
    return int(found[1]) if found else None


def cache_options(keep: str | None, folder: str | Path | None) -> CacheOptions | None:
    """What is kept, and where: in the user's own cache folder where none is named; None for nothing.

    Raises:
        ValueError: a folder without saying what is kept, or an unknown word for that.
    """
    if keep is not None:
        return CacheOptions(Path(folder or "~/.cache/stillroom/answers").expanduser(), keep)
    if folder is not None:
        raise ValueError("cache_folder says where answers are kept, but none are: name what (--cache-teacher float16)")
    return None


def check_cacheable(name: str, needs: Needs | None, keep: str, task: str = "classification") -> None:
    """Refuse a method that needs more of its teacher than a cache has.

    Args:
        name: of the method, for the message.
        needs: what it needs; None where that is not known.
        keep: what the cache keeps.
        task: name of the task.

    Raises:
        ValueError: it reads features, asks about inputs of its own making, or needs every class's logit of a cache that
            keeps the top ones, or outputs of the task are no classes of which one is right.
    """
    if needs is None or not needs.teacher:
        return
    if needs.features:
        raise ValueError(
            f"{name} reads activations inside the teacher, and a cache keeps its outputs only: leave the cache out"
        )
    if needs.teacher_at == "own":
        raise ValueError(
            f"{name} asks its teacher about inputs that it makes itself, which no cache can answer: leave the cache out"
        )
    if classes_kept(keep) is not None and task not in ("classification", "segmentation"):
        raise ValueError(
            f'"{keep}" keeps the most probable of several classes, which the {task} task does not have: keep "float16" '
            'or "float32"'
        )
    if needs.full_logits and classes_kept(keep) is not None:
        raise ValueError(
            f'{name} needs the logit of every class, and the cache keeps "{keep}": keep "float16" or "float32"'
        )


def cache_of(method: Method) -> CachedOnDisk | None:
    """The disk cache that answers for a method's teacher or in it; None where there is none, or more than one."""
    parts = parts_of(method.teacher) if isinstance(method.teacher, Frozen) else ()
    found = {id(part): part for part in parts if isinstance(part, CachedOnDisk)}
    return next(iter(found.values())) if len(found) == 1 else None


def notes_of(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How far cached answers are from what the teacher said, a sentence for each way of keeping them.

    Args:
        arms: of a results dictionary.
    """
    worst: dict[str, dict[str, float]] = {}
    for arm in arms.values():
        for kept in filter(None, arm.get("cached") or ()):
            of = worst.setdefault(kept["keep"], {})
            of |= {name: max(of.get(name, 0.0), value) for name, value in kept.items() if name != "keep"}
    return [told(keep, error) for keep, error in worst.items()]


def told(keep: str, error: dict[str, float]) -> str:
    """Say in a sentence how far what is kept is from what the teacher said."""
    if not any(error.values()):
        return f"The teacher's answers were kept exactly ({keep})."
    shown = [f"{error['logit']:.2g} per logit"] if "logit" in error else []
    shown += [
        f"{error[f'tv_{t:g}']:.2g} of probability at temperature {t:g}" for t in TEMPERATURES if f"tv_{t:g}" in error
    ]
    tail = (
        f"; at most {error['tail']:.2g} of a sample's probability was spread over the rest" if "tail" in error else ""
    )
    return f"The teacher's answers were kept as {keep}: off by at most {', '.join(shown)}{tail}."


def _parameters(frozen: Frozen) -> Iterator[nn.Parameter]:
    for part in parts_of(frozen):
        if isinstance(part, nn.Module):
            yield from part.parameters(recurse=False)


def _checksums(samples: Samples) -> Iterator[Tensor]:
    """Checksums of all samples as they lie in memory; of the first ones only where each has to be fetched."""
    count = min(len(samples), _LOOKED_AT) if samples.lazy else len(samples)
    for rows in torch.arange(count).split(min(256, samples.largest_batch or 256)):
        yield checksum(samples.batch(rows).inputs)


def _to_nobody(line: str) -> None:
    return
