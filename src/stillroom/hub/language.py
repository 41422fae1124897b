"""Causal language models: the wrapper that takes tokens, those of transformers, and the tokenizers they come with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.causal import CausalTransformer
from stillroom.data.tokenizer import CHARACTERS_FILE, CharacterTokenizer
from stillroom.hub.fetch import first_line, from_hugging_face, quiet
from stillroom.hub.model import Model, logits_of, name_of
from stillroom.hub.plan import Plan, Wish
from stillroom.language.vocabulary import cut_to_vocabulary, require_one_vocabulary

EMBEDDED = r"gpt-\d+-\d+"
"""Names of the embedded language models: blocks and width."""

WEIGHTS_FILE = "model.safetensors"
"""Where transformers looks for weights."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "vocab.txt")
_SHORTEST_CONTEXT = 256
_CLASS_NAMES = ("ForCausalLM", "LMHeadModel")


class LanguageModel(Model):
    """Wraps a causal language model: tokens `(N, L)` go in untouched, logits `(N, L, V)` come out.

    Logits that are padded beyond the vocabulary are cut to it (`stillroom.language.cut_to_vocabulary`), so that teacher
    and student of one family have the same V.

    Args:
        net: a network from tokens to logits, or one of transformers.
        channels: not used, as all that is said of images; there so that models are built alike.
        net_channels: not used.
        size: not used.
        mean: not used.
        std: not used.
        classes: V, the tokens of the vocabulary; None: as many as the network gives.
        image_size: not used.
        source: where the network came from.
        notes: sentences for the user.

    Attributes:
        tokenizer: what turns text into its tokens, where that is known; written beside the weights.
    """

    takes = "token numbers"

    def __init__(
        self,
        net: nn.Module,
        *,
        channels: int | None = None,
        net_channels: int | None = None,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: int | None = None,
        image_size: int | None = None,
        source: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(net, channels=None, classes=classes, source=source or _source_of(net), notes=notes)
        self.tokenizer: Any = None
        self._options = {"use_cache": False} if is_language_model(net) and hasattr(net, "config") else {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits `(N, L, V)` of the token that follows each position of `(N, L)`.

        Raises:
            TypeError: the tokens are no integers.
            ValueError: the network's logits are not of this vocabulary.
        """
        if not isinstance(inputs, Tensor) or inputs.is_floating_point():
            given = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(f"{name_of(self)} reads token numbers (N, L), integers, given {given}")
        logits = logits_of(self.net(inputs, **self._options))
        if self.classes is None:
            return logits
        if logits.ndim != 3 or logits.shape[:2] != inputs.shape:
            raise ValueError(
                f"{name_of(self)} gives outputs of shape {tuple(logits.shape)} for tokens {tuple(inputs.shape)}, "
                f"expected {(*inputs.shape, self.classes)}: one row of logits per token"
            )
        return cut_to_vocabulary(
            logits, self.classes if self.tokenizer is None else self.tokenizer, whose=name_of(self)
        )

    def probe(self) -> None:
        """Ask the network about two rows of two tokens; nothing is changed.

        Raises:
            ValueError: it cannot take them, or its logits are not of this vocabulary.
        """
        training = [(module, module.training) for module in self.modules()]
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), quiet():
                self.eval()(torch.zeros(2, 2, dtype=torch.int64, device=device))
        except ValueError:
            raise
        except Exception as error:  # whatever a network of anybody's raises
            raise ValueError(f"{name_of(self)} cannot read tokens (N, L): {first_line(error)}") from error
        finally:
            for module, mode in training:
                module.training = mode


def is_language_model(net: nn.Module) -> bool:
    """Whether a network is a causal language model, ours or one of transformers."""
    ours = isinstance(net, CausalTransformer)
    return ours or (type(net).__module__.startswith("transformers.") and type(net).__name__.endswith(_CLASS_NAMES))


def _source_of(net: nn.Module) -> dict[str, Any] | None:
    """How a network of transformers is built again, so that its folder opens with transformers; None for others."""
    if not is_language_model(net) or not hasattr(net, "config"):
        return None
    from stillroom.hub.huggingface import clean

    config: Any = net.config
    options = clean(json.loads(config.to_json_string(use_diff=False)))
    return {"kind": "hf", "name": type(net).__name__, "options": options, "weights": "own"}


def language_model(model: Model, tokenizer: Any) -> LanguageModel:
    """Wrap a model for text, and let it carry the tokenizer that its text is turned into tokens with.

    Args:
        model: any model whose network takes tokens.
        tokenizer: see `stillroom.data.Tokenizer`; None where tokens were given.

    Raises:
        ValueError: the network does not read tokens, or its logits are not of the vocabulary.
    """
    if not isinstance(model, LanguageModel):
        config = model.config
        source = {name: value for name, value in config.items() if name not in _IMAGES}
        wrapped = LanguageModel(model.net, classes=model.classes, source=source, notes=model.notes)
        wrapped.training = model.training
        model = wrapped
    model.tokenizer = tokenizer
    model.probe()
    return model


_IMAGES = ("channels", "net_channels", "image_size", "size", "mean", "std", "classes")


# ---- embedded and transformers ---------------------------------------------------------------------------------------


def embedded_plans(name: str, wish: Wish) -> list[Plan]:
    """How to build one of our small language models: for blocks of the data's length, or of 256 tokens.

    Raises:
        ValueError: pretrained weights are wanted, or the vocabulary is not given.
    """
    if wish.pretrained:
        raise ValueError(f"{name!r} has no pretrained weights: leave @pretrained out, or give weights=")
    if wish.classes is None:
        raise ValueError(f"{name!r} is built for the size of a vocabulary, given none: pass classes=")
    options = {"classes": wish.classes, "in_channels": max(wish.channels, _SHORTEST_CONTEXT), "image_size": 1}
    return [Plan("embedded", name, options, wish.channels)]


def is_language_config(transformers: Any, config: Any) -> bool:
    """Whether transformers builds a causal language model, and no image classifier, of a configuration."""
    known = transformers.models.auto.modeling_auto
    kind = getattr(config, "model_type", None)
    fills_gaps = kind in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    images = known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in images and not fills_gaps


# ---- tokenizers ------------------------------------------------------------------------------------------------------


class HuggingFaceTokenizer:
    """A tokenizer of transformers, in the form that this library asks for.

    Args:
        tokenizer: of transformers; a "fast" one, which knows where its tokens stand.
        name: what it is called in messages.

    Raises:
        ValueError: it cannot say where its tokens stand, or has no token that ends a text.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(f"the tokenizer of {name} is no fast one: convert it (it needs a tokenizer.json)")
        ends = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        found = next((end for end in ends if end is not None), None)
        if found is None:
            raise ValueError(f"the tokenizer of {name} has no token that ends a text: give it an eos_token")
        self.tokenizer = tokenizer
        self.name = name
        self.end_id = int(found)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer({self.name}, {len(self)} tokens)"

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token begins and ends in the text."""
        found = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        return [(int(start), int(end)) for start, end in found["offset_mapping"]]

    def get_vocab(self) -> dict[str, int]:
        """Every token and its number."""
        return dict(self.tokenizer.get_vocab())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it as transformers does."""
        with quiet():
            self.tokenizer.save_pretrained(str(folder))


def load_tokenizer(spec: str | Path) -> Any:
    """Load the tokenizer of a model.

    Args:
        spec: `hf/NAME_OR_FOLDER`, or a folder with a tokenizer beside its model, ours or one of transformers.

    Raises:
        FileNotFoundError: there is no tokenizer.
        ValueError: it cannot be used.
    """
    text = str(spec)
    name = text.removeprefix("hf/")
    if not Path(name).exists():
        name = name.rpartition("@")[0] or name
    folder = Path(name).expanduser()
    if (folder / CHARACTERS_FILE).is_file():
        return CharacterTokenizer.from_pretrained(folder)
    if folder.is_dir() and not has_tokenizer(folder):
        raise FileNotFoundError(
            f"the folder {folder} holds no tokenizer ({', '.join(_TOKENIZER_FILES[:2])}): save it there with "
            "tokenizer.save_pretrained(folder)"
        )
    from stillroom.extras import require

    transformers = require("transformers")
    try:
        if folder.is_dir():
            with quiet():
                found = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        else:
            with from_hugging_face(f"the tokenizer of {text}"), quiet():
                found = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise ValueError(f"the tokenizer of {text} cannot be read: {first_line(error)}") from error
    return HuggingFaceTokenizer(found, folder.name if folder.is_dir() else name)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a folder."""
    return any((folder / name).is_file() for name in (CHARACTERS_FILE, *_TOKENIZER_FILES))


def tokenizer_of_models(teacher: Any, student: Any) -> Any:
    """Find the tokenizer that models come with: the name of the model, or the tokenizer itself; None without one.

    Raises:
        ValueError: teacher and student bring different vocabularies; with both names and sizes.
    """
    teachers = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    found = [(str(_named(one)), _brought(one)) for one in (*teachers, student)]
    given = [(name, one) for name, one in found if one is not None]
    if not given:
        return None
    first_name, first = given[0]
    for name, other in given[1:]:
        if other != first:
            loaded = [load_tokenizer(one) if isinstance(one, str) else one for one in (first, other)]
            require_one_vocabulary(*loaded, teacher_name=first_name, student_name=name)
    return first


def _brought(spec: Any) -> Any:
    if not isinstance(spec, (str, Path)):
        return getattr(spec, "tokenizer", None)
    text = str(spec)
    return text if text.startswith("hf/") or has_tokenizer(Path(text).expanduser()) else None


def _named(spec: Any) -> Any:
    return spec if isinstance(spec, (str, Path)) else getattr(spec, "__name__", type(spec).__name__)
