"""SSLD: three label-free methods, a teacher in three modes, two phases, and the recipe."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from stillroom import distill
from stillroom.blocks import Cached, Frozen, fingerprint
from stillroom.check import check_method
from stillroom.data import TensorSamples, mine, near_duplicates
from stillroom.data.batch import Batch
from stillroom.data.samples import Splits
from stillroom.experiment.arm import Context
from stillroom.fit import fit
from stillroom.losses import flatten_positions, generalized_jensen_shannon, kl_divergence, symmetric_kl
from stillroom.systems.classification.ssld import SSLD, JensenShannonSSLD, SoftLabelSSLD, paper, recipe
from stillroom.systems.classification.ssld.recipe import _teachers, load_parts, permute_pixels, teacher_of
from stillroom.training import Optim, Training
from tests.systems.classification.toys import ConvNet, accuracy, problem, segmenter, trained_teacher

METHODS = [SSLD, JensenShannonSSLD, SoftLabelSSLD]


def dropout_net():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 5)
    )


def unlabelled(samples, pool=0, seed=0):
    batch = problem(samples + pool, seed)
    whole = TensorSamples(batch.inputs)
    rows = torch.arange(samples + pool)
    beside = whole.subset(rows[samples:]) if pool else None
    return Splits(whole.subset(rows[:samples]), whole.subset([]), None, beside, name="images", kind="unlabelled")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["batch_stats_no_update", "eval"])
def test_it_passes_the_checks(method, mode):
    report = check_method(method(ConvNet(2), ConvNet(4), teacher_mode=mode), problem(10), processes=False)
    assert len(report.passed) > 20
    assert not report.warned


def test_each_loss_is_its_divergence_over_all_rows():
    batch, student, teacher = problem(10), ConvNet(2).eval(), ConvNet(4).eval()
    ours, theirs = student(batch.inputs), teacher(batch.inputs)
    found = [method(student, teacher, teacher_mode="eval").eval()(batch) for method in METHODS]
    torch.testing.assert_close(found[0]["ssld"], symmetric_kl(ours, theirs))
    torch.testing.assert_close(found[1]["ssld"], generalized_jensen_shannon(ours, theirs))
    entropy = -(theirs.softmax(1) * theirs.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found[2]["ssld"], kl_divergence(ours, theirs) + entropy)
    assert all(torch.equal(one.outputs, ours) for one in found)
    capped = SSLD(student, teacher, teacher_mode="eval", eps=0.5)
    torch.testing.assert_close(capped(batch)["ssld"], symmetric_kl(ours, theirs, eps=0.5))


def test_positions_of_dense_predictions_are_rows():
    batch, student, teacher = problem(6), segmenter(2).eval(), segmenter(4).eval()
    loss = SSLD(student, teacher, teacher_mode="eval")(batch)["ssld"]
    rows = (flatten_positions(network(batch.inputs)) for network in (student, teacher))
    torch.testing.assert_close(loss, symmetric_kl(*rows))


@pytest.mark.parametrize("method", METHODS)
def test_labels_play_no_part_and_the_teacher_does_not_see_them(method):
    batch, seen = problem(10), []

    def teacher(asked):
        seen.append(asked.labels)
        return asked.inputs.flatten(1)[:, :5]

    made = method(ConvNet(2).eval(), teacher)
    wrong = batch.replace(labels=(batch.labels + 1) % 5)
    losses = [made(one).total for one in (batch, wrong, Batch(batch.inputs))]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    assert seen == [None, None, None]
    assert made.needs.labels == "none"


def test_the_teacher_gets_no_gradient_and_the_student_does():
    batch, teacher = problem(10), ConvNet(4)
    made = SSLD(ConvNet(2), teacher)
    made(batch).total.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in made.student.parameters())


@pytest.mark.parametrize("mode", ["batch_stats_no_update", "eval", "train"])
def test_after_an_epoch_nothing_of_the_given_teacher_has_changed(mode):
    teacher = dropout_net()
    before = fingerprint(teacher)
    made = SSLD(ConvNet(2), teacher, teacher_mode=mode)
    asked = made.teacher.network
    own = copy.deepcopy(asked.state_dict())
    fit(made, unlabelled(60), Training(epochs=1, batch_size=10), progress=False, trackers=(), check_teacher=False)
    assert fingerprint(teacher) == before
    moved = {name for name, value in asked.state_dict().items() if not torch.equal(value, own[name])}
    statistics = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert moved == (statistics if mode == "train" else set())  # of its copy, and never a parameter


def test_the_default_mode_normalises_by_the_batch_without_dropout():
    teacher, batch = dropout_net(), problem(10)
    made = SSLD(ConvNet(2), Frozen(teacher))  # also a teacher that is frozen already
    said = made.teacher(batch)
    assert torch.equal(said, made.teacher(batch))
    assert not torch.allclose(said, teacher(batch.inputs))
    assert not torch.allclose(said[:5], made.teacher(batch[:5]), atol=1e-3)
    train = SSLD(ConvNet(2), teacher, teacher_mode="train").teacher
    assert not torch.equal(train(batch), train(batch))


def test_the_second_phase_takes_the_domain_alone_at_a_hundredth_of_the_rate():
    made = SSLD(ConvNet(2), ConvNet(4), fine_tune_share=0.25)
    drawn, rates = [], []
    forward = made.forward
    made.forward = lambda batch: (drawn.append(batch), forward(batch))[1]
    made.after_step = lambda player: rates.append(optimizers[-1].param_groups[0]["lr"])
    optimizers = []
    build = Optim.build

    def spied(self, *given, **options):
        optimizers.append(build(self, *given, **options))
        return optimizers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optim, "build", spied)
        data = replace(unlabelled(20, pool=60), kind="classification")
        data = replace(data, train=data.train.relabel(torch.arange(20) % 5))
        optim = Optim("sgd", lr=0.1)
        training = Training(steps=16, batch_size=10, optimizer=optim)
        fit(made, data, training, progress=False, trackers=(), check_teacher=False)
    assert [(stage.name, stage.data) for stage in made.stages()] == [("pool", "merged"), ("domain", "train-alone")]
    drawn = drawn[-16:]
    first, second = (torch.cat([batch.index for batch in part]) for part in (drawn[:8], drawn[12:]))
    assert sorted(first.tolist()) == list(range(80))  # an epoch of both, as one set
    assert int(second.max()) < 20
    assert all(batch.labels is None for batch in drawn[:12])
    assert rates[0] == pytest.approx(0.1)
    assert rates[12] == pytest.approx(0.001)
    assert rates[11] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 11 / 12)))  # each phase ends its schedule
    assert rates[15] == pytest.approx(0.001 * 0.5 * (1 + math.cos(math.pi * 3 / 4)))
    assert len(SSLD(ConvNet(2), ConvNet(4), fine_tune_share=0).stages()) == 1


def test_a_student_learns_from_images_alone_and_from_nothing_where_the_teacher_knows_nothing():
    def taught_by(teacher):
        made = SSLD(ConvNet(2), teacher)
        training = Training(steps=120, batch_size=40, optimizer=Optim("adam", lr=0.01))
        return accuracy(fit(made, unlabelled(100, pool=100), training, progress=False, trackers=()).product)

    torch.manual_seed(1)
    assert taught_by(trained_teacher()) > 0.7
    shuffled = ConvNet(8)
    batch = problem(200)
    labels = batch.labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    optimizer = torch.optim.Adam(shuffled.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(shuffled(batch.inputs), labels).backward()
        optimizer.step()
    assert taught_by(shuffled) < 0.45  # chance is 0.2; a class may by luck be called by its name


@pytest.mark.parametrize(("method", "labels"), [("ssld", None), ("ssld-soft", 20)])
def test_it_can_be_used_from_the_front_door(method, labels):
    batch = problem(60)
    data = batch.inputs if labels is None else (batch.inputs, batch.labels)  # images alone, or a pool beside labels
    found = distill(
        trained_teacher(),
        ConvNet(2),
        data,
        method=method,
        labels=labels,
        steps=2,
        batch_size=8,
        seeds=1,
        progress=False,
    )
    assert set(found.results["arms"]) >= {"alone", method}


def test_what_cannot_be_is_refused():
    student, teacher = ConvNet(2), ConvNet(4)
    for option, value, words in (
        ("teacher_mode", "frozen", "one of eval, batch_stats_no_update, train, given 'frozen'"),
        ("fine_tune_share", 1, r"fine_tune_share is a part of all steps in \[0, 1\), given 1"),
        ("fine_tune_share", -0.1, r"given -0\.1"),
        ("fine_tune_lr_factor", 0, "fine_tune_lr_factor must be a number above 0, given 0"),
        ("eps", -1, "eps must be a number of 0 or more, given -1"),
    ):
        with pytest.raises(ValueError, match=words):
            SSLD(student, teacher, **{option: value})
    for mode in ("batch_stats_no_update", "train"):
        with pytest.raises(ValueError, match=r"answers depend on the batch, but a Cached teacher .*teacher_mode=.eval"):
            SSLD(student, Cached(teacher, 10), teacher_mode=mode)
    cached = SSLD(student, Cached(teacher, 10), teacher_mode="eval")(problem(10)).total
    assert float(cached.detach()) > 0
    for method in METHODS:
        with pytest.raises(ValueError, match=r"\(10, 5\).*\(10, 7\).*same classes"):
            method(student, ConvNet(4, classes=7))(problem(10))
    with pytest.raises(ValueError, match="learns from a teacher, given none"):
        SSLD(student, None)


def test_no_reported_image_is_trained_on_and_the_pool_has_no_labels():
    setting = recipe().arms["ssld"].keywords["setting"]
    parts = load_parts(setting, 100, False)
    splits, pool = parts.splits, parts.pool
    sets = [set(one.index.tolist()) for one in (splits.train, pool, splits.test)]
    assert [len(one) for one in sets] == [300, 1397, 600]
    assert len(set.union(*sets)) == sum(len(one) for one in sets)
    assert set(parts.everything.index.tolist()).isdisjoint(sets[2])
    assert pool.labels is None
    assert int(parts.off_domain.sum()) == 500
    rows = {strange: (parts.off_domain == strange).nonzero().flatten() for strange in (True, False)}
    strange, plain = (pool.batch(chosen).inputs.flatten(1) for chosen in (rows[True], rows[False]))
    assert torch.cdist(strange, plain).min() > 0.5
    assert torch.cdist(strange.sort(1).values, plain.sort(1).values).min(1).values.max() < 1e-2  # the same pixels
    with pytest.raises(ValueError, match="600 images of the pool are images of the evaluation set"):
        mine(splits.test, ConvNet(2, classes=10), 5, evaluation=splits.test)


def test_pixels_get_an_order_of_their_own_for_each_image():
    images = torch.arange(32.0).view(1, 1, 4, 8).expand(3, -1, -1, -1)
    strange = permute_pixels(images, 100).flatten(1)
    assert torch.equal(strange.sort(1).values, images.flatten(1))
    assert len({tuple(row) for row in strange.tolist()} | {tuple(range(32))}) == 4


def test_reported_images_are_taken_out_of_the_pool_and_nothing_else_moves():
    images, labels = torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 4
    images[300:] = images[:100]  # a quarter of the images is there twice
    setting = replace(recipe().arms["ssld"].keywords["setting"], data=(images, labels), labelled=40, off_domain=30)
    parts = load_parts(setting, 100, False)
    assert parts.near_duplicates > 0
    assert len(near_duplicates(parts.pool, parts.splits.test)) == 0
    assert int(parts.off_domain.sum()) == 30
    inputs = parts.pool.batch(torch.arange(len(parts.pool))).inputs.flatten(1)
    there = torch.cdist(inputs, images.flatten(1)).min(1).values < 1e-2
    assert torch.equal(there, ~parts.off_domain)


def test_teachers_of_an_arm_stay_apart_when_a_run_goes_on(tmp_path):
    setting = recipe().arms["ssld"].keywords["setting"]
    parts = load_parts(setting, 100, True)

    def prints(resume):
        _teachers.clear()
        context = Context(tmp_path, resume=resume, tiny=True)
        kinds = ("strong", "of the few labels", "of shuffled labels")
        return [Frozen(teacher_of(setting, parts, 100, context, kind)).fingerprint() for kind in kinds]

    first = prints(False)
    assert len(set(first)) == 3
    assert prints(True) == first


def test_the_recipe_runs(tmp_path):
    found = recipe().tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert len(found["arms"]) == 11
    assert found["arms"]["ssld, teacher of shuffled labels"]["role"] == "control"
    assert found["arms"]["ssld, random pool"]["role"] == "baseline"
    assert found["arms"]["ssld"]["role"] == "method"
    mined = found["arms"]["ssld"]["metrics"]
    assert {"pool_size", "off_domain_share", "empty_classes", "near_duplicates", "agreement"} < set(mined)
    assert "pool_size" not in found["arms"]["alone"]["metrics"]


def test_the_papers_settings_run(tmp_path):
    inputs, labels = torch.rand(300, 3, 8, 8), torch.arange(300) % 5
    experiment = paper(
        (inputs, labels), unlabelled=torch.rand(40, 3, 8, 8), student="conv-4", teacher="conv-8", image_size=8
    )
    found = experiment.tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert set(found["arms"]) >= {"alone", "soft labels", "ssld"}
    settings = paper()
    training, ssld = settings.training, settings.arms["ssld"].keywords
    assert (training.epochs, training.batch_size, training.optimizer.lr, training.keep) == (120, 2048, 1.3, "last")
    assert training.optimizer.weight_decay == 1e-5
    assert training.optimizer.warmup == pytest.approx(5 / 120)
    assert (ssld["teacher_mode"], ssld["fine_tune_share"]) == ("train", 0.0)
