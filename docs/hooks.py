"""MkDocs hooks: generated pages, tables inside hand-written pages, and no asset from elsewhere."""

from __future__ import annotations

import re
from typing import Any

import generate
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon|prefetch))[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)
"""What a browser would fetch from another host when it opens the page."""


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation."""
    parts = generate.navigation()
    config.nav = [{name: parts.get(name, target) for name, target in entry.items()} for entry in config.nav]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, content in generate.pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the tables that a page asks for."""
    return generate.fill_in(markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would load something from another host."""
    if found := OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from outside: {found[0]}")
    return output
