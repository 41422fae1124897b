"""Cut a data set that was found into its splits, and read the rows that were chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data.images import Form, ImagePart, common_form, listed
from stillroom.data.parts import PARTS, Part, SamplesPart, Source, counting
from stillroom.data.rows import hold_out, is_known
from stillroom.data.samples import Samples, TensorSamples

MEMORY_BUDGET = 2 * 2**30  # bytes of decoded images that are kept in memory; above, they are decoded when needed
TEST_SHARE = 0.2  # of a data set that comes in one piece
FIXED = 0  # the seed of the test split: what is reported is the same for every seed


def _labelled(part: Part) -> bool:
    if part.labels is not None:
        return part.labels.ndim > 2 or bool(is_known(part.labels).any())
    if isinstance(part, ImagePart):
        return part.open_mask is not None
    if not isinstance(part, SamplesPart):
        return False
    return part.samples.lazy or part.samples.has_labels  # labels too large to keep come with the inputs


def _take(rows: Tensor, size: int, seed: int, part: Part) -> tuple[Tensor, Tensor]:
    """Cut rows of a part in two, stratified: those that stay, and `size` that are taken."""
    stays, taken = hold_out(len(rows), size, seed, None if part.labels is None else part.labels[rows])
    return rows[stays], rows[taken]


def _known_rows(part: Part, name: str, notes: list[str]) -> tuple[Tensor, Tensor]:
    """Rows with and without a label."""
    rows = counting(len(part))
    if part.labels is None or part.labels.ndim > 2:
        return rows, rows[:0]
    known = is_known(part.labels)
    if not bool(known.all()):
        notes.append(f"{int((~known).sum())} {name} samples have no label")
    return rows[known], rows[~known]


def cut(
    source: Source, seed: int, share: float, train_size: int | None, test_size: int | None
) -> dict[str, tuple[str, Tensor]]:
    """Choose the rows of every split: split -> (part, rows)."""
    parts, notes = source.parts, source.notes
    if "train" not in parts:
        if len(parts) != 1:
            raise ValueError(f"{source.name!r} has the parts {', '.join(parts)}, but none called 'train'")
        parts["train"] = parts.pop(next(iter(parts)))
    train = parts["train"]
    if source.kind != "unlabelled":
        if not _labelled(train):
            raise ValueError(
                f"the training part of {source.name!r} has no labels, but another part has: give it labels"
            )
        for name in ("test", "validation"):
            if name in parts and not _labelled(parts[name]):
                notes.append(f"the {name} part has no labels and is not used")
                del parts[name]
    rows, without = _known_rows(train, "training", notes)
    picks: dict[str, tuple[str, Tensor]] = {}
    if "test" in parts:
        picks["test"] = ("test", _known_rows(parts["test"], "test", notes)[0])
    elif "validation" in parts:
        picks["test"] = ("validation", _known_rows(parts["validation"], "validation", notes)[0])
        notes.append("there is no test split: the validation split is what is reported")
    else:
        rows, held = _take(rows, max(round(TEST_SHARE * len(rows)), 1), FIXED, train)
        picks["test"] = ("train", held)
        notes.append(f"there is no test split: {len(held)} of {len(train)} samples are held out and reported")
    if "validation" in parts and "test" in parts:
        picks["validation"] = ("validation", _known_rows(parts["validation"], "validation", notes)[0])
    elif share and len(rows) > 1:
        rows, held = _take(rows, min(max(round(share * len(rows)), 1), len(rows) - 1), seed, train)
        picks["validation"] = ("train", held)
    if train_size is not None:
        if train_size > len(rows):
            raise ValueError(
                f"train_size is {train_size}, but there are {len(rows)} training samples (after test and validation)"
            )
        _, rows = _take(rows, train_size, seed, train)
    pool = ("unlabelled", counting(len(parts["unlabelled"]))) if "unlabelled" in parts else None
    if len(without):
        if pool is not None:
            raise ValueError("there are training samples without a label and a pool beside them: give one of the two")
        pool = ("train", without)
    if test_size is not None:
        part, held = picks["test"]
        if test_size > len(held):
            raise ValueError(f"test_size is {test_size}, but there are {len(held)} test samples")
        picks["test"] = (part, _take(held, test_size, FIXED, parts[part])[1])
    picks["train"] = ("train", rows)
    if pool is not None:
        picks["unlabelled"] = pool
    return picks


def decide_form(source: Source, image_size: int | None, channels: int | None) -> Form | None:
    """Decide what shape the inputs are brought to, not looking at the pool; None where all are left alone."""
    if source.kind == "detection":
        if image_size is not None or channels is not None:
            raise ValueError(
                "detectors bring images to their own size, boxes included: leave image_size and channels out, and name "
                "the size with the model (torchvision/NAME@400)"
            )
        return None
    main = [part for name, part in source.parts.items() if name != "unlabelled"]
    encoded = [part for part in main if isinstance(part, ImagePart)]
    if encoded:
        return common_form(encoded, image_size, channels, source.notes)
    held = [part for part in main if isinstance(part, SamplesPart)]
    if any(part.varied for part in held):
        if source.kind == "segmentation":
            raise ValueError(
                "images of different sizes cannot be resized with masks that a data set makes: bring both to one size "
                "in its transform, or pass a folder or Parquet file"
            )
        return common_form(held, image_size, channels, source.notes)
    shapes = [part.samples.shape for part in held]
    if (image_size is not None or channels is not None) and all(len(shape) == 2 for shape in shapes):
        for one in source.parts.values():
            if isinstance(one, SamplesPart):
                one.planes_as_images(source.notes)
        shapes = [part.samples.shape for part in held]
    shape = shapes[0]
    if any(other != shape for other in shapes) and image_size is None:
        raise ValueError(f"inputs have shape {shape} in one part and {shapes[-1]} in another: give all one shape")
    pool = source.parts.get("unlabelled")
    pool_shape = shape if pool is None else None
    if isinstance(pool, SamplesPart) and not pool.varied:
        pool_shape = pool.samples.shape
    if image_size is None and channels is None and pool_shape == shape:
        return None
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"inputs of shape {shape} are no images (1 or 3, height, width; floats or uint8), so nothing can be "
            "resized: give images, or leave out image_size and channels and give a pool of the same shape"
        )
    form = Form(channels or shape[0], image_size or shape[1], image_size or shape[2])
    if source.kind == "segmentation" and form.shape[1:] != shape[1:]:
        raise ValueError(f"masks of {shape[1]}x{shape[2]} in memory cannot follow image_size={image_size}: resize both")
    if pool is not None and pool_shape != form.shape:
        source.notes.append(f"images of the unlabelled pool are brought to {form.width}x{form.height}")
    return form


def load(source: Source, picks: dict[str, tuple[str, Tensor]], form: Form | None) -> dict[str, Samples]:
    """Read the chosen rows, each part once, and number the samples."""
    wanted: dict[str, Tensor] = {}
    for name, rows in picks.values():
        wanted[name] = torch.cat([wanted.get(name, rows[:0]), rows]).sort().values
    cost = 0
    if form is not None:
        pixels = form.height * form.width * (form.channels + 2 * (source.kind == "segmentation"))
        cost = pixels * sum(len(rows) for part, rows in wanted.items() if isinstance(source.parts[part], ImagePart))
    lazy = cost > MEMORY_BUDGET
    if lazy:
        source.notes.append(f"the images take {cost / 2**30:.1f} GiB decoded: they are decoded when needed")
    loaded: dict[str, Samples] = {}
    start = 0
    for name in PARTS:
        if name not in source.parts:
            continue
        part = source.parts[name]
        numbers = counting(len(part), start) if part.numbers is None else part.numbers
        start = max(start, int(numbers.max()) + 1) if len(numbers) else start
        if name not in wanted:
            continue
        samples = part.load(wanted[name], form, lazy, source.notes)
        _check_finite(source, name, samples, picks)
        place = torch.full((len(part),), -1)
        place[samples.index] = counting(len(samples))
        samples = samples.renumber(numbers[samples.index])
        for split, (origin, rows) in picks.items():
            if origin == name:
                found = place[rows]
                loaded[split] = samples.subset(found[found >= 0])
    if "unlabelled" in loaded:
        loaded["unlabelled"] = loaded["unlabelled"].relabel(None)
    return loaded


def _check_finite(source: Source, part: str, samples: Samples, picks: dict[str, tuple[str, Tensor]]) -> None:
    """Refuse NaN and infinite values in samples that are held in memory, whatever split they went to."""
    spoiled = samples.index[samples.not_finite()] if isinstance(samples, TensorSamples) else counting(0)
    for split, (origin, chosen) in picks.items():
        rows = spoiled[torch.isin(spoiled, chosen)] if origin == part else spoiled[:0]
        if len(rows):
            one = len(rows) == 1
            whose = "data" if len(source.parts) == 1 else f"{part} part"
            raise ValueError(
                f"{len(rows)} {'sample' if one else 'samples'} of the {split} split {'holds' if one else 'hold'} NaN "
                f"or infinite values ({'row' if one else 'rows'} {listed([str(row) for row in rows.tolist()])} of the "
                f"{whose}): repair these rows or leave them out"
            )
