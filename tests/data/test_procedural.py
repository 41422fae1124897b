import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.data import Stream, blobs, scenes, shapes

MAKERS = {"shapes": shapes, "scenes": scenes, "blobs": blobs}


def everything(samples):
    return samples.batch(torch.arange(len(samples)))


@pytest.mark.parametrize("name", MAKERS)
def test_the_seed_alone_decides_and_it_is_quick(name):
    make = MAKERS[name]
    begun = time.process_time()
    first = make(seed=3)
    assert time.process_time() - begun < 1
    assert len(first.train) == 1000
    again, other = everything(make(seed=3).train), everything(make(seed=4).train)
    first = everything(first.train)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs, other.inputs)
    assert float(first.inputs.min()) >= 0
    assert float(first.inputs.max()) <= 1
    splits = make(train=5, test=2, size=16)
    assert (len(splits.train), len(splits.test)) == (5, 2)
    assert splits.train.shape[1:] == (16, 16)
    assert splits.test.index.tolist() == [5, 6]


def test_a_blob_is_where_and_as_wide_as_its_label_says():
    """The centre of mass and the second moment of the picture, after the ground is taken off."""
    batch = everything(blobs(train=200, size=64).train)
    weight = (batch.inputs[:, 0] - 0.1).clamp(min=0)
    places = torch.arange(64) + 0.5
    column = (weight.sum(1) * places).sum(1) / weight.sum((1, 2))
    row = (weight.sum(2) * places).sum(1) / weight.sum((1, 2))
    narrow = batch.labels[:, 2] < 0.5  # wide blobs are cut by the edge
    torch.testing.assert_close(column[narrow], 64 * (0.15 + 0.7 * batch.labels[narrow, 0]), atol=2.5, rtol=0)
    torch.testing.assert_close(row[narrow], 64 * (0.15 + 0.7 * batch.labels[narrow, 1]), atol=2.5, rtol=0)
    area = (batch.inputs[:, 0] > 0.5 * batch.inputs[:, 0].amax((1, 2))[:, None, None]).sum((1, 2))
    assert torch.corrcoef(torch.stack([area.sqrt(), batch.labels[:, 2]]))[0, 1] > 0.95


def test_forms_that_are_absent_leave_only_noise():
    batch = everything(shapes().train)
    empty = batch.labels.sum(1) == 0
    assert 0.05 < empty.double().mean() < 0.15  # 0.55 ** 4 = 0.092
    assert float(batch.inputs[empty].max()) <= 0.31
    assert float(batch.inputs[~empty].amax((1, 2, 3)).min()) > 0.31
    torch.testing.assert_close(batch.labels.mean(0), torch.full((4,), 0.45), atol=0.06, rtol=0)


def test_scenes_have_outlines_without_label_between_the_classes():
    labels = everything(scenes().train).labels
    assert labels.unique().tolist() == [-100, 0, 1, 2]
    share = [float((labels == number).double().mean()) for number in (-100, 0, 1, 2)]
    assert 0.02 < share[0] < 0.2
    assert min(share[2:]) > 0.02
    padded = F.pad(labels, (1, 1, 1, 1), value=0)
    disc = padded == 1
    ground = padded == 0
    touching = disc[:, :, 1:] & ground[:, :, :-1]
    assert int(touching.sum()) == 0, "an outline lies between a disc and the ground"


@pytest.mark.parametrize("name", MAKERS)
def test_a_small_network_learns_it(name):
    torch.manual_seed(0)
    splits = MAKERS[name]()
    channels = splits.train.shape[0]

    def block(inputs, outputs, dilation=1):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    if name == "scenes":
        network = nn.Sequential(*block(channels, 12), *block(12, 16), *block(16, 16, 2), nn.Conv2d(16, 3, 1))
        steps, loss = 60, lambda outputs, labels: F.cross_entropy(outputs, labels, ignore_index=-100)
    elif name == "shapes":
        trunk = [*block(channels, 16), nn.MaxPool2d(2), *block(16, 32), *block(32, 32)]
        network = nn.Sequential(*trunk, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 4))
        steps, loss = 120, F.binary_cross_entropy_with_logits
    else:
        network = nn.Sequential(*block(channels, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 3))
        steps, loss = 120, F.mse_loss
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for batch in Stream(splits.train, batch_size=32, seed=0).batches(0, steps):
        optimizer.zero_grad()
        loss(network(batch.inputs), batch.labels).backward()
        optimizer.step()
    batch = everything(splits.test)
    with torch.no_grad():
        outputs = network(batch.inputs)  # by the test batch's own statistics, which are those of the training data
    if name == "scenes":
        known = batch.labels >= 0
        hit = (outputs.argmax(1) == batch.labels)[known]
        overlap = [
            float(
                hit[batch.labels[known] == c].sum()
                / ((outputs.argmax(1)[known] == c) | (batch.labels[known] == c)).sum()
            )
            for c in range(3)
        ]
        assert sum(overlap) / 3 > 0.6  # saying "ground" everywhere scores below 0.3
    elif name == "shapes":
        assert ((outputs > 0) == batch.labels.bool()).double().mean() > 0.75  # saying "absent" scores 0.55
    else:
        error = (outputs - batch.labels).square().mean(0) / batch.labels.var(0)
        assert float(error.max()) < 0.3  # saying the mean scores 1


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"size must be 12 .* given 8"):
        shapes(size=8)
    with pytest.raises(ValueError, match=r"train .* given 0"):
        blobs(train=0)
    with pytest.raises(ValueError, match=r"test .* given -1"):
        scenes(test=-1)
