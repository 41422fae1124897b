"""Adapters of the LightGNN vectors."""

from __future__ import annotations

import torch

from stillroom import losses
from stillroom.blocks.propagation import MaskedLightGCN
from stillroom.blocks.pruning import guided_edge_importance, surviving
from stillroom.data.graphs import adjacency
from stillroom.data.interactions import Interactions


def embedding_contrast(inputs, params):
    loss = losses.node_contrast_loss(
        inputs["student"].double(), inputs["teacher"].double(), inputs["nodes"], temperature=params["tau"]
    )
    return {"loss": loss}


def pairwise_soft_target(inputs, params):
    student, teacher = inputs["student_margin"].double(), inputs["teacher_margin"].double()
    return {"loss": losses.pairwise_soft_target_loss(student, teacher, temperature=params["tau"])}


def subspace_uniformity_term(inputs, params):
    loss = losses.subspace_uniformity_loss(
        inputs["emb1"].double(),
        inputs["emb2"].double(),
        inputs["mask1"],
        inputs["mask2"],
        inputs["anchors"],
        tolerance=float(params["delta"]),
        temperature=params["tau"],
    )
    return {"loss": loss}


def self_contrast_term(inputs, params):
    loss = losses.log_sum_uniformity_loss(
        inputs["emb1"].double(), inputs["emb2"].double(), inputs["anchors"], temperature=params["tau"]
    )
    return {"loss": loss}


def masked_propagation(inputs, params):
    interactions = Interactions.from_matrix(inputs["interactions"])
    graph = adjacency(interactions)
    assert torch.equal(graph.index, inputs["edge_index"])
    embedding = torch.cat([inputs["user_emb"], inputs["item_emb"]]).double()
    network = MaskedLightGCN(graph, embedding.shape[1], params["layers"]).double()
    network.values.copy_(graph.values)
    network.prune(inputs["edge_mask"], inputs["emb_mask"])
    with torch.no_grad():
        network.embedding.copy_(embedding)
        network.edge_weight.copy_(inputs["edge_weight"])
    users, items = network.nodes().split([interactions.user_count, interactions.item_count])
    total = users.square().sum() + items.square().sum()
    (gradient,) = torch.autograd.grad(3 * total, network.edge_weight)
    return {
        "norm_adj_values": graph.values,
        "user_out": users,
        "item_out": items,
        "grad_of_edge_weight_for_sum_of_squares": gradient / 3,
    }


def prune_step(inputs, params):
    graph = adjacency(Interactions.from_matrix(inputs["interactions"]))
    assert torch.equal(graph.index, inputs["edge_index"])
    embedding = inputs["emb"].double()
    network = MaskedLightGCN(graph, embedding.shape[1], params["layers"]).double()
    network.prune(inputs["edge_mask"], torch.ones_like(embedding))
    with torch.no_grad():
        network.embedding.copy_(embedding)
        network.edge_weight.copy_(inputs["edge_weight"])
    importance = guided_edge_importance(
        network.edge_weight,
        network.edge_mask,
        graph.index,
        inputs["teacher_out"].double(),
        inputs["teacher_edge_weight_on_student_edges"].double(),
        prediction_weight=params["beta1"],
        edge_guide_weight=params["beta2"],
    )
    edges = surviving(importance, params["edge_rate"], rule="strict")
    entries = surviving(network.table(), params["entry_rate"], rule="strict")
    network.prune(edges, entries)
    return {
        "edge_mask_new": network.edge_mask,
        "edge_weight_new": network.edge_weight,
        "emb_mask_new": network.entry_mask,
        "emb_new": network.embedding,
    }
