"""Mistakes on the command line: each ends with code 2 and one sentence, and nothing is written."""

import re
import subprocess
import sys
import time

import pytest

from tests.cli_toys import MODELS, SMALL, TINY, make_here, make_models, run, tree  # noqa: F401

MISTAKES = {
    "distil": r"unknown command 'distil': did you mean distill",
    "run nope": r"unknown system 'nope': known are",
    "run pdl": r"unknown system 'pdl': did you mean pld\?",
    "show nope": r"unknown system 'nope'",
    "show": r"which system\?",
    "run": r"which system\?",
    "run pld --labled 3": r"unknown option '--labled': did you mean --labelled",
    "run pld --seeds ten": r"--seeds must be a whole number, given 'ten'",
    "run pld --seeds 0": r"seeds must be 1 or more, given 0",
    "run pld --first-seed -1": r"seeds must be whole numbers of 0 or more, given -1",
    "run pld extra": r"unexpected argument 'extra'",
    "run pld --all": r"unexpected argument 'pld'",
    "run pld --resume": r"--resume needs the folder",
    "run pld --out plain": r"plain exists and is not empty",
    "list --metods": r"unknown option '--metods': did you mean --methods",
    "report": r"which folder\?",
    "report plain": r"plain holds no results.json",
    "report nowhere": r"nowhere holds no results.json",
    "export plain": r"no config.json in plain",
    "export nowhere": r"no config.json in nowhere",
    "export corrupt": r"corrupt/student.safetensors cannot be read",
    "export untrained --format onx": r'format must be "onnx" or "torch", given \'onx\'',
    "distill --method dkdd": r"unknown method 'dkdd': did you mean dkd",
    "distill --teachr x": r"unknown option '--teachr': did you mean --teacher",
    "distill --teacher": r"the option --teacher needs a value",
    "distill extra": r"unexpected argument 'extra'",
    "distill --epochs -1": r"epochs must be above 0, given -1",
    "distill --epochs ten": r"--epochs must be a number, given 'ten'",
    "distill --seeds 0": r"at least one seed is needed, given 0",
    "distill --seeds -2": r"at least one seed is needed, given -2",
    "distill --seeds x": r"--seeds must be a whole number or a list such as \[1,2\], given 'x'",
    "distill --seeds [1,1]": r"every seed must be there once, given \[1, 1\]",
    "distill --first-seed -1": r"seeds must be whole numbers of 0 or more, given -1",
    "distill --budget tme": r"--budget must be one of steps, time, given 'tme'",
    "distill --resume": r"--resume needs the folder",
    "distill --dkd.alpha 3": r"unknown option '--dkd.alpha'.*--method.NAME",
    "compare --methods kd,dkdd": r"unknown method 'dkdd': did you mean dkd",
    "compare --methods kd,kd": r"named once, given kd, kd",
    "compare --method kd": r"unknown option '--method': did you mean --methods",
    "distill --teach conv-8-16": r"unknown option '--teach': did you mean --teacher",
    "distill --method own.py": r"own.py is a file, expected file.py:Class",
    "distill --method nofile.py:X": r"there is no file nofile.py",
    "distill --method broken.py:Thing": r"broken.py has no method class 'Thing', .* it has raises, number",
    "compare --methods broken.py:Thing": r"broken.py has no method class 'Thing'",
    "compare --methods ,": r"no methods were given",
    "compare --dkdd.beta 3": r"unknown method 'dkdd': did you mean dkd",
    "compare --methods kd --dist.beta 3": r"method_options are given for \['dist'\]",
    f"distill {TINY} --tempereture 3": r"unknown option '--tempereture'",
    f"distill {TINY} --method.temperature 0": r"temperature must be a number above 0, given 0",
    f"distill {TINY} --method.temperature abc": r"temperature of method kd must be a number, given 'abc'",
    f"distill {TINY} --method.temperature": r"--method.temperature needs a value",
    f"distill {TINY} --method.unknown 3": r"unknown argument of method kd 'unknown': .*temperature",
    f"distill {TINY} --data no/such": r"no data set or path 'no/such'",
    f"distill {TINY} --data empty": r"'empty' holds no images",
    f"distill {TINY} --data one": r"'one' holds one class only \('cats'\)",
    f"distill {TINY} --data broken.py": r"'broken.py' is a file of unknown type",
    f"distill {TINY} --out plain": r"plain exists and is not empty",
    f"check {TINY} --out plain": r"plain exists and is not empty",
    f"distill {TINY} --student corrupt": r"corrupt/student.safetensors cannot be read",
    f"distill {TINY} --teacher corrupt": r"corrupt/student.safetensors cannot be read",
    f"distill {TINY} --student ./unreadable": r"unreadable was not written by stillroom",
    f"distill --teacher seven --student conv-4-8 {SMALL}": r"has 7 classes, expected 10",
    f"distill --teacher untrained --student conv-4-8 {SMALL}": r"no better than guessing .*--teacher-epochs",
    f"distill {MODELS} {SMALL} --out new": r"no better than guessing .*--teacher-epochs",
    f"check {MODELS} {SMALL}": r"no better than guessing .*--teacher-epochs",
    f"distill --teacher timm/resnet81 --student conv-4-8 {SMALL}": r"timm has no network 'resnet81': .*resnet18",
    f"distill {TINY} --student nofile.py:x": r"there is no file nofile.py",
    f"distill {TINY} --student broken.py:raise": r"broken.py has no function 'raise'.*raises",
    f"distill {TINY} --student broken.py:raises": r"student broken.py:raises cannot be built.*boom inside",
    f"distill {TINY} --student broken.py:number": r"broken.py:number returned int, expected a torch.nn.Module",
    f"distill {TINY} --student broken.py:deep": r"requires the argument 'depth'",
    f"distill {TINY} --student broken.py:vectors": r"cannot take inputs of shape \(\d, 1, 8, 8\)",
    f"distill {TINY} --student syntax.py:x": r"student syntax.py:x cannot be built.*SyntaxError",
    f"distill {TINY} --student nomodule.x:f": r"there is no module 'nomodule.x'",
    f"distill {TINY} --device cudaa": r"device 'cudaa' is not available here: take one of cpu",
    f"distill {TINY} --jobs 0": r"jobs must be 1 or more processes, given 0",
    f"distill {TINY} --workers -1": r"workers must be 0 or more threads, given -1",
    f"distill {TINY} --level 2": r"level is .* between 0 and 1, given 2",
    f"distill {TINY} --lr -1": r"lr .* above 0, given -1",
    f"distill {TINY} --lr [0.01,-1]": r"lr .* above 0, given -1",
    f"distill {TINY} --lr [0.01,x]": r"--lr must be a number or a list such as \[0.1,0.2\], given '\[0.01,x\]'",
    f"distill {TINY} --lr [0.01,0.02] --validation-share 0": r"2 learning rates were given, but nothing is held out",
    f"compare {TINY} --lr [0.01,0.02] --validation-share 0": r"2 learning rates were given, but nothing is held out",
    f"check {TINY} --lr [0.01,0.02] --validation-share 0": r"2 learning rates were given, but nothing is held out",
    f"distill {TINY} --augment flop": r"augment must be one of none, .* given 'flop'",
    f"distill {TINY} --task nope": r"unknown task 'nope'",
    f"distill {TINY} --labels 0": r"labels must be above 0, given 0",
    f"distill {TINY} --batch-size 0": r"batch_size must be above 0, given 0",
    f"distill {TINY} --epochs 3": r"give epochs or steps, not both",
    f"distill {TINY} --precision fp8": r"--precision must be one of no, bf16, fp16, given 'fp8'",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_with_one_sentence_and_nothing_written(line, here, models, capsys):
    before = tree(models), sorted(here.iterdir())
    code, out, error = run(line, capsys)
    assert code == 2
    assert out == ""
    assert len(error.splitlines()) == 1, error
    assert error.startswith("stillroom: ")
    assert re.search(MISTAKES[line], error), error
    assert (tree(models), sorted(here.iterdir())) == before


@pytest.mark.parametrize(
    "line",
    [
        f"distill --teacher timm/resnet18@pretrained --student conv-4-8 {SMALL}",
        f"distill --teacher hf/some/none --student conv-4-8 {SMALL}",
        f"distill {TINY} --data hf:no/such",
    ],
)
def test_what_cannot_be_fetched_is_said_within_seconds(line, here, capsys, monkeypatch, tmp_path_factory):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    before, began = sorted(here.iterdir()), time.monotonic()
    code, _, error = run(line, capsys)
    assert code == 2
    assert re.search(r"(out of reach|cannot be fetched).*", error)
    assert len(error.splitlines()) == 1, error
    assert time.monotonic() - began < 20
    assert sorted(here.iterdir()) == before


def test_the_installed_program_says_mistakes_without_a_traceback(here):
    program = [sys.executable, "-c", "from stillroom.cli import main; main()", "distill", "--seeds", "0"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "stillroom: at least one seed is needed, given 0 seeds\n"
    assert not (here / "stillroom-runs").exists()
