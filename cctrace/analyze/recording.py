"""Take stretches of consecutive steps out of a run: their calls, waits and device work."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cctrace.analyze.graph import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.store.session import Session

DEFAULT_WAKE_NS = 20_000.0  # until a woken thread runs, where the run does not tell
WARM_UP_STEPS = 3  # until what was under way before the stretch no longer matters
_STRETCHES = 6  # evenly spread over a run that is too long to be replayed whole
_LEAST_STEPS = 12  # of a stretch, the warm-up included
_PROBE_STEPS = 50  # events are counted in so many steps to size the stretches


@dataclass(frozen=True)
class Step:
    """One step of the loop.

    Attributes:
        step_id: As in the view ``steps``.
        pid: Process.
        tid: Thread that drives it.
        ts_ns: Start, ns.
        period_ns: Until the next one's start, ns.
        phase: prefill, decode, ...; None: not told.
    """

    step_id: int
    pid: int
    tid: int
    ts_ns: int
    period_ns: int
    phase: str | None


@dataclass(frozen=True)
class Wait:
    """A thread was off the CPU outside of CUDA calls: blocked, not merely ready to run."""

    pid: int
    tid: int
    ts_ns: int
    dur_ns: int
    waker_tid: int | None

    @property
    def end_ns(self) -> int:
        """When it was woken, ns."""
        return self.ts_ns + self.dur_ns


@dataclass
class Recording:
    """What was recorded of a stretch.

    Attributes:
        steps: Its steps in order.
        calls: CUDA calls by (pid, tid), by start.
        waits: Waits by (pid, tid), by start.
        activity: (start, length) on the device, ns, by correlation_id, by process.
        counted: Processes whose launches were counted rather than recorded.
        wake_ns: How long a woken thread waits for a CPU, typically, ns.
    """

    steps: list[Step]
    calls: dict[tuple[int, int], list[Call]] = field(default_factory=dict)
    waits: dict[tuple[int, int], list[Wait]] = field(default_factory=dict)
    activity: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)
    wake_ns: float = DEFAULT_WAKE_NS


# -- which steps -----------------------------------------------------------------------


def load_steps(session: Session, run_label: str) -> list[Step]:
    """Return the steps of the thread whose steps fill the most time, by start."""
    rows = session.sql(
        "SELECT step_id, pid, tid, ts_ns, period_ns, phase FROM steps "
        "WHERE run = $run AND period_ns IS NOT NULL ORDER BY ts_ns",
        {"run": run_label},
    ).fetchall()
    by_thread: dict[tuple[int, int], list[Step]] = defaultdict(list)
    for row in rows:
        step = Step(*row)
        by_thread[step.pid, step.tid].append(step)
    if not by_thread:
        return []
    return max(by_thread.values(), key=lambda steps: sum(step.period_ns for step in steps))


def unbroken(steps: Sequence[Step]) -> list[list[Step]]:
    """Cut steps into runs of steps that follow each other without a pause."""
    found: list[list[Step]] = []
    for step in steps:
        if found and found[-1][-1].ts_ns + found[-1][-1].period_ns == step.ts_ns:
            found[-1].append(step)
        else:
            found.append([step])
    return found


def choose(steps: Sequence[Step], events: float, max_events: int) -> list[list[Step]]:
    """Choose the stretches to replay: all of a short run, else some spread over it.

    Args:
        steps: All steps, by start.
        events: Events of a step on average.
        max_events: So many events at most, about.
    """
    pieces = [piece for piece in unbroken(steps) if len(piece) > WARM_UP_STEPS]
    total = sum(len(piece) for piece in pieces)
    affordable = max(_LEAST_STEPS, int(max_events / max(1.0, events)))
    if total <= affordable:
        return pieces
    length = max(_LEAST_STEPS, affordable // _STRETCHES)
    count = max(1, min(_STRETCHES, affordable // length))
    places = [(piece, at) for piece in pieces for at in range(len(piece))]
    found: list[list[Step]] = []
    for number in range(count):
        piece, at = places[min(len(places) - 1, (2 * number + 1) * len(places) // (2 * count))]
        first = max(0, min(at - length // 2, len(piece) - length))
        chosen = piece[first : first + length]
        if len(chosen) > WARM_UP_STEPS and (not found or found[-1][-1].ts_ns < chosen[0].ts_ns):
            found.append(chosen)
    return found


# -- what was recorded of them ----------------------------------------------------------


def count_events(session: Session, run_label: str, steps: Sequence[Step]) -> float:
    """Return how many events a step has, on average of some in the middle."""
    first = max(0, len(steps) // 2 - _PROBE_STEPS // 2)
    some = steps[first : first + _PROBE_STEPS]
    [(count,)] = session.sql(
        "SELECT count(*) FROM cuda_api WHERE run = $run AND depth = 0 "
        "AND ts_ns >= $from_ns AND ts_ns < $until_ns",
        _window(run_label, some),
    ).fetchall()
    return float(count) / max(1, len(some))


def _window(run_label: str, steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "run": run_label,
        "from_ns": steps[0].ts_ns,
        "until_ns": steps[-1].ts_ns + steps[-1].period_ns,
    }


def load(session: Session, run_label: str, steps: list[Step]) -> Recording:
    """Read what was recorded while a stretch of steps ran."""
    params = _window(run_label, steps)
    found = Recording(steps)
    calls = session.sql(
        "SELECT pid, tid, ts_ns, dur_ns, class, api, copy_kind, host_memory, size_bytes, stream, "
        "event, path, size_class, stack_id, correlation_id FROM _replay_calls "
        "WHERE run = $run AND ts_ns >= $from_ns AND ts_ns < $until_ns ORDER BY ts_ns",
        params,
    ).fetchall()
    for row in calls:
        call = Call(*row)
        found.calls.setdefault((call.pid, call.tid), []).append(call)
    waits = session.sql(
        "SELECT pid, tid, ts_ns, dur_ns, waker_tid FROM _replay_waits "
        "WHERE run = $run AND ts_ns >= $from_ns AND ts_ns < $until_ns ORDER BY ts_ns",
        params,
    ).fetchall()
    for row in waits:
        wait = Wait(*row)
        found.waits.setdefault((wait.pid, wait.tid), []).append(wait)
    counted = session.sql(
        "SELECT DISTINCT pid FROM cuda_launches "
        "WHERE run = $run AND ts_ns + window_ns >= $from_ns AND ts_ns < $until_ns",
        params,
    ).fetchall()
    found.counted = {pid for (pid,) in counted}
    [(wake_ns,)] = session.sql(
        "SELECT median(dur_ns) FROM sched WHERE run = $run AND state = 'runnable' "
        "AND waker_tid IS NOT NULL AND ts_ns >= $from_ns AND ts_ns < $until_ns",
        params,
    ).fetchall()
    found.wake_ns = DEFAULT_WAKE_NS if wake_ns is None else float(wake_ns)
    device = session.sql(
        "SELECT pid, correlation_id, ts_ns, dur_ns FROM _replay_device "
        "WHERE run = $run AND ts_ns >= $from_ns AND ts_ns < $until_ns",
        params,
    ).fetchall()
    for pid, correlation_id, ts_ns, dur_ns in device:
        found.activity.setdefault(pid, {})[correlation_id] = (ts_ns, dur_ns)
    return found
