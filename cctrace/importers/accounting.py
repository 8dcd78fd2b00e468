"""What became of every event of an imported file: nothing is left out in silence."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from cctrace.errors import EXIT_BAD_DATA, CctraceError

if TYPE_CHECKING:
    from pathlib import Path

# A hostile file can have as many kinds of events as events.
_MAX_KINDS: Final = 200
_OTHER_KINDS: Final = "other kinds"
_SHOWN_CHARS: Final = 80


def shown(value: object) -> str:
    """A value of the file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


class Accounting:
    """Counts events by kind and by what became of them."""

    def __init__(self) -> None:
        self._expected = 0
        self._fates: dict[str, dict[str, Counter[str]]] = {}

    def expect(self, count: int) -> None:
        """Say how many more events the file has, counted apart from what becomes of them."""
        self._expected += count

    def imported(self, kind: str, table: str, count: int = 1) -> None:
        """Count events that are rows of ``table``."""
        self._count(kind, "imported", table, count)

    def folded(self, kind: str, into: str, count: int = 1) -> None:
        """Count events that are no row of their own but a column of other rows."""
        self._count(kind, "folded", into, count)

    def left_out(self, kind: str, reason: str, count: int = 1) -> None:
        """Count events that are not in the run."""
        self._count(kind, "left_out", reason, count)

    def _count(self, kind: str, fate: str, detail: str, count: int) -> None:
        if not count:
            return
        if kind not in self._fates and len(self._fates) >= _MAX_KINDS:
            kind = _OTHER_KINDS
        fates = self._fates.setdefault(
            kind, {"imported": Counter(), "folded": Counter(), "left_out": Counter()}
        )
        counter = fates[fate]
        if detail not in counter and len(counter) >= _MAX_KINDS:
            detail = _OTHER_KINDS
        counter[detail] += count

    def total(self, fate: str) -> int:
        """Events with that fate, of all kinds: ``imported``, ``folded`` or ``left_out``."""
        return sum(sum(fates[fate].values()) for fates in self._fates.values())

    def as_data(self) -> dict[str, Any]:
        """By kind, JSON types only: ``in_file``, and what became of how many.

        Raises:
            RuntimeError: Some event has no fate, or two: a fault of the importer.
        """
        found: dict[str, Any] = {}
        for kind, fates in sorted(self._fates.items()):
            in_file = sum(sum(counter.values()) for counter in fates.values())
            by_fate = {fate: dict(sorted(counter.items())) for fate, counter in fates.items()}
            found[kind] = {"in_file": in_file, **by_fate}
        told = sum(kind["in_file"] for kind in found.values())
        if told != self._expected:
            raise RuntimeError(f"the file has {self._expected} events, {told} are accounted for")
        return found


class Rejects:
    """What to do with an event that makes no sense.

    Args:
        file: The file, for messages.
        accounting: Counts what is left out.
        skip: Leave such events out; otherwise the first one ends the import.
    """

    def __init__(self, file: Path, accounting: Accounting, *, skip: bool) -> None:
        self._file = file
        self._accounting = accounting
        self._skip = skip
        self.count = 0

    def event(self, kind: str, place: str, why: str, reason: str) -> None:
        """Leave one event out, or end the import.

        Args:
            kind: Kind of event, as in the accounting.
            place: Where in the file it is.
            why: What is wrong with it, with the value.
            reason: The same without the value, to count by.

        Raises:
            CctraceError: Exit code 4, unless such events are to be skipped.
        """
        if not self._skip:
            raise CctraceError(
                f"{self._file}: {place}: {why}",
                "--skip-bad leaves such events out and counts them",
                EXIT_BAD_DATA,
            )
        self.count += 1
        self._accounting.left_out(kind, reason)


def broken(file: Path, place: str, why: str, hint: str | None = None) -> CctraceError:
    """The error of a file that cannot be read on from ``place``."""
    return CctraceError(f"{file}: {place}: {why}", hint, EXIT_BAD_DATA)
