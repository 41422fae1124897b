"""The rules that every loss keeps: reductions, float32, autocast, a detached teacher, gradients, refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from stillroom import losses
from stillroom.losses._shared import reduce, reduce_known, spread

LABELS = torch.tensor([0, 3, 1, 1, 4, 2])
LOGITS = (6, 5)
MAP = (6, 3, 4, 4)
VECTOR = (6, 8)
SEQUENCES = (6, 3, 5)
TARGETS = torch.arange(18).view(6, 3) % 5
WEIGHTS = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
SPANS = [[(0, 3)], [(0, 2)], [(1, 3)], [(0, 1)], [], [(0, 3)]]

BETWEEN_NETWORKS = {
    "attention_transfer_loss": (losses.attention_transfer_loss, MAP),
    "bernoulli_kd_loss": (losses.bernoulli_kd_loss, LOGITS),
    "clipped_token_kl": (lambda s, t, **o: losses.clipped_token_kl(s, t, TARGETS, 0.05, 0.95, **o), SEQUENCES),
    "dist_inter_class_loss": (losses.dist_inter_class_loss, LOGITS),
    "dist_intra_class_loss": (losses.dist_intra_class_loss, LOGITS),
    "dist_loss": (losses.dist_loss, LOGITS),
    "dkd_loss": (lambda s, t, **o: losses.dkd_loss(s, t, LABELS, **o), LOGITS),
    "generalized_jensen_shannon": (losses.generalized_jensen_shannon, LOGITS),
    "hint_loss": (losses.hint_loss, MAP),
    "kd_loss": (losses.kd_loss, LOGITS),
    "kl_divergence": (losses.kl_divergence, LOGITS),
    "masked_generative_loss": (losses.masked_generative_loss, MAP),
    "mld_loss": (losses.mld_loss, LOGITS),
    "nckd_loss": (lambda s, t, **o: losses.nckd_loss(s, t, LABELS, **o), LOGITS),
    "novelty_loss": (losses.novelty_loss, VECTOR),
    "pld_loss": (lambda s, t, **o: losses.pld_loss(s, t, LABELS, **o), LOGITS),
    "probability_mse_loss": (losses.probability_mse_loss, LOGITS),
    "region_kd_loss": (losses.region_kd_loss, LOGITS),
    "reverse_kl_divergence": (losses.reverse_kl_divergence, LOGITS),
    "review_context_loss": (losses.review_context_loss, MAP),
    "rkd_angle_loss": (losses.rkd_angle_loss, VECTOR),
    "rkd_distance_loss": (losses.rkd_distance_loss, VECTOR),
    "rkd_loss": (losses.rkd_loss, VECTOR),
    "span_correlation_loss": (lambda s, t, **o: losses.span_correlation_loss(s, t, SPANS, **o), SEQUENCES),
    "symmetric_kl": (losses.symmetric_kl, LOGITS),
    "tckd_loss": (lambda s, t, **o: losses.tckd_loss(s, t, LABELS, **o), LOGITS),
    "token_kl": (losses.token_kl, SEQUENCES),
    "two_way_kd_loss": (losses.two_way_kd_loss, LOGITS),
    "unit_deviation_kd_loss": (losses.unit_deviation_kd_loss, LOGITS),
    "vocabulary_jensen_shannon": (lambda s, t, **o: heads(losses.vocabulary_jensen_shannon, s, t, **o), VECTOR),
    "vocabulary_kl": (lambda s, t, **o: heads(losses.vocabulary_kl, s, t, top_k=3, **o), VECTOR),
    "vocabulary_reverse_kl": (lambda s, t, **o: heads(losses.vocabulary_reverse_kl, s, t, chunk_size=4, **o), VECTOR),
}
ONE_SIDED = {
    "binary_cross_entropy": (lambda s, **o: losses.binary_cross_entropy(s, torch.ones(LOGITS), **o), LOGITS),
    "characteristic_function_discrepancy": (
        lambda s, **o: losses.characteristic_function_discrepancy(s, fixed(s), fixed(torch.zeros(7, 5)), **o),
        LOGITS,
    ),
    "blended_kd_loss": (lambda s, **o: losses.blended_kd_loss(s, fixed(s), LABELS, WEIGHTS / 1.2, **o), LOGITS),
    "crd_loss": (lambda s, **o: losses.crd_loss(s[:, 0], s[:, 1:], dataset_size=20, **o), LOGITS),
    "cross_entropy": (lambda s, **o: losses.cross_entropy(s, LABELS, **o), LOGITS),
    "calibrated_cross_entropy": (lambda s, **o: losses.calibrated_cross_entropy(s, LABELS, **o), LOGITS),
    "edl_loss": (lambda s, **o: losses.edl_loss(s, LABELS, **o), LOGITS),
    "negative_entropy": (lambda s, **o: losses.negative_entropy(s.to(wide(s)).softmax(1), **o), LOGITS),
    "wrong_evidence_kl": (lambda s, **o: losses.wrong_evidence_kl(s, LABELS, **o), LOGITS),
    "denoising_loss": (lambda s, **o: losses.denoising_loss(s, 2 * fixed(s), **o), LOGITS),
    "label_mse_loss": (lambda s, **o: losses.label_mse_loss(s, LABELS, **o), LOGITS),
    "lpld_loss": (lambda s, **o: losses.lpld_loss(s, fixed(s), WEIGHTS, **o), LOGITS),
    "mean_absolute_error": (lambda s, **o: losses.mean_absolute_error(s, 3 * torch.ones(LOGITS).to(s), **o), LOGITS),
    "mean_discrepancy": (lambda s, **o: losses.mean_discrepancy(s, 2 * fixed(s), **o), LOGITS),
    "mean_squared_error": (lambda s, **o: losses.mean_squared_error(s, torch.ones(LOGITS), **o), LOGITS),
    "mixed_mse_loss": (lambda s, **o: losses.mixed_mse_loss(s, fixed(s), LABELS, **o), LOGITS),
    "mutual_kd_loss": (lambda s, **o: losses.mutual_kd_loss(s, fixed(s), **o), LOGITS),
    "negative_learning_loss": (lambda s, **o: losses.negative_learning_loss(s, LABELS, **o), LOGITS),
    "log_sum_uniformity_loss": (lambda s, **o: losses.log_sum_uniformity_loss(s, fixed(s).to(wide(s)), **o), VECTOR),
    "node_contrast_loss": (lambda s, **o: losses.node_contrast_loss(s, fixed(s).to(wide(s)), **o), VECTOR),
    "pairwise_soft_target_loss": (
        lambda s, **o: losses.pairwise_soft_target_loss(s, fixed(s), temperature=1.0, **o),
        (12,),
    ),
    "soft_cross_entropy": (lambda s, **o: losses.soft_cross_entropy(s, fixed(s).softmax(1), **o), LOGITS),
    "plackett_luce_loss": (
        lambda s, **o: losses.plackett_luce_loss(s, torch.arange(5).expand(LOGITS), torch.full(LOGITS, 0.2), **o),
        LOGITS,
    ),
}
ALL = {
    **{name: (lambda s, f=f, **o: f(s, fixed(s), **o), shape) for name, (f, shape) in BETWEEN_NETWORKS.items()},
    **ONE_SIDED,
}


def heads(loss, student, teacher, **options):
    """A loss of hidden states and one output matrix."""
    matrix = fixed(torch.zeros(11, 8))
    return loss(student, matrix.to(wide(student)), teacher, matrix, **options)


def fixed(like):
    """Another tensor of that shape, always the same one, in float32."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1))


