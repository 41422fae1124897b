import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import stillroom
from stillroom.baselines import KD, Alone
from stillroom.experiment.run import Experiment
from stillroom.method import Losses, Method, Needs
from stillroom.task import Classification
from stillroom.tripwires import NotFiniteError
from tests.toys import cloud, conv, mlp, splits, trained_teacher

GREY = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
QUIET = {"progress": False, "device": "cpu"}


def tiny_student(classes: int = 3, channels: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, classes))


def run(**options):
    given = {"teacher": trained_teacher(), "student": tiny_student, "data": splits(), "epochs": 4} | options
    given = {"batch_size": 16, "lr": 0.02} | given
    return stillroom.distill(**given, **QUIET)


def test_the_verdict_is_what_the_interval_says(tmp_path):
    r = run(out=tmp_path / "run", seeds=3)
    difference = r.difference
    values = r.results["arms"]
    mean = sum(values["kd"]["values"]) / 3 - sum(values["alone"]["values"]) / 3
    assert difference["mean"] == pytest.approx(mean)
    expected = "worth it" if difference["low"] > 0 else "harmful" if difference["high"] < 0 else "no difference shown"
    assert r.verdict == expected
    assert set(values) == {"teacher", "alone", "kd"}


def test_everything_that_is_promised_is_written(tmp_path):
    r = run(out=tmp_path / "run", method="dkd", method_options={"beta": 4.0}, seeds=2)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written >= {"summary.json", "results.json", "report.html", "student"}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["method"] == "dkd"
    assert set(summary["arms"]) == {"teacher", "alone", "dkd"}
    assert all(set(arm) == {"values", "mean", "low", "high"} for arm in summary["arms"].values())
    assert set(summary["difference"]) == {"mean", "low", "high", "level"}
    assert summary["config"]["method_options"] == {"beta": 4.0}
    assert (tmp_path / "run" / summary["student"]["file"]).exists()
    assert summary["student"]["parameters"] == sum(p.numel() for p in tiny_student().parameters())
    assert summary["seconds"] > 0
    report = (tmp_path / "run/report.html").read_text()
    assert "dkd" in report
    assert "://" not in report.replace("http://www.w3.org", "")  # nothing is fetched from anywhere
    assert r.summary == summary


def test_the_student_that_is_given_back_is_the_one_that_was_saved(tmp_path):
    r = run(out=tmp_path / "run", seeds=2)
    loaded = stillroom.load(tmp_path / "run/student", model=tiny_student())
    inputs = torch.randn(5, 6)
    assert torch.equal(loaded(inputs), r.student(inputs))
    assert not r.student.training
    measured = stillroom.task.Classification().evaluate(r.student, stillroom.data.sequential(splits().test, 64))
    seed = r.results["student"]["seed"]
    assert measured["accuracy"] == pytest.approx(r.results["arms"]["kd"]["values"][seed])


def test_a_run_that_exists_is_never_overwritten(tmp_path):
    run(out=tmp_path / "run", seeds=1)
    before = (tmp_path / "run/summary.json").read_bytes()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        run(out=tmp_path / "run", seeds=1)
    assert (tmp_path / "run/summary.json").read_bytes() == before


def test_finished_runs_are_kept_by_a_resume_and_other_options_refused(tmp_path):
    first = run(out=tmp_path / "run", seeds=2)
    kept = tmp_path / "run/arms/kd/seed-0/result.json"
    before = kept.stat().st_mtime_ns
    again = run(out=tmp_path / "run", seeds=2, resume=True)
    assert kept.stat().st_mtime_ns == before
    assert again.results["arms"]["kd"]["values"] == first.results["arms"]["kd"]["values"]
    with pytest.raises(ValueError, match=r"other options \(lr\)"):
        run(out=tmp_path / "run", seeds=2, resume=True, lr=0.5)


