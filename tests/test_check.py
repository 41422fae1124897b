"""Good methods pass the battery whole; what it says about itself, and what it refuses to run on."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from stillroom.blocks.taps import Taps
from stillroom.check import (
    CheckError,
    CheckWarning,
    Skip,
    all_checks,
    check_channels_last,
    check_method,
    check_terms,
    check_weight_zero,
)
from stillroom.check._tools import differing
from stillroom.checkpoint import random_state
from stillroom.data.batch import Batch
from stillroom.method import Losses, Needs
from stillroom.task import Classification
from tests.check_toys import ToyDuel, ToyHint, ToyKD, ToyMemory, conv, images, kd, mlp, rows


def test_there_are_this_many_checks_and_each_is_public_and_documented():
    import stillroom.check as package

    checks = all_checks()
    assert len(checks) == 32
    for name, check in checks.items():
        assert getattr(package, f"check_{name}") is check
        assert check.__doc__.strip().endswith(".")


def test_distillation_passes_every_check_that_applies_in_two_processes_too():
    report = check_method(kd(), rows(), task=Classification())
    assert report.ok
    assert not report.warned
    assert set(report.skipped) == {"channels_last"}


def test_a_method_that_reads_features_of_conv_nets_passes():
    report = check_method(ToyHint(conv(4), conv(5)), images(), task=Classification(), processes=False)
    assert report.ok
    assert not report.warned
    assert set(report.skipped) == {"cached_teacher", "teacher_classes", "two_processes", "zero_at_teacher"}
    assert report.skipped["teacher_classes"] == "no term reads the teacher's outputs"


def test_a_method_with_memory_and_an_average_passes():
    report = check_method(ToyMemory(mlp(), mlp()), rows(), processes=False)
    assert report.ok
    assert not report.warned
    assert report.skipped["accumulation"] == "samples are compared with a memory that every batch changes"


def test_a_method_of_two_players_and_stages_passes():
    report = check_method(ToyDuel(mlp(), mlp()), rows(), processes=False)
    assert report.ok
    assert not report.warned
    assert report.skipped["label_shape"] == "the method reads no labels"


def test_a_factory_is_as_good_as_a_method():
    report = check_method(lambda: kd(), rows(), processes=False)
    assert report.method == "ToyKD"
    assert report.ok


def test_a_teacher_may_be_a_function():
    network = mlp().eval()
    method = ToyKD(mlp(), partial(_predict, network))
    report = check_method(method, rows(), processes=False)
    assert report.ok
    assert not report.warned
    assert report.skipped["teacher_unchanged"] == "the teacher is a function, not a module"
    assert "nan_teacher" in report.passed


def _predict(network: nn.Module, batch: Batch) -> torch.Tensor:
    return network(batch.inputs)


def test_the_method_and_the_random_generators_are_left_alone():
    method, batch = kd(), rows()
    before, randomness = copy.deepcopy(method.state_dict()), random_state()
    check_method(method, batch, processes=False)
    assert differing(method.state_dict(), before) == []
    assert differing(random_state(), randomness) == []
    assert all(parameter.grad is None for parameter in method.parameters())


def test_one_check_can_be_called_alone_and_says_why_it_does_not_apply():
    assert check_terms(kd(), rows()) is None
    assert check_channels_last(kd(), rows()) == Skip("the inputs are no images (N, C, H, W)")
    assert check_weight_zero(ToyDuel(mlp(), mlp()), rows()) == Skip("the method has no supervised term named 'label'")


def test_without_a_task_label_ranges_are_skipped():
    report = check_method(kd(), rows(), processes=False, only=["label_range", "label_dtype"])
    assert report.passed == ["label_dtype"]
    assert "pass task=" in report.skipped["label_range"]


class NoOutputs(ToyKD):
    def losses(self, outputs, terms):
        return Losses(**terms)


def test_the_report_is_a_table_and_raises_one_error():
    report = check_method(kd(NoOutputs), rows(), only=["terms", "signs", "channels_last"], raises=False)
    assert not report.ok
    assert (list(report.failed), report.passed, list(report.skipped)) == (["terms"], ["signs"], ["channels_last"])
    lines = str(report).splitlines()
    assert lines[0] == "NoOutputs: 1 passed, 0 warned, 1 skipped, 1 failed"
    assert lines[1].startswith("terms          failed   no turn's Losses has outputs: pass outputs=")
    assert lines[-1] == "channels_last  skipped  the inputs are no images (N, C, H, W)"
    with pytest.raises(CheckError, match=r"NoOutputs fails 1 of 3 checks:\n  terms: no turn's Losses has outputs"):
        report.raise_for_errors()
    with pytest.raises(CheckError, match="NoOutputs fails 1 of 1 checks"):
        check_method(kd(NoOutputs), rows(), only=["terms"])


def test_a_report_in_which_everything_was_skipped_is_not_ok():
    assert not check_method(kd(), rows(), only=["channels_last"]).ok


class Typo(ToyKD):
    may_be_negative = ("dissill",)


def test_warnings_are_in_the_report_and_emitted():
    with pytest.warns(CheckWarning, match=r"Typo: declarations: may_be_negative names \['dissill'\]"):
        report = check_method(kd(Typo), rows(), only=["declarations"])
    assert report.ok
    assert list(report.warned) == ["declarations"]


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no check 'gradient', expected a name such as gradients"):
        check_method(kd(), rows(), only=["gradient"])
    with pytest.raises(ValueError, match="no check 'check_pickles', expected a name such as pickle"):
        check_method(kd(), rows(), skip=["check_pickles"])


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(TypeError, match="expected a stillroom Method or a function"):
        check_method(ToyKD, rows())
    with pytest.raises(TypeError, match="the factory must return a stillroom Method, given Sequential"):
        check_method(mlp, rows())
    with pytest.raises(TypeError, match="batch must be a stillroom Batch, given Tensor"):
        check_method(kd(), torch.randn(8, 4))
    with pytest.raises(ValueError, match="batch has 1 samples, expected 2 or more"):
        check_method(kd(), rows(1))
    with pytest.raises(ValueError, match="needs labels"):
        check_method(kd(), Batch(torch.randn(8, 4)))


class NeedsIndex(ToyKD):
    needs = Needs(index=True)


def test_a_batch_without_the_index_that_is_needed_is_refused():
    with pytest.raises(ValueError, match=r"needs batch.index"):
        check_method(kd(NeedsIndex), rows().replace(index=None))


def test_factories_that_share_networks_or_draw_elsewhere_are_refused():
    student, teacher = mlp(), mlp()
    with pytest.raises(ValueError, match=r"share 'student\.0\.weight'"):
        check_method(lambda: ToyKD(student, mlp()), rows())
    with pytest.raises(ValueError, match=r"share 'Sequential\.0\.weight'"):
        check_method(lambda: ToyKD(mlp(), teacher), rows())
    own = torch.Generator().manual_seed(0)

    def drawn() -> ToyKD:
        method = kd()
        nn.init.normal_(method.student[0].weight, generator=own)
        return method

    with pytest.raises(ValueError, match=r"differ in 'student\.0\.weight' under one seed"):
        check_method(drawn, rows())


class Unrunnable(ToyKD):
    def forward(self, batch):
        raise KeyError("layer4")


def test_a_method_that_does_not_run_fails_once_and_not_thirty_times():
    report = check_method(kd(Unrunnable), rows(), raises=False)
    assert report.failed == {"terms": "raises KeyError: 'layer4'"}
    assert len(report.skipped) == 31


class Uncopyable(ToyKD):
    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.weight_of_pairs = torch.ones(3, requires_grad=True) * 2  # not a leaf


def test_a_method_that_cannot_be_copied_fails_once_and_a_factory_helps():
    report = check_method(kd(Uncopyable), rows(), raises=False)
    assert list(report.failed) == ["deepcopy"]
    assert len(report.skipped) == 31
    report = check_method(lambda: kd(Uncopyable), rows(), processes=False, raises=False)
    assert list(report.failed) == ["deepcopy"]
    assert len(report.skipped) < 10


def test_a_tap_that_is_kept_on_the_student_is_found_in_the_product():
    method = kd()
    taps = Taps(method.student, "2")
    report = check_method(method, rows(), only=["product"], raises=False)
    assert "product has a hook on" in report.failed["product"]
    taps.remove()
    assert check_method(method, rows(), only=["product"]).ok
