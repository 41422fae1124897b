"""Claims: what is shown, refuted and not shown, in words, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest

from stillroom.experiment.claim import Claim

# gains of 0.02, 0.03 and 0.04: mean 0.03, interval 0.03 -+ 2.6886 * 0.01 (see test_statistics: three values by hand)
LOW, HIGH = 0.03 - 0.026886, 0.03 + 0.026886
ARMS = {
    "pld": {"accuracy": [0.92, 0.83, 0.94], "loss": [0.1, 0.2, 0.3]},
    "alone": {"accuracy": [0.90, 0.80, 0.90], "loss": [0.4, 0.5, 0.6]},
    "teacher": {"accuracy": [0.97]},
}


def verdict(*claim, arms=ARMS, on="accuracy", **options):
    return Claim(*claim, on=on, **options).test(arms).verdict


def test_the_interval_is_that_of_the_paired_difference():
    found = Claim("pld", ">", "alone", on="accuracy").test(ARMS).interval
    assert (found.mean, found.low, found.high) == pytest.approx((0.03, LOW, HIGH), abs=1e-5)
    assert (found.n, found.level) == (3, 0.95)


@pytest.mark.parametrize(
    ("first", "operator", "second", "by", "expected"),
    [
        ("pld", ">", "alone", 0.0, "shown"),
        ("pld", ">", "alone", LOW - 0.001, "shown"),
        ("pld", ">", "alone", LOW + 0.001, "not shown"),
        ("pld", ">", "alone", HIGH - 0.001, "not shown"),
        ("pld", ">", "alone", HIGH + 0.001, "refuted"),
        ("pld", "<", "alone", 0.0, "refuted"),
        ("alone", ">", "pld", 0.0, "refuted"),
        ("alone", "<", "pld", 0.0, "shown"),
        ("alone", "<", "pld", LOW + 0.001, "not shown"),
        ("alone", "<", "pld", HIGH + 0.001, "refuted"),
        ("alone", ">", "pld", -HIGH - 0.001, "shown"),  # not worse by more than that
        ("alone", ">", "pld", -LOW, "not shown"),
    ],
)
def test_more_and_less(first, operator, second, by, expected):
    assert verdict(first, operator, second, by=by) == expected


@pytest.mark.parametrize(
    ("within", "expected"), [(HIGH + 0.001, "shown"), (HIGH - 0.001, "not shown"), (LOW - 0.001, "refuted")]
)
def test_equal_within_a_margin(within, expected):
    assert verdict("pld", "==", "alone", within=within) == expected
    assert verdict("alone", "==", "pld", within=within) == expected


def test_equality_is_not_shown_by_failing_to_find_a_difference():
    arms = {"a": {"accuracy": [0.5, 0.9, 0.7]}, "b": {"accuracy": [0.9, 0.5, 0.7]}}
    assert verdict("a", ">", "b", arms=arms) == "not shown"
    assert verdict("a", "==", "b", within=0.01, arms=arms) == "not shown"


def test_against_a_number_and_against_a_fixed_arm():
    assert verdict("pld", ">", 0.5) == "shown"
    assert verdict("pld", ">", 0.9) == "not shown"
    assert verdict("pld", "<", 5) == "shown"
    arms = {"pld": {"accuracy": [0.95, 0.96, 0.95]}, "teacher": {"accuracy": {0: 0.90}}}
    assert verdict("pld", ">", "teacher", arms=arms) == "shown"
    assert verdict("teacher", ">", "pld", arms=arms) == "refuted"


def test_one_seed_shows_nothing():
    arms = {"a": {"accuracy": {4: 0.9}}, "b": {"accuracy": {4: 0.1}}}
    found = Claim("a", ">", "b", on="accuracy").test(arms)
    assert found.verdict == "not shown"
    assert found.interval.low is None


def test_no_difference_at_all_is_not_shown():
    arms = {"a": {"accuracy": [0.5, 0.6]}, "b": {"accuracy": [0.5, 0.6]}}
    assert verdict("a", ">", "b", arms=arms) == "not shown"
    assert verdict("a", "==", "b", within=0.001, arms=arms) == "shown"


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        (Claim("pld", ">", "alone", on="accuracy"), "The accuracy of pld is above that of alone."),
        (Claim("pld", "<", "alone", on="loss", by=0.1), "The loss of pld is below that of alone by more than 0.1."),
        (Claim("kd", ">", 0.9, on="accuracy"), "The accuracy of kd is above 0.9."),
        (Claim("a", "==", "b", on="rank_error", within=0.01), "The rank error of a equals that of b within 0.01."),
        (
            Claim("a", ">", "b", on="accuracy", by=-0.01),
            "The accuracy of a is not below that of b by 0.01 or more.",
        ),
        (Claim("a", ">", "b", on="accuracy", text="Ranks help."), "Ranks help."),
    ],
)
def test_the_claim_in_words(claim, text):
    assert claim.sentence == text


def test_as_dict_has_everything_a_report_needs():
    found = Claim("pld", ">", "alone", on="accuracy").test(ARMS).as_dict()
    low, high = found.pop("low"), found.pop("high")
    assert (low, high) == pytest.approx((LOW, HIGH), abs=1e-5)
    assert found.pop("mean") == pytest.approx(0.03)
    assert found == {
        "text": "The accuracy of pld is above that of alone.",
        "verdict": "shown",
        "level": 0.95,
        "n": 3,
        "better": "pld",
        "operator": ">",
        "worse": "alone",
        "on": "accuracy",
        "by": 0.0,
        "within": 0.0,
    }


def test_unknown_arms_and_metrics_are_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"names the arm 'aloen', but .* did you mean 'alone'\?"):
        verdict("pld", ">", "aloen")
    with pytest.raises(ValueError, match=r"'zzz', but there is none of that name: there is 'pld', 'alone', 'teacher'"):
        verdict("zzz", ">", "alone")
    with pytest.raises(ValueError, match=r"is on 'acuracy', but for 'pld' .* did you mean 'accuracy'\?"):
        verdict("pld", ">", "alone", on="acuracy")
    with pytest.raises(ValueError, match=r"is on 'loss', but for 'teacher' .* there is 'accuracy'"):
        verdict("pld", ">", "teacher", on="loss")
    with pytest.raises(ValueError, match=r"names the arm 'kd'"):
        Claim("kd", ">", 0.5, on="accuracy").check_arms(["pld", "alone"])


def test_arms_that_cannot_be_paired_are_refused():
    arms = {"a": {"accuracy": {0: 0.5, 1: 0.6}}, "b": {"accuracy": {0: 0.5, 2: 0.6}}}
    with pytest.raises(ValueError, match=r"seeds \[0, 1\] and b has seeds \[0, 2\]"):
        verdict("a", ">", "b", arms=arms)
    with pytest.raises(ValueError, match="given nan for seed 1"):
        verdict("a", ">", 0.5, arms={"a": {"accuracy": [0.5, math.nan]}})


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("a", ">=", "b"), {}, ValueError, "operator must be .* given '>='"),
        (("a", ">", "a"), {}, ValueError, "given 'a' twice"),
        (("a", "==", "b"), {}, ValueError, '"==" needs within= above 0'),
        (("a", "==", "b"), {"within": 0.1, "by": 0.1}, ValueError, "no by=.* given within=0.1 and by=0.1"),
        (("a", ">", "b"), {"within": 0.1}, ValueError, 'within=0.1 belongs to "=="'),
        (("a", ">", "b"), {"by": math.nan}, ValueError, "by must be finite, given nan"),
        (("a", ">", math.inf), {}, ValueError, "second must be finite, given inf"),
        (("a", ">", None), {}, TypeError, "second must be the name of an arm or a number, given None"),
        (("a", ">", True), {}, TypeError, "given True"),
        ((3, ">", "b"), {}, TypeError, "first must be a name, given 3"),
    ],
)
def test_claims_that_make_no_sense_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Claim(*arguments, on="accuracy", **options)


def test_a_claim_cannot_be_changed_after_it_was_made():
    claim = Claim("a", ">", "b", on="accuracy")
    with pytest.raises(dataclasses.FrozenInstanceError):
        claim.by = 0.5
