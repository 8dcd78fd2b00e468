"""A run as a trace for Perfetto's user interface and its trace processor.

What is drawn where comes from the views `_trace_*` of the SQL library; this module has
them in order and writes what no view has: the clocks, what ran, and what was lost.

Source: https://perfetto.dev/docs/reference/synthetic-track-event and perfetto's
protos/perfetto/trace/{trace_packet,clock_snapshot,trace_attributes}.proto.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.exporters.perfetto.events import Events
from cctrace.exporters.perfetto.interned import Stacks
from cctrace.exporters.perfetto.lanes import OPEN_NS
from cctrace.exporters.perfetto.nesting import place
from cctrace.exporters.perfetto.tracks import Tracks, arguments, packet
from cctrace.store.connection import quote
from cctrace.store.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from cctrace.store.manifest import Anchor
    from cctrace.store.run import Run

_MEMORY: Final = "1GiB"  # what DuckDB may use; beyond it data is spilled
_WINDOW_ROWS: Final = 200_000  # encoded at once: some 100 bytes each, and as much again
# Of `runs`; the others say where the run is kept, not what ran.
_FACTS: Final = (
    "command", "ended", "exit_code", "events", "lost", "tee", "gpu_cc", "gpu_name",
    "gpu_driver", "attached", "cctrace_version",
)  # fmt: skip
_RUN_UUID: Final = 2**32  # beyond what Tracks gives out


class _View(NamedTuple):
    """A view that is drawn.

    Attributes:
        name: Its name.
        may_cross: Its slices may cross on any of its tracks.
        is_counter: It has values, not slices.
        times: Relation whose times tell how to cut it; itself unless given.
    """

    name: str
    may_cross: bool = True
    is_counter: bool = False
    times: str | None = None


_NESTED: Final = _View("_trace_nested")
_CALLS: Final = _View("_trace_calls", may_cross=False, times="_trace_slices")
# Tracks of a process are in this order.
_VIEWS: Final = (
    _View("_trace_steps"),
    _View("_trace_device"),
    _View("_trace_counters", is_counter=True),
    _CALLS,
    _View("_trace_ranges"),
    _View("_trace_waiting"),
    _View("_trace_host"),
    _View("_trace_facts"),
)
# What the order of rows begins with, the longest first; the other columns follow, so that
# it is the same each time.
_ORDER: Final = ("ts_ns", "dur_ns", "depth")


def write_perfetto(run: Run, stream: BinaryIO) -> None:
    """Write a run as a Perfetto trace.

    The same run gives the same bytes. What is in memory does not grow with the run, but
    for its threads and stacks.

    Args:
        run: The run.
        stream: Where to write.

    Raises:
        CctraceError: Exit code 4 where a part is damaged or gone, or a time is negative.
    """
    with Session([run], memory_limit=_MEMORY) as session:
        stream.writelines(_trace(session, run))


def _trace(session: Session, run: Run) -> Iterator[Any]:
    for anchor in (run.manifest.start, run.manifest.stop):
        if anchor is not None:
            _refuse_negative(anchor.monotonic_ns, run, "its start or stop")
            yield _clocks(anchor)
    yield from _facts(session, run)
    tracks = Tracks()
    for row in _rows(session, "processes"):
        tracks.add_process(row)
    for row in _rows(session, "threads"):
        tracks.add_thread(row)
    yield tracks.described()
    stacks = Stacks(session.sql("SELECT * FROM stacks ORDER BY ALL").arrow())
    for view in _VIEWS:
        placed = place(partial(_windows, session, _NESTED)) if view is _CALLS else None
        events = Events(tracks, stacks, may_cross=view.may_cross, placed=placed)
        for table, until_ns in _windows(session, view):
            yield from events.values(table) if view.is_counter else events.slices(table, until_ns)


def _rows(session: Session, table: str) -> Iterator[dict[str, Any]]:
    for batch in session.sql(f"SELECT * FROM {quote(table)} ORDER BY ALL").batches():  # noqa: S608 - quoted
        yield from batch.to_pylist()


def _windows(session: Session, view: _View) -> Iterator[tuple[Any, int]]:
    """Rows of a view in order, in windows of time that hold some :data:`_WINDOW_ROWS`.

    Yields:
        A ``pyarrow.Table``, and the end of its window, ns.
    """
    source = quote(view.name)
    times = quote(view.times or view.name)
    [(rows,)] = session.sql(f"SELECT count(*) FROM {times}").fetchall()  # noqa: S608 - quoted
    parts = -(-rows // _WINDOW_ROWS)
    shares = ", ".join(str(part / parts) for part in range(1, parts))
    cuts = []
    if shares:
        query = f"SELECT quantile_disc(ts_ns, [{shares}]) FROM {times}"  # noqa: S608 - quoted
        [(cuts,)] = session.sql(query).fetchall()
    columns = session.sql(f"SELECT * FROM {source}").columns  # noqa: S608 - quoted
    first = [name for name in _ORDER if name in columns]
    order = ", ".join(
        f"{quote(name)} {'DESC' if name == 'dur_ns' else 'ASC'} NULLS FIRST"
        for name in (*first, *(name for name in columns if name not in first))
    )
    edges = [-(2**63), *sorted(set(cuts)), OPEN_NS]
    for from_ns, until_ns in pairwise(edges):
        where = "ts_ns >= $from_ns AND ts_ns < $until_ns"
        found = session.sql(
            f"SELECT * FROM {source} WHERE {where} ORDER BY {order}",  # noqa: S608 - quoted
            {"from_ns": from_ns, "until_ns": until_ns},
        ).arrow()
        if found.num_rows:
            _refuse_negative(found["ts_ns"][0].as_py(), session.runs[0], view.name)
        if found.num_rows or until_ns == OPEN_NS:
            yield found, until_ns


def _refuse_negative(ts_ns: int, run: Run, where: str) -> None:
    """A trace's times are unsigned."""
    if ts_ns < 0:
        raise CctraceError(
            f"{run.path} has a negative time, {ts_ns} ns ({where}), which no trace can hold",
            "import the file it came from again: its times are then moved to 0 and later",
            EXIT_BAD_DATA,
        )


