"""The command line when all goes well: what it prints, what it writes, what it keeps."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import stillroom
from stillroom.cli import main
from tests.cli_toys import SMALL, TINY, make_here, make_models, run, tree  # noqa: F401

# ---- what is printed without training --------------------------------------------------------------------------------


def test_the_systems_are_listed(capsys):
    rows = json.loads(run("list --json", capsys)[1])
    assert {"slug", "title", "arxiv", "year", "kind", "needs", "gives", "methods"} <= set(rows[0])
    plain = run("list", capsys)[1]
    assert all(row["slug"] in plain for row in rows)
    assert all(line == line.rstrip() for line in plain.splitlines())


def test_the_methods_are_listed(capsys):
    names = {row["name"] for row in json.loads(run("list --methods --json", capsys)[1])}
    assert {"alone", "kd", "dkd", "dist", "pld", "at", "fitnets", "rkd", "crd"} <= names
    assert "dkd" in run("list --methods", capsys)[1]


def test_a_system_is_shown(capsys):
    text = run("show pld", capsys)[1]
    assert "arXiv:2506.12542" in text
    assert "Not for whom" in text
    assert "stillroom run pld" in text
    found = json.loads(run("show pld --json", capsys)[1])
    assert found["slug"] == "pld"
    assert "Citation" in found["description"]


@pytest.mark.parametrize("command", ["distill", "compare", "check", "run", "list", "show", "report", "export"])
def test_every_help_page_is_complete(command, capsys):
    code, text, error = run(f"{command} --help", capsys)
    assert (code, error) == (0, "")
    assert text.startswith(f"usage: stillroom {command}")
    assert f"examples:\n  stillroom {command}" in text
    assert "_" not in " ".join(re.findall(r"--[\w-]+", text))
    assert "{true,false}" not in text
    assert not re.search(r"^  --[\w-]+( [A-Z_]+)?\n  --", text, re.MULTILINE)  # an option without an explanation
    assert text.endswith("\n")


def test_the_recipes_own_arguments_are_in_its_help(capsys):
    text = run("run pld --help", capsys)[1]
    assert "--labelled" in text
    assert "--teacher-temperature" in text
    assert "--first-seed" in text


def test_help_loads_no_torch():
    commands = ["distill", "compare", "check", "run", "list", "show", "report", "export"]
    program = f"""
