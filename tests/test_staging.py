"""Stages of a training: their optimizers, hooks, frozen parts and best weights, and resuming within any of them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from stillroom import check_method
from stillroom.baselines import Alone
from stillroom.fit import fit
from stillroom.losses import cross_entropy
from stillroom.method import Losses, Method, Needs, Stage
from stillroom.staging import StageRun, copied
from stillroom.task import Classification
from stillroom.training import Optim, Training
from tests.toys import batch, mlp, splits

STEPS = 24
TRAINING = Training(
    steps=STEPS, batch_size=16, optimizer=Optim(lr=0.02), evaluate_every=2, stages={"second": Optim("sgd", lr=0.01)}
)


def run(method, training=TRAINING, **options):
    return fit(method, splits(), training, progress=False, trackers=(), **options)


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Phases(Method):
    """A student and a helper: together, then the helper alone by its own number, then the student by the task's."""

    needs = Needs(teacher=False)

    def __init__(self) -> None:
        super().__init__(nn.Sequential(mlp(), nn.Dropout(0.2)))
        self.helper = nn.Sequential(mlp(seed=1), nn.BatchNorm1d(3))
        self.register_buffer("seen", torch.zeros(()))
        self.calls: list[str] = []
        self.modes: list[tuple[str, bool, bool, bool, bool]] = []
        self.times: list[tuple[str, int, float]] = []

    def players(self):
        student, helper = list(self.student.parameters()), list(self.helper.parameters())
        return {"both": student + helper, "helper": helper, "student": student}

    def stages(self):
        return (
            Stage("first", players=("both",), share=2),
            Stage("second", players=("helper",), share=1, frozen=("student",), best_by="total"),
            Stage(
                "third", players=("student",), share=3, frozen=("helper",), fresh_optimizers=True,
                best_by="accuracy", higher_is_better=True,
            ),
        )  # fmt: skip

    def begin_stage(self, stage):
        self.calls.append(f"begin {stage.name}")
        self.seen += 1

    def end_stage(self, stage):
        self.calls.append(f"end {stage.name}")
        self.seen *= 10

    def turns(self, batch):
        self.modes.append((
            self.stage.name, self.student.training, self.helper.training,
            next(self.student.parameters()).requires_grad, next(self.helper.parameters()).requires_grad,
        ))  # fmt: skip
        self.times.append((self.stage.name, self.stage_clock.step, self.stage_clock.progress))
        mine, theirs = self.student(batch.inputs), self.helper(batch.inputs)
        label = cross_entropy(mine, batch.labels)
        follow = (theirs - mine).square().mean()
        if self.stage.name == "second":
            yield "helper", Losses(follow=follow, outputs=mine)
        elif self.stage.name == "third":
            yield "student", Losses(label=label, follow=follow, outputs=mine)
        else:
            yield "both", Losses(label=label, help=cross_entropy(theirs, batch.labels), outputs=mine)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    method = Phases()
    return method, run(method, folder=folder), folder


def test_every_stage_begins_and_ends_once_and_tells_its_time(whole):
    method, fitted, _ = whole
    assert method.calls == [f"{what} {name}" for name in ("first", "second", "third") for what in ("begin", "end")]
    assert float(method.seen) == 1110
    second = [time for name, *time in method.times if name == "second" and time]
    assert second[0] == [0, 0.0]
    assert max(step for step, _ in second) == 3
    assert [(s["stage"], s["begin"], s["end"]) for s in fitted.stages] == [
        ("first", 0, 8), ("second", 8, 12), ("third", 12, 24),
    ]  # fmt: skip


def test_frozen_parts_stand_still_and_wake_again(whole):
    method, _, _ = whole
    training = {mode for mode in method.modes if mode[1] or mode[2]}  # the others are measurements
    assert training == {
        ("first", True, True, True, True),
        ("second", False, True, False, True),
        ("third", True, False, True, False),
    }
    method.enter_stage(Stage())
    assert all(parameter.requires_grad for parameter in method.parameters())
    method.train()
    assert method.helper.training


