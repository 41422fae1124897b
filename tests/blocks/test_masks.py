"""Mask networks, routers and networks that see one modality."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.blocks import (
    ChannelMask,
    MapMask,
    Masked,
    Router,
    Sees,
    check_paired,
    mask_width,
    pick_modality,
    random_picks,
    routing_shares,
    top_picks,
)
from stillroom.blocks.masks import mask_parameters


def naive_gates(mask, feature):
    """Attention among the features, head by head, in loops."""
    heads, width, channels = mask.attention.num_heads, mask.width, mask.channels
    size = width // heads
    weight, bias = mask.attention.in_proj_weight, mask.attention.in_proj_bias
    found = []
    for row in feature:
        tokens = (mask.embed.weight @ row + mask.embed.bias).reshape(channels, width)
        query, key, value = (
            tokens @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width] for i in range(3)
        )
        parts = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            attention = ((query[:, part] @ key[:, part].T) / size**0.5).softmax(dim=1)
            parts.append(attention @ value[:, part])
        joined = torch.cat(parts, dim=1) @ mask.attention.out_proj.weight.T + mask.attention.out_proj.bias
        found.append((joined @ mask.score.weight[0] + mask.score.bias).sigmoid())
    return torch.stack(found)


@pytest.mark.parametrize(("channels", "heads", "shrink"), [(12, 3, 2), (7, 1, 2), (20, 3, 1), (24, 2, 4)])
def test_gates_are_attention_among_the_features(channels, heads, shrink):
    mask = ChannelMask(channels, heads=heads, shrink=shrink).double()
    feature = torch.randn(4, channels, dtype=torch.float64)
    gates = mask(feature)
    torch.testing.assert_close(gates, naive_gates(mask, feature))
    assert bool(((gates > 0) & (gates < 1)).all())
    assert mask.width == heads * (channels // (shrink * heads))


def test_a_mask_of_ones_changes_nothing_and_an_untrained_one_halves():
    layer = Masked((48,))
    feature = torch.randn(6, 48)
    assert abs(float(layer.gates(feature).detach().mean()) - 0.5) < 0.1
    with torch.no_grad():
        layer.mask.score.bias.fill_(50.0)
    torch.testing.assert_close(layer(feature), feature)


def test_maps_have_a_gate_per_channel():
    layer, maps = Masked((8, 5, 4)).eval(), torch.randn(3, 8, 5, 4)
    gates = layer.gates(maps)
    assert gates.shape == (3, 8)
    torch.testing.assert_close(layer(maps), maps * gates[:, :, None, None])
    assert isinstance(layer.mask, MapMask)
    small = Masked((8, 1, 1))
    assert isinstance(small.mask, ChannelMask)
    assert small(torch.randn(3, 8, 1, 1)).shape == (3, 8, 1, 1)


@pytest.mark.parametrize("shape", [(24,), (24, 3, 3)])
def test_the_size_is_told_before_it_is_built(shape):
    layer = Masked(shape)
    told = mask_parameters(24, mask_width(24), is_map=len(shape) == 3)
    assert told == sum(parameter.numel() for parameter in layer.parameters())


def test_masks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"a mask over 5 channels needs at least shrink \* heads = 6"):
        Masked((5,))
    with pytest.raises(ValueError, match=r"outputs \(N, 7, 16\)"):
        Masked((7, 16))
    with pytest.raises(ValueError, match=r"596 channels has 10\d,\d{3},\d{3} parameters, more than the 20,000,000"):
        Masked((596,))
    with pytest.raises(ValueError, match="multiple of the 3 heads, above 0, given 4"):
        ChannelMask(12, width=4)
    with pytest.raises(ValueError, match="heads must be 1 or more, given 0"):
        mask_width(12, heads=0)


def test_a_router_of_vectors_is_one_linear_map():
    router, logits = Router(5, 4), torch.randn(6, 5)
    weight = router.second.weight @ router.first.weight
    bias = router.second.weight @ router.first.bias + router.second.bias
    torch.testing.assert_close(router(logits), (logits @ weight.T + bias).softmax(dim=1))
    assert router.first.out_features == 10
    assert Router(5, 4, dense=True)(torch.randn(6, 5, 9, 7)).shape == (6, 4)
    assert router.bfloat16()(logits.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="experts must be 1 or more, given 0"):
        Router(5, 0)


def test_picks_are_the_most_probable_and_ties_go_to_the_lower_number():
    probabilities = torch.tensor([[0.1, 0.4, 0.4, 0.1], [0.3, 0.2, 0.1, 0.4]])
    assert top_picks(probabilities, 1).tolist() == [[1], [3]]
    assert top_picks(probabilities, 3).tolist() == [[1, 2, 0], [3, 0, 1]]
    logits = torch.randn(50, 6)
    assert torch.equal(top_picks(logits.softmax(1), 2), logits.topk(2).indices)


def test_random_picks_are_different_experts_all_equally_often():
    picks = random_picks(torch.tensor([[0.97, 0.01, 0.01, 0.01]]).expand(4000, 4), 2)
    assert bool((picks[:, 0] != picks[:, 1]).all())
    shares = routing_shares(picks, 4)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.02, rtol=0)


@pytest.mark.parametrize("pick", [top_picks, random_picks])
@pytest.mark.parametrize("count", [0, 5])
def test_more_picks_than_experts_are_refused(pick, count):
    with pytest.raises(ValueError, match=rf"must lie in \[1, 4\], given {count}"):
        pick(torch.rand(3, 4), count)


def test_a_network_sees_its_modalities():
    network = Sees(nn.Linear(4, 3), "image")
    image, sound = torch.randn(5, 4), torch.randn(5, 2)
    expected = network.network(image)
    assert torch.equal(network({"image": image, "sound": sound}), expected)
    assert torch.equal(network(image), expected)
    assert torch.equal(Sees(network.network, 1)([sound, image]), expected)
    both = Sees(nn.Bilinear(4, 2, 3), "image", "sound")
    assert torch.equal(both({"sound": sound, "image": image}), both.network(image, sound))
    with pytest.raises(ValueError, match="sees image, sound, but the inputs are one Tensor"):
        both(image)
    with pytest.raises(ValueError, match="no modality 'depth', they have 'image'"):
        Sees(nn.Linear(4, 3), "depth")({"image": image})
    with pytest.raises(ValueError, match="at least one modality"):
        Sees(nn.Linear(4, 3))


def test_modalities_of_different_lengths_are_refused():
    check_paired({"image": torch.randn(5, 4), "sound": torch.randn(5, 2)})
    with pytest.raises(ValueError, match="given image: 5, sound: 4 rows"):
        check_paired({"image": torch.randn(5, 4), "sound": torch.randn(4, 2)})
    with pytest.raises(ValueError, match="no modality 2, they have 0, 1"):
        pick_modality([torch.zeros(1), torch.zeros(1)], 2)
