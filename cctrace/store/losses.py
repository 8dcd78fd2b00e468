"""Reasons for lost data: what each means and whether it cost an event.

docs/run-format.md lists them for the user. Tests keep the two equal, and these equal
to what the agent and the recorder count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Reason:
    """One value of ``losses.reason``.

    Attributes:
        loses_event: Whether each count is an event missing from the run; where
            not, the event is there and less than whole.
        doc: What happened, and what helps where something does.
    """

    loses_event: bool
    doc: str


REASONS: dict[str, Reason] = {
    "ring_full": Reason(True, "the recorder did not keep up with a thread; raise --buffer-mb"),
    "stack_overflow": Reason(True, "ranges were pushed deeper than a thread's stack holds"),
    "string_table_full": Reason(False, "event kept, its name and domain lost"),
    "reentrant": Reason(True, "event from a signal handler that interrupted another event"),
    "unmatched_pop": Reason(False, "the program popped a range it had not pushed"),
    "truncated_string": Reason(False, "event kept, its name cut"),
    "no_slot": Reason(True, "more threads at once than there was room for"),
    "bad_record": Reason(True, "record in shared memory that makes no sense"),
    "bad_ring": Reason(False, "ring whose positions make no sense; count: rings"),
    "bad_frame": Reason(False, "entry of the stack of open ranges that makes no sense"),
    "bad_dictionary": Reason(False, "entry of the string table that makes no sense"),
    "bad_message": Reason(False, "message on the hand-over socket that makes no sense"),
    "untraced": Reason(False, "process that asked for memory and could not be given or map it"),
    "unknown_key": Reason(False, "event kept; its name was not in the string table"),
    "orphan_end": Reason(True, "end of a start/end range whose start was not seen"),
    "bpf_ring_full": Reason(True, "the recorder did not keep up; raise --bpf-buffer-mb"),
    "bpf_map_full": Reason(True, "more threads, calls or streams at once than there was room for"),
    "program_not_run": Reason(True, "the kernel skipped a probe: another was at work on that CPU"),
    "missed_return": Reason(
        True, "call (or wait) whose end was not seen (longjmp, a second stack)"
    ),
    "missed_entry": Reason(True, "call (or wait) whose begin was not seen, as when attached in it"),
    "nested_too_deep": Reason(True, "call inside more probed calls than are followed"),
    "unreadable_argument": Reason(False, "call kept; an argument of it could not be read"),
    "bad_argument": Reason(False, "call kept; an argument of it made no sense (size, copy kind)"),
    "partial_size": Reason(False, "call kept; its size is of the first copies of a long batch"),
    "ranges_full": Reason(False, "allocation not remembered; copies from it have memory unknown"),
    "late_attach": Reason(False, "library that was probed after its process may have used it"),
    "stack_ring_full": Reason(False, "event kept, its stack lost: too many new ones at once"),
    "stack_map_full": Reason(
        False, "event kept, its stack or the kernel's part of it lost: no room"
    ),
    "stack_truncated": Reason(
        False, "stack kept, cut at 127 native or Python frames; count: stacks"
    ),
    "stack_unreadable": Reason(
        False, "stack kept, cut where a frame could not be read in the kernel; count: stacks"
    ),
    "stack_astray": Reason(
        False, "stack kept, its native part cut where no code lay: no frame pointer; count: stacks"
    ),
    "stack_unresolved": Reason(
        False, "stack kept; Python frames of it have no name: the process was gone; count: frames"
    ),
    "stack_failed": Reason(False, "stack lost by a fault of the recorder; run.json has the error"),
    "stack_unknown": Reason(False, "event kept; what its stack is has not come through"),
    "bad_event": Reason(True, "event of an imported file that makes no sense, left out"),
    "not_in_file": Reason(True, "the tool that made the imported file left these out itself"),
    "disk_full": Reason(True, "no space left in the run's file system"),
    "write_failed": Reason(True, "the run could not be written for another reason"),
    "recorder_error": Reason(True, "a fault of the recorder itself; its warning names it"),
}


@dataclass(frozen=True)
class LossSummary:
    """Losses of a run, by reason.

    Attributes:
        lost: Events missing from the run, by reason, most first.
        impaired: Events that are there and less than whole, by reason, most first.
    """

    lost: dict[str, int]
    impaired: dict[str, int]

    @property
    def lost_total(self) -> int:
        """Events missing from the run."""
        return sum(self.lost.values())


def summarize(rows: Iterable[tuple[str, int]]) -> LossSummary:
    """Add up ``(reason, count)`` pairs; a reason not known here cost events."""
    lost: Counter[str] = Counter()
    impaired: Counter[str] = Counter()
    for name, count in rows:
        reason = REASONS.get(name)
        (lost if reason is None or reason.loses_event else impaired)[name] += count
    return LossSummary(_ordered(lost), _ordered(impaired))


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
