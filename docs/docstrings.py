"""Teaches Griffe two habits of our docstrings: `Example:` holds a doctest, and `Losses:` lists terms by name."""

from __future__ import annotations

import re
from typing import Any

import griffe


class HouseStyle(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)


def rewrite(text: str) -> str:
    """Turn `Example:` into the section that Griffe knows, and the terms under `Losses:` into a list."""
    lines, listing = [], False
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z]\w*:.*", line):
            listing = line == "Losses:"
        if listing:
            line = re.sub(r"^    (\w[\w-]*): ", r"    - `\1`: ", line)
        lines.append("Examples:" if line == "Example:" else line)
    return "\n".join(lines)
