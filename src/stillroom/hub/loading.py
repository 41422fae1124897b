"""From a name, a folder, a function or a module to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.blocks.frozen import Frozen
from stillroom.hub import building, code
from stillroom.hub.folder import Trusted, is_folder, load_folder
from stillroom.hub.model import Model, name_of
from stillroom.hub.plan import Plan, Wish
from stillroom.hub.weights import load_weights
from stillroom.hub.wrappers import wrapper_of

FORMS = (
    "timm/NAME, torchvision/NAME, hf/NAME_OR_FOLDER, package.module:function, file.py:function, a folder written by "
    "stillroom.hub.save, or the name of a small embedded network such as resnet20"
)


def load(
    spec: str | Path | nn.Module | Callable[..., nn.Module] | Trusted,
    *,
    classes: int | None = None,
    channels: int | None = None,
    image_size: int | None = None,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust_code: bool = False,
) -> Model:
    """Load a model for some data: it takes inputs in [0, 1] and gives as many outputs as there are classes.

    `spec` is one of

    - `timm/NAME`, `torchvision/NAME` or `torchvision/segmentation/NAME`: untrained;
    - `hf/NAME_OR_FOLDER`: an image classifier or a causal language model of transformers, with the weights that the
      name or folder stands for;
    - `package.module:function` or `file.py:function`: the function is run, with those of `classes` / `num_classes`,
      `channels` / `in_channels` / `in_chans` and `image_size` that it has parameters for, and returns a module;
    - a folder written by `stillroom.hub.save`, with its weights;
    - the name of a small embedded network (`stillroom.blocks.models`): untrained;
    - a module, which is wrapped (a `Model` stays as it is), or a function or class that is called like the one above.

    After an @ may stand `pretrained` (timm and torchvision: with the family's own weights), `untrained` (hf: without)
    and a number of pixels (images are resized to it), comma-separated: `timm/resnet18@pretrained,224`.

    Networks are built at the data's size where they can: convolutional networks take images as they come, vision
    transformers are built for `image_size`; pretrained transformers, and networks that fail on such small images, keep
    their own size and have images resized. `model.notes` says which. Mean and std are those of the family's own
    configuration (timm, torchvision: with and without weights; hf: the image processor's), 0.5 for embedded networks
    and hf models without an image processor, none for functions and modules, which get [0, 1] as it is.

    Args:
        spec: which model.
        classes: outputs; None: as many as the model has by itself.
        channels: of the inputs (for vectors, their length); None: as the folder or the module's first convolution
            says, else 3. Networks that cannot be built for them get grey repeated, or RGB as luminance.
        image_size: height and width of the inputs, where they are images; the model is tried on two of them.
        weights: a .safetensors, .pt or .pth file, or a folder of ours, read without running code and loaded into it.
        mean: what the given weights were trained with, instead of the family's, per channel of the network.
        std: the same for the standard deviation.
        trust_code: run the code that a saved folder names.

    Returns:
        The model in training mode, on the CPU (a module that was given: as it was).

    Raises:
        ConnectionError: pretrained weights are not on this machine and cannot be fetched.
        FileNotFoundError: there is no such file or folder.
        ImportError: a library for this kind of model is missing.
        TypeError: `spec` is something else, or the function returns no module.
        ValueError: no such name (the nearest are given), an impossible combination, or outputs that are not `classes`.
    """
    if isinstance(spec, Trusted):
        return load(
            spec.spec, classes=classes, channels=channels, image_size=image_size, weights=weights, mean=mean, std=std,
            trust_code=True,
        )  # fmt: skip
    if isinstance(spec, nn.Module):
        model = _wrapped(spec, classes, channels, image_size)
    elif callable(spec) and not isinstance(spec, (str, Path)):
        model = _called(spec, _function_source(spec), classes, channels, image_size, None)
    elif isinstance(spec, (str, Path)):
        return _named(str(spec), classes, channels, image_size, weights, mean, std, trust_code)
    else:
        raise TypeError(f"a model is named by {FORMS}, or given as a module; given {type(spec).__name__}")
    return _finished(model, weights, mean, std)


def load_teacher(
    spec: Any,
    *,
    classes: int | None = None,
    channels: int | None = None,
    image_size: int | None = None,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust_code: bool = False,
) -> Any:
    """Load a teacher: as `load`, but a function is not called to build one: it is the teacher, `predict(batch)`.

    Args:
        spec: what `load` takes; or a teacher provider (a function, or a module with `takes_batch = True`) or a
            `stillroom.blocks.Frozen`, which come back as they are.
        classes: see `load`, as for all that follow.
        channels: of the inputs.
        image_size: of the inputs.
        weights: a file or folder.
        mean: instead of the family's.
        std: instead of the family's.
        trust_code: run the code that a saved folder names.

    Returns:
        A `Model` in training mode (`stillroom.blocks.Frozen` evaluates it), or what was given.
    """
    provider = callable(spec) and not isinstance(spec, (nn.Module, type))
    if provider or isinstance(spec, Frozen) or getattr(spec, "takes_batch", False):
        return spec
    return load(
        spec,
        classes=classes,
        channels=channels,
        image_size=image_size,
        weights=weights,
        mean=mean,
        std=std,
        trust_code=trust_code,
    )


@dataclass(frozen=True)
class _Name:
    text: str
    size: int | None = None
    pretrained: bool | None = None


def _named(
    spec: str,
    classes: int | None,
    channels: int | None,
    image_size: int | None,
    weights: str | Path | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    trust_code: bool,
) -> Model:
    name = _parsed(spec)
    kind, inner = _kind(name.text)
    if weights is not None and name.pretrained:
        raise ValueError(f"{spec} asks for pretrained weights and weights={str(weights)!r} for others: leave one out")
    if kind in building.PLANS:
        pretrained = weights is None if kind == "hf" and name.pretrained is None else bool(name.pretrained)
        wish = Wish(classes, 3 if channels is None else channels, image_size, name.size, pretrained)
        model = _planned(kind, inner, wish)
        return _finished(model, weights, mean, std)
    if name.pretrained is not None:
        raise ValueError(
            f"@pretrained and @untrained are for timm/, torchvision/ and hf/, given {spec!r}: leave it out"
        )
    if kind == "folder":
        if weights is not None or mean is not None or std is not None:
            raise ValueError(
                f"the folder {inner} has its own weights, mean and std: leave weights=, mean= and std= out"
            )
        return _fitted(load_folder(inner, trust_code=trust_code), classes, channels, image_size, name.size).train()
    function = code.find_function(inner)
    model = _called(function, {"kind": kind, "name": inner}, classes, channels, image_size, name.size)
    return _finished(model, weights, mean, std)


def _parsed(spec: str) -> _Name:
    """Take off what stands after the last @; an @ inside a path is part of it."""
    text, at, tail = spec.rpartition("@")
    words = [word.strip() for word in tail.split(",")]
    sizes = [int(word) for word in words if word.isdecimal()]
    trained = [word == "pretrained" for word in words if word in ("pretrained", "untrained")]
    if not at or "/" in tail or ":" in tail or Path(spec).exists():
        return _Name(spec)
    if len(sizes) + len(trained) < len(words) or len(sizes) > 1 or len(trained) > 1 or 0 in sizes:
        raise ValueError(
            f"after the @ in {spec!r} stands {tail!r}, expected pretrained or untrained, a size in pixels, or one of "
            "each, separated by a comma"
        )
    return _Name(text, sizes[0] if sizes else None, trained[0] if trained else None)


def _kind(text: str) -> tuple[str, str]:
    for family in ("timm", "torchvision", "hf"):
        if text.startswith(f"{family}/"):
            return family, text.removeprefix(f"{family}/")
    path = Path(text).expanduser()
    if is_folder(path):
        return "folder", str(path)
    if path.is_dir() and "/" in text:  # a folder may by chance be called as one of our networks
        raise ValueError(
            f"the folder {text} was not written by stillroom.hub.save: a transformers folder is written as hf/{text}"
        )
    if ":" in text:
        return ("file" if text.rpartition(":")[0].endswith(".py") else "function"), text
    if text.endswith(".py"):
        raise ValueError(f"{text} is a file, expected file.py:function: name the function that builds the network")
    if path.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx"):
        raise ValueError(f"{text} is a file of weights, expected a network: name the network and pass weights={text!r}")
    if "/" in text:
        raise FileNotFoundError(f"there is no folder {text}: a model is {FORMS}")
    return "embedded", text


def _planned(kind: str, name: str, wish: Wish) -> Model:
    """Build a family's network by the first of its plans that works on images of that size."""
    refused: ValueError | None = None
    for plan in building.PLANS[kind](name, wish):
        try:
            model = _built(plan, wish)
            model.probe()
        except ValueError as error:
            refused = refused or error
        else:
            return model
    raise refused or ValueError(f"there is no way to build {kind}/{name}")


def _built(plan: Plan, wish: Wish) -> Model:
    net, new_head = building.build(plan.kind, plan.name, plan.options, pretrained=wish.pretrained)
    state = ("pretrained, new head" if new_head else "pretrained") if wish.pretrained else "untrained"
    named = Path(plan.name).name if plan.kind == "hf" and Path(plan.name).is_dir() else plan.name  # no paths in cards
    source = {"kind": plan.kind, "name": named, "options": plan.options, "weights": state}
    model = wrapper_of(net)(
        net,
        channels=wish.channels,
        net_channels=plan.net_channels,
        size=plan.size,
        mean=plan.mean,
        std=plan.std,
        classes=wish.classes,
        image_size=wish.image_size,
        source=source,
        notes=[plan.note] if plan.note else [],
    )
    if new_head:
        model.notes.append(f"{name_of(model)} was trained on other classes: its last layer is new and untrained")
    model.note_channels()
    return model


def _called(
    function: Callable[..., Any],
    source: dict[str, Any],
    classes: int | None,
    channels: int | None,
    image_size: int | None,
    size: int | None,
) -> Model:
    """Build a network with a user's function."""
    name = source["name"]
    offered = 3 if channels is None else channels
    options = code.accepted(function, name, classes=classes, channels=offered, image_size=size or image_size)
    net = code.call_builder(function, name, options)
    if isinstance(net, Model):
        return _fitted(net, classes, channels, image_size, size)
    channels = offered if any(parameter in options for parameter in code.NAMES["channels"]) else channels
    return _wrapped(net, classes, channels, image_size, size, {**source, "options": options, "weights": "own"})


def _wrapped(
    net: nn.Module,
    classes: int | None,
    channels: int | None,
    image_size: int | None,
    size: int | None = None,
    source: dict[str, Any] | None = None,
) -> Model:
    """Wrap a user's network, which gets [0, 1] as it is, in the channels that its first convolution takes."""
    if isinstance(net, Model):
        return _fitted(net, classes, channels, image_size, size)
    taken = _first_channels(net)
    channels = (3 if taken is None else taken) if channels is None else channels
    adapted = taken if taken is not None and (channels, taken) in ((1, 3), (3, 1)) else channels
    model = wrapper_of(net)(
        net, channels=channels, net_channels=adapted, size=size, classes=classes, image_size=image_size, source=source
    )
    model.training = net.training
    model.probe()
    model.note_channels()
    return model


def _fitted(model: Model, classes: int | None, channels: int | None, image_size: int | None, size: int | None) -> Model:
    """Bring a model that carries its own settings to the data at hand, in a new wrapper; refuse other classes."""
    if classes is not None and model.classes not in (None, classes):
        raise ValueError(
            f"{name_of(model)} has {model.classes} classes, expected {classes} as the data has: take another model"
        )
    given = {"classes": classes, "channels": channels, "image_size": image_size, "size": size}
    changed = {name: value for name, value in given.items() if value is not None and value != getattr(model, name)}
    if changed:
        training = model.training
        model = Model.from_config(model.net, {**model.config, **changed}, model.notes)
        model.training = training
        model.note_channels()
    model.probe()
    return model


def _finished(
    model: Model, weights: str | Path | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Model:
    """Put weights and statistics into a model where the caller has them."""
    if mean is not None or std is not None:
        model = Model.from_config(model.net, {**model.config, "mean": mean, "std": std}, model.notes)
    if weights is not None:
        load_weights(model, weights)
        model.source["weights"] = "file"
    return model


def _first_channels(net: nn.Module) -> int | None:
    return next((module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d)), None)


def _function_source(function: Callable[..., Any]) -> dict[str, Any]:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None) or "__main__"
    if "<" in name or module == "__main__" or not hasattr(function, "__qualname__"):
        return {"kind": "module", "name": f"{module}.{name}"}
    return {"kind": "function", "name": f"{module}:{name}"}
