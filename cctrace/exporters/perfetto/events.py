"""Rows of the views a trace is drawn from, as packets of Perfetto.

The rows come window by window of time. A window becomes one packet of names and stacks,
and a packet for each begin, end, moment or value, track by track and in order. A slice
that ends in a later window has its end carried there.

Source: perfetto's protos/perfetto/trace/track_event/track_event.proto.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from cctrace.exporters.perfetto import wire
from cctrace.exporters.perfetto.groups import group
from cctrace.exporters.perfetto.interned import Interned, Stacks
from cctrace.exporters.perfetto.lanes import OPEN_NS, Lanes
from cctrace.exporters.perfetto.nesting import Placed
from cctrace.exporters.perfetto.tracks import SEQUENCE, Place, Tracks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Flags = npt.NDArray[np.bool_]

# Columns that say where and what; any other one is an argument of the event.
_WHERE: Final = ("pid", "tid", "section", "track", "unit")
_WHAT: Final = frozenset(
    {*_WHERE, "run", "is_lane", "ts_ns", "dur_ns", "is_instant", "name", "category"}
    | {"stack_id", "wait_flow", "device_flow", "value"}
)
_AT_ONCE: Final = 32_768  # messages; their bytes are laid out side by side first
_ON_THREAD: Final = Placed(is_own=False, is_lane=False)


def _number(message: Any, name: str) -> int:
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    return number


_PACKET: Final = _number(protos.Trace, "packet")
_TIMESTAMP: Final = _number(protos.TracePacket, "timestamp")
_TRACK_EVENT: Final = _number(protos.TracePacket, "track_event")
_TYPE: Final = _number(protos.TrackEvent, "type")
_TRACK: Final = _number(protos.TrackEvent, "track_uuid")
_NAME: Final = _number(protos.TrackEvent, "name_iid")
_CATEGORY: Final = _number(protos.TrackEvent, "category_iids")
_VALUE: Final = _number(protos.TrackEvent, "double_counter_value")
_FLOW: Final = _number(protos.TrackEvent, "flow_ids")
_CALLSTACK: Final = _number(protos.TrackEvent, "callstack_iid")
_ARGUMENT: Final = _number(protos.TrackEvent, "debug_annotations")
_ARGUMENT_NAME: Final = _number(protos.DebugAnnotation, "name_iid")
_BOOL: Final = _number(protos.DebugAnnotation, "bool_value")
_INT: Final = _number(protos.DebugAnnotation, "int_value")
_DOUBLE: Final = _number(protos.DebugAnnotation, "double_value")
_TEXT: Final = _number(protos.DebugAnnotation, "string_value_iid")

# What all packets of events begin with.
_HEAD: Final = protos.TracePacket(
    trusted_packet_sequence_id=SEQUENCE,
    sequence_flags=protos.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE,
).SerializeToString(deterministic=True)


def _none() -> Ints:
    return np.zeros(0, np.int64)


@dataclass
class _Ends:
    """Ends of slices that are still to be written.

    Attributes:
        at_ns: When.
        uuid: On which track.
        place: Number of its place.
        row: Number of the slice within its view.
        is_empty: It is when the slice began.
    """

    at_ns: Ints = field(default_factory=_none)
    uuid: Ints = field(default_factory=_none)
    place: Ints = field(default_factory=_none)
    row: Ints = field(default_factory=_none)
    is_empty: Flags = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __getitem__(self, chosen: Flags) -> _Ends:
        return _Ends(*(getattr(self, one.name)[chosen] for one in fields(self)))

    def __add__(self, other: _Ends) -> _Ends:
        pairs = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return _Ends(*(np.concatenate(pair) for pair in pairs))


class Events:
    """Makes packets of the rows of one view.

    Args:
        tracks: Tracks of the trace.
        stacks: Stacks of the run.
        may_cross: Slices of any track of this view may cross; otherwise the column
            ``is_lane`` tells.
        placed: What is not drawn on its thread's own track although the view has it on
            one of those that nest; see :func:`cctrace.exporters.perfetto.nesting.place`.
            None: the view's tracks are beside the thread's.
    """

    def __init__(
        self,
        tracks: Tracks,
        stacks: Stacks,
        *,
        may_cross: bool,
        placed: Mapping[tuple[Any, Any, str], Placed] | None = None,
    ) -> None:
        self._tracks = tracks
        self._stacks = stacks
        self._may_cross = may_cross
        self._placed = placed
        self._rows = 0
        self._ends = _Ends()
        self._places: dict[Place, int] = {}
        self._lanes: dict[Place, Lanes] = {}

    def slices(self, table: Any, until_ns: int) -> Iterator[Any]:
        """Packets of the slices and moments that start in the next window.

        Args:
            table: Rows in order of start, the longest first, and of depth.
            until_ns: End of the window.

        Yields:
            Bytes of the trace.
        """
        starts = _ints(table["ts_ns"])
        is_endless = _flags(table["dur_ns"].is_null())
        ends = np.where(is_endless, OPEN_NS, starts + _ints(table["dur_ns"]))
        is_instant = np.zeros(len(starts), np.bool_)
        if "is_instant" in table.column_names:
            is_instant = _flags(table["is_instant"])
        places, uuids = self._draw(table, starts, ends)
        rows = _Rows(starts, ends, uuids, places, is_endless | is_instant)
        interned = Interned(self._stacks)
        begins = [
            self._begins(table.slice(at, _AT_ONCE), interned, *of_these)
            for at, of_these in _slices(starts, uuids, is_instant)
        ]
        yield self._tracks.described()
        yield interned.packet()
        yield self._in_order(begins, rows, until_ns)
        self._rows += len(starts)

    def values(self, table: Any) -> Iterator[Any]:
        """Packets of the values of counters in the next window.

        Args:
            table: Rows in order of time.

        Yields:
            Bytes of the trace.
        """
        number, found = group(table, [name for name in _WHERE if name in table.column_names])
        uuids = np.array([self._tracks.uuid(Place(**at)) for at in found], np.int64)
        order = np.argsort(number, kind="stable")
        at_ns, values = _ints(table["ts_ns"])[order], _doubles(table["value"])[order]
        uuids = uuids[number][order]
        yield self._tracks.described()
        yield Interned(self._stacks).packet()
        for _, (at, track, value) in _slices(at_ns, uuids, values):
            event = [
                _kind(protos.TrackEvent.TYPE_COUNTER, len(at)),
                wire.varint_field(_TRACK, track),
                wire.fixed64_field(_VALUE, value),
            ]
            yield _content(_packets(at, event))

    def _draw(self, table: Any, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """Numbers of the rows' places, and of their tracks."""
        names = [name for name in (*_WHERE, "is_lane") if name in table.column_names]
        number, found = group(table, names)
        places, tracks = np.empty(len(found), np.int64), np.empty(len(found), np.int64)
        lanes = []
        for i, at in enumerate(found):
            is_lane = bool(at.pop("is_lane", False)) or self._may_cross
            place = Place(**at)
            if self._placed is not None and not is_lane and place.track is not None:
                how = self._placed.get((place.pid, place.tid, place.track), _ON_THREAD)
                is_lane = how.is_lane
                place = place if how.is_own else place._replace(track=None)
            place = place._replace(is_lane=is_lane)
            places[i] = self._places.setdefault(place, len(self._places))
            tracks[i] = self._tracks.uuid(place)
            if is_lane:
                lanes.append(place)
        of_row, uuids = places[number], tracks[number]
        for place in dict.fromkeys(lanes):
            rows = np.flatnonzero(of_row == self._places[place])
            taken = self._lanes.setdefault(place, Lanes()).take(starts[rows], ends[rows])
            known = [self._tracks.uuid(place, lane) for lane in range(int(taken.max()) + 1)]
            uuids[rows] = np.array(known, np.int64)[taken]
        return of_row, uuids

    def _in_order(self, begins: list[Any], rows: _Rows, until_ns: int) -> Any:
        """Begins, and the ends that come before the end of the window, track by track."""
        number = self._rows + np.arange(len(rows.start_ns))
        closed = np.flatnonzero(~rows.is_endless)
        is_empty = rows.end_ns[closed] == rows.start_ns[closed]
        ends = self._ends + _Ends(
            rows.end_ns[closed], rows.uuid[closed], rows.place[closed], number[closed], is_empty
        )
        is_due = ends.at_ns < until_ns
        self._ends, ends = ends[~is_due], ends[is_due]
        # What is shorter than a ns begins and ends in one go; any other end comes before
        # what begins at its moment, and the innermost first.
        order = np.lexsort(
            (
                np.concatenate([2 * number, np.where(ends.is_empty, 2 * ends.row + 1, -ends.row)]),
                np.concatenate([np.ones(len(number), np.bool_), ends.is_empty]),
                np.concatenate([rows.start_ns, ends.at_ns]),
                np.concatenate([rows.place, ends.place]),
            )
        )
        messages = [*begins]
        for _, (at, uuid) in _slices(ends.at_ns, ends.uuid):
            event = [_kind(protos.TrackEvent.TYPE_SLICE_END, len(at))]
            messages.append(_packets(at, [*event, wire.varint_field(_TRACK, uuid)]))
        if not messages:
            return b""
        return _content(pa.concat_arrays(messages).take(pa.array(order)))

    def _begins(
        self, table: Any, interned: Interned, starts: Ints, uuids: Ints, is_instant: Flags
    ) -> Any:
        kinds = np.where(
            is_instant, protos.TrackEvent.TYPE_INSTANT, protos.TrackEvent.TYPE_SLICE_BEGIN
        )
        event = [wire.varint_field(_TYPE, kinds), wire.varint_field(_TRACK, uuids)]
        names = table.column_names
        numbered = [
            (_NAME, interned.names(table["name"].combine_chunks())),
            (_CATEGORY, interned.categories(table["category"].combine_chunks())),
        ]
        if "stack_id" in names:
            numbered.append((_CALLSTACK, interned.callstacks(table["stack_id"].combine_chunks())))
        event += [wire.varint_field(n, iids, iids > 0) for n, iids in numbered if iids.any()]
        for flow in (name for name in ("wait_flow", "device_flow") if name in names):
            present = _flags(table[flow].is_valid())
            if present.any():
                event.append(wire.fixed64_field(_FLOW, _ints(table[flow]), present))
        arguments = [name for name in names if name not in _WHAT]
        iids = interned.argument_names(arguments)
        for name, iid in zip(arguments, iids, strict=True):
            event += _argument(table[name].combine_chunks(), iid, interned)
        return _packets(starts, event)


