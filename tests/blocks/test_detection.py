"""Two-stage detectors opened up, decoded boxes, and the mining of uncertain proposals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import BoxCoder

from stillroom import hub
from stillroom.blocks import TwoStage, background_last, decode_boxes, is_two_stage, mine_low_confidence, rescale_boxes
from tests.golden_cases import golden_cases

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return hub.load("detector-4", classes=3, channels=1, image_size=32).eval()


def test_it_says_what_the_detector_says(detector):
    images = torch.rand(2, 1, 32, 32)
    opened = TwoStage(detector)
    assert opened.classes == 3
    prepared = opened.prepare(images)
    features = opened.features(prepared)
    proposals = opened.propose(prepared, features)
    found = opened.detect(features, proposals, prepared.image_sizes)
    for ours, theirs in zip(found, detector(images), strict=True):
        torch.testing.assert_close(ours["scores"], theirs["scores"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"])
        assert torch.equal(ours["labels"], theirs["labels"])


def test_its_losses_are_the_detectors_own(detector):
    images = torch.rand(2, 1, 32, 32)
    targets = [
        {"boxes": torch.tensor([[2.0, 3, 12, 14]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    opened = TwoStage(detector)
    prepared = opened.prepare(images)
    torch.manual_seed(1)
    ours = opened.supervised(prepared, opened.features(prepared), opened.scaled(images, targets, prepared))
    detector.net.rpn.training = detector.net.roi_heads.training = detector.net.training = True  # batch norm stays
    try:
        torch.manual_seed(1)
        theirs = detector(images, targets)
    finally:
        detector.eval()
    assert set(ours) == set(theirs) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_regions_are_split_by_image_and_modes_stay(detector):
    detector.train()
    opened = TwoStage(detector)
    prepared = opened.prepare(torch.rand(2, 1, 32, 32))
    features = opened.features(prepared)
    proposals = opened.propose(prepared, features, most=4)
    assert [len(boxes) for boxes in proposals] == [4, 4]
    said = opened.regions(features, [proposals[0], proposals[1][:1]], prepared.image_sizes)
    assert [tuple(one.logits.shape) for one in said.per_image()] == [(4, 4), (1, 4)]
    assert said.deltas.shape == (5, 3, 4)
    assert all(module.training for module in detector.modules())
    detector.eval()


def test_images_of_other_sizes_and_channels(detector):
    wide = hub.load("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn@64", classes=3, channels=1)
    opened = TwoStage(wide.eval())
    prepared = opened.prepare([torch.rand(1, 40, 60), torch.rand(1, 50, 50)])
    assert prepared.image_sizes == [(64, 96), (64, 64)]
    target = {"boxes": torch.tensor([[0.0, 0, 30, 20]]), "labels": torch.tensor([1])}
    scaled = opened.scaled([torch.rand(1, 40, 60)], [target], type(prepared)(prepared.tensors[:1], [(64, 96)]))
    torch.testing.assert_close(scaled[0]["boxes"], torch.tensor([[0.0, 0, 48, 32]]))
    torch.testing.assert_close(rescale_boxes(scaled[0]["boxes"], (64, 96), (40, 60)), target["boxes"])


def test_other_networks_and_wrong_classes_are_refused(detector):
    assert not is_two_stage(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"Linear is no two-stage detector.*transform, backbone, rpn, roi_heads"):
        TwoStage(nn.Linear(2, 2))
    opened = TwoStage(detector)
    prepared = opened.prepare(torch.rand(1, 1, 32, 32))
    for label in (0, 4):
        target = {"boxes": torch.tensor([[2.0, 3, 12, 14]]), "labels": torch.tensor([label])}
        with pytest.raises(ValueError, match=f"labels run from {label} to {label}, but the detector has 3 classes"):
            opened.supervised(prepared, opened.features(prepared), [target])


# ---- columns ---------------------------------------------------------------------------------------------------------


def test_background_first_and_last_give_one_order():
    logits, deltas = torch.randn(5, 4), torch.randn(5, 16)
    last = background_last(logits, deltas, background="last")
    first = background_last(logits.roll(1, 1), deltas.unflatten(1, (4, 4)).roll(1, 1).flatten(1), background="first")
    for one, other in zip(last, first, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(last[1], deltas.unflatten(1, (4, 4))[:, :3])
    assert background_last(logits, deltas[:, :12])[1].shape == (5, 3, 4)
    assert background_last(logits, deltas[:, :4])[1].shape == (5, 1, 4)
    with pytest.raises(ValueError, match=r"20 columns for logits of 4: expected 12 or 16.*background column"):
        background_last(logits, torch.randn(5, 20))
    with pytest.raises(ValueError, match=r'"first" or "last", given \'middle\''):
        background_last(logits, deltas, background="middle")


def test_decoding_is_torchvisions():
    boxes = torch.rand(9, 4) * 20
    boxes[:, 2:] += boxes[:, :2] + 1
    deltas = 3 * torch.randn(9, 4)
    deltas[0, 2:] = 100.0  # clamped
    expected = BoxCoder(WEIGHTS).decode_single(deltas, boxes)
    torch.testing.assert_close(decode_boxes(boxes, deltas, weights=WEIGHTS), expected, rtol=1e-4, atol=1e-3)


# ---- mining ----------------------------------------------------------------------------------------------------------


def proposals(count=12, classes=3):
    torch.manual_seed(3)
    boxes = 40 * torch.rand(count, 4)
    boxes[:, 2:] = boxes[:, :2] + 4 + 10 * torch.rand(count, 2)
    logits = 4 * torch.randn(count, classes + 1)
    logits[:, -1] = 0
    return boxes, torch.randn(count, classes, 4), logits, torch.tensor([[60.0, 60, 70, 70]])


@pytest.mark.parametrize("case", golden_cases("lpld", "mine_low_confidence"), ids=str)
def test_mining_matches_the_authors_code(case):
    inputs = case.inputs
    found = mine_low_confidence(
        inputs["proposals"],
        inputs["teacher_deltas"].unflatten(1, (-1, 4)),
        inputs["teacher_logits"],
        inputs["high_confidence_boxes"],
        iou=case.params["iou"],
    )
    case.check(kept=found.kept, refined_boxes=found.refined_boxes)


def test_loose_thresholds_keep_all_and_permuting_permutes():
    boxes, deltas, logits, sure = proposals()
    everything = mine_low_confidence(boxes, deltas, logits, sure, iou=1, foreground=0, background=1)
    assert everything.kept.tolist() == list(range(12))
    some = mine_low_confidence(boxes, deltas, logits, sure)
    assert 0 < len(some.kept) < 12
    order = torch.randperm(12)
    other = mine_low_confidence(boxes[order], deltas[order], logits[order], sure)
    assert sorted(order[other.kept].tolist()) == some.kept.tolist()


def test_a_confident_box_on_a_kept_proposal_removes_exactly_that():
    boxes, deltas, logits, sure = proposals()
    kept = mine_low_confidence(boxes, deltas, logits, sure).kept.tolist()
    found = mine_low_confidence(boxes, deltas, logits, sure)
    gone = kept[1]
    with_it = torch.cat([sure, found.refined_boxes[gone : gone + 1]])
    left = mine_low_confidence(boxes, deltas, logits, with_it).kept.tolist()
    assert left == [row for row in kept if row != gone]


def test_the_teachers_background_changes_the_last_condition_only():
    boxes, deltas, logits, sure = proposals()
    kept = mine_low_confidence(boxes, deltas, logits, sure).kept.tolist()
    certain = logits.clone()
    certain[kept[0], -1] = 100.0  # surely background
    assert kept[0] not in mine_low_confidence(boxes, deltas, certain, sure).kept.tolist()
    assert kept[0] in mine_low_confidence(boxes, deltas, certain, sure, background=1).kept.tolist()


def test_no_confident_box_keeps_nothing_unless_that_is_wanted():
    boxes, deltas, logits, _ = proposals()
    nothing = torch.zeros(0, 4)
    assert not len(mine_low_confidence(boxes, deltas, logits, nothing).kept)
    assert len(mine_low_confidence(boxes, deltas, logits, nothing, require_confident=False).kept)


def test_shared_boxes_and_no_proposals():
    boxes, deltas, logits, sure = proposals()
    shared = mine_low_confidence(boxes, deltas[:, :1], logits, sure)
    favourite = logits.argmax(1)
    moved = decode_boxes(boxes, deltas[:, 0])
    torch.testing.assert_close(shared.refined_boxes[favourite < 3], moved[favourite < 3])
    empty = mine_low_confidence(boxes[:0], deltas[:0], logits[:0], sure)
    assert len(empty.kept) == 0


def test_what_cannot_be_mined_is_refused():
    boxes, deltas, logits, sure = proposals()
    with pytest.raises(ValueError, match=r"foreground must lie in .0, 1., given 1.5"):
        mine_low_confidence(boxes, deltas, logits, sure, foreground=1.5)
    with pytest.raises(ValueError, match="2 classes or more beside the background, given teacher_logits of 2 columns"):
        mine_low_confidence(boxes, deltas[:, :1], logits[:, 2:], sure)
    with pytest.raises(
        ValueError, match=r"\(12, 2, 4\) for teacher_logits of 3 columns, given \(12, 3, 4\).*background"
    ):
        mine_low_confidence(boxes, deltas, logits[:, :3], sure)
    with pytest.raises(
        ValueError, match="but the image is 30 wide and 30 high: are they in the coordinates of another"
    ):
        mine_low_confidence(boxes, deltas, logits, sure, image_size=(30, 30))
    with pytest.raises(ValueError, match="proposals are on cpu, but what belongs to them is on meta"):
        mine_low_confidence(boxes, deltas.to("meta"), logits, sure)
    bad = logits.clone()
    bad[4, 1] = float("nan")
    with pytest.raises(ValueError, match="teacher_logits must be finite, given NaN"):
        mine_low_confidence(boxes, deltas, bad, sure)
