"""DPC: what it changes in the training of two networks, its gradients, its recipe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom import fit
from stillroom.blocks import clean_probability, label_margins
from stillroom.check import check_method
from stillroom.codivide import Part
from stillroom.data import TensorSamples
from stillroom.data.augment import shift
from stillroom.data.batch import Batch
from stillroom.data.mixing import draw_batch_mixture
from stillroom.data.noise import corrupt_labels
from stillroom.data.stream import Stream
from stillroom.losses import calibrated_softmax, edl_loss
from stillroom.systems.labels.dpc import DPC, EDL, paper, recipe
from stillroom.systems.labels.dpc.recipe import (
    CIFAR10_CONFUSIONS,
    Setting,
    ShuffledDPC,
    SmallLossDPC,
)
from stillroom.training import Optim, Training
from tests.toys import batch, cloud, conv, mlp


def noisy(count=120, rate=0.4):
    inputs, labels = cloud(count)
    return TensorSamples(inputs, corrupt_labels(labels, 3, rate, seed=0)), labels


def pair(kind=DPC, **options):
    return kind(mlp(seed=0), mlp(seed=1), **{"warm_up_share": 0.5, "hidden": 16, **options})


def images():
    return Batch(torch.rand(10, 1, 8, 8), torch.arange(10) % 3)


@pytest.mark.parametrize(
    ("method", "data"),
    [
        (lambda: pair(), batch),
        (lambda: DPC(conv(), conv(seed=1), hidden=16, strong_augment=shift), images),
        (lambda: EDL(mlp()), batch),
    ],
)
def test_it_passes_the_checks(method, data):
    assert len(check_method(method(), data(), processes=False).passed) > 15


def parts(method, samples):
    """A trusted and an untrusted part, two equal views of each."""
    found = []
    for rows in (range(10), range(10, 20)):
        drawn = samples.batch(rows)
        found.append(Part((drawn.inputs, drawn.inputs), drawn.labels, torch.full((10,), 0.7)))
    return found


def gradients(term, method):
    named = dict(method.named_parameters())
    found = torch.autograd.grad(term, list(named.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None and gradient.abs().sum()}


def test_each_head_learns_from_its_own_part():
    samples, _ = noisy()
    method = pair()
    losses = method._learn(0, *parts(method, samples))
    own_head, second_head = "student.networks.0.2.weight", "heads.0.layers.3.weight"
    features = "student.networks.0.0.weight"
    labelled, unlabelled, prior = (gradients(losses[name], method) for name in ("labelled", "unlabelled", "prior"))
    assert {own_head, features} <= labelled
    assert not any(name.startswith("heads.") for name in labelled)
    assert {second_head, features} <= unlabelled
    assert not unlabelled & {own_head, "student.networks.0.2.bias"}
    assert own_head in prior
    assert not any(name.startswith(("heads.", "student.networks.1")) for name in prior)


def test_rows_are_learned_by_the_favourites_of_their_targets():
    method = pair()
    logits = torch.randn(6, 3, requires_grad=True)
    own, partner = torch.rand(6, 3).softmax(1), torch.rand(6, 3).softmax(1)
    loss = method.labelled_loss(logits, own, partner, torch.full((6,), 0.7))
    expected = 0.7 * edl_loss(logits, own.argmax(1)) + 0.3 * edl_loss(logits, partner.argmax(1))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, logits)[0], 3 * torch.autograd.grad(expected, logits)[0])
    plain = pair(gamma=1.0, kl_weight=0.0)
    torch.testing.assert_close(
        plain.warm_up_loss(logits, own.argmax(1)), edl_loss(logits, own.argmax(1), gamma=1.0, kl_weight=0.0)
    )


def test_samples_are_sorted_by_the_margins_of_the_first_head():
    samples, _ = noisy()
    method = pair()
    method.begin_training(Stream(samples, batch_size=12, seed=0))
    method.select(samples)
    for number, network in enumerate(method.student.networks):
        margins = label_margins(network(samples.batch(range(120)).inputs), samples.labels)
        torch.testing.assert_close(method.trusted(1 - number, samples.index), clean_probability(margins))
    logits = torch.randn(4, 3)
    assert torch.equal(method.probabilities(logits), calibrated_softmax(logits))


def test_it_ships_both_networks_without_their_second_heads():
    method = pair()
    assert {name.split(".")[0] for name, _ in method.product.named_parameters()} == {"networks"}
    inputs = torch.randn(5, 6)
    torch.testing.assert_close(method.product(inputs), sum(network(inputs) for network in method.student.networks))
    first, second = method.players().values()
    assert len(first) == len(second) == 4 + 4  # two layers of the network, two of its second head


def test_strong_views_are_drawn_close_to_the_weak_ones():
    data = TensorSamples(torch.rand(40, 1, 8, 8), torch.arange(40) % 3)
    method = DPC(conv(), conv(seed=1), hidden=8, strong_augment=shift, consistency_weight=3.0)
    method.begin_training(Stream(data, batch_size=8, seed=0))
    method.select(data)
    for memory in method.clean:
        memory.put(data.index, (torch.arange(40) < 20).float())
    trusted, others = method.draw(0)
    assert len(trusted.views) == 4
    assert torch.equal(trusted.views[0], trusted.views[1])  # the training itself augments nothing
    assert not torch.equal(trusted.views[2], trusted.views[0])
    losses = method._learn(0, trusted, others)
    assert float(losses["consistency"].detach()) > 0
    assert losses.weights["consistency"] == 3.0
    same = [Part((*part.views[:2], *part.views[:2]), part.labels, part.clean) for part in (trusted, others)]
    assert float(method.eval()._learn(0, *same)["consistency"].detach()) == pytest.approx(0, abs=1e-6)
    assert "consistency" not in pair()._learn(0, *parts(pair(), noisy()[0]))


def test_the_consistency_term_is_the_divergence_of_strong_from_weak_mixtures():
    data = TensorSamples(torch.rand(40, 1, 8, 8), torch.arange(40) % 3)
    method = DPC(conv(), conv(seed=1), hidden=8, strong_augment=shift, gamma=2.0).eval()
    weak, strong = (Part((a, b), data.labels[:12], torch.full((12,), 0.7)) for a, b in torch.rand(2, 2, 12, 1, 8, 8))
    trusted, others = (Part((*weak.views, *strong.views), weak.labels, weak.clean) for _ in range(2))
    torch.manual_seed(5)
    term = method._learn(0, trusted, others)["consistency"]

    torch.manual_seed(5)
    mixture = draw_batch_mixture(48)
    network, share, second = method.student.networks[0], float(mixture.share[0]), mixture.second

    def answers(part):
        inputs = torch.cat([*part.views, *part.views])
        return calibrated_softmax(network(share * inputs + (1 - share) * inputs[second]), gamma=2.0)

    p, q = answers(weak).detach(), answers(strong)
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(term, expected)
    weights = list(network.parameters())
    found, exact = (torch.autograd.grad(one, weights) for one in (term, expected))
    torch.testing.assert_close(found, exact)  # the weak side gets none


def test_margins_with_one_peak_are_sorted_without_a_mixture():
    samples, _ = noisy()
    data = samples.batch(range(120))
    judged = []
    for largest in (-3.0, float("inf")):
        method = pair(largest_kurtosis=largest)
        method.select(samples)
        margins = label_margins(method.student.networks[1](data.inputs), data.labels)
        expected = clean_probability(margins, largest_kurtosis=largest)
        torch.testing.assert_close(method.trusted(0, samples.index), expected)
        torch.testing.assert_close(method._judge(data)[1][0], expected)
        judged.append(expected)
    assert not torch.allclose(*judged)


def test_it_learns_the_right_labels_from_wrong_ones_and_resumes(tmp_path):
    samples, right = noisy(240, 0.5)
    optim = Optim("sgd", lr=0.05, schedule="constant")
    training = Training(epochs=12, batch_size=40, optimizer=optim, evaluate_every=25, keep="last")

    def run(folder, kind=DPC):
        method = pair(kind, warm_up_share=1 / 3)
        options = {"folder": tmp_path / folder, "resume": True, "trackers": (), "progress": False}
        return method, lambda: fit(method, samples, training, **options)

    class Stopping(DPC):
        def after_step(self, player):
            if self.clock.step == 58:
                raise InterruptedError

    whole, go = run("whole")
    go()
    inputs, labels = cloud(90, seed=1)
    assert float((whole.product(inputs).argmax(1) == labels).float().mean()) > 0.85
    trusted = whole.trusted(0, samples.index) > 0.5
    assert float((samples.labels == right)[trusted].float().mean()) > 0.8
    _, go = run("broken", Stopping)
    with pytest.raises(InterruptedError):
        go()
    resumed, go = run("broken")
    go()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_cannot_be_is_refused():
    first, second = mlp(seed=0), mlp(seed=1)
    for option, value, words in (
        ("gamma", 0.0, "gamma must be a number above 0, given 0"),
        ("kl_weight", -1, "kl_weight must be a number of 0 or more, given -1"),
        ("consistency_weight", -2, "consistency_weight must be a number of 0 or more, given -2"),
        ("clean_threshold", 1.5, r"clean_threshold must lie inside \(0, 1\), given 1.5"),
    ):
        with pytest.raises(ValueError, match=words):
            DPC(first, second, **{option: value})
    with pytest.raises(ValueError, match="no linear layer"):
        DPC(nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1))
    with pytest.raises(ValueError, match=r"2 or more classes, given \(4, 1\)"):
        EDL(nn.Linear(6, 1))(Batch(torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="1 or more labelled samples"):
        EDL(first)(Batch(torch.randn(4, 6)))


def test_the_controls_take_one_thing_away():
    samples, _ = noisy()
    plain, shuffled = pair(), pair(ShuffledDPC)
    for method in (plain, shuffled):
        method.begin_training(Stream(samples, batch_size=12, seed=0))
        method.select(samples)
    for number in range(2):
        ours, theirs = (method.trusted(number, samples.index) for method in (plain, shuffled))
        assert not torch.equal(ours, theirs)
        assert torch.equal(ours.sort().values, theirs.sort().values)
    logits, labels = torch.randn(5, 3), torch.arange(5) % 3
    by_loss = pair(SmallLossDPC).cleanness(logits, labels)
    torch.testing.assert_close(by_loss, -edl_loss(logits, labels, reduction="none"))


def test_labels_are_exchanged_in_training_alone():
    setting = Setting("digits", 0.5, None, "mlp-4", Training(steps=1), Training(steps=1))
    splits, right = setting.load(3, tiny=True)
    wrong = float((splits.train.labels != right).float().mean())
    assert 0.3 < wrong <= 0.5
    untouched, _ = Setting("digits", 0.0, None, "mlp-4", Training(steps=1), Training(steps=1)).load(3, tiny=True)
    assert torch.equal(untouched.train.labels, right)
    assert torch.equal(untouched.test.labels, splits.test.labels)


def test_the_recipe_runs(tmp_path):
    found = recipe().tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    arms = found["arms"]
    assert len(arms) == 8
    assert {name for name, arm in arms.items() if arm["role"] == "control"} == {
        *("cross-entropy, right labels", "edl, right labels", "shuffled"),
    }
    assert {"accuracy", "selection_auc", "noise_rate", "trusted", "trusted_right"} < set(arms["dpc"]["metrics"])
    assert "selection_auc" not in arms["edl, right labels"]["metrics"]
    assert arms["edl, right labels"]["metrics"]["noise_rate"] == [0.0]


def test_the_papers_settings_run(tmp_path):
    data = torch.rand(300, 3, 8, 8), torch.arange(300) % 10
    found = (
        paper(data, network="conv-4", mapping=CIFAR10_CONFUSIONS, rate=0.4, strong_augment="shift")
        .tiny()
        .run(seeds=(100,), folder=tmp_path / "run", progress=False)
    )
    assert set(found["arms"]) == {"cross-entropy", "dividemix", "dpc"}
    arm = paper().arms["dpc"].keywords
    training, options = arm["setting"].pair_training, arm["method"].keywords
    assert (training.epochs, training.batch_size, training.optimizer.lr) == (300, 64, 0.02)
    assert [training.optimizer.rate(epoch, 300) for epoch in (149, 150)] == pytest.approx([0.02, 0.002])
    assert options["warm_up_share"] == pytest.approx(10 / 300)
    assert options["unlabelled_weight"] == 25.0
