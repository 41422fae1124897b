"""What checks say: an error, a warning, a reason to skip, and the report over all of them."""

from __future__ import annotations

import textwrap
import warnings
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["passed", "warned", "skipped", "failed"]


class CheckError(AssertionError):
    """The method is broken: what was found, what is expected, and the remedy."""


class CheckWarning(UserWarning):
    """The method works, but badly: what was found, and the remedy."""


@dataclass(frozen=True)
class Skip:
    """What a check returns that does not apply.

    Attributes:
        reason: why it does not apply.
    """

    reason: str


@dataclass(frozen=True)
class CheckResult:
    """What one check gave.

    Attributes:
        name: of the check.
        outcome: "passed", "warned", "skipped" or "failed".
        message: warnings, reason or error; empty for a check that passed.
        error: what was raised by a check that failed.
    """

    name: str
    outcome: Outcome
    message: str = ""
    error: Exception | None = None


@dataclass
class CheckReport:
    """What a battery of checks gave; `print` shows a table.

    Attributes:
        method: name of the method's class.
        results: one per check, in the order they ran.
    """

    method: str
    results: list[CheckResult] = field(default_factory=list)

    def _messages(self, outcome: Outcome) -> dict[str, str]:
        return {result.name: result.message for result in self.results if result.outcome == outcome}

    @property
    def passed(self) -> list[str]:
        """Names of the checks that passed without a word."""
        return list(self._messages("passed"))

    @property
    def warned(self) -> dict[str, str]:
        """Checks that passed with warnings, and what they said."""
        return self._messages("warned")

    @property
    def skipped(self) -> dict[str, str]:
        """Checks that did not apply, and why."""
        return self._messages("skipped")

    @property
    def failed(self) -> dict[str, str]:
        """Checks that failed, and what they said."""
        return self._messages("failed")

    @property
    def ok(self) -> bool:
        """Whether something was checked and nothing failed."""
        return not self.failed and any(result.outcome != "skipped" for result in self.results)

    def raise_for_errors(self) -> None:
        """Raise one `CheckError` that names every check that failed; do nothing where none did."""
        failures = [result for result in self.results if result.outcome == "failed"]
        if failures:
            said = "\n".join(f"  {result.name}: {result.message}" for result in failures)
            raise CheckError(
                f"{self.method} fails {len(failures)} of {len(self.results)} checks:\n{said}"
            ) from failures[0].error

    def __str__(self) -> str:
        width = max((len(result.name) for result in self.results), default=0)
        lines = []
        for result in self.results:
            first = f"{result.name:<{width}}  {result.outcome:<7}"
            body = textwrap.wrap(f"{first}  {result.message}".rstrip(), 120, subsequent_indent=" " * (width + 11))
            lines += body
        counts = (f"{len(self._messages(kind))} {kind}" for kind in ("passed", "warned", "skipped", "failed"))
        return "\n".join([f"{self.method}: {', '.join(counts)}", *lines])


def warn(message: str) -> None:
    """Emit a `CheckWarning`."""
    warnings.warn(message, CheckWarning, stacklevel=3)