def test_frozen_parts_keep_their_bits():
    kept = {}

    class Spy(Phases):
        def begin_stage(self, stage):
            super().begin_stage(stage)
            kept[stage.name] = weights_of(self)

        def end_stage(self, stage):
            kept[f"after {stage.name}"] = weights_of(self)

    torch.manual_seed(0)
    run(Spy())
    for name, part in (("second", "student."), ("third", "helper.")):
        before, after = kept[name], kept[f"after {name}"]
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed
        assert not any(key.startswith(part) for key in changed)
        assert any(key.startswith(part) for key in before)


def test_the_best_weights_of_a_stage_come_back_before_the_next():
    """The helper is best at the second stage's first look and is then driven away."""
    seen = {}

    class Worse(Phases):
        def turns(self, batch):
            for player, losses in super().turns(batch):
                if self.stage.name == "second" and torch.is_grad_enabled() and self.stage_clock.step >= 2:
                    yield player, Losses(follow=losses["follow"] * 0 - 1e3 * self.helper[1].bias.sum())
                else:
                    yield player, losses

        def after_step(self, player):
            if self.stage.name == "second":
                seen[self.stage_clock.step + 1] = weights_of(self.helper)

        def end_stage(self, stage):
            if stage.name == "second":
                seen["end"] = weights_of(self.helper)

    Worse.may_be_negative = ("follow",)
    torch.manual_seed(0)
    fitted = run(Worse())
    record = fitted.stages[1]
    assert record["best_step"] == 10
    assert record["best_by"] == "total"
    values = [measured["total"] for step, measured in fitted.curve if 8 < step <= 12]
    assert record["value"] == min(values) == values[0] < values[1]
    assert same(seen["end"], seen[2])
    assert not same(seen["end"], seen[4])


def test_the_last_stages_best_weights_ship(whole):
    _, fitted, _ = whole
    record = fitted.stages[-1]
    accuracies = {step: measured["accuracy"] for step, measured in fitted.curve if step > 12}
    assert record["value"] == max(accuracies.values()) == fitted.validation["accuracy"]
    assert fitted.best_step == record["best_step"] > 12


def test_stages_have_optimizers_and_schedules_of_their_own(whole):
    _, _, folder = whole
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line.get("begins")] == ["first", "second", "third"]
    assert [line["best_step"] for line in lines if "best_step" in line]
    kinds, rates = {}, {}

    class Spy(Phases):
        def adjust_gradients(self, player):
            optimizer = loop.optimizers[player]
            kinds[self.stage.name] = type(optimizer).__name__
            rates.setdefault(self.stage.name, []).append(optimizer.param_groups[0]["lr"])
            if self.stage_clock.step == 0 and self.stage.name == "third":
                assert not optimizer.state

    from stillroom.fit import Loop

    loop = Loop(Spy(), splits(), TRAINING, None, 0, None, "cpu", 0, (), 50)
    loop.run(resume=False, progress=False, title="", check_teacher=True)
    assert kinds == {"first": "AdamW", "second": "SGD", "third": "AdamW"}
    assert rates["first"] == [Optim(lr=0.02).rate(step, 24) for step in range(8)]
    assert rates["second"] == [Optim("sgd", lr=0.01).rate(step, 4) for step in range(4)]
    assert rates["third"] == [Optim(lr=0.02).rate(step, 12) for step in range(12)]


