"""Semantic revision: what is repaired, what a step trains on, who gets which gradient, the battery, the recipe."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from stillroom import check_method
from stillroom.blocks import Frozen
from stillroom.data.samples import Splits, TensorSamples
from stillroom.experiment.arm import TrainingArm
from stillroom.fit import fit
from stillroom.language import Sequences, words
from stillroom.losses import clipped_token_kl, cross_entropy, span_correlation_loss
from stillroom.systems import catalog
from stillroom.systems.language.semantic_revision import (
    ClippingLimits,
    KeptMassWarning,
    SemanticRevision,
    judge,
    locate,
    paper,
    prompts_of,
    recipe,
    rewrite,
)
from stillroom.task import LanguageModelling
from stillroom.training import Optim, Training
from tests.systems.language.toys import LENGTH, TOKENIZER, Following, language_model, text_batch

V = len(TOKENIZER)


def method(**options) -> SemanticRevision:
    given = {"tokenizer": TOKENIZER, "spans": words, "prompt_length": 6} | options
    student, teacher = given.pop("student", language_model(0)), given.pop("teacher", language_model(1, 16, 2))
    return SemanticRevision(student, teacher, **given)


# ---- correction and re-generation ------------------------------------------------------------------------------------


def written(student, prompts: int = 1, count: int = 8, seed: int = 0):
    from stillroom.language import generate

    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, V, (count, prompts), generator=draws)
    starts = torch.full((count,), prompts)
    return generate(student, Sequences(tokens, starts), max_length=LENGTH, generator=draws), starts


def test_equal_models_differ_nowhere_and_what_came_before_stays():
    student = language_model(0)
    sequences, starts = written(student, prompts=4)
    judged = judge(student, student, sequences, starts)
    found = locate(judged.student_logits, judged.teacher_logits, judged.valid)
    assert float(found.divergence.abs().max()) < 1e-6
    repaired = rewrite(student, sequences, found.position, found.replacement, max_length=LENGTH)
    for row, position in enumerate(found.position.tolist()):
        assert torch.equal(repaired.tokens[row, : position + 1], sequences.tokens[row, : position + 1])
        assert repaired.tokens[row, position + 1] == found.replacement[row]
        assert position >= 3


def test_a_planted_error_is_found_where_it_is():
    """The student is forced to emit one impossible token; both models agree elsewhere but for noise."""
    hits = 0
    for trial in range(100):
        draws = torch.Generator().manual_seed(trial)
        teacher_logits = torch.randn(1, LENGTH, V, generator=draws)
        student_logits = teacher_logits + 0.3 * torch.randn(1, LENGTH, V, generator=draws)
        place = int(torch.randint(5, LENGTH, (), generator=draws))
        unlikely = int(teacher_logits[0, place].argmin())
        student_logits[0, place] = 30.0 * nn.functional.one_hot(torch.tensor(unlikely), V)
        valid = torch.zeros(1, LENGTH)
        valid[:, 4:] = 1
        student_logits[0, 2] = 50.0 * nn.functional.one_hot(teacher_logits[0, 2].argmin(), V)  # worse, but a prompt
        found = locate(student_logits, teacher_logits, valid)
        assert int(found.divergence.argmax()) == 2
        hits += int(found.position) == place and int(found.replacement) == int(teacher_logits[0, place].argmax())
    assert hits >= 95


def test_the_first_of_equal_errors_counts_and_rows_without_response_are_left_alone():
    logits = torch.randn(2, 5, V)
    found = locate(logits, logits.clone(), torch.tensor([[0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]))
    assert found.position.tolist() == [1, -1]
    with pytest.raises(ValueError, match="none of the 10 positions is valid"):
        locate(logits, logits, torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"\(2, 5, 11\).*\(2, 5, 10\)"):
        locate(logits, logits[..., :-1], torch.ones(2, 5))
    with pytest.raises(ValueError, match="given 'best'"):
        locate(logits, logits, torch.ones(2, 5), replacement="best")


def test_replacements_can_be_drawn_from_the_teacher():
    teacher = torch.tensor([0.7, 0.3]).log().expand(2000, 1, 2)
    drawn = locate(torch.zeros(2000, 1, 2), teacher, torch.ones(2000, 1), replacement="sample").replacement
    assert float(drawn.float().mean()) == pytest.approx(0.3, abs=0.05)
    assert int(locate(torch.zeros(2000, 1, 2), teacher, torch.ones(2000, 1)).replacement.sum()) == 0


def test_the_student_goes_on_behind_the_replacement():
    """The student counts up by one, the teacher by two: the first token is repaired, the rest is the student's."""
    up = Following((torch.arange(V) + 1) % V)
    sequences = Sequences(torch.tensor([[2, 3, 4, 5, 0], [4, 5, 6, 7, 8]]), torch.tensor([4, 5]))
    repaired = rewrite(up, sequences, torch.tensor([0, 2]), torch.tensor([6, 1]), max_length=torch.tensor([5, 5]))
    assert repaired.tokens.tolist() == [[2, 6, 7, 8, 9], [4, 5, 6, 1, 2]]
    ended = rewrite(up, sequences, torch.tensor([0, -1]), torch.tensor([1, 1]), max_length=5, end_token=1)
    assert ended.lengths.tolist() == [2, 5]
    assert ended.tokens[0, :2].tolist() == [2, 1]
    assert ended.tokens[1].tolist() == [4, 5, 6, 7, 8]


