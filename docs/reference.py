"""What the documentation says of the code: tables made from classes and docstrings, and the reference pages."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

from measured import table

SOURCES = Path(__file__).resolve().parents[1] / "src"


def methods_table() -> str:
    """Every method that `distill` and `compare` can use, with what it needs, from the classes themselves."""
    from stillroom.systems import catalog

    rows = []
    for name in catalog.methods():
        kind = catalog.method(name)
        needs = kind.needs
        notes = [
            "compares activations" if needs.features else "",
            "asks the teacher about inputs of its own: no cache" if needs.teacher_at == "own" else "",
            "numbered samples" if needs.index else "",
            f"{needs.min_classes} classes or more" if needs.min_classes > 2 else "",
            f"batches of {needs.min_batch} or more" if needs.min_batch > 1 else "",
            f"whole batches: {needs.whole_batch}" if needs.whole_batch else "",
        ]
        summary = (kind.__doc__ or "").strip().split("\n\n")[0]
        rows.append(
            [
                f"[`{name}`][{kind.__module__}.{kind.__qualname__}]",
                summary,
                needs.labels if needs.teacher or needs.labels != "some" else "some (without a teacher)",
                "; ".join(note for note in notes if note) or "nothing else",
                ", ".join(needs.tasks),
            ]
        )
    return table(["name", "what it does", "labels", "needs besides", "tasks"], rows)


def checks_table() -> str:
    """Every check of the battery, in the order it runs, as its docstring says it."""
    from stillroom.check import all_checks

    rows = [[f"`{name}`", (check.__doc__ or "").strip().split("\n\n")[0]] for name, check in all_checks().items()]
    return table(["check", "what must hold"], rows)


def tasks_table() -> str:
    """Every task with its main metric."""
    from stillroom.task import TASKS

    rows = [[f"`{name}`", (kind.__doc__ or "").split("\n\n")[0], f"`{kind.metric}`"] for name, kind in TASKS.items()]
    return table(["task", "what outputs mean", "main metric"], rows)


def public_names(module: str) -> dict[str, str]:
    """Public functions and classes of a module, the recipe and the paper's settings last: name -> where it is defined.

    A package's are those that it lists in `__all__`, and what it imports of a recipe.
    """
    file = SOURCES.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    found: dict[str, str] = {}
    listed: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = list(ast.literal_eval(node.value))
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            found[node.name] = f"{module}.{node.name}"
        elif isinstance(node, ast.ImportFrom) and file.name == "__init__.py":
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    last = ("recipe", "paper")
    first = listed or [name for name, place in found.items() if place == f"{module}.{name}"]
    names = [*(name for name in first if name not in last), *last]
    return {name: found[name] for name in names if name in found}


REFERENCE = {
    "index": ("stillroom", "The main job, methods, training, experiments: what most programs need."),
    "losses": ("stillroom.losses", "Pure functions of tensors, grouped by what is matched."),
    "blocks": ("stillroom.blocks", "Small modules that methods are built from."),
    "data": ("stillroom.data", "Batches, samples, streams, augmentation, loading."),
    "task": ("stillroom.task", "What outputs mean: losses, metrics, checks of values."),
    "hub": ("stillroom.hub", "Models from anywhere: load, wrap, save, export."),
    "experiment": ("stillroom.experiment", "Arms over seeds, claims, intervals, reports."),
    "check": ("stillroom.check", "The battery that every method passes."),
    "baselines": ("stillroom.baselines", "What every method is compared with, and controls."),
}


def reference_pages() -> dict[str, str]:
    """One page per public package; an object that two packages export stands where it is first."""
    pages, told = {}, set()
    for page, (package, summary) in REFERENCE.items():
        module = importlib.import_module(package)
        names = [name for name in getattr(module, "__all__", ()) or public_names(package) if name != "__version__"]
        lines = [f"# {package}", summary]
        for name in names:
            value = getattr(module, name)
            if isinstance(value, ModuleType):
                continue
            place = f"{getattr(value, '__module__', package)}.{getattr(value, '__qualname__', name)}"
            if place in told:
                continue
            told.add(place)
            lines.append(f"::: {package}.{name}")
        pages[f"api/{page}.md"] = "\n\n".join(lines) + "\n"
    return pages
