"""Prompts from a file, embedded batch by batch."""

from __future__ import annotations

import pytest
import torch

from stillroom.data import PromptSamples, read_lines
from stillroom.data.stream import Stream


class Encoder:
    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return torch.tensor([[len(text), len(text.split())] for text in texts]).float().unsqueeze(2)


def test_prompts_are_embedded_when_a_batch_asks():
    encoder = Encoder()
    prompts = PromptSamples(["a", "a b", "a b c"], encoder)
    assert prompts.shape == (2, 1)
    assert encoder.asked == ["a"]
    batch = prompts.subset([2, 0]).batch([0, 1])
    assert batch.inputs.flatten(1).tolist() == [[5, 3], [1, 1]]
    assert batch.labels is None
    assert batch.index.tolist() == [2, 0]
    stream = Stream(prompts, batch_size=2, seed=0, workers=1)
    assert len(next(iter(stream.batches())).inputs) == 2


def test_no_prompts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 prompts"):
        PromptSamples([], Encoder())
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompts: write one per line"):
        read_lines(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.txt'.*captions there, one per line"):
        read_lines(tmp_path / "missing.txt", what="captions")


def test_lines_are_read_from_here_or_from_the_data_folder(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog  \n")
    assert read_lines(tmp_path / "prompts.txt") == ["a cat", "a dog"]
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    assert read_lines("prompts.txt") == ["a cat", "a dog"]
