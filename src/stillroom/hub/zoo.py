"""Networks of timm, of torchvision and our own small ones, for any number of classes and channels."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stillroom.blocks.enlarge import is_enlarger
from stillroom.hub import detectors, language
from stillroom.hub.fetch import from_address, from_hugging_face, quiet
from stillroom.hub.plan import HALF, Plan, Wish, nearest, per_channel, size_note

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TIMM_OPTIONS = ("num_classes", "in_chans", "img_size")
TORCHVISION_OPTIONS = ("num_classes", "channels", "image_size", "frozen_norms")
EMBEDDED_OPTIONS = ("classes", "in_channels", "image_size")


def timm_plans(name: str, wish: Wish) -> list[Plan]:
    """Ways to build a timm network, the best first.

    Networks with a fixed input size (most transformers) are built for the size wanted; with pretrained weights they
    stay at the size they were trained at, unless another is asked for. The others take images as they come. Mean and
    std are those of the network's pretrained configuration, with and without its weights.

    Raises:
        ValueError: timm has no such network, tag, or pretrained weights.
    """
    config = _timm_config(name)
    if wish.pretrained and not config.has_weights:
        raise ValueError(f"timm has no pretrained weights for {name!r}: write timm/{name} for an untrained one")
    options: dict[str, Any] = {"in_chans": wish.channels}
    if wish.classes is not None:
        options["num_classes"] = wish.classes
    mean, std = per_channel(config.mean, wish.channels), per_channel(config.std, wish.channels)
    plan = Plan("timm", name, options, wish.channels, mean=mean, std=std)
    return _sized(plan, wish, int(config.input_size[-1]), built_by="img_size" if config.fixed_input_size else "")


def _sized(plan: Plan, wish: Wish, own: int, *, built_by: str) -> list[Plan]:
    """Plans that differ in the size the network works at, the best first.

    Args:
        plan: without a size.
        wish: what the caller has.
        own: the size the network was made for.
        built_by: the option that builds the network for another size; empty where it takes any.
    """
    whose = f"{plan.kind}/{plan.name}"
    at_own = replace(plan, size=own, note=size_note(whose, wish.image_size, own, own))
    if not built_by:
        first = replace(plan, size=wish.size, note=size_note(whose, wish.image_size, wish.size, own))
    else:
        size = wish.size or (own if wish.pretrained else wish.image_size or own)
        if size == own:
            return [at_own]
        note = size_note(whose, wish.image_size, size, own, rebuilt=True)
        first = replace(plan, options={**plan.options, built_by: size}, size=size, note=note)
    return [first] if wish.size else [first, at_own]


def build_timm(name: str, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, bool]:
    """Build a timm network; returns it and whether its head is new beside pretrained layers."""
    config = _timm_config(name)
    import timm

    if not pretrained:
        with quiet():
            return timm.create_model(name, pretrained=False, **options), False
    what = f"timm/{name} with pretrained weights"
    with from_hugging_face(what) if config.hf_hub_id else from_address(what, config.url), quiet():
        net = timm.create_model(name, pretrained=True, **options)
    return net, options.get("num_classes", config.num_classes) != config.num_classes


def _timm_config(name: str) -> Any:
    with quiet():
        import timm

    if not timm.is_model(name):
        raise ValueError(
            f"timm has no network {name!r}: the nearest are {nearest(name, timm.list_models())}; "
            "timm.list_models() lists all"
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = nearest(name, timm.list_pretrained(f"{name.split('.')[0]}.*"))
        raise ValueError(f"timm has no pretrained weights {name!r}: the nearest are {tags}") from error
    return config or timm.models.PretrainedCfg(mean=(HALF,) * 3, std=(HALF,) * 3)


def torchvision_plans(name: str, wish: Wish) -> list[Plan]:
    """Ways to build a torchvision network (`NAME` or `segmentation/NAME`), the best first.

    Classifiers take images as they come, or at the size they were made for where they cannot; segmentation networks
    always as they come. Vision transformers are built for the size wanted, or stay at their own with pretrained
    weights. Mean and std are ImageNet's, with and without weights.

    Raises:
        ValueError: torchvision has no such classifier or segmentation network, or one that cannot work at that size.
    """
    weights = _torchvision_weights(name).DEFAULT
    if name in detectors.torchvision_names():
        return detectors.torchvision_plans(name, wish)
    transforms = weights.transforms()
    options: dict[str, Any] = {
        "num_classes": wish.classes or len(weights.meta["categories"]),
        "channels": wish.channels,
    }
    mean, std = per_channel(transforms.mean, wish.channels), per_channel(transforms.std, wish.channels)
    plan = Plan("torchvision", name, options, wish.channels, size=wish.size, mean=mean, std=std)
    if name.startswith("segmentation/"):
        return [plan]
    own, transformer = int(transforms.crop_size[0]), name.startswith("vit_")
    if transformer and wish.pretrained and wish.size not in (None, own):
        raise ValueError(
            f"the pretrained weights of torchvision/{name} have positions for {own} pixels, given @{wish.size}: leave "
            f"the size out (inputs are resized to {own}), or take timm's vision transformers, which adapt"
        )
    return _sized(plan, wish, own, built_by="image_size" if transformer else "")


def build_torchvision(name: str, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, bool]:
    """Build a torchvision network; returns it and whether its head is new beside pretrained layers."""
    if name in detectors.torchvision_names():
        return detectors.build_torchvision(name, options, pretrained)
    weights = _torchvision_weights(name).DEFAULT
    from torchvision import models

    builder = models.get_model_builder(name.rsplit("/", 1)[-1])
    classes, trained_classes = options["num_classes"], len(weights.meta["categories"])
    given = {"image_size": options["image_size"]} if "image_size" in options else {}
    if name in ("googlenet", "inception_v3"):
        given["aux_logits"] = False
    if pretrained:
        with from_address(f"torchvision/{name} with pretrained weights", weights.url), quiet():
            net = builder(weights=weights, **given)
        if getattr(net, "aux_classifier", None) is not None:
            net.aux_classifier = None  # its output is not used, and an untrained network has none either
        if classes != trained_classes:
            _replace_heads(net, trained_classes, classes)
    else:
        if name.startswith("segmentation/"):
            given["weights_backbone"] = None
        with quiet():
            net = builder(weights=None, num_classes=classes, **given)
    if options["channels"] != 3:
        _replace_first_convolution(net, options["channels"])
    return net, pretrained and classes != trained_classes


def _torchvision_weights(name: str) -> Any:
    with quiet():
        from torchvision import models
    known = models.list_models(module=models)
    known += [f"segmentation/{dense}" for dense in models.list_models(module=models.segmentation)]
    known += detectors.torchvision_names()
    if name not in known:
        raise ValueError(
            f"torchvision has no classifier or segmentation network {name!r}: the nearest are {nearest(name, known)}"
        )
    return models.get_model_weights(name.rsplit("/", 1)[-1])


def _replace_heads(net: nn.Module, trained_classes: int, classes: int) -> None:
    """Exchange the layers that give class scores (one in most networks, two in LRASPP) for new ones."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.out_features == trained_classes:
                setattr(parent, name, nn.Linear(child.in_features, classes, bias=child.bias is not None))
            elif isinstance(child, nn.Conv2d) and child.out_channels == trained_classes:
                new = nn.Conv2d(child.in_channels, classes, child.kernel_size, bias=child.bias is not None)  # type: ignore[arg-type]
                setattr(parent, name, new)


