"""The main job on text: the embedded demonstration, transformers' folders with a user's file, modules with tokens."""

import json

import pytest
import torch
from torch import nn

import stillroom
from stillroom import check_method
from stillroom.baselines import KD, Alone
from stillroom.data import Batch
from stillroom.forecast import forecast, lines_of
from stillroom.options import experiment_of, with_defaults
from stillroom.task import LanguageModelling
from tests.test_hub_language import TEXT, folders  # noqa: F401

SMALL = {"task": "language-modelling", "seeds": 2, "first_seed": 100, "progress": False, "jobs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "embedded"
    return stillroom.distill(
        "gpt-1-32", "gpt-1-16", teacher_epochs=1, steps=4, batch_size=8, lr=1e-2, train_size=300, test_size=40,
        length=32, out=out, **SMALL,
    )  # fmt: skip


def test_the_embedded_text_is_distilled(run):
    results = run.results
    assert results["metric"] == "perplexity"
    assert results["higher_is_better"] is False
    assert {"perplexity", "cross_entropy", "bits_per_character", "agreement"} <= set(results["arms"]["kd"]["metrics"])
    alone, kd = (results["arms"][name]["values"] for name in ("alone", "kd"))
    gains = [one - other for one, other in zip(alone, kd, strict=True)]
    assert run.difference["mean"] == pytest.approx(sum(gains) / 2)  # less is better, so above 0 is better
    assert results["agreement"]["kd"]["kl"] >= 0


def test_the_report_speaks_of_blocks_and_tokens(run):
    page = (run.folder / "report.html").read_text()
    assert "predict the next token of documentation" in page
    assert "Multiply-adds per 32-token block" in page
    assert "lower is better" in page
    card = (run.folder / "student" / "README.md").read_text()
    assert "token numbers" in card
    assert "inputs in [0, 1]" not in card
    assert "task='language-modelling'" in card


def test_the_student_is_loaded_with_its_tokenizer(run):
    student = stillroom.load(run.folder / "student")
    ids = torch.tensor([student.tokenizer.encode("The if statement")])
    assert student(ids).shape == (1, 16, len(student.tokenizer))
    again = experiment_of({"kd": ("kd", {})}, _given(teacher=str(run.folder / "student"), student="gpt-1-16"))
    assert again.task.tokenizer == str(run.folder / "student")


def test_the_demonstration_needs_no_further_arguments():
    options = with_defaults(_given())
    assert (options["data"], options["teacher"], options["student"]) == ("documentation", "gpt-2-64", "gpt-1-48")
    assert options["seeds"] == 3
    assert with_defaults(_given(steps=7))["epochs"] is None
    assert with_defaults(_given(task=None, data="my.txt"))["task"] == "language-modelling"
    assert with_defaults(_given(data="my.txt"))["data"] == "my.txt"


def test_the_dry_run_says_what_would_be_done():
    found = forecast(teacher="gpt-1-32", student="gpt-1-16", teacher_epochs=1, train_size=64, test_size=40, **SMALL)
    lines = "\n".join(lines_of(found))
    assert "64 training 64-token blocks" in lines
    assert "takes token numbers" in lines
    assert set(found["terms"]) == {"distill", "label"}


def test_folders_of_transformers_and_a_text_of_ones_own(folders, tmp_path):  # noqa: F811
    import transformers

    (tmp_path / "my.txt").write_text(TEXT)
    result = stillroom.distill(
        f"hf/{folders / 'big'}", f"hf/{folders / 'small'}", tmp_path / "my.txt", teacher_epochs=20, steps=3,
        batch_size=4, length=16, lr=1e-2, method="kd", out=tmp_path / "run", **SMALL,
    )  # fmt: skip
    place = tmp_path / "run" / "student"
    student = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    tokens = tokenizer("to be or not", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert torch.allclose(student(tokens).logits, result.student(tokens), atol=1e-5)
    assert "AutoModelForCausalLM" in (place / "README.md").read_text()
    assert result.results["arms"]["teacher"]["values"][0] < result.results["arms"]["kd"]["values"][0]
    ratio = result.results["arms"]["kd"]["metrics"]
    nats = ratio["cross_entropy"][0] / 0.6931471805599453
    assert ratio["bits_per_character"][0] < nats  # a token stands for more than one character


def test_other_vocabularies_are_refused_with_names_and_sizes(folders, tmp_path):  # noqa: F811
    (tmp_path / "my.txt").write_text(TEXT)
    with pytest.raises(ValueError, match=r"big has a vocabulary of 280 .*other another one of 270"):
        stillroom.distill(f"hf/{folders / 'big'}", f"hf/{folders / 'other'}", tmp_path / "my.txt", **SMALL)


class Bigram(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, width), nn.Linear(width, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens))


def test_modules_and_tokens_of_ones_own():
    counting = torch.arange(4000) * 3 % 11
    found = stillroom.distill(
        Bigram(16), Bigram(), counting, teacher_epochs=40, steps=4, batch_size=8, lr=3e-2, length=10, **SMALL
    )
    assert found.results["arms"]["teacher"]["values"][0] < 2
    assert "bits_per_character" not in found.results["arms"]["kd"]["metrics"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "pld"}, "'pld' works for classification, segmentation, but the task is language-modelling"),
        ({"augment": "shift"}, "augments nothing, given augment='shift'"),
        ({"image_size": 8}, "has no image_size, given 8"),
        ({"task": "classification", "data": "digits", "length": 8}, "classification task has no length, given 8"),
        ({"length": 1}, "2 tokens or more, given 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    given = _given(**options)
    with pytest.raises(ValueError, match=words):
        experiment_of({given["method"]: (given["method"], {})}, given)


@pytest.mark.parametrize("method", [KD, Alone])
def test_kd_and_alone_pass_the_battery_on_tokens(method):
    batch = Batch(torch.randint(11, (8, 6)), torch.randint(11, (8, 6)), torch.arange(8))
    batch.labels[0, :3] = -100
    task = LanguageModelling()
    report = check_method(method(Bigram(), Bigram(16), task=task), batch, task=task, processes=False)
    assert report.ok


def _given(**options):
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(stillroom.distill).parameters.items()}
    return json.loads(json.dumps(defaults)) | {"task": "language-modelling"} | options
