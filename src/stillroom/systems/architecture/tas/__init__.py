"""Transformable architecture search: prune a residual network by searching its widths and depths under a cost target.

For whom: you have a trained residual network and need about half its multiply-accumulates; you would rather learn where
they can be spared than take the same share of every layer, and you distil the original into what is found.

Not for whom: your network has no residual stages of basic blocks; you must keep its weights (what is found is trained
from scratch); cost on your device does not follow multiply-accumulates.

Citation: Xuanyi Dong, Yi Yang. Network Pruning via Transformable Architecture Search. NeurIPS 2019. arXiv:1905.09717.

Deviations from the paper: what is called FLOPs there are multiply-accumulates, and are called so here. The expected
cost takes the width that reaches a stage over the probable depths of the one before, and counts 1x1 shortcuts where
widths may differ, so that it is the derived network's own cost when every choice is certain; the authors' code chains
the last block's width. Which network is derived: the latest one of the search whose cost is within tolerance of the
target (`tas.within`), else the last; the paper names the last epoch or the best validation accuracy among those within
tolerance, which draws of a shared network make noisy. Layers with fewer than two candidate widths are refused.
"""

from stillroom.blocks.search import ResNetShape, SearchableResNet, ShapedResNet
from stillroom.systems.architecture.tas.recipe import paper, recipe
from stillroom.systems.architecture.tas.search import TAS, search

__all__ = ["TAS", "ResNetShape", "SearchableResNet", "ShapedResNet", "paper", "recipe", "search"]
