"""The detection task: what it refuses, what it measures, how its students are taught; and `distill` with it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

import stillroom
from stillroom import hub
from stillroom.baselines import KD, Alone
from stillroom.blocks.frozen import Frozen
from stillroom.data import Batch, Ragged, digit_scenes
from stillroom.data.stream import sequential
from stillroom.task import Detection, recall_at_precision, score_boxes

BOXES = torch.tensor([[2.0, 3, 12, 14], [15, 15, 30, 28]])


def target(boxes=BOXES, labels=(1, 2)):
    return {"boxes": boxes, "labels": torch.tensor(labels)}


def said(boxes=BOXES, labels=(1, 2), scores=(0.9, 0.8)):
    return target(boxes, labels) | {"scores": torch.tensor(scores)}


def detector(name="detector-4", classes=3):
    torch.manual_seed(0)
    return hub.load(name, classes=classes, channels=1, image_size=32)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_perfect_and_empty_detections():
    perfect = score_boxes([said()], [target()])
    assert perfect["map_50"] == perfect["map"] == perfect["recall"] == pytest.approx(1)
    nothing = said(torch.zeros(0, 4), (), ())
    nothing["labels"] = nothing["labels"].long()
    assert score_boxes([nothing], [target()])["map_50"] == 0
    half = score_boxes([said(labels=(1, 3))], [target()])
    assert half["map_50"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="none of the 1 images has a box"):
        score_boxes([nothing], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}])


def test_recall_at_precision_by_hand():
    wrong = torch.tensor([[20.0, 1, 28, 9]])
    found = [said(torch.cat([BOXES[:1], wrong, wrong, BOXES[1:]]), (1, 1, 1, 2), (0.9, 0.8, 0.7, 0.6))]
    truth = [target()]
    assert recall_at_precision(found, truth, precision=0.5) == 1.0  # 2 of 4
    assert recall_at_precision(found, truth, precision=0.6) == 0.5  # 1 of 1
    assert recall_at_precision(found, truth, precision=0.5, largest_area=150) == 1.0  # the small one, 110 pixels
    assert recall_at_precision(found, truth, precision=0.5, largest_area=100) != recall_at_precision(found, truth)
    twice = [said(torch.cat([BOXES[:1], BOXES[:1]]), (1, 1), (0.9, 0.8))]
    assert recall_at_precision(twice, truth, precision=1.0) == 0.5  # an object is taken once
    assert recall_at_precision([said(labels=(2, 1))], truth) == 0.0
    with pytest.raises(ValueError, match=r"precision must lie in \(0, 1\], given 0"):
        recall_at_precision(found, truth, precision=0)


def test_evaluation_puts_the_mode_back_and_leaves_unlabelled_images_out():
    network = detector().train()
    batch = Batch(torch.rand(3, 1, 32, 32), [target(), None, target()])
    found = Detection().evaluate(network, [batch])
    assert set(found) >= {"map_50", "map", "recall"}
    assert network.training
    assert all(module.training for module in network.modules())
    with pytest.raises(ValueError, match="no image of the evaluation split has labels"):
        Detection().evaluate(network, [batch.replace(labels=[None] * 3)])


def test_chance_is_below_a_detector_that_knows_and_above_nothing():
    labels = digit_scenes(train=1, test=30).test.labels
    guess = Detection().chance(labels)["map_50"]
    assert 0 <= guess < 0.2
    alike = Ragged([target()] * 4)
    assert Detection().chance(alike)["map_50"] == pytest.approx(1)


# ---- checks of the first batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([5.0, 5, 3, 9], 1, r"image 1 has the box \(5, 5, 3, 9\), expected x1, y1, x2, y2 with x2 > x1"),
        ([5.0, 5, 40, 9], 1, r"image 1 has the box \(5, 5, 40, 9\), but is only 32 wide and 32 high"),
        ([5.0, 5, 9, 9], 0, "image 1 has a box of class 0, but classes are numbered from 1"),
        ([5.0, float("nan"), 9, 9], 1, "image 1 has a box with NaN"),
    ],
)
def test_boxes_that_cannot_be_right_are_refused(box, label, message):
    batch = Batch(torch.rand(2, 1, 32, 32), [target(), target(torch.tensor([box]), (label,))])
    with pytest.raises(ValueError, match=message):
        Detection().check(batch)
    Detection().check(batch[:1], [said()])


# ---- what students are taught ----------------------------------------------------------------------------------------


def test_the_student_alone_learns_faster_rcnns_losses():
    network, images = detector(), torch.rand(2, 1, 32, 32)
    targets = [target(), target(torch.zeros(0, 4), ())]
    targets[1]["labels"] = targets[1]["labels"].long()
    method = Alone(network, task=Detection()).eval()
    torch.manual_seed(1)
    loss = method(Batch(images, targets))["label"]
    network.net.training = network.net.rpn.training = network.net.roi_heads.training = True
    torch.manual_seed(1)
    expected = sum(network(images, targets).values())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_distillation_reads_the_teachers_proposals_on_all_images():
    student, teacher = detector(), detector("detector-8")
    batch = Batch(torch.rand(3, 1, 32, 32), [target(), None, None])
    method = KD(student, teacher, task=Detection())
    losses = method(batch)
    assert sorted(losses) == ["distill", "label", "propose"]
    assert losses.weights == {"distill": 0.9, "propose": 0.9, "label": 0.1}
    losses.total.backward()
    assert all(p.grad is not None for p in student.parameters())
    unlabelled = method(batch.replace(labels=None))
    assert sorted(unlabelled) == ["distill", "propose"]


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    teacher = detector().eval()
    student = detector().eval()
    terms, _ = Detection().learn(student, Batch(torch.rand(2, 1, 32, 32)), Frozen(teacher))
    assert float(terms["distill"].detach()) == pytest.approx(0, abs=1e-6)


def test_teachers_of_another_size_speak_of_the_same_places():
    teacher = hub.load("detector-4@64", classes=3, channels=1, image_size=32).eval()
    terms, regions = Detection().learn(detector(), Batch(torch.rand(2, 1, 32, 32)), Frozen(teacher))
    assert torch.isfinite(terms["distill"])
    assert regions.logits.shape[1] == 4


def test_other_teachers_are_refused():
    with pytest.raises(TypeError, match="function is no two-stage detector"):
        KD(detector(), lambda batch: batch.inputs, task=Detection())(Batch(torch.rand(1, 1, 32, 32)))


# ---- models ----------------------------------------------------------------------------------------------------------


def test_detectors_are_saved_and_loaded(tmp_path):
    network = detector().eval()
    hub.save(network, tmp_path / "student")
    again = hub.load_folder(tmp_path / "student")
    images = [torch.rand(1, 32, 32), torch.rand(1, 40, 36)]
    for one, other in zip(network(images), again(images), strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"])
    again.train()
    again(images)
    assert again.net.training


def test_torchvisions_detectors_are_built_for_the_classes():
    wide = hub.load("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn@64", classes=2, channels=1, image_size=32)
    assert wide.net.roi_heads.box_predictor.cls_score.out_features == 3
    assert any("repeated to RGB" in note for note in wide.notes)
    assert len(wide.eval()(torch.rand(2, 1, 32, 32))) == 2
    with pytest.raises(ValueError, match="detects 2 classes, expected 5 as the data has"):
        hub.load(wide.net, classes=5, channels=1)


# ---- the main job ----------------------------------------------------------------------------------------------------


class Squares(Dataset):
    """Bright and dim squares of several sizes, of a user's."""

    classes = ("bright", "dim")

    def __init__(self, count, seed):
        draw = torch.Generator().manual_seed(seed)
        self.items = []
        for row in range(count):
            image = 0.1 * torch.rand(1, 32, 34 + row % 2, generator=draw)
            x, y = torch.randint(0, 20, (2,), generator=draw).tolist()
            image[0, y : y + 10, x : x + 10] = 0.9 if row % 2 else 0.5
            box = torch.tensor([[x, y, x + 10, y + 10]]).float()
            self.items.append((image, {"boxes": box, "labels": torch.tensor([2 - row % 2])}))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


