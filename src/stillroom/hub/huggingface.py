"""Image classifiers and causal language models of transformers, from the Hugging Face hub or a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.hub.fetch import first_line, from_hugging_face, quiet
from stillroom.hub.language import is_language_config
from stillroom.hub.plan import HALF, Plan, Wish, per_channel, size_note

_NEVER = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "torch_dtype", "dtype")
"""Configuration entries that bring code or compiled kernels from elsewhere, or another precision: left out."""


def hf_plans(name: str, wish: Wish) -> list[Plan]:
    """How to build an image classifier or a causal language model from a name on the hub or a folder.

    A name there is a name of weights, so they are loaded unless the spec says @untrained. Mean, std and size are those
    of its image processor and configuration; without an image processor mean and std are 0.5. Code that a repository
    brings is never run.

    Raises:
        ImportError: transformers is not installed.
        ConnectionError: the hub is out of reach and the cache has no such name.
        FileNotFoundError: there is no such name or folder.
        ValueError: its configuration is unknown to transformers, brings its own code, or has another fixed size.
    """
    transformers = _transformers()
    whose = f"hf/{name}"
    with _reading(name), _without_bars(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{whose} has no configuration that transformers {transformers.__version__} knows without running its "
                f"code ({first_line(error)}): load it yourself and pass the module"
            ) from error
        text = is_language_config(transformers, config)
        mean, std = ((), ()) if text else _statistics(transformers, name)
    options = clean(json.loads(config.to_json_string(use_diff=False)))
    if text:
        if wish.size is not None:
            raise ValueError(f"{whose} reads tokens, given @{wish.size} pixels: leave the size out")
        return [Plan("hf", name, options, wish.channels)]
    own = options.get("image_size")
    own = int(own[0]) if isinstance(own, (list, tuple)) else own
    trained_channels = int(options.get("num_channels", 3))
    if wish.pretrained:
        if isinstance(own, int) and wish.size not in (None, own):
            raise ValueError(f"{whose} was trained at {own} pixels, given @{wish.size}: leave the size out")
        size, channels = own or wish.size, trained_channels
    else:
        size, channels = wish.size or wish.image_size or own, wish.channels
        if own is None:
            size = wish.size
        else:
            options["image_size"] = size
        options["num_channels"] = channels
    if wish.classes is not None and wish.classes != len(options.get("id2label", ())):
        labels = [f"LABEL_{number}" for number in range(wish.classes)]
        options["id2label"] = {str(number): label for number, label in enumerate(labels)}
        options["label2id"] = {label: number for number, label in enumerate(labels)}
    note = size_note(whose, wish.image_size, size, own or size, rebuilt=size != own) if size else ""
    mean, std = per_channel(mean, channels), per_channel(std, channels)
    return [Plan("hf", name, options, channels, size=size, mean=mean, std=std, note=note)]


def build_hf(name: str, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, bool]:
    """Build a network; returns it and whether its head is new beside pretrained layers."""
    transformers = _transformers()
    options = clean(options)
    try:
        config = transformers.AutoConfig.for_model(**options)
        text = is_language_config(transformers, config)
        classifier = transformers.AutoModelForCausalLM if text else transformers.AutoModelForImageClassification
        if not pretrained:
            with quiet():
                return classifier.from_config(config, dtype=torch.float32).train(), False
        with _reading(name), _without_bars(transformers):
            net, told = classifier.from_pretrained(
                name,
                config=config,
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"hf/{name} is no image classifier or causal language model that transformers can build: "
            f"{first_line(error)}"
        ) from error
    new = [*told["missing_keys"], *(entry[0] for entry in told["mismatched_keys"])]
    heads = [key for key in new if "classifier" in key or "head" in key]
    if len(new) > len(heads):
        others = ", ".join(key for key in new if key not in heads)
        raise ValueError(f"hf/{name} has no weights for {others}: write hf/{name}@untrained for an untrained one")
    return net.train(), bool(heads)


def clean(options: Any) -> Any:
    """A configuration, and those inside it, without private entries and those that bring code from elsewhere."""
    if isinstance(options, list):
        return [clean(value) for value in options]
    if not isinstance(options, dict):
        return options
    return {key: clean(value) for key, value in options.items() if not key.startswith("_") and key not in _NEVER}


def _transformers() -> Any:
    try:
        with quiet():
            import transformers
    except ImportError as error:
        raise ImportError(
            'models named hf/... need transformers, which is not installed: pip install "stillroom[language]"'
        ) from error
    return transformers


def _statistics(transformers: Any, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the image processor, for inputs in [0, 1]; 0.5 where there is none."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return (HALF,), (HALF,)
    if not getattr(processor, "do_normalize", True):
        return (0.0,), (1.0,)
    factor = 255 * (getattr(processor, "rescale_factor", None) or 1 / 255)  # 1 for nearly all; bytes times it are fed
    mean, std = (
        [value] if isinstance(value, (int, float)) else list(value)
        for value in (processor.image_mean or HALF, processor.image_std or HALF)
    )
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def _reading(name: str) -> AbstractContextManager[None]:
    """Where a name leads: a folder, in which files may be missing, or the hub."""
    if Path(name).is_dir():
        return _from_folder(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(
            f"there is no folder {name}: write hf/ and the path of a folder, or owner/name on the hub"
        )
    return from_hugging_face(f"hf/{name}")


@contextmanager
def _from_folder(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"the folder {name} is no complete transformers model ({first_line(error)}): write hf/{name}@untrained "
            "where it has only a config.json"
        ) from error


@contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing bars and reports of what it loads; downloads still show theirs."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