def test_both_arms_start_from_one_student_and_the_same_seed_repeats_exactly():
    first, again = run(seeds=[4]), run(seeds=[4])
    assert first.results["arms"]["kd"]["values"] == again.results["arms"]["kd"]["values"]
    assert first.verdict == "no difference shown"  # one seed shows nothing
    assert first.difference["low"] is None


def test_save_keeps_what_a_run_without_a_folder_gave(tmp_path):
    r = run(seeds=1)
    assert r.folder is None
    r.save(tmp_path / "kept")
    assert (tmp_path / "kept/summary.json").exists()
    assert (tmp_path / "kept/student/student.safetensors").exists()
    with pytest.raises(FileExistsError):
        r.save(tmp_path / "kept")


def test_somebodys_own_method_works_by_class():
    class Mine(Method):
        """A method of the user's own."""

        needs = Needs(labels="none")

        def forward(self, batch):
            outputs = self.student(batch.inputs)
            return Losses(gap=(outputs - self.teacher(batch)).square().mean(), outputs=outputs)

    r = run(method=Mine, seeds=1, epochs=12)
    assert r.results["method"] == "mine"
    assert r.results["arms"]["mine"]["values"][0] > 0.5
    assert run(method=partial(KD, temperature=2.0), seeds=1).results["method"] == "kd"


class Far(KD):
    """Somebody's own."""


def test_a_method_that_is_built_already_is_refused():
    built = KD(tiny_student(), trained_teacher())
    with pytest.raises(TypeError, match=r"a KD that is built already, expected its class.*functools.partial\(KD, "):
        run(method=built)
    with pytest.raises(TypeError, match=r"must be a subclass of stillroom.Method .*, given dict"):
        run(method=dict)


def test_compare_takes_classes_and_partials_with_names_of_their_own():
    given = {"teacher": trained_teacher(), "student": tiny_student, "data": splits(), "steps": 2, "seeds": 1} | QUIET
    listed = stillroom.compare(["dkd", KD, partial(Far, temperature=2.0)], **given)
    assert list(listed["arms"]) == ["teacher", "alone", "dkd", "kd", "far"]
    assert listed["config"]["methods"] == ["dkd", "kd", "far"]
    hot = {"warm": KD, "hot": partial(KD, temperature=8.0), "pld": "pld"}
    named = stillroom.compare(hot, method_options={"warm": {"temperature": 2.0}}, **given)
    assert list(named["arms"]) == ["teacher", "alone", "warm", "hot", "pld"]
    assert "methods={'warm': <stillroom.baselines.KD>, 'hot': <functools.partial(" in named["command"]
    with pytest.raises(ValueError, match=r"every method must be named once, given kd, kd: .* a dict of names"):
        stillroom.compare([KD, partial(KD, temperature=8.0)], **given)
    with pytest.raises(ValueError, match=r"'alone' is what the student alone is called"):
        stillroom.compare({"kd": "kd", "alone": KD}, **given)


def test_what_repeats_a_run_from_python_is_a_call():
    r = run(seeds=[4], steps=2, epochs=None, method="dkd", method_options={"beta": 4.0})
    assert r.results["command"] == (
        "stillroom.distill(teacher=<torch.nn.modules.container.Sequential>, student=<tests.test_distill.tiny_student>, "
        "data=<stillroom.data.samples.Splits>, method='dkd', method_options={'beta': 4.0}, steps=2, batch_size=16, "
        "lr=0.02, seeds=[4], device='cpu')"
    )


def test_a_function_and_several_teachers_can_teach():
    network = trained_teacher()

    def predict(batch):
        return network(batch.inputs).detach().numpy()

    assert run(teacher=predict, seeds=1).results["arms"]["teacher"]["values"][0] > 0.9
    several = run(teacher=[trained_teacher(), trained_teacher()], seeds=1)
    assert several.results["arms"]["teacher"]["values"][0] > 0.9


