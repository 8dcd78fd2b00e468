"""The BPF part of a recording: programs of all families, compiled once, one ring.

A family is one file in ``probes/bpf`` and one class here that satisfies ``Family``.
``Probes`` asks each for its compiler flags, compiles all together (they share the
ring and the map of traced threads), lets each attach, drains the ring, and hands
every family its own records as an array.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace import resources
from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import frontend, layout, syscalls
from cctrace.record.bpf.headers import Headers, find_headers
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.program_info import times_not_run
from cctrace.record.bpf.ring import MappedArray, Ring
from cctrace.record.losses import LossLedger

MAX_THREADS: Final = 65536
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_QUEUE_RECORDS: Final = 8 << 20  # 512 MiB waiting to be written
_CORE_TRACEPOINTS: Final = (
    "task:task_newtask",
    "sched:sched_process_exec",
    "sched:sched_process_exit",
)
_INIT_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h

Events = npt.NDArray[np.void]
Rows = list[tuple[str, pa.Table]]


class Family(Protocol):
    """One kind of probe: a file of programs, and what becomes of their records."""

    @property
    def name(self) -> str:
        """The source's name, as in ``--sources`` and ``run.json``."""

    @property
    def kinds(self) -> tuple[layout.Kind, ...]:
        """Records it takes, and whose losses are its own."""

    @property
    def files(self) -> tuple[str, ...]:
        """Its sources below ``probes/bpf``."""

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Compiler flags it needs, offsets of tracepoint fields among them.

        Raises:
            CctraceError: This machine cannot do it; the source is refused with that.
        """

    def attach(self, probes: Probes) -> None:
        """Load and attach its programs.

        Raises:
            CctraceError, OSError: Nothing of it could be attached.
        """

    def decode(self, events: Events) -> Rows:
        """Turn records (dtype ``CUDA_EVENT``; view them as its own) into rows of tables."""

    def poll(self) -> Rows:
        """Rows from elsewhere than the ring (maps, sampled files), at every flush."""

    def finish(self) -> Rows:
        """Rows known only at the end, after the last ``decode``; nothing is attached by then."""

    def detail(self) -> dict[str, Any]:
        """What the manifest says of it: how it is attached, to what, what is missing."""

    def detach(self) -> None:
        """Detach what ``attach`` did by itself; links made through ``probes`` it closes."""


@dataclass
class _Member:
    family: Family
    error: CctraceError | None = None


def require_bpf() -> None:
    """Check what every BPF source needs.

    Raises:
        CctraceError: No privilege, or not in the machine's own process namespace.
    """
    if not _has_capabilities():
        raise CctraceError(
            "BPF needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN)",
            'run as root: sudo -E "$(command -v cctrace)" record ...'
            if os.geteuid()
            else "give the container its privileges: docker run --privileged --pid=host",
            EXIT_UNSUPPORTED,
        )
    if Path("/proc/self/ns/pid").stat().st_ino != _INIT_PID_NAMESPACE:
        raise CctraceError(
            "BPF sees the machine's process numbers, and this is another process namespace",
            "run the container in the host's: docker run --pid=host --privileged",
            EXIT_UNSUPPORTED,
        )


def _has_capabilities() -> bool:
    # CAP_SYS_ADMIN, include/uapi/linux/capability.h: uprobes and tracepoints of all
    # processes need it or CAP_PERFMON, mounting tracefs needs it alone.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & 1 << 21)
    return False


class Probes:
    """All BPF sources of one recording.

    Use: ``start``, then ``spawning`` around the start of the target (or ``trace`` for
    one that runs), ``drain`` often, ``rows`` at every flush, ``detach``, a last
    ``drain`` and ``rows``, ``finish``, ``close``.

    Args:
        families: Sources wanted.
        ring_bytes: Size of the ring, a power of two of at least a page.
        ledger: Takes losses.

    Attributes:
        on_life: Called with the lifecycle records of a batch before it is decoded.
        incomplete: Kinds of which records have been lost.
    """

    def __init__(self, families: Sequence[Family], ring_bytes: int, ledger: LossLedger) -> None:
        self._members = [_Member(family) for family in families]
        self._ring_bytes = ring_bytes
        self._ledger = ledger
        self._links: list[int] = []
        self._lock = threading.Lock()
        self._chunks: list[Events] = []
        self._queued = 0
        self._lost = np.zeros(layout.KINDS * layout.LOSSES, np.uint64)
        self._losses: MappedArray | None = None
        self._config: MappedArray | None = None
        self._module: frontend.Module | None = None
        self._ring: Ring | None = None
        self.headers: Headers | None = None
        self.tracefs: TraceFs | None = None
        self._life: list[Events] = []
        self._not_run: dict[str, int] = {}
        self._not_run_at_start: dict[str, int] = {}
        self._program_sources: dict[str, str] = {}
        self.warnings: dict[str, str] = {}
        self.on_life: list[Callable[[Events], None]] = []
        self.incomplete: set[int] = set()
        self.drained = 0

    def start(self) -> None:
        """Compile and attach what can be; ``refused`` tells of the rest."""
        try:
            require_bpf()
            self.headers = find_headers()
            self.tracefs = TraceFs()
            self.tracefs.require_events()
            self._prepare_and_compile(self.tracefs, self.headers)
            self.headers.close()  # what a killed recorder leaves lies about for ever
            if not self._alive():
                return
            for name in _CORE_TRACEPOINTS:
                self.tracepoint(name)
            self._ring = Ring(self.module.map_fd("ring"), self._ring_bytes)
            self._losses = MappedArray(
                self.module.map_fd("losses"), layout.KINDS * layout.LOSSES, writable=False
            )
            self._config = MappedArray(
                self.module.map_fd("config"), layout.CONFIG_SLOTS, writable=True
            )
        except (CctraceError, OSError) as error:
            for member in self._alive():
                member.error = _as_refusal(error)
            return
        for member in self._alive():
            before = set(self.module.programs)
            self._try(member, partial(member.family.attach, self))
            for name in self.module.programs.keys() - before:
                self._program_sources[name] = member.family.name
        # What was skipped before there is anything to see is no loss.
        for name, program in self.module.programs.items():
            self._not_run_at_start[name] = times_not_run(program)

    @property
    def module(self) -> frontend.Module:
        """The compiled programs; there once ``start`` has compiled them."""
        if self._module is None:
            raise RuntimeError("start() has not compiled anything")
        return self._module

    @property
    def ring_records(self) -> int:
        """How many records the ring holds."""
        return self._ring_bytes // layout.RING_RECORD.itemsize

    def attached(self) -> list[Family]:
        """Families that are attached."""
        return [member.family for member in self._alive()]

    def refused(self) -> list[tuple[Family, CctraceError]]:
        """Families that are not, and why."""
        return [(m.family, m.error) for m in self._members if m.error is not None]

    def tracepoint(self, name: str) -> None:
        """Attach program ``on_EVENT`` to tracepoint ``category:EVENT``.

        Raises:
            CctraceError: The kernel has no such tracepoint.
            OSError: It refuses the program.
        """
        number = self.tracefs.tracepoint_id(name) if self.tracefs is not None else None
        if number is None:
            raise CctraceError(f"this kernel has no tracepoint {name}", None, EXIT_UNSUPPORTED)
        program = self.module.load(f"on_{name.partition(':')[2]}", frontend.TRACEPOINT)
        self._links.append(syscalls.attach_tracepoint(program, number))

    @contextlib.contextmanager
    def spawning(self) -> Iterator[None]:
        """Trace what the calling thread starts within, and all that comes of it."""
        if not self._alive():
            yield
            return
        tid = threading.get_native_id()
        self._trace(tid, spawner=True)
        try:
            yield
        finally:
            table = self.module.table("traced")
            with contextlib.suppress(KeyError):
                del table[table.Key(tid)]

    def trace(self, tids: Iterable[int]) -> None:
        """Trace threads that are there already, and all that comes of them."""
        if self._alive():
            for tid in tids:
                self._trace(tid, spawner=False)

    def adopt(self, tids: Iterable[int]) -> None:
        """Trace those of the threads that are not, because their making was not seen."""
        table = self.module.table("traced")
        for tid in tids:
            if table.Key(tid) not in table:
                self._trace(tid, spawner=False)
                if not Path(f"/proc/{tid}").exists():  # ended since: nobody takes it out
                    with contextlib.suppress(KeyError):
                        del table[table.Key(tid)]

    def times_not_run(self, program: str) -> int:
        """How often the kernel has not run a program, as far as was counted."""
        return self._not_run.get(program, 0)

    def set_config(self, slot: int, value: int) -> None:
        """Set a slot of ``enum cct_config``."""
        if self._config is not None:
            self._config.values[slot] = value

    def drain(self) -> int:
        """Take what the ring holds; returns records taken.

        When the writer is far behind nothing is taken: the ring fills, and the
        programs drop and count.
        """
        if self._ring is None or self._queued > _QUEUE_RECORDS:
            return 0
        events = self._ring.drain()
        if not len(events):
            return 0
        with self._lock:
            self._chunks.append(events)
            self._queued += len(events)
        self.drained += len(events)
        return len(events)

    def rows(self) -> Rows:
        """Decode what was drained since the last call, each family its own.

        A family that fails loses what it was given, counted, and is asked again.
        """
        with self._lock:
            chunks, self._chunks = self._chunks, []
            self._queued = 0
        rows: Rows = []
        if chunks:
            events = np.concatenate(chunks) if len(chunks) > 1 else chunks[0]
            kinds = events["kind"]
            # Lifecycle first, so that families know which program a record is of.
            for kind in sorted(np.unique(kinds), key=lambda kind: kind != layout.Kind.LIFECYCLE):
                self._take_kind(int(kind), events[kinds == kind], rows)
        for member in self._alive():
            rows += self._ask(member, member.family.poll)
        self._count_losses()
        return rows

    def take_life(self) -> list[Events]:
        """Starts and ends of threads decoded by ``rows`` since the last call."""
        found, self._life = self._life, []
        return found

    def finish(self) -> Rows:
        """Rows known only at the end; call after ``detach`` and the last ``rows``."""
        rows: Rows = []
        for member in self._alive():
            rows += self._ask(member, member.family.finish)
        self._count_losses()
        return rows

    def detach(self) -> None:
        """Detach everything; what the ring still holds stays to be drained."""
        for member in self._alive():
            with contextlib.suppress(OSError):
                member.family.detach()
        syscalls.close_all(self._links)
        self._links.clear()

    def close(self) -> None:
        """Give everything back."""
        self.detach()
        for mapped in (self._ring, self._losses, self._config):
            if mapped is not None:
                mapped.close()
        self._ring = self._losses = self._config = None
        if self._module is not None:
            self._module.close()
            self._module = None
        if self.tracefs is not None:
            self.tracefs.close()
        if self.headers is not None:
            self.headers.close()

    def _alive(self) -> list[_Member]:
        return [member for member in self._members if member.error is None]

    def _try(self, member: _Member, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except (CctraceError, OSError) as error:
            member.error = _as_refusal(error)
            return None

    def _prepare_and_compile(self, tracefs: TraceFs, headers: Headers) -> None:
        core = [
            f"-DCCT_RING_PAGES={self._ring_bytes // _PAGE}",
            f"-DCCT_MAX_THREADS={MAX_THREADS}",
            *tracepoint_flags(tracefs, "task:task_newtask", ("pid", "clone_flags")),
            *tracepoint_flags(tracefs, "sched:sched_process_exec", ("pid", "old_pid")),
        ]
        flags = {}
        for member in self._members:
            flags[member.family.name] = self._try(member, partial(member.family.prepare, tracefs))
        try:
            self._module = self._compile(self._alive(), core, flags, headers)
        except CctraceError:
            # One family spoils it for all: find out which, and do without.
            for member in self._alive():
                self._try(member, partial(self._try_compile, member, core, flags, headers))
            if self._alive():
                self._module = self._compile(self._alive(), core, flags, headers)

    def _try_compile(
        self, member: _Member, core: list[str], flags: dict[str, list[str]], headers: Headers
    ) -> None:
        self._compile([member], core, flags, headers).close()

    @staticmethod
    def _compile(
        members: list[_Member], core: list[str], flags: dict[str, list[str]], headers: Headers
    ) -> frontend.Module:
        folder = resources.resource_dir("probes") / "bpf"
        names = ["cctrace.h", "core.bpf.c"]
        names += dict.fromkeys(name for member in members for name in member.family.files)
        own = [flag for member in members for flag in flags[member.family.name]]
        return frontend.Module([folder / name for name in names], [*core, *own], headers)

    def _trace(self, tid: int, *, spawner: bool) -> None:
        table = self.module.table("traced")
        leaf = table.Leaf()
        leaf.spawner = int(spawner)
        table[table.Key(tid)] = leaf

    def _take_kind(self, kind: int, events: Events, rows: Rows) -> None:
        if kind == layout.Kind.LIFECYCLE:
            self._life.append(events.view(layout.LIFE_EVENT))
            for listener in self.on_life:
                listener(self._life[-1])
        for member in self._alive():
            if kind in member.family.kinds:
                rows += self._ask(member, partial(member.family.decode, events), len(events))

    def _ask(self, member: _Member, step: Callable[[], Rows], events: int = 0) -> Rows:
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - one family must not take the others along
            self._ledger.add(member.family.name, "recorder_error", events)
            self.warnings[member.family.name] = f"{member.family.name}: {error!r}"
            return []

    def _count_losses(self) -> None:
        self._count_not_run()
        if self._losses is None:
            return
        now = self._losses.values.copy()
        for slot in np.flatnonzero(now != self._lost):
            kind, reason = divmod(int(slot), layout.LOSSES)
            if reason in (layout.Loss.RING, layout.Loss.MAP_FULL):
                self.incomplete.add(kind)
            self._ledger.add(
                self._source_of(kind),
                layout.LOSS_REASONS[layout.Loss(reason)],
                int(now[slot] - self._lost[slot]),
            )
        self._lost = now

    def _count_not_run(self) -> None:
        """Count the times the kernel did not run a program, as far as it tells."""
        if self._module is None:
            return
        for name, program in self._module.programs.items():
            total = times_not_run(program) - self._not_run_at_start.get(name, 0)
            if new := total - self._not_run.get(name, 0):
                self._not_run[name] = total
                source = self._program_sources.get(name, "bpf")
                self._ledger.add(source, "program_not_run", new)

    def _source_of(self, kind: int) -> str:
        for member in self._members:
            if kind in member.family.kinds:
                return member.family.name
        return "bpf"


def tracepoint_flags(tracefs: TraceFs, name: str, fields: Iterable[str]) -> list[str]:
    """Compiler flags with the offsets of a tracepoint's fields: ``-DTP_event_field=8``.

    Raises:
        CctraceError: The kernel has no such tracepoint, or it lacks a field.
    """
    there = tracefs.fields(name)
    if there is None:
        raise CctraceError(f"this kernel has no tracepoint {name}", None, EXIT_UNSUPPORTED)
    event = name.partition(":")[2]
    flags = []
    for field_name in fields:
        if field_name not in there:
            raise CctraceError(
                f"tracepoint {name} of this kernel has no field {field_name}",
                None,
                EXIT_UNSUPPORTED,
            )
        flags.append(f"-DTP_{event}_{field_name}={there[field_name].offset}")
    return flags


def _as_refusal(error: CctraceError | OSError) -> CctraceError:
    if isinstance(error, CctraceError):
        return error
    return CctraceError(error.strerror or str(error), None, EXIT_UNSUPPORTED)
