"""What a check of ``cctrace doctor`` is, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

OK: Final = "ok"
WARN: Final = "warn"
MISSING: Final = "missing"

Context = TypeVar("Context")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        status: ``ok``, ``warn`` (works, with a limit) or ``missing``.
        found: What was found, one line.
        fix: What to do about it, exactly; None where nothing is to be done.
    """

    status: str
    found: str
    fix: str | None = None


@dataclass(frozen=True)
class Check:
    """One check and what it found.

    Attributes:
        name: Short name, unique.
        needed: NVTX tracing does not work without it.
        finding: What it found.
    """

    name: str
    needed: bool
    finding: Finding


class NotTriedError(Exception):
    """A check has nothing to try with; another one says why."""


class CheckList(Generic[Context]):
    """Checks in the order of the report: functions under ``@checks.add(name)``.

    Attributes:
        entries: Name, whether NVTX tracing needs it, and function of each.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[str, bool, Callable[[Context], Finding]]] = []

    def add(
        self, name: str, *, needed: bool = False
    ) -> Callable[[Callable[[Context], Finding]], Callable[[Context], Finding]]:
        """Add the function below to the report under ``name``."""

        def register(function: Callable[[Context], Finding]) -> Callable[[Context], Finding]:
            self.entries.append((name, needed, function))
            return function

        return register

    def run(self, context: Context) -> list[Check]:
        """Run them all. Never raises: a check that does is a finding itself."""
        checks = []
        for name, needed, function in self.entries:
            try:
                finding = function(context)
            except NotTriedError:
                finding = Finding(MISSING, "not tried; see what is missing above")
            except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
                finding = Finding(MISSING, f"the check failed: {type(error).__name__}: {error}")
            checks.append(Check(name, needed, finding))
        return checks