def test_what_cannot_be_written_down_is_named_in_the_options():
    r = run(teacher=[trained_teacher(), trained_teacher()], seeds=1, data=cloud(120), epochs=1)
    config = r.results["config"]
    assert config["student"] == f"<{__name__}.tiny_student>"
    assert config["teacher"] == ["<torch.nn.modules.container.Sequential>"] * 2
    assert config["data"] == ["<torch.Tensor>"] * 2
    assert run(method=partial(KD, temperature=2.0), seeds=1).results["config"]["method"] == (
        "<functools.partial(stillroom.baselines.KD, temperature=2.0)>"
    )


def test_arrays_are_data():
    inputs, labels = cloud(200)
    r = run(data=(inputs.numpy(), labels.numpy()), seeds=1, epochs=12)
    assert r.results["arms"]["kd"]["mean"] > 0.5


def test_several_rates_are_tried_alike_and_chosen_on_the_held_out_part():
    r = run(lr=[1e-5, 0.02], seeds=1)
    for arm in ("alone", "kd"):
        assert r.results["arms"][arm]["lr"] == [0.02]


def test_several_rates_need_something_held_out_to_choose_by(tmp_path):
    with pytest.raises(ValueError, match=r"2 learning rates were given, but nothing is held out.*validation_share"):
        run(lr=[1e-9, 0.05], validation_share=0, data=cloud(120), seeds=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    given = replace(splits(), validation=None)
    experiment = Experiment(Classification(given, validation_share=0), {"alone": Alone}, tiny_student, lrs=(0.01, 0.02))
    with pytest.raises(ValueError, match="nothing is held out"):
        experiment.run([0], tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_the_card_says_whose_student_it_is_and_by_what_it_was_chosen(tmp_path):
    run(out=tmp_path / "held", seeds=2)
    assert "the best of 2 seeds on held-out training data" in (tmp_path / "held/student/README.md").read_text()
    r = run(out=tmp_path / "none", seeds=2, data=cloud(120), validation_share=0)
    card = (tmp_path / "none/student/README.md").read_text()
    assert "This is the student of arm kd, seed 0; nothing was held out to choose one by." in card
    assert "held-out" not in card
    assert any("Nothing is held out" in note for note in r.results["notes"])
    run(out=tmp_path / "one", seeds=[3])
    assert "This is the student of arm kd, seed 3. It takes" in (tmp_path / "one/student/README.md").read_text()


def test_a_rate_that_diverges_counts_as_the_worst(tmp_path):
    r = run(lr=[0.01, 1e30], seeds=1, out=tmp_path / "run")
    for arm in ("alone", "kd"):
        assert r.results["arms"][arm]["lr"] == [0.01]
        assert list(r.results["arms"][arm]["diverged"][0]) == ["1e+30"]
    said = [note.partition(" (")[0] for note in r.results["notes"] if "diverged" in note]
    assert said == [f"{arm}, seed 0: the learning rate 1e+30 diverged and was left out" for arm in ("alone", "kd")]
    with pytest.raises(NotFiniteError, match=r"all 2 learning rates diverged \(1e\+29, 1e\+30\); the first: "):
        run(lr=[1e29, 1e30], seeds=1)


def test_equal_time_gives_the_cheaper_arm_more_steps(tmp_path):
    heavy = nn.Sequential(nn.Linear(6, 2000), nn.ReLU(), nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 3))
    nn.init.zeros_(heavy[4].weight)
    teacher = trained_teacher()

    class Heavy(nn.Module):
        def forward(self, x):
            return teacher(x) + 0 * heavy(x)

    r = run(teacher=Heavy(), budget="time", seeds=1, out=tmp_path / "run")
    steps = {name: r.results["arms"][name]["steps"][0] for name in ("alone", "kd")}
    assert steps["alone"] > 1.5 * steps["kd"]
    assert json.loads((tmp_path / "run/budget.json").read_text())["kd"] == 1.0


@pytest.mark.parametrize("name", ["shapes", "scenes", "blobs"])
def test_other_tasks_are_found_from_the_data(name):
    metric = {"shapes": "mean_average_precision", "scenes": "mean_iou", "blobs": "r2"}[name]

    def network(classes, channels):
        layers = [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 3, padding=1)]
        return nn.Sequential(*layers, *([] if name == "scenes" else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]))

    r = stillroom.distill(
        network(*shape_of(name)), network, name, steps=6, train_size=256, test_size=64, lr=0.02, seeds=1, batch_size=16,
        teacher_epochs=60, **QUIET,
    )  # fmt: skip
    assert r.results["metric"] == metric
    assert r.results["arms"]["teacher"]["values"][0] > 0


