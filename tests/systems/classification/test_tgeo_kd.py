"""TGeo-KD: the state, the controller, its look-ahead step, and the recipe."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.baselines import alone
from stillroom.bilevel import hypergradient
from stillroom.blocks import Frozen, SampleScores
from stillroom.check import check_method
from stillroom.data import TensorSamples
from stillroom.data.batch import Batch
from stillroom.data.samples import Splits
from stillroom.experiment.arm import Context
from stillroom.experiment.run import Experiment
from stillroom.fit import fit
from stillroom.losses import blended_kd_loss, cross_entropy, kd_loss
from stillroom.systems.classification.tgeo_kd import (
    WLSKD,
    Controller,
    FrozenController,
    ShuffledAlphas,
    TGeoKD,
    geometry_state,
    paper,
    recipe,
    state_width,
)
from stillroom.systems.classification.tgeo_kd.geometry import PARTS
from stillroom.systems.classification.tgeo_kd.methods import keep_apart
from stillroom.systems.classification.tgeo_kd.recipe import World, _shares, run_best_alpha
from stillroom.task import Classification
from stillroom.training import Optim, Training
from tests.systems.classification.toys import ConvNet, accuracy, problem, trained_teacher


def samples(size=60, start=0, seed=0):
    batch = problem(size, seed=seed)
    return TensorSamples(batch.inputs, batch.labels, torch.arange(start, start + size))


def method(kind=TGeoKD, train=60, **options):
    given = {"train_samples": samples(train), "held_out": samples(20, 1000, seed=3), **options}
    return kind(ConvNet(2), ConvNet(4), **given)


def linear(kind=TGeoKD, **options):
    """Linear networks in float64, so that differences are exact enough."""
    draw = torch.Generator().manual_seed(2)
    inputs, held = torch.randn(30, 6, generator=draw), torch.randn(12, 6, generator=draw)
    given = {
        "train_samples": TensorSamples(inputs, torch.arange(30) % 4),
        "held_out": TensorSamples(held, torch.arange(12) % 4, torch.arange(100, 112)),
        "look_ahead_rate": 0.3,
        **options,
    }
    made = kind(nn.Linear(6, 4), nn.Linear(6, 4), **given).double()
    return made, Batch(inputs[:8].double(), torch.arange(8) % 4, torch.arange(8))


# ---- the state and the controller ------------------------------------------------------------------------------------


def test_the_state_by_hand():
    s, t, a = (torch.tensor([row]) for row in ([0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2]))
    labels = torch.tensor([1])
    corners = [0.5, 0.3, 0.2, 0.1, 0.8, 0.1, 0, 1, 0, 0.2, 0.6, 0.2]
    edges = [0.09, 0.09, 0.0, 0.25, 0.49, 0.04, 0.16, 0.25, 0.01, 0.01, 0.04, 0.01, 0.04, 0.16, 0.04]
    found = geometry_state(s, t, labels, a)
    torch.testing.assert_close(found, torch.tensor([[*corners, *edges]]))
    angles = [0.15, 0.21, 0.0, 0.2, 0.35, 0.02]  # (A - S)(G - S), (T - S)(G - S)
    parts = {"probabilities": corners, "distances": edges[:9], "angles": angles}
    for state in set(PARTS) - {"probabilities+distances"}:
        expected = [value for part in PARTS[state] for value in parts[part]]
        torch.testing.assert_close(geometry_state(s, t, labels, a, state=state), torch.tensor([expected]))
    assert [state_width(state, 3) // 3 for state in PARTS] == [9, 4, 3, 2, 5, 6, 9]


def test_no_gradient_flows_through_the_state_to_the_student():
    made, batch = linear()
    logits = made.student(batch.inputs)
    alphas = made.alphas(logits, made.teacher(batch), batch.labels)
    assert torch.autograd.grad(alphas.sum(), logits, allow_unused=True, retain_graph=True) == (None,)
    assert all(g is not None for g in torch.autograd.grad(alphas.sum(), list(made.controller.parameters())))


def test_the_class_average_is_over_all_training_samples_not_over_the_batch():
    made, batch = linear()
    made(batch[:1])
    every = made.trained_on
    said = made.teacher(every.batch(torch.arange(len(every))).inputs.double()).softmax(1)
    of_class = said[every.labels == 0].mean(0)
    torch.testing.assert_close(made.averages(torch.tensor([0]))[0], of_class)
    assert not torch.allclose(of_class, made.teacher(batch)[0].softmax(0))


def test_the_controllers_limits_and_scale():
    controller, state = Controller(6, limits=(0.01, 0.99)), 300 * torch.randn(50, 6)
    found = controller(state).detach()
    assert (float(found.min()), float(found.max())) == pytest.approx((0.01, 0.99))
    scaled = Controller(6, scale=300.0, limits=(0.01, 0.99))
    scaled.load_state_dict(controller.state_dict())
    torch.testing.assert_close(scaled(state / 300).detach(), found)


# ---- the two turns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward_mode", [True, False])
def test_the_controllers_gradient_is_that_of_differences(forward_mode):
    made, batch = linear(forward_mode=forward_mode)
    losses = made.look_ahead(batch)
    assert list(losses) == ["held_out"]
    weight = made.controller.layers[0].weight
    (gradient,) = torch.autograd.grad(3 * losses.total, weight)

    def after_a_step():
        """What torch's own SGD makes of the student's loss."""
        student = copy.deepcopy(made.student)
        logits = student(batch.inputs)
        with torch.no_grad():
            alphas = made.alphas(logits, made.teacher(batch), batch.labels)
        optimizer = torch.optim.SGD(student.parameters(), 0.3)
        blended_kd_loss(logits, made.teacher(batch), batch.labels, alphas, temperature=4.0).backward()
        optimizer.step()
        held = made.held_out.batch(0)
        return float(F.cross_entropy(student(held.inputs.double()), held.labels).detach())

    assert float(losses["held_out"].detach()) == pytest.approx(after_a_step())
    largest = [int(place) for place in torch.unravel_index(gradient.abs().argmax(), gradient.shape)]
    ends = []
    for nudge in (1e-5, -2e-5):
        weight.data[tuple(largest)] += nudge
        ends.append(after_a_step())
    difference = (ends[0] - ends[1]) / 2e-5
    assert float(gradient[tuple(largest)]) / 3 == pytest.approx(difference, rel=1e-4)


def test_both_ways_and_autograd_from_the_weights_agree():
    (made, batch), (other, _) = linear(), linear(forward_mode=False)
    other.load_state_dict(made.state_dict())
    other.teacher.network.load_state_dict(made.teacher.network.state_dict())
    gradients = [
        torch.autograd.grad(one.look_ahead(batch).total, list(one.controller.parameters())) for one in (made, other)
    ]
    held = made.held_out.batch(0)
    teacher_logits = made.teacher(batch)

    def lower(student):
        logits = student(batch.inputs)
        alphas = made.alphas(logits, teacher_logits, batch.labels)
        distill = kd_loss(logits, teacher_logits, temperature=4.0, reduction="none")
        return (alphas * distill + (1 - alphas) * cross_entropy(logits, batch.labels, reduction="none")).mean()

    def upper(student):
        return cross_entropy(student(held.inputs.double()), held.labels)

    through = hypergradient(made.student, lower, upper, list(made.controller.parameters()), rate=0.3)
    for first, second, third in zip(*gradients, through.gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(first, third, rtol=1e-8, atol=1e-12)


def test_one_turn_moves_the_controller_and_a_step_of_0_does_not():
    for rate, moves in ((0.1, True), (0.0, False)):
        made, batch = linear(look_ahead_rate=rate)
        player, losses = next(iter(made.turns(batch)))
        assert player == "controller"
        losses.total.backward(inputs=made.players()["controller"])
        gradients = [parameter.grad for parameter in made.controller.parameters()]
        assert any(float(gradient.abs().sum()) > 0 for gradient in gradients) == moves
        before = copy.deepcopy(made.controller.state_dict())
        torch.optim.SGD(made.controller.parameters(), 1.0).step()
        changed = [not torch.equal(value, before[name]) for name, value in made.controller.state_dict().items()]
        assert all(changed) if moves else not any(changed)


def test_the_share_rises_where_the_teacher_helps_the_held_out_samples():
    """The teacher is right about the first half of the batch and wrong about the second, where the label is right."""
    torch.manual_seed(1)
    inputs = torch.eye(4).repeat(2, 1)
    truth = torch.arange(4).repeat(2)
    labels = torch.cat([(truth[:4] + 1) % 4, truth[4:]])

    def teacher(batch):
        known = torch.where(torch.arange(len(batch)) < 4, truth[: len(batch)], (truth[: len(batch)] + 1) % 4)
        return 6.0 * F.one_hot(known, 4)

    made = TGeoKD(
        nn.Linear(4, 4),
        teacher,
        train_samples=TensorSamples(inputs, labels),
        held_out=TensorSamples(torch.eye(4), torch.arange(4), torch.arange(50, 54)),
        look_ahead_rate=0.5,
    )
    batch = Batch(inputs, labels, torch.arange(8))
    seen = []
    made.controller.register_forward_hook(lambda module, given, found: seen.append(found) or found.retain_grad())
    made.look_ahead(batch).total.backward()
    direction = -seen[0].grad
    assert bool((direction[:4] > 0).all())
    assert bool((direction[4:] < 0).all())


def test_the_students_loss_is_the_blended_one_whether_the_shares_require_a_gradient_or_not():
    made, batch = linear()
    losses = made(batch)
    logits = made.student(batch.inputs)
    alphas = made.alphas(logits, made.teacher(batch), batch.labels)
    assert alphas.requires_grad
    blended = blended_kd_loss(logits, made.teacher(batch), batch.labels, alphas, temperature=4.0)
    torch.testing.assert_close(losses.total, blended)
    parameters = list(made.student.parameters())
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (losses.total, blended))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(made.scores.get(batch.index), alphas.detach(), check_dtype=False)
    assert float(losses["low_alpha"]) <= float(losses["mean_alpha"]) <= float(losses["high_alpha"])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_share_forced_to_an_end_is_one_loss_alone(alpha):
    class Forced(TGeoKD):
        def alphas(self, student_logits, teacher_logits, labels):
            return torch.full_like(labels, alpha, dtype=student_logits.dtype)

    made, batch = linear(Forced, temperature=2.0)
    logits = made.student(batch.inputs)
    expected = kd_loss(logits, made.teacher(batch), temperature=2.0) if alpha else cross_entropy(logits, batch.labels)
    torch.testing.assert_close(made(batch).total, expected, rtol=1e-12, atol=0)


def test_the_controllers_turn_leaves_batch_norm_alone():
    made, batch = method(), problem(10)
    before = copy.deepcopy(made.student.state_dict())
    turns = made.turns(batch)
    next(turns)
    assert all(torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    next(turns)
    assert int(made.student.stage1[1].num_batches_tracked) == int(before["stage1.1.num_batches_tracked"]) + 1


def test_the_student_may_step_more_often_and_every_controller_step_has_other_held_out_samples():
    made, batch = linear(student_steps=3, held_out_batch=4)
    players, held, asked, draw = [], [], [], made.held_out.batch

    def noted(step):
        drawn = draw(step)
        asked.append(drawn.index.tolist())
        return drawn

    made.held_out.batch = noted
    for _ in range(9):
        for player, _ in made.turns(batch):
            if player == "controller":
                held.append(asked[-1])
            players.append(player)
            made.after_step(player)
    assert players == ["controller", "student", "student", "student"] * 3
    assert sorted(held[0] + held[1] + held[2]) == list(range(100, 112))


def test_the_look_ahead_rate_is_the_students_current_one():
    made, rates = method(look_ahead_rate=None), []
    assert made.rate == 0.1
    before = made.look_ahead

    def noted(batch):
        rates.append(made.rate)
        return before(batch)

    made.look_ahead = noted
    student = Optim("sgd", lr=0.2, schedule="step", milestones=(0.5,))
    fit(made, samples(), Training(steps=4, batch_size=20, optimizer=student), progress=False, check_teacher=False)
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02])
    assert method(look_ahead_rate=0.7).rate == 0.7


# ---- the held-out part, and training ---------------------------------------------------------------------------------


def test_a_part_is_kept_apart_stratified_and_the_same_for_everybody():
    first, second = (TGeoKD(ConvNet(2), ConvNet(4), train_samples=samples(100)) for _ in range(2))
    assert torch.equal(first.kept_apart, second.kept_apart)
    assert len(first.kept_apart) == 10
    assert torch.bincount(first.kept_apart % 5).tolist() == [2] * 5
    other = TGeoKD(ConvNet(2), ConvNet(4), train_samples=samples(100), seed=1)
    assert not torch.equal(first.kept_apart, other.kept_apart)


def test_fit_never_trains_the_student_on_what_is_kept_apart():
    made, seen = TGeoKD(ConvNet(2), ConvNet(4), train_samples=samples(100), held_out_share=0.2), []
    before = made.turns
    made.turns = lambda batch: seen.append(batch.index) or before(batch)
    training = Training(epochs=2, batch_size=10, keep="last")
    fitted = fit(made, samples(100), training, progress=False, check_teacher=False)
    assert fitted.steps == 20  # as many as without a held-out part
    assert sorted(set(torch.cat(seen).tolist()) | set(made.kept_apart.tolist())) == list(range(100))
    assert not set(torch.cat(seen).tolist()) & set(made.kept_apart.tolist())
    assert torch.equal(made.scores.known, torch.cat(seen).unique())


def test_the_controller_has_an_optimizer_of_its_own_which_the_training_can_replace():
    moved = {}
    for name, own in (("default", {}), ("named", {"controller": Optim("sgd", lr=1e-9, schedule="constant")})):
        torch.manual_seed(0)
        made = method()
        before = copy.deepcopy(made.controller.state_dict())
        training = Training(steps=1, batch_size=20, optimizer=Optim("adam", lr=0.5), players=own)
        fit(made, samples(), training, progress=False, check_teacher=False)
        after = made.controller.state_dict()
        moved[name] = max(float((after[key] - before[key]).abs().max()) for key in before)
    assert moved["default"] == pytest.approx(1e-3, rel=1e-2)  # Adam's first step is its learning rate
    assert moved["named"] < 1e-6


def test_a_student_learns():
    made = TGeoKD(ConvNet(2), trained_teacher(), train_samples=samples(60))
    assert accuracy(made.product) < 0.5
    training = Training(steps=50, batch_size=50, optimizer=Optim("adam", lr=0.01), keep="last")
    fit(made, samples(60), training, progress=False)
    assert accuracy(made.product) > 0.6


@pytest.mark.parametrize("kind", [TGeoKD, WLSKD])
def test_they_pass_the_checks(kind):
    made = kind(ConvNet(2), ConvNet(4)) if kind is WLSKD else method(kind, train=10)
    assert len(check_method(made, problem(10), processes=False).passed) > 24


def test_the_frozen_controller_has_no_turn_and_does_not_move():
    made = method(FrozenController)
    assert set(made.players()) == {"student"}
    assert [player for player, _ in made.turns(problem(10))] == ["student"]


def test_shuffled_shares_are_the_same_shares():
    (made, batch), (control, _) = linear(), linear(ShuffledAlphas)
    control.load_state_dict(made.state_dict())
    control.teacher.network.load_state_dict(made.teacher.network.state_dict())
    made(batch)
    control(batch)
    shares, shuffled = (one.scores.get(batch.index) for one in (made, control))
    assert not torch.equal(shares, shuffled)
    assert torch.equal(shares.sort().values, shuffled.sort().values)
    upper = [one.look_ahead(batch)["held_out"] for one in (made, control)]
    torch.testing.assert_close(upper[0], upper[1])


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused():
    made, batch = linear()
    with pytest.raises(ValueError, match=r"sample 55 is in held_out and in train_samples \(5 are\)"):
        method(held_out=samples(20, 55))
    with pytest.raises(ValueError, match="batch has sample 104, which is held out"):
        list(made.turns(batch.replace(index=torch.arange(97, 105))[7:]))
    with pytest.raises(ValueError, match=r"float32 of shape \(8, 4\): soft labels"):
        made(batch.replace(labels=torch.rand(8, 4)))
    with pytest.raises(ValueError, match=r"\(2, 3\) torch\.float32: soft labels are no one-hot vectors"):
        geometry_state(torch.rand(2, 3), torch.rand(2, 3), torch.rand(2, 3), torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 4\) and \(2, 3\) with 2 labels"):
        geometry_state(torch.rand(2, 3), torch.rand(2, 4), torch.tensor([0, 1]), torch.rand(2, 3))
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        method(temperature=0)
    with pytest.raises(ValueError, match=r"\(8, 4\).*\(8, 5\).*same classes"):
        TGeoKD(made.student, nn.Linear(6, 5).double(), train_samples=made.trained_on)(batch)
    with pytest.raises(ValueError, match="class 3 is absent from the 3 samples"):
        TGeoKD(
            nn.Linear(6, 4), nn.Linear(6, 4), train_samples=made.trained_on.subset([0, 1, 2]), held_out=samples(5, 900)
        )(Batch(torch.randn(1, 6), torch.tensor([3])))
    with pytest.raises(ValueError, match=r"train_samples must have labels .* given none"):
        method(train_samples=samples().relabel(None))
    with pytest.raises(ValueError, match="needs a label for every sample"):
        list(made.turns(batch.replace(labels=None)))
    with pytest.raises(ValueError, match="held_out_share must lie between 0 and 1, given 1"):
        keep_apart(samples(), None, 1.0, 0)
    with pytest.raises(ValueError, match=r"state must be one of .*, given 'all'"):
        method(state="all")
    with pytest.raises(ValueError, match=r"limits must rise and lie in \[0, 1\], given \(0\.9, 0\.1\)"):
        method(limits=(0.9, 0.1))
    with pytest.raises(ValueError, match="scale must be a number above 0, given 0"):
        Controller(3, scale=0)
    with pytest.raises(ValueError, match="look_ahead_rate must be a number of 0 or more, given -1"):
        method(look_ahead_rate=-1)
    with pytest.raises(ValueError, match="given 0 and 128"):
        method(student_steps=0)


# ---- the experiments -------------------------------------------------------------------------------------------------


def test_it_is_an_arm_beside_other_methods(tmp_path):
    experiment = Experiment(
        task=Classification("digits"),
        student="mlp-4",
        teacher="mlp-8",
        teacher_training=Training(),
        arms={"alone": alone, "tgeo-kd": TGeoKD},
    )
    found = experiment.tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert set(found["arms"]) == {"teacher", "alone", "tgeo-kd"}


tgeo_recipe = sys.modules["stillroom.systems.classification.tgeo_kd.recipe"]  # the package has a function of that name


def small_world(student=None):
    """Six samples: what the teacher says, which labels are wrong, and what that makes of them."""
    truth = torch.tensor([3, 3, 8, 8, 1, 2])
    labels = torch.tensor([3, 3, 8, 8, 5, 6])
    favourite = torch.tensor([8, 3, 8, 3, 1, 6])  # it contradicts 0 and 3, agrees with 1 and 2, puts 4 right
    train = TensorSamples(torch.eye(6), labels, index=torch.arange(10, 16))
    splits = Splits(train, TensorSamples(torch.eye(6), truth))
    held = TensorSamples(torch.eye(6), truth)
    return World(splits, train, held, train, truth, Frozen(nn.Linear(6, 9)), favourite)


def test_groups_of_samples_and_the_gaps_between_their_shares():
    world = small_world()
    assert [group.tolist() for group in world.groups((3, 8))] == [[10, 13], [14], [11, 12]]

    class Shown:
        scores = SampleScores()

    Shown.scores.put(torch.arange(10, 16), torch.tensor([0.1, 0.5, 0.7, 0.3, 0.9, 0.4]))
    found = _shares(Shown(), world, (3, 8))
    assert found["alpha_gap"] == pytest.approx(0.9 - 0.2)
    assert found["alpha_gap_within"] == pytest.approx(0.6 - 0.2)
    assert found["mean_alpha"] == pytest.approx(2.9 / 6)


def test_the_best_fixed_share_is_chosen_by_the_held_out_samples(monkeypatch, tmp_path):
    class Right(nn.Module):
        def __init__(self, share, at):
            super().__init__()
            self.share, self.at = nn.Parameter(torch.tensor(share)), at

        def forward(self, inputs):  # right on the held-out samples alone, or on the reported ones alone
            where = inputs[:, -1] if self.at == "held out" else 1 - inputs[:, -1]
            return torch.stack([1 - where, where], 1) * 9 + 0 * self.share

    inputs = torch.cat([torch.zeros(8, 1), torch.ones(8, 1)])
    reported = TensorSamples(inputs[:8], torch.ones(8, dtype=torch.int64))
    held = TensorSamples(inputs[8:], torch.ones(8, dtype=torch.int64))
    world = World(Splits(held, reported), held, held, held, held.labels, Frozen(nn.Linear(1, 2)), held.labels)
    setting = recipe().arms["kd, best alpha"].keywords["setting"]
    for share, at in ((0.3, "reported"), (0.6, "held out")):
        world.fixed[(share, repr((setting.student, setting.training, setting.temperature)))] = Right(share, at)
    monkeypatch.setattr(tgeo_recipe, "make_world", lambda *given: world)
    found = run_best_alpha(0, Context(tmp_path), setting=setting, candidates=(0.3, 0.6))
    assert found["alpha"] == 0.6
    assert found["accuracy"] == 0.0


def test_students_of_other_settings_are_not_taken_for_each_other(monkeypatch, tmp_path):
    parameters = []
    for options in ({"student": "mlp-64-32"}, {"student": "mlp-4"}):
        experiment = recipe(steps=3, **options)
        setting = experiment.arms["kd, alpha 0.5"].keywords["setting"]
        run_best_alpha(100, Context(tmp_path, tiny=True), setting=setting, candidates=(0.5,))
        (world,) = [one for _, one in tgeo_recipe._made.values()]
        parameters.append(sum(p.numel() for p in list(world.fixed.values())[-1].parameters()))
    assert parameters[0] > parameters[1]


def test_the_recipe_runs(tmp_path):
    found = recipe().tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert len(found["arms"]) == 9
    roles = {name: arm["role"] for name, arm in found["arms"].items()}
    assert {name for name, role in roles.items() if role == "control"} == {
        *("frozen controller", "shuffled alphas", "alone, also held out"),
    }
    assert {"accuracy", "nll", "mean_alpha", "alpha_deviation"} <= set(found["arms"]["tgeo-kd"]["metrics"])


def test_the_papers_settings_run(tmp_path):
    inputs, labels = torch.rand(300, 3, 8, 8), torch.arange(300) % 5
    experiment = paper((inputs, labels), student="conv-4", teacher="conv-8").tiny()
    found = experiment.run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert len(found["arms"]) == 6
    training = paper().training
    assert (training.epochs, training.batch_size, training.optimizer.lr, training.keep) == (240, 64, 0.05, "last")