@dataclass(frozen=True)
class _Rows:
    """When and where the slices of a batch are.

    Attributes:
        start_ns: Starts.
        end_ns: Ends.
        uuid: Tracks.
        place: Number of the place within the batch.
        is_endless: It has no end to be written.
    """

    start_ns: Ints
    end_ns: Ints
    uuid: Ints
    place: Ints
    is_endless: Flags


def _slices(*columns: Any) -> Iterator[tuple[int, list[Any]]]:
    """Rows of some columns, so many at once as messages of take little memory."""
    for at in range(0, len(columns[0]), _AT_ONCE):
        yield at, [column[at : at + _AT_ONCE] for column in columns]


def _argument(column: Any, iid: int, interned: Interned) -> Sequence[wire.Piece]:
    """A debug annotation; nothing where all values are NULL."""
    present = _flags(column.is_valid())
    if not present.any():
        return []
    kind = column.type
    if pa.types.is_floating(kind):
        value = wire.fixed64_field(_DOUBLE, _doubles(column), present)
    elif pa.types.is_boolean(kind):
        value = wire.varint_field(_BOOL, _ints(column.cast(pa.int8())), present)
    elif pa.types.is_integer(kind):
        value = wire.varint_field(_INT, _ints(column), present)
    else:
        value = wire.varint_field(_TEXT, interned.texts(column), present)
    name = wire.varint_field(_ARGUMENT_NAME, np.full(len(column), iid), present)
    return wire.message_field(_ARGUMENT, [name, value], present)