def shape_of(name):
    data = stillroom.data.load_data(name)
    width = stillroom.task.task_for(data.kind).width(data)
    return width, data.train.shape[0]


def test_embeddings_need_no_labels_and_are_weighed_against_the_student_as_it_comes():
    inputs, _ = cloud(240)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 5))
    r = run(teacher=teacher, student=tiny_student, data=(inputs, None), epochs=30, seeds=3, task="embeddings")
    assert r.results["metric"] == "neighbour_overlap"
    assert r.results["arms"]["kd"]["mean"] > r.results["arms"]["alone"]["mean"]
    assert any("Without labels" in note for note in r.results["notes"])


def test_compare_makes_a_leaderboard(tmp_path):
    results = stillroom.compare(
        "kd,dkd,pld", trained_teacher(), tiny_student, splits(), epochs=1, seeds=2, out=tmp_path / "run", **QUIET
    )
    assert set(results["arms"]) == {"teacher", "alone", "kd", "dkd", "pld"}
    assert set(results["differences"]) == {"kd", "dkd", "pld"}
    assert (tmp_path / "run/report.html").exists()
    costs = results["step_costs"]
    assert set(costs) == {"alone", "kd", "dkd", "pld"}
    assert costs["alone"]["ratio"] == 1.0
    assert all(cost["seconds"] > 0 for cost in costs.values())
    assert costs["kd"]["memory_bytes"] > costs["alone"]["memory_bytes"] > 0  # the teacher's activations
    assert "What a training step costs" in (tmp_path / "run/report.html").read_text()


def test_a_comparison_goes_on_with_more_methods_but_not_with_other_arguments(tmp_path):
    given = (trained_teacher(), tiny_student, splits())
    options = {"epochs": 1, "seeds": 2, "out": tmp_path / "run", **QUIET}
    arguments = {"kd": {"temperature": 2.0}}
    first = stillroom.compare("kd", *given, method_options=arguments, **options)
    more = stillroom.compare("kd,dkd", *given, method_options=arguments, resume=True, **options)
    assert set(more["arms"]) == {"teacher", "alone", "kd", "dkd"}
    assert more["arms"]["kd"]["values"] == first["arms"]["kd"]["values"]
    for other in ({"kd": {"temperature": 3.0}}, {}, arguments | {"dkd": {"beta": 2.0}}):
        with pytest.raises(ValueError, match=r"other options \(those of d?kd\)"):
            stillroom.compare("kd,dkd", *given, method_options=other, resume=True, **options)


class Tokens(torch.utils.data.Dataset):
    """What a tokenizer gives, item by item."""

    def __len__(self):
        return 60

    def __getitem__(self, row):
        words = torch.randint(2, 9, (5,), generator=torch.Generator().manual_seed(row))
        words[0] = row % 2
        return {"input_ids": words, "attention_mask": torch.ones(5, dtype=torch.int64), "labels": row % 2}