def wide(like):
    """Its dtype, or float32 where that is wider."""
    return torch.promote_types(like.dtype, torch.float32)


def test_the_tables_hold_every_loss():
    others = {"Reduction", "flatten_positions", "labelled_rows", "reduce"}
    others |= {"prescribed_gradient_loss", "vsd_loss"}  # their gradients are no derivatives of their values
    others |= {"all_pairs_kd_loss", "balance_cv_loss", "balance_kl_loss", "region_box_loss", "routed_kd_loss"}
    others |= {"class_probabilities", "class_scores"}  # no losses
    others |= {"layered_feature_loss", "layered_kd_loss", "marginal_kd_loss"}  # of several tensors, or unequal ones
    others |= {"selected_pixel_loss", "subspace_uniformity_loss", "weighted_pixel_loss"}  # of more than rows of samples
    others |= {"norm_penalty"}  # of parameters
    others |= {"led_class_aware_loss", "led_instance_aware_loss", "led_loss"}  # of groups of rows, a sum by default
    others |= {"clipping_mask", "complementary_labels", "hard_positions", "head_agreement", "lpld_weights"}  # no losses
    others |= {"mass_coordinates", "resize_logits", "balance_weights", "entropy_gap", "unit_deviation_logits"}
    others |= {"relative_alphas"}
    others |= {"calibrated_softmax", "prior_penalty"}
    assert set(ALL) | others | {"standardize_logits", "teacher_optimal_permutation"} == set(losses.__all__)
    assert len(ALL) == 55


