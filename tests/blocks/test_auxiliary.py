"""Auxiliary heads behind the stages of our own and other people's networks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import (
    AuxiliaryHeads,
    Frozen,
    LightHead,
    WithHeads,
    build,
    light_heads,
    stage_copy_heads,
)
from stillroom.blocks.stages import chained_after, repeated_stage


def network(name="conv-4-8-12", classes=3, side=8):
    return build(name, classes=classes, in_channels=3, image_size=side), torch.rand(4, 3, side, side)


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_copied_stages_are_those_that_follow():
    net, images = network()
    before = copy.deepcopy(net.state_dict())
    heads = stage_copy_heads(net, images, outputs=12)
    assert heads.stages == ("stages.0", "stages.1", "stages.2")
    assert [len(head.layers) for head in heads.heads] == [2, 1, 3]
    assert size(heads.heads[0].layers) == size(net.stages[1]) + size(net.stages[2])
    assert size(heads.heads[2].layers) == 12 * 12 * 9 + 24  # a stage with stride 1
    observed = heads.observe(net, images)
    assert [tuple(one.shape) for one in observed.head_logits] == [(4, 12)] * 3
    assert [tuple(one.shape) for one in observed.embeddings] == [(4, 12)] * 3
    assert net.training
    assert heads.training
    parts = dict(net.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in parts.items())
    memory = {parameter.data_ptr() for parameter in net.parameters()}
    assert not memory & {parameter.data_ptr() for parameter in heads.parameters()}
    assert not torch.equal(heads.heads[0].layers[0][0].weight, net.stages[1][0].weight)  # drawn anew


def test_the_embedding_of_a_copied_head_is_by_hand():
    net, images = network()
    heads = stage_copy_heads(net, images, outputs=12).eval()
    observed = heads.observe(net.eval(), images)
    head, feature = heads.heads[1], net.stages[1](net.stages[0](net.stem(images)))
    expected = F.relu(head.finish[0](head.layers(feature))).mean((2, 3))
    torch.testing.assert_close(observed.embeddings[1], expected)
    torch.testing.assert_close(observed.head_logits[1], head.classify(expected))
    torch.testing.assert_close(observed.logits, net(images))


def test_the_embedding_of_a_light_head_is_by_hand():
    net, images = network()
    heads = light_heads(net, images, outputs=5)
    observed = heads.observe(net.eval(), images)
    head, feature = heads.heads[0], net.stages[0](net.stem(images))
    expected = F.relu(F.linear(feature.mean((2, 3)), head.embed[0].weight, head.embed[0].bias))
    torch.testing.assert_close(observed.embeddings[0], expected)
    torch.testing.assert_close(observed.head_logits[0], F.linear(expected, head.classify.weight, head.classify.bias))
    assert {embedding.shape[1] for embedding in observed.embeddings} == {12}


@pytest.mark.parametrize(("name", "layers"), [("resnet14", [2, 1, 2]), ("wrn-16-1", [2, 1, 2]), ("resnet8", [2, 1, 6])])
def test_residual_networks_repeat_the_blocks_that_keep_the_shape(name, layers):
    net, images = network(name, side=16)
    heads = stage_copy_heads(net, images, outputs=12)
    assert [len(head.layers) for head in heads.heads] == layers
    kinds = {type(module) for module in heads.heads[2].layers}
    assert kinds == ({nn.Conv2d, nn.BatchNorm2d, nn.ReLU} if name == "resnet8" else {type(net.stages[2][1])})
    assert {tuple(one.shape) for one in heads.observe(net, images).embeddings} == {(4, 64)}


@pytest.mark.parametrize(
    ("name", "first"),
    [("mobilenet_v2", "features.1"), ("shufflenet_v2_x0_5", "stage2"), ("resnet18", "layer1"), ("vgg11", "features.1")],
)
def test_other_peoples_networks(name, first):
    models = pytest.importorskip("torchvision.models")
    net, images = models.get_model(name, weights=None, num_classes=3), torch.rand(2, 3, 64, 64)
    if name == "vgg11":
        net.classifier, net.avgpool = nn.Linear(512, 3), nn.AdaptiveAvgPool2d(1)
    heads = stage_copy_heads(net, images, outputs=12)
    assert heads.stages[0] == first
    observed = heads.observe(net, images)
    assert len({embedding.shape[1] for embedding in observed.embeddings}) == 1
    torch.stack([logits.square().sum() for logits in observed.head_logits]).sum().backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


@pytest.mark.parametrize("name", ["mlp-16-12", "vit-16-2"])
def test_light_heads_go_on_any_network(name):
    net, images = network(name)
    observed = light_heads(net, images, outputs=6).observe(net, images)
    assert [tuple(one.shape) for one in observed.head_logits] == [(4, 6)] * 2
    with pytest.raises(ValueError, match=r"'stages.0' gives features of shape \(4, .*light heads"):
        stage_copy_heads(net, images, outputs=6)


class Skipping(nn.Module):
    """The second stage sees the image too, so that it cannot be copied by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, 2, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.second(self.first(images) + images.mean(1, keepdim=True)).mean((2, 3)))


def test_stages_that_do_not_follow_each_other_are_refused():
    with pytest.raises(ValueError, match="of Skipping between 'first' and 'second' do not simply follow"):
        stage_copy_heads(Skipping(), torch.rand(2, 3, 8, 8), outputs=6, stages=["first", "second"])
    net, images = network()
    with pytest.raises(ValueError, match=r"no module of Staged is called 'stages.7'.*'stages.0'"):
        stage_copy_heads(net, images, outputs=6, stages=["stages.0", "stages.7"])
    assert len(chained_after(net, images, ["stages.0", "stages.2"])[0]) == 2
    assert len(repeated_stage(net, images, "stages.0")) == 3


def test_no_gradient_reaches_a_detached_network():
    net, images = network()
    heads = light_heads(net, images, outputs=6)
    for detached in (True, False):
        observed = heads.observe(net, images, detach_backbone=detached)
        torch.stack([logits.sum() for logits in observed.head_logits]).sum().backward()
        reached = [parameter.grad is not None for parameter in net.stages.parameters()]
        assert all(reached) if not detached else not any(reached)
        assert all(parameter.grad is not None for parameter in heads.parameters())


def test_numbers_of_heads_and_stages_must_agree():
    with pytest.raises(ValueError, match="2 stages and 1 heads"):
        AuxiliaryHeads(["a", "b"], [LightHead(2, 2, outputs=2)])


def test_a_network_with_heads_is_the_network_and_can_be_frozen():
    net, images = network()
    both = WithHeads(net.eval(), light_heads(net, images, outputs=6))
    assert torch.equal(both(images), net(images))
    frozen = Frozen(both)
    assert torch.equal(frozen(images), net(images))
    probed = both.heads.probe(net.train(), images)
    torch.testing.assert_close(probed.logits, net.eval()(images))
    assert not probed.head_logits[0].requires_grad
