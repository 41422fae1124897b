"""LightGNN for users: fit on interactions, recommend, read off the pruned graph."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stillroom import checkpoint
from stillroom.blocks.propagation import FixedNodes, LightGCN, MaskedLightGCN
from stillroom.blocks.pruning import surviving, undirected_groups
from stillroom.data.graphs import adjacency
from stillroom.data.interactions import Interactions, InteractionSplits
from stillroom.data.samples import Splits, TensorSamples
from stillroom.fit import fit
from stillroom.method import Method
from stillroom.systems.graphs.lightgnn.levels import Level, Pruning, Run
from stillroom.systems.graphs.lightgnn.methods import GraphDistillation, Ranking
from stillroom.task.recommendation import Recommendation, top_items
from stillroom.training import Optim, Training

TEACHER, INTERMEDIATE, STUDENT = Level(8, 1000, 4e-4, 1.3e-7), Level(2, 500, 4e-4, 1.3e-7), Level(2, 300, 1e-3, 1e-8)
PRUNING = Pruning()
BY_TEST = "test recall, as released"


class LightGNN:
    """Recommends from a LightGCN most of whose edges and embedding entries are pruned, with two teachers' help.

    Args:
        dimensions: d of all three models.
        teacher: a LightGCN on the graph.
        intermediate: a LightGCN with edge weights on the graph with two-hop neighbours, taught by the teacher.
        student: a LightGCN with edge weights on the graph, taught by the intermediate model and pruned.
        pruning: how.
        two_hop_keep: share of the two-hop entries that the intermediate model's graph keeps, the largest; in (0, 1].
        prediction_weight: of the teacher's soft preferences; 0 with `embedding_weight` 0 is no distillation at all.
        embedding_weight: of the contrast with the teacher's high-order embeddings.
        spread_weight: of the log-sum term.
        subspace_weight: of the subspace term, from the student's second run on.
        triples: random triples per step that preferences are compared on.
        batch_size: pairs per step; all pairs where there are fewer.
        cutoff: length of the rankings that epochs are chosen by.
        evaluate_every: epochs between two measurements.
        selection: "validation", or "test recall, as released": epochs and masks are chosen by the test part, which
            flatters the result and is there to repeat the authors' numbers.

    Example:
        >>> taken = (torch.rand(30, 20) < 0.3).int().numpy()  # users x items: NumPy, SciPy or torch
        >>> quick = Level(layers=2, epochs=3, lr=0.01)
        >>> model = LightGNN(dimensions=8, teacher=quick, intermediate=quick, student=quick, pruning=Pruning(runs=3))
        >>> model = model.fit(taken)
        >>> model.recommend([0, 1], k=5).shape, round(model.runs[-1].entries_kept, 2)
        (torch.Size([2, 5]), 0.64)
    """

    def __init__(
        self,
        *,
        dimensions: int = 64,
        teacher: Level = TEACHER,
        intermediate: Level = INTERMEDIATE,
        student: Level = STUDENT,
        pruning: Pruning = PRUNING,
        two_hop_keep: float = 1.0,
        prediction_weight: float = 1.0,
        embedding_weight: float = 1e-2,
        spread_weight: float = 1.0,
        subspace_weight: float = 1e-4,
        triples: int = 100_000,
        batch_size: int = 4096,
        cutoff: int = 20,
        evaluate_every: int = 1,
        selection: Literal["validation", "test recall, as released"] = "validation",
    ) -> None:
        if selection not in ("validation", BY_TEST):
            raise ValueError(f'selection must be "validation" or "{BY_TEST}", given {selection!r}')
        self.dimensions, self.teacher, self.intermediate, self.student = dimensions, teacher, intermediate, student
        self.pruning, self.two_hop_keep = pruning, two_hop_keep
        self.prediction_weight, self.embedding_weight = prediction_weight, embedding_weight
        self.spread_weight, self.subspace_weight, self.triples = spread_weight, subspace_weight, triples
        self.batch_size, self.cutoff, self.evaluate_every = batch_size, cutoff, evaluate_every
        self.selection = selection
        self.options = dict(vars(self))
        self.runs: list[Run] = []
        self.models: dict[str, Any] = {}

    @property
    def distils(self) -> bool:
        """Whether anybody is asked beside the data."""
        return self.prediction_weight > 0 or self.embedding_weight > 0

    # ---- training ------------------------------------------------------------------------------------------------

    def fit(
        self,
        interactions: Any,
        *,
        seed: int = 0,
        folder: str | Path | None = None,
        resume: bool = False,
        device: str | None = None,
        progress: bool = False,
        teacher: LightGCN | None = None,
        intermediate: MaskedLightGCN | None = None,
    ) -> LightGNN:
        """Train teacher, intermediate model and student, and prune.

        Args:
            interactions: a matrix `(U, I)`, `Interactions` (a tenth of each user's items is held out to choose by), or
                `InteractionSplits`.
            seed: of embeddings, order and draws, and of that cut.
            folder: where finished levels and checkpoints go; a new one, or with `resume` the one of a killed run.
            resume: go on where the folder's run was, to the same numbers.
            device: None for the machine's own choice.
            progress: show bars.
            teacher: a trained one over the same users and items, instead of training it.
            intermediate: the same; no teacher is needed then.

        Returns:
            Itself; `models` and `runs` say what was trained, `network` is the pruned student.

        Raises:
            ValueError: users without any item, nothing to choose by, or a resume with other options or data.
        """
        splits = _splits(interactions, seed)
        work = _Work(self, splits, seed, Path(folder) if folder else None, resume, device, progress)
        work.open_folder()
        self.splits, self.runs, self.models = splits, [], {}
        graph = adjacency(splits.train)
        guide = intermediate
        if self.distils and guide is None:
            top = teacher
            if top is None:
                level = self.teacher
                top = LightGCN(graph, self.dimensions, level.layers, seed=seed)
                work.train("teacher", Ranking(top, interactions=splits.train, table_decay=level.table_decay), level, 1)
            wide = adjacency(splits.train, two_hop=True, two_hop_keep=self.two_hop_keep)
            guide = MaskedLightGCN(wide, self.dimensions, self.intermediate.layers, seed=seed + 1)
            work.train("intermediate", self._method(guide, top, self.intermediate), self.intermediate, 2)
            self.models["teacher"] = top
        if guide is not None:
            self.models["intermediate"] = guide
        student = MaskedLightGCN(graph, self.dimensions, self.student.layers, seed=seed + 2)
        self.models["student"] = student
        random = torch.Generator().manual_seed(seed)
        for run in range(self.pruning.runs):
            method = self._method(student, guide, self.student, run)
            measured, step = work.train(f"run-{run}", method, self.student, 3 + run)
            self.runs.append(Run(*student.kept(), measured, step))
            if run + 1 < self.pruning.runs:
                student.prune(*self.next_masks(student, guide, random))
        for network in self.models.values():
            network.requires_grad_(False).eval()
        return self

    def next_masks(self, student: MaskedLightGCN, guide: Any, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Masks of edges and entries that the next run starts with."""
        with torch.no_grad():
            edges, entries = self.pruning.importance(student, guide, random)
        groups = undirected_groups(student.rows_and_columns, student.node_count) if self.pruning.symmetric else None
        rule = self.pruning.rule
        return (
            surviving(edges, self.pruning.edge_rate, rule=rule, groups=groups),
            surviving(entries, self.pruning.entry_rate, rule=rule),
        )

    def _method(self, student: MaskedLightGCN, teacher: Any, level: Level, run: int = 0) -> Method:
        common: dict[str, Any] = {
            "interactions": self.splits.train,
            "spread_weight": self.spread_weight,
            "subspace_weight": self.subspace_weight if run else 0.0,
            "tolerance": self.pruning.tolerances[min(run, len(self.pruning.tolerances) - 1)],
            "table_decay": level.table_decay,
            "edge_decay": level.edge_decay,
        }
        if not self.distils:
            return Ranking(student, **common)
        return GraphDistillation(
            student,
            FixedNodes(teacher),
            prediction_weight=self.prediction_weight,
            embedding_weight=self.embedding_weight,
            triples=self.triples,
            **common,
        )

    # ---- use -----------------------------------------------------------------------------------------------------

    @property
    def network(self) -> MaskedLightGCN:
        """The pruned student.

        Raises:
            ValueError: nothing was fitted.
        """
        if not isinstance(network := self.models.get("student"), MaskedLightGCN):
            raise ValueError("this LightGNN was not fitted: call fit(interactions) first")
        return network

    @torch.no_grad()
    def scores(self, users: Any) -> Tensor:
        """Scores of all items: user numbers `(B,)` -> `(B, I)`."""
        network = self.network
        return network(torch.as_tensor(users, device=network.embedding.device)).cpu()

    def recommend(self, users: Any, *, k: int = 20) -> Tensor:
        """The k best items that each user has not taken yet, `(B, k)`; -1 where there are no more.

        Args:
            users: numbers, `(B,)`.
            k: 1 or more.
        """
        numbers = torch.as_tensor(users)
        return top_items(self.scores(numbers), self.known.dense(numbers), k)

    @property
    def known(self) -> Interactions:
        """What was trained on or chosen by, which is not recommended again."""
        held = self.splits.validation
        return self.splits.train if held is None else self.splits.train.union(held)


def _splits(interactions: Any, seed: int) -> InteractionSplits:
    if isinstance(interactions, InteractionSplits):
        return interactions
    if not isinstance(interactions, Interactions):
        interactions = Interactions.from_matrix(interactions)
    return interactions.split(validation=0.1, test=0.0, seed=seed)


@dataclass
class _Work:
    """One call of `LightGNN.fit`: where its levels are kept, and how they are trained."""

    owner: LightGNN
    splits: InteractionSplits
    seed: int
    folder: Path | None
    resume: bool
    device: str | None
    progress: bool
    options: dict[str, Any] = field(default_factory=dict)

    def open_folder(self) -> None:
        """Refuse a folder of another run; write down what this one is."""
        if self.folder is None:
            if self.resume:
                raise ValueError("resume=True needs the folder of the run: pass folder=")
            return
        pairs = hashlib.sha256(self.splits.train.keys.numpy().tobytes()).hexdigest()[:12]
        this = {name: _said(value) for name, value in self.owner.options.items()} | {"seed": self.seed, "data": pairs}
        written = self.folder / "options.json"
        if written.exists():
            before = json.loads(written.read_text())
            if not self.resume:
                raise FileExistsError(f"the folder {self.folder} holds a run: name a new one, or resume=True")
            changed = sorted(name for name in this if before.get(name) != this[name])
            if changed:
                raise ValueError(
                    f"the run in {self.folder} has other {', '.join(changed)}: resume it with the same options and data"
                )
        checkpoint.write_json(written, this)

    def train(self, name: str, method: Method, level: Level, number: int) -> tuple[dict[str, float], int]:
        """Train a level (or take it from the folder, where it is finished); leave the best epoch's weights in it."""
        network, owner = method.student, self.owner
        kept = None if self.folder is None else self.folder / name / "finished.pt"
        if kept is not None and kept.exists() and (state := checkpoint.load(kept)) is not None:
            network.load_state_dict(state["network"])
            return state["measured"], state["best_step"]
        by_test = owner.selection != "validation"
        wanted = self.splits.test if by_test else self.splits.validation
        if wanted is None:
            raise ValueError(f"epochs are chosen by {owner.selection}, but the interactions have no such part")
        task = Recommendation(self.splits.train, wanted, k=owner.cutoff)
        train = self.splits.train
        batch_size = min(owner.batch_size, len(train))
        fitted = fit(
            method,
            Splits(TensorSamples(train.users, train.items), task.held_out(), task.held_out()),
            Training(
                epochs=level.epochs,
                batch_size=batch_size,
                optimizer=Optim("adam", lr=level.lr, schedule="constant"),
                evaluate_every=owner.evaluate_every * (len(train) // batch_size),
            ),
            task=task,
            seed=self.seed * 1000 + number,
            folder=None if self.folder is None else self.folder / name,
            resume=self.resume,
            device=self.device,
            trackers=(),
            progress=self.progress,
            title=name,
            check_teacher=False,
            log_every=500,
        )
        if kept is not None:
            state = {"network": network.state_dict(), "measured": fitted.validation, "best_step": fitted.best_step}
            checkpoint.save(kept, state)
        return fitted.validation, fitted.best_step


def _said(value: Any) -> str:
    """Options as text that is the same in another process."""
    if isinstance(value, partial):
        return f"{value.func.__qualname__}({_said(value.keywords)})"
    if isinstance(value, Pruning):
        return str({name: _said(part) for name, part in vars(value).items()})
    return getattr(value, "__qualname__", repr(value))
