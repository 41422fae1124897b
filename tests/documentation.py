"""What tests of the documentation share: the pages, their code blocks, and the script that generates the rest."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its language, what follows it on the opening line, its text and where it begins."""

    language: str
    tags: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(one[1], one[2], one[3], text[: one.start()].count("\n") + 2) for one in found]


def load_file(file: Path, name: str) -> ModuleType:
    """Run a Python file as a module of some name, which classes defined in it are pickled by."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def generator() -> ModuleType:
    """The script docs/generate.py, as a module."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))  # as for a script that is run: it imports the files beside it
    return importlib.import_module("generate")
