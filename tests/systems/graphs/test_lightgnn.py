"""LightGNN: its methods, its three levels, pruning over runs, resuming, recommending, its experiment."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import stillroom.systems.graphs.lightgnn.model as module
from stillroom import check_method
from stillroom.blocks import FixedNodes, LightGCN, MaskedLightGCN
from stillroom.data import Batch, Interactions, InteractionSplits, adjacency
from stillroom.losses import (
    log_sum_uniformity_loss,
    node_contrast_loss,
    pairwise_soft_target_loss,
    subspace_uniformity_loss,
)
from stillroom.systems.graphs.lightgnn import (
    GraphDistillation,
    Level,
    LightGNN,
    Pruning,
    Ranking,
    guided_importance,
    magnitude_importance,
    paper,
    random_importance,
    recipe,
)
from stillroom.systems.graphs.lightgnn.recipe import fake_removal_ratio
from stillroom.task import Recommendation, ranking_metrics
from stillroom.task.recommendation import popularity


def two_tastes(users: int = 40, items: int = 24, seed: int = 0) -> Interactions:
    """Even users like even items and odd users odd ones, three times in four each."""
    random = torch.Generator().manual_seed(seed)
    same = (torch.arange(users).unsqueeze(1) + torch.arange(items)) % 2 == 0
    return Interactions.from_matrix(same & (torch.rand(users, items, generator=random) < 0.75))


QUICK = Level(layers=2, epochs=4, lr=0.02)


def quick(**options) -> LightGNN:
    given = {"dimensions": 8, "teacher": QUICK, "intermediate": QUICK, "student": QUICK, "pruning": Pruning(runs=3)}
    return LightGNN(**given | {"triples": 200, "batch_size": 64, "cutoff": 5} | options)


@pytest.fixture(scope="module")
def splits() -> InteractionSplits:
    return two_tastes().split(validation=0.1, test=0.2)


@pytest.fixture(scope="module")
def fitted(splits) -> LightGNN:
    return quick(student=Level(2, 8, 0.02), teacher=Level(4, 12, 0.02)).fit(splits)


def networks(splits, layers: int = 3) -> tuple[MaskedLightGCN, LightGCN]:
    graph = adjacency(splits.train)
    return MaskedLightGCN(graph, 6, 2, seed=1), LightGCN(graph, 6, layers, seed=2)


def batch_of(splits, count: int = 12) -> Batch:
    users, items = splits.train.users[:count], splits.train.items[:count]
    sizes = splits.train.user_count, splits.train.item_count, splits.train.item_count
    triples = torch.stack([torch.randint(size, (30,)) for size in sizes])
    return Batch(users, items, negatives=splits.train.sample_negatives(users), triples=triples)


# ---- methods ---------------------------------------------------------------------------------------------------------


def test_ranking_is_bpr_and_the_norms(splits):
    student, _ = networks(splits)
    batch = batch_of(splits)
    losses = Ranking(student, interactions=splits.train, table_decay=0.1, edge_decay=0.2)(batch)
    users, items = student.nodes().split([40, 24])
    scores = users @ items.T
    positive, negative = scores[batch.inputs, batch.labels], scores[batch.inputs, batch.negatives]
    torch.testing.assert_close(losses["ranking"], -F.logsigmoid(positive - negative).mean())
    total = losses["ranking"] + 0.1 * student.embedding.square().sum() + 0.2 * len(adjacency(splits.train))
    torch.testing.assert_close(losses.total, total)
    assert list(losses) == ["ranking", "table_norm", "edge_norm"]


def test_distillation_is_the_sum_of_its_published_terms(splits):
    student, teacher = networks(splits)
    edge_mask, entry_mask = torch.ones_like(student.edge_mask), (torch.rand_like(student.entry_mask) < 0.7).float()
    student.prune(edge_mask, entry_mask)
    batch = batch_of(splits)
    method = GraphDistillation(student, teacher, interactions=splits.train, subspace_weight=1e-4, tolerance=1)
    losses = method(batch)
    nodes, layers = student.nodes(), teacher.layer_outputs()
    high = layers[2] + layers[3]
    kinds = {"users": slice(0, 40), "items": slice(40, 64)}
    rows = {"users": batch.inputs.unique(), "items": batch.labels.unique()}
    contrast = sum(node_contrast_loss(nodes[kinds[kind]], high[kinds[kind]], rows[kind]) for kind in kinds)
    torch.testing.assert_close(losses["embedding"], contrast)
    pairs = [(one, other) for one in kinds for other in kinds]
    spread = sum(log_sum_uniformity_loss(nodes[kinds[a]], nodes[kinds[b]], rows[a]) for a, b in pairs)
    torch.testing.assert_close(losses["spread"], spread)
    subspace = sum(
        subspace_uniformity_loss(
            nodes[kinds[a]], nodes[kinds[b]], entry_mask[kinds[a]], entry_mask[kinds[b]], rows[a], tolerance=1
        )
        for a, b in pairs
    )
    torch.testing.assert_close(losses["subspace"], subspace)
    users, first, second = batch.triples

    def margins(z):
        return (z[users] * (z[40 + first] - z[40 + second])).sum(dim=1)

    torch.testing.assert_close(
        losses["prediction"], pairwise_soft_target_loss(margins(nodes), margins(sum(layers)), temperature=0.03)
    )
    assert losses.weights["prediction"] == 1.0
    assert losses.weights["embedding"] == 1e-2
    assert losses.weights["spread"] == 1.0
    assert losses.weights["subspace"] == 1e-4
    (3 * losses.total).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert float(student.edge_weight.grad.abs().sum()) > 0
    assert float(student.embedding.grad[entry_mask == 0].abs().sum()) == 0


def test_a_pruned_entry_does_not_count_in_the_norm(splits):
    student, _ = networks(splits)
    mask = torch.ones_like(student.entry_mask)
    mask[0] = 0
    student.prune(torch.ones_like(student.edge_mask), mask)
    with torch.no_grad():
        student.embedding[0] = 100.0
    losses = Ranking(student, interactions=splits.train)(batch_of(splits))
    torch.testing.assert_close(losses["table_norm"], student.embedding[1:].square().sum())


def test_what_is_not_given_is_drawn(splits):
    student, teacher = networks(splits)
    method = GraphDistillation(student, FixedNodes(teacher), interactions=splits.train, triples=50)
    bare = Batch(splits.train.users[:9], splits.train.items[:9])
    torch.manual_seed(1)
    first = method(bare).total
    torch.manual_seed(1)
    assert torch.equal(method(bare).total, first)
    assert not torch.equal(method(bare).total, first)


def test_a_cached_teacher_teaches_the_same(splits):
    student, teacher = networks(splits)
    batch = batch_of(splits)
    live = GraphDistillation(student, teacher, interactions=splits.train)(batch)
    cached = GraphDistillation(student, FixedNodes(teacher), interactions=splits.train)(batch)
    for name in live:
        torch.testing.assert_close(live[name], cached[name])


@pytest.mark.parametrize("kind", [Ranking, GraphDistillation])
def test_the_battery(splits, kind):
    student, teacher = networks(splits)
    method = kind(student, teacher, interactions=splits.train)
    task = Recommendation(splits.train, splits.validation, k=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = check_method(method, batch_of(splits), task=task, processes=False, raises=False)
    assert report.ok, str(report)
    assert len(report.passed) > 12


def test_teachers_that_cannot_teach_are_refused(splits):
    student, teacher = networks(splits, layers=1)
    with pytest.raises(ValueError, match=r"the teacher has 1 layer, .* give it 2 or more"):
        GraphDistillation(student, teacher, interactions=splits.train)
    with pytest.raises(ValueError, match="GraphDistillation learns from a teacher, given none"):
        GraphDistillation(student, None, interactions=splits.train)
    other = LightGCN(adjacency(two_tastes(10, 6)), 6, 2)
    with pytest.raises(ValueError, match="the teacher has 16 nodes, the student 64"):
        GraphDistillation(student, other, interactions=splits.train)(batch_of(splits))
    with pytest.raises(ValueError, match="this batch has none"):
        Ranking(student, interactions=splits.train)(Batch(torch.tensor([0])))
    with pytest.raises(ValueError, match=r"labels must be \(1,\) int64, one item per user, given \(1,\) torch.float32"):
        Ranking(student, interactions=splits.train)(Batch(torch.tensor([0]), torch.tensor([0.0])))
    with pytest.raises(ValueError, match="triples must be a number above 0, given 0"):
        GraphDistillation(student, networks(splits)[1], interactions=splits.train, triples=0)


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_it_learns_and_beats_popularity(fitted, splits):
    ours = ranking_metrics(fitted.scores, fitted.known, splits.test, k=5)
    theirs = ranking_metrics(popularity(splits.train), fitted.known, splits.test, k=5)
    assert ours["recall_at_5"] > theirs["recall_at_5"] + 0.1


def test_sparsity_is_exact_and_masks_shrink(fitted):
    assert [round(run.edges_kept, 2) for run in fitted.runs] == [1.0, 0.85, 0.72]
    assert [round(run.entries_kept, 2) for run in fitted.runs] == [1.0, 0.8, 0.64]
    count = len(fitted.network.edge_mask)
    assert abs(float(fitted.network.edge_mask.sum()) - count * 0.85**2) <= 2
    assert bool((fitted.network.embedding[fitted.network.entry_mask == 0] == 0).all())


def test_recommendations_are_new_to_the_user(fitted, splits):
    best = fitted.recommend([0, 1, 2], k=6)
    assert best.shape == (3, 6)
    for user, items in enumerate(best.tolist()):
        assert not set(items) & set(splits.train.items_of(user).tolist())
        assert not set(items) & set(splits.validation.items_of(user).tolist())
    users = torch.arange(40)
    first = fitted.recommend(users, k=1)[:, 0]
    assert float((first % 2 == users % 2).float().mean()) > 0.8  # even users like even items


def test_the_last_run_is_trained_on_its_masks(fitted):
    alive = fitted.network.edge_mask > 0
    assert float((fitted.network.edge_weight[alive] - 1).abs().sum()) > 0


def test_levels_have_their_graphs(fitted, splits):
    assert len(fitted.models["intermediate"].values) == len(adjacency(splits.train, two_hop=True))
    assert len(fitted.network.values) == len(fitted.models["teacher"].values) == len(adjacency(splits.train))
    assert not any(p.requires_grad for one in fitted.models.values() for p in one.parameters())


def test_guided_importance_asks_the_intermediate_model(fitted):
    student, guide = fitted.network, fitted.models["intermediate"]
    edges, entries = guided_importance(student, guide, torch.Generator(), prediction_weight=2.0, edge_guide_weight=3.0)
    wide = torch.zeros(64, 64)
    wide[guide.rows_and_columns[0], guide.rows_and_columns[1]] = guide.edge_weight.detach()
    rows, columns = student.rows_and_columns
    nodes = guide.nodes()
    expected = student.edge_weight + 2 * (nodes @ nodes.T).sigmoid()[rows, columns] + 3 * wide[rows, columns]
    torch.testing.assert_close(edges, (expected * student.edge_mask).detach())
    torch.testing.assert_close(entries, student.table())
    with pytest.raises(ValueError, match="guided importance asks the intermediate model, and there is none"):
        guided_importance(student, None, torch.Generator())


def test_pruning_pairs_as_a_whole(splits):
    model = quick(pruning=Pruning(runs=3, symmetric=True, edge_rate=0.3)).fit(splits)
    network = model.network
    mask = torch.zeros(64, 64)
    mask[network.rows_and_columns[0], network.rows_and_columns[1]] = network.edge_mask
    assert torch.equal(mask, mask.T)
    assert 0.4 < network.kept()[0] < 0.6


def test_without_a_teacher_there_is_no_other_level(splits):
    model = quick(prediction_weight=0.0, embedding_weight=0.0, pruning=Pruning(3, importance=magnitude_importance))
    assert list(model.fit(splits).models) == ["student"]


def test_given_teachers_are_not_trained(fitted, splits):
    model = quick(pruning=Pruning(runs=1)).fit(splits, intermediate=fitted.models["intermediate"])
    assert model.models["intermediate"] is fitted.models["intermediate"]
    before = fitted.models["teacher"].embedding.clone()
    other = quick(pruning=Pruning(runs=1)).fit(splits, teacher=fitted.models["teacher"])
    assert torch.equal(other.models["teacher"].embedding, before)


def test_epochs_are_chosen_by_validation_or_as_released_by_test(splits):
    one, other = quick(pruning=Pruning(runs=1)), quick(pruning=Pruning(runs=1), selection="test recall, as released")
    for model, part in ((one, splits.validation), (other, splits.test)):
        model.fit(splits)
        found = ranking_metrics(model.scores, splits.train, part, k=5)
        assert found == pytest.approx(model.runs[0].measured)
    with pytest.raises(ValueError, match="chosen by test recall, as released, but the interactions have no such part"):
        quick(selection="test recall, as released").fit(two_tastes())


def test_a_killed_fit_goes_on_to_the_same_numbers(splits, tmp_path, monkeypatch):
    whole = quick().fit(splits, seed=3)
    trained = module.fit
    calls = []

    def dies_in_the_second_run(method, *arguments, **options):
        calls.append(options["title"])
        if options["title"] == "run-1" and calls.count("run-1") == 1:
            steps = iter(range(1000))
            forward = type(method).forward

            def forward_and_die(batch):
                if next(steps) == 7:  # after two evaluations, within the third epoch
                    raise KeyboardInterrupt
                return forward(method, batch)

            method.forward = forward_and_die
        return trained(method, *arguments, **options)

    monkeypatch.setattr(module, "fit", dies_in_the_second_run)
    with pytest.raises(KeyboardInterrupt):
        quick().fit(splits, seed=3, folder=tmp_path / "run")
    resumed = quick().fit(splits, seed=3, folder=tmp_path / "run", resume=True)
    assert calls == ["teacher", "intermediate", "run-0", "run-1", "run-1", "run-2"]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    assert resumed.runs == whole.runs
    with pytest.raises(ValueError, match="has other dimensions: resume it with the same options"):
        quick(dimensions=4).fit(splits, seed=3, folder=tmp_path / "run", resume=True)
    with pytest.raises(FileExistsError, match="holds a run: name a new one, or resume=True"):
        quick().fit(splits, seed=3, folder=tmp_path / "run")


def test_wrong_arguments_are_refused():
    for name, rate in (("edge_rate", 1.0), ("entry_rate", -0.2)):
        with pytest.raises(ValueError, match=rf"{name} is the share that is pruned .* given {rate}"):
            Pruning(**{name: rate})
    with pytest.raises(ValueError, match=r"selection must be .* given 'test'"):
        LightGNN(selection="test")
    with pytest.raises(ValueError, match="runs=0"):
        Pruning(runs=0)
    with pytest.raises(ValueError, match="this LightGNN was not fitted"):
        _ = LightGNN().network
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        quick().fit(two_tastes(), resume=True)
    empty = torch.zeros(3, 4)
    empty[0] = 1
    with pytest.raises(ValueError, match="2 of 3 users have no interaction"):
        quick().fit(empty)


# ---- the experiment --------------------------------------------------------------------------------------------------


def test_removal_of_fakes_is_counted_by_hand(fitted):
    network, train = fitted.network, fitted.splits.train
    fakes = torch.zeros(len(train), dtype=torch.bool)
    fakes[::5] = True
    dense = torch.zeros(64, 64)
    dense[network.rows_and_columns[0], network.rows_and_columns[1]] = 1 - network.edge_mask
    gone = dense[train.users, 40 + train.items] + dense[40 + train.items, train.users]
    expected = float(gone[fakes].mean() / gone[~fakes].mean())
    assert fake_removal_ratio(fitted, fakes) == pytest.approx(expected, rel=1e-5)


def test_random_importance_is_alive_where_the_masks_are(fitted):
    edges, entries = random_importance(fitted.network, None, torch.Generator().manual_seed(0))
    assert torch.equal(edges != 0, fitted.network.edge_mask > 0)
    assert torch.equal(entries != 0, fitted.network.entry_mask > 0)


def test_the_recipe_runs_in_its_tiny_form(tmp_path):
    experiment = recipe().tiny()
    results = experiment.run((0,), tmp_path / "run", progress=False)
    assert set(results["arms"]) == {
        "magnitude",
        "lightgnn",
        "random",
        "unpruned",
        "teacher",
        "popularity",
        "lightgnn-noisy",
        "random-noisy",
    }
    assert len(results["claims"]) == 6
    assert results["arms"]["random"]["role"] == "control"
    assert results["arms"]["unpruned"]["metrics"]["edges_kept"] == [1.0]
    for name in ("magnitude", "lightgnn", "random"):
        assert results["arms"][name]["metrics"]["edges_kept"] == pytest.approx([0.64], abs=0.01)


def test_the_papers_settings_run_in_a_tiny_form(tmp_path):
    experiment = paper(two_tastes()).tiny()
    results = experiment.run((0,), tmp_path / "run", progress=False)
    assert results["metric"] == "recall_at_20"
    options = dict(experiment.arms["lightgnn"].keywords["setting"].model)
    assert options["teacher"] == Level(8, 300, 4e-4, 1.5e-6)
    assert options["pruning"].importance.keywords == {"prediction_weight": 1.0, "edge_guide_weight": 0.05}
    assert isinstance(options["pruning"].importance, partial)