def test_prompts_end_before_the_first_label():
    inputs = torch.arange(12).view(2, 6)
    labels = inputs + 1
    labels[0, :3] = -100
    found = prompts_of(inputs, labels, prompt_length=2, max_new_tokens=3)
    assert found.sequences.lengths.tolist() == [4, 2]
    assert found.limits.tolist() == [7, 5]
    with pytest.raises(ValueError, match="none of the 12 positions is valid"):
        prompts_of(inputs, torch.full_like(labels, -100), prompt_length=2, max_new_tokens=3)


def test_what_is_written_is_a_batch_of_prompts_and_repaired_answers():
    """The student counts up by one; its teacher too, but for a 5 after 3: that token is the teacher's."""
    counting = (torch.arange(V) + 1) % V
    student, teacher = Following(counting), Following(torch.where(torch.arange(V) == 3, 5, counting))
    options = {"student": student, "teacher": teacher, "end_token": 1, "max_new_tokens": 4}
    made = method(**options)
    inputs = torch.tensor([[2, 3, 2, 3, 2, 3, 9, 9, 9, 9], [5, 6, 5, 6, 2, 2, 9, 9, 9, 9]])
    new_inputs, labels = made.write(inputs, torch.full_like(inputs, 5))
    assert new_inputs[:, :6].tolist() == inputs[:, :6].tolist()
    assert labels[0].tolist() == [-100] * 5 + [5, 6, 7, 8]
    assert labels[1].tolist() == [-100] * 5 + [3, 5, 6, 7]
    assert torch.equal(new_inputs[:, 6:], labels[:, 5:-1])
    raw = method(**options, repair_every=0)
    assert raw.write(inputs, torch.full_like(inputs, 5))[1][0].tolist() == [-100] * 5 + [4, 5, 6, 7]
    every_other = method(**options, repair_every=2)
    firsts = [int(every_other.write(inputs, torch.full_like(inputs, 5))[1][0, 5]) for _ in range(4)]
    assert firsts == [5, 4, 5, 4]


def test_what_follows_the_end_is_no_label():
    student = Following((torch.arange(V) + 1) % V)
    made = method(student=student, teacher=Following((torch.arange(V) + 1) % V), end_token=7)
    _, labels = made.write(torch.full((1, 12), 4), torch.full((1, 12), 5))
    assert labels[0].tolist() == [-100] * 5 + [5, 6, 7] + [-100] * 4


# ---- the limits ------------------------------------------------------------------------------------------------------


