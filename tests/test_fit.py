import itertools
import json
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.baselines import KD, Alone
from stillroom.data.samples import TensorSamples
from stillroom.data.stream import Stream
from stillroom.fit import fit
from stillroom.method import Losses, Method, Needs, Stage
from stillroom.task import Classification
from stillroom.training import Optim, Training
from stillroom.tripwires import TrainingError
from tests.toys import batch, cloud, conv, mlp, splits, trained_teacher

QUICK = Training(steps=12, batch_size=16, optimizer=Optim(lr=0.02), evaluate_every=4)


def run(method, training=QUICK, data=None, **options):
    return fit(method, data or splits(), training, progress=False, trackers=(), **options)


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_fit_does_what_a_plain_loop_does():
    data = splits()
    trained = run(KD(mlp(), trained_teacher()), QUICK.change(keep="last"), data)
    method = KD(mlp(), trained_teacher()).train()
    optimizer = torch.optim.AdamW(method.parameters(), 0.02, weight_decay=0.0)
    stream = Stream(data.train, batch_size=16, seed=0)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = Optim(lr=0.02).rate(step, 12)
        optimizer.zero_grad()
        method(stream.batch(step)).total.backward()
        optimizer.step()
    assert_same(weights_of(trained.product), weights_of(method.product))


def test_training_learns_and_the_best_weights_are_kept():
    fitted = run(Alone(mlp()), QUICK.change(steps=60))
    assert fitted.validation["accuracy"] > 0.9
    best = max(measured["accuracy"] for _, measured in fitted.curve)
    assert fitted.validation["accuracy"] == best
    assert not fitted.product.training
    assert fitted.steps == 60
    assert len(fitted.curve) == 15


class Dropping(KD):
    """A student with dropout: the random state matters."""


def dropping():
    student = nn.Sequential(mlp(), nn.Dropout(0.0))
    student[0][1] = nn.Sequential(nn.ReLU(), nn.Dropout(0.3))
    return Dropping(student, trained_teacher())


class DiedError(Exception):
    pass


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_ends(tmp_path):
    whole = run(dropping(), folder=tmp_path / "whole")
    method = dropping()
    seen = []

    def die(player):
        seen.append(player)
        if len(seen) == 7:
            raise DiedError

    method.after_step = die
    with pytest.raises(DiedError):
        run(method, folder=tmp_path / "cut")
    torch.manual_seed(1234)  # the world outside has moved on
    resumed = run(dropping(), folder=tmp_path / "cut", resume=True)
    assert_same(weights_of(whole.product), weights_of(resumed.product))
    assert whole.curve == resumed.curve
    assert whole.validation == resumed.validation
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "cut/metrics.jsonl").read_text()


def test_resuming_with_other_options_is_refused(tmp_path):
    run(Alone(mlp()), folder=tmp_path)
    with pytest.raises(ValueError, match="run of 12 steps, this one takes 20"):
        run(Alone(mlp()), QUICK.change(steps=20), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="needs the folder"):
        run(Alone(mlp()), resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, r"another seed \(0, this one has 1\)"),
        ({"batch_size": 8}, r"another batch size \(16, this one has 8\)"),
        ({"teacher": lambda: mlp(seed=9)}, "another teacher"),
        ({"data": lambda: splits(240)}, r"another number of samples \(90, this one has 180\)"),
        ({"data": lambda: moved(splits())}, "with other samples:"),
    ],
    ids=["seed", "batch size", "teacher", "number", "samples"],
)
def test_resuming_another_training_is_refused(tmp_path, change, words):
    def run(seed=0, batch_size=16, teacher=trained_teacher, data=splits, resume=True):
        training = Training(steps=6, batch_size=batch_size, evaluate_every=3)
        options = {"folder": tmp_path, "seed": seed, "resume": resume, "trackers": (), "progress": False}
        return fit(KD(mlp(), teacher()), data(), training, check_teacher=False, **options)

    run(resume=False)
    assert run().steps == 6  # the same one goes on
    with pytest.raises(ValueError, match=words):
        run(**change)


def moved(given):
    inputs = given.train.batch(range(len(given.train))).inputs + 1
    return replace(given, train=TensorSamples(inputs, given.train.labels))


