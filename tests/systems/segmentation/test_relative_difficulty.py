"""RDD: its two phases, its controls, its data."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from stillroom import hub
from stillroom.blocks import FCN
from stillroom.blocks.models import build
from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.data.samples import TensorSamples
from stillroom.data.segmented import digit_masks
from stillroom.fit import fit
from stillroom.losses import hard_positions
from stillroom.losses.pixels import both, students
from stillroom.method import Clock, Stage
from stillroom.systems.segmentation.relative_difficulty import RDD, paper, recipe
from stillroom.systems.segmentation.relative_difficulty.method import LabelsOfTwoHeads, RDDWithoutTeachersPlaces
from stillroom.systems.segmentation.relative_difficulty.recipe import random_selection, wrong_pixels
from stillroom.training import Training


def problem(rows=6, classes=3):
    labels = torch.randint(classes, (rows, 16, 16))
    labels[:, :2] = -100
    return Batch(torch.rand(rows, 1, 16, 16), labels, torch.arange(rows))


def networks(classes=3, auxiliary=False):
    return FCN([4, 8], classes=classes, auxiliary=auxiliary), FCN([8, 8, 8], classes=classes, auxiliary=True)


def staged(method, name):
    method.stage = Stage(name)
    return method


class TestMethod:
    @pytest.mark.parametrize("tfe_share", [0.0, 0.5])
    def test_the_battery(self, tfe_share):
        student, teacher = networks()
        batch = problem(10)
        report = check_method(RDD(student, teacher, tfe_share=tfe_share), batch, processes=False, raises=False)
        assert report.ok, str(report)

    def test_the_phases_follow_each_other_once_and_both_run(self):
        student, teacher = networks()
        method = RDD(student, teacher, tfe_share=0.25)
        seen = []
        plain = method.label_loss
        method.label_loss = lambda *given: seen.append(method.stage.name) or plain(*given)
        batch = problem(16)
        training = Training(steps=12, batch_size=8, evaluate_every=12)
        fit(
            method,
            TensorSamples(batch.inputs, batch.labels),
            training,
            progress=False,
            device="cpu",
            check_teacher=False,
        )
        ran = [name for name in seen if name in ("tfe", "tse")]
        first = ran.index("tse")
        assert 0 < first < len(ran)
        assert set(ran[first:]) == {"tse"}
        assert [stage.name for stage in RDD(student, teacher, tfe_share=0.0).stages()] == ["tse"]
        assert [stage.share for stage in method.stages()] == [0.25, 0.75]

    def test_a_teacher_whose_heads_agree_leaves_the_cross_entropy(self):
        student, teacher = networks()
        batch = problem()
        method = staged(RDD(student.eval(), teacher, auxiliary_weight=0.4), "tfe")
        own, theirs = (torch.randn(6, 3, 8, 8) for _ in range(2))
        found = method.label_loss({"classifier": own}, {"classifier": theirs, "aux_classifier": theirs}, batch.labels)
        up = F.interpolate(own, size=(16, 16), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found, F.cross_entropy(up, batch.labels, reduction="sum") / batch.labels.numel())

    def test_equal_networks_select_nothing(self):
        _, teacher = networks()
        method = staged(RDD(teacher, teacher, tfe_share=0.0), "tse")
        method.student.requires_grad_(True)
        logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        loss = method.label_loss({"classifier": logits}, {"classifier": logits.detach()}, problem(2).labels)
        assert loss.item() == 0

    def test_the_auxiliary_head_has_a_mask_of_its_own(self):
        student, teacher = networks(auxiliary=True)
        batch = problem()
        whole = staged(RDD(student.eval(), teacher, threshold=0.34), "tse")
        _, own = RDD._ask(whole.student, whole.student_heads, batch.inputs)
        _, theirs = RDD._ask(whole.teacher, whole.teacher_heads, batch)
        primary = whole._hard(own, theirs, batch.labels, "classifier")
        auxiliary = whole._hard(own, theirs, batch.labels, "aux_classifier")
        torch.testing.assert_close(whole(batch)["difficulty"], primary + 0.4 * auxiliary)
        assert auxiliary.item() != primary.item()

    def test_blending_fades_the_first_phase_out(self):
        student, teacher = networks()
        method = staged(RDD(student.eval(), teacher, tfe_share=0.2, blend=True, threshold=0.34), "tse")
        batch = problem()
        values = []
        for progress in (0.2, 0.6, 1.0):
            method.clock = Clock(progress=progress)
            values.append(method(batch)["difficulty"].item())
        easy = staged(method, "tfe")(batch)["difficulty"].item()
        method.blend = False
        hard = staged(method, "tse")(batch)["difficulty"].item()
        assert values == pytest.approx([easy, (easy + hard) / 2, hard], rel=1e-5)

    def test_it_takes_torchvisions_segmenters(self):
        def net(auxiliary):
            return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3, aux_loss=auxiliary)

        student, teacher = hub.load(net(False), classes=3, channels=3), hub.load(net(True), classes=3, channels=3)
        method = RDD(student, teacher)
        assert method.teacher_heads == ("classifier", "aux_classifier")
        losses = method(Batch(torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))))
        losses.total.backward()
        assert losses.outputs.shape == (2, 3, 64, 64)

    def test_networks_without_named_heads_are_compared_by_their_outputs(self):
        plain = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1))
        losses = RDD(plain, nn.Conv2d(1, 3, 1), tfe_share=0.0)(problem())
        losses.total.backward()
        assert plain[0].weight.grad is not None

    def test_the_shuffled_control_sees_other_images(self):
        student, teacher = networks()
        right, moved = (staged(kind(student, teacher), "tse") for kind in (RDD, RDDWithoutTeachersPlaces))
        own, theirs = ({"classifier": 3 * torch.randn(4, 3, 8, 8)} for _ in range(2))
        labels = problem(4).labels
        assert right.label_loss(own, theirs, labels).item() != moved.label_loss(own, theirs, labels).item()
        dealt = {"classifier": theirs["classifier"].roll(1, 0)}
        torch.testing.assert_close(right.label_loss(own, dealt, labels), moved.label_loss(own, theirs, labels))

    def test_the_random_control_takes_as_many_pixels(self):
        one, other = torch.rand(2, 8, 8) < 0.5, torch.rand(2, 8, 8) < 0.5
        assert int(random_selection(one, other).sum()) == int((one ^ other).sum())
        assert not torch.equal(random_selection(one, other), one ^ other)

    def test_bad_input_is_refused(self):
        student, teacher = networks()
        with pytest.raises(ValueError, match="this teacher has no module aux_classifier"):
            RDD(student, FCN([4, 8], classes=3))
        with pytest.raises(ValueError, match=r"tfe_share is the share .* in \[0, 1\], given 1.5"):
            RDD(student, teacher, tfe_share=1.5)
        with pytest.raises(ValueError, match=r"threshold is a probability in \[0, 1\], given -0.1"):
            RDD(student, teacher, threshold=-0.1)
        with pytest.raises(ValueError, match="the student gives 5 classes, the teacher 3"):
            RDD(FCN([4, 8], classes=5), teacher)(problem())
        method = staged(RDD(student, teacher, class_weights=[1.0] * 19), "tse")
        with pytest.raises(ValueError, match=r"one weight per class, \(3,\), given \(19,\)"):
            method(problem())


def test_a_teacher_learns_both_heads():
    _, network = networks()
    losses = LabelsOfTwoHeads(network)(problem())
    losses.total.backward()
    assert set(losses) == {"label", "auxiliary"}
    assert network.aux_classifier.weight.grad.abs().sum() > 0
    assert set(LabelsOfTwoHeads(nn.Conv2d(1, 3, 1))(problem())) == {"label"}


class TestData:
    def test_halves_share_no_digit_and_only_training_digits_are_wrong(self):
        splits = digit_masks(train=60, test=20, wrong=0.3, seed=3)
        wrong, labels = splits.train.fields["wrong"], splits.train.labels
        assert 0.02 < float(wrong.double().mean()) < 0.2
        assert bool((labels[wrong] < 10).all())
        right = digit_masks(train=60, test=20, wrong=0.0, seed=3)
        assert not bool(right.train.fields["wrong"].any())
        assert torch.equal(right.test.labels, splits.test.labels)
        other = digit_masks(train=60, test=20, seed=3, half=1)
        assert not torch.equal(other.train.batch([0]).inputs, right.train.batch([0]).inputs)

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="size must be 24 or more, given 8"):
            digit_masks(size=8)
        with pytest.raises(ValueError, match="wrong is a probability"):
            digit_masks(wrong=1.0)


def test_exclusive_selection_avoids_wrong_labels_once_both_networks_know_better():
    """The definition at work: networks that are right find a wrong label improbable, both of them."""
    splits = digit_masks(train=40, test=10, wrong=0.3, seed=0)
    right = digit_masks(train=40, test=10, wrong=0.3, seed=0).train
    batch = right.batch(torch.arange(40))
    truth = torch.where(batch.wrong, 0, batch.labels)  # what a right network would say: not the wrong label
    sure = 6.0 * F.one_hot(truth, 11).movedim(-1, 1)
    student = sure + 2.5 * torch.randn(sure.shape)
    hard = hard_positions(student, batch.labels), hard_positions(sure, batch.labels)
    base = batch.wrong.double().mean()
    exclusive_share = batch.wrong[hard[0] ^ hard[1]].double().mean()
    assert exclusive_share < 0.5 * base < base < batch.wrong[both(*hard)].double().mean()
    assert batch.wrong[students(*hard)].double().mean() > exclusive_share
    network = FCN([4, 8], classes=11).eval()
    found = wrong_pixels(network, splits, lambda batch: network(batch.inputs))
    assert found["selected_xor"] == 0
    assert found["wrong_labels"] == pytest.approx(float(splits.train.fields["wrong"].double().mean()))


def test_names_build_segmenters():
    network = build("fcn-4-8-8+aux", classes=3, in_channels=1, image_size=24)
    assert network.aux_classifier is not None
    assert build("fcn-4-8", classes=3, in_channels=1, image_size=24).aux_classifier is None
    assert network(torch.zeros(2, 1, 24, 20)).shape == (2, 3, 24, 20)
    with pytest.raises(ValueError, match=r"a segmenter has two stages or more, given widths \[4\]"):
        FCN([4], classes=3)


def test_the_recipe_and_the_papers_settings_run_in_small():
    results = recipe(teacher="fcn-8-8-8+aux").tiny().run([0], progress=False, device="cpu")
    assert {name for name, arm in results["arms"].items() if arm["role"] == "control"} == {"shuffled", "random"}
    assert "wrong_in_xor" in results["arms"]["rdd"]["metrics"]
    given = paper("scenes", teacher="fcn-4-8-8+aux", student="fcn-4-8", image_size=24)
    assert given.training.steps == 40_000
    small = given.tiny().run([0], progress=False, device="cpu")
    assert small["arms"]["rdd"]["mean"] >= 0
