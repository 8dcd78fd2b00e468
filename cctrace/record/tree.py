"""The target's process tree: who is in it, their threads, when and how they end.

Found by walking /proc from the recorder's own children down; as subreaper the
recorder also gets the orphans. Needs no privilege. Ends are told by pidfds, within
milliseconds; the exit code of a process that is not our child comes from the pidfd
(PIDFD_GET_INFO, Linux 6.15) where the kernel has it. A process that lives less
than one round of the walk and never calls NVTX can be missed.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from cctrace.record import procfs
from cctrace.record.clock import now_ns, ticks_to_monotonic_ns
from cctrace.record.limits import leaves_descriptors
from cctrace.schema import TABLES
from cctrace.store.manifest import Anchor, start_ticks

_ROUND_MIN_S: Final = 0.02
_ROUND_MAX_S: Final = 0.5
_ROUND_COST: Final = 50  # a round may take one fiftieth of the time
_NAMES_EVERY_S: Final = 1.0
_YOUNG_NS: Final = 1_000_000_000
_GRAIN_NS: Final = 25_000_000  # a clock tick of /proc, and the two clocks' own grain
_REAP_PATIENCE_S: Final = 5.0  # for another parent to reap before its exit code is given up


@dataclass
class Thread:
    """One thread: ``end_ns`` is None while it is there."""

    tid: int
    first_ns: int
    start_ns: int | None
    name: str | None
    end_ns: int | None = None
    named: bool = False  # by the program itself, through NVTX

    def rename(self, name: str | None) -> None:
        """Take the name the kernel has for it, unless the program gave it a better one."""
        if name and not self.named:
            self.name = name


@dataclass
class Process:
    """One process; times are ns of CLOCK_MONOTONIC.

    Attributes:
        pid: Process id.
        ticks: Start time in clock ticks; with the pid it names the process.
        first_ns: When it was first seen.
        start_ns: When it started, to 10 ms.
        ppid: Parent when first seen.
        exe: Path of the program running last.
        cmdline: Its arguments, quoted for a shell.
        threads: By tid; a tid used again replaces the entry after ``ended``.
        end_ns: When it ended; None while it runs.
        exit_code: Exit status, 128 + n for signal n; None: unknown.
        other_uid: Its user, where that is neither ours nor root.
        exit_ns: When the last thread seen to end did, from the kernel; exact.
    """

    pid: int
    ticks: int
    first_ns: int
    start_ns: int
    ppid: int | None
    exe: str | None
    cmdline: str | None
    threads: dict[int, Thread] = field(default_factory=dict)
    ended_threads: list[Thread] = field(default_factory=list)
    ended_tids: set[int] = field(default_factory=set)
    end_ns: int | None = None
    exit_code: int | None = None
    other_uid: int | None = None
    exit_ns: int | None = None
    pidfd: int = -1

    def add_ended(self, thread: Thread, end_ns: int) -> None:
        """Take in a thread that is gone."""
        thread.end_ns = end_ns
        self.ended_threads.append(thread)
        self.ended_tids.add(thread.tid)


class ProcessTree:
    """Follows every descendant of the recorder, in a thread of its own.

    Make it before the target is started and after the recorder's own helpers are.

    Args:
        anchor: Clocks of one moment, to place /proc's start times.
        on_exit: Called in the tree's thread when a process has ended, with its pid.
        root: A process that runs already, to follow with all that it has started.
    """

    def __init__(
        self, anchor: Anchor, on_exit: Callable[[int], None], root: int | None = None
    ) -> None:
        self._roots = {os.getpid()} if root is None else {os.getpid(), root}
        self._anchor = anchor
        self._on_exit = on_exit
        self._own_pid = os.getpid()
        self._lock = threading.RLock()
        # Children the recorder already has are its own helpers, not the target's.
        self._helpers = {
            (child, start_ticks(child))
            for tid in procfs.list_tids(self._own_pid)
            for child in procfs.children(self._own_pid, tid)
        }
        self._running: dict[int, Process] = {}
        self._ended: list[Process] = []
        # The last of each pid that ended: until it is reaped, /proc shows it as if it
        # were there.
        self._last_ended: dict[int, Process] = {}
        self._unreaped: list[tuple[float, Process]] = []
        self._poll = select.poll()
        self._by_fd: dict[int, Process] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._wake_read, select.POLLIN)
        self._stop = False
        self._names_due = 0.0
        self._thread = threading.Thread(target=self._follow, name="cctrace-tree", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """Look once more, then stop; what still runs keeps an open end."""
        self._stop = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        with self._lock:
            self._walk(names=True)
            self._collect_exit_codes(final=True)
            for process in self._running.values():
                _close_fd(process)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def is_traced(self, pid: int) -> bool:
        """Whether ``pid`` descends from the recorder; takes it into the tree if so."""
        with self._lock:
            known = self._running.get(pid)
            if known is not None:
                if start_ticks(pid) in {known.ticks, None}:
                    return True
                self._end(known)  # its pid is another's already
            if pid == self._own_pid:
                return False
            at = pid
            for _ in range(1000):
                if at in self._roots:
                    self._adopt(pid)
                    return pid in self._running
                if at <= 1:
                    return False
                at = procfs.parent(at) or 0
            return False

    def reaped(self, pid: int, exit_code: int) -> None:
        """Note the exit code of a child the recorder has reaped."""
        with self._lock:
            process = self._running.get(pid)
            if process is not None:
                process.exit_code = exit_code
                self._end(process)
                return
            ended = self._last_ended.get(pid)
            if ended is not None and ended.exit_code is None:
                ended.exit_code = exit_code

    def describe(self, pid: int, exe: str | None, cmdline: str) -> None:
        """Say what ``pid`` runs, where it ended before /proc could be read."""
        with self._lock:
            known = [*self._running.values(), *self._ended]
            for process in known:
                if process.pid == pid:
                    process.exe = process.exe or exe
                    process.cmdline = process.cmdline or cmdline

    def count(self) -> int:
        """Processes seen so far."""
        with self._lock:
            return len(self._running) + len(self._ended)

    def running(self) -> list[int]:
        """Pids of those not ended."""
        with self._lock:
            return list(self._running)

    def running_threads(self) -> list[int]:
        """Threads of processes not ended, as last seen."""
        with self._lock:
            return [tid for process in self._running.values() for tid in process.threads]

    def of_other_users(self) -> dict[int, int]:
        """Uid by pid of processes that may not enter what belongs to us alone."""
        with self._lock:
            known = [*self._ended, *self._running.values()]
            return {p.pid: p.other_uid for p in known if p.other_uid is not None}

    def name_thread(self, pid: int, tid: int, name: str) -> None:
        """Take the name the program itself gave to a thread (NVTX)."""
        with self._lock:
            process = self._running.get(pid)
            if process is not None and tid in process.threads:
                process.threads[tid].name = name
                process.threads[tid].named = True

    def note_thread(self, pid: int, tid: int, ts_ns: int) -> None:
        """Take in a thread known by its events; it may have come and gone between walks.

        Args:
            pid: Process, in the tree or not.
            tid: Thread id.
            ts_ns: Time of its first event.
        """
        with self._lock:
            process = self._running.get(pid) or self._last_ended.get(pid)
            if process is None or tid in process.threads or tid in process.ended_tids:
                return
            thread = Thread(
                tid, ts_ns, procfs.thread_start_ns(pid, tid, self._anchor), procfs.comm(pid, tid)
            )
            if process.end_ns is None and thread.name is not None:
                process.threads[tid] = thread
                return
            process.add_ended(thread, process.end_ns or now_ns())

    def note_process(self, pid: int, ppid: int, ts_ns: int, name: str) -> None:
        """Take in a process whose start was seen; it may be gone already.

        Args:
            pid: The new process.
            ppid: Who made it.
            ts_ns: When, ns of CLOCK_MONOTONIC.
            name: Its thread's name.
        """
        with self._lock:
            process = self._known(pid, ts_ns)
            if process is None:
                self._adopt(pid)
                process = self._known(pid, ts_ns)
            if process is None:
                # ticks -1: no process in /proc is this one.
                process = Process(pid, -1, ts_ns, ts_ns, ppid, None, None, end_ns=ts_ns)
                self._ended.append(process)
                self._last_ended[pid] = process
            process.start_ns = ts_ns
            process.first_ns = min(process.first_ns, ts_ns)
            self._thread_started(process, pid, ts_ns, name)

    def note_thread_start(self, pid: int, tid: int, ts_ns: int, name: str) -> None:
        """Take in a thread whose start was seen; it may be gone already."""
        with self._lock:
            process = self._known(pid, ts_ns, at_start=False)
            if process is not None:
                self._thread_started(process, tid, ts_ns, name)

    def note_thread_end(self, pid: int, tid: int, ts_ns: int, name: str) -> None:
        """Take in the end of a thread, with the last name it had."""
        with self._lock:
            process = self._known(pid, ts_ns, at_start=False)
            if process is None:
                return
            if process.end_ns is not None:
                last = max(process.exit_ns or 0, ts_ns)
                process.exit_ns = process.end_ns = last
            else:
                process.exit_ns = ts_ns
            thread = process.threads.get(tid)
            if thread is not None and process.end_ns is None:
                process.add_ended(process.threads.pop(tid), ts_ns)
            else:
                ended = [t for t in process.ended_threads if t.tid == tid]
                thread = ended[-1] if ended else thread
            if thread is not None:
                thread.end_ns = ts_ns
                thread.rename(name)

    def _known(self, pid: int, ts_ns: int, *, at_start: bool = True) -> Process | None:
        """The process that had ``pid`` at ``ts_ns``; with ``at_start``: that started then."""
        for process in (self._running.get(pid), self._last_ended.get(pid)):
            if process is None or process.start_ns > ts_ns + _GRAIN_NS:
                continue
            if not at_start or process.start_ns >= ts_ns - _GRAIN_NS:
                return process
        return None

    @staticmethod
    def _thread_started(process: Process, tid: int, ts_ns: int, name: str) -> None:
        thread = process.threads.get(tid)
        if thread is None:
            ended = [t for t in process.ended_threads if t.tid == tid]
            thread = ended[-1] if ended else None
        if thread is None or (thread.end_ns is not None and thread.end_ns < ts_ns):
            thread = Thread(tid, ts_ns, ts_ns, name)
            if process.end_ns is None:
                process.threads[tid] = thread
            else:
                process.add_ended(thread, process.end_ns)
        thread.start_ns = ts_ns
        thread.first_ns = min(thread.first_ns, ts_ns)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """The tables ``processes`` and ``threads`` as known now, by start."""
        with self._lock:
            known = sorted(
                [*self._ended, *self._running.values()], key=lambda p: (p.start_ns, p.pid)
            )
            processes = [
                {
                    "ts_ns": p.first_ns,
                    "pid": p.pid,
                    "tid": p.pid,
                    "start_ns": p.start_ns,
                    "end_ns": p.end_ns,
                    "ppid": p.ppid,
                    "exe": p.exe,
                    "cmdline": p.cmdline,
                    "exit_code": p.exit_code,
                }
                for p in known
            ]
            threads = [
                {
                    "ts_ns": t.first_ns,
                    "pid": p.pid,
                    "tid": t.tid,
                    "name": t.name,
                    "start_ns": t.start_ns,
                    "end_ns": t.end_ns,
                }
                for p in known
                for t in [*p.ended_threads, *p.threads.values()]
            ]
        return (
            pa.Table.from_pylist(processes, schema=TABLES["processes"].arrow),
            pa.Table.from_pylist(threads, schema=TABLES["threads"].arrow),
        )

    def _follow(self) -> None:
        pause_s = 0.0
        while not self._stop:
            for fd, _ in self._poll.poll(pause_s * 1000):
                if fd == self._wake_read:
                    continue
                with self._lock:
                    process = self._by_fd.get(fd)
                    if process is not None:
                        self._end(process)
            begun = time.monotonic()
            with self._lock:
                names = begun >= self._names_due
                if names:
                    self._names_due = begun + _NAMES_EVERY_S
                self._walk(names=names)
                self._collect_exit_codes(final=False)
            took_s = time.monotonic() - begun
            pause_s = min(max(_ROUND_MIN_S, took_s * _ROUND_COST), _ROUND_MAX_S)

    def _walk(self, *, names: bool) -> None:
        for root in self._roots - {self._own_pid} - self._running.keys():
            self._adopt(root)
        queue = list(self._roots)
        while queue:
            pid = queue.pop()
            tids = procfs.list_tids(pid)
            if pid != self._own_pid and pid in self._running:
                self._see_threads(self._running[pid], tids, names=names)
            for tid in tids:
                for child in procfs.children(pid, tid):
                    if child not in self._running:
                        self._adopt(child)
                    if child in self._running:
                        queue.append(child)

    def _adopt(self, pid: int) -> None:
        ticks = start_ticks(pid)
        if ticks is None or (pid, ticks) in self._helpers:
            return
        ended = self._last_ended.get(pid)
        if ended is not None and ended.ticks == ticks:
            return
        process = Process(
            pid=pid,
            ticks=ticks,
            first_ns=now_ns(),
            start_ns=ticks_to_monotonic_ns(ticks, self._anchor),
            ppid=procfs.parent(pid),
            exe=None,
            cmdline=None,
        )
        try:
            process.pidfd = os.pidfd_open(pid)
        except OSError:
            return  # gone already, or a zombie that was reaped
        if not leaves_descriptors(process.pidfd):
            _close_fd(process)
            return
        self._read_program(process)
        self._running[pid] = process
        self._by_fd[process.pidfd] = process
        self._poll.register(process.pidfd, select.POLLIN)
        self._see_threads(process, procfs.list_tids(pid), names=True)

    def _see_threads(self, process: Process, tids: list[int], *, names: bool) -> None:
        now = now_ns()
        for tid in tids:
            thread = process.threads.get(tid)
            if thread is None:
                process.threads[tid] = Thread(
                    tid,
                    now,
                    procfs.thread_start_ns(process.pid, tid, self._anchor),
                    procfs.comm(process.pid, tid),
                )
            elif names or now - thread.first_ns < _YOUNG_NS:  # it gets its name after its start
                thread.rename(procfs.comm(process.pid, tid))
        if tids and len(tids) != len(process.threads):
            there = set(tids)
            for tid in [t for t in process.threads if t not in there]:
                process.add_ended(process.threads.pop(tid), now)
        # A process is often caught between fork and exec, so a young one is read
        # every time.
        if names or now - process.first_ns < _YOUNG_NS:
            self._read_program(process)

    @staticmethod
    def _read_program(process: Process) -> None:
        program = procfs.read_program(process.pid)
        process.exe = program.exe or process.exe
        process.cmdline = program.cmdline or process.cmdline
        if program.uid is not None:
            process.other_uid = program.uid if program.uid not in {os.geteuid(), 0} else None

    def _end(self, process: Process) -> None:
        if process.end_ns is not None:
            return
        process.end_ns = process.exit_ns or now_ns()
        for thread in process.threads.values():
            thread.end_ns = process.end_ns
        del self._running[process.pid]
        self._poll.unregister(process.pidfd)
        del self._by_fd[process.pidfd]
        self._ended.append(process)
        self._last_ended[process.pid] = process
        self._unreaped.append((time.monotonic() + _REAP_PATIENCE_S, process))
        self._on_exit(process.pid)

    def _collect_exit_codes(self, *, final: bool) -> None:
        waiting: list[tuple[float, Process]] = []
        for deadline, process in self._unreaped:
            if process.exit_code is None:
                process.exit_code = procfs.exit_code_of(process.pidfd)
            if process.exit_code is None and not final and time.monotonic() < deadline:
                waiting.append((deadline, process))
            else:
                _close_fd(process)
        self._unreaped = waiting


def _close_fd(process: Process) -> None:
    if process.pidfd >= 0:
        os.close(process.pidfd)
        process.pidfd = -1
