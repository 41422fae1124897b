"""The floors of the package, read off every import: who may import whom, and what costs nothing to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"
PACKAGE = SOURCES / "stillroom"

FLOORS = (
    {"_version", "extras", "losses", "blocks", "data"},
    {
        "method",
        "task",
        "fit",
        "check",
        "hub",
        "baselines",
        "training",
        "checkpoint",
        "resuming",
        "lock",
        "allocator",
        "processes",
        "sharding",
        "storage",
        "log",
        "replay",
        "tripwires",
        "feed",
        "staging",
        "teacher_cache",
        "online",
        "codivide",
        "redistil",
        "bilevel",
        "condense",
        "explore",
        "active",
        "language",
    },
    {"experiment"},
    {"systems"},
    {
        "cli",
        "__main__",
        "command_line",
        "distill",
        "compare",
        "naming",
        "options",
        "repeating",
        "running",
        "weigh",
        "forecast",
    },
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
HOMES = {  # what is imported in one place only -> where
    "accelerate": {"processes"},
    "torchmetrics": {"task"},
    "timm": {"hub"},
    "transformers": {"hub"},
    "torchvision.models": {"hub"},
    "torchvision.datasets": {"data"},
}
CATALOG = "stillroom.systems.catalog"
LONGEST = 400


@dataclass(frozen=True)
class Import:
    """One imported module or name: `from a.b import c` is both "a.b" and, if that is a module, "a.b.c"."""

    module: str
    line: int
    at_import: bool
    """Whether it runs when the file is imported (not inside a function or under TYPE_CHECKING)."""
    name: str = ""


def name_of(file: Path) -> str:
    parts = file.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def imports_of(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                if child.level or child.module is None:
                    raise ValueError(f"{module}, line {child.lineno}: a relative import, which this test does not read")
                yield from (Import(child.module, child.lineno, at_import, alias.name) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for part in child.body:
                    yield from walk(ast.Module([part], []), False)
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), at_import)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, at_import and not inside)

    yield from walk(TREES[module], True)


IMPORTS = {module: tuple(imports_of(module)) for module in MODULES}


def target_of(found: Import) -> str:
    """The module of ours that an import reaches: through the lazy exports of a package, where it is defined."""
    module, name = found.module, found.name
    while name:
        if f"{module}.{name}" in MODULES:
            return f"{module}.{name}"
        if module not in MODULES:
            return module
        passed_on = [other for other in IMPORTS[module] if other.name == name and other.module in MODULES]
        if not passed_on or passed_on[0].module == module:
            return module
        module = passed_on[0].module
    return module


def part_of(module: str) -> str:
    """The first part below the package: `stillroom.hub.zoo` belongs to "hub"."""
    return module.split(".")[1] if "." in module else ""


def ours(module: str) -> list[tuple[Import, str]]:
    found = [(one, target_of(one)) for one in IMPORTS[module] if one.module.split(".")[0] == "stillroom"]
    return [(one, target) for one, target in found if target != module]


def test_every_module_stands_on_a_floor() -> None:
    assert len(MODULES) > 90, "the walk over the package found too little"
    homeless = sorted({part_of(module) for module in MODULES} - set(FLOOR_OF) - {""})
    assert homeless == []
    assert sum(len(found) for found in IMPORTS.values()) > 500


def test_files_import_only_from_floors_below_or_their_own() -> None:
    walked, wrong = 0, []
    for module in MODULES:
        if part_of(module) == "":
            continue  # stillroom/__init__.py exports from every floor
        for found, target in ours(module):
            walked += 1
            plain_data = target in (CATALOG, "stillroom.systems.entry") and part_of(module) in FLOORS[4] | FLOORS[3]
            if not plain_data and FLOOR_OF.get(part_of(target), 99) > FLOOR_OF[part_of(module)]:
                wrong.append(f"{module}, line {found.line}: imports {target}")
    assert walked > 200
    assert wrong == []


def test_the_catalogue_is_plain_data() -> None:
    kinds = [module for module in MODULES if module.startswith("stillroom.systems.") and module.count(".") == 2]
    assert len(kinds) > 10
    heavy = [
        f"{module}: {found.module}"
        for module in kinds
        for found in IMPORTS[module]
        if found.module.split(".")[0] not in sys.stdlib_module_names
        and found.module.split(".")[:2] != ["stillroom", "systems"]
    ]
    assert heavy == []


def test_no_import_goes_round_in_a_circle() -> None:
    edges = {
        module: {target for found, target in ours(module) if found.at_import and target in MODULES}
        for module in MODULES
        if part_of(module) != ""
    }
    assert sum(map(len, edges.values())) > 200
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle of imports: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for target in edges.get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def system_of(module: str) -> str:
    """The system a module belongs to: its kind's folder and the file or folder below; empty outside of systems."""
    parts = module.split(".")
    return ".".join(parts[2:4]) if parts[1:2] == ["systems"] and len(parts) > 3 else ""


def test_no_system_imports_another() -> None:
    systems = {system_of(module) for module in MODULES} - {""}
    assert len(systems) >= 2
    wrong = [
        f"{module}, line {found.line}: imports {target}"
        for module in MODULES
        if system_of(module)
        for found, target in ours(module)
        if system_of(target) not in ("", system_of(module))
    ]
    assert wrong == []


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_in_its_home_only(library: str) -> None:
    def is_it(found: Import) -> bool:
        whole = f"{found.module}.{found.name}" if found.name else found.module
        return whole == library or whole.startswith(f"{library}.")

    users = {part_of(module) for module in MODULES if any(map(is_it, IMPORTS[module]))}
    assert users == HOMES[library]


def test_files_are_read_in_one_sitting() -> None:
    lengths = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in MODULES.items()}
    assert lengths
    assert {module: lines for module, lines in lengths.items() if lines > LONGEST} == {}


def test_nothing_outside_of_tests_asserts() -> None:
    wrong = [
        f"{module}, line {node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "program",
    [
        "import stillroom; dir(stillroom)",
        "from stillroom.cli import main; main(['--help'])",
        "from stillroom.cli import main; main(['--version'])",
        "from stillroom.cli import main; main(['list'])",
        "from stillroom.cli import main; main(['list', '--methods'])",
        "from stillroom.cli import main; main(['show', 'pld'])",
    ],
)
def test_a_first_look_loads_no_torch(program: str) -> None:
    heavy = ("torch", "accelerate", "datasets", "timm", "transformers", "sklearn")
    loaded = f"import sys; print('loaded:', [name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{loaded}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "loaded: []"
