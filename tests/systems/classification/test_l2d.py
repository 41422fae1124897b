"""L2D: the methods, what they refuse, and the recipes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import LabelQueryNetwork, label_queries_in
from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.losses import kd_loss, led_class_aware_loss, led_instance_aware_loss, mld_loss
from stillroom.systems.classification.l2d import L2D, MLD, Exchanged, LabelsAlone, SoftmaxKD, paper, recipe
from stillroom.systems.classification.l2d.recipe import tagger
from stillroom.task import MultiLabel

LABELS = 5


def network(width=8, labels=LABELS):
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
    return LabelQueryNetwork(backbone, 6, classes=labels, width=width, heads=2, hidden=16, dropout=0.0)


def plain(labels=LABELS):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, labels))


def batch(samples=10, labels=LABELS):
    targets = (torch.rand(samples, labels) > 0.3).float()
    return Batch(torch.randn(samples, 1, 6, 6), targets, torch.arange(samples))


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLD(plain(), plain()),
        lambda: L2D(network(), network(16)),
        lambda: SoftmaxKD(plain(), plain()),
        lambda: LabelsAlone(plain()),
    ],
    ids=["mld", "l2d", "softmax kd", "alone"],
)
def test_they_pass_the_checks(build):
    assert len(check_method(build(), batch(), task=MultiLabel(), processes=False).passed) > 15


def test_the_loss_is_the_papers():
    student, teacher, data = network(), network(16), batch()
    losses = L2D(student, teacher)(data)
    logits, theirs = student(data.inputs), teacher(data.inputs)
    own, other = (one.queries(one.backbone(data.inputs)) for one in (student, teacher))
    hard = F.binary_cross_entropy_with_logits(logits, data.labels, reduction="sum")
    class_aware = led_class_aware_loss(own, other, data.labels)
    instance_aware = led_instance_aware_loss(own, other, data.labels)
    assert float(class_aware.detach()) > 0
    assert float(instance_aware.detach()) > 0
    expected = hard + 10 * mld_loss(logits, theirs) + 100 * class_aware + 1000 * instance_aware
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(losses.outputs, logits)
    halved = L2D(student, teacher, led_weight=0.5)(data).total
    torch.testing.assert_close(halved, hard + 10 * mld_loss(logits, theirs) + 50 * class_aware + 500 * instance_aware)
    gradients = torch.autograd.grad(3 * losses.total, list(student.head.parameters()))
    exact = torch.autograd.grad(3 * (hard + 10 * mld_loss(logits, theirs)), list(student.head.parameters()))
    torch.testing.assert_close(gradients, exact)  # embeddings' losses do not reach the read-out


def test_without_the_embeddings_it_is_mld_and_takes_any_networks():
    student, teacher, data = plain(), plain(), batch()
    torch.testing.assert_close(L2D(student, teacher, led_weight=0.0)(data).total, MLD(student, teacher)(data).total)


def test_unlabelled_rows_are_distilled_by_their_logits_alone():
    student, teacher, data = network(), network(16), batch()
    losses = L2D(student, teacher)(data.replace(labels=None))
    assert list(losses) == ["mld"]
    labels = data.labels.clone()
    labels[4:] = torch.nan
    part, first = L2D(student, teacher)(data.replace(labels=labels)), L2D(student, teacher)(data[torch.arange(4)])
    assert part.weights["label"] == first.weights["label"] == 4 * LABELS
    for name in ("label", "class_aware", "instance_aware"):
        torch.testing.assert_close(part[name], first[name])
    torch.testing.assert_close(part["mld"], losses["mld"])


def test_alone_has_the_label_loss_of_the_others_and_both_recipes_use_it_for_student_and_teacher():
    student, data = plain(), batch()
    losses, taught = LabelsAlone(student)(data), MLD(student, plain())(data)
    torch.testing.assert_close(losses.total, taught["label"] * taught.weights["label"])
    exact = F.binary_cross_entropy_with_logits(student(data.inputs), data.labels, reduction="sum")
    torch.testing.assert_close(losses.total, exact)
    with pytest.raises(ValueError, match="this batch has none"):
        LabelsAlone(student)(data.replace(labels=None))
    for made in (recipe(), paper()):
        assert made.teacher_method is made.arms["alone"] is LabelsAlone
        assert made.task.validation_share == 0  # the teacher sees every training image


def test_embeddings_of_another_head_are_named():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Sequential(nn.Flatten(), nn.Linear(36, LABELS * 3), nn.Unflatten(1, (LABELS, 3)))

        def forward(self, inputs):
            return self.embed(inputs).sum(-1)

    method = L2D(Other(), network(), student_embeddings="embed")
    assert float(method(batch())["class_aware"].detach()) > 0
    flat = L2D(Other(), network(), student_embeddings="embed.1")
    with pytest.raises(ValueError, match=r"student_embeddings must be label-wise.*given \(10, 15\)"):
        flat(batch())


def test_the_control_is_taught_about_another_image():
    student, teacher, data = network(), network(16), batch()
    losses = Exchanged(student, teacher)(data)
    theirs = teacher(data.inputs)[[9, *range(9)]]
    torch.testing.assert_close(losses["mld"], mld_loss(student(data.inputs), theirs))
    usual = L2D(student, teacher)(data)
    torch.testing.assert_close(losses["label"], usual["label"])
    assert float(losses["instance_aware"].detach()) != float(usual["instance_aware"].detach())


def test_the_rival_distils_one_class_of_many():
    student, teacher, data = plain(), plain(), batch()
    losses = SoftmaxKD(student, teacher, temperature=2.0)(data)
    torch.testing.assert_close(losses["kd"], kd_loss(student(data.inputs), teacher(data.inputs), temperature=2.0))


def test_no_hooks_stay_and_the_student_learns_its_teachers_embeddings():
    student, teacher, data = network(), network(16), batch(24)
    method = L2D(student, teacher, label_weight=0.0, mld_weight=0.0)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    seen = []
    for _ in range(60):
        optimizer.zero_grad()
        losses = method(data)
        losses.total.backward()
        optimizer.step()
        seen.append(float(losses.total.detach()))
    assert seen[-1] < 0.5 * seen[0]
    assert not any(module._forward_hooks for one in (student, teacher) for module in one.modules())
    assert label_queries_in(copy.deepcopy(method).product) == ["queries"]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"led_weight=1 .*student \(Sequential\) has no LabelQueries.*led_weight=0"):
        L2D(plain(), network())
    with pytest.raises(
        ValueError, match=r"teacher \(Sequential\) has no LabelQueries.*teacher_embeddings=.*led_weight"
    ):
        L2D(network(), plain())
    twice = nn.Sequential(network(), network())
    with pytest.raises(ValueError, match=r"has 2 of them \(0\.queries, 1\.queries\): name one \(student_embeddings="):
        L2D(twice, network())
    with pytest.raises(ValueError, match=r"\(10, 5\).*\(10, 4\).*same classes"):
        L2D(network(), network(labels=4))(batch())
    with pytest.raises(ValueError, match=r"targets have shape \(10, 4\)|\(10, 5\).*\(10, 4\)"):
        L2D(network(), network())(batch(labels=4))
    with pytest.raises(ValueError, match=r"targets must be 0 or 1, given 0\.5"):
        L2D(network(), network())(batch().replace(labels=torch.full((10, LABELS), 0.5)))
    for option, value, words in (
        ("mld_weight", -1, "mld_weight must be a number of 0 or more, given -1"),
        ("led_weight", -1, "led_weight must be a number of 0 or more, given -1"),
        ("class_aware_weight", -1, "class_aware_weight must be a number of 0 or more, given -1"),
        ("eps", 0.7, r"eps must be a probability in \[0, 0\.5\), given 0\.7"),
    ):
        with pytest.raises(ValueError, match=words):
            L2D(network(), network(), **{option: value})


def test_the_recipe_runs(tmp_path):
    found = recipe().tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert found["metric"] == "mean_average_precision"
    assert set(found["arms"]) == {"teacher", "alone", "softmax kd", "mld", "l2d", "exchanged"}
    assert found["arms"]["exchanged"]["role"] == "control"
    assert {"micro_f1", "macro_f1", "micro_f1_at_k", "macro_f1_at_k"} < set(found["arms"]["l2d"]["metrics"])


def test_the_papers_settings_run(tmp_path):
    images, labels = torch.rand(200, 3, 16, 16), (torch.rand(200, 4) > 0.4).float()
    experiment = paper((images, labels), teacher="conv-8+labels-16", student="conv-4+labels-8", image_size=16)
    found = experiment.tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert set(found["arms"]) == {"teacher", "alone", "mld", "l2d"}
    training = paper().training
    assert (training.epochs, training.batch_size, training.optimizer.lr) == (80, 64, 1e-4)
    made = tagger("conv-4-6", 7, 3, 16, at="stages", width=8)
    assert made(torch.rand(2, 3, 16, 16)).shape == (2, 7)
