"""Libraries that only some kinds of work need."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from stillroom.extras import EXTRAS, require

ROOT = Path(__file__).resolve().parents[1]


def test_what_is_installed_is_imported() -> None:
    assert require("transformers").__name__ == "transformers"


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r'needs gymnasium, which is not installed: pip install "stillroom\[explor'):
        require("gymnasium")


def test_every_extra_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
    assert len(EXTRAS) >= 10