def _clocks(anchor: Anchor) -> bytes:
    """One moment on three clocks; the trace's own is the run's.

    A clock on which it is before 0 is left out: times are unsigned.
    """
    told = (
        (protos.BUILTIN_CLOCK_MONOTONIC, anchor.monotonic_ns),
        (protos.BUILTIN_CLOCK_REALTIME, anchor.realtime_ns),
        (protos.BUILTIN_CLOCK_BOOTTIME, anchor.boottime_ns),
    )
    snapshot = protos.ClockSnapshot(primary_trace_clock=protos.BUILTIN_CLOCK_MONOTONIC)
    for clock, value_ns in told:
        if value_ns >= 0:
            snapshot.clocks.add(clock_id=clock, timestamp=value_ns)
    return packet(clock_snapshot=snapshot)


def _facts(session: Session, run: Run) -> Iterator[bytes]:
    """What ran and what was lost: as attributes of the trace, and as a slice of its own."""
    [row] = _rows(session, "runs")
    facts = [(name, row[name]) for name in _FACTS]
    losses = run.losses
    facts += [(f"lost {reason}", n) for reason, n in sorted(losses.lost.items())]
    facts += [(f"incomplete {reason}", n) for reason, n in sorted(losses.impaired.items())]
    attributes = protos.TraceAttributes()
    for name, value in facts:
        if isinstance(value, int):
            attributes.attribute.add(key=f"cctrace {name}", long_value=value)
        elif value is not None:
            attributes.attribute.add(key=f"cctrace {name}", string_value=value)
    yield packet(trace_attributes=attributes)
    yield packet(track_descriptor=protos.TrackDescriptor(uuid=_RUN_UUID, name="run"))
    kinds = protos.TrackEvent
    begin = protos.TrackEvent(type=kinds.TYPE_SLICE_BEGIN, track_uuid=_RUN_UUID, name="run")
    begin.categories.append("runs")
    begin.debug_annotations.extend(arguments(facts))
    stop = run.manifest.stop
    yield _event(run.manifest.start.monotonic_ns, begin)
    if stop is not None:
        end = protos.TrackEvent(type=kinds.TYPE_SLICE_END, track_uuid=_RUN_UUID)
        yield _event(stop.monotonic_ns, end)


def _event(at_ns: int, event: Any) -> bytes:
    return packet(
        timestamp=at_ns, timestamp_clock_id=protos.BUILTIN_CLOCK_MONOTONIC, track_event=event
    )
