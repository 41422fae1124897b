"""CRD: the memories, the negatives, the normaliser, and the loss by the book."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from stillroom.systems.classification.logit_kd import CRD
from tests.losses import naive
from tests.systems.classification.toys import ConvNet, problem

BATCH = problem(20)


def build(**options):
    options = {"train_size": 20, "train_labels": BATCH.labels, "negatives": 6, "embedding_size": 8, **options}
    torch.manual_seed(1)  # so that two of them have one teacher
    return CRD(ConvNet(2), ConvNet(4), probe=BATCH[:2], **options)


def test_the_defaults_are_the_published_ones():
    method = CRD(ConvNet(2), ConvNet(4), probe=BATCH[:2], train_size=20)
    assert (method.negatives, method.temperature, method.memory_momentum) == (16384, 0.07, 0.5)
    assert method.memories.shape == (2, 20, 128)
    assert method(BATCH).weights == {"label": 1.0, "contrast": 0.8}


def test_memories_begin_with_rows_of_length_1_on_average():
    memories = build(train_size=2000, train_labels=None, embedding_size=64).memories
    assert float(memories.norm(dim=2).mean()) == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(memories[0], memories[1])


def test_negatives_are_of_other_classes_and_not_repeated():
    method = build(negatives=16)  # there are exactly 16 of other classes
    drawn = method.draw_negatives(BATCH.index)
    assert drawn.shape == (20, 16)
    for number, row in zip(BATCH.index.tolist(), drawn.tolist(), strict=True):
        others = [n for n in range(20) if BATCH.labels[n] != BATCH.labels[number]]
        assert sorted(row) == others


def test_too_few_negatives_are_drawn_again():
    drawn = build(negatives=100).draw_negatives(BATCH.index)
    assert drawn.shape == (20, 100)
    assert bool((BATCH.labels[drawn] != BATCH.labels.unsqueeze(1)).all())


def test_other_draws_come_in_the_next_call():
    method = build()
    assert not torch.equal(method.draw_negatives(BATCH.index), method.draw_negatives(BATCH.index))


def test_a_sample_without_class_has_all_others_as_negatives():
    labels = BATCH.labels.clone()
    labels[:5] = -100
    method = build(train_labels=labels, negatives=17)
    method(BATCH.replace(labels=labels))  # now all are known
    drawn = method.draw_negatives(torch.tensor([0, 7]))
    assert 0 not in drawn[0].tolist()
    assert len(set(drawn[0].tolist())) == 17
    assert set(drawn[1].tolist()) == set(range(20)) - {7, 12, 17}  # 2 is of class 2 too, but nobody knows


def test_samples_that_nobody_has_seen_are_no_negatives():
    labels = torch.full((50,), -100)
    labels[:20] = BATCH.labels
    drawn = build(train_size=50, train_labels=labels, negatives=200).draw_negatives(BATCH.index)
    assert int(drawn.max()) < 20


def test_classes_are_learned_from_batches_where_none_are_given():
    method = build(train_labels=None, negatives=100)
    method(BATCH[:10])
    drawn = method.draw_negatives(BATCH.index[:10])
    assert int(drawn.max()) < 10
    assert bool((BATCH.labels[drawn] != BATCH.labels[:10].unsqueeze(1)).all())


def test_the_term_is_the_papers_in_both_directions():
    method = build(negatives=16).eval()
    with torch.no_grad():
        method.log_normalizers.copy_(torch.tensor([4.0, 5.0]))
        _, _, ((own, theirs),) = method.ask(BATCH)
        student = F.normalize(method.student_embedding(own.mean((2, 3))), dim=1)
        teacher = F.normalize(method.teacher_embedding(theirs.mean((2, 3))), dim=1)
        found = float(method(BATCH)["contrast"])
    expected = 0.0
    for embedding, memory, normalizer in ((student, method.memories[1], 4.0), (teacher, method.memories[0], 5.0)):
        scores = torch.exp(embedding.double() @ memory.double().T / 0.07 - normalizer)
        positive = scores.diagonal().tolist()
        negative = [scores[n][BATCH.labels != BATCH.labels[n]].tolist() for n in range(20)]
        expected += sum(naive.crd(positive, negative, 20)) / 20
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_normaliser_is_fixed_by_the_first_training_batch():
    method = build(negatives=16)
    method.eval()(BATCH)
    assert bool(method.log_normalizers.isnan().all())
    method.train()
    with torch.no_grad():
        _, _, ((own, _),) = method.ask(BATCH)
        embedding = F.normalize(method.student_embedding(own.mean((2, 3))), dim=1)
        scores = torch.exp(embedding @ method.memories[1].T / 0.07)
    mask = BATCH.labels.unsqueeze(1) != BATCH.labels
    mask |= torch.eye(20, dtype=torch.bool)
    method(BATCH)
    assert float(method.log_normalizers[0].exp()) == pytest.approx(float(scores[mask].mean()) * 20, rel=1e-3)
    first = method.log_normalizers.clone()
    method(BATCH)
    assert torch.equal(method.log_normalizers, first)


def test_memories_follow_the_embeddings_in_training_only():
    method = build(memory_momentum=0.25)
    before = method.memories.clone()
    method.eval()(BATCH[:4])
    assert torch.equal(method.memories, before)
    method.train()
    with torch.no_grad():
        _, _, ((own, theirs),) = method.ask(BATCH[:4])  # in training mode, as the call below
        embeddings = [
            F.normalize(method.student_embedding(own.mean((2, 3))), dim=1),
            F.normalize(method.teacher_embedding(theirs.mean((2, 3))), dim=1),
        ]
    method(BATCH[:4])
    for side, embedding in enumerate(embeddings):
        expected = F.normalize(0.25 * before[side, :4] + 0.75 * embedding, dim=1)
        torch.testing.assert_close(method.memories[side, :4], expected)
        assert torch.equal(method.memories[side, 4:], before[side, 4:])


def test_gradients_reach_the_student_and_both_embeddings():
    method = build()
    method(BATCH)["contrast"].backward()
    for module in (method.student.stage1, method.student_embedding, method.teacher_embedding):
        assert float(next(module.parameters()).grad.abs().sum()) > 0


def test_the_state_dict_carries_the_memories():
    method, other = build(), build()
    method(BATCH)
    assert not torch.equal(other.memories, method.memories)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(other.memories, method.memories)
    assert torch.equal(other.log_normalizers, method.log_normalizers)
    torch.manual_seed(5)
    found = other(BATCH)["contrast"]
    torch.manual_seed(5)
    torch.testing.assert_close(found, method(BATCH)["contrast"])


def test_what_cannot_be_remembered_is_refused():
    method = build()
    with pytest.raises(ValueError, match="this batch has no index"):
        method(BATCH.replace(index=None))
    with pytest.raises(ValueError, match="index runs from 1 to 20, but the memories have 20 rows: give train_size"):
        method(BATCH.replace(index=BATCH.index + 1))
    with pytest.raises(ValueError, match="at least 2 samples in a batch, given 1"):
        method(BATCH[:1])
    with pytest.raises(ValueError, match="sample 0 has no negatives: all 20 samples known so far are of class 3"):
        build(train_labels=torch.full((20,), 3))(BATCH.replace(labels=torch.full((20,), 3)))


@pytest.mark.parametrize("labels", [torch.zeros(19, dtype=torch.int64), torch.zeros(20)])
def test_labels_of_another_length_or_kind_are_refused(labels):
    with pytest.raises(ValueError, match=r"train_labels must be int64 of shape \(20,\).*, given torch"):
        build(train_labels=labels)


@pytest.mark.parametrize("option", ["train_size", "embedding_size", "negatives", "temperature"])
def test_numbers_that_must_be_above_0(option):
    with pytest.raises(ValueError, match=f"{option} must be a number above 0, given 0"):
        build(**{option: 0})


def test_a_memory_that_never_changes_is_refused():
    with pytest.raises(ValueError, match=r"memory_momentum must lie in \[0, 1\), given 1.0"):
        build(memory_momentum=1.0)