def small_detector(classes=2, channels=1):
    return hub.load("detector-4@32", classes=classes, channels=channels).net


def test_a_users_data_set_in_python(tmp_path):
    done = stillroom.distill(
        small_detector(),
        small_detector,
        (Squares(24, 0), Squares(8, 1)),
        teacher_epochs=4,
        steps=2,
        batch_size=4,
        lr=0.01,
        seeds=1,
        labels=12,
        out=tmp_path / "run",
        progress=False,
    )
    assert done.results["metric"] == "map_50"
    assert set(done.results["arms"]) == {"teacher", "alone", "kd"}
    assert done.results["class_names"] == ["bright", "dim"]
    assert len(done.student(torch.rand(2, 1, 32, 34))) == 2
    assert (tmp_path / "run" / "report.html").exists()


def test_the_command_line(tmp_path, capsys):
    from stillroom.cli import main

    out = tmp_path / "run"
    few = "--train-size 24 --test-size 8 --labels 12 --teacher-epochs 8 --steps 2 --seeds 1 --jobs 1"
    main(["distill", "--task", "detection", *few.split(), "--out", str(out)])
    assert "map 50" in capsys.readouterr().out
    again = stillroom.load(out / "student")
    found = again(next(iter(sequential(digit_scenes(train=1, test=2).test, 2))).inputs)
    assert [set(one) for one in found] == [{"boxes", "labels", "scores"}] * 2
