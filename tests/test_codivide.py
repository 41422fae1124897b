"""Two networks that sort each other's samples: selection, draws, steps, resuming."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom import fit
from stillroom.check import check_method
from stillroom.codivide import DivideMix
from stillroom.data import TensorSamples
from stillroom.data.augment import shift
from stillroom.data.batch import Batch
from stillroom.data.noise import corrupt_labels
from stillroom.data.stream import Stream
from stillroom.method import Clock
from stillroom.training import Optim, Training
from tests.toys import batch, cloud, mlp


def noisy(count=120, rate=0.4):
    inputs, labels = cloud(count)
    return TensorSamples(inputs, corrupt_labels(labels, 3, rate, seed=0)), labels


def pair(kind=DivideMix, **options):
    return kind(mlp(seed=0), mlp(seed=1), **{"warm_up_share": 0.5, **options})


def ready(method, samples, *, batch_size=12, augment=None):
    method.begin_training(Stream(samples, batch_size=batch_size, seed=3, augment=augment))
    return method


def test_it_passes_the_checks():
    assert len(check_method(pair(), batch(), processes=False).passed) > 15


def test_each_network_learns_from_what_the_other_trusts():
    samples, _ = noisy()
    method = ready(pair(), samples)
    judged = torch.zeros(2, len(samples))
    judged[0, :30] = 0.9  # the first network trusts the first thirty samples, the second the last thirty
    judged[1, -30:] = 0.8
    for memory, values in zip(method.clean, judged, strict=True):
        memory.put(samples.index, values)
    first, others = method.draw(0)
    assert bool((first.clean == judged[1].max()).all())
    assert rows_of(samples, first) <= set(range(90, 120))
    assert not rows_of(samples, others) & set(range(90, 120))
    second, _ = method.draw(1)
    assert rows_of(samples, second) <= set(range(30))
    assert torch.equal(method.trusted(0, samples.index), judged[1])


def test_swapping_the_judgements_swaps_what_is_learned():
    samples, _ = noisy()
    losses = []
    for order in ((0, 1), (1, 0)):
        method = ready(DivideMix(mlp(seed=0), mlp(seed=0)), samples)
        judged = torch.rand(2, len(samples), generator=torch.Generator().manual_seed(0))
        for memory, number in zip(method.clean, order, strict=True):
            memory.put(samples.index, judged[number])
        method.selected_at.fill_(0)
        torch.manual_seed(0)
        losses.append(float(method(samples.batch(range(4))).total.detach()))
    assert losses[0] != losses[1]


def rows_of(samples, part):
    """The numbers of the samples in a part, found by their inputs."""
    every = samples.batch(range(len(samples))).inputs
    return {int((every == row).all(1).nonzero()[0]) for row in part.views[0]}


def test_a_kind_comes_whole_before_it_comes_again():
    samples, _ = noisy()
    method = ready(pair(), samples, batch_size=10)
    clean = torch.zeros(120)
    clean[:30] = 1
    for memory in method.clean:
        memory.put(samples.index, clean)
    drawn = [rows_of(samples, method.draw(0)[0]) for _ in range(6)]
    assert set.union(*drawn[:3]) == set.union(*drawn[3:]) == set(range(30))
    assert [len(rows) for rows in drawn] == [10] * 6


def test_the_views_come_from_the_trainings_own_augmentation():
    images = TensorSamples(torch.rand(40, 1, 6, 6), torch.arange(40) % 3)
    plain, augmented = (ready(pair(), images, augment=augment) for augment in (None, shift))
    for method in (plain, augmented):
        for memory in method.clean:
            memory.put(images.index, (torch.arange(40) < 20).float())
    part, _ = plain.draw(0)
    assert torch.equal(*part.views)
    part, _ = augmented.draw(0)
    assert not torch.equal(*part.views)
    again = ready(pair(), images, augment=shift)
    again.load_state_dict(augmented.state_dict())
    for one, other in zip(augmented.draw(0), again.draw(0), strict=True):
        assert all(torch.equal(view, twin) for view, twin in zip(one.views, other.views, strict=True))


def test_the_sorting_sees_every_sample_as_it_is_once_per_epoch():
    images = TensorSamples(torch.rand(36, 1, 6, 6), torch.arange(36) % 3)
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(36, 3)

        def forward(self, inputs):
            if not self.training and len(inputs) == 36:
                seen.append(inputs)
            return self.linear(inputs.flatten(1))

    method = DivideMix(Watched(), Watched(), warm_up_share=0.5)
    fit(method, images, Training(epochs=6, batch_size=12, augment="shift"), progress=False)
    assert len(seen) == 2 * 3  # both networks, three epochs after the warm-up
    assert all(torch.equal(inputs, images.batch(range(36)).inputs) for inputs in seen)
    assert int(method.selections) == 3


def test_the_step_is_what_the_paper_says():
    """One step rebuilt from its equations, with the same random draws."""
    samples, _ = noisy()
    method = ready(pair(unlabelled_weight=10.0, ramp_epochs=8.0), samples)
    method.select(samples)
    method.selected_at.fill_(2)
    method.stage_clock = Clock(0, 2.0, 0.5)
    trusted, others = method.draw(0)
    torch.manual_seed(7)
    ours = method._learn(0, trusted, others)

    from stillroom.data.mixing import draw_batch_mixture

    torch.manual_seed(7)
    mixture = draw_batch_mixture(2 * len(trusted) + 2 * len(others))
    net, other = method.student.networks

    def squared(p):
        return p.square() / p.square().sum(1, keepdim=True)

    def mean(networks, part):
        return torch.stack([n(v).softmax(1) for n in networks for v in part.views]).mean(0).detach()

    w = trusted.clean[:, None]
    x = squared(w * F.one_hot(trusted.labels, 3) + (1 - w) * mean([net], trusted))
    u = squared(mean([net, other], others))
    inputs, targets = torch.cat([*trusted.views, *others.views]), torch.cat([x, x, u, u])
    share, kept = float(mixture.share[0]), 2 * len(trusted)
    logits = net(share * inputs + (1 - share) * inputs[mixture.second])
    wanted = share * targets + (1 - share) * targets[mixture.second]
    labelled = -(wanted[:kept] * logits[:kept].log_softmax(1)).sum(1).mean()
    unlabelled = ((logits[kept:].softmax(1) - wanted[kept:]) ** 2).mean()
    prior = (torch.full((3,), 1 / 3) * (1 / 3 / logits.softmax(1).mean(0)).log()).sum()
    torch.testing.assert_close(ours["labelled"], labelled)
    torch.testing.assert_close(ours["unlabelled"], unlabelled)
    torch.testing.assert_close(ours["prior"], prior)
    torch.testing.assert_close(ours.total, labelled + 10 * 2 / 8 * unlabelled + prior)


def test_the_other_network_stays_in_eval_mode_and_goes_back():
    samples, _ = noisy()
    modes = []

    class Noticing(nn.Linear):
        def forward(self, inputs):
            modes.append((self.name, self.training, torch.is_grad_enabled()))
            return super().forward(inputs)

    networks = Noticing(6, 3), Noticing(6, 3)
    networks[0].name, networks[1].name = "own", "other"
    method = ready(DivideMix(*networks), samples)
    method.select(samples)
    method.selected_at.fill_(0)
    modes.clear()
    next(method.turns(samples.batch(range(4))))
    assert {mode for mode in modes if mode[0] == "other"} == {("other", False, False)}
    assert {mode for mode in modes if mode[0] == "own"} == {("own", True, False), ("own", True, True)}
    assert networks[1].training


@pytest.mark.parametrize("trusted", [0.0, 1.0])
def test_it_goes_on_where_one_kind_is_missing(trusted):
    samples, _ = noisy()
    method = ready(pair(), samples)
    for memory in method.clean:
        memory.put(samples.index, torch.full((120,), trusted))
    method.selected_at.fill_(0)
    for _, losses in method.turns(samples.batch(range(12))):
        assert {name.removeprefix("second_") for name in losses} == {"labelled" if trusted else "unlabelled", "prior"}
        losses.total.backward()


@pytest.mark.parametrize("of_trusted", [1, 11])
def test_a_single_sample_of_a_kind_is_left_out_so_that_batch_norm_goes_on(of_trusted):
    samples, _ = noisy()
    networks = [nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) for _ in range(2)]
    method = ready(DivideMix(*networks), samples)
    clean = torch.zeros(120)
    clean[: 120 - 1 if of_trusted > 1 else 1] = 1
    for memory in method.clean:
        memory.put(samples.index, clean)
    method.selected_at.fill_(0)
    for _, losses in method.turns(samples.batch(range(12))):
        kept = "labelled" if of_trusted > 1 else "unlabelled"
        assert {name.removeprefix("second_") for name in losses} == {kept, "prior"}
        losses.total.backward()


def test_the_warm_up_may_reward_uncertainty():
    samples, _ = noisy()
    method = ready(pair(entropy_weight=0.5), samples)
    method.enter_stage(method.stages()[0])
    data = samples.batch(range(12))
    for number, (_, losses) in enumerate(method.turns(data)):
        p = method.student.networks[number](data.inputs).softmax(1)
        expected = F.nll_loss(p.log(), data.labels) + 0.5 * (p * p.log()).sum(1).mean()
        torch.testing.assert_close(losses.total, expected)


def test_it_resumes_bit_for_bit(tmp_path):
    samples, _ = noisy()
    training = Training(
        epochs=6, batch_size=12, evaluate_every=7, optimizer=Optim("sgd", lr=0.05, schedule="constant"), keep="last"
    )

    def run(folder, stop=None):
        method = pair(Stopping) if stop else pair()
        method.stop = stop
        return method, lambda: fit(method, samples, training, folder=folder, resume=True, trackers=(), progress=False)

    class Stopping(DivideMix):
        def after_step(self, player):
            if self.clock.step == self.stop:
                raise InterruptedError

    whole, go = run(tmp_path / "whole")
    go()
    for stop in (17, 45, 53):  # in the warm-up, within an epoch after it, in another one
        _, go = run(tmp_path / "broken", stop)
        with pytest.raises(InterruptedError):
            go()
    resumed, go = run(tmp_path / "broken")
    go()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_it_learns_the_right_labels_from_wrong_ones():
    samples, right = noisy(240, 0.5)
    training = Training(epochs=12, batch_size=40, optimizer=Optim("sgd", lr=0.05, schedule="constant"), keep="last")
    method = pair(warm_up_share=1 / 3)
    product = fit(method, samples, training, progress=False).product
    inputs, labels = cloud(90, seed=1)
    assert float((product(inputs).argmax(1) == labels).float().mean()) > 0.85
    trusted = method.trusted(0, samples.index) > 0.5
    clean = samples.labels == right
    assert float(clean[trusted].float().mean()) > float(clean.float().mean()) + 0.15
    torch.testing.assert_close(product(inputs), sum(network(inputs) for network in method.student.networks))


def test_what_cannot_be_is_refused():
    first, second = mlp(seed=0), mlp(seed=1)
    for value in (0.0, 1.0, -0.2, math.nan):
        with pytest.raises(ValueError, match=rf"clean_threshold must lie inside \(0, 1\), given {value}"):
            DivideMix(first, second, clean_threshold=value)
    with pytest.raises(ValueError, match=r"warm_up_share must lie inside \(0, 1\), given 1"):
        DivideMix(first, second, warm_up_share=1.0)
    with pytest.raises(ValueError, match="sharpening must be a number above 0, given 0"):
        DivideMix(first, second, sharpening=0)
    with pytest.raises(ValueError, match="unlabelled_weight must be a number of 0 or more, given -1"):
        DivideMix(first, second, unlabelled_weight=-1)
    with pytest.raises(ValueError, match="same module"):
        DivideMix(first, first)
    with pytest.raises(TypeError, match=r"second_network must be a torch.nn.Module, given str"):
        DivideMix(first, "resnet20")
    with pytest.raises(ValueError, match="0 samples to sort"):
        DivideMix(first, second).select(TensorSamples(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"call begin_training\(stream\) first"):
        DivideMix(first, second).draw(0)
    with pytest.raises(ValueError, match="1 or more labelled samples"):
        next(DivideMix(first, second).turns(Batch(torch.zeros(3, 6))))
