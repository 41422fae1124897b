"""The verdict in one sentence, as the numbers allow it, and numbers with sensible digits."""

from __future__ import annotations

import pytest

from stillroom.experiment.claim import Claim
from stillroom.experiment.findings import Span, read
from stillroom.experiment.wording import Scale, count, duration, gap_closed, headline, milliseconds, ratio, signed, size
from tests.experiment.sample_results import LONG, MINIMAL, arm, compared, distilled, gain, of_system, page_of


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            gain(0.027, 0.009, 0.045),
            "Worth it: pld is 2.7 points better than the same student alone (95% interval 0.9 to 4.5, 3 seeds).",
        ),
        (
            gain(-0.012, -0.021, -0.003),
            "Harmful: pld is 1.2 points worse than the same student alone (95% interval 0.3 to 2.1, 3 seeds).",
        ),
        (
            gain(0.004, -0.02, 0.028),
            "No difference shown: pld is 0.4 points better than the same student alone, which chance could explain "
            "(95% interval \N{MINUS SIGN}2.0 to 2.8, 3 seeds).",
        ),
        (
            gain(-0.00001, -0.02, 0.02),
            "No difference shown: pld does as well on average as the same student alone "
            "(95% interval \N{MINUS SIGN}2.0 to 2.0, 3 seeds).",
        ),
        (
            gain(0.0, 0.0, 0.0),
            "No difference shown: pld gives exactly what the same student gives alone "
            "(95% interval 0.0 to 0.0, 3 seeds).",
        ),
        (  # a limit just above zero must not be printed as zero
            gain(0.02, 0.0002, 0.04),
            "Worth it: pld is 2.00 points better than the same student alone (95% interval 0.02 to 4.00, 3 seeds).",
        ),
        (  # ... and one just below it may
            gain(0.02, -0.0002, 0.04),
            "No difference shown: pld is 2.0 points better than the same student alone, which chance could explain "
            "(95% interval 0.0 to 4.0, 3 seeds).",
        ),
    ],
)
def test_the_verdict_of_a_distillation(difference, sentence):
    results = distilled(difference=difference)
    assert str(headline(read(results))) == sentence
    assert page_of(results).all("p", **{"class": "verdict"})[0][1] == sentence


@pytest.mark.parametrize(("low", "word"), [(0.001, "worth it"), (0.0, "no difference shown")])
def test_a_limit_of_zero_shows_nothing(low, word):
    assert headline(read(distilled(difference=gain(0.02, low, 0.04)))).lead.lower() == word


def test_one_seed_is_no_verdict():
    assert str(headline(read(MINIMAL))) == (
        "No difference shown: kd is 2.0 points better than the same student alone with one seed, and one seed cannot "
        "say more: run three or more."
    )


def test_less_is_better_for_a_loss():
    results = distilled(values=(0.90, 0.91, 0.89), metric="validation_loss", higher_is_better=False)
    results["arms"]["pld"] = arm([1.2, 1.3, 1.1], "method")
    results["arms"]["alone"] = arm([1.5, 1.6, 1.4], "alone")
    results["arms"]["teacher"] = arm([1.0], "teacher")
    results["difference"] = gain(0.3, 0.2, 0.4)  # above 0: better
    findings = read(results)
    assert str(headline(findings)) == (
        "Worth it: pld is 0.300 better than the same student alone on validation loss (95% interval 0.200 to 0.400, "
        "3 seeds)."
    )
    assert findings.method.gains == pytest.approx((0.3, 0.3, 0.3))
    assert gap_closed(findings) == "60%"  # 0.3 of the 0.5 between the student alone and the teacher


def test_how_much_of_the_gap_is_closed_is_said_only_where_it_is_shown():
    assert gap_closed(read(distilled(difference=gain(0.035, 0.01, 0.05)))) == "50%"  # 0.91 -> 0.945 -> 0.98
    assert gap_closed(read(distilled(difference=gain(0.035, -0.01, 0.08)))) == ""
    weak = distilled(difference=gain(0.035, 0.01, 0.05))
    weak["arms"]["teacher"] = arm([0.8], "teacher")
    assert gap_closed(read(weak)) == ""


def test_the_verdict_of_a_comparison():
    sentence = str(headline(read(compared())))
    assert sentence.startswith(
        "Worth it: 2 of 4 methods are shown to beat the same student alone, each by its own interval and without a "
        "correction for 4 comparisons; the best mean, of dkd, is 5.2 points better than the student's own (95% interval"
    )
    page = page_of(compared())
    assert "of methods that change nothing, about one in 40 is shown to be better by chance" in page.elements[0][2]
    rows = [text for found, text in page.all("th") if found.get("scope") == "row"]
    assert rows[:7] == [
        "dkd", "kdbaseline", "crd", "alonethe same student alone", LONG, "scrambledcontrol", "teacher",
    ]  # fmt: skip
    assert "partly the luckiest" in page.elements[0][2]
    verdicts = [text for _, text in page.all("span", **{"class": "badge"})]
    assert verdicts == ["worth it", "worth it", "no difference shown", "harmful", "worse"]


