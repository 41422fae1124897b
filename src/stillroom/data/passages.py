"""Text of the user's: files, folders, Hugging Face data sets, lists of texts, rows of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.data.batch import UNLABELLED
from stillroom.data.named import data_folder, fetch_hub
from stillroom.data.parts import part_of
from stillroom.data.rows import generator
from stillroom.data.samples import Samples, Splits, TensorSamples
from stillroom.data.text import LENGTH, Passage, documentation, documentation_topics, text_splits, token_blocks
from stillroom.data.tokenizer import CharacterTokenizer, Tokenizer

SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".parquet")
TEXT_KEYS = ("text", "content")
PROMPT_KEYS = ("prompt", "instruction", "question")
RESPONSE_KEYS = ("response", "completion", "output", "answer")
TEST_SHARE = 0.1  # of text that comes in one piece
BY_HAND = {
    "gsm8k": "train.jsonl and test.jsonl with question and answer (github.com/openai/grade-school-math), or name it "
    "hf:openai/gsm8k:main to have it downloaded"
}
"""Text that recipes ask for by name -> what must lie in the folder of that name."""
MANY = 20  # so many texts (or any number of answers) are held out as wholes; of fewer texts, the end of each is

Passages = dict[str, list[Passage]]


def load_text(
    spec: Any,
    *,
    length: int | None = None,
    tokenizer: Tokenizer | None = None,
    validation_share: float = 0.1,
    unlabelled: Any = None,
) -> Splits:
    """Read text, hold some of it out and lay it out as blocks of tokens.

    Parts that came along (files or folders called train, validation and test, the splits of a data set) are taken as
    they are. Of text in one piece a tenth is reported and `validation_share` chooses: whole texts where there are 20 or
    more, else the end of each, the same for every seed.

    Args:
        spec: "documentation"; a .txt, .md, .rst, .jsonl or .parquet file, or a folder of such (a text per text file;
            lines of JSON and rows of tables with "text", or with "prompt" and "response"); "hf:OWNER/NAME" or
            "hf:OWNER/NAME:CONFIG"; a Hugging Face data set; a text, a list of texts or of (prompt, response); a dict of
            parts; tokens, `(N, L)` or one row `(T,)`; `(tokens, labels)`, labels one token later; or `Splits`.
        length: tokens in a block; None for 64, or what tokens that are given have.
        tokenizer: None: the most frequent characters of the training text.
        validation_share: part of the text held out for choosing, in [0, 1).
        unlabelled: further text that is read without labels.

    Returns:
        See `stillroom.data.text_splits`.

    Raises:
        FileNotFoundError: there is no such file, folder or data set.
        TypeError: `spec` is something else.
        ValueError: there is no text in it, or tokens and labels do not belong together.
    """
    if isinstance(spec, Splits):
        splits = spec
    elif (tokens := _as_tokens(spec)) is not None:
        splits = _token_splits(tokens, length, validation_share)
    elif isinstance(spec, str) and spec == "documentation":
        splits = documentation(length=length or LENGTH, tokenizer=tokenizer)
    else:
        name, found = read_passages(spec)
        notes: list[str] = []
        parts = _with_all_parts(found, validation_share, notes)
        known = tokenizer or CharacterTokenizer.fit(f"{p.prompt or ''}{p.text}" for p in parts["train"])
        splits = text_splits(parts, known, length=length or LENGTH, name=name)
        splits.notes[:0] = notes
    if unlabelled is None:
        return splits
    if splits.tokenizer is None:
        raise ValueError("an unlabelled pool of text needs a tokenizer, and tokens were given: give text for both")
    pool = [
        one
        for part in (
            documentation_passages() if unlabelled == "documentation" else read_passages(unlabelled)[1]
        ).values()
        for one in part
    ]
    laid = text_splits({"train": pool, "test": pool[:1]}, splits.tokenizer, length=splits.train.shape[0]).train
    most = max(part.population for part in (splits.train, splits.test, splits.validation) if part is not None)
    return replace(splits, unlabelled=laid.relabel(None).renumber(torch.arange(most, most + len(laid))))


def documentation_passages() -> Passages:
    """The embedded documentation as passages."""
    return {part: [Passage(text) for text in topics.values()] for part, topics in documentation_topics().items()}


def is_text(spec: Any) -> bool:
    """Whether a name is that of a file of text."""
    return isinstance(spec, (str, Path)) and Path(spec).suffix.lower() in SUFFIXES[:-1]


def read_passages(spec: Any) -> tuple[str, Passages]:
    """Read texts without tokenizing them: what they are called, and the parts they came in.

    Args:
        spec: as in `load_text`, without tokens.
    """
    if type(spec).__module__.split(".")[0] == "datasets":
        return "data", _of_dataset(spec)
    if isinstance(spec, Mapping):
        return "data", {str(part_of(str(key))): _texts(value) for key, value in spec.items() if part_of(str(key))}
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return "data", {"train": _texts(spec)}
    if not isinstance(spec, (str, Path)):
        raise TypeError(
            f"text is a file, a folder, hf:NAME, a list of texts or rows of tokens, given {type(spec).__name__}"
        )
    if str(spec).startswith("hf:"):
        name = str(spec).removeprefix("hf:")
        return name, _of_dataset(fetch_hub(name))
    place = _place(spec)
    if place.is_file():
        return place.stem, {"train": list(_of_file(place))}
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        import datasets

        return place.name, _of_dataset(datasets.load_from_disk(str(place)))
    found: Passages = {}
    for file in sorted(place.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith("."):
            words = (*file.relative_to(place).parts[:-1], file.stem.replace("_", "-").split("-")[0])
            part = next((part for part in map(part_of, words) if part), "train")
            found.setdefault(part, []).extend(_of_file(file))
    if not found:
        raise ValueError(f"the folder {place} holds no text: expected files that end in {', '.join(SUFFIXES)}")
    return place.resolve().name, found


def _place(spec: str | Path) -> Path:
    places = [Path(spec).expanduser()]
    folder = data_folder()
    if folder is not None and not places[0].is_absolute():
        places.append(folder / spec)
    for place in places:
        if place.is_dir() or (place.is_file() and place.suffix.lower() in SUFFIXES):
            return place
        if place.exists():
            raise ValueError(f"{place} is no file of text: expected one that ends in {', '.join(SUFFIXES)}")
    if str(spec) in BY_HAND:
        raise FileNotFoundError(
            f"{str(spec)!r} is not in {str(folder) if folder else 'the folder that STILLROOM_DATA names'}: put there, "
            f"into a folder of that name, {BY_HAND[str(spec)]}"
        )
    raise FileNotFoundError(f"there is no text {str(spec)!r}: give a file, a folder, documentation or hf:OWNER/NAME")


def _of_file(file: Path) -> Iterable[Passage]:
    if file.suffix.lower() == ".parquet":
        import datasets

        yield from _rows(datasets.Dataset.from_parquet(str(file)), str(file))
    elif file.suffix.lower() == ".jsonl":
        yield from _rows(_json_lines(file), str(file))
    else:
        try:
            yield Passage(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no text in UTF-8 ({error.reason}): convert it first") from error


def _json_lines(file: Path) -> Iterable[Any]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is no JSON ({error.msg}): give one object per line") from error


def _rows(rows: Iterable[Any], where: str) -> Iterable[Passage]:
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            yield Passage(row)
            continue
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}, row {number} is {type(row).__name__}: give a text, or an object with one")
        found = {
            what: next((row[key] for key in keys if isinstance(row.get(key), str)), None)
            for what, keys in (("prompt", PROMPT_KEYS), ("response", RESPONSE_KEYS), ("text", TEXT_KEYS))
        }
        if found["prompt"] is not None and found["response"] is not None:
            yield Passage(found["response"], prompt=found["prompt"])
        elif found["text"] is not None:
            yield Passage(found["text"])
        else:
            given = ", ".join(map(repr, row))
            raise ValueError(
                f'{where}, row {number} has {given or "nothing"}: expected "text", or "prompt" and "response" (or '
                f"{', '.join(map(repr, (*PROMPT_KEYS[1:], *RESPONSE_KEYS[1:])))})"
            )


def _of_dataset(data: Any) -> Passages:
    if not isinstance(data, Mapping):
        return {"train": list(_rows(data, "the data set"))}
    named = {part_of(str(key)): value for key, value in data.items() if part_of(str(key))}
    if not named and len(data) == 1:
        named = {"train": next(iter(data.values()))}
    return {str(part): list(_rows(value, f"the {part} part")) for part, value in named.items()}


def _texts(given: Any) -> list[Passage]:
    texts = [given] if isinstance(given, str) else list(given)
    found = []
    for one in texts:
        if isinstance(one, Passage):
            found.append(one)
        elif isinstance(one, str):
            found.append(Passage(one))
        elif isinstance(one, (tuple, list)) and len(one) == 2 and all(isinstance(half, str) for half in one):
            found.append(Passage(one[1], prompt=one[0]))
        elif isinstance(one, Mapping):
            found += list(_rows([one], "the list"))
        else:
            raise TypeError(f"a text must be a string or (prompt, response), given {type(one).__name__}")
    return found


def _with_all_parts(found: Passages, validation_share: float, notes: list[str]) -> Passages:
    """Hold out what did not come along."""
    parts = {part: texts for part, texts in found.items() if part in ("train", "validation", "test")}
    if "train" not in parts:
        raise ValueError(f"the text has the parts {', '.join(found)}, but none called train")
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        notes.append("there is no test part: the validation part is what is reported")
    for part, share in (("test", TEST_SHARE), ("validation", validation_share)):
        if part not in parts and share > 0:
            parts["train"], parts[part] = _held_out(parts["train"], share)
            how = "whole texts" if len(parts[part]) > 1 else "the end of the text"
            if part == "test":
                notes.append(f"there is no test part: a tenth ({how}) is held out and reported")
    return parts


def _held_out(texts: Sequence[Passage], share: float) -> tuple[list[Passage], list[Passage]]:
    answers = any(one.prompt is not None for one in texts)
    if answers and len(texts) < 2:
        raise ValueError("there is one prompt with its answer, and nothing can be held out: give more of them")
    if answers or len(texts) >= MANY:
        count = max(round(share * len(texts)), 1)
        held = set(torch.randperm(len(texts), generator=generator(0, 6))[:count].tolist())
        return [one for row, one in enumerate(texts) if row not in held], [texts[row] for row in sorted(held)]
    stays, ends = [], []
    for one in texts:
        place = len(one.text) - max(round(share * len(one.text)), 1)
        stays.append(replace(one, text=one.text[:place]))
        ends.append(replace(one, text=one.text[place:]))
    return stays, ends


# ---- rows of tokens --------------------------------------------------------------------------------------------------


def _as_tokens(spec: Any) -> tuple[Tensor, Tensor | None] | Samples | None:
    """Tokens and labels where somebody gives tokens; None for anything else."""
    if isinstance(spec, Samples):
        return spec
    pair = spec if isinstance(spec, tuple) and len(spec) == 2 else (spec, None)
    if isinstance(pair[0], (Tensor, np.ndarray)) and isinstance(pair[1], (Tensor, np.ndarray, type(None))):
        tokens = torch.as_tensor(pair[0])
        if tokens.is_floating_point() or tokens.ndim not in (1, 2):
            raise ValueError(f"tokens must be integers (T,) or (N, L), given {tokens.dtype} of {tuple(tokens.shape)}")
        return tokens.long(), None if pair[1] is None else torch.as_tensor(pair[1]).long()
    return None


def _token_splits(given: tuple[Tensor, Tensor | None] | Samples, length: int | None, share: float) -> Splits:
    if isinstance(given, Samples):
        samples = given
    else:
        tokens, labels = given
        if tokens.ndim == 1:
            tokens, labels = token_blocks(tokens, length=length or LENGTH)
        elif labels is None:
            labels = torch.cat([tokens[:, 1:], tokens.new_full((len(tokens), 1), UNLABELLED)], dim=1)
        if labels is None or labels.shape != tokens.shape:
            raise ValueError(
                f"labels must have the tokens' shape {tuple(tokens.shape)}, the same row one token later, given "
                f"{None if labels is None else tuple(labels.shape)}"
            )
        samples = TensorSamples(tokens, labels)
    count = len(samples)
    tested = max(round(TEST_SHARE * count), 1)
    chosen = max(round(share * count), 1) if share > 0 else 0
    if count <= tested + chosen:
        raise ValueError(f"{count} blocks are too few to hold some out: give more tokens, or Splits of your own")
    rows = torch.arange(count)
    first, second = count - tested - chosen, count - tested
    return Splits(
        samples.subset(rows[:first]),
        samples.subset(rows[second:]),
        samples.subset(rows[first:second]) if chosen else None,
        name="tokens",
        notes=[f"there is no test part: the last {tested} of {count} blocks are held out and reported"],
        kind="language-modelling",
    )
