"""For every check a method that is broken in that one way: exactly that check fails, and says what is wrong."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks.taps import Taps
from stillroom.check import CheckError, check_clock, check_method
from stillroom.losses._shared import at_least_float32
from stillroom.method import Losses, Needs, Stage
from tests.check_toys import CLASSES, ToyKD, conv, failed_messages, images, kd, mlp, rows

# ---- what is returned ------------------------------------------------------------------------------------------------


class Half(Losses):
    @property
    def total(self):
        return super().total / 2


class HiddenFactor(ToyKD):
    def losses(self, outputs, terms):
        return Half(outputs=outputs, **terms)


class ReturnsTensor(ToyKD):
    def losses(self, outputs, terms):
        return sum(terms.values())


class OtherRows(ToyKD):
    def losses(self, outputs, terms):
        return super().losses(torch.cat([outputs, outputs]), terms)


class HiddenNaN(ToyKD):
    def more(self, batch, student_logits):
        return {"shown": torch.tensor(float("nan"))}

    def losses(self, outputs, terms):
        return Losses(outputs=outputs, weights={"shown": 0.0}, **terms)


class Negative(ToyKD):
    def more(self, batch, student_logits):
        return {"entropy": -F.softmax(at_least_float32(student_logits), 1).square().sum(1).mean()}


class UnknownPlayer(ToyKD):
    def stages(self):
        return (Stage(players=("student", "critic")),)


class UnknownTerm(ToyKD):
    def stages(self):
        return (Stage(terms=("label", "kd")),)


class OneName(ToyKD):
    may_be_negative = "distill"


class SecretIndex(ToyKD):
    def more(self, batch, student_logits):
        return {"far": 1e-3 * (at_least_float32(student_logits) * batch.index.unsqueeze(1)).square().mean()}


class SecretLabels(ToyKD):
    needs = Needs(labels="none")


class MeanOfNothing(ToyKD):
    needs = Needs(labels="some")


class DeafClock(ToyKD):
    def tell_time(self, step, epoch, progress):
        self.now = progress


class LeftOut(ToyKD):
    def players(self):
        return {"student": list(self.student.parameters())[:-1]}


class Stranger(ToyKD):
    def turns(self, batch):
        yield "pupil", self(batch)


class TeacherTrained(ToyKD):
    def players(self):
        return {"student": [*self.student.parameters(), self.teacher.network[0].weight]}


class Detached(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.adapter = nn.Linear(CLASSES, CLASSES)

    def more(self, batch, student_logits):
        return {"far": at_least_float32(self.adapter(student_logits).detach() - student_logits).square().mean()}


class TeacherWithGradient(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.teacher.network.requires_grad_(True)


# ---- teacher ---------------------------------------------------------------------------------------------------------


class Counts(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.counter = (self.teacher.network,)
        self.counter[0].register_buffer("asked", torch.zeros((), dtype=torch.int64))

    def teacher_logits(self, batch):
        self.counter[0].asked += 1
        return super().teacher_logits(batch)


class WakesTeacher(ToyKD):
    def train(self, mode=True):
        super().train(mode)
        self.teacher.network[2].train(mode)  # its ReLU: changes nothing yet
        return self


class SavesTeacher(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.register_buffer("prior", self.teacher.network[0].bias.detach())


# ---- state -----------------------------------------------------------------------------------------------------------


class Forgets(ToyKD):
    """Counts its steps in a plain number that only the end of training reads."""

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.steps = 0

    def more(self, batch, student_logits):
        return {
            "drift": (0.1 * self.steps * (self.clock.progress == 1.0))
            * at_least_float32(student_logits).square().mean()
        }

    def after_step(self, player):
        self.steps += 1


class ForgetsLater(Forgets):
    """As above, but only from the third step on."""

    def more(self, batch, student_logits):
        return {"drift": 0.1 * max(self.steps - 2, 0) * at_least_float32(student_logits).square().mean()}


class PicklesItsState(ToyKD):
    def get_extra_state(self):
        return Fraction(1, 2)

    def set_extra_state(self, state):
        pass


class Dice(ToyKD):
    """Draws from a generator that nobody seeds, a third of the way through."""

    def more(self, batch, student_logits):
        if abs(self.clock.progress - 1 / 3) > 1e-9 or self.clock.epoch != 1:
            return {}
        own = torch.Generator()
        own.seed()
        return {"noise": torch.rand((), generator=own) * student_logits.square().mean()}


class SharesStudent(ToyKD):
    def __deepcopy__(self, memo):
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        return twin


class KeepsActivations(ToyKD):
    def losses(self, outputs, terms):
        self.latest = outputs
        return super().losses(outputs, terms)


class ClosureHook(ToyKD):
    needs = Needs(features=True)

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.seen = {}
        self.teacher.network[2].register_forward_hook(lambda module, inputs, output: self.seen.update(hidden=output))

    def more(self, batch, student_logits):
        return {"far": (at_least_float32(student_logits).mean() - self.seen["hidden"].mean()).square() * 0}


class Lambda(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.scale = lambda loss: loss


class ShipsUntrained(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.first = (copy.deepcopy(student),)

    @property
    def product(self):
        return self.first[0]


class ShipsItself(ToyKD):
    @property
    def product(self):
        return self


class ShipsTeacher(ToyKD):
    @property
    def product(self):
        return nn.ModuleList([self.student, self.teacher.network])


class KeepsTap(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.taps = Taps(self.student, "2")


# ---- numbers ---------------------------------------------------------------------------------------------------------


class OnlyFloat32(ToyKD):
    def label(self, student_logits, labels):
        return F.cross_entropy(student_logits @ torch.eye(CLASSES), labels)


class CastsToFloat32(ToyKD):
    def label(self, student_logits, labels):
        return F.cross_entropy(student_logits.float(), labels)


class HalfTerm(ToyKD):
    def more(self, batch, student_logits):
        return {"size": student_logits.square().mean()}


class Views(ToyKD):
    def more(self, batch, student_logits):
        return {
            "far": (batch.inputs.view(len(batch), -1).mean(1) - at_least_float32(student_logits).mean(1))
            .square()
            .mean()
        }


BROKEN = [
    (
        "terms",
        HiddenFactor,
        r"total of player 'student' is [\d.]+, but its weighted terms sum to [\d.]+: put every factor",
    ),
    ("terms", ReturnsTensor, "a turn gave Tensor, expected Losses"),
    ("signs", Negative, r"term 'entropy' is -0\.\d+ after 0 steps, expected 0 or more"),
    ("declarations", UnknownPlayer, r"stage 'train' asks for player 'critic', but there are only \['student'\]"),
    ("declarations", UnknownTerm, r"stage 'train' asks for term 'kd', but there are only \['distill', 'label'\]"),
    ("declarations", OneName, r"may_be_negative is the string 'distill', expected a tuple"),
    ("needs", SecretIndex, "without batch.index the method raises AttributeError"),
    ("needs", SecretLabels, r"without batch\.labels the method raises .* declare needs = Needs\(labels=\"every\"\)"),
    ("needs", MeanOfNothing, "with all rows unlabelled, 'total' is nan; needs.labels is \"some\""),
    ("clock", DeafClock, r"after tell_time\(progress=0\.0\) the clock stands at 1\.0: call super"),
    ("players", LeftOut, r"trainable parameter 'student\.4\.bias' belongs to no player"),
    ("gradients", Detached, r"no gradient reaches 'adapter\.weight' of player 'student': look for a detach"),
    ("gradients", TeacherWithGradient, r"the teacher's '0\.weight' requires a gradient"),
    ("teacher_unchanged", Counts, r"the teacher's 'Sequential\.asked' changed in a few steps"),
    ("teacher_eval", WakesTeacher, r"module '2' of the teacher is in training mode after method\.train\(\)"),
    ("teacher_hidden", SavesTeacher, "'prior' of the method is a tensor of the teacher"),
    ("state_dict", Forgets, "after loading the state dict, term 'drift' is 0 instead of"),
    ("resume", ForgetsLater, r"turn 3 of a run resumed after 2 of 4 steps has total .* keep counters"),
    ("determinism", Dice, "two runs from one seed have totals .* in turn 1: draw from torch's"),
    ("deepcopy", KeepsActivations, "copy.deepcopy after a step raises RuntimeError.* keep no activations"),
    ("pickle", Lambda, r"pickle\.dumps\(method\) raises .* replace lambdas"),
    ("product", ShipsUntrained, "product answers the same before and after training"),
    ("product", ShipsItself, "product holds the ShipsItself ''"),
    ("product", ShipsTeacher, r"product ships '1\.0\.weight', a tensor of the teacher"),
    ("product", KeepsTap, "product has a hook on 'Sequential'"),
    ("float64", OnlyFloat32, "in float64, the method raises RuntimeError.* create tensors with dtype="),
    ("float64", CastsToFloat32, r"in float64, 'label' is torch\.float32, expected torch\.float64"),
    ("autocast", HalfTerm, r"under bfloat16 autocast, 'size' is torch\.bfloat16, expected torch\.float32"),
]


@pytest.mark.parametrize(("check", "kind", "message"), BROKEN, ids=[f"{row[0]}-{row[1].__name__}" for row in BROKEN])
def test_exactly_this_check_fails(check, kind, message):
    report = check_method(kd(kind), rows(), processes=False, raises=False)
    assert list(report.failed) == [check]
    with pytest.raises(CheckError, match=message):
        report.raise_for_errors()


# ---- what fails more than one check, or needs a batch of its own -----------------------------------------------------


def test_a_view_of_channels_last_images_is_found():
    failed = failed_messages(Views(conv(), conv()), images())
    assert list(failed) == ["channels_last"]
    assert "use reshape or flatten in place of view" in failed["channels_last"]


def test_a_term_of_weight_0_that_is_not_finite_is_found():
    assert "term 'shown' of player 'student' is nan" in failed_messages(kd(HiddenNaN))["terms"]


def test_outputs_that_are_not_the_batchs_rows_are_found():
    assert "outputs have shape (16, 3) for a batch of 8" in failed_messages(kd(OtherRows))["terms"]


def test_a_player_without_a_name_and_a_trained_teacher_are_found():
    assert "turns yields player 'pupil', but players() has ['student']" in failed_messages(kd(Stranger))["players"]
    assert "trains a parameter of the teacher" in failed_messages(kd(TeacherTrained))["players"]


class AsksModule(ToyKD):
    def teacher_logits(self, batch):
        return self.teacher(batch.inputs).detach()


def test_a_teacher_outside_frozen_is_found():
    method = kd(AsksModule)
    method.teacher = mlp().eval()
    failed = failed_messages(method)
    assert "the teacher's module 'Sequential' is in method.modules(): keep the teacher" in failed["teacher_hidden"]
    assert "the teacher is in training mode after method.train()" in failed["teacher_eval"]
    assert "'Sequential.1.running_mean' changed" in failed["teacher_unchanged"]


def test_a_state_dict_with_objects_is_found():
    failed = failed_messages(kd(PicklesItsState))
    assert set(failed) == {"state_dict", "resume"}
    assert "cannot be read by torch.load(weights_only=True)" in failed["state_dict"]


def test_a_copy_that_shares_the_student_or_its_hooks_is_found():
    shared = failed_messages(lambda: kd(SharesStudent))
    assert list(shared) == ["deepcopy"]
    assert "training a deep copy changed 'student.0.weight' of the original" in shared["deepcopy"]
    hooked = failed_messages(lambda: kd(ClosureHook))
    assert list(hooked) == ["deepcopy"]
    assert "the hook on '2' is a function that captures ClosureHook objects" in hooked["deepcopy"]


def test_a_schedule_that_starts_with_a_division_by_0_is_found():
    class Falling(ToyKD):
        def more(self, batch, student_logits):
            return {"size": at_least_float32(student_logits).square().mean() / torch.tensor(self.clock.progress)}

    with pytest.raises(CheckError, match=r"at progress 0\.0, 'total' is inf: a schedule divides by 0"):
        check_clock(kd(Falling), rows())
