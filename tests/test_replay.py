"""What is not finite stops the run, names term, module, step and samples, and touches no checkpoint."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from stillroom import checkpoint
from stillroom.baselines import KD, Alone
from stillroom.data.samples import TensorSamples
from stillroom.data.stream import Stream
from stillroom.fit import fit
from stillroom.method import Losses, Method
from stillroom.replay import Replay
from stillroom.training import Optim, Training
from stillroom.tripwires import NotFiniteError, TrainingError, all_finite
from tests.cli_toys import make_here, make_models  # noqa: F401
from tests.cli_toys import run as run_command
from tests.toys import mlp, splits, trained_teacher

QUICK = Training(steps=12, batch_size=16, optimizer=Optim(lr=0.02), evaluate_every=4)
FAILS_AT, ROW = 6, 3


def run(method, training=QUICK, data=None, **options):
    return fit(method, data or splits(), training, progress=False, trackers=(), **options)


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Passing(torch.autograd.Function):
    """Passes its input on, and a gradient times a factor back."""

    @staticmethod
    def forward(ctx, inputs, factor):
        ctx.save_for_backward(factor)
        return inputs.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


class Faulty(nn.Module):
    """Passes everything on, but for one call in training: then a row is NaN, forwards or backwards."""

    def __init__(self, backwards=False, at=FAILS_AT, value=torch.nan):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.backwards, self.at, self.value = backwards, at, value

    def forward(self, inputs):
        if not self.training:
            return inputs
        call, self.calls = int(self.calls), self.calls + 1
        if call != self.at:
            return inputs
        factor = torch.ones_like(inputs)
        factor[ROW] = self.value
        return Passing.apply(inputs, factor) if self.backwards else inputs + (factor - 1)


def network(fault):
    student = mlp()
    return nn.Sequential(student[0], nn.Dropout(0.3), nn.ReLU(inplace=True), fault, student[2])


def numbers(step=FAILS_AT):
    return Stream(splits().train, batch_size=16, seed=0).batch(step).index


def changed(row, value):
    """The clouds with one training sample set to a value, and its number."""
    data = splits()
    inputs = data.train.batch(torch.arange(len(data.train))).inputs.clone()
    inputs[row] = value
    train = TensorSamples(inputs, data.train.labels, data.train.index)
    return replace(data, train=train), int(data.train.index[row])


@pytest.mark.parametrize("folder", [False, True])
def test_nan_in_an_output_is_found_at_its_step_module_and_sample(tmp_path, folder):
    place = tmp_path / "run" if folder else None
    sample = int(numbers()[ROW])
    kept = f"; {place / 'checkpoints/last.pt'} is kept, and resume=True goes on from it" if folder else ""
    shown = ", ".join(map(str, numbers()[:8].tolist()))
    sentence = (
        f"loss term 'label' of player 'student' is nan at step 6: it begins in student.3 (Faulty), whose output "
        f"is NaN for sample {sample}; the batch was that of step 6 of samples {shown} and 8 more; lower the learning "
        f"rate, clip gradients (clip=1.0), or look for such values in the data{kept}"
    )
    method = Alone(network(Faulty()))
    with pytest.raises(NotFiniteError) as found:
        run(method, folder=place)
    assert str(found.value) == sentence
    assert (found.value.term, found.value.player) == ("label", "student")
    assert found.value.samples == numbers().tolist()
    assert all_finite(list(method.parameters()))
    assert int(method.student[3].calls) == FAILS_AT  # what is in memory is the last good state too


def test_the_checkpoint_before_is_kept_and_a_mended_network_goes_on_from_it(tmp_path):
    with pytest.raises(TrainingError):
        run(Alone(network(Faulty())), folder=tmp_path)
    state = checkpoint.load(tmp_path / "checkpoints/last.pt")
    assert state["step"] == 4
    assert all_finite(list(state["method"].values()))
    mended = run(Alone(network(Faulty(at=-1))), folder=tmp_path, resume=True)
    whole = run(Alone(network(Faulty(at=-1))))
    assert all(torch.equal(value, weights_of(whole.product)[n]) for n, value in weights_of(mended.product).items())


def test_an_infinite_output_is_called_infinite():
    with pytest.raises(TrainingError, match=r"student\.3 \(Faulty\), whose output is infinite for sample"):
        run(Alone(network(Faulty(value=torch.inf))))


def test_nan_in_a_gradient_is_found_before_it_reaches_a_weight(tmp_path):
    method = Alone(network(Faulty(backwards=True)))
    sentence = (
        r"^a gradient of player 'student' is not finite at step 6: it begins in student\.3 \(Faulty\), which passes "
        rf"back a gradient that is NaN for sample {int(numbers()[ROW])}, in the gradient of the term 'label'; the batch"
    )
    with pytest.raises(NotFiniteError, match=sentence):
        run(method, QUICK.change(evaluate_every=1), folder=tmp_path)
    assert all_finite(list(method.parameters()))
    state = checkpoint.load(tmp_path / "checkpoints/last.pt")
    assert state["step"] == 6
    assert all_finite(list(state["method"].values()))
    assert state["method"]["student.0.weight"].equal(method.student[0].weight)


def test_a_function_after_a_module_and_the_term_it_is_in_are_named():
    class Rooted(KD):
        def forward(self, batch):
            losses = super().forward(batch)
            root = (losses.outputs * (self.clock.step != 5)).square().sum().sqrt()  # 0 / 0 backwards at step 5
            return Losses(**losses, root=root, outputs=losses.outputs)

    with pytest.raises(TrainingError) as found:
        run(Rooted(mlp(), trained_teacher()))
    assert "at step 5: it begins in what is computed from student.2 (Linear): its gradient is NaN" in str(found.value)
    assert "in the gradient of the term 'root'" in str(found.value)


def test_a_term_that_is_nan_by_itself_is_said_to_be():
    class Logged(Alone):
        def forward(self, batch):
            losses = super().forward(batch)
            return Losses(**losses, own=losses["label"] * 0 + (torch.nan if self.clock.step == 2 else 0.1))

    with pytest.raises(TrainingError, match=r"'own' .* at step 2: every module's output is finite, .* the term 'own'"):
        run(Logged(mlp()))


def test_the_teacher_is_looked_through_too():
    class Blind(nn.Module):
        def forward(self, inputs):
            return inputs / (inputs[:, :1] != 0)

    teacher = trained_teacher()
    data, number = changed(7, 0.0)
    step = next(s for s in range(100) if number in Stream(data.train, batch_size=16, seed=0).batch(s).index)
    blind = nn.Sequential(Blind(), *teacher)
    with pytest.raises(TrainingError, match=rf"at step {step}: .* teacher\.0 \(Blind\), .* NaN for sample {number};"):
        run(KD(mlp(), blind), data=data, check_teacher=False)


def test_inputs_that_are_not_finite_are_named():
    data, number = changed(int((splits().train.index == numbers(3)[ROW]).nonzero()), torch.nan)
    with pytest.raises(TrainingError, match=rf"at step 3: the inputs themselves are NaN for sample {number}; "):
        run(Alone(mlp()), data=data)


def test_weights_that_left_the_numbers_make_no_checkpoint(tmp_path):
    class Bursting(Alone):
        def after_step(self, player):
            if self.clock.step == 7:  # the eighth step, after which there is a checkpoint
                with torch.no_grad():
                    self.student[0].weight[0, 0] = torch.inf

    with pytest.raises(TrainingError, match="a weight of player 'student' is not finite after step 7: no checkpoint"):
        run(Bursting(mlp()), folder=tmp_path)
    assert checkpoint.load(tmp_path / "checkpoints/last.pt")["step"] == 4
    with pytest.raises(TrainingError, match=r"at step 8: student\.0\.weight is infinite already before this step"):
        run(Bursting(mlp()), QUICK.change(evaluate_every=12), folder=tmp_path / "later")


def test_dropout_draws_the_same_again():
    class Touchy(nn.Module):
        """NaN for the rows in which dropout left few values."""

        seen = []

        def forward(self, inputs):
            few = (inputs == 0).sum(1) >= 7
            if self.training and few.any():
                self.seen.append(few.nonzero().flatten())
                return inputs / (~few)[:, None]
            return inputs

    student = nn.Sequential(mlp()[0], nn.Dropout(0.5), Touchy(), mlp()[2])
    with pytest.raises(TrainingError) as found:
        run(Alone(student), QUICK.change(steps=60))
    step = int(re.search(r"at step (\d+)", str(found.value))[1])
    first, again = Touchy.seen
    assert first.equal(again)
    named = ", ".join(str(int(numbers(step)[row])) for row in first)
    assert f"student.2 (Touchy), whose output is NaN for sample{'s' * (len(first) > 1)} {named};" in str(found.value)


def test_a_part_of_an_accumulated_batch_is_what_is_named():
    with pytest.raises(NotFiniteError, match=r"at step 3: it begins in student\.3 \(Faulty\)") as found:
        run(Alone(network(Faulty())), QUICK.change(accumulate=2))  # the call numbered 6 is the first of step 3
    assert found.value.samples == numbers(3)[0::2].tolist()


def test_the_failing_player_is_searched():
    class Two(Method):
        needs = Alone.needs

        def __init__(self, first, second):
            super().__init__(first)
            self.second = second

        def players(self):
            return {"first": list(self.student.parameters()), "second": list(self.second.parameters())}

        def turns(self, batch):
            for player, net in (("first", self.student), ("second", self.second)):
                loss = nn.functional.cross_entropy(net(batch.inputs), batch.labels)
                yield player, Losses(**{f"{player}_label": loss})

    with pytest.raises(NotFiniteError, match=r"'second_label' of player 'second' is nan at step 6: .* second\.3 \(Fa"):
        run(Two(mlp(), network(Faulty())))
    with pytest.raises(NotFiniteError, match=r"gradient of player 'second' is not finite at step 6: .* second\.3 \("):
        run(Two(mlp(), network(Faulty(backwards=True))))


def test_what_does_not_happen_again_is_said():
    calls = []

    class Moody(nn.Module):
        def forward(self, inputs):
            if self.training:
                calls.append(1)
                return inputs * torch.nan if len(calls) == 4 else inputs
            return inputs

    with pytest.raises(TrainingError, match="at step 3: a second pass over the batch was finite"):
        run(Alone(nn.Sequential(mlp(), Moody())))


def test_a_healthy_training_is_not_changed_by_being_watched(monkeypatch):
    watched = run(Alone(network(Faulty(at=-1))))
    monkeypatch.setattr(Replay, "remember", lambda self: None)
    alone = run(Alone(network(Faulty(at=-1))))
    assert all(torch.equal(value, weights_of(alone.product)[n]) for n, value in weights_of(watched.product).items())


def test_large_finite_gradients_are_finite():
    assert all_finite([torch.full((4,), 3e38), torch.tensor([1], dtype=torch.int64)])
    assert all_finite([torch.full((4,), 1e300, dtype=torch.float64)])
    assert not all_finite([torch.ones(3), torch.tensor([1.0, torch.inf])])
    assert not all_finite([torch.tensor([torch.nan])])
    assert all_finite([])


def test_samples_without_numbers_are_named_by_row():
    class Blind(nn.Module):
        def forward(self, inputs):
            return inputs / (inputs[:, :1] != 0)

    inputs = torch.randn(32, 6)
    samples = TensorSamples(inputs, torch.arange(32) % 3)
    method = Alone(nn.Sequential(Blind(), mlp()))
    batch = samples.batch(torch.arange(8)).replace(index=None)
    batch.inputs[5, 0] = 0.0
    replay = Replay(method)
    replay.remember()
    with (
        pytest.raises(NotFiniteError, match=r"broken at step 9: .* NaN for row 5; the batch was that of step 9; lower"),
        replay.explaining(9, batch, method.turns, method.players()),
    ):
        raise NotFiniteError("broken", player="student", term="label")


FAULTY = """
import torch
from torch import nn

class Overflow(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs):
        if self.training:
            self.calls = self.calls + 1
        return inputs * float("nan") if int(self.calls) == 12 else inputs

def network(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Overflow(), nn.ReLU(), nn.Linear(8, classes))
"""


def test_the_command_line_says_it_in_one_sentence(here, capsys):
    (here / "faulty.py").write_text(FAULTY)
    line = (
        "distill --teacher conv-8-16 --student faulty.py:network --teacher-epochs 4 --lr 0.01 --steps 20 --seeds 1 "
        "--labels 60 --test-size 100 --jobs 1 --out run"
    )
    code, _, error = run_command(line, capsys)
    assert code == 2
    last = error.strip().splitlines()[-1]
    assert last.startswith("stillroom: arm 'alone', seed 0: loss term 'label' of player 'student' is nan at step ")
    assert "it begins in student.net.2 (Overflow), whose output is NaN for every sample" in last
    assert "run/arms/alone/seed-0/checkpoints/last.pt is kept" in last
    assert "Traceback" not in error
