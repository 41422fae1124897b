"""LightGNN: a graph recommender that is distilled twice and pruned, edges and embedding entries alike.

For whom: you serve recommendations from a LightGCN-style model of implicit feedback and want most of its edges and
embedding entries gone without losing ranking quality; or you want an interaction graph cleaned of edges that do not
help. `LightGNN` takes your interaction matrix and gives masks, sparse embeddings and weights of the surviving edges.

Not for whom: your items or users have features that you want to use; new users come in without being trained on; you
need speed on ordinary hardware: unstructured sparsity saves memory and arithmetic, but dense kernels see little of it,
and nothing is claimed of it here.

Citation: Guoxuan Chen, Lianghao Xia, Chao Huang. LightGNN: Simple Graph Neural Network for Recommendation. WSDM 2025.
arXiv:2501.03228.

Deviations from the paper: the description rests on the authors' supplement and code. Epochs and masks are chosen by
validation recall, not by test recall (`selection="test recall, as released"` does as the authors do). Exactly the asked
share is pruned, ties by place; the released code also prunes the threshold and all that equal it
(`Pruning(rule="strict")`). Both directions of an interaction, and self-loops, are pruned apart, as released;
`Pruning(symmetric=True)` keeps or drops an interaction as a whole. The student is pruned between two runs, so that a
pruned model has always been trained after its last cut: 6 runs are 5 cuts. Reported rankings leave out validation items
as well as training items. Help texts of the released code swap its two weights of importance; here `prediction_weight`
multiplies the prediction. The intermediate model has 2 layers as in the supplement's settings; one script uses 6.
"""

from __future__ import annotations

from stillroom.systems.graphs.lightgnn.levels import (
    Level,
    Pruning,
    Run,
    guided_importance,
    magnitude_importance,
    random_importance,
)
from stillroom.systems.graphs.lightgnn.methods import GraphDistillation, Ranking
from stillroom.systems.graphs.lightgnn.model import LightGNN
from stillroom.systems.graphs.lightgnn.recipe import paper, recipe

__all__ = [
    "GraphDistillation",
    "Level",
    "LightGNN",
    "Pruning",
    "Ranking",
    "Run",
    "guided_importance",
    "magnitude_importance",
    "paper",
    "random_importance",
    "recipe",
]
