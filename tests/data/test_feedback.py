"""Interactions from files, by name, and subsets by a stated rule."""

from __future__ import annotations

import os

import numpy as np
import pytest
import scipy.sparse
import torch

from stillroom.data import Interactions, load_interactions, read_interactions_csv
from stillroom.data.feedback import most_active

real = pytest.mark.skipif("STILLROOM_DATA" not in os.environ, reason="needs the folder STILLROOM_DATA")


def test_a_csv_keeps_its_names(tmp_path):
    file = tmp_path / "plays.csv"
    file.write_text("when,who,what\n1,ann,blues\n2,bob,jazz\n3,ann,jazz\n4,ann,jazz\n")
    table = read_interactions_csv(file, user_column="who", item_column="what")
    assert (table.users, table.items) == (["ann", "bob"], ["blues", "jazz"])
    assert table.interactions.keys.tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match="has no column 'user'; it has when, who, what"):
        read_interactions_csv(file)


def test_a_scipy_file_and_a_matrix_are_split(tmp_path):
    matrix = scipy.sparse.csr_matrix(np.random.rand(20, 30) < 0.5)  # noqa: NPY002
    scipy.sparse.save_npz(tmp_path / "taken.npz", matrix)
    one, other = load_interactions(str(tmp_path / "taken.npz"), seed=2), load_interactions(matrix, seed=2)
    assert torch.equal(one.test.keys, other.test.keys)
    assert len(one.train) + len(one.validation) + len(one.test) == matrix.nnz
    assert load_interactions(one).train is one.train


def test_digits_take_their_bright_pixels():
    splits = load_interactions("digits", seed=0)
    assert (splits.train.user_count, splits.train.item_count) == (1797, 64)
    assert len(splits.test) / (len(splits.train) + len(splits.validation) + len(splits.test)) == pytest.approx(
        0.2, abs=0.02
    )


def test_the_most_active_are_chosen_by_items_first():
    found = Interactions.from_pairs([(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (2, 3), (3, 3)])
    users, items = most_active(found, 2, 2)
    assert items.tolist() == [0, 1]
    assert users.tolist() == [0, 1]  # 1 took both; 0 and 2 one each, and 0 comes first
    users, items = most_active(found, 9, 1)
    assert users.tolist() == [0, 1]  # the others took nothing of item 0


def test_missing_files_say_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"lastfm needs data1.txt, test1.txt in the folder lastfm.*LightGCN"):
        load_interactions("lastfm")
    monkeypatch.delenv("STILLROOM_DATA")
    with pytest.raises(FileNotFoundError, match=r"yelp needs trn.npz, val.npz, tst.npz"):
        load_interactions("yelp")
    with pytest.raises(ValueError, match="unknown interactions 'lastfn': known are digits, lastfm, yelp"):
        load_interactions("lastfn")


@real
def test_lastfm_is_read():
    with pytest.raises(ValueError, match="14 of 1892 users have no interaction"):
        load_interactions("lastfm")
    splits = load_interactions("lastfm", users=1892, validation=0.0)
    assert (splits.train.user_count, splits.train.item_count) == (1878, 4489)
    assert (len(splits.train), splits.validation) == (42135, None)
    held_out = load_interactions("lastfm", users=1892, seed=1)
    assert len(held_out.train) + len(held_out.validation) == 42135
    assert int(held_out.train.user_degrees().min()) >= 1
    assert torch.equal(held_out.test.keys, splits.test.keys)


@real
def test_yelp_is_read_and_cut_down():
    splits = load_interactions("yelp", users=500, items=400)
    assert splits.train.item_count == 400
    assert 400 < splits.train.user_count <= 500
    assert len(splits.validation) > 0
    assert len(splits.test) > len(splits.validation)
