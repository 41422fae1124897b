"""Language modelling: losses and metrics per labelled token, checks of the first batch, text of the user's."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from stillroom.baselines import KD, Alone
from stillroom.data import Batch, CharacterTokenizer, sequential
from stillroom.data.passages import load_text
from stillroom.data.samples import TensorSamples
from stillroom.task import LanguageModelling, teacher_beats_chance


class Bigram(torch.nn.Module):
    def __init__(self, size: int = 7) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(size, size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, (4, 6), generator=generator)
    labels = torch.randint(7, (4, 6), generator=generator)
    labels[0, :4] = labels[2] = -100
    return Batch(tokens, labels, torch.arange(4))


def test_the_supervised_loss_is_the_mean_over_labelled_tokens(batch):
    task, outputs = LanguageModelling(), torch.randn(4, 6, 7, requires_grad=True)
    known = batch.labels != -100
    expected = -outputs.log_softmax(-1)[known].gather(-1, batch.labels[known].unsqueeze(-1)).mean()
    loss = task.supervised_loss(outputs, batch.labels)
    assert torch.allclose(loss, expected)
    gradient = torch.autograd.grad(2.5 * loss, outputs, retain_graph=True)[0]
    assert torch.allclose(gradient, 2.5 * torch.autograd.grad(expected, outputs)[0], atol=1e-7)
    assert not gradient[2].any()
    each = task.supervised_loss(outputs, batch.labels, reduction="none")
    assert each.shape == (4, 6)
    assert not each[~known].any()


def test_the_distillation_loss_counts_labelled_tokens_and_all_of_a_block_without_labels(batch):
    task, student, teacher = LanguageModelling(), torch.randn(4, 6, 7, requires_grad=True), torch.randn(4, 6, 7)
    counted = batch.labels != -100
    counted[2] = True
    each = F.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="none").sum(-1)
    expected = 4 * each[counted].mean()
    loss = task.distill(student, teacher, batch.labels, temperature=2.0)
    assert torch.allclose(loss, expected)
    assert torch.allclose(
        torch.autograd.grad(3 * loss, student, retain_graph=True)[0],
        torch.autograd.grad(3 * expected, student)[0],
        atol=1e-6,
    )
    assert torch.allclose(task.distill(student, teacher, None, temperature=2.0), 4 * each.mean())
    none = task.distillation_loss(student, teacher, temperature=2.0, reduction="none")
    assert torch.allclose(none, 4 * each, atol=1e-5)


def test_kd_works_per_token(batch):
    student, teacher, task = Bigram(), Bigram(), LanguageModelling()
    losses = KD(student, teacher, temperature=2.0, task=task)(batch)
    expected = task.distill(student(batch.inputs), teacher(batch.inputs), batch.labels, temperature=2.0)
    assert torch.allclose(losses["distill"], expected)
    assert torch.allclose(losses["label"], Alone(student, task=task)(batch)["label"])


def test_metrics_leave_out_positions_without_a_label(batch):
    task, network, teacher = LanguageModelling(), Bigram(), Bigram()
    counts = torch.full((4, 6), 2)
    samples = TensorSamples(batch.inputs, batch.labels, fields={"characters": counts})
    found = task.evaluate(network, sequential(samples, 3), teacher=teacher)
    known = batch.labels != -100
    nats = F.cross_entropy(network(batch.inputs)[known], batch.labels[known], reduction="sum").item()
    tokens = int(known.sum())
    assert found["cross_entropy"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(nats / math.log(2) / (2 * tokens), rel=1e-5)
    same = network(batch.inputs).argmax(-1) == teacher(batch.inputs).argmax(-1)
    assert found["agreement"] == pytest.approx(float(same[known].float().mean()))
    assert found["kl_to_teacher"] > 0


def test_large_vocabularies_are_measured_piece_by_piece(batch, monkeypatch):
    whole = LanguageModelling().evaluate(network := Bigram(), [batch])
    monkeypatch.setattr("stillroom.task.language.MEASURED_AT_ONCE", 7 * 6 * 3)
    asked = []
    network.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    parts = LanguageModelling().evaluate(network, [batch, batch])
    assert asked == [1, 1, 1, 1, 3, 1]
    assert parts["cross_entropy"] == pytest.approx(whole["cross_entropy"], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": torch.full((4, 6), 7)}, "run from 7 to 7.*vocabulary has 7 tokens"),
        ({"inputs": torch.rand(4, 6)}, "int64 token numbers.*float32"),
        ({"labels": torch.full((4, 6), 9)}, "labels run from 9 to 9.*7 tokens"),
        ({"labels": torch.zeros(4, 6)}, "int64 token numbers, given dtype torch.float32"),
        ({"labels": torch.zeros(4, 5, dtype=torch.int64)}, r"\(4, 5\) for logits \(4, 6, 7\)"),
    ],
)
def test_the_first_batch_is_checked(batch, change, words):
    outputs = torch.zeros(4, 6, 7)
    LanguageModelling().check(batch, outputs)
    with pytest.raises(ValueError, match=words):
        LanguageModelling().check(batch.replace(**change), outputs)


def test_two_vocabularies_are_refused(batch):
    with pytest.raises(ValueError, match=r"\(4, 6, 7\), teacher logits \(4, 6, 8\).*one vocabulary"):
        LanguageModelling().distill(torch.zeros(4, 6, 7), torch.zeros(4, 6, 8), batch.labels)


def test_less_is_better_and_a_teacher_must_beat_the_frequencies(batch):
    task = LanguageModelling()
    labels = torch.tensor([[0, 0, 1, -100]])
    guess = task.chance(labels)["perplexity"]
    assert guess == pytest.approx(math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))
    assert teacher_beats_chance({"perplexity": guess - 0.1}, task, labels, 3) == ""
    assert "no better than" in teacher_beats_chance({"perplexity": guess + 0.1}, task, labels, 3)


# ---- text of the user's ----------------------------------------------------------------------------------------------


def text_of(samples, tokenizer):
    batch = samples.batch(range(len(samples)))
    return tokenizer.decode(batch.labels[batch.labels != -100].tolist())


def test_one_file_is_cut_at_its_end(tmp_path):
    text = "".join(chr(97 + number % 26) for number in range(2000))
    (tmp_path / "my.txt").write_text(text)
    splits = LanguageModelling(str(tmp_path / "my.txt"), length=16).load()
    tokenizer = splits.tokenizer
    assert text_of(splits.test, tokenizer) == text[1800:]
    assert text_of(splits.validation, tokenizer) == text[1620:1800]
    assert text_of(splits.train, tokenizer) == text[:1620]
    assert any("a tenth" in note for note in splits.notes)


def test_parts_and_prompts_of_a_folder_are_kept(tmp_path):
    rows = [{"prompt": "two and two?", "response": "four"}] + 20 * [{"question": "one?", "answer": "four"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "test.txt").write_text("four and one")
    splits = load_text(tmp_path, length=24)
    assert text_of(splits.train.subset([0]), splits.tokenizer) == "four"
    assert text_of(splits.test, splits.tokenizer) == "four and one"
    assert splits.validation is not None


def test_many_texts_are_held_out_as_wholes():
    texts = [f"text number {number}." for number in range(30)]
    splits = load_text(texts, length=8)
    parts = [text_of(part, splits.tokenizer) for part in (splits.train, splits.validation, splits.test)]
    assert [sum(text in part for text in texts) for part in parts] == [24, 3, 3]
    assert all(sum(text in part for part in parts) == 1 for text in texts)


def test_a_data_set_of_hugging_face():
    import datasets

    data = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict({"text": ["abc" * 30]}),
            "test": datasets.Dataset.from_dict({"text": ["cab"]}),
        }
    )
    splits = load_text(data, length=8, tokenizer=CharacterTokenizer("abc"))
    assert text_of(splits.test, splits.tokenizer) == "cab"


def test_tokens_are_taken_as_they_are():
    rows = torch.arange(200).view(20, 10)
    splits = LanguageModelling(rows).load()
    batch = splits.train.batch([0])
    assert batch.inputs[0].tolist() == list(range(10))
    assert batch.labels[0].tolist() == [*range(1, 10), -100]
    assert LanguageModelling().width(splits) is None
    given = LanguageModelling((rows, rows + 1)).load().test.batch([0])
    assert torch.equal(given.labels, given.inputs + 1)
    assert load_text(torch.arange(1000), length=10).train.shape == (10,)


def test_a_pool_is_read_without_labels():
    splits = LanguageModelling("documentation", unlabelled=["more text " * 50], length=32, train_size=10).load()
    assert splits.unlabelled.labels is None
    assert splits.unlabelled.shape == (32,)
    assert not set(splits.unlabelled.index.tolist()) & set(splits.train.index.tolist())


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"text": "a"}\n{"text" "b"}', "line 2 is no JSON"), ('{"title": "a"}', "row 1 has 'title'.*\"prompt\"")],
)
def test_lines_that_cannot_be_read_are_named(tmp_path, content, words):
    (tmp_path / "lines.jsonl").write_text(content)
    with pytest.raises(ValueError, match=words):
        load_text(tmp_path / "lines.jsonl")


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no text 'nowhere.txt'"):
        load_text("nowhere.txt")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="no file of text"):
        load_text(tmp_path / "image.png")
    with pytest.raises(ValueError, match="holds no text"):
        load_text(tmp_path)
    with pytest.raises(ValueError, match=r"integers.*float32"):
        load_text(torch.rand(4, 5))
    with pytest.raises(ValueError, match=r"\(20, 10\).*\(20, 9\)"):
        load_text((torch.zeros(20, 10, dtype=torch.int64), torch.zeros(20, 9, dtype=torch.int64)))
