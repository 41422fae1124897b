"""A query per label: the decoder layer, its place behind a backbone, and how it is found."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import (
    Frozen,
    LabelQueries,
    LabelQueryNetwork,
    Taps,
    build,
    label_queries_in,
    with_label_queries,
)


def queries(**options):
    return LabelQueries(6, **{"classes": 4, "width": 8, "heads": 2, "hidden": 12} | options)


def test_it_is_the_decoder_layer_written_out():
    layer = queries(dropout=0.0).double()
    maps = torch.randn(3, 6, 2, 5, dtype=torch.float64)
    tokens = F.relu(maps.flatten(2).transpose(1, 2) @ layer.embed[0].weight.T + layer.embed[0].bias)
    asked = layer.norms[0](2 * layer.queries).expand(3, 4, 8)
    projected = [
        side @ weight.T + bias
        for side, weight, bias in zip(
            (asked, tokens, tokens),
            layer.attention.in_proj_weight.chunk(3),
            layer.attention.in_proj_bias.chunk(3),
            strict=True,
        )
    ]
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        query, key, value = (side[..., part] for side in projected)
        heads.append((query @ key.mT / 4**0.5).softmax(-1) @ value)
    asked = layer.norms[1](asked + layer.attention.out_proj(torch.cat(heads, -1)))
    expected = layer.norms[2](asked + layer.perceptron(asked))
    torch.testing.assert_close(layer(maps), expected)
    torch.testing.assert_close(layer(maps.flatten(2).transpose(1, 2)), expected)  # tokens


def test_queries_stand_still_and_do_not_see_each_other():
    layer = queries().eval()
    assert "queries" in layer.state_dict()
    assert "queries" not in dict(layer.named_parameters())
    maps = torch.randn(2, 6, 3, 3)
    before = layer(maps)
    layer.queries[1] += 1
    after = layer(maps)
    assert not torch.equal(before[:, 1], after[:, 1])
    torch.testing.assert_close(before[:, [0, 2, 3]], after[:, [0, 2, 3]])


def test_every_label_has_a_read_out_of_its_own():
    network = LabelQueryNetwork(nn.Identity(), 6, classes=4, width=8, heads=2, hidden=12).eval()
    maps = torch.randn(5, 6, 2, 2)
    with Taps(network, "queries") as taps:
        logits = network(maps)
        embeddings = taps.features["queries"]
    expected = torch.stack(
        [embeddings[:, label] @ network.head.weight[label] + network.head.bias[label] for label in range(4)], dim=1
    )
    torch.testing.assert_close(logits, expected)


def test_dropout_is_for_training_only():
    network = LabelQueryNetwork(nn.Identity(), 6, classes=4, width=8, heads=2, hidden=12)
    maps = torch.randn(2, 6, 2, 2)
    assert not torch.equal(network(maps), network(maps))
    network.eval()
    assert torch.equal(network(maps), network(maps))


def test_it_stands_behind_anybodys_backbone():
    classifier = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 9)
    )
    before = copy.deepcopy(classifier.state_dict())
    tagger = with_label_queries(classifier, torch.randn(2, 3, 8, 8), at="2", classes=5, width=8, heads=2, hidden=12)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    images = torch.randn(4, 3, 8, 8)
    assert tagger.training
    torch.testing.assert_close(tagger.eval()(images), tagger.head(tagger.queries(classifier[:3].eval()(images))))
    tagger.train()(images).sum().backward()
    trained = {name for name, parameter in tagger.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in tagger.named_parameters() if parameter.requires_grad}
    assert {"backbone.network.5.weight", "backbone.network.5.bias"}.isdisjoint(trained)
    assert copy.deepcopy(tagger).eval()(images).equal(tagger.eval()(images))
    with pytest.raises(ValueError, match=r"module '4' returns shape \(2, 6\).*before the mean"):
        with_label_queries(classifier, torch.randn(2, 3, 8, 8), at="4", classes=5)
    with pytest.raises(ValueError, match="no module of Sequential is called 'layer4'"):
        with_label_queries(classifier, torch.randn(2, 3, 8, 8), at="layer4", classes=5)


def test_it_is_found_inside_what_surrounds_it():
    network = build("conv-4-6+labels-8", classes=3, in_channels=1, image_size=8)
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert label_queries_in(network) == label_queries_in(Frozen(copy.deepcopy(network))) == ["queries"]
    assert label_queries_in(nn.Sequential(network, nn.Identity())) == ["0.queries"]
    assert label_queries_in(nn.Linear(2, 2)) == []
    with pytest.raises(ValueError, match=r"multiple of 8.*given 12"):
        build("conv-4-6+labels-12", classes=3, in_channels=1, image_size=8)


def test_numbers_out_of_range_are_refused():
    for options, words in (
        ({"width": 9}, "width must be a multiple of the 2 heads, given 9"),
        ({"classes": 0}, "classes must be 1 or more, given 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), given 1\.0"),
    ):
        with pytest.raises(ValueError, match=words):
            queries(**options)