def test_seconds_hold_what_it_takes_to_read_a_batch():
    class Slow(TensorSamples):
        def batch(self, rows, uniform=None):
            time.sleep(0.05)
            return super().batch(rows, uniform)

    inputs, labels = cloud(32)
    fitted = fit(Alone(mlp()), Slow(inputs, labels), Training(steps=6, batch_size=8), progress=False)
    assert fitted.seconds > 6 * 0.05


def test_a_later_turn_sees_the_new_weights_under_autocast():
    seen = []

    class Twice(TwoPlayers):
        def turns(self, batch):
            for player, losses in super().turns(batch):
                before = self.student(batch.inputs).detach()
                yield player, losses
                seen.append((before, self.student(batch.inputs).detach()))

    training = Training(steps=2, batch_size=16, precision="bf16", optimizer=Optim("sgd", lr=0.5))
    fit(Twice(), splits(), training, progress=False, device="cpu")
    assert not torch.equal(*seen[0])


def test_a_perfect_teacher_of_data_sorted_by_class_is_taken():
    class Knowing(nn.Module):
        def forward(self, inputs):
            return torch.eye(2)[(inputs[:, 0] > 0).long()] * 9

    labels = torch.arange(4000) // 2000
    inputs = labels[:, None] * 2.0 - 1 + torch.zeros(4000, 6)
    fit(KD(mlp(classes=2), Knowing()), TensorSamples(inputs, labels), Training(steps=1, batch_size=8), progress=False)


def test_a_teacher_that_gives_probabilities_is_refused():
    teacher = trained_teacher()
    for said in (lambda batch: teacher(batch.inputs).softmax(1), nn.Sequential(teacher, nn.Softmax(dim=1))):
        with pytest.raises(TrainingError, match=r"gives probabilities .* expected logits"):
            fit(KD(mlp(), said), splits(), Training(steps=1, batch_size=8), progress=False)
    logs = nn.Sequential(teacher, nn.LogSoftmax(dim=1))
    fit(KD(mlp(), logs), splits(), Training(steps=1, batch_size=8), progress=False)


def test_measures_of_numpy_are_kept_and_resumed(tmp_path):
    class Numpy(Classification):
        def evaluate(self, *given, **named):
            return {name: np.float64(value) for name, value in super().evaluate(*given, **named).items()}

    def run(resume):
        training = Training(steps=6, batch_size=16, evaluate_every=3)
        options = {"folder": tmp_path, "resume": resume, "trackers": (), "progress": False, "task": Numpy()}
        return fit(Alone(mlp()), splits(), training, **options)

    first = run(False)
    assert run(True).validation == first.validation
    assert not list(tmp_path.rglob("*.damaged"))


