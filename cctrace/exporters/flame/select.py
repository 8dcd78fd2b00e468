"""What of a run a flamegraph shows: rows of the library's reports, and their paths.

The sums are SQL (queries/reports/flame_*.sql): what arrives here is one row for each
distinct place, however many events there were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cctrace.errors import EXIT_FAILED, EXIT_USAGE, CctraceError
from cctrace.exporters.flame.frames import DEFAULT_LEVELS, Naming, stack_frame
from cctrace.exporters.flame.graph import make_flame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cctrace.exporters.flame.frames import Frame, Path
    from cctrace.exporters.flame.graph import Flame
    from cctrace.store.library import ParamValue
    from cctrace.store.session import Session

# Report and column of each weight.
_SOURCES: Final = {
    "wall": ("flame_wall", "dur_ns"),
    "blocked": ("flame_crossings", "dur_ns"),
    "bubble": ("flame_bubbles", "dur_ns"),
    "bytes": ("flame_crossings", "copied_bytes"),
    "count": ("flame_crossings", "calls"),
}
_EMPTY: Final = {
    "wall": "no time in steps",
    "blocked": "no time in calls that cross the bridge",
    "bubble": "no bubble: no time for which the device is known to be idle",
    "bytes": "no copy of known size",
    "count": "no call that crosses the bridge",
}
_SHOWN_THREADS: Final = 8


@dataclass(frozen=True)
class Selection:
    """What to show.

    Attributes:
        weight: wall, blocked, bubble, bytes or count.
        levels: Of ``frames.LEVELS``, outermost first.
        by_name: Make one frame of processes, and of threads, that have one name.
        phase: Only steps of this phase.
        first_step: Only steps from this number on.
        last_step: Only steps up to this number.
        thread: Only threads of this number or name.
    """

    weight: str = "wall"
    levels: tuple[str, ...] = DEFAULT_LEVELS
    by_name: bool = False
    phase: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    thread: str | None = None

    @property
    def params(self) -> dict[str, ParamValue]:
        """Parameters of the reports."""
        return {
            "phase": self.phase,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "thread": self.thread,
        }

    @property
    def has_steps(self) -> bool:
        """Whether some steps are chosen."""
        return (self.phase, self.first_step, self.last_step) != (None, None, None)


@dataclass(frozen=True)
class Selected:
    """A flamegraph, and what it cannot show.

    Attributes:
        flame: The flamegraph.
        notes: Sentences on what has no weight here though it happened.
    """

    flame: Flame
    notes: tuple[str, ...]


def select(session: Session, selection: Selection, *, may_be_empty: bool = False) -> Selected:
    """Read what ``selection`` names from a run.

    Args:
        session: A session on one run.
        selection: What to show.
        may_be_empty: A run that has nothing of the weight is no error.

    Raises:
        CctraceError: Exit code 1 where the run has nothing of the weight; 2 where no
            step or thread is what was asked for; 4 where a part is damaged.
    """
    steps = _steps(session, selection)
    report, column = _SOURCES[selection.weight]
    if "part" in selection.levels:
        report = "flame_wall_parts"
    rows = session.report(report, selection.params).arrow().to_pylist()
    if not may_be_empty and not any(row[column] for row in rows):
        raise _nothing(session, selection, report)
    naming = make_naming(session, selection, rows)
    paths = ((naming.path(row), (int(row[column]),)) for row in rows)
    return Selected(make_flame(selection.weight, paths, (steps,)), tuple(_notes(selection, rows)))


def _steps(session: Session, selection: Selection) -> int:
    """How many steps are chosen; of the weight wall those that have a length."""
    params: dict[str, ParamValue] = {
        "first_step": selection.first_step,
        "last_step": selection.last_step,
    }
    rows = session.report("flame_steps", params).arrow().to_pylist()
    of_phase = [row for row in rows if selection.phase in {None, row["phase"]}]
    if selection.phase is not None and not of_phase:
        phases = sorted({row["phase"] for row in rows} - {None})
        raise CctraceError(
            f"no step of {session.path} is of the phase {selection.phase!r}",
            f"phases of this run: {', '.join(phases) or 'none is told'}",
            EXIT_USAGE,
        )
    if selection.has_steps and not any(row["chosen_steps"] for row in of_phase):
        known = [(row["first_step"], row["last_step"]) for row in of_phase]
        raise CctraceError(
            f"no step of {session.path} is within these numbers",
            f"steps are numbered {min(a for a, _ in known)} to {max(b for _, b in known)}"
            if known
            else "no step was found in this run",
            EXIT_USAGE,
        )
    if selection.weight != "wall":
        return sum(row["chosen_steps"] for row in of_phase)
    if not any(row["timed_steps"] for row in of_phase):
        raise CctraceError(
            f"{session.path} has no step of known length: the weight wall is the time of steps",
            "--weight blocked, bubble, bytes or count needs none; docs/engines.md says how "
            "steps are found",
            EXIT_FAILED,
        )
    own = [r for r in of_phase if selection.thread in {None, str(r["tid"]), r["thread"]}]
    return sum(row["timed_steps"] for row in own)


def _nothing(session: Session, selection: Selection, report: str) -> CctraceError:
    """Why there is nothing to show."""
    if selection.thread is not None:
        rows = session.report(report, {**selection.params, "thread": None}).arrow().to_pylist()
        threads = sorted({(row["tid"], row["thread"] or "?") for row in rows if row["tid"]})
        shown = ", ".join(f"{name} ({tid})" for tid, name in threads[:_SHOWN_THREADS])
        more = len(threads) - _SHOWN_THREADS
        return CctraceError(
            f"{session.path} has nothing of thread {selection.thread!r}",
            f"threads: {shown or 'none'}" + (f" and {more} more" if more > 0 else ""),
            EXIT_USAGE,
        )
    where = " in these steps" if selection.has_steps else ""
    nothing = f"{session.path} has {_EMPTY[selection.weight]}{where}"
    return CctraceError(nothing, None, EXIT_FAILED)


def make_naming(session: Session, selection: Selection, rows: Sequence[dict[str, Any]]) -> Naming:
    """Names for ``rows``, with the stacks they mention."""
    wanted = {row["stack_id"] for row in rows if row["stack_id"] is not None}
    stacks = _stacks(session, wanted) if wanted and "stack" in selection.levels else {}
    return Naming(selection.levels, selection.by_name, stacks)


def _stacks(session: Session, wanted: set[int]) -> dict[int, Path]:
    """Frames of some stacks, outermost first."""
    found: dict[int, Path] = {}
    made: dict[tuple[Any, ...], Frame] = {}  # stacks share most of their frames
    for batch in session.sql("SELECT stack_id, frames FROM stacks").batches():
        ids, lists = batch.column(0).to_pylist(), batch.column(1)
        # The frames of all lists one after the other, and where each list ends.
        columns = [column.to_pylist() for column in lists.flatten().flatten()]
        rows = list(zip(*columns, strict=True))
        end = 0
        for stack_id, length in zip(ids, lists.value_lengths().to_pylist(), strict=True):
            start, end = end, end + (length or 0)
            if stack_id in wanted and stack_id not in found:
                for row in rows[start:end]:
                    if row not in made:
                        made[row] = stack_frame(*row)
                found[stack_id] = tuple(made[row] for row in reversed(rows[start:end]))
    return found


def _notes(selection: Selection, rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    weight = selection.weight
    if weight == "blocked" and (left := sum(row["open_calls"] for row in rows)):
        yield f"calls that never returned: {left:,}; they have no length, and are not shown"
    if weight == "bytes":
        copies = sum(int(row["calls"]) for row in rows if row["class"] == "copy")
        if left := copies - sum(row["sized_calls"] for row in rows):
            yield f"copies of unknown size: {left:,} of {copies:,}; they are not shown"
