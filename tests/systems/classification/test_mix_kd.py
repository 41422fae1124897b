"""MIX-KD: its methods and its recipe."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.baselines import KD
from stillroom.blocks import Cached
from stillroom.check import check_method
from stillroom.data import draw_mixture
from stillroom.data.batch import Batch
from stillroom.losses import unit_deviation_kd_loss, unit_deviation_logits
from stillroom.systems.classification.mix_kd import MixKD, Mixup, MixupKD, paper, recipe
from tests.systems.classification.toys import ConvNet, accuracy, problem, train, trained_teacher


class Remembers(nn.Module):
    """Keeps what it was asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, inputs):
        self.seen.append(inputs)
        return self.network(inputs)


@pytest.mark.parametrize("kind", [Mixup, MixupKD, MixKD])
def test_they_pass_the_checks(kind):
    report = check_method(kind(ConvNet(2), ConvNet(4)), problem(10), processes=False)
    assert len(report.passed) > 15


def test_the_losses_are_those_of_the_divided_logits_on_one_mixture():
    student, teacher, batch = nn.Linear(6, 4), nn.Linear(6, 4), Batch(torch.randn(12, 6), torch.arange(12) % 4)
    method = MixKD(student, teacher, label_weight=0.3, distill_weight=0.6, mixed_share=0.5, beta=0.4)
    torch.manual_seed(7)
    losses = method(batch)
    torch.manual_seed(7)
    mixture = draw_mixture(12, beta=0.4, mixed_share=0.5)
    inputs, soft = mixture.apply(batch.inputs), mixture.labels(batch.labels, 4)
    ours, theirs = student(inputs), teacher(inputs)
    label = F.cross_entropy(unit_deviation_logits(ours), soft)
    torch.testing.assert_close(losses.total, 0.3 * label + 0.6 * unit_deviation_kd_loss(ours, theirs))
    assert torch.equal(losses.outputs, ours)
    assert int(mixture.mixed.sum()) == 6


def test_teacher_and_student_see_the_same_mixed_inputs():
    student, teacher = Remembers(ConvNet(2)), Remembers(ConvNet(2))
    MixKD(student, teacher, mixed_share=1.0)(problem(8))
    assert torch.equal(student.seen[0], teacher.seen[0])
    assert not torch.equal(student.seen[0].sort(0).values, problem(8).inputs.sort(0).values)


def test_nothing_mixed_is_distillation_without_mixup():
    student, teacher, batch = ConvNet(2).eval(), ConvNet(4), problem(20)
    parameters = list(student.parameters())
    plain = KD(student, teacher, temperature=3.0)(batch).total
    permuted = MixupKD(student, teacher, temperature=3.0, mixed_share=0.0)(batch).total
    torch.testing.assert_close(permuted, plain)
    for one, other in zip(
        torch.autograd.grad(permuted, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_every_batch_is_mixed_anew_and_by_the_seed():
    method, batch = Mixup(ConvNet(2).eval()), problem(10)
    torch.manual_seed(0)
    first, second = method(batch).total.item(), method(batch).total.item()
    torch.manual_seed(0)
    assert method(batch).total.item() == first != second


def test_the_defaults_are_the_papers():
    method = MixKD(nn.Linear(2, 3), nn.Linear(2, 3))
    assert (method.label_weight, method.distill_weight, method.beta, method.mixed_share) == (0.1, 0.9, 1.0, 0.1)
    assert not method.official_sampling
    assert MixupKD(nn.Linear(2, 3), nn.Linear(2, 3)).temperature == 4.0


def test_a_student_learns_from_a_teacher_in_a_plain_loop():
    method = MixKD(ConvNet(2), trained_teacher())
    assert accuracy(method.product) < 0.5
    train(method, problem(50))
    assert accuracy(method.product) > 0.6


def test_what_cannot_be_is_refused():
    student, teacher, batch = ConvNet(2), ConvNet(2), problem(10)
    with pytest.raises(ValueError, match="beta must be a number above 0, given 0"):
        MixKD(student, teacher, beta=0)
    with pytest.raises(ValueError, match=r"mixed_share must lie in \[0, 1\], given 1\.1"):
        Mixup(student, mixed_share=1.1)
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        MixupKD(student, teacher, temperature=0)
    with pytest.raises(ValueError, match="distill_weight must be a number of 0 or more, given -1"):
        MixKD(student, teacher, distill_weight=-1)
    with pytest.raises(ValueError, match="a Cached, which answers from memory, but it has to see mixed inputs"):
        MixKD(student, Cached(teacher, size=10))
    with pytest.raises(ValueError, match="3 classes or more, given 2"):
        MixKD(ConvNet(2, classes=2), ConvNet(2, classes=2))(batch.replace(labels=batch.labels % 2))
    MixKD(ConvNet(2, classes=2), ConvNet(2, classes=2), allow_two_classes=True)(batch.replace(labels=batch.labels % 2))
    with pytest.raises(ValueError, match=r"only float values can be mixed, given torch\.uint8"):
        MixKD(student, teacher)(batch.replace(inputs=(255 * batch.inputs).to(torch.uint8)))
    with pytest.raises(ValueError, match="MixKD mixes labels and needs one for every sample, but there are none"):
        MixKD(student, teacher)(batch.replace(labels=None))
    with pytest.raises(ValueError, match="labels from -100 to 4"):
        MixKD(student, teacher)(batch.replace(labels=torch.where(torch.arange(10) < 2, -100, batch.labels)))


def test_the_recipe_runs(tmp_path):
    found = recipe().tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert len(found["arms"]) == 11
    assert found["arms"]["mix-kd, constant teacher"]["role"] == "control"
    assert found["arms"]["mix-kd"]["role"] == "method"
    assert {"log_entropy", "logit_deviation"} < set(found["arms"]["teacher, mixed"]["metrics"])
    assert {"tuned_nll_gain", "accuracy_gain"} < set(found["arms"]["temperatures, mixed teacher"]["metrics"])
    trained = found["arms"]["mix-kd"]["metrics"]
    assert trained["nll_trained"] == trained["divided_nll"] != trained["nll"]


def test_the_papers_settings_run(tmp_path):
    inputs, labels = torch.rand(300, 3, 8, 8), torch.arange(300) % 5
    experiment = paper((inputs, labels), student="conv-4", teacher="conv-8").tiny()
    found = experiment.run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert len(found["arms"]) == 5
    training = paper().arms["mix-kd"].keywords["setting"].training
    assert (training.epochs, training.batch_size, training.optimizer.lr, training.keep) == (240, 64, 0.05, "last")
    assert not training.optimizer.nesterov