def test_accumulation_gives_the_same_training():
    whole = run(KD(mlp(), trained_teacher()), QUICK.change(keep="last"))
    parts = run(KD(mlp(), trained_teacher()), QUICK.change(keep="last", accumulate=4))
    for name, tensor in weights_of(whole.product).items():
        torch.testing.assert_close(parts.product.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_distillation_of_weight_zero_is_the_student_alone_exactly():
    alone = run(Alone(mlp()), QUICK)
    silent = run(KD(mlp(), trained_teacher(), label_weight=1.0, distill_weight=0.0), QUICK)
    assert_same(weights_of(alone.product), weights_of(silent.product))


def test_every_arm_sees_the_same_batches_whatever_it_draws():
    seen = {}

    class Spy(Alone):
        def forward(self, batch):
            seen.setdefault(self.name, []).append(batch.index.tolist())
            torch.rand(self.draws)
            return super().forward(batch)

    for name, draws in (("few", 1), ("many", 1000)):
        spy = Spy(mlp())
        spy.name, spy.draws = name, draws
        run(spy, seed=3)
    assert seen["few"] == seen["many"]
    assert len(seen["few"]) == 12


class TwoPlayers(Method):
    """A student that follows a rival, and the rival that flees; each loss runs through both."""

    needs = Needs(teacher=False)
    may_be_negative = ("flee",)

    def __init__(self):
        super().__init__(mlp())
        self.rival = mlp(seed=1)
        self.order = []

    def players(self):
        return {"student": list(self.student.parameters()), "rival": list(self.rival.parameters())}

    def turns(self, batch):
        gap = (self.student(batch.inputs) - self.rival(batch.inputs)).square().mean()
        self.order.append("student")
        before = weights_of(self.student)
        yield "student", Losses(follow=gap, outputs=None)
        assert any(not torch.equal(t, before[n]) for n, t in self.student.state_dict().items())
        self.order.append("rival")
        yield "rival", Losses(flee=-(self.student(batch.inputs) - self.rival(batch.inputs)).square().mean())


def test_players_take_turns_and_only_move_themselves():
    method = TwoPlayers()
    rates = {"student": Optim(lr=0.01), "rival": Optim(lr=1e-12)}
    rival = weights_of(method.rival)
    run(method, Training(steps=3, batch_size=16, players=rates, keep="last"))
    assert method.order == ["student", "rival"] * 3
    for name, tensor in weights_of(method.rival).items():  # a gradient that leaked would have moved it
        torch.testing.assert_close(tensor, rival[name], rtol=0, atol=1e-9)


class Staged(Alone):
    def stages(self):
        return (Stage("label", share=1), Stage("rest", share=3, terms=("label",)))

    def forward(self, batch):
        self.seen = [*getattr(self, "seen", []), self.stage.name]
        losses = super().forward(batch)
        return Losses(label=losses["label"], extra=1e6 * losses["label"], outputs=losses.outputs)


def test_stages_divide_the_steps_and_choose_the_terms():
    method = Staged(mlp())
    fitted = run(method, QUICK, log_every=1)
    assert method.seen == ["label"] * 3 + ["rest"] * 9
    assert [sorted(terms) for _, terms, _ in fitted.terms] == [["extra", "label"]] * 3 + [["label"]] * 9


class PoolFirst(KD):
    def stages(self):
        return (Stage("pool", data="unlabelled"), Stage("labels", share=2))

    def forward(self, batch):
        self.seen = [*getattr(self, "seen", []), batch.labels is not None and bool(batch.labelled.any())]
        return super().forward(batch)


def test_a_stage_can_draw_from_the_pool_alone():
    method = PoolFirst(mlp(), trained_teacher())
    run(method, data=splits(labels=32))
    assert method.seen == [False] * 4 + [True] * 8
    with pytest.raises(ValueError, match=r'a stage draws from "train", .* where there is a pool, "unlabelled"'):
        run(PoolFirst(mlp(), trained_teacher()))


def test_clipping_bounds_a_players_gradient():
    norms = []

    class Norms(Alone):
        def adjust_gradients(self, player):
            for p in self.student.parameters():
                p.grad *= 1e6  # one named place may change gradients; clipping comes after it

        def after_step(self, player):
            norms.append([p.detach().clone() for p in self.student.parameters()])

    optimizer = Optim("sgd", lr=1.0, momentum=0.0, schedule="constant", clip=0.5)
    method = Norms(mlp())
    norms.append([p.detach().clone() for p in method.student.parameters()])
    run(method, Training(steps=3, batch_size=16, optimizer=optimizer))
    for before, after in itertools.pairwise(norms):
        moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).norm()
        torch.testing.assert_close(moved, torch.tensor(0.5), rtol=1e-3, atol=0)


def test_an_average_of_the_weights_ships():
    plain = run(Alone(mlp()), QUICK.change(keep="last"))
    averaged = run(Alone(mlp()), QUICK.change(keep="last", ema_decay=0.9))
    assert any(not torch.equal(t, plain.product.state_dict()[n]) for n, t in averaged.product.state_dict().items())


def test_terms_and_shares_are_logged_from_the_first_step(tmp_path):
    run(KD(mlp(), trained_teacher()), folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]
    assert first["step"] == 0
    assert set(first["terms"]) == {"label", "distill"}
    assert abs(sum(first["shares"].values()) - 1) < 1e-6
    assert [line["validation"].keys() >= {"accuracy"} for line in lines if "validation" in line] == [True] * 3


def test_a_pool_without_labels_goes_to_methods_that_can_use_it():
    sizes = {}

    def spying(kind):
        class Spy(kind):
            def forward(self, batch):
                sizes[kind] = (len(batch), int(batch.labelled.sum()))
                return super().forward(batch)

        return Spy

    data = splits(labels=32)
    run(spying(KD)(mlp(), trained_teacher()), data=data)
    run(spying(Alone)(mlp()), data=data)
    assert sizes == {KD: (32, 16), Alone: (16, 16)}