def _packets(at_ns: Ints, event: Sequence[wire.Piece]) -> Any:
    """Packets of track events, each as bytes of the trace."""
    head = wire.constant(_HEAD, len(at_ns))
    stamp = wire.varint_field(_TIMESTAMP, at_ns)
    whole = [head, stamp, *wire.message_field(_TRACK_EVENT, event)]
    return wire.join(wire.message_field(_PACKET, whole))


def _kind(kind: int, count: int) -> wire.Piece:
    return wire.constant(protos.TrackEvent(type=kind).SerializeToString(), count)


def _content(messages: Any) -> Any:
    """The bytes of all messages, one after the other."""
    first, last = messages.offset, messages.offset + len(messages)
    offsets = np.frombuffer(messages.buffers()[1], np.int64)[first : last + 1]
    if not len(messages):
        return b""
    return messages.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _flags(column: Any) -> Flags:
    """Booleans, none of them NULL."""
    return np.asarray(column, np.bool_)


def _ints(column: Any) -> Ints:
    """Values as 64-bit integers, 0 for NULL."""
    return np.asarray(pc.fill_null(column, 0)).astype(np.int64)


def _doubles(column: Any) -> npt.NDArray[np.float64]:
    return np.asarray(pc.fill_null(column, 0.0), np.float64)
