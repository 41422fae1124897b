import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.baselines import KD, Alone, ScrambledTeacher, with_scrambled_teacher
from stillroom.data.batch import Batch
from stillroom.task import Embeddings, MultiLabel, Regression, Segmentation
from tests.toys import batch, mlp


def test_kd_is_the_formula():
    student, teacher = mlp(), mlp(seed=1)
    here = batch()
    losses = KD(student, teacher, temperature=3.0, label_weight=0.3, distill_weight=0.7)(here)
    s, t = student(here.inputs), teacher(here.inputs)
    p = (t / 3).softmax(1)
    expected = 9 * (p * (p.log() - (s / 3).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(losses["distill"], expected)
    torch.testing.assert_close(losses.total, 0.7 * expected + 0.3 * F.cross_entropy(s, here.labels))


def test_unlabelled_rows_are_distilled_but_not_supervised():
    here = batch()
    hidden = here.replace(labels=torch.where(torch.arange(12) < 4, here.labels, -100))
    method = KD(mlp(), mlp(seed=1))
    whole, part = method(here), method(hidden)
    torch.testing.assert_close(whole["distill"], part["distill"])
    torch.testing.assert_close(part["label"], method(here[:4])["label"])
    assert list(method(here.replace(labels=None))) == ["distill"]


@pytest.mark.parametrize(
    ("task", "outputs", "labels"),
    [
        (MultiLabel(), (8, 3), (torch.rand(8, 3) > 0.5).float()),
        (Regression(), (8, 2), torch.randn(8, 2)),
        (Segmentation(), (8, 3, 4, 4), torch.randint(3, (8, 4, 4))),
        (Embeddings(), (8, 5), None),
    ],
)
def test_kd_and_alone_work_for_every_task(task, outputs, labels):
    def network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, torch.Size(outputs[1:]).numel()), nn.Unflatten(1, outputs[1:]))

    here = Batch(torch.randn(8, 6), labels)
    losses = KD(network(0), network(1), task=task)(here)
    losses.total.backward()
    assert float(losses["distill"].detach()) > 0
    if labels is not None:
        assert float(Alone(network(0), task=task)(here).total.detach()) > 0


def test_the_student_alone_needs_labels():
    with pytest.raises(ValueError, match="this batch has none"):
        Alone(mlp())(Batch(torch.randn(3, 6)))


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        KD(mlp(), mlp(), temperature=0)
    with pytest.raises(ValueError, match="label_weight must be a number of 0 or more, given -1"):
        KD(mlp(), mlp(), label_weight=-1)


def test_a_scrambled_teacher_keeps_favourite_and_confidence_and_moves_the_rest():
    logits = torch.tensor([[0.0, 9.0, 1.0, 2.0], [5.0, 1.0, 2.0, 3.0]])
    scrambled = ScrambledTeacher(nn.Identity())(logits)
    assert scrambled.tolist() == [[2.0, 9.0, 0.0, 1.0], [5.0, 3.0, 1.0, 2.0]]
    torch.testing.assert_close(scrambled.softmax(1).amax(1), logits.softmax(1).amax(1))


def test_a_method_with_a_scrambled_teacher_is_the_method_on_scrambled_logits():
    teacher, here = mlp(seed=1), batch()
    controlled = with_scrambled_teacher(KD)(mlp(), teacher)
    plain = KD(mlp(), ScrambledTeacher(teacher))
    torch.testing.assert_close(controlled(here).total, plain(here).total)
    assert not torch.equal(controlled(here).total, KD(mlp(), teacher)(here).total)
