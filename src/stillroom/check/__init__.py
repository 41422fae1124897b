"""Checks that every method must pass, yours too: `check_method(method, batch)`, as scikit-learn has for estimators.

Each check is also a function by itself, `check_NAME(method, batch)`. The method is a `Method`, which is copied and left
alone, or a function without arguments that builds one with all its networks; the batch is a `Batch` of samples as the
method will see them. Checks of values take `task=` too. A check returns None, or `Skip(reason)` where it does not
apply; it raises `CheckError` where the method is broken, and emits `CheckWarning` where it will work badly. Each
message says what was found, what is expected, and the remedy.
"""

from stillroom.check._battery import all_checks, check_method
from stillroom.check._equalities import check_cached_teacher, check_weight_zero, check_zero_at_teacher
from stillroom.check._losses import (
    check_clock,
    check_declarations,
    check_gradients,
    check_needs,
    check_players,
    check_signs,
    check_terms,
)
from stillroom.check._numbers import check_autocast, check_channels_last, check_float64
from stillroom.check._refusals import (
    check_batch_of_one,
    check_empty_batch,
    check_label_dtype,
    check_label_range,
    check_label_shape,
    check_nan_inputs,
    check_nan_teacher,
    check_teacher_classes,
)
from stillroom.check._report import CheckError, CheckReport, CheckResult, CheckWarning, Skip
from stillroom.check._split import check_accumulation, check_two_processes
from stillroom.check._state import (
    check_deepcopy,
    check_determinism,
    check_pickle,
    check_product,
    check_resume,
    check_state_dict,
)
from stillroom.check._teachers import check_teacher_eval, check_teacher_hidden, check_teacher_unchanged

__all__ = [
    "CheckError",
    "CheckReport",
    "CheckResult",
    "CheckWarning",
    "Skip",
    "all_checks",
    "check_accumulation",
    "check_autocast",
    "check_batch_of_one",
    "check_cached_teacher",
    "check_channels_last",
    "check_clock",
    "check_declarations",
    "check_deepcopy",
    "check_determinism",
    "check_empty_batch",
    "check_float64",
    "check_gradients",
    "check_label_dtype",
    "check_label_range",
    "check_label_shape",
    "check_method",
    "check_nan_inputs",
    "check_nan_teacher",
    "check_needs",
    "check_pickle",
    "check_players",
    "check_product",
    "check_resume",
    "check_signs",
    "check_state_dict",
    "check_teacher_classes",
    "check_teacher_eval",
    "check_teacher_hidden",
    "check_teacher_unchanged",
    "check_terms",
    "check_two_processes",
    "check_weight_zero",
    "check_zero_at_teacher",
]
