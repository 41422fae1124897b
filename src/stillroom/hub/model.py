"""A network that takes inputs in [0, 1] and carries its own size, mean and standard deviation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.hub.fetch import first_line, quiet

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""

_INPUTS = ("channels", "net_channels", "size", "mean", "std", "classes", "image_size")
"""What a configuration says about inputs and outputs; the rest of it says where the network comes from."""


class Model(nn.Module):
    """Wraps a network so that it can be asked about the images that everybody else is asked about.

    Images `(N, channels, H, W)` in [0, 1] are, in this order, brought from grey to RGB (repeated) or from RGB to grey
    (0.299 R + 0.587 G + 0.114 B) where the network's channels are others, resized to `size` (bilinear, antialiased)
    where they have another height or width, and normalised, (x - mean) / std per channel. Teacher and student with
    different sizes and statistics therefore answer the same batch. Inputs that are not `(N, C, H, W)` tensors (vectors,
    sequences, dicts) go to the network as they are; a dict by name where the network's `forward` has all its keys as
    arguments, as those of transformers have (`input_ids`, `attention_mask`).

    What the network returns is reduced to its logits: `.logits` of a Hugging Face output, "logits" or "out" of a dict
    (torchvision segmentation), the first of a tuple or list. Maps `(N, C, h, w)` of a network that saw resized images
    are resized back to the height and width that were given.

    Args:
        net: the network; its layer names are the ones users see (`tap_root`).
        channels: what callers give; None: not checked.
        net_channels: what the network takes; None: the same.
        size: height and width that images are resized to; None: taken as they come.
        mean: per channel of the network, in [0, 1] units; None (with `std`): no normalisation.
        std: per channel of the network, above 0.
        classes: how many outputs there must be; None: not checked.
        image_size: height and width that callers give; only described, exported and written down.
        source: where the network came from and how to build it again (`kind`, `name`, `options`, `weights`), JSON-able.
        notes: sentences for the user.

    Attributes:
        config: everything above except `net` and `notes`, JSON-able.

    Raises:
        TypeError: `net` is not a module.
        ValueError: channels that cannot be adapted, only one of mean and std, a wrong number of them, or a std that is
            not above 0.
    """

    takes: ClassVar[str] = ""
    """What the network takes, where it is no images."""

    beside_the_answers: ClassVar[tuple[str, ...]] = ("source", "notes", "image_size")
    """Attributes that no answer depends on: a teacher cache does not look at them."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        channels: int | None = 3,
        net_channels: int | None = None,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: int | None = None,
        image_size: int | None = None,
        source: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"a model wraps a torch.nn.Module, given {type(net).__name__}")
        net_channels = channels if net_channels is None else net_channels
        if channels != net_channels and (channels, net_channels) not in ((1, 3), (3, 1)):
            raise ValueError(
                f"inputs with {channels} channels cannot be given to a network that takes {net_channels}: only grey "
                "(1) and RGB (3) are brought into each other; build the network for your channels"
            )
        if (mean is None) != (std is None):
            raise ValueError("mean and std go together, given only one of them: pass both or none")
        self.net = net
        self.channels = channels
        self.net_channels = net_channels
        self.size = size
        self.classes = classes
        self.image_size = image_size
        self.source = dict(source) if source is not None else {"kind": "module", "name": class_path(net)}
        self.notes = list(notes)
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("std", None, persistent=False)
        self._statistics: dict[str, list[float] | None] = {"mean": None, "std": None}
        if mean is not None and std is not None:
            for name, values in (("mean", mean), ("std", std)):
                if net_channels is None or len(values) != net_channels:
                    raise ValueError(
                        f"{name} has {len(values)} values, expected one for each of the {net_channels} channels"
                    )
                self._statistics[name] = [float(value) for value in values]
                self.register_buffer(name, torch.tensor(values).float().view(1, -1, 1, 1), persistent=False)
            if not all(value > 0 for value in std):
                raise ValueError(f"std must be above 0 in every channel, given {tuple(std)}")

    @property
    def tap_root(self) -> nn.Module:
        """The network inside, so that the layer names to tap are the network's own."""
        return self.net

    @property
    def config(self) -> dict[str, Any]:
        """How to build this model again, as data for JSON."""
        inputs = {
            "channels": self.channels,
            "net_channels": self.net_channels,
            "image_size": self.image_size,
            "size": self.size,
            **self._statistics,
        }
        return {**self.source, "classes": self.classes, **inputs}

    @classmethod
    def from_config(cls, net: nn.Module, config: Mapping[str, Any], notes: Sequence[str] = ()) -> Model:
        """Wrap a network as a `config` says."""
        from stillroom.hub.wrappers import wrapper_of

        rest = {name: value for name, value in config.items() if name not in _INPUTS}
        return wrapper_of(net)(net, **{name: config.get(name) for name in _INPUTS}, source=rest, notes=notes)

    def note_channels(self) -> None:
        """Keep a note of it where inputs are brought to other channels."""
        if self.channels != self.net_channels:
            how = "repeated to RGB" if self.channels == 1 else "turned into luminance"
            note = f"{name_of(self)} takes {self.net_channels} channels: inputs of {self.channels} are {how}"
            self.notes = [*(other for other in self.notes if other != note), note]

    def probe(self) -> None:
        """Ask the network about two grey images of the size that callers give, where it is known; nothing is changed.

        Raises:
            ValueError: it cannot take them, or gives another number of outputs than `classes`.
        """
        side = self.image_size or self.size
        if side is None or self.channels is None:
            return
        training = [(module, module.training) for module in self.modules()]
        parameter = next(self.parameters(), torch.empty(0))
        shape = (2, self.channels, side, side)
        images = torch.full(shape, 0.5, dtype=parameter.dtype, device=parameter.device)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), quiet():
                logits = logits_of(self.eval().net(self.prepare(images)))
        except Exception as error:  # whatever a network of anybody's raises
            raise ValueError(f"{name_of(self)} cannot take inputs of shape {shape}: {first_line(error)}") from error
        finally:
            for module, mode in training:
                module.training = mode
        self.check_classes(logits)

    def check_classes(self, logits: Tensor) -> None:
        """Refuse outputs that have not as many classes as this model must have."""
        if self.classes is None or logits.shape[1:2] == (self.classes,):
            return
        if (logits.ndim == 1 and self.classes == 1) or (logits.ndim == 3 and logits.shape[-1] == self.classes):
            return
        raise ValueError(
            f"{name_of(self)} gives outputs of shape {tuple(logits.shape)}, expected {self.classes} classes: build it "
            "with as many outputs as the data has classes"
        )

    def forward(self, inputs: Any) -> Tensor:
        """Compute logits.

        Args:
            inputs: images `(N, channels, H, W)`, floats in [0, 1] (the task checks the range); or what else the network
                takes.

        Returns:
            `(N, classes)`, or `(N, classes, H, W)` of a dense prediction.

        Raises:
            TypeError: images of whole numbers, or an output without logits.
            ValueError: another number of channels than `channels`, or of outputs than `classes`.
        """
        image = isinstance(inputs, Tensor) and inputs.ndim == 4
        if isinstance(inputs, Mapping) and _takes_by_name(self.net, inputs):
            logits = logits_of(self.net(**inputs))
        else:
            logits = logits_of(self.net(self.prepare(inputs) if image else inputs))
        if image and self.size is not None and logits.ndim == 4 and logits.shape[-2:] != inputs.shape[-2:]:
            logits = F.interpolate(logits, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        self.check_classes(logits)
        return logits

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images in [0, 1] into what the network takes: its channels, its size, its statistics."""
        if not images.is_floating_point():
            raise TypeError(f"images must be floats in [0, 1], given {images.dtype}: divide bytes by 255")
        if self.channels is not None and images.shape[1] != self.channels:
            given = images.shape[1]
            remedy = f"load it with channels={given}" if {given, self.net_channels} <= {1, 3} else "give it such inputs"
            raise ValueError(
                f"inputs have shape {tuple(images.shape)}, expected (N, {self.channels}, H, W) by {name_of(self)}: "
                f"{remedy}"
            )
        if self.channels == 1 and self.net_channels == 3:
            images = images.expand(-1, 3, -1, -1)
        elif self.channels == 3 and self.net_channels == 1:
            images = (images * images.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
        if self.size is not None and tuple(images.shape[-2:]) != (self.size, self.size):
            images = F.interpolate(
                images, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        return images if self.mean is None or self.std is None else (images - self.mean) / self.std


def describe(model: nn.Module) -> str:
    """Say in one line what a model is: "timm/resnet18, 11.2 M parameters, takes 3x32x32 in [0, 1]".

    Args:
        model: a `Model`, or any module (which is named by its class).
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    parts = [name_of(model), f"{_short(count)} parameters"]
    if isinstance(model, Model) and model.takes:
        parts.append(f"takes {model.takes}")
    elif isinstance(model, Model):
        side = model.image_size or model.size
        if side is not None:
            resized = f", resized to {model.size}x{model.size}" if model.size not in (None, side) else ""
            parts.append(f"takes {model.channels}x{side}x{side} in [0, 1]{resized}")
        elif model.mean is not None:
            parts.append(f"takes images of {model.channels} channel{'s' * (model.channels != 1)} in [0, 1]")
    return ", ".join(parts)


def name_of(model: nn.Module) -> str:
    """What a model is called in messages: the name it was loaded by, else its class."""
    if not isinstance(model, Model):
        return type(model).__name__
    kind, name = model.source.get("kind"), str(model.source.get("name"))
    if kind in ("timm", "torchvision", "hf"):
        return f"{kind}/{name}"
    return name.rsplit(".", 1)[-1] if kind == "module" else name


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a network returned.

    Args:
        output: a tensor; an output object with `.logits`; a dict with "logits" or "out"; or a tuple or list, of which
            the first entry is searched.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, Mapping):
        for key in ("logits", "out"):
            if isinstance(output.get(key), Tensor):
                return output[key]
        keys = ", ".join(repr(key) for key in list(output)[:5])
        raise TypeError(f'a network returned a dict of {keys}, expected a tensor under "logits" or "out"')
    if isinstance(output, (tuple, list)) and output:
        return logits_of(output[0])
    raise TypeError(f"a network returned {type(output).__name__}, expected its logits as a tensor: wrap it in a module")


def _takes_by_name(net: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a network's `forward` has the keys of a dict as arguments."""
    parameters = inspect.signature(net.forward).parameters.values()
    whole = any(one.kind is one.POSITIONAL_ONLY or one.kind is one.VAR_POSITIONAL for one in parameters)
    named = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    return set(inputs) <= named or (not named and not whole and any(one.kind is one.VAR_KEYWORD for one in parameters))


def class_path(net: nn.Module) -> str:
    """The import path of a network's class."""
    return f"{type(net).__module__}.{type(net).__qualname__}"


def _short(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
