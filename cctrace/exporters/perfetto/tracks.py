"""The tracks of a Perfetto trace: processes, threads and what is beside them.

A track is described when it is first drawn on. Numbers are given in that order, so that
the same run has the same.

Source: https://perfetto.dev/docs/reference/synthetic-track-event (TrackDescriptor).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

if TYPE_CHECKING:
    from collections.abc import Iterable

SEQUENCE = 1  # all packets are of one sequence


class Place(NamedTuple):
    """Where something is drawn.

    Attributes:
        pid: Process; None: of none.
        tid: Thread; None: the process as a whole.
        section: What tracks of a process are put together under; None: nothing.
        track: Name of the track; None: the thread's own.
        unit: Unit of a counter; None: slices.
        is_lane: What is there may cross. Names are the traced program's own, so one that
            nests may be called the same.
    """

    pid: int | None = None
    tid: int | None = None
    section: str | None = None
    track: str | None = None
    unit: str | None = None
    is_lane: bool = False


class Tracks:
    """Numbers tracks, and describes each before it is used."""

    def __init__(self) -> None:
        self._uuids: dict[Any, int] = {}
        self._ranks: dict[int, int] = {}
        self._new: list[bytes] = []

    def add_process(self, row: dict[str, Any]) -> None:
        """Describe a process.

        Args:
            row: Row of ``processes``; of several of one pid the first one counts.
        """
        if ("process", row["pid"]) not in self._uuids:
            self._process(row["pid"], row)

    def add_thread(self, row: dict[str, Any]) -> None:
        """Describe a thread.

        Args:
            row: Row of ``threads``; of several of one tid the first one counts.
        """
        if ("thread", row["pid"], row["tid"]) not in self._uuids:
            self._thread(row["pid"], row["tid"], row)

    def uuid(self, place: Place, lane: int = 0) -> int:
        """Number of a track.

        Args:
            place: Where it is.
            lane: Which of the tracks there; Perfetto's user interface draws them as one.
        """
        key = (place, lane)
        if key not in self._uuids:
            above = self._owner(place.pid, place.tid)
            if place.section is not None:
                above = self._section(above, place.section)
            if place.track is None and lane == 0:
                self._uuids[key] = above
            else:
                self._uuids[key] = self._child(key, above, place.track or "", place.unit)
        return self._uuids[key]

    def described(self) -> bytes:
        """Packets for the tracks numbered since the last call."""
        packets, self._new = b"".join(self._new), []
        return packets

    def _owner(self, pid: int | None, tid: int | None) -> int:
        if pid is None:
            return 0
        return self._process(pid) if tid is None else self._thread(pid, tid)

    def _process(self, pid: int, row: dict[str, Any] | None = None) -> int:
        key = ("process", pid)
        if key not in self._uuids:
            facts = row or {}
            track = self._track(key)
            track.process.pid = pid
            if facts.get("exe"):
                track.process.process_name = facts["exe"].rsplit("/", 1)[-1]
            if facts.get("cmdline"):
                track.process.cmdline.append(facts["cmdline"])
            if "start_ns" in facts:
                track.process.start_timestamp_ns = facts["start_ns"]
            track.child_ordering = protos.TrackDescriptor.EXPLICIT
            self._describe(track, facts)
        return self._uuids[key]

    def _thread(self, pid: int, tid: int, row: dict[str, Any] | None = None) -> int:
        key = ("thread", pid, tid)
        if key not in self._uuids:
            above = self._process(pid)
            facts = row or {}
            track = self._track(key)
            track.parent_uuid = above
            track.thread.pid = pid
            track.thread.tid = tid
            if facts.get("name"):
                track.thread.thread_name = facts["name"]
            self._describe(track, facts)
        return self._uuids[key]

    def _section(self, above: int, name: str) -> int:
        key = ("section", above, name)
        return self._uuids[key] if key in self._uuids else self._child(key, above, name, None)

    def _child(self, key: Any, above: int, name: str, unit: str | None) -> int:
        track = self._track(key)
        if above:
            track.parent_uuid = above
        track.name = name
        track.sibling_order_rank = self._ranks[above] = self._ranks.get(above, 0) + 1
        if unit is not None:
            track.counter.unit_name = unit
        self._describe(track, {})
        return self._uuids[key]

    def _track(self, key: Any) -> Any:
        self._uuids[key] = len(self._uuids) + 1
        return protos.TrackDescriptor(uuid=self._uuids[key])

    def _describe(self, track: Any, facts: dict[str, Any]) -> None:
        told = [
            f"{what} at {facts[name]} ns of CLOCK_MONOTONIC"
            for what, name in (("started", "start_ns"), ("gone", "end_ns"))
            if facts.get(name) is not None
        ]
        if told:
            track.description = ", ".join(told)
        self._new.append(packet(track_descriptor=track))


def packet(**fields: Any) -> bytes:
    """One packet of the trace's sequence, as bytes of the trace."""
    made = protos.TracePacket(trusted_packet_sequence_id=SEQUENCE, **fields)
    whole: bytes = protos.Trace(packet=[made]).SerializeToString(deterministic=True)
    return whole


def arguments(facts: Iterable[tuple[str, str | float | bool | None]]) -> list[Any]:
    """Facts as debug annotations; those that are None are left out."""
    made = []
    for name, value in facts:
        if value is None:
            continue
        fact = protos.DebugAnnotation(name=name)
        if isinstance(value, bool):
            fact.bool_value = value
        elif isinstance(value, int):
            fact.int_value = value
        elif isinstance(value, float):
            fact.double_value = value
        else:
            fact.string_value = value
        made.append(fact)
    return made