@pytest.mark.parametrize(("higher", "names"), [(True, ["b", "a", "c"]), (False, ["c", "a", "b"])])
def test_the_best_mean_comes_first(higher, names):
    arms = {name: arm([value], "method") for name, value in (("a", 0.5), ("b", 0.7), ("c", 0.2))}
    results = {"kind": "compare", "metric": "x", "higher_is_better": higher, "seeds": [0], "arms": arms}
    assert [found.name for found in read(results).listed] == names
    assert str(headline(read(results))).startswith(f"{names[0]} has the best mean, ")


def test_nothing_shown_in_a_comparison():
    results = compared()
    results["differences"] = dict.fromkeys(results["differences"], gain(0.001, -0.01, 0.012))
    assert str(headline(read(results))).startswith(
        "No difference shown: none of 4 methods is shown to beat the same student alone; the best mean, of dkd, is "
    )


def test_the_verdict_of_a_system_is_that_of_its_claims():
    shown, refuted = Claim("pld", ">", "alone", on="accuracy"), Claim("pld", "<", "alone", on="accuracy")
    open_claim = Claim("pld", ">", "alone", on="accuracy", by=0.03)  # the mean gain itself
    assert str(headline(read(of_system(shown)))) == f"Shown: {shown.sentence}"
    assert str(headline(read(of_system(shown, shown)))) == "Shown: all 2 claims hold in this run."
    three = headline(read(of_system(shown, refuted, open_claim)))
    assert str(three) == "Partly shown: 1 of 3 claims is shown, 1 is refuted, 1 is not shown."
    assert three.tone == "bad"
    page = page_of(of_system(shown, refuted, open_claim))
    assert [text for _, text in page.all("span", **{"class": "badge"})][:3] == ["shown", "refuted", "not shown"]
    assert page.headings()[0] == "Claims"


def test_a_verdict_in_other_words_is_printed_as_it_is_and_a_wrong_one_refused():
    results = distilled(difference=gain(0.02, 0.01, 0.03), verdict="Better <b>by far</b>.")
    assert str(headline(read(results))) == "Better <b>by far</b>."
    assert read(distilled(difference=gain(0.02, 0.01, 0.03), verdict="worth it"))
    with pytest.raises(ValueError, match="given as 'harmful', but the difference says 'worth it'"):
        read(distilled(difference=gain(0.02, 0.01, 0.03), verdict="harmful"))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (Scale.of("accuracy", [0.5, 0.912]).value(0.912), "91.2%"),
        (Scale.of("accuracy", [0.9121, 0.9124]).value(0.9124), "91.24%"),
        (Scale.of("accuracy", [91.2, 85.0]).value(91.2), "91.20"),  # given in percent already: not a share
        (Scale.of("psnr", [27.31, 28.42]).value(28.417), "28.42 dB"),
        (Scale.of("loss", [0.123456, 0.125]).value(0.123456), "0.12346"),
        (Scale.of("reward", [1200.0, 56000.0]).value(1234.5), "1,234"),
        (Scale.of("accuracy", [0.5, 0.9]).value(None), "\N{EN DASH}"),
        (signed(-0.04, 1), "0.0"),
        (signed(1e-15, 1, plus=True), "0.0"),
        (Scale.of("x", [2e-9, 3e-9]).value(2e-9), "2.00e-09"),
        (signed(-1.25, 1, plus=True), "\N{MINUS SIGN}1.2"),
        (signed(1.5, 1, plus=True), "+1.5"),
        (signed(3.2e12, 1), "3.20e+12"),
        (count(999), "999"),
        (count(1_210), "1,210"),
        (count(85_002), "85 k"),
        (count(11_689_512), "11.7 M"),
        (count(7.2e9), "7.2 G"),
        (size(512), "512 bytes"),
        (size(46_807_448), "46.8 MB"),
        (milliseconds(0.0373), "0.0373 ms"),
        (milliseconds(1532.2), "1.53 s"),
        (duration(8.44), "8.4 s"),
        (duration(61.2), "1 min 1 s"),
        (duration(120), "2 min"),
        (duration(7530), "2 h 5 min"),
        (ratio(1_210, 85_002, "fewer", "more"), "70.2\N{MULTIPLICATION SIGN} fewer"),
        (ratio(3.0, 2.0, "faster", "slower"), "1.5\N{MULTIPLICATION SIGN} slower"),
        (ratio(100, 103, "fewer", "more"), "about the same"),
        (ratio(None, 103, "fewer", "more"), "\N{EN DASH}"),
    ],
)
def test_numbers_are_written_sensibly(written, expected):
    assert written == expected


def test_intervals_of_shares_end_where_shares_do():
    scale = Scale.of("accuracy", [0.5, 0.9])
    assert scale.span(Span(0.7, -0.2, 1.4)) == "0.0 to 100.0%"
    assert Scale.of("r2", [0.5, 0.9]).span(Span(0.7, -0.2, 1.4)) == "\N{MINUS SIGN}0.200 to 1.400"


def test_a_metric_that_is_nan_is_a_dash():
    scale = Scale.of("nll", [float("nan"), 0.5, 0.7])
    assert scale.value(float("nan")) == "\N{EN DASH}"
    assert scale.value(0.5) == "0.500"
