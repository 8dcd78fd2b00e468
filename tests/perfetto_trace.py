"""Reads a Perfetto trace back by the official protobuf classes, and checks what must hold.

What the trace processor would make of it: slices are popped by ends without a name, what
is interned holds until the sequence forgets it, a track has its parent's owner.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

if TYPE_CHECKING:
    from pathlib import Path

INTERNED = {
    "event_names": "name",
    "event_categories": "name",
    "debug_annotation_names": "name",
    "debug_annotation_string_values": "str",
    "function_names": "str",
    "source_paths": "str",
    "mapping_paths": "str",
}


@dataclass
class Slice:
    """A slice, a moment (``end_ns`` equals ``ts_ns``, and ``is_instant``) or a value."""

    track: str
    ts_ns: int
    end_ns: int | None = None
    name: str | None = None
    category: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    flows: list[int] = field(default_factory=list)
    stack: list[tuple[Any, ...]] | None = None
    depth: int = 0
    parent: Slice | None = None
    is_instant: bool = False

    @property
    def dur_ns(self) -> int | None:
        return None if self.end_ns is None else self.end_ns - self.ts_ns


@dataclass
class Trace:
    """What a trace says."""

    slices: list[Slice] = field(default_factory=list)
    values: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    units: dict[str, str] = field(default_factory=dict)
    tracks: dict[int, Any] = field(default_factory=dict)
    clocks: list[dict[int, int]] = field(default_factory=list)
    attributes: dict[str, int | str] = field(default_factory=dict)

    def of(self, category: str) -> list[Slice]:
        """Slices of one category, by start."""
        return sorted((s for s in self.slices if s.category == category), key=lambda s: s.ts_ns)

    def flow_pairs(self) -> dict[int, list[Slice]]:
        """Slices of each flow, in order of time."""
        found = defaultdict(list)
        for made in self.slices:
            for flow in made.flows:
                found[flow].append(made)
        return {flow: sorted(s, key=lambda x: x.ts_ns) for flow, s in found.items()}

    def text(self) -> str:
        """Everything, a line each, for a golden file."""
        lines = [f"clock {sorted(clocks.items())}" for clocks in self.clocks]
        lines += [f"attribute {key} = {value!r}" for key, value in self.attributes.items()]
        lines += [f"track {uuid}: {self.path(uuid)}{_more(track)}"
                  for uuid, track in self.tracks.items()]  # fmt: skip
        for made in sorted(self.slices, key=lambda one: (one.track, one.ts_ns)):
            until = "instant" if made.is_instant else f"{made.dur_ns} ns"
            line = f"{made.track} | {'  ' * made.depth}{made.name!r} {made.ts_ns} {until}"
            line += f" {made.category} {made.args}"
            line += f" flows {made.flows}" if made.flows else ""
            line += f" stack {made.stack}" if made.stack else ""
            lines.append(line)
        for track, values in self.values.items():
            lines.append(f"{track} [{self.units[track]}] {values}")
        return "\n".join(lines) + "\n"

    def path(self, uuid: int) -> str:
        """Names of a track and those above it."""
        track = self.tracks[uuid]
        if track.HasField("process"):
            own = f"{track.process.pid} {track.process.process_name}".strip()
        elif track.HasField("thread"):
            own = f"{track.thread.tid} {track.thread.thread_name}".strip()
        else:
            own = track.name
        return f"{self.path(track.parent_uuid)}/{own}" if track.parent_uuid else own


def _more(track: Any) -> str:
    return f" ({track.description})" if track.description else ""


def parse(path: Path) -> Trace:
    """Read a trace.

    Raises:
        AssertionError: Something that must hold does not.
    """
    reader = _Reader()
    for packet in protos.Trace.FromString(path.read_bytes()).packet:
        reader.read(packet)
    return reader.trace


class _Reader:
    def __init__(self) -> None:
        self.trace = Trace()
        self._interned: dict[str, dict[int, Any]] = {}
        self._clock = 0
        self._open: dict[int, list[Slice]] = defaultdict(list)
        self._last_ns: dict[int, int] = {}

    def read(self, packet: Any) -> None:
        assert packet.trusted_packet_sequence_id == 1
        if packet.sequence_flags & protos.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED:
            self._interned = {}
            self._clock = packet.trace_packet_defaults.timestamp_clock_id
        if packet.HasField("interned_data"):
            _learn(packet.interned_data, self._interned)
        if packet.HasField("clock_snapshot"):
            assert packet.clock_snapshot.primary_trace_clock == protos.BUILTIN_CLOCK_MONOTONIC
            clocks = {c.clock_id: c.timestamp for c in packet.clock_snapshot.clocks}
            self.trace.clocks.append(clocks)
        for fact in packet.trace_attributes.attribute:
            is_text = fact.HasField("string_value")
            self.trace.attributes[fact.key] = fact.string_value if is_text else fact.long_value
        if packet.HasField("track_descriptor"):
            self._track(packet.track_descriptor)
        if packet.HasField("track_event"):
            self._event(packet, packet.track_event)

    def _track(self, track: Any) -> None:
        assert track.uuid > 0
        assert track.uuid not in self.trace.tracks
        assert not track.parent_uuid or track.parent_uuid in self.trace.tracks
        self.trace.tracks[track.uuid] = track

    def _event(self, packet: Any, event: Any) -> None:
        has_clock = packet.HasField("timestamp_clock_id")
        needs = packet.sequence_flags & protos.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        uses = event.name_iid or event.category_iids or event.callstack_iid or not has_clock
        assert needs or not uses
        clock = packet.timestamp_clock_id if has_clock else self._clock
        assert clock == protos.BUILTIN_CLOCK_MONOTONIC
        uuid, at_ns = event.track_uuid, packet.timestamp
        assert uuid in self.trace.tracks, "described before it is used"
        assert self._last_ns.get(uuid, at_ns) <= at_ns, "a track is in order"
        self._last_ns[uuid] = at_ns
        track = self.trace.path(uuid)
        is_counter = self.trace.tracks[uuid].HasField("counter")
        assert is_counter == (event.type == event.TYPE_COUNTER)
        if is_counter:
            self.trace.values[track].append((at_ns, event.double_counter_value))
            self.trace.units[track] = self.trace.tracks[uuid].counter.unit_name
        elif event.type == event.TYPE_SLICE_END:
            told = {one.name for one, _ in event.ListFields()}
            assert told == {"type", "track_uuid"}, "ends at one moment may change places"
            assert self._open[uuid], "an end has a begin"
            self._open[uuid].pop().end_ns = at_ns
        else:
            self._begin(_slice(event, self._interned, track, at_ns), event, self._open[uuid])

    def _begin(self, made: Slice, event: Any, around: list[Slice]) -> None:
        made.depth = len(around)
        made.parent = around[-1] if around else None
        self.trace.slices.append(made)
        if event.type == event.TYPE_INSTANT:
            made.end_ns, made.is_instant = made.ts_ns, True
        else:
            assert event.type == event.TYPE_SLICE_BEGIN
            around.append(made)


def _learn(data: Any, state: dict[str, dict[int, Any]]) -> None:
    for table, what in INTERNED.items():
        for entry in getattr(data, table):
            assert entry.iid > 0
            assert entry.iid not in state.setdefault(table, {}), "a number is given once"
            value = getattr(entry, what)
            state[table][entry.iid] = value.decode() if isinstance(value, bytes) else value
    for table in ("mappings", "frames", "callstacks"):
        for entry in getattr(data, table):
            assert entry.iid not in state.setdefault(table, {})
            state[table][entry.iid] = entry


def _slice(event: Any, state: dict[str, dict[int, Any]], track: str, at_ns: int) -> Slice:
    made = Slice(track, at_ns)
    if event.HasField("name_iid"):
        made.name = state["event_names"][event.name_iid]
    elif event.HasField("name"):
        made.name = event.name
    categories = [state["event_categories"][iid] for iid in event.category_iids]
    [made.category] = categories + list(event.categories)
    for argument in event.debug_annotations:
        key = argument.name or state["debug_annotation_names"][argument.name_iid]
        kind = argument.WhichOneof("value")
        value = getattr(argument, kind)
        if kind == "string_value_iid":
            value = state["debug_annotation_string_values"][value]
        assert key not in made.args
        made.args[key] = value
    made.flows = list(event.flow_ids)
    if event.callstack_iid:
        ids = state["callstacks"][event.callstack_iid].frame_ids
        made.stack = [_frame(state["frames"][iid], state) for iid in ids]
    return made


def _frame(frame: Any, state: dict[str, dict[int, Any]]) -> tuple[Any, ...]:
    module = None
    if frame.mapping_id:
        assert frame.HasField("rel_pc")
        parts = state["mappings"][frame.mapping_id].path_string_ids
        module = "/".join(state["mapping_paths"][iid] for iid in parts)
    file = state["source_paths"][frame.source_path_iid] if frame.source_path_iid else None
    line = frame.line_number if frame.HasField("line_number") else None
    kind = protos.Frame.Kind.Name(frame.kind) if frame.HasField("kind") else None
    return (state["function_names"][frame.function_name_id], module, file, line, kind)