@pytest.mark.parametrize("name", ALL)
def test_reductions_agree(name):
    loss, shape = ALL[name]
    student = torch.randn(shape)
    values = loss(student, reduction="none")
    assert values.ndim >= 1
    assert values.numel() > 1
    torch.testing.assert_close(loss(student, reduction="sum"), values.sum())
    torch.testing.assert_close(loss(student, reduction="mean"), values.mean())
    assert torch.equal(loss(student), loss(student, reduction="mean"))
    with pytest.raises(ValueError, match="given 'avg'"):
        loss(student, reduction="avg")


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_computed_in_float32(name):
    loss, shape = ALL[name]
    student = torch.randn(shape).bfloat16()
    result = loss(student)
    assert result.dtype == torch.float32
    assert torch.equal(result, loss(student.float()))


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name):
    loss, shape = ALL[name]
    student = torch.randn(shape).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student)
    outside = loss(student)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(torch.autograd.grad(inside, student)[0], torch.autograd.grad(outside, student)[0])


@pytest.mark.parametrize("name", ALL)
def test_float64_stays_and_gradients_are_those_of_differences(name):
    loss, shape = ALL[name]
    student = torch.randn(shape, dtype=torch.float64).requires_grad_()
    assert loss(student).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda s: 3 * loss(s), (student,), fast_mode=True)


@pytest.mark.parametrize("name", ALL)
def test_nan_is_not_swallowed(name):
    loss, shape = ALL[name]
    student = torch.randn(shape)
    student[1] = torch.nan
    try:
        result = loss(student)
    except ValueError as refused:
        assert "finite" in str(refused) or "NaN" in str(refused)  # noqa: PT017
    else:
        assert result.isnan()


@pytest.mark.parametrize("name", BETWEEN_NETWORKS)
def test_nan_of_the_teacher_is_not_swallowed(name):
    loss, shape = BETWEEN_NETWORKS[name]
    teacher = torch.randn(shape)
    teacher[1] = torch.nan
    try:
        result = loss(torch.randn(shape), teacher)
    except ValueError as refused:
        assert "finite" in str(refused) or "NaN" in str(refused)  # noqa: PT017
    else:
        assert result.isnan()


@pytest.mark.parametrize("name", BETWEEN_NETWORKS)
def test_the_teacher_gets_no_gradient(name):
    loss, shape = BETWEEN_NETWORKS[name]
    student, teacher = torch.randn(shape).requires_grad_(), torch.randn(shape).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", sorted(set(BETWEEN_NETWORKS) - {"pld_loss"}))
def test_a_student_that_is_its_teacher_has_loss_and_gradient_0(name):
    loss, shape = BETWEEN_NETWORKS[name]
    student = torch.randn(shape, dtype=torch.float64).requires_grad_()
    result = loss(student, student.detach().clone())
    (gradient,) = torch.autograd.grad(result, student)
    tolerance = 1e-4 if name.startswith("dist") else 1e-12  # DIST has 1e-8 in the denominators of its correlations
    assert abs(result.item()) < tolerance
    assert float(gradient.abs().max()) < tolerance


@pytest.mark.parametrize("name", BETWEEN_NETWORKS)
def test_another_teacher_gives_a_loss_above_0(name):
    loss, shape = BETWEEN_NETWORKS[name]
    assert float(loss(torch.randn(shape), torch.randn(shape), reduction="none").min()) > 0


@pytest.mark.parametrize("name", BETWEEN_NETWORKS)
def test_batches_of_different_sizes_are_refused(name):
    loss, shape = BETWEEN_NETWORKS[name]
    with pytest.raises(ValueError, match=r"6.* 4|\(6, .*\(4, "):
        loss(torch.randn(shape), torch.randn(4, *shape[1:]))


