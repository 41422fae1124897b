"""What a training says while it runs: a progress bar on a terminal, plain lines elsewhere, JSON lines in a file."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stillroom.storage import storing, whole


class Notice(UserWarning):
    """Something a user should know of a run that goes on; the command line shows the sentence alone."""


def show_notices_plainly() -> None:
    """Let a `Notice` appear as one sentence, without the place in the code that it comes from."""
    before = warnings.formatwarning
    if getattr(before, "shows_notices", False):
        return

    def shown(message: Any, category: type[Warning], *place: Any, **more: Any) -> str:
        return f"stillroom: {message}\n" if issubclass(category, Notice) else before(message, category, *place, **more)

    shown.shows_notices = True  # type: ignore[attr-defined]
    warnings.formatwarning = shown


class JSONLines:
    """Appends one JSON object per line; a resumed training drops the lines from its step on first.

    Args:
        path: the file; None writes nothing.
        from_step: lines of this step and later are removed (they will be written again).
    """

    def __init__(self, path: Path | None, *, from_step: int = 0) -> None:
        self.path = path
        if path is None:
            return
        kept = []
        if from_step and path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] < from_step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError):
                    continue  # a line that was being written when the process died
        with whole(path) as file:
            file.write("".join(kept).encode())

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        if self.path is not None:
            with storing(self.path), self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


class Display:
    """Shows progress: a bar where somebody watches a terminal, a line now and then where the output is a file.

    Args:
        title: what is running.
        total: steps in all.
        enabled: False shows nothing.
        every: seconds between two plain lines.
    """

    def __init__(self, title: str, total: int, *, enabled: bool = True, every: float = 10.0) -> None:
        self.title = title
        self.total = total
        self.enabled = enabled
        self.every = every
        self._console = Console(stderr=True, highlight=False)
        self._said = time.monotonic()
        self._bar: Progress | None = None
        self._news = ""

    def __enter__(self) -> Display:
        if self.enabled and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, news: str = "") -> None:
        """Say how far it is; `news` (a loss, a metric) stays until there is other news."""
        self._news = news or self._news
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"{self.title} {self._news}")
        elif (step == self.total and not news) or time.monotonic() - self._said > self.every:
            self._said = time.monotonic()
            print(f"{self.title}: step {step}/{self.total} {self._news}", file=sys.stderr, flush=True)


@contextmanager
def interruptions() -> Iterator[threading.Event]:
    """Turn Ctrl-C, and a polite request to end (SIGTERM), into a flag that is looked at between steps.

    A second Ctrl-C is not waited for: it raises KeyboardInterrupt where the program stands.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    pressed: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.set()
        if number == signal.SIGINT:
            pressed.append(number)
            if len(pressed) > 1:
                raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