def test_limits_begin_where_they_should_and_stay_in_their_bounds():
    limits = ClippingLimits()
    logs = [torch.randn(3, 4, 50).log_softmax(-1) for _ in range(2)]
    lower, upper = limits(*logs)
    torch.testing.assert_close(lower, torch.full((3, 4), 0.05))
    torch.testing.assert_close(upper, torch.full((3, 4), 0.999))
    for parameter in limits.parameters():
        nn.init.normal_(parameter, std=20.0)
    with torch.no_grad():
        lower, upper = limits(*logs)
    assert 0 <= float(lower.min()) <= float(lower.max()) <= 0.2 + 1e-6
    assert 0.9 - 1e-6 <= float(upper.min()) <= float(upper.max()) <= 1
    assert limits(*(log[..., :5].log_softmax(-1) for log in logs))[0].shape == (3, 4)  # a vocabulary below `top`
    with pytest.raises(ValueError, match=r"given 0.05, 0.95, 0.9 and 0.999"):
        ClippingLimits(highest_lower=0.95)
    with pytest.raises(ValueError, match="top and hidden must be 1 or more, given 0 and 64"):
        ClippingLimits(top=0)


def test_limits_read_the_likeliest_tokens_of_the_teacher_and_send_nothing_back():
    limits = ClippingLimits(top=2)
    nn.init.normal_(limits.layers[2].weight)
    teacher = torch.tensor([[0.1, 0.6, 0.3]]).log().requires_grad_()
    student = torch.tensor([[0.2, 0.5, 0.3]]).log().requires_grad_()
    lower, _ = limits(teacher, student)
    expected = limits.layers(torch.tensor([[0.6, 0.3, 0.5, 0.3]]).log()).sigmoid()[:, 0] * 0.2
    torch.testing.assert_close(lower, expected)
    lower.sum().backward()
    assert teacher.grad is None
    assert student.grad is None


# ---- the method ------------------------------------------------------------------------------------------------------


def test_on_reference_text_it_is_its_three_losses():
    made, batch = method(label_weight=0.5, span_weight=2.0), text_batch(prompt=3)
    losses = made(batch)
    ours, theirs = losses.outputs, made.teacher(batch.inputs)
    valid = batch.labels != -100
    lower, upper = torch.full(valid.shape, 0.05), torch.full(valid.shape, 0.999)
    clipped = clipped_token_kl(ours, theirs, batch.labels, lower, upper, valid=valid, softness=0.02)
    spans = made.find_spans(batch.labels, valid)
    assert sum(len(row) for row in spans) > 8
    torch.testing.assert_close(losses["clipped"], clipped)
    torch.testing.assert_close(losses["span"], span_correlation_loss(ours, theirs, spans))
    torch.testing.assert_close(losses["label"], cross_entropy(ours.flatten(0, 1), batch.labels.flatten()))
    torch.testing.assert_close(losses.total, 0.5 * losses["label"] + losses["clipped"] + 2 * losses["span"])


def test_on_its_own_text_the_label_is_still_that_of_the_reference():
    made, batch = method(student_share=1.0), text_batch()
    made.tell_time(0, 0.0, 0.0)
    torch.manual_seed(4)
    losses = made(batch)
    torch.testing.assert_close(
        losses["label"], cross_entropy(made.student(batch.inputs).flatten(0, 1), batch.labels.flatten())
    )
    inputs, labels = made.replay.rows[0]
    assert len(made.replay) == 8
    assert torch.equal(inputs[:6], batch.inputs[0, :6])
    assert labels[:5].tolist() == [-100] * 5
    assert float(losses["clipped"].detach()) != pytest.approx(float(method()(batch)["clipped"].detach()))


def test_sources_follow_the_schedule_and_the_buffer():
    made, batch = method(student_share=1.0, capacity=12), text_batch()
    sources = []
    for step, progress in enumerate((0.0, 0.0, 0.0, 1.0, 1.0)):
        made.tell_time(step, 0.0, progress)
        before = list(made.replay.rows)
        inputs, _ = made.sequences(batch)
        kept = len(before) == len(made.replay) and all(a is b for a, b in zip(before, made.replay.rows, strict=True))
        sources.append("reference" if inputs is batch.inputs else "replay" if kept else "generate")
        assert len(made.replay) <= 12
    assert sources == ["generate", "generate", "generate", "replay", "replay"]
    assert method().sequences(batch)[0] is batch.inputs