# ---- tripwires


def test_a_teacher_that_only_guesses_stops_the_run():
    teacher = mlp(seed=1)
    with torch.no_grad():
        teacher[2].weight.zero_()
        teacher[2].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    with pytest.raises(TrainingError, match=r"no better than guessing \(0\.3"):
        run(KD(mlp(), teacher))
    assert run(KD(mlp(), teacher), check_teacher=False).steps == 12


@pytest.mark.parametrize(
    ("value", "steps", "message"),
    [
        (torch.nan, 3, "'odd' of player 'student' is nan at step 0"),
        (-1.0, 3, "'odd' is -1 at step 0, but it cannot be below 0"),
        (0.0, 60, "'odd' has been exactly 0 for the first 50 steps"),
    ],
)
def test_terms_that_teach_nothing_stop_the_run(value, steps, message):
    class Odd(Alone):
        def forward(self, batch):
            losses = super().forward(batch)
            return Losses(label=losses["label"], odd=losses["label"] * 0 + value, outputs=losses.outputs)

    with pytest.raises(TrainingError, match=message):
        run(Odd(mlp()), QUICK.change(steps=steps))


def test_the_first_batch_is_checked():
    inputs, labels = torch.randn(20, 6), torch.full((20,), 7)
    with pytest.raises(ValueError, match=r"labels .*7 to 7"):
        run(Alone(mlp()), data=TensorSamples(inputs, labels))
    inputs[3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        run(Alone(mlp()), QUICK.change(batch_size=20), data=TensorSamples(inputs, labels % 3))


def test_parameters_that_no_optimizer_knows_are_refused():
    class Late(Alone):
        def forward(self, batch):
            if not hasattr(self, "late"):
                self.late = nn.Linear(3, 3)
            return super().forward(batch)

    with pytest.raises(ValueError, match="2 trainable parameters belong to no player"):
        run(Late(mlp()))


def test_losses_cut_off_from_the_parameters_are_refused():
    class Cut(Alone):
        def forward(self, batch):
            return Losses(label=super().forward(batch)["label"].detach())

    with pytest.raises(TrainingError, match="cut off"):
        run(Cut(mlp()))


def test_a_method_that_needs_labels_refuses_data_without():
    with pytest.raises(ValueError, match="KD learns from labels, but the training data have none"):
        run(KD(mlp(), trained_teacher()), data=TensorSamples(torch.randn(20, 6)))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_after_the_step_and_says_how_to_go_on(tmp_path):
    method = dropping()
    seen = []

    def interrupt(player):
        seen.append(player)
        if len(seen) == 5:
            signal.raise_signal(signal.SIGINT)

    method.after_step = interrupt
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 12; resume it with"):
        run(method, folder=tmp_path)
    resumed = run(dropping(), folder=tmp_path, resume=True)
    assert_same(weights_of(resumed.product), weights_of(run(dropping()).product))


def test_bfloat16_trains_with_float32_losses():
    kinds = set()

    class Spy(Alone):
        def forward(self, batch):
            losses = super().forward(batch)
            kinds.add((losses.outputs.dtype, losses["label"].dtype))
            return losses

    fitted = run(Spy(mlp()), QUICK.change(steps=40, precision="bf16"))
    assert kinds == {(torch.bfloat16, torch.float32)}
    assert fitted.validation["accuracy"] > 0.8
    assert run(Alone(mlp())).steps == 12  # and back to float32 in the same process


def test_buffers_of_the_teacher_stay_bitwise():
    teacher = conv(seed=3)
    before = weights_of(teacher)
    data = TensorSamples(torch.rand(48, 1, 8, 8), torch.arange(48) % 3)
    run(KD(conv(), teacher), data=data, check_teacher=False)
    assert_same(before, weights_of(teacher))


def test_the_teachers_fingerprint_is_recorded_and_moves_with_its_weights():
    teacher = trained_teacher()
    first = run(KD(mlp(), teacher)).teacher
    with torch.no_grad():
        teacher[0].weight[0, 0] += 1e-3
    assert len(first) == 12
    assert run(KD(mlp(), teacher)).teacher != first


def test_batches_of_the_toys_are_what_they_say():
    assert batch().labelled.all()
