"""Losses: pure functions of tensors, grouped by what is matched."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.losses._shared import Reduction as Reduction
    from stillroom.losses._shared import flatten_positions as flatten_positions
    from stillroom.losses._shared import labelled_rows as labelled_rows
    from stillroom.losses._shared import reduce as reduce
    from stillroom.losses.balance import balance_weights as balance_weights
    from stillroom.losses.balance import entropy_gap as entropy_gap
    from stillroom.losses.balance import two_way_kd_loss as two_way_kd_loss
    from stillroom.losses.beliefs import negative_entropy as negative_entropy
    from stillroom.losses.beliefs import prior_penalty as prior_penalty
    from stillroom.losses.blended import blended_kd_loss as blended_kd_loss
    from stillroom.losses.blended import relative_alphas as relative_alphas
    from stillroom.losses.complementary import complementary_labels as complementary_labels
    from stillroom.losses.complementary import negative_learning_loss as negative_learning_loss
    from stillroom.losses.deviations import soft_cross_entropy as soft_cross_entropy
    from stillroom.losses.deviations import unit_deviation_kd_loss as unit_deviation_kd_loss
    from stillroom.losses.deviations import unit_deviation_logits as unit_deviation_logits
    from stillroom.losses.dirichlet import calibrated_cross_entropy as calibrated_cross_entropy
    from stillroom.losses.dirichlet import calibrated_softmax as calibrated_softmax
    from stillroom.losses.dirichlet import edl_loss as edl_loss
    from stillroom.losses.dirichlet import wrong_evidence_kl as wrong_evidence_kl
    from stillroom.losses.distributions import generalized_jensen_shannon as generalized_jensen_shannon
    from stillroom.losses.distributions import kl_divergence as kl_divergence
    from stillroom.losses.distributions import reverse_kl_divergence as reverse_kl_divergence
    from stillroom.losses.distributions import symmetric_kl as symmetric_kl
    from stillroom.losses.features import attention_transfer_loss as attention_transfer_loss
    from stillroom.losses.features import hint_loss as hint_loss
    from stillroom.losses.features import masked_generative_loss as masked_generative_loss
    from stillroom.losses.features import review_context_loss as review_context_loss
    from stillroom.losses.label_wise import led_class_aware_loss as led_class_aware_loss
    from stillroom.losses.label_wise import led_instance_aware_loss as led_instance_aware_loss
    from stillroom.losses.label_wise import led_loss as led_loss
    from stillroom.losses.label_wise import mld_loss as mld_loss
    from stillroom.losses.layers import class_probabilities as class_probabilities
    from stillroom.losses.layers import class_scores as class_scores
    from stillroom.losses.layers import layered_feature_loss as layered_feature_loss
    from stillroom.losses.layers import layered_kd_loss as layered_kd_loss
    from stillroom.losses.layers import marginal_kd_loss as marginal_kd_loss
    from stillroom.losses.logits import bernoulli_kd_loss as bernoulli_kd_loss
    from stillroom.losses.logits import dist_inter_class_loss as dist_inter_class_loss
    from stillroom.losses.logits import dist_intra_class_loss as dist_intra_class_loss
    from stillroom.losses.logits import dist_loss as dist_loss
    from stillroom.losses.logits import dkd_loss as dkd_loss
    from stillroom.losses.logits import kd_loss as kd_loss
    from stillroom.losses.logits import nckd_loss as nckd_loss
    from stillroom.losses.logits import standardize_logits as standardize_logits
    from stillroom.losses.logits import tckd_loss as tckd_loss
    from stillroom.losses.mutual import all_pairs_kd_loss as all_pairs_kd_loss
    from stillroom.losses.mutual import mutual_kd_loss as mutual_kd_loss
    from stillroom.losses.nodes import log_sum_uniformity_loss as log_sum_uniformity_loss
    from stillroom.losses.nodes import node_contrast_loss as node_contrast_loss
    from stillroom.losses.nodes import pairwise_soft_target_loss as pairwise_soft_target_loss
    from stillroom.losses.nodes import subspace_uniformity_loss as subspace_uniformity_loss
    from stillroom.losses.novelty import novelty_loss as novelty_loss
    from stillroom.losses.pixels import hard_positions as hard_positions
    from stillroom.losses.pixels import head_agreement as head_agreement
    from stillroom.losses.pixels import resize_logits as resize_logits
    from stillroom.losses.pixels import selected_pixel_loss as selected_pixel_loss
    from stillroom.losses.pixels import weighted_pixel_loss as weighted_pixel_loss
    from stillroom.losses.probabilities import label_mse_loss as label_mse_loss
    from stillroom.losses.probabilities import mixed_mse_loss as mixed_mse_loss
    from stillroom.losses.probabilities import norm_penalty as norm_penalty
    from stillroom.losses.probabilities import probability_mse_loss as probability_mse_loss
    from stillroom.losses.ranking import plackett_luce_loss as plackett_luce_loss
    from stillroom.losses.ranking import pld_loss as pld_loss
    from stillroom.losses.ranking import teacher_optimal_permutation as teacher_optimal_permutation
    from stillroom.losses.regions import lpld_loss as lpld_loss
    from stillroom.losses.regions import lpld_weights as lpld_weights
    from stillroom.losses.regions import region_box_loss as region_box_loss
    from stillroom.losses.regions import region_kd_loss as region_kd_loss
    from stillroom.losses.relations import crd_loss as crd_loss
    from stillroom.losses.relations import rkd_angle_loss as rkd_angle_loss
    from stillroom.losses.relations import rkd_distance_loss as rkd_distance_loss
    from stillroom.losses.relations import rkd_loss as rkd_loss
    from stillroom.losses.routing import balance_cv_loss as balance_cv_loss
    from stillroom.losses.routing import balance_kl_loss as balance_kl_loss
    from stillroom.losses.routing import routed_kd_loss as routed_kd_loss
    from stillroom.losses.scores import denoising_loss as denoising_loss
    from stillroom.losses.scores import prescribed_gradient_loss as prescribed_gradient_loss
    from stillroom.losses.scores import vsd_loss as vsd_loss
    from stillroom.losses.supervised import binary_cross_entropy as binary_cross_entropy
    from stillroom.losses.supervised import cross_entropy as cross_entropy
    from stillroom.losses.supervised import mean_absolute_error as mean_absolute_error
    from stillroom.losses.supervised import mean_squared_error as mean_squared_error
    from stillroom.losses.tokens import clipped_token_kl as clipped_token_kl
    from stillroom.losses.tokens import clipping_mask as clipping_mask
    from stillroom.losses.tokens import mass_coordinates as mass_coordinates
    from stillroom.losses.tokens import span_correlation_loss as span_correlation_loss
    from stillroom.losses.tokens import token_kl as token_kl
    from stillroom.losses.two_sample import characteristic_function_discrepancy as characteristic_function_discrepancy
    from stillroom.losses.two_sample import mean_discrepancy as mean_discrepancy
    from stillroom.losses.vocabulary import vocabulary_jensen_shannon as vocabulary_jensen_shannon
    from stillroom.losses.vocabulary import vocabulary_kl as vocabulary_kl
    from stillroom.losses.vocabulary import vocabulary_reverse_kl as vocabulary_reverse_kl

_EXPORTS = {
    "calibrated_cross_entropy": "dirichlet",
    "calibrated_softmax": "dirichlet",
    "edl_loss": "dirichlet",
    "wrong_evidence_kl": "dirichlet",
    "negative_entropy": "beliefs",
    "prior_penalty": "beliefs",
    "Reduction": "_shared",
    "all_pairs_kd_loss": "mutual",
    "attention_transfer_loss": "features",
    "soft_cross_entropy": "deviations",
    "unit_deviation_kd_loss": "deviations",
    "unit_deviation_logits": "deviations",
    "balance_weights": "balance",
    "entropy_gap": "balance",
    "two_way_kd_loss": "balance",
    "balance_cv_loss": "routing",
    "balance_kl_loss": "routing",
    "bernoulli_kd_loss": "logits",
    "binary_cross_entropy": "supervised",
    "blended_kd_loss": "blended",
    "characteristic_function_discrepancy": "two_sample",
    "clipped_token_kl": "tokens",
    "clipping_mask": "tokens",
    "complementary_labels": "complementary",
    "crd_loss": "relations",
    "cross_entropy": "supervised",
    "denoising_loss": "scores",
    "dist_inter_class_loss": "logits",
    "dist_intra_class_loss": "logits",
    "dist_loss": "logits",
    "dkd_loss": "logits",
    "flatten_positions": "_shared",
    "generalized_jensen_shannon": "distributions",
    "hard_positions": "pixels",
    "head_agreement": "pixels",
    "hint_loss": "features",
    "kd_loss": "logits",
    "kl_divergence": "distributions",
    "label_mse_loss": "probabilities",
    "labelled_rows": "_shared",
    "class_probabilities": "layers",
    "class_scores": "layers",
    "layered_feature_loss": "layers",
    "layered_kd_loss": "layers",
    "marginal_kd_loss": "layers",
    "led_class_aware_loss": "label_wise",
    "led_instance_aware_loss": "label_wise",
    "led_loss": "label_wise",
    "log_sum_uniformity_loss": "nodes",
    "lpld_loss": "regions",
    "lpld_weights": "regions",
    "masked_generative_loss": "features",
    "mass_coordinates": "tokens",
    "mean_absolute_error": "supervised",
    "mean_discrepancy": "two_sample",
    "mean_squared_error": "supervised",
    "mld_loss": "label_wise",
    "mixed_mse_loss": "probabilities",
    "mutual_kd_loss": "mutual",
    "nckd_loss": "logits",
    "negative_learning_loss": "complementary",
    "node_contrast_loss": "nodes",
    "norm_penalty": "probabilities",
    "novelty_loss": "novelty",
    "pairwise_soft_target_loss": "nodes",
    "plackett_luce_loss": "ranking",
    "pld_loss": "ranking",
    "prescribed_gradient_loss": "scores",
    "probability_mse_loss": "probabilities",
    "reduce": "_shared",
    "region_box_loss": "regions",
    "region_kd_loss": "regions",
    "relative_alphas": "blended",
    "resize_logits": "pixels",
    "reverse_kl_divergence": "distributions",
    "review_context_loss": "features",
    "rkd_angle_loss": "relations",
    "rkd_distance_loss": "relations",
    "rkd_loss": "relations",
    "routed_kd_loss": "routing",
    "selected_pixel_loss": "pixels",
    "span_correlation_loss": "tokens",
    "standardize_logits": "logits",
    "subspace_uniformity_loss": "nodes",
    "symmetric_kl": "distributions",
    "tckd_loss": "logits",
    "teacher_optimal_permutation": "ranking",
    "token_kl": "tokens",
    "vocabulary_jensen_shannon": "vocabulary",
    "vocabulary_kl": "vocabulary",
    "vocabulary_reverse_kl": "vocabulary",
    "vsd_loss": "scores",
    "weighted_pixel_loss": "pixels",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
