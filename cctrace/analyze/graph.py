"""A stretch of a run as threads, streams and what waits for what, ready to be replayed.

Each thread is the list of what it did, in its own order: host work, calls that put work
on a stream, calls that wait for it, and waits for other threads. Lengths are the
recorded ones; moments are not kept, since a replay finds them anew. A remedy makes other
lists out of these (:mod:`cctrace.analyze.remedies`), and shares the items it leaves
alone: no item is changed once it is in a graph.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_numbers = itertools.count()


class Act(IntEnum):
    """What an item does once its host time is over."""

    RUN = 0  # nothing more: host work, or a call that only costs host time
    ENQUEUE = 1  # puts work on a stream
    BLOCKING = 2  # puts work on a stream, and waits for it and all before it
    RECORD = 3  # marks where a stream has got to
    STREAM_WAIT = 4  # has a stream wait for a mark
    WAIT_EVENT = 5  # waits for a mark
    WAIT_STREAM = 6  # waits for a stream
    WAIT_DEVICE = 7  # waits for all streams of the device
    ANCHOR = 8  # a moment that other threads wait for
    WAIT_ANCHOR = 9  # waits until another thread has passed an anchor
    MARK = 10  # a step of the loop starts


WAITS = frozenset({Act.BLOCKING, Act.WAIT_EVENT, Act.WAIT_STREAM, Act.WAIT_DEVICE, Act.WAIT_ANCHOR})
SUBMITS = frozenset({Act.ENQUEUE, Act.BLOCKING})


@dataclass(frozen=True)
class Call:
    """One recorded CUDA call, made by the program itself.

    Attributes:
        pid: Process.
        tid: Thread.
        ts_ns: Start, ns.
        dur_ns: Length, ns; calls that never returned are left out.
        cls: Class, as in ``cuda_api``.
        api: Function.
        copy_kind: h2d, d2h, ...; None: no copy.
        host_memory: pinned, pageable, ...; None: not told.
        size_bytes: Bytes; None: not told.
        stream: Stream handle; 0: the default stream, and where none was told.
        event: Event handle; None: none, or not told.
        path: NVTX path, '' outside of all ranges.
        size_class: Class of the size; None: no size.
        stack_id: Stack; None: none was taken.
        correlation_id: Joins the device's activity; None: not told.
    """

    pid: int
    tid: int
    ts_ns: int
    dur_ns: int
    cls: str
    api: str
    copy_kind: str | None = None
    host_memory: str | None = None
    size_bytes: int | None = None
    stream: int = 0
    event: int | None = None
    path: str = ""
    size_class: str | None = None
    stack_id: int | None = None
    correlation_id: int | None = None

    @property
    def end_ns(self) -> int:
        """When it returned, ns."""
        return self.ts_ns + self.dur_ns


@dataclass(slots=True, eq=False)
class Item:
    """One thing a thread did.

    Attributes:
        act: What it does.
        gap_ns: Host work since the item before it, ns.
        host_ns: Time in the call until its effect, ns.
        after_ns: Time in the call once what it waits for is over, ns.
        stream: Number of the stream; -1: none.
        device_ns: Length of the work it puts on the stream, ns.
        latency_ns: From the submission until the device may start it, ns.
        bridge: Whether the work is a copy over the bridge, of which few run at once.
        target: The RECORD or ANCHOR waited for; None: it was before the stretch.
        wake_ns: From the anchor until a sleeping thread runs again, ns.
        site: Number of the call site; -1: none.
        step: Number of the step it is in, by its recorded start; -1: none.
        call: The recorded call; None: it is none, or a remedy made it up.
        recorded_ns: Of a wait for a thread, its recorded length, ns.
        end_ns: Of a wait for a thread, when it ended, ns; 0: it is none.
        uid: Unique number.
    """

    act: Act
    gap_ns: float = 0.0
    host_ns: float = 0.0
    after_ns: float = 0.0
    stream: int = -1
    device_ns: float = 0.0
    latency_ns: float = 0.0
    bridge: bool = False
    target: Item | None = None
    wake_ns: float = 0.0
    site: int = -1
    step: int = -1
    call: Call | None = None
    recorded_ns: int = 0
    end_ns: int = 0
    uid: int = field(default_factory=lambda: next(_numbers))

    def but(self, **changes: object) -> Item:
        """Return another item, which differs in ``changes``."""
        return replace(self, uid=next(_numbers), **changes)  # type: ignore[arg-type] # by name


@dataclass(frozen=True)
class Thread:
    """What one thread did in the stretch.

    Attributes:
        pid: Process.
        tid: Thread; negative: a remedy made it up.
        start_ns: When its first item's gap begins, ns from the start of the stretch.
        items: What it did, in order.
        lock: Number of the lock that it holds while it works outside of calls; -1: none.
    """

    pid: int
    tid: int
    start_ns: float
    items: list[Item]
    lock: int = -1


@dataclass(frozen=True)
class Graph:
    """A stretch of consecutive steps.

    Attributes:
        threads: The threads that take part; the one that drives the steps first.
        streams: Number of the device of each stream.
        copies_at_once: Copies over the bridge that run at once, by device.
        first_step: Number of the first step that counts; those before it warm up.
        last_step: Number of the last step that counts.
        wake_ns: Until a thread that was woken runs, ns.
    """

    threads: tuple[Thread, ...]
    streams: tuple[int, ...]
    copies_at_once: tuple[int, ...]
    first_step: int
    last_step: int
    wake_ns: float = 0.0

    def with_threads(self, threads: list[Thread], streams: tuple[int, ...] | None = None) -> Self:
        """Return the same stretch with other threads, and with other streams if given."""
        return replace(
            self,
            threads=tuple(threads),
            streams=self.streams if streams is None else streams,
        )
