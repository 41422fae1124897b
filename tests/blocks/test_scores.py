import pytest
import torch

from stillroom.blocks import SampleScores


def test_latest_score_stays_and_unknown_samples_have_none():
    scores = SampleScores()
    assert len(scores) == 0
    assert all(value != value for value in scores.quantiles())
    scores.put(torch.tensor([3, 1]), torch.tensor([0.5, 0.25]))
    scores.put(torch.tensor([1]), torch.tensor([1.0], requires_grad=True))
    assert scores.known.tolist() == [1, 3]
    assert scores.get(torch.tensor([1, 3])).tolist() == [1.0, 0.5]
    assert scores.get(torch.tensor([0, 2, 99]), default=-1.0).tolist() == [-1.0, -1.0, -1.0]
    assert not scores.values.requires_grad
    assert scores.quantiles([0.0, 1.0]) == [0.5, 1.0]


def test_momentum_mixes_only_with_what_was_known():
    scores = SampleScores(momentum=0.75)
    scores.put(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    scores.put(torch.tensor([1, 2]), torch.tensor([4.0, 8.0]))
    assert scores.values.tolist() == [1.0, 0.75 * 2 + 0.25 * 4, 8.0]


def test_of_a_sample_that_occurs_twice_the_last_score_stays():
    scores = SampleScores()
    scores.put(torch.tensor([1, 0, 1]), torch.tensor([1.0, 2.0, 3.0]))
    assert scores.values.tolist() == [2.0, 3.0]


def test_a_memory_goes_through_a_state_dict_at_any_size():
    scores = SampleScores()
    scores.put(torch.tensor([4]), torch.tensor([0.5]))
    holder, other = torch.nn.ModuleDict({"s": scores}), torch.nn.ModuleDict({"s": SampleScores()})
    other.load_state_dict(holder.state_dict())
    torch.testing.assert_close(other["s"].values, scores.values, equal_nan=True)


def test_bad_scores_are_refused():
    scores = SampleScores()
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        scores.put(torch.tensor([0, 1]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="given -1"):
        scores.put(torch.tensor([-1]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="finite, given nan"):
        scores.put(torch.tensor([0]), torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), given 1"):
        SampleScores(momentum=1.0)