class Reader(nn.Module):
    """A classifier of words with the arguments of those of transformers."""

    def __init__(self, width=8):
        super().__init__()
        self.words, self.head = nn.Embedding(9, width), nn.Linear(5 * width, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": self.head((self.words(input_ids) * attention_mask.unsqueeze(2)).flatten(1))}


def test_dicts_of_tokens_go_to_networks_by_name():
    r = stillroom.distill(
        Reader(16), Reader(), Tokens(), teacher_epochs=30, batch_size=8, lr=0.03, steps=4, seeds=1, **QUIET
    )
    assert r.results["arms"]["teacher"]["values"][0] > 0.9
    assert r.student({"input_ids": torch.ones(2, 5).long(), "attention_mask": torch.ones(2, 5)}).shape == (2, 2)
    with pytest.raises(ValueError, match=r"inputs of input_ids \(\d+, 5\), attention_mask .*self\.model\(\*\*batch\)"):
        stillroom.distill(nn.Sequential(nn.Linear(5, 2)), Reader(), Tokens(), steps=4, seeds=1, **QUIET)


class Broken(nn.Module):
    """Fails for a reason of its own."""

    def forward(self, inputs):
        raise RuntimeError("the moon is full")


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (mlp().half(), r"its weights are torch.float16, the inputs torch.float32: .*\.float\(\)"),
        (lambda inputs: mlp()(inputs), r"a function is called with a Batch: use batch\.inputs"),
        (Broken(), r"the moon is full; make it run by itself first"),
        (mlp(features=9), r"mat1 and mat2.*; take a network for inputs of this shape"),
    ],
)
def test_what_a_teacher_complains_of_gets_the_remedy_that_fits(teacher, message):
    with pytest.raises(ValueError, match=rf"teacher cannot take inputs of shape \(8, 6\): .*{message}") as error:
        run(teacher=teacher, steps=1, epochs=None)
    assert "image_size" not in str(error.value)


def test_images_of_a_wrong_size_get_the_remedy_for_images():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match=r"student .*\(.*, 1, 12, 8\): .*mat1.*; set image_size or channels, or"):
        run(teacher=lambda batch: torch.zeros(len(batch), 3), student=lambda: net, data=(torch.rand(60, 1, 12, 8),
            torch.arange(60) % 3), steps=1, epochs=None)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "dkdd"}, ValueError, "unknown method 'dkdd': did you mean"),
        ({"method": "dkd", "method_options": {"betta": 1}}, ValueError, "unknown argument of method dkd 'betta'.*beta"),
        ({"method_options": {"temperature": 0}}, ValueError, "temperature must be a number above 0, given 0"),
        ({"epochs": -1}, ValueError, "epochs must be above 0, given -1"),
        ({"seeds": 0}, ValueError, "given 0 seeds"),
        ({"teacher": conv(classes=5), "data": GREY}, ValueError, "the teacher: Sequential gives .* expected 3 classes"),
        (
            {"teacher": conv(), "student": conv(classes=5), "data": GREY},
            ValueError,
            "the student: Sequential gives .* expected 3 classes",
        ),
        ({"teacher": mlp(classes=5)}, ValueError, "expected 3 classes"),
        ({"teacher": mlp(features=9)}, ValueError, r"teacher cannot take inputs of shape \(.*, 6\)"),
        ({"student": mlp(features=9)}, ValueError, r"student cannot take inputs of shape \(.*, 6\)"),
        ({"teacher": None}, ValueError, "no teacher was given"),
        ({"data": "no/such/folder"}, FileNotFoundError, "no/such/folder"),
        ({"task": "clasification"}, ValueError, "unknown task"),
        ({"labels": 0}, ValueError, "labels must be"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"device": "cpu", "jobs": 0}, ValueError, "jobs must be 1 or more"),
        ({"task": "regression"}, ValueError, "regression"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, options, error, message):
    given = {"teacher": trained_teacher(), "student": tiny_student, "data": splits(), "epochs": 1, "seeds": 1}
    with pytest.raises(error, match=message):
        stillroom.distill(**(given | {"device": "cpu", "progress": False, "out": tmp_path / "run"} | options))
    assert not (tmp_path / "run").exists()
