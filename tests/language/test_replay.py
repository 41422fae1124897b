"""The buffer is first in, first out and never over its capacity; the schedule follows a script exactly."""

import copy

import pytest
import torch

from stillroom.language import AdaptiveSchedule, ReplayBuffer


def rows(first, count, length=3):
    inputs = torch.arange(first, first + count).unsqueeze(1).expand(-1, length).contiguous()
    return inputs, inputs + 100


def test_the_oldest_make_room():
    buffer = ReplayBuffer(5)
    held = []
    for start in range(0, 12, 3):
        buffer.push(*rows(start, 3))
        held.append(len(buffer))
        assert buffer.full == (len(buffer) == 5)
    assert held == [3, 5, 5, 5]
    assert [int(inputs[0]) for inputs, _ in buffer.rows] == [7, 8, 9, 10, 11]


def test_a_sample_draws_different_sequences_of_equal_chance():
    buffer = ReplayBuffer(4)
    buffer.push(*rows(0, 4))
    counts = torch.zeros(4)
    for _ in range(600):
        inputs, labels = buffer.sample(2)
        assert torch.equal(labels, inputs + 100)
        assert len(set(inputs[:, 0].tolist())) == 2
        counts[inputs[:, 0]] += 1
    assert float((counts / 600 - 0.5).abs().max()) < 0.1
    with pytest.raises(ValueError, match="5 sequences are asked of a buffer that holds 4"):
        buffer.sample(5)


def test_different_lengths_are_filled_up_without_labels():
    buffer = ReplayBuffer(4)
    labels = torch.tensor([[-100, 5, 6, -100], [-100, 7, -100, -100]])
    buffer.push(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), labels)
    inputs, targets = buffer.sample(2, fill=9)
    order = inputs[:, 0].argsort()
    assert inputs[order].tolist() == [[1, 2, 3], [5, 6, 9]]
    assert targets[order].tolist() == [[-100, 5, 6], [-100, 7, -100]]


def test_it_is_part_of_the_state():
    buffer = ReplayBuffer(4)
    buffer.push(*rows(0, 3))
    buffer.push(*rows(3, 2, length=2))
    other = ReplayBuffer(4)
    other.load_state_dict(buffer.state_dict())
    assert [a.tolist() for a, _ in other.rows] == [a.tolist() for a, _ in buffer.rows]
    torch.manual_seed(0)
    one = buffer.sample(3)
    torch.manual_seed(0)
    assert torch.equal(other.sample(3)[0], one[0])
    empty = ReplayBuffer(2)
    empty.load_state_dict(ReplayBuffer(2).state_dict())
    assert len(empty) == 0
    twin = copy.deepcopy(buffer)
    twin.push(*rows(50, 4))
    assert int(buffer.rows[-1][0][0]) == 4


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="capacity must be 1 sequence or more, given 0"):
        ReplayBuffer(0)
    with pytest.raises(ValueError, match=r"\(2, 3\) torch.int64 and \(2, 2\)"):
        ReplayBuffer(2).push(rows(0, 2)[0], rows(0, 2, length=2)[0])


def test_phi_follows_the_validation_loss():
    schedule = AdaptiveSchedule()
    found = []
    for loss in (2.0, 2.05, 2.1, 2.15, 2.3, 1.0, 2.29, 2.4, 2.5):
        schedule.tell(loss)
        found.append(schedule.share)
    # remembered: 2.0, then 2.1 (at least 0.1 more), 2.3, 2.4, 2.5; a fall changes nothing
    assert found == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3, 0.4]


def test_phi_rises_step_by_step_and_no_higher_than_1():
    schedule = AdaptiveSchedule()
    shares = []
    for epoch in range(14):
        schedule.tell(1.0 + 0.2 * epoch)
        shares.append(schedule.share)
    assert shares == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0]
    other = AdaptiveSchedule()
    other.load_state_dict(schedule.state_dict())
    assert other.share == 1.0
    assert other.remembered == schedule.remembered


@pytest.mark.parametrize(
    ("uniform", "progress", "full", "expected"),
    [
        (0.29, 0.0, True, "generate"),  # r < phi (1 - s)
        (0.29, 0.5, True, "replay"),
        (0.14, 0.5, True, "generate"),
        (0.29, 0.5, False, "generate"),  # the buffer is not full
        (0.29, 1.0, False, "generate"),
        (0.30, 0.0, False, "reference"),
        (0.99, 0.0, True, "reference"),
    ],
)
def test_what_a_step_trains_on(uniform, progress, full, expected):
    assert AdaptiveSchedule(0.3).choose(uniform, progress=progress, full=full) == expected


def test_at_0_nothing_is_ever_written():
    assert AdaptiveSchedule().choose(0.0, progress=0.0, full=False) == "reference"


def test_wrong_shares_are_refused():
    with pytest.raises(ValueError, match=r"share of .* must lie in \[0, 1\], given 1.5"):
        AdaptiveSchedule(1.5)
    with pytest.raises(ValueError, match=r"step of .* given -0.1"):
        AdaptiveSchedule(step=-0.1)
    with pytest.raises(ValueError, match="tolerance must be 0 or more, given -1"):
        AdaptiveSchedule(tolerance=-1)
