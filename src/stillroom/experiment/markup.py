"""HTML and SVG elements whose text is always escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

_VOID = {"meta", "br", "hr", "col", "line", "circle", "rect", "path"}


class Html(str):
    """Text that is markup already; any other string is escaped where it becomes a child or an attribute."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]
"""What an element may hold: markup, text, numbers, nothing, or several of these."""


def tag(name: str, attributes: Mapping[str, str | float | None] | None = None, *children: Child) -> Html:
    """Build an element; attributes that are None are left out."""
    given = {key: value for key, value in (attributes or {}).items() if value is not None}
    opening = "".join(f' {key}="{html.escape(str(value), quote=True)}"' for key, value in given.items())
    if name in _VOID and not children:
        return Html(f"<{name}{opening}>" if name in ("meta", "br", "hr", "col") else f"<{name}{opening}/>")
    return Html(f"<{name}{opening}>{join(children)}</{name}>")


def join(children: Child) -> Html:
    """Put children in a row, escaping those that are not markup."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, (str, int, float)):
        return Html(html.escape(str(children), quote=False))
    return Html("".join(join(child) for child in children))
