"""LSSKD: the three forms, what ships, the heads as classifiers, the controls and the recipe."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stillroom.blocks import AuxiliaryHeads, Frozen, LightHead, Observed, WithHeads, build
from stillroom.check import check_method
from stillroom.compare import compare
from stillroom.data.batch import Batch
from stillroom.data.transforms import Flip, Rotate, TransformTask, flips
from stillroom.distill import distill
from stillroom.experiment.cost import costs
from stillroom.options import experiment_of
from stillroom.systems.classification.lsskd import (
    LSSKD,
    BothWays,
    HeadEnsemble,
    MutualLSSKD,
    StrangersTeach,
    TaughtLSSKD,
    TurnedCopies,
    paper,
    recipe,
)
from stillroom.systems.classification.lsskd.recipe import with_statistics_of
from tests.systems.classification.toys import ConvNet, accuracy, mlp, problem, train


def batch(samples=6, classes=5):
    return Batch(torch.rand(samples, 1, 8, 8), torch.arange(samples) % classes)


def taught(**options):
    teacher = LSSKD(ConvNet(4), probe=batch(), **options).with_heads
    return TaughtLSSKD(ConvNet(2), teacher, probe=batch(), **options)


# ---- the battery -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"heads": "light", "teacher_stage": "last", "main_weight": 0.5, "transforms": "flips"}]
)
def test_it_passes_the_checks(options):
    method = LSSKD(ConvNet(2), probe=problem(2), **options)
    assert len(check_method(method, problem(10), processes=False).passed) > 12


def test_the_taught_form_passes_the_checks():
    assert len(check_method(taught(heads="light"), problem(10), processes=False).passed) > 15


def test_the_mutual_form_passes_the_checks():
    method = MutualLSSKD(ConvNet(2), ConvNet(3), probe=problem(2), heads="light")
    assert len(check_method(method, problem(10), processes=False).passed) > 12


# ---- the terms -------------------------------------------------------------------------------------------------------


def test_the_terms_are_those_of_the_formula():
    data, student = batch(), ConvNet(2).eval()
    method = LSSKD(student, probe=data, temperature=2.0, main_weight=0.5).eval()
    losses = method(data)
    images = torch.stack([data.inputs.rot90(turn, (2, 3)) for turn in range(4)], 1).flatten(0, 1)
    observed = method.heads.observe(student, images)
    joint = (4 * data.labels[:, None] + torch.arange(4)).flatten()
    torch.testing.assert_close(losses.outputs, student(data.inputs))
    torch.testing.assert_close(losses["label"], F.cross_entropy(student(data.inputs), data.labels))
    torch.testing.assert_close(losses["joint"], sum(F.cross_entropy(one, joint) for one in observed.head_logits))
    stages, features = 0, 0
    for own in (0, 1):
        teacher, mine = (observed.head_logits[row] / 2 for row in (own + 1, own))
        stages += 4 * F.kl_div(mine.log_softmax(1), teacher.softmax(1), reduction="batchmean")
        features += (observed.embeddings[own] - observed.embeddings[own + 1]).square().mean()
    torch.testing.assert_close(losses["stages"], stages)
    torch.testing.assert_close(losses["features"], features)
    marginal = (observed.head_logits[2][::4] / 2).softmax(1).unflatten(1, (5, 4)).sum(2)
    main = 4 * F.kl_div((losses.outputs / 2).log_softmax(1), marginal, reduction="batchmean")
    torch.testing.assert_close(losses["main"], main)
    total = losses["label"] + losses["joint"] + stages + 0.1 * features + 0.5 * main
    torch.testing.assert_close(losses.total, total)


def test_one_transform_makes_the_joint_labels_ordinary_ones():
    data = batch()
    method = LSSKD(ConvNet(2), probe=data, transforms=TransformTask([Flip()])).eval()
    observed = method.heads.observe(method.student, data.inputs)
    expected = sum(F.cross_entropy(one, data.labels) for one in observed.head_logits)
    torch.testing.assert_close(method(data)["joint"], expected)


def gradients(method, losses, names):
    method.zero_grad()
    sum(losses[name] for name in names).backward()
    found = {}
    for name, parameter in method.named_parameters():
        part = ".".join(name.split(".")[: 3 if name.startswith("heads") else 2])
        size = 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
        found[part] = found.get(part, 0.0) + size
    return found


@pytest.mark.parametrize("teacher_stage", ["next", "last"])
def test_the_deepest_head_learns_nothing_from_the_stages(teacher_stage):
    method, data = LSSKD(ConvNet(2), probe=batch(), teacher_stage=teacher_stage), batch()
    found = gradients(method, method(data), ("stages", "features"))
    assert found["heads.heads.2"] == 0
    assert min(found["heads.heads.0"], found["heads.heads.1"]) > 0
    assert found["student.stage1"] > 0
    assert found["student.head"] == found["student.stage3"] == 0  # only the first two heads pull at the network
    assert gradients(method, method(data), ("joint",))["student.stage3"] > 0


def test_no_head_learns_from_its_own_pupil():
    method = LSSKD(ConvNet(2), probe=batch())
    pupil, own, deepest = (torch.randn(8, 20).requires_grad_() for _ in range(3))
    alone = torch.autograd.grad(method.stage_loss([pupil.detach(), own, deepest.detach()]), own)[0]
    without_pupil = torch.autograd.grad(method.stage_loss([own, deepest.detach()]), own)[0]
    torch.testing.assert_close(alone, without_pupil)  # the middle of three learns from the deepest, as if it had none
    assert alone.abs().sum() > 0
    assert torch.autograd.grad(method.stage_loss([pupil, own]), own, allow_unused=True) == (None,)


def test_a_detached_network_learns_from_its_labels_alone():
    data, student = batch(), ConvNet(2)
    method = LSSKD(student, probe=data, detach_backbone=True).eval()
    method(data).total.backward()
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    F.cross_entropy(student(data.inputs), data.labels).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    assert all(parameter.grad is not None for parameter in method.heads.parameters())


def test_rows_without_a_label_teach_the_heads_by_the_deeper_ones_only():
    data, method = batch(), LSSKD(ConvNet(2), probe=batch()).eval()
    some = data.replace(labels=torch.where(torch.arange(6) < 2, data.labels, -100))
    losses = method(some)
    torch.testing.assert_close(losses["label"], method(data[:2])["label"])
    torch.testing.assert_close(losses["joint"], method(data[:2])["joint"])
    torch.testing.assert_close(losses["stages"], method(data)["stages"])
    assert set(method(data.replace(labels=None))) == {"stages", "features"}


# ---- what ships ------------------------------------------------------------------------------------------------------


def test_the_product_is_the_plain_network():
    data, plain = batch(), ConvNet(2)
    twin = copy.deepcopy(plain)
    method = LSSKD(plain, probe=data)
    train(method, data, steps=3)
    product = method.product.eval()
    assert type(product) is ConvNet
    assert set(product.state_dict()) == set(twin.state_dict())
    observed = method.eval().heads.observe(method.student, data.inputs)
    assert torch.equal(product(data.inputs), observed.logits)
    twin.load_state_dict(product.state_dict())
    assert torch.equal(twin.eval()(data.inputs), product(data.inputs))
    found = costs({"product": product, "plain": twin}, data.inputs[:1], latency=False)
    assert found["product"].macs == found["plain"].macs > 0
    assert found["product"].parameters == found["plain"].parameters
    assert not any(module._forward_hooks for module in product.modules())


def test_it_learns_without_a_teacher():
    method = LSSKD(ConvNet(3), probe=problem(2), heads="light")
    assert accuracy(method.product) < 0.5
    terms = train(method, problem(50), steps=40)
    assert accuracy(method.product) > 0.6
    assert terms[-1]["joint"] < 0.75 * terms[0]["joint"]


def test_heads_go_on_a_perceptron():
    method = LSSKD(mlp(), probe=batch(), heads="light")
    assert set(method(batch())) == {"label", "joint", "stages", "features"}


def test_the_heads_classify_by_scores_or_by_probabilities():
    data, method = batch(), LSSKD(ConvNet(2), probe=batch(), transforms="flips").eval()
    images = flips().apply(data.inputs)
    said = method.heads.observe(method.student, images).head_logits
    scores = torch.stack([one.unflatten(1, (5, 4)).sum(2) for one in said]).mean(0).unflatten(0, (6, 4)).mean(1)
    torch.testing.assert_close(HeadEnsemble(method.with_heads, flips())(data.inputs), scores)
    parts = [one.softmax(1).unflatten(1, (5, 4)).sum(2) for one in said]
    expected = torch.stack(parts).mean(0).unflatten(0, (6, 4)).mean(1)
    ensemble = HeadEnsemble(method.with_heads, flips(), scores="probabilities")
    torch.testing.assert_close(ensemble(data.inputs).softmax(1), expected)
    with pytest.raises(ValueError, match=r'"logits" or "probabilities", given \'votes\''):
        HeadEnsemble(method.with_heads, flips(), scores="votes")


# ---- with a teacher, and with each other -----------------------------------------------------------------------------


def kl(student, teacher, heat=3.0):
    return heat**2 * F.kl_div((student / heat).log_softmax(1), (teacher / heat).softmax(1), reduction="batchmean")


def test_the_taught_form_follows_a_teacher_and_its_heads():
    data, method = batch(), taught()
    method.eval()
    losses, images = method(data), method.transforms.apply(data.inputs)
    own = method.heads.observe(method.student, images)
    theirs = method.teacher.network.observe(images)
    heads = sum(kl(mine, other) for mine, other in zip(own.head_logits, theirs.head_logits, strict=True))
    assert set(losses) == {"label", "heads", "distill"}
    torch.testing.assert_close(losses["heads"], heads)
    torch.testing.assert_close(losses["distill"], kl(own.logits, theirs.logits))
    total = F.cross_entropy(own.logits[::4], data.labels) + heads + losses["distill"]
    torch.testing.assert_close(losses.total, total)
    losses.total.backward()
    assert all(parameter.grad is None for parameter in method.teacher.network.parameters())
    method.teacher.network.train()
    assert torch.equal(method(data).total, losses.total)  # a teacher that somebody set to train answers as before
    assert isinstance(method.teacher, Frozen)


def test_the_mutual_form_teaches_both_ways():
    data, one, other = batch(), ConvNet(2).eval(), ConvNet(3).eval()
    method = MutualLSSKD(one, other, probe=data, kd_weight=0.5, joint_weight=2.0)
    method.eval()
    turns = dict(method.turns(data))
    images, joint = method.transforms.apply(data.inputs), (4 * data.labels[:, None] + torch.arange(4)).flatten()
    seen = {name: method.heads[name].observe(net, images) for name, net in (("student", one), ("teacher", other))}
    for name, prefix, else_ in (("student", "", "teacher"), ("teacher", "teacher_", "student")):
        own, theirs = seen[name], seen[else_]
        heads = sum(kl(mine, said) for mine, said in zip(own.head_logits, theirs.head_logits, strict=True))
        labels = sum(F.cross_entropy(said, joint) for said in own.head_logits)
        torch.testing.assert_close(turns[name][f"{prefix}heads"], heads)
        torch.testing.assert_close(turns[name][f"{prefix}joint"], labels)
        main = kl(own.logits, theirs.logits)
        expected = F.cross_entropy(own.logits[::4], data.labels) + 2 * labels + 0.5 * (heads + main)
        torch.testing.assert_close(turns[name].total, expected)
    turns["student"].total.backward()
    assert all(parameter.grad is None for parameter in (*other.parameters(), *method.heads["teacher"].parameters()))
    players = method.players()
    assert len(players["teacher"]) == len([*other.parameters(), *method.heads["teacher"].parameters()])
    assert method.product is one


def test_the_mutual_form_may_alternate_and_take_peers():
    nets = [ConvNet(2) for _ in range(3)]
    method = MutualLSSKD(*nets[:2], peers=nets[2:], probe=batch(), heads="light", update="alternating")
    optimizers = {name: torch.optim.SGD(group, 0.1) for name, group in method.players().items()}
    seen = []
    for player, losses in method.turns(batch()):
        losses.total.backward()
        optimizers[player].step()
        method.zero_grad()
        seen.append(player)
    assert seen == ["student", "teacher", "peer-1"]


# ---- the controls ----------------------------------------------------------------------------------------------------


def test_the_controls_change_what_they_are_named_for():
    data = batch()
    joint = tuple(torch.randn(24, 20).requires_grad_() for _ in range(3))
    embeddings = tuple(torch.randn(24, 4).requires_grad_() for _ in range(3))
    observed = Observed(torch.randn(24, 5), joint, embeddings)
    plain, strangers, both = (kind(ConvNet(2), probe=data) for kind in (LSSKD, StrangersTeach, BothWays))
    one, other, last = (method.losses_of(observed, data.labels) for method in (plain, strangers, both))
    for name in ("label", "joint", "features"):
        torch.testing.assert_close(one[name], other[name])
        torch.testing.assert_close(one[name], last[name])
    torch.testing.assert_close(one["stages"], last["stages"])
    assert abs(float((one["stages"] - other["stages"]).detach())) > 1e-3
    assert torch.autograd.grad(other["stages"], joint[2], allow_unused=True, retain_graph=True) == (None,)
    assert float(torch.autograd.grad(last["stages"], joint[2], retain_graph=True)[0].abs().sum()) > 0
    assert float(torch.autograd.grad(last["features"], embeddings[2])[0].abs().sum()) > 0


def test_turned_copies_have_the_labels_of_their_images():
    data, student = batch(), ConvNet(2).eval()
    images = torch.stack([data.inputs.rot90(turn, (2, 3)) for turn in range(4)], 1).flatten(0, 1)
    losses = TurnedCopies(student).eval()(data)
    torch.testing.assert_close(losses.total, F.cross_entropy(student(images), data.labels.repeat_interleave(4)))
    assert losses.outputs.shape == (6, 5)


def test_statistics_of_upright_images_change_batch_norm_alone():
    from stillroom.data import TensorSamples

    data, net = problem(40), ConvNet(2)
    other = with_statistics_of(net, TensorSamples(data.inputs, data.labels))
    torch.testing.assert_close(other.stage1[1].running_mean, net.stage1[0](data.inputs).mean((0, 2, 3)))
    assert float(net.stage1[1].running_mean.abs().sum()) == 0
    assert torch.equal(other.head.weight, net.head.weight)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused():
    data = batch()
    for option, value, words in (
        ("temperature", 0, "temperature must be a number above 0, given 0"),
        ("temperature", -1.5, r"temperature must be a number above 0, given -1\.5"),
        ("joint_weight", -1, "joint_weight must be a number of 0 or more, given -1"),
        ("kd_weight", -1, "kd_weight must be a number of 0 or more, given -1"),
        ("feature_weight", -1, "feature_weight must be a number of 0 or more, given -1"),
        ("main_weight", -1, "main_weight must be a number of 0 or more, given -1"),
        ("stages", ["stage1", "stage9"], r"no module of ConvNet is called 'stage9'.*'stage1'"),
        ("heads", "copies", r'"stage-copy", "light" or AuxiliaryHeads, given \'copies\''),
        ("transforms", "turns", r"rotations, flips, channels, or a TransformTask, given 'turns'"),
        ("transforms", TransformTask([Rotate(1)]), r"first transform must leave images .* given Rotate\(quarters=1\)"),
        ("teacher_stage", "first", r'"next" or "last", given \'first\''),
        ("teacher", ConvNet(2), "its own teacher, given a ConvNet as teacher: leave it out"),
        ("probe", torch.rand(2, 1, 8, 6), r"square to be turned, given \(2, 1, 8, 6\)"),
    ):
        with pytest.raises(ValueError, match=words):
            LSSKD(ConvNet(2), **{"probe": data, option: value})
    method = LSSKD(ConvNet(2), probe=data)
    with pytest.raises(ValueError, match=r"square to be turned, given \(6, 1, 8, 6\)"):
        method(data.replace(inputs=data.inputs[..., :6]))


def test_heads_of_other_widths_are_refused_unless_they_are_not_compared():
    names = ["stage1", "stage2"]
    mixed = AuxiliaryHeads(names, [LightHead(2, 3, outputs=20), LightHead(4, 6, outputs=20)])
    with pytest.raises(ValueError, match=r"widths 3, 6, and they must be equal .* project to one width"):
        LSSKD(ConvNet(2), probe=batch(), heads=mixed)
    assert "features" not in LSSKD(ConvNet(2), probe=batch(), heads=mixed, feature_weight=0.0)(batch())
    wrong = AuxiliaryHeads(["stage1"], [LightHead(2, 3, outputs=12)])
    with pytest.raises(ValueError, match="12 outputs, expected 5 classes x 4 transforms = 20"):
        LSSKD(ConvNet(2), probe=batch(), heads=wrong)
    with pytest.raises(ValueError, match=r"name their stages \('stage1', 'stage2'\)"):
        LSSKD(ConvNet(2), probe=batch(), heads=mixed, stages=["stage1"])


def test_a_teacher_without_heads_or_with_fewer_is_refused():
    with pytest.raises(TypeError, match=r"come with its heads, given a ConvNet: train it by LSSKD"):
        TaughtLSSKD(ConvNet(2), ConvNet(4), probe=batch())
    teacher = LSSKD(ConvNet(4), probe=batch(), stages=["stage2", "stage3"]).with_heads
    assert isinstance(teacher, WithHeads)
    with pytest.raises(ValueError, match=r"the teacher has 2 heads \(stage2, stage3\), but the student has 3"):
        TaughtLSSKD(ConvNet(2), teacher, probe=batch())
    with pytest.raises(ValueError, match=r"has 2 heads .* but the student has 3"):
        MutualLSSKD(ConvNet(2), mlp(), probe=batch(), heads="light")


# ---- where it is used ------------------------------------------------------------------------------------------------


def small(samples=60):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(samples, 1, 8, 8, generator=generator), torch.arange(samples) % 3


def test_distil_without_a_teacher(tmp_path):
    options = {"steps": 2, "seeds": 1, "batch_size": 16, "progress": False}
    found = distill(None, "conv-2-4", small(), method="lsskd", out=tmp_path / "run", **options)
    assert set(found.results["arms"]) == {"alone", "lsskd"}
    assert found.results["title"] == "conv-2-4 by lsskd"
    assert any("in training only" in note for note in found.results["notes"])
    plain = build("conv-2-4", classes=3, in_channels=1, image_size=8)
    assert sum(p.numel() for p in found.student.parameters()) == sum(p.numel() for p in plain.parameters())
    assert json.loads((tmp_path / "run" / "results.json").read_text())["method"] == "lsskd"


def test_a_teacher_goes_to_the_methods_that_take_one():
    options = {"steps": 1, "seeds": 1, "batch_size": 16, "lr": 0.01, "progress": False, "teacher_epochs": 12}
    data = problem(80)
    found = compare("kd,lsskd", "conv-4-4", "conv-2-4", (data.inputs, data.labels), **options)
    assert set(found["arms"]) == {"teacher", "alone", "kd", "lsskd"}
    with pytest.raises(ValueError, match="lsskd trains without a teacher, given teacher=conv-4-4"):
        distill("conv-4-4", "conv-2-4", small(), method="lsskd", progress=False)


def test_the_embedded_task_trains_no_teacher_for_it():
    from inspect import signature

    defaults = {name: p.default for name, p in signature(distill).parameters.items()}
    experiment = experiment_of({"lsskd": ("lsskd", {})}, defaults)
    assert (experiment.teacher, experiment.teacher_training) == (None, None)
    assert experiment.student == "conv-8-16"
    assert experiment_of({"lsskd-mutual": ("lsskd-mutual", {})}, defaults).teacher == "conv-32-64"


def test_the_recipe_runs(tmp_path):
    found = recipe().tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    names = {"alone", "turned copies", "joint labels", "lsskd", "others' targets", "not detached"}
    assert set(found["arms"]) == names
    assert found["arms"]["others' targets"]["role"] == found["arms"]["turned copies"]["role"] == "control"
    metrics = set(found["arms"]["lsskd"]["metrics"])
    assert {"accuracy", "upright_accuracy", "shallow_nll", "shallow_accuracy", "deepest_accuracy"} < metrics
    assert "shallow_nll" not in found["arms"]["alone"]["metrics"]
    splits = recipe().arms["alone"].keywords["setting"].load(0, False)
    assert (len(splits.train), len(splits.test), splits.classes) == (200, 1417, [str(digit) for digit in range(9)])
    assert int(splits.test.labels.max()) == 8


def test_the_papers_settings_run(tmp_path: Path):
    inputs, labels = torch.rand(200, 3, 8, 8), torch.arange(200) % 4
    experiment = paper((inputs, labels), student="resnet8")
    found = experiment.tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert set(found["arms"]) == {"alone", "turned copies", "joint labels", "lsskd"}
    setting = paper().arms["lsskd"].keywords["setting"]
    training = setting.training
    assert (training.epochs, training.batch_size, training.optimizer.lr, setting.student) == (240, 64, 0.05, "resnet56")
    assert training.optimizer.nesterov
    assert [training.optimizer.rate(epoch, 240) for epoch in (149, 150, 180, 210)] == pytest.approx(
        [0.05, 0.005, 5e-4, 5e-5]
    )