@pytest.mark.parametrize("name", [name for name, (_, shape) in BETWEEN_NETWORKS.items() if shape == LOGITS])
def test_models_with_different_classes_are_refused(name):
    loss, _ = BETWEEN_NETWORKS[name]
    with pytest.raises(ValueError, match=r"student_logits .*\(6, 5\).* teacher_logits .*\(6, 7\)"):
        loss(torch.randn(6, 5), torch.randn(6, 7))


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        (losses.kd_loss, "temperature"),
        (losses.bernoulli_kd_loss, "temperature"),
        (losses.kl_divergence, "temperature"),
        (losses.reverse_kl_divergence, "temperature"),
        (losses.symmetric_kl, "temperature"),
        (losses.generalized_jensen_shannon, "temperature"),
        (losses.dist_loss, "temperature"),
        (BETWEEN_NETWORKS["dkd_loss"][0], "temperature"),
        (BETWEEN_NETWORKS["tckd_loss"][0], "temperature"),
        (BETWEEN_NETWORKS["nckd_loss"][0], "temperature"),
        (BETWEEN_NETWORKS["pld_loss"][0], "teacher_temperature"),
        (losses.rkd_loss, "eps"),
        (lambda s, t, **o: losses.crd_loss(s[:, 0], s[:, 1:], **o), "dataset_size"),
    ],
)
@pytest.mark.parametrize("value", [0, -2.5, float("nan"), float("inf")])
def test_numbers_that_must_be_above_0(loss, option, value):
    with pytest.raises(ValueError, match=f"{option} must be a number above 0, given {value}"):
        loss(torch.randn(LOGITS), torch.randn(LOGITS), **{option: value})


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        (losses.dist_loss, "beta"),
        (losses.dist_loss, "gamma"),
        (BETWEEN_NETWORKS["dkd_loss"][0], "alpha"),
        (BETWEEN_NETWORKS["dkd_loss"][0], "beta"),
        (losses.rkd_loss, "distance_weight"),
        (losses.rkd_loss, "angle_weight"),
    ],
)
def test_numbers_that_must_not_be_below_0(loss, option):
    with pytest.raises(ValueError, match=f"{option} must be a number of 0 or more, given -1"):
        loss(torch.randn(LOGITS), torch.randn(LOGITS), **{option: -1})
    assert bool(loss(torch.randn(LOGITS), torch.randn(LOGITS), **{option: 0}).isfinite())


def test_reduce_over_nothing_is_0_and_connected():
    nothing = torch.zeros(0, requires_grad=True)
    mean = reduce(nothing.square(), "mean")
    mean.backward()
    assert mean.item() == 0
    assert nothing.grad is not None


def test_reduce_known_counts_only_what_is_known():
    values = torch.tensor([[1.0, 2.0], [3.0, 10.0]])
    known = torch.tensor([[True, True], [True, False]])
    assert float(reduce_known(values, known, "mean")) == 2.0
    assert float(reduce_known(values, known, "sum")) == 6.0
    assert reduce_known(values, known, "none").tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert float(reduce_known(values, torch.zeros_like(known), "mean")) == 0.0


def test_spread_puts_values_back():
    kept = torch.tensor([False, True, True, False])
    assert spread(torch.tensor([5.0, 7.0]), kept).tolist() == [0.0, 5.0, 7.0, 0.0]


def test_flatten_positions_keeps_each_position_with_its_label():
    labels = torch.arange(24).view(2, 3, 4)
    logits = torch.stack([labels, 100 + labels], dim=1)  # each position's logits name the position
    rows = losses.flatten_positions(logits)
    assert rows.tolist() == [[n, 100 + n] for n in range(24)]
    assert torch.equal(losses.flatten_positions(rows), rows)


def test_labelled_rows_leaves_out_positions_and_keeps_samples():
    logits, labels = torch.randn(2, 3, 2, 2), torch.tensor([[[0, -100], [2, 1]], [[-100, -100], [0, 0]]])
    student, teacher, kept = losses.labelled_rows(logits, 2 * logits, labels)
    assert kept.tolist() == [0, 2, 1, 0, 0]
    assert torch.equal(student[1], logits[0, :, 1, 0])
    assert torch.equal(teacher, 2 * student)
    rows = torch.randn(3, 4)
    assert losses.labelled_rows(rows, rows, torch.tensor([0, -100, 1]))[2].tolist() == [0, -100, 1]
    with pytest.raises(ValueError, match=r"teacher_logits have shape \(2, 3, 4, 4\)"):
        losses.labelled_rows(logits, torch.randn(2, 3, 4, 4), labels)
    with pytest.raises(ValueError, match=r"labels \(2, 4\) for logits \(2, 3, 2, 2\)"):
        losses.labelled_rows(logits, logits, labels.flatten(1))


def test_the_package_loads_no_torch_until_it_is_asked():
    script = (
        "import sys, stillroom.losses as l; assert 'torch' not in sys.modules; l.kd_loss; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"'kld_loss'.*kd_loss"):
        _ = losses.kld_loss
    assert set(losses.__all__) <= set(dir(losses))
    assert all(getattr(losses, name) is not None for name in losses.__all__)