def test_validation_losses_are_told_at_the_ends_of_epochs():
    made = method()
    for epoch, loss in ((0.5, 3.0), (1.0, 2.0), (1.5, 9.0), (2.25, 2.5), (2.75, 9.0), (3.0, 2.7), (4.0, 2.0)):
        made.after_evaluation({"cross_entropy": loss}, epoch)
    assert made.schedule.share == 0.2
    made.after_evaluation({"accuracy": 1.0}, 9.0)
    assert made.epochs_told == 4


def test_two_players_and_what_reaches_whom():
    made, batch = method(student_share=1.0), text_batch()
    made.tell_time(0, 0.0, 0.0)
    players = made.players()
    assert list(players) == ["student", "limits"]
    assert {id(p) for group in players.values() for p in group} == {id(p) for p in made.parameters()}
    nn.init.normal_(made.limits.layers[2].weight, std=0.1)
    turns = []
    for player, losses in made.turns(batch):
        turns.append((player, sorted(losses)))
        made.zero_grad(set_to_none=True)
        losses.total.backward(inputs=players[player])
        assert all(p.grad is not None for p in players[player])
        reached = [p.grad is not None and float(p.grad.abs().max()) > 0 for p in made.limits.parameters()]
        assert reached == [player == "limits"] * 4
    assert turns == [("student", ["clipped", "label", "span"]), ("limits", ["kept_mass", "limits"])]