class DiedError(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 11, 12, 13, 20, 24])
@pytest.mark.parametrize("where", ["after_step", "end_stage"])
def test_a_run_killed_in_any_stage_ends_with_the_same_bits(whole, tmp_path, steps, where):
    _, expected, folder = whole
    torch.manual_seed(0)
    method, taken = Phases(), [0]
    original = getattr(method, where)

    def die(given):
        if where == "after_step":
            taken[0] += 1
        if (taken[0] if where == "after_step" else method.clock.step + 1) >= steps:
            raise DiedError
        return original(given)

    setattr(method, where, die)
    with pytest.raises(DiedError):
        run(method, folder=tmp_path)
    torch.manual_seed(0)
    resumed = Phases()
    torch.manual_seed(4321)  # the world outside has moved on
    fitted = run(resumed, folder=tmp_path, resume=True)
    assert same(weights_of(fitted.product), weights_of(expected.product))
    assert same(weights_of(resumed), weights_of(whole[0]))
    assert fitted.curve == expected.curve
    assert fitted.stages == expected.stages
    assert (tmp_path / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


def test_a_stage_measures_its_terms_in_eval_mode():
    torch.manual_seed(0)
    method = Phases()
    method.enter_stage(method.stages()[1])
    method.train()
    data = batch(12)
    measured = method.measure_stage([data[:8], data[8:]])
    method.eval()
    with torch.no_grad():
        gap = (method.helper(data.inputs) - method.student(data.inputs)).square().mean()
    assert measured.keys() == {"total", "follow"}
    torch.testing.assert_close(measured["total"], float(gap))
    assert measured["total"] == measured["follow"]


def test_without_held_out_samples_a_stage_keeps_its_last_weights():
    torch.manual_seed(0)
    fitted = fit(Phases(), splits().train, TRAINING, progress=False, trackers=())
    assert all("best_step" not in record for record in fitted.stages)
    assert fitted.best_step == STEPS


def test_a_copied_state_has_memory_of_its_own_all_the_way_down():
    class Remembering(nn.Linear):
        inner = {"averages": [torch.zeros(2)]}

        def get_extra_state(self):
            return self.inner

    module = Remembering(2, 2)
    kept = copied(module)
    module.inner["averages"][0].add_(1)
    assert kept["_extra_state"]["averages"][0].tolist() == [0, 0]


def test_wrong_stages_are_refused():
    class Strange(Phases):
        def stages(self):
            return (Stage("only", frozen=("studnet",)),)

    with pytest.raises(ValueError, match="stage 'only' freezes 'studnet', but Strange has no such submodule: name"):
        run(Strange(), TRAINING.change(stages={}))
    with pytest.raises(ValueError, match="names an optimizer for the stage 'second', but Alone has the stages train"):
        run(Alone(mlp()))

    class Unknown(Alone):
        def stages(self):
            return (Stage("only", best_by="wer"),)

    with pytest.raises(
        ValueError, match=r"stage 'only' chooses its best weights by 'wer', but what is measured is acc"
    ):
        run(Unknown(mlp()), TRAINING.change(stages={}))


def test_a_copied_method_stands_in_the_same_stage():
    method = Phases()
    method.enter_stage(method.stages()[2])
    twin = copy.deepcopy(method)
    assert not next(twin.helper.parameters()).requires_grad
    twin.enter_stage(Stage())
    assert next(twin.helper.parameters()).requires_grad
    assert not next(method.helper.parameters()).requires_grad
    assert len(method.players()["both"]) == len(twin.players()["both"]) > 0


def test_a_method_of_several_stages_passes_the_battery():
    report = check_method(Phases(), batch(12), task=Classification(), processes=False)
    assert report.ok


class TwoRates(Method):
    """The second stage goes at a hundredth of the rate."""

    needs = Needs(labels="some", teacher=False)

    def __init__(self) -> None:
        super().__init__(mlp())

    def stages(self):
        return (Stage("first", share=1), Stage("second", share=1, fresh_optimizers=True, lr_factor=0.01))

    def forward(self, batch):
        return Losses(label=cross_entropy(self.student(batch.inputs), batch.labels))


def rates_of(method, training):
    run_ = StageRun(method, training, training.steps)
    run_.begin()
    first = run_.rate("student", 0)[0]
    run_.finish(None)
    run_.begin()
    return first, run_.rate("student", training.steps // 2)[0]


def test_a_stage_may_learn_slower():
    training = Training(steps=STEPS, batch_size=16, optimizer=Optim("sgd", lr=0.5))
    assert rates_of(TwoRates(), training) == pytest.approx((0.5, 0.005))
    named = training.change(stages={"second": Optim("sgd", lr=0.3)})  # what is named counts as it is
    assert rates_of(TwoRates(), named) == pytest.approx((0.5, 0.3))


def test_parts_that_learn_at_rate_0_stand_still():
    optimizer = Optim("sgd", lr=0.1, lr_factors={"student.0": 0.0})
    method = TwoRates()
    before = weights_of(method.student)
    fitted = run(method, Training(steps=6, batch_size=16, optimizer=optimizer, keep="last"))
    after = weights_of(fitted.product)
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"2"}