def _replace_first_convolution(net: nn.Module, channels: int) -> None:
    """Exchange the first convolution, over RGB, for one over other channels.

    Grey sums the RGB weights, so that it answers as it would to the grey image in three channels; more channels repeat
    them in turn, scaled by 3 / channels, so that the sum keeps its size.
    """
    name, old = next(
        (name, module)
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3
    )
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    with torch.no_grad():
        if channels == 1:
            new.weight.copy_(old.weight.sum(1, keepdim=True))
        else:
            new.weight.copy_(old.weight[:, torch.arange(channels) % 3] * (3 / channels))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, new)


def embedded_plans(name: str, wish: Wish) -> list[Plan]:
    """How to build one of our small networks; images are normalised with mean and std 0.5, to [-1, 1].

    A perceptron without an image size takes rows of `channels` numbers, as they are; networks that enlarge images take
    images as they are.

    Raises:
        ValueError: pretrained weights are wanted, or the number of classes is not given.
    """
    if name.startswith("detector-"):
        return detectors.embedded_plans(name, wish)
    if re.fullmatch(language.EMBEDDED, name):
        return language.embedded_plans(name, wish)
    if is_enlarger(name) and not wish.pretrained:
        options = {"classes": wish.classes or wish.channels, "in_channels": wish.channels, "image_size": 1}
        return [Plan("embedded", name, options, wish.channels)]
    if wish.pretrained:
        raise ValueError(f"{name!r} has no pretrained weights: leave @pretrained out, or give weights=")
    if wish.classes is None:
        raise ValueError(f"{name!r} is built for the number of classes, given none: pass classes=")
    side = wish.size or wish.image_size
    options = {"classes": wish.classes, "in_channels": wish.channels, "image_size": side or 1}
    rows = side is None and name.startswith("mlp")
    statistics = None if rows else (HALF,) * wish.channels
    note = size_note(name, wish.image_size, wish.size, side) if side else ""
    return [Plan("embedded", name, options, wish.channels, size=wish.size, mean=statistics, std=statistics, note=note)]


def build_embedded(name: str, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, bool]:
    """Build one of our small networks."""
    from stillroom.blocks import models

    build = detectors.build_embedded if name.startswith("detector-") else models.build
    return build(name, **options), False