def test_in_a_plain_loop_the_limits_train_beside_the_student():
    made = method()
    made(text_batch()).total.backward()
    both = list(made.turns(text_batch()))
    expected = torch.autograd.grad(both[1][1].total, list(made.limits.parameters()), allow_unused=True)
    for parameter, gradient in zip(made.limits.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_warning_is_given_when_little_is_kept():
    limits = ClippingLimits(highest_lower=0.75, lowest_upper=0.8, first_lower=0.74, first_upper=0.81)
    made = method(limits=limits)
    with pytest.warns(KeptMassWarning, match=r"keep only 0\.\d\d of the teacher's mass, expected 0\.5"):
        list(made.turns(text_batch()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (_, _), (_, losses) = method().turns(text_batch())
    assert 0.8 < float(losses["kept_mass"]) <= 1
    assert losses.weights["kept_mass"] == 0


def test_padded_vocabularies_are_cut_and_others_refused():
    class Padded(nn.Module):
        def __init__(self, network, more):
            super().__init__()
            self.network, self.more = network, more

        def forward(self, tokens):
            return nn.functional.pad(self.network(tokens), (0, self.more), value=40.0)

    student, teacher, batch = language_model(0), language_model(1), text_batch()
    plain = method(student=student, teacher=teacher)(batch)
    padded = method(student=Padded(student, 5), teacher=Padded(teacher, 53), student_share=1.0)
    torch.testing.assert_close(
        method(student=Padded(student, 5), teacher=Padded(teacher, 53))(batch).total, plain.total
    )
    assert int(padded.write(batch.inputs, batch.labels)[0].max()) < V
    with pytest.raises(ValueError, match=rf"the teacher gives {V - 1} logits per position.*has {V} tokens"):
        method(student=student, teacher=Padded(teacher, -1))(batch)
    with pytest.raises(ValueError, match=rf"student_logits .*{V}\), but teacher_logits .*{V + 2}\).*true size"):
        method(student=student, teacher=Padded(teacher, 2), tokenizer=None, span_weight=0.0)(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": None}, "span_weight=1.0 needs the text of the tokens, given no tokenizer"),
        ({"temperature": 0}, "temperature must be a number above 0, given 0"),
        ({"softness": 0}, "softness must be a number above 0, given 0"),
        ({"prompt_length": 0}, "must be 1 or more, given 0 and 256"),
        ({"replacement": "best"}, "given 'best'"),
        ({"clipped_weight": -1}, "clipped_weight must be a number of 0 or more, given -1"),
        ({"student_share": 2}, r"must lie in \[0, 1\], given 2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_wrong_batches_are_refused():
    batch = text_batch()
    for bad, message in (
        (batch.replace(labels=None), "this batch has none"),
        (batch.replace(labels=torch.full_like(batch.labels, -100)), "none of the 128 positions is valid"),
        (batch.replace(labels=batch.labels[:, :-1]), r"inputs' shape \(8, 16\), shifted by one, given \(8, 15\)"),
        (batch.replace(inputs=batch.inputs.float()), r"int64 tokens \(N, L\), given \(8, 16\) torch.float32"),
        (batch[:0], "the batch is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            method()(bad)


def test_it_passes_the_battery():
    made = method(student_share=0.7, capacity=20)
    skip = ("teacher_classes",)  # with a tokenizer, a padded vocabulary is cut to its size; without one it is refused:
    assert check_method(made, text_batch(prompt=2), task=LanguageModelling(), processes=False, skip=skip).ok
    silent = method(tokenizer=None, span_weight=0.0)
    assert check_method(silent, text_batch(), only=("terms", "teacher_classes", "weight_zero", "zero_at_teacher")).ok


# ---- in training -----------------------------------------------------------------------------------------------------


def splits(rows: int = 48) -> Splits:
    batch = text_batch(rows)
    samples = TensorSamples(batch.inputs, batch.labels)
    return Splits(
        samples.subset(range(rows - 16)), samples.subset(range(8)), samples.subset(range(rows - 16, rows)),
        kind="language-modelling", tokenizer=TOKENIZER,
    )  # fmt: skip


def train(made, folder=None, steps=8, **options):
    training = Training(
        steps=steps, batch_size=8, evaluate_every=4, optimizer=Optim(lr=3e-3), players={"limits": Optim(lr=1e-2)}
    )
    return fit(
        made, splits(), training, task=LanguageModelling(), progress=False, check_teacher=False, device="cpu",
        folder=folder, trackers=(), **options,
    )  # fmt: skip


def test_fit_trains_both_players_and_tells_the_schedule():
    made = method(student_share=0.9, loss_tolerance=0.0)
    before = copy.deepcopy(made.state_dict())
    fitted = train(made, log_every=4)
    assert fitted.steps == 8
    assert made.epochs_told == 2
    assert made.schedule.remembered < float("inf")
    assert made.written > 0
    for name, value in made.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert {"label", "clipped", "span", "limits", "kept_mass"} == set(fitted.terms[0][1])
    assert isinstance(fitted.product, type(language_model()))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    options = {"student_share": 0.8, "capacity": 24}
    whole = train(method(**options), tmp_path / "whole").product.state_dict()

    class Stopped(Exception):  # noqa: N818
        pass

    first = method(**options)
    counted = iter(range(100))

    def stop(player):
        if player == "limits" and next(counted) == 5:
            raise Stopped

    first.after_step = stop
    with pytest.raises(Stopped):
        train(first, tmp_path / "parts")
    resumed = train(method(**options), tmp_path / "parts", resume=True).product.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_student_comes_nearer_to_its_teacher():
    student, teacher = language_model(0, 16), language_model(1, 16, 2)
    made = method(student=student, teacher=teacher, student_share=0.3, label_weight=0.0)
    batch = text_batch(32)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    first = float(made(batch)["clipped"].detach())
    for step in range(40):
        made.tell_time(step, 0.0, step / 40)
        optimizer.zero_grad()
        made(text_batch(32, seed=step)).total.backward()
        optimizer.step()
    made.tell_time(40, 0.0, 1.0)
    made.schedule.first_share = 0.0
    assert float(made(batch)["clipped"].detach()) < 0.7 * first


def test_a_comparison_can_name_it():
    """By the name in the catalogue, on models and text of the user's: the tokenizer is that of the data."""
    task = LanguageModelling(["a bad cafe faded "] * 60, length=LENGTH, tokenizer=TOKENIZER)
    text = task.load(0)
    arm = TrainingArm(catalog.method("semantic-revision"), task, language_model(0))
    made = arm.build(0, text, Frozen(language_model(1, 16, 2)))
    assert isinstance(made, SemanticRevision)
    assert made.vocabulary_size == V
    made.schedule.first_share = 1.0
    training = Training(steps=2, batch_size=4)
    fitted = fit(made, text, training, task=task, progress=False, check_teacher=False, device="cpu")
    assert set(fitted.terms[0][1]) == {"label", "clipped", "span", "limits", "kept_mass"}
    assert len(made.replay) == 8


def test_two_models_of_transformers_that_share_a_tokenizer():
    transformers = pytest.importorskip("transformers")
    networks = []
    for width in (8, 16):
        torch.manual_seed(width)
        config = transformers.GPT2Config(
            vocab_size=V + 3, n_positions=LENGTH, n_embd=width, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
        )
        networks.append(transformers.GPT2LMHeadModel(config))
    made = SemanticRevision(*networks, tokenizer=TOKENIZER, prompt_length=4, student_share=1.0)
    made.tell_time(0, 0.0, 0.0)
    batch = text_batch()
    optimizer = torch.optim.AdamW(made.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        losses = made(batch)
        losses.total.backward()
        optimizer.step()
    assert losses.outputs.shape == (8, LENGTH, V)
    assert len(made.replay) == 16
    assert networks[0].training
    assert not any(p.requires_grad for p in networks[1].parameters())
    assert made.product is networks[0]


# ---- the recipe ------------------------------------------------------------------------------------------------------


def test_the_recipe_in_small():
    results = recipe().tiny().run(seeds=(0, 1), progress=False)
    arms = results["arms"]
    assert {arm for arm in arms if arms[arm]["role"] == "control"} == {"repaired-anywhere", "unrepaired"}
    assert arms["repaired"]["metrics"]["cross_entropy"] == arms["as-written"]["metrics"]["cross_entropy"]
    assert set(arms["repaired"]["metrics"]) >= {"response_nll", "suffix_gain", "rest_gain"}
    assert len(results["claims"]) >= 5
    everything = [value for arm in arms.values() for values in arm["metrics"].values() for value in values]
    assert all(value == value for value in everything)


def test_a_teacher_without_a_lead_is_refused():
    small = recipe(teacher_steps=1, first_steps=1, steps=1, train_size=16, test_size=4, prompts=2, batch_size=4)
    with pytest.raises(ValueError, match=r"the teacher is -?\d\.\d{3} nats per token ahead .* expected 0.15"):
        small.run(seeds=(0,), progress=False)


def test_the_papers_settings_in_small():
    pairs = [(f"say {word}", word) for word in ("abc", "def", "gab", "bed", "fade", "cab", "deed", "egg") * 50]
    small = paper(
        pairs,
        teacher=language_model(1, 16, 2),
        student=language_model(0),
        tokenizer=TOKENIZER,
        length=LENGTH,
        max_new_tokens=6,
    ).tiny()
    results = small.run(seeds=(0,), progress=False)
    for arm in ("alone", "kd", "semantic-revision", "unrepaired"):
        assert 0 <= results["arms"][arm]["metrics"]["rouge_l"][0] <= 1
        assert results["arms"][arm]["metrics"]["perplexity"][0] > 1
    plan = paper()
    assert plan.training.optimizer.lr == 5e-4
    assert plan.training.epochs == 20


def test_real_data_that_are_absent_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"'gsm8k' is not in {tmp_path}: .*train.jsonl and test.jsonl"):
        recipe("gsm8k", length=48).tiny().run(seeds=(0,), progress=False)


@pytest.mark.skipif("STILLROOM_DATA" not in os.environ, reason="needs STILLROOM_DATA")
def test_the_recipe_on_worded_sums_in_small(monkeypatch, tmp_path):
    real = Path(os.environ["STILLROOM_DATA"], "gsm8k")
    for part in ("train", "test"):
        lines = (real / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()[:60]
        (tmp_path / "gsm8k").mkdir(exist_ok=True)
        (tmp_path / "gsm8k" / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    results = recipe("gsm8k", length=48, prompt_length=1, max_new_tokens=8).tiny().run(seeds=(0,), progress=False)
    assert results["arms"]["full"]["metrics"]["cross_entropy"][0] > 1
