"""Methods that accept what cannot be right, or break an equality: exactly that check fails, and says what is wrong."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from stillroom.check import CheckError, CheckWarning, all_checks, check_method
from stillroom.losses._shared import at_least_float32, check_logits
from stillroom.method import Needs
from stillroom.task import Classification
from tests.check_toys import CLASSES, ToyHint, ToyKD, conv, failed_messages, images, kd, rows
from tests.test_check_broken import BROKEN as ELSEWHERE

# ---- refusals --------------------------------------------------------------------------------------------------------


class Spread(ToyKD):
    needs = Needs(whole_batch="logits are compared with the batch's spread")

    def more(self, batch, student_logits):
        far = at_least_float32(student_logits - student_logits.mean(0))
        return {"spread": (far.square().sum(0) / (len(batch) - 1)).mean()}


class Squeezes(ToyKD):
    def more(self, batch, student_logits):
        return {"size": at_least_float32(student_logits).squeeze().square().mean(1).mean()}


class TakesEmpty(ToyKD):
    def check(self, student_logits, teacher_logits, labels):
        check_logits(student_logits, teacher_logits, labels, min_samples=0)


class Vague(ToyKD):
    def check(self, student_logits, teacher_logits, labels):
        if len(student_logits) == 0:
            raise ValueError("something went wrong")
        super().check(student_logits, teacher_logits, labels)


class CutsTeacher(ToyKD):
    def teacher_logits(self, batch):
        return super().teacher_logits(batch)[:, :CLASSES]


class Broadcasts(ToyKD):
    zero_at_teacher = ()

    def check(self, student_logits, teacher_logits, labels):
        check_logits(student_logits, student_logits, labels)
        if teacher_logits.shape[1] > CLASSES:
            raise ValueError("teacher and student have different classes")

    def distill(self, student_logits, teacher_logits):
        return (at_least_float32(student_logits) - teacher_logits).square().mean()


class FlattensLabels(ToyKD):
    def labels(self, batch):
        return batch.labels.flatten()


class CutsLabels(ToyKD):
    def check(self, student_logits, teacher_logits, labels):
        check_logits(student_logits, teacher_logits)
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(f"labels must be (N,) int64, given {tuple(labels.shape)}, {labels.dtype}")

    def label(self, student_logits, labels):
        return F.cross_entropy(student_logits[: len(labels)], labels)


class CastsLabels(ToyKD):
    def labels(self, batch):
        return batch.labels.long()


class ClampsLabels(ToyKD):
    def label(self, student_logits, labels):
        return F.cross_entropy(student_logits, labels.clamp(0, CLASSES - 1))


class Careless(Classification):
    def check_labels(self, labels, outputs):
        pass


class CleansInputs(ToyKD):
    def forward(self, batch):
        return super().forward(batch.replace(inputs=batch.inputs.nan_to_num()))


class CleansTeacher(ToyKD):
    def teacher_logits(self, batch):
        return super().teacher_logits(batch).nan_to_num()


# ---- equalities ------------------------------------------------------------------------------------------------------


class HalvesLabel(ToyKD):
    def label(self, student_logits, labels):
        return F.cross_entropy(student_logits, labels) / 2


class ScalesGradient(ToyKD):
    def adjust_gradients(self, player):
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                parameter.grad *= 2


class SoftCrossEntropy(ToyKD):
    def distill(self, student_logits, teacher_logits):
        return F.cross_entropy(student_logits, teacher_logits.softmax(1))


class Slope(ToyKD):
    may_be_negative = ("distill",)

    def distill(self, student_logits, teacher_logits):
        return (at_least_float32(student_logits) - teacher_logits)[:, 0].mean()


class AsksInputs(ToyKD):
    def teacher_logits(self, batch):
        return self.teacher(batch.inputs)


class OwnInputs(ToyKD):
    """Asks about mixtures of samples and does not say so."""

    def teacher_logits(self, batch):
        return self.teacher(batch.replace(inputs=batch.inputs + 1e-6 * torch.rand_like(batch.inputs)))


class Sums(ToyKD):
    def distill(self, student_logits, teacher_logits):
        return super().distill(student_logits, teacher_logits) * len(student_logits)


class OtherLayer(ToyHint):
    """Claims to be 0 for a student that is its teacher, and compares different layers."""

    zero_at_teacher = ("hint",)
    layer_of_student = "1"


class FirstProcessOnly(ToyKD):
    def more(self, batch, student_logits):
        factor = 2.0 if dist.is_initialized() and dist.get_rank() == 0 else 1.0
        return {"size": factor * at_least_float32(student_logits).square().mean()}


BROKEN = [
    ("batch_of_one", Spread, "with a batch of 1, 'total' is nan: give a finite loss"),
    ("batch_of_one", Squeezes, "a batch of 1 raises IndexError.*beware of squeeze"),
    ("empty_batch", TakesEmpty, "an empty batch: gives a total of nan; expected a ValueError"),
    ("empty_batch", Vague, "an empty batch: refused with 'something went wrong', expected a word"),
    ("teacher_classes", CutsTeacher, r"a teacher with one more class than the student: gives a total of [\d.]+"),
    ("teacher_classes", Broadcasts, r"a teacher with a single class than the student: gives a total of [\d.]+"),
    ("label_shape", FlattensLabels, r"labels of shape \(8, 1\) instead of \(8,\): gives a total of"),
    ("label_shape", CutsLabels, "7 labels for 8 samples give a total of"),
    ("label_dtype", CastsLabels, r"float labels for class numbers: gives a total of"),
    ("nan_inputs", CleansInputs, "NaN in an input gives a finite total and finite outputs"),
    ("nan_teacher", CleansTeacher, r"a teacher that answers only NaN gives a total of [\d.]+"),
    ("weight_zero", HalvesLabel, r"the total is [\d.]+, for the student alone [\d.]+: 'label' must be the plain"),
    ("weight_zero", ScalesGradient, r"the gradient of 'student\.0\.weight' is not that of the student alone"),
    ("zero_at_teacher", SoftCrossEntropy, r"term 'distill' is [\d.]+ for a student that is its teacher, expected 0"),
    ("zero_at_teacher", Slope, r"\['distill'\] are 0 for a student that is its teacher, but move it"),
    ("cached_teacher", AsksInputs, r"raises ValueError: this batch has no index.* ask teacher\(batch\), never"),
    ("cached_teacher", OwnInputs, r"raises ValueError: sample 0 came with other inputs .* needs\.teacher_at = \"own\""),
    ("accumulation", Sums, r"two half batches give a total of [\d.]+ instead of [\d.]+ for the whole"),
]


@pytest.mark.parametrize(("check", "kind", "message"), BROKEN, ids=[f"{row[0]}-{row[1].__name__}" for row in BROKEN])
def test_exactly_this_check_fails(check, kind, message):
    report = check_method(kd(kind), rows(), processes=False, raises=False)
    assert list(report.failed) == [check]
    with pytest.raises(CheckError, match=message):
        report.raise_for_errors()


def test_every_check_has_a_broken_method():
    by_itself = {"channels_last", "label_range", "two_processes"}
    assert {name for name, *_ in (*BROKEN, *ELSEWHERE)} | by_itself == set(all_checks())


def test_labels_that_are_clamped_are_found_where_the_task_does_not_look_either():
    assert not failed_messages(kd(ClampsLabels), task=Classification())
    failed = failed_messages(kd(ClampsLabels), task=Careless())
    assert list(failed) == ["label_range"]
    assert failed["label_range"].startswith("a label of 3: gives a total of")


def test_a_claim_of_zero_is_checked_inside_the_networks_where_both_are_alike():
    alike = OtherLayer(conv(), conv())
    alike.adapter = nn.Identity()
    failed = failed_messages(alike, images(), only=["zero_at_teacher"])
    assert "term 'hint' is 0." in failed["zero_at_teacher"]
    alike.layer_of_student = "2"
    assert check_method(alike, images(), only=["zero_at_teacher"]).passed == ["zero_at_teacher"]
    unlike = OtherLayer(conv(4), conv(5))
    assert "teacher of the student's architecture" in str(check_method(unlike, images(), only=["zero_at_teacher"]))


class Correlation(ToyKD):
    needs = Needs(whole_batch="samples are correlated", min_batch=2)

    def distill(self, student_logits, teacher_logits):
        s, t = (logits - logits.mean(0) for logits in (student_logits, teacher_logits))
        return 1 - ((s * t).sum(0) / (s.norm(dim=0) * t.norm(dim=0) + 1e-8)).mean()


def test_an_epsilon_does_not_refute_a_claim_of_zero_for_a_student_that_says_nearly_nothing():
    method = kd(Correlation)
    with torch.no_grad():
        method.student[-1].weight *= 1e-5
    assert check_method(method, rows(), only=["zero_at_teacher"]).passed == ["zero_at_teacher"]


def test_a_script_that_runs_itself_again_in_another_process_is_stopped(monkeypatch):
    monkeypatch.setenv("STILLROOM_CHECK_WORKER", "1")
    with pytest.raises(RuntimeError, match="put the call under if __name__ == '__main__':"):
        check_method(kd(), rows())


def test_a_loss_that_depends_on_the_rank_is_found_by_two_processes():
    report = check_method(kd(FirstProcessOnly), rows(), only=["accumulation", "two_processes"], raises=False)
    assert report.passed == ["accumulation"]
    assert "two processes with half the batch each give a total of" in report.failed["two_processes"]


# ---- what works, but badly -------------------------------------------------------------------------------------------


class RefusesOne(ToyKD):
    def check(self, student_logits, teacher_logits, labels):
        check_logits(student_logits, teacher_logits, labels, min_samples=2)


class Idle(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.gate = nn.Parameter(torch.ones(()))

    def more(self, batch, student_logits):
        return {"gate": 0 * self.gate.square()}


class BadMerge(ToyKD):
    @property
    def product(self):
        merged = copy.deepcopy(self.student)
        with torch.no_grad():
            merged[0].weight *= 1.5
        return merged


class CarriesMore(ToyKD):
    @property
    def product(self):
        merged = copy.deepcopy(self.student)
        merged[2].register_parameter("unused", nn.Parameter(torch.ones(2)))
        return merged


class TwoOwners(ToyKD):
    def players(self):
        everything = list(self.student.parameters())
        return {"student": everything, "bias": everything[-1:]}


WARNED = [
    ("batch_of_one", RefusesOne, r"a batch of 1 is refused \(.*at least 2 samples.*\), but needs.min_batch is 1"),
    ("gradients", Idle, r"the gradient of 'gate' of player 'student' is exactly 0 in every step"),
    ("product", BadMerge, "product is made anew and answers otherwise than the student"),
    ("product", CarriesMore, r"product carries '2\.unused', which its output never uses"),
    ("players", TwoOwners, r"'student\.4\.bias' is stepped by two players: .*; player 'bias' had no turn"),
]


@pytest.mark.parametrize(("check", "kind", "message"), WARNED, ids=[row[1].__name__ for row in WARNED])
def test_exactly_this_check_warns(check, kind, message):
    with pytest.warns(CheckWarning, match=message):
        report = check_method(kd(kind), rows(), only=[check])
    assert list(report.warned) == [check]
