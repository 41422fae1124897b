import pytest
import torch

from stillroom.data.rows import choose, generator, hold_out, is_known


def test_shares_of_the_classes_are_kept():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    rows = choose(100, 10, 0, labels)
    assert labels[rows].bincount().tolist() == [6, 3, 1]
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_every_class_keeps_a_row_where_there_is_room():
    labels = torch.tensor([0] * 1000 + [1, 2, 3])
    assert labels[choose(1003, 5, 3, labels)].bincount(minlength=4).tolist() == [2, 1, 1, 1]
    assert labels[choose(1003, 4, 3, labels)].bincount(minlength=4).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8])
def test_the_number_asked_for_is_given(size):
    labels = torch.tensor([5, 5, 5, 9, 9, -100, 7, 7])
    assert len(choose(8, size, 1, labels)) == size
    assert len(choose(8, size, 1)) == size


def test_the_seed_alone_decides():
    labels = torch.arange(200) % 4
    assert torch.equal(choose(200, 40, 7, labels), choose(200, 40, 7, labels))
    assert not torch.equal(choose(200, 40, 7, labels), choose(200, 40, 8, labels))
    state = torch.get_rng_state()
    choose(200, 40, 7, labels)
    assert torch.equal(state, torch.get_rng_state()), "the global generator must be left alone"


def test_a_larger_choice_holds_the_smaller_one():
    labels = torch.arange(200) % 4
    assert set(choose(200, 40, 7, labels).tolist()) <= set(choose(200, 80, 7, labels).tolist())


def test_held_out_rows_and_the_others_are_everything():
    labels = torch.arange(50) % 5
    stays, held = hold_out(50, 10, 0, labels)
    assert sorted([*stays.tolist(), *held.tolist()]) == list(range(50))
    assert labels[held].bincount().tolist() == [2] * 5


def test_generators_differ_in_every_number():
    drawn = {
        tuple(torch.randint(1000, (4,), generator=generator(*numbers)).tolist())
        for numbers in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (2**40, 1)]
    }
    assert len(drawn) == 6
    with pytest.raises(ValueError, match="-1"):
        generator(-1)


def test_too_many_are_refused():
    with pytest.raises(ValueError, match=r"9 of 8"):
        choose(8, 9, 0)


def test_known_labels():
    nan = float("nan")
    assert is_known(torch.tensor([0, -100, 3])).tolist() == [True, False, True]
    assert is_known(torch.tensor([[0, nan], [nan, nan]])).tolist() == [True, False]
