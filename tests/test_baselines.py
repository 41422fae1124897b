import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.baselines import (
    KD,
    Alone,
    ConstantTeacher,
    ScrambledTeacher,
    with_constant_teacher,
    with_scrambled_teacher,
)
from stillroom.blocks import Average, Cached, Frozen, FunctionTeacher, fingerprint
from stillroom.data.batch import Batch
from stillroom.fit import fit
from stillroom.systems.catalog import method as method_named
from stillroom.task import Embeddings, MultiLabel, Regression, Segmentation
from stillroom.teacher_cache import CachedOnDisk, cache_of
from stillroom.training import Training
from tests.toys import batch, mlp, splits, trained_teacher


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


@pytest.mark.parametrize("control", [with_constant_teacher, with_scrambled_teacher])
def test_a_control_asks_caches_functions_and_averages_like_any_method(tmp_path, control):
    network, here = mlp(seed=1), batch()
    expected = control(KD)(mlp(), network)(here).total
    for provider in (
        lambda asked: network(asked.inputs),
        Average([network]),
        Frozen(FunctionTeacher(network, arrays=False)),
        Frozen(Cached(network, 12)),
        Frozen(CachedOnDisk(network, tmp_path)),
    ):
        torch.testing.assert_close(control(KD)(mlp(), provider)(here).total, expected)


@pytest.mark.parametrize("kind", [ConstantTeacher, ScrambledTeacher])
def test_a_control_is_filled_from_the_cache_that_it_asks(tmp_path, kind):
    cached = CachedOnDisk(trained_teacher(), tmp_path)
    method = KD(mlp(), kind(Frozen(cached)))
    assert cache_of(method) is cached
    assert method.teacher.fingerprint() == KD(mlp(), kind(cached.provider)).teacher.fingerprint()
    training = Training(steps=4, batch_size=8, views=1)
    fitted = fit(method, splits(), training, check_teacher=False, progress=False, trackers=())
    assert fitted.cached == {"keep": "float32", "logit": 0.0, "tv_1": 0.0, "tv_4": 0.0}
    with pytest.raises(ValueError, match="Teacher teacher answers from memory"):
        Frozen(kind(Frozen(cached)), batch_norm="batch")
    with pytest.raises(ValueError, match="answers from memory, but it has to see mixed inputs"):
        method_named("mix-kd")(mlp(), kind(Frozen(cached)))


def test_a_control_keeps_the_mode_of_its_teacher():
    network = nn.Sequential(nn.BatchNorm1d(6), mlp(seed=1))
    inputs = 5 + 3 * torch.randn(8, 6)
    said = Frozen(network, batch_norm="batch")(inputs)
    assert not torch.allclose(said, Frozen(network)(inputs))
    expected = ScrambledTeacher(nn.Identity())(said)
    for control in (
        Frozen(ScrambledTeacher(Frozen(network, batch_norm="batch"))),
        Frozen(ScrambledTeacher(network), batch_norm="batch"),
        Frozen(ScrambledTeacher(Frozen(network)), batch_norm="batch"),
    ):
        torch.testing.assert_close(control(inputs), expected)
        torch.testing.assert_close(control(Batch(inputs)), expected)


def test_a_controls_fingerprint_is_of_its_networks_weights():
    network = mlp(seed=1)
    named = nn.ModuleDict({"network": network})
    for given in (network, Frozen(network), Frozen(network, batch_norm="batch"), Frozen(Cached(network, 3))):
        assert Frozen(ScrambledTeacher(given)).fingerprint() == fingerprint(named)
