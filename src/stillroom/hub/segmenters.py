"""Torchvision's segmenters with their auxiliary heads, as functions for `module:function` names."""

from __future__ import annotations

from torch import nn

from stillroom.hub.fetch import quiet


def deeplabv3_resnet101(num_classes: int) -> nn.Module:
    """DeepLabV3 with a ResNet-101 and an auxiliary head, untrained."""
    from torchvision.models import segmentation

    with quiet():
        return segmentation.deeplabv3_resnet101(
            weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True
        )


def deeplabv3_resnet50(num_classes: int) -> nn.Module:
    """DeepLabV3 with a ResNet-50 and an auxiliary head, untrained."""
    from torchvision.models import segmentation

    with quiet():
        return segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True
        )