import sys
from stillroom.cli import main
for arguments in [[], *([command, "--help"] for command in {commands}), ["show", "pld", "--json"], ["list", "--json"]]:
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, arguments
print("loaded", [name for name in ("torch", "datasets", "sklearn", "timm", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_distill_writes_the_promised_summary_and_never_over_a_run(here, capsys):
    code, out, error = run(f"distill {TINY} --json", capsys)
    assert code == 0, error
    summary = json.loads(out)
    place = here / "stillroom-runs/digits-kd-1"
    assert summary == json.loads((place / "summary.json").read_text())
    assert set(summary) == {"method", "metric", "arms", "difference", "verdict", "student", "config", "seconds"}
    assert set(summary["arms"]) == {"teacher", "alone", "kd"}
    assert all(set(arm) == {"values", "mean", "low", "high"} for arm in summary["arms"].values())
    assert set(summary["difference"]) == {"mean", "low", "high", "level"}
    assert summary["verdict"] in ("worth it", "no difference shown", "harmful")
    assert set(summary["student"]) == {"parameters", "file"}
    student = stillroom.load(place / "student")
    assert sum(p.numel() for p in student.parameters()) == summary["student"]["parameters"]
    before = tree(place)
    assert run(f"distill {TINY}", capsys)[0] == 0
    assert (here / "stillroom-runs/digits-kd-2/report.html").exists()
    assert tree(place) == before


def test_the_verdict_is_said_once_and_lines_are_plain(here, capsys):
    code, out, error = run(f"distill {TINY} --seeds 2 --out run", capsys)
    assert code == 0
    both = out + error
    assert len(re.findall(r"No difference shown:|Worth it:|Harmful:", both)) == 1
    assert "\x1b" not in both
    assert "warn" not in both.lower()
    assert max(map(len, out.splitlines())) < 200
    assert out.splitlines()[-1] == "everything is in run (look at run/report.html)"
    assert error.splitlines()[0].startswith("The task: sort digits into 10 classes")
    code, out, _ = run("report run", capsys)
    assert code == 0
    assert out.count("No difference shown:") + out.count("Worth it:") + out.count("Harmful:") == 1


def test_check_resolves_everything_and_writes_nothing(here, capsys):
    before = sorted(here.iterdir())
    code, out, error = run(f"check {TINY} --method at --out new --seeds 2", capsys)
    assert (code, error) == (0, "")
    assert sorted(here.iterdir()) == before
    assert re.search(r"^forecast: 4 runs of 2 steps after the teacher's own training, about \d+ s in all", out, re.M)
    assert out.splitlines()[-1] == "nothing was trained and nothing was written"
    found = json.loads(run(f"check {TINY} --json", capsys)[1])
    assert found["runs"] == 2
    assert found["seconds"] > 0
    assert found["data"]["shape"] == [1, 8, 8]


def test_compare_makes_one_leaderboard(here, capsys):
    code, out, error = run(f"compare {TINY} --methods kd,dkd,dist,pld --kd.temperature 2 --out board", capsys)
    assert code == 0, error
    results = json.loads((here / "board/results.json").read_text())
    assert set(results["arms"]) == {"teacher", "alone", "kd", "dkd", "dist", "pld"}
    assert all(f" {name} " in out for name in ("kd", "dkd", "dist", "pld", "alone"))
    assert "--methods kd,dkd,dist,pld" in results["command"]
    assert "--kd.temperature 2" in results["command"]
    assert results["config"]["methods"] == ["kd", "dkd", "dist", "pld"]
    assert results["config"]["method_options"] == {"kd": {"temperature": 2}}
    assert run(f"compare {TINY} --methods kd,dkd,dist,pld,rkd --kd.temperature 2 --out board --resume", capsys)[0] == 0


def test_run_makes_a_systems_results_and_report(here, capsys):
    code, out, error = run("run pld --seeds 2 --first-seed 5 --tiny --jobs 1 --out pld", capsys)
    assert code == 0, error
    results = json.loads((here / "pld/results.json").read_text())
    assert results["system"] == "pld"
    assert results["seeds"] == [5, 6]
    assert len(results["claims"]) == len(re.findall(r"^(shown|not shown|refuted): ", out, re.M)) > 0
    assert (here / "pld/report.html").exists()
    assert run("run pld --seeds 2 --first-seed 5 --tiny --jobs 1 --out pld", capsys)[0] == 2


def test_only_the_first_of_several_processes_writes_reports(here, capsys, monkeypatch):
    assert run("run pld --seeds 1 --tiny --jobs 1 --out pld", capsys)[0] == 0
    (here / "pld/report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        patch.setattr(sys, "stdout", sys.stdout)
        assert run("report pld", capsys)[0] == 0
    assert not (here / "pld/report.html").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--lr [0.01,0.003]", {"lrs": True}),
        ("--budget time", {}),
        ("--precision bf16", {}),
        ("--seeds [3,5]", {"seeds": [3, 5]}),
        ("--seeds 2 --first-seed 5", {"seeds": [5, 6]}),
        ("--method alone", {}),
    ],
)
def test_options_do_what_they_say(options, expected, here, capsys):
    code, _, error = run(f"distill {TINY} {options} --out run", capsys)
    assert code == 0, error
    results = json.loads((here / "run/results.json").read_text())
    assert results["seeds"] == expected.get("seeds", [0])
    if "lrs" in expected:
        assert {path.name for path in (here / "run/arms/kd/seed-0").glob("lr-*")} == {"lr-0.01", "lr-0.003"}
    assert (here / "run/budget.json").exists() == ("time" in options)


def test_a_students_folder_is_a_teacher_and_can_be_exported(here, capsys):
    strong = "--teacher conv-8-16 --student conv-8-16 --teacher-epochs 12 --steps 60 --seeds 1 --jobs 1 --lr 0.02"
    assert run(f"distill {strong} --out big", capsys)[0] == 0
    code, _, error = run(f"distill --teacher big/student --student conv-4-8 {SMALL} --out next", capsys)
    assert code == 0, error
    code, out, _ = run("export next/student --format torch --json", capsys)
    assert code == 0
    written = json.loads(out)
    assert written["max_error"] < 1e-4
    program = torch.export.load(written["path"]).module()
    inputs = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(program(inputs), stillroom.load(here / "next/student")(inputs))
    assert run("export next/student --format torch", capsys)[0] == 2  # never over a file


def test_two_processes_give_the_numbers_of_one(here, capsys):
    for jobs in (1, 2):
        assert run(f"distill {TINY} --seeds 1 --jobs {jobs} --out run-{jobs}", capsys)[0] == 0
    arms = [json.loads((here / f"run-{jobs}/summary.json").read_text())["arms"] for jobs in (1, 2)]
    assert arms[0] == arms[1]


def test_a_killed_run_goes_on_to_the_same_numbers(here, capsys):
    line = f"distill {TINY} --steps 40 --seeds 2".split()
    main([*line, "--out", "whole"])
    log = (here / "log").open("w")
    program = [sys.executable, "-c", "from stillroom.cli import main; main()", *line, "--out", "killed"]
    process = subprocess.Popen(program, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    kept = here / "killed/arms/alone/seed-0/result.json"
    try:
        until = time.monotonic() + 120
        while not kept.exists():
            assert process.poll() is None, (here / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        log.close()
    assert not (here / "killed/summary.json").exists()
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    code, _, error = run(" ".join([*line, "--out", "killed", "--resume"]), capsys)
    assert code == 0, error
    assert "finished runs are kept" in error
    assert kept.stat().st_mtime_ns == before
    whole, resumed = (json.loads((here / name / "summary.json").read_text()) for name in ("whole", "killed"))
    assert resumed["arms"] == whole["arms"]
    assert resumed["difference"] == whole["difference"]


# ---- code of one's own -----------------------------------------------------------------------------------------------


OWN = """
from torch import nn
from stillroom import Losses, Method, Needs
from stillroom.losses import cross_entropy


def small(classes, channels=1):
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes))


class Squared(Method):
    needs = Needs(labels="every")

    def __init__(self, student, teacher, *, weight: float = 1.0):
        super().__init__(student, teacher)
        self.weight = weight

    def forward(self, batch):
        logits = self.student(batch.inputs)
        far = (logits - self.teacher(batch)).square().mean()
        return Losses(label=cross_entropy(logits, batch.labels), far=far, weights={"far": self.weight}, outputs=logits)
"""


@pytest.fixture(name="own")
def make_own(here):
    (here / "own.py").write_text(OWN)
    return here


def test_a_student_of_ones_own_code_is_used_again_when_that_is_trusted(own, capsys):
    teacher = "--teacher conv-8-16 --teacher-epochs 12"
    assert run(f"distill {teacher} --student own.py:small --steps 60 --lr 0.02 {SMALL[10:]} --out m1", capsys)[0] == 0
    for line in ("export m1/student --format torch", f"check --teacher m1/student --student conv-4-8 {SMALL}"):
        code, _, error = run(line, capsys)
        assert code == 2
        assert "--trust-code" in error
        code, _, error = run(f"{line} --trust-code", capsys)
        assert code == 0, error
    again = f"--teacher m1/teacher --student m1/student --trust-code --seeds 2 {SMALL} --jobs 2"
    code, _, error = run(f"distill {again} --out m2", capsys)
    assert code == 0, error
    assert "--trust-code" in json.loads((own / "m2/results.json").read_text())["command"]
    card = (own / "m2/student/README.md").read_text()
    assert "trust_code=True" in card


def test_trust_changes_nothing_where_no_folder_names_code(here, capsys):
    assert run(f"distill {TINY} --trust-code --out run", capsys)[0] == 0
    code, _, error = run(f"distill {TINY} --out run --resume", capsys)
    assert code == 0, error


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_method_of_ones_own_is_named_by_its_file(own, capsys, jobs):
    small = f"{TINY} --jobs {jobs} --seeds 2"
    code, _, error = run(f"distill {small} --method own.py:Squared --method.weight 0.5", capsys)
    assert code == 0, error
    results = json.loads((own / "stillroom-runs/digits-squared-1/results.json").read_text())
    assert results["method"] == "squared"
    assert "--method own.py:Squared" in results["command"]
    assert "--method.weight 0.5" in results["command"]
    code, _, error = run(f"compare {small} --methods kd,own.py:Squared --Squared.weight 0.5 --out board", capsys)
    assert code == 0, error
    results = json.loads((own / "board/results.json").read_text())
    assert set(results["arms"]) == {"teacher", "alone", "kd", "squared"}
    assert results["config"]["method_options"] == {"squared": {"weight": 0.5}}
    assert "--methods kd,own.py:Squared" in results["command"]
    assert "--squared.weight 0.5" in results["command"]


def test_check_takes_a_method_of_ones_own(own, capsys, monkeypatch):
    code, out, error = run(f"check {TINY} --method own.py:Squared --method.weight 0.5", capsys)
    assert code == 0, error
    assert "far " in out


def test_lists_are_written_with_commas(here, capsys):
    code, _, error = run(f"distill {TINY} --lr 0.01,0.003 --seeds 3,5 --out run", capsys)
    assert code == 0, error
    assert json.loads((here / "run/results.json").read_text())["seeds"] == [3, 5]
    assert {path.name for path in (here / "run/arms/kd/seed-3").glob("lr-*")} == {"lr-0.01", "lr-0.003"}
    text = " ".join(run("distill --help", capsys)[1].split())
    assert "as 0.1,0.01" in text
    assert "as 0,1,7" in text
