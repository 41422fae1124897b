"""FitNets, AT, RKD, MGD and what all methods that read activations share."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom import losses as L
from stillroom.blocks import Align, HintRegressor, Taps
from stillroom.data.batch import Batch
from stillroom.systems.classification.logit_kd import AT, CRD, MGD, RKD, FitNets, ReviewKD, TwoStageFitNets
from stillroom.task import Embeddings, MultiLabel, Regression, Segmentation
from tests.systems.classification.toys import ConvNet, TokenNet, accuracy, mlp, problem, segmenter, train
from tests.systems.classification.toys import trained_teacher as teacher_that_learned

STAGES = ("stage1", "stage2", "stage3")
METHODS = [AT, CRD, FitNets, MGD, RKD, ReviewKD, TwoStageFitNets]
ONE_LAYER = {CRD: STAGES[2:], FitNets: STAGES[1:2], MGD: STAGES[2:], RKD: STAGES[2:], TwoStageFitNets: STAGES[1:2]}


def build(kind, student, teacher, batch=None, **options):
    batch = problem(10) if batch is None else batch
    if kind is CRD:
        options = {"train_size": len(batch), "train_labels": batch.labels, "negatives": 16, **options}
    return kind(student, teacher, **{"probe": batch[:2], **options})


def features(network, batch, *names):
    with Taps(network, names) as taps:
        network(batch.inputs)
        return list(taps.features.values())


@pytest.mark.parametrize("kind", METHODS)
class TestAll:
    def test_a_student_learns_and_the_term_falls(self, kind):
        batch = problem(50)
        method = build(kind, ConvNet(2), teacher_that_learned(), batch)
        first, *_, last = train(method, batch)
        for name in set(first) - {"label"}:
            assert last[name] < first[name]
        assert accuracy(method.product) > 0.45  # chance is 0.2

    def test_the_term_alone_moves_the_student(self, kind):
        batch = problem(50)
        method = build(kind, ConvNet(2), teacher_that_learned(), batch, label_weight=0.0)
        before = copy.deepcopy(method.student.state_dict())
        first, *_, last = train(method, batch, steps=30)
        assert any(last[name] < 0.95 * first[name] for name in set(first) - {"label"})
        moved = [name for name, value in method.student.named_parameters() if not torch.equal(value, before[name])]
        assert any(name.startswith("stage1") for name in moved)

    def test_layers_are_chosen_from_a_probe(self, kind):
        for probe in (problem(2), problem(2).inputs):
            method = build(kind, ConvNet(2), ConvNet(4), probe=probe)
            assert method.student_layers == method.teacher_layers == ONE_LAYER.get(kind, STAGES)

    def test_layers_can_be_named_by_pattern(self, kind):
        one = kind in (CRD, FitNets, TwoStageFitNets)
        pattern, teacher_layers = ("st*1", ["stage3"]) if one else ("stage[12]", ["stage1", "stage3"])
        layers = {"student_layers": [pattern], "teacher_layers": teacher_layers}
        method = build(kind, ConvNet(2), ConvNet(4), **layers)
        assert method.student_layers == (STAGES[:1] if one else STAGES[:2])
        assert method.teacher_layers == tuple(teacher_layers)
        assert bool(method(problem(10)).total.isfinite())

    def test_a_missing_layer_is_named_with_the_nearest(self, kind):
        with pytest.raises(ValueError, match=r"no module of ConvNet is called 'stage4'.*'stage"):
            build(kind, ConvNet(2), ConvNet(4), student_layers=["stage4"], teacher_layers=["stage1"])
        with pytest.raises(ValueError, match="no module of ConvNet is called 'layer1'"):
            build(kind, ConvNet(2), ConvNet(4), student_layers=["stage1"], teacher_layers=["layer1"])

    def test_layers_of_one_side_only_are_refused(self, kind):
        with pytest.raises(ValueError, match=r"student_layers is \['stage1'\] and teacher_layers is None"):
            build(kind, ConvNet(2), ConvNet(4), student_layers=["stage1"])

    def test_layers_that_do_not_pair_are_refused(self, kind):
        with pytest.raises(ValueError, match=r"name 1 modules \['stage1'\] and teacher_layers 2 \['stage1', "):
            build(kind, ConvNet(2), ConvNet(4), student_layers=["stage1"], teacher_layers=["stage1", "stage2"])

    def test_nothing_to_choose_by_is_refused(self, kind):
        with pytest.raises(ValueError, match=f"{kind.__name__} learns layers and shapes from .* pass probe="):
            build(kind, ConvNet(2), ConvNet(4), probe=None)

    def test_a_function_has_no_activations(self, kind):
        with pytest.raises(TypeError, match="has activations to tap, given function"):
            build(kind, ConvNet(2), lambda batch: batch.inputs)

    def test_the_networks_keep_no_hooks_and_no_statistics_of_the_probe(self, kind):
        student, teacher = ConvNet(2), ConvNet(4)
        before = copy.deepcopy(student.state_dict())
        method = build(kind, student, teacher)
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        assert student.training
        method(problem(10))
        for network in (student, teacher):
            for module in network.modules():
                assert not module._forward_hooks
                assert not module._forward_pre_hooks

    def test_the_product_is_the_student_without_what_was_added(self, kind):
        student = ConvNet(2)
        method = build(kind, student, ConvNet(4))
        assert method.product is student
        added = {name.split(".")[0] for name, _ in method.named_parameters()} - {"student"}
        assert bool(added) == (kind not in (AT, RKD))
        method(problem(10)).total.backward()
        assert all(parameter.grad is not None for parameter in method.parameters())

    def test_samples_without_label_count_in_the_term_only(self, kind):
        batch = problem(10)
        method = build(kind, ConvNet(2), ConvNet(4))
        labels = batch.labels.clone()
        labels[4:] = -100
        some = method(batch.replace(labels=labels))
        torch.testing.assert_close(some["label"], F.cross_entropy(some.outputs[:4], labels[:4]))
        none = method(batch.replace(labels=None))
        assert set(none) == set(some) - {"label"}

    @pytest.mark.parametrize(("student", "teacher"), [(TokenNet, ConvNet), (ConvNet, TokenNet), (TokenNet, TokenNet)])
    def test_maps_and_tokens_meet(self, kind, student, teacher):
        method = build(kind, student(4), teacher(8))
        method(problem(10)).total.backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)

    def test_hidden_layers_of_plain_networks_meet(self, kind):
        if kind is AT:
            with pytest.raises(ValueError, match=r"attention needs .* have shapes \[\(\(8,\), \(32,\)\), "):
                build(kind, mlp(8), mlp(32))
            layers = {"student_layers": ["2"], "teacher_layers": ["2"]}
            with pytest.raises(ValueError, match=r"attention needs .* a student feature of shape \(10, 8, 1, 1\)"):
                build(kind, mlp(8), mlp(32), **layers)(problem(10))
        else:
            losses = build(kind, mlp(8), mlp(32))(problem(10))
            assert bool(losses.total.isfinite())

    def test_negative_weights_are_refused(self, kind):
        weights = {
            AT: "attention",
            CRD: "contrast",
            FitNets: "hint",
            MGD: "generation",
            RKD: "angle",
            ReviewKD: "review",
        }
        for option in ("label_weight", f"{weights.get(kind, 'distill')}_weight"):
            with pytest.raises(ValueError, match=f"{option} must be a number of 0 or more, given -1"):
                build(kind, ConvNet(2), ConvNet(4), **{option: -1})


def test_the_defaults_are_the_published_ones():
    pair = ConvNet(2), ConvNet(4)
    assert build(FitNets, *pair)(problem(10)).weights == {"label": 1.0, "hint": 100.0}
    assert build(AT, *pair)(problem(10)).weights == {"label": 1.0, "attention": 1000.0}
    assert build(AT, *pair).power == 2
    assert build(RKD, *pair)(problem(10)).weights == {"label": 1.0, "distance": 25.0, "angle": 50.0}
    assert build(MGD, *pair)(problem(10)).weights == {"label": 1.0, "generation": 7e-5}
    assert build(MGD, *pair).mask_ratio == 0.15
    assert build(ReviewKD, *pair)(problem(10)).weights == {"label": 1.0, "review": 1.0}


# FitNets


def test_fitnets_compares_the_regressed_hint():
    student, teacher, batch = ConvNet(2), ConvNet(4), problem(10)
    method = build(FitNets, student, teacher).eval()
    (own,), (theirs,) = features(student, batch, "stage2"), features(teacher.eval(), batch, "stage2")
    assert isinstance(method.regressor, HintRegressor)
    expected = F.mse_loss(method.regressor(own), theirs)
    torch.testing.assert_close(method(batch)["hint"], expected)
    assert method.regressor(own).min().item() >= 0
    assert build(FitNets, student, teacher, relu=False).regressor(own).min().item() < 0


@pytest.mark.parametrize(
    ("student_layer", "teacher_layer", "convolution"),
    [
        ("stage1", "stage3", (7, 7)),
        ("stage1", "stage2", (3, 3)),
        ("stage3", "stage2", (4, 4)),
        ("stage2", "stage2", (1, 1)),
    ],
)
def test_fitnets_matches_sizes_as_the_tables_do(student_layer, teacher_layer, convolution):
    layers = {"student_layers": [student_layer], "teacher_layers": [teacher_layer]}
    method = build(FitNets, ConvNet(2), ConvNet(4), **layers)
    assert method.regressor.convolution.kernel_size == convolution
    assert isinstance(method.regressor.convolution, nn.ConvTranspose2d) == (student_layer == "stage3")


def test_a_map_much_smaller_than_the_hint_is_aligned():
    method = build(FitNets, ConvNet(2), ConvNet(4), student_layers=["stage3"], teacher_layers=["stage1"])
    assert isinstance(method.regressor, Align)
    assert bool(method(problem(10)).total.isfinite())


def test_the_original_procedure_has_two_stages_and_a_falling_weight():
    method, batch = build(TwoStageFitNets, ConvNet(2), ConvNet(4), hint_share=0.25), problem(10)
    hint, distill = method.stages()
    assert (hint.terms, hint.share) == (("hint",), 0.25)
    assert (distill.terms, distill.share) == (("label", "distill"), 0.75)
    weights = []
    for progress in (0.25, 0.625, 1.0):
        method.tell_time(step=0, epoch=0.0, progress=progress)
        weights.append(method(batch).weights["distill"])
    assert weights == pytest.approx([4 / 9, 2.5 / 9, 1 / 9])
    losses = method(batch)
    torch.testing.assert_close(losses["distill"], L.kd_loss(losses.outputs, method.teacher(batch), temperature=3.0))
    losses.only(hint.terms).total.backward()
    assert method.student.head.weight.grad is None  # the hint trains what is before it
    assert method.student.stage3[0].weight.grad is None
    assert method.student.stage2[0].weight.grad is not None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_stage_without_time_is_refused(share):
    with pytest.raises(ValueError, match=rf"hint_share must lie inside \(0, 1\), given {share}"):
        build(TwoStageFitNets, ConvNet(2), ConvNet(4), hint_share=share)


# AT


def test_at_sums_over_stages():
    student, teacher, batch = ConvNet(2).eval(), ConvNet(4).eval(), problem(10)
    found = build(AT, student, teacher)(batch)["attention"]
    pairs = zip(features(student, batch, *STAGES), features(teacher, batch, *STAGES), strict=True)
    torch.testing.assert_close(found, sum(L.attention_transfer_loss(*pair) for pair in pairs))
    fourth = build(AT, student, teacher, power=4)(batch)["attention"]
    assert not torch.isclose(found, fourth)


def test_at_leaves_out_stages_of_a_single_position():
    small = Batch(torch.rand(2, 1, 4, 4))  # maps of 4x4, 2x2 and 1x1
    method = AT(ConvNet(2), ConvNet(4), probe=small)
    assert method.student_layers == method.teacher_layers == STAGES[:2]


def test_at_named_layers_need_no_probe():
    method = AT(ConvNet(2), ConvNet(4), student_layers=["stage1"], teacher_layers=["stage2"])
    assert bool(method(problem(10)).total.isfinite())


# RKD


def test_rkd_compares_the_pooled_features_before_the_head():
    student, teacher, batch = ConvNet(2).eval(), ConvNet(4).eval(), problem(10)
    losses = build(RKD, student, teacher)(batch)
    own, theirs = (features(network, batch, "stage3")[0].mean((2, 3)) for network in (student, teacher))
    torch.testing.assert_close(losses["distance"], L.rkd_distance_loss(own, theirs))
    torch.testing.assert_close(losses["angle"], L.rkd_angle_loss(own, theirs))
    total = F.cross_entropy(losses.outputs, batch.labels) + L.rkd_loss(own, theirs)
    torch.testing.assert_close(losses.total, total)


def test_rkd_without_angles_leaves_them_out():
    losses = build(RKD, ConvNet(2), ConvNet(4), angle_weight=0.0)(problem(10))
    assert set(losses) == {"label", "distance"}


def test_rkd_refuses_a_single_sample():
    with pytest.raises(ValueError, match="at least 2 samples in a batch, given 1"):
        build(RKD, ConvNet(2).eval(), ConvNet(4))(problem(1))
    assert RKD.needs.min_batch == 2


def test_rkd_compares_embeddings_of_different_widths_without_labels():
    student, teacher, batch = ConvNet(2, classes=3), ConvNet(4, classes=9), problem(10)
    method = RKD(student, teacher, task=Embeddings())
    losses = method(batch)
    assert set(losses) == {"distance", "angle"}
    torch.testing.assert_close(losses["distance"], L.rkd_distance_loss(losses.outputs, method.teacher(batch)))
    losses.total.backward()
    assert student.head.weight.grad is not None


# MGD


def test_mgd_hides_whole_channels_or_whole_positions():
    feature = torch.ones(50, 20, 4, 4)
    by_channel = build(MGD, ConvNet(2), ConvNet(4), mask_ratio=0.3).mask(feature)
    assert bool((by_channel == by_channel[:, :, :1, :1]).all())
    assert float((by_channel == 0).double().mean()) == pytest.approx(0.3, abs=0.05)
    by_position = build(MGD, ConvNet(2), ConvNet(4), mask_ratio=0.7, mask_positions=True).mask(feature)
    assert bool((by_position == by_position[:, :1]).all())
    assert float((by_position == 0).double().mean()) == pytest.approx(0.7, abs=0.05)
    assert set(by_channel.unique().tolist()) == {0.0, 1.0}  # what stays is not scaled up


def test_mgd_generates_the_teachers_last_stage():
    student, teacher, batch = ConvNet(2).eval(), ConvNet(4).eval(), problem(10)
    method = build(MGD, student, teacher, mask_ratio=0.0)
    (own,), (theirs,) = features(student, batch, "stage3"), features(teacher, batch, "stage3")
    generated = method.generators[0](method.aligners[0](own))
    expected = F.mse_loss(generated, theirs, reduction="sum") / 10
    torch.testing.assert_close(method(batch)["generation"], expected)
    kinds = [type(layer) for layer in method.generators[0]]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert method.generators[0][0].kernel_size == (3, 3)


def test_mgd_draws_a_new_mask_in_every_call():
    method, batch = build(MGD, ConvNet(2).eval(), ConvNet(4), mask_ratio=0.5), problem(10)
    values = {float(method(batch)["generation"].detach()) for _ in range(3)}
    assert len(values) == 3


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_mgd_refuses_a_mask_of_everything(ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio must lie in \[0, 1\), given {ratio}"):
        build(MGD, ConvNet(2), ConvNet(4), mask_ratio=ratio)


# tasks, compiled networks


@pytest.mark.parametrize("kind", [AT, FitNets, MGD, RKD, ReviewKD])
@pytest.mark.parametrize(
    ("task", "labels", "reference"),
    [
        (MultiLabel(), torch.rand(10, 5).round(), F.binary_cross_entropy_with_logits),
        (Regression(), torch.randn(10, 5), F.mse_loss),
    ],
    ids=["multi-label", "regression"],
)
def test_the_label_term_is_the_tasks(kind, task, labels, reference):
    batch = problem(10).replace(labels=labels)
    losses = build(kind, ConvNet(2), ConvNet(4), task=task)(batch)
    torch.testing.assert_close(losses["label"], reference(losses.outputs, labels))
    assert task.name in kind.needs.tasks


@pytest.mark.parametrize("kind", [AT, FitNets, MGD, RKD, ReviewKD])
def test_they_work_for_segmentation(kind):
    labels = torch.randint(5, (6, 4, 4))
    batch = Batch(torch.rand(6, 1, 8, 8), labels)
    layers = {"student_layers": ["0"], "teacher_layers": ["0"]}
    losses = build(kind, segmenter(2), segmenter(6), batch, task=Segmentation(), **layers)(batch)
    torch.testing.assert_close(losses["label"], F.cross_entropy(losses.outputs, labels))
    losses.total.backward()


@pytest.mark.parametrize("kind", [AT, RKD])
def test_a_compiled_network_is_tapped_once(kind):
    student, teacher = ConvNet(2).eval(), ConvNet(4)
    expected = build(kind, student, teacher)(problem(10))
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(student, backend=backend)
    method = build(kind, compiled, teacher)
    found = [method(problem(10)) for _ in range(3)]
    for name in expected:
        torch.testing.assert_close(found[0][name], expected[name])
    once = len(compilations)
    assert once >= 1
    method(problem(10)).total.backward()
    assert len(compilations) == once
    assert method.product is student
