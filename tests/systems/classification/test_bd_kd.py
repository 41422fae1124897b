"""BD-KD: the method and its recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.baselines import alone
from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.experiment.run import Experiment
from stillroom.losses import entropy_gap, two_way_kd_loss
from stillroom.online import MutualLearning
from stillroom.systems.classification.bd_kd import BDKD, Inverted, ReverseOnly, Setting, paper, recipe
from stillroom.task import Classification
from stillroom.training import Training
from tests.systems.classification.toys import ConvNet, accuracy, problem


def networks(classes=4):
    return nn.Linear(6, classes), nn.Linear(6, classes)


def batch(samples=12):
    return Batch(torch.randn(samples, 6), torch.arange(samples) % 4)


@pytest.mark.parametrize("options", [{}, {"update": "alternating", "softness": 0.1}])
def test_it_passes_the_checks(options):
    peers = [ConvNet(3)] if options else []
    method = BDKD(ConvNet(2), ConvNet(4), peers=peers, pair_weight=float(bool(peers)), **options)
    assert len(check_method(method, problem(10), processes=False).passed) > 15


def test_the_student_balances_and_the_teacher_follows():
    student, teacher = networks()
    data = batch()
    turns = dict(BDKD(student, teacher, temperature=2.0, kd_weight=0.5, boost=3.0).turns(data))
    ours, theirs = student(data.inputs), teacher(data.inputs)
    less_certain = entropy_gap(ours, theirs) > 0
    assert 0 < int(less_certain.sum()) < len(data)
    forward, reverse = torch.where(less_certain, 1.0, 3.0), torch.where(less_certain, 3.0, 1.0)
    balance = two_way_kd_loss(ours, theirs, forward, reverse, temperature=2.0)
    torch.testing.assert_close(turns["student"].total, F.cross_entropy(ours, data.labels) + 0.5 * balance)
    back = F.kl_div((theirs / 2).log_softmax(1), (ours / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(turns["teacher"].total, F.cross_entropy(theirs, data.labels) + 0.5 * 4 * back)
    torch.testing.assert_close(turns["student"]["less_certain"], less_certain.float().mean())


def test_the_teachers_gradient_is_that_of_mutual_learning():
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64).requires_grad_()
    method = BDKD(*networks(), temperature=2.0)
    losses = method.losses_of("teacher", {"student": student, "teacher": teacher}, Batch(torch.zeros(5, 6)))
    (gradient,) = torch.autograd.grad(3 * losses.total, teacher)
    expected = 3 * 4 * ((teacher / 2).softmax(1) - (student / 2).softmax(1)) / 2 / 5
    torch.testing.assert_close(gradient, expected.detach())


def test_no_gradient_crosses_over_or_flows_through_the_weights():
    student, teacher = (torch.randn(6, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    method, data = BDKD(*networks(), boost=3.0, softness=0.2), Batch(torch.zeros(6, 6))
    own = method.losses_of("student", {"student": student, "teacher": teacher}, data).total
    assert torch.autograd.grad(own, teacher, allow_unused=True, retain_graph=True) == (None,)
    weights = method.weights(entropy_gap(student, teacher))
    fixed = two_way_kd_loss(student, teacher, *weights, temperature=3.0)
    torch.testing.assert_close(torch.autograd.grad(own, student)[0], torch.autograd.grad(fixed, student)[0])
    back = method.losses_of("teacher", {"student": student, "teacher": teacher}, data).total
    assert torch.autograd.grad(back, student, allow_unused=True) == (None,)


def test_the_controls_change_the_weights_alone():
    gap = torch.tensor([-0.5, 0.7])
    forward, reverse = BDKD(*networks(), boost=2.0).weights(gap)
    assert torch.equal(torch.stack(Inverted(*networks(), boost=2.0).weights(gap)), torch.stack([reverse, forward]))
    assert torch.stack(ReverseOnly(*networks()).weights(gap)).tolist() == [[0, 0], [1, 1]]
    assert torch.stack(BDKD(*networks(), boost=1.0).weights(gap)).tolist() == [[1, 1], [1, 1]]


def test_the_forward_divergence_alone_is_mutual_learning():
    class ForwardOnly(BDKD):
        def weights(self, gap):
            return torch.ones_like(gap), torch.zeros_like(gap)

    student, teacher = networks()
    data = batch()
    ours, theirs = (dict(kind(student, teacher, temperature=3.0).turns(data)) for kind in (ForwardOnly, MutualLearning))
    for player in ("student", "teacher"):
        torch.testing.assert_close(ours[player].total, theirs[player].total)


def test_several_students_share_a_teacher():
    data, peer = batch(), nn.Linear(6, 4)
    student, teacher = networks()
    turns = dict(BDKD(student, teacher, peers=[peer], pair_weight=0.5).turns(data))
    alone = [dict(BDKD(one, teacher).turns(data)) for one in (student, peer)]
    mean = (alone[0]["teacher"]["teacher_balance"] + alone[1]["teacher"]["teacher_balance"]) / 2
    torch.testing.assert_close(turns["teacher"]["teacher_balance"], mean)
    torch.testing.assert_close(turns["peer-1"]["peer-1_balance"], alone[1]["student"]["balance"])
    pairs = F.kl_div(
        (student(data.inputs) / 3).log_softmax(1), (peer(data.inputs) / 3).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(turns["student"]["pairs"], 9 * pairs)
    torch.testing.assert_close(turns["student"].total, alone[0]["student"].total + 0.5 * turns["student"]["pairs"])


def test_both_networks_learn():
    method, data = BDKD(ConvNet(2), ConvNet(6)), problem(50)
    optimizers = {name: torch.optim.Adam(group, lr=0.01) for name, group in method.players().items()}
    assert accuracy(method.product) < 0.5
    for _ in range(60):
        for player, losses in method.turns(data):
            losses.total.backward()
            optimizers[player].step()
            method.zero_grad()
    assert accuracy(method.product) > 0.6
    assert accuracy(method.networks["teacher"]) > 0.6


def test_what_cannot_be_is_refused():
    student, teacher = networks()
    for option, value, words in (
        ("boost", 0.5, r"boost must be a number of 1 or more, given 0\.5"),
        ("temperature", 0, r"\btemperature must be a number above 0, given 0"),
        ("entropy_temperature", -1, "entropy_temperature must be a number above 0, given -1"),
        ("kd_weight", -2, "kd_weight must be a number of 0 or more, given -2"),
        ("softness", -1, "softness must be a number of 0 or more, given -1"),
        ("pair_weight", -1, "pair_weight must be a number of 0 or more, given -1"),
    ):
        with pytest.raises(ValueError, match=words):
            BDKD(student, teacher, **{option: value})
    with pytest.raises(ValueError, match="same module"):
        BDKD(student, student)
    with pytest.raises(ValueError, match=r"\(12, 4\).*\(12, 5\).*same classes"):
        list(BDKD(student, nn.Linear(6, 5)).turns(batch()))


def test_so_many_labels_are_exchanged_and_the_reported_ones_stay():
    def setting(noise):
        return Setting("digits", 200, 50, noise, "mlp-4", "mlp-4", Training(steps=1))

    clean, noisy = setting(0.0).load(3, False), setting(0.25).load(3, False)
    assert int((clean.train.labels != noisy.train.labels).sum()) == 50
    assert torch.equal(clean.test.labels, noisy.test.labels)
    assert torch.equal(setting(0.25).load(3, False).train.labels, noisy.train.labels)


def test_it_is_an_arm_beside_other_methods_whose_teacher_it_goes_on_training(tmp_path):
    experiment = Experiment(
        task=Classification("digits"),
        student="mlp-4",
        teacher="mlp-8",
        teacher_training=Training(),
        arms={"alone": alone, "bd-kd": BDKD},
    )
    found = experiment.tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert set(found["arms"]) == {"teacher", "alone", "bd-kd"}


def test_the_recipe_runs(tmp_path):
    found = recipe().tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert found["metric"] == "calibration_error"
    assert set(found["arms"]) == {
        *("alone", "mutual", "bd-kd", "reverse only", "symmetric", "bd-kd, twice the boost", "inverted"),
        "alone, tempered",
    }
    assert found["arms"]["inverted"]["role"] == found["arms"]["symmetric"]["role"] == "control"
    assert {"entropy_gap", "less_certain", "teacher_accuracy"} < set(found["arms"]["bd-kd"]["metrics"])


def test_the_papers_settings_run(tmp_path: Path):
    inputs, labels = torch.rand(300, 3, 8, 8), torch.arange(300) % 5
    found = (
        paper((inputs, labels), student="conv-4", teacher="conv-8")
        .tiny()
        .run(seeds=(100,), folder=tmp_path / "run", progress=False)
    )
    assert set(found["arms"]) == {"alone", "mutual", "bd-kd"}
    training = paper().arms["bd-kd"].keywords["setting"].training
    assert (training.epochs, training.batch_size, training.optimizer.lr) == (240, 64, 0.05)
    assert not training.optimizer.nesterov
    assert [training.optimizer.rate(epoch, 240) for epoch in (149, 150, 180, 210)] == pytest.approx(
        [0.05, 0.005, 5e-4, 5e-5]
    )
