"""The target's process tree: who is in it, their threads, when and how they end.

Found by walking /proc from the recorder's own children down; as subreaper the
recorder also gets the orphans. Needs no privilege. Ends are told by pidfds, within
milliseconds; the exit code of a process that is not our child comes from the pidfd
(PIDFD_GET_INFO, Linux 6.15) where the kernel has it. A process that lives less
than one round of the walk and never calls NVTX can be missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from cctrace.errors import EXIT_SIGNAL_BASE
from cctrace.record.clock import now_ns, ticks_to_monotonic_ns
from cctrace.record.limits import leaves_descriptors
from cctrace.schema import TABLES
from cctrace.store.manifest import Anchor, start_ticks

_ROUND_MIN_S: Final = 0.02
_ROUND_MAX_S: Final = 0.5
_ROUND_COST: Final = 50  # a round may take one fiftieth of the time
_NAMES_EVERY_S: Final = 1.0
_YOUNG_NS: Final = 1_000_000_000
_CMDLINE_MAX_BYTES: Final = 16384
_REAP_PATIENCE_S: Final = 5.0  # for another parent to reap before its exit code is given up

# include/uapi/linux/pidfd.h: struct pidfd_info (first published size, 64 bytes),
# PIDFD_GET_INFO = _IOWR(0xFF, 11, struct pidfd_info), PIDFD_INFO_EXIT.
_PIDFD_INFO_BYTES: Final = 64
_PIDFD_GET_INFO: Final = (3 << 30) | (_PIDFD_INFO_BYTES << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT: Final = 1 << 3
_PIDFD_EXIT_CODE_AT: Final = 60


@dataclass
class Thread:
    """One thread: ``end_ns`` is None while it is there."""

    tid: int
    first_ns: int
    start_ns: int | None
    name: str | None
    end_ns: int | None = None


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
    """

    def __init__(self, anchor: Anchor, on_exit: Callable[[int], None]) -> None:
        self._anchor = anchor
        self._on_exit = on_exit
        self._own_pid = os.getpid()
        self._lock = threading.RLock()
        # Children the recorder already has are its own helpers, not the target's.
        self._helpers = {
            (child, start_ticks(child))
            for tid in _list_tids(self._own_pid)
            for child in _children(self._own_pid, tid)
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
                if at == self._own_pid:
                    self._adopt(pid)
                    return pid in self._running
                if at <= 1:
                    return False
                at = _parent(at) or 0
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
            thread = Thread(tid, ts_ns, _thread_start_ns(pid, tid, self._anchor), _comm(pid, tid))
            if process.end_ns is None and thread.name is not None:
                process.threads[tid] = thread
                return
            process.add_ended(thread, process.end_ns or now_ns())

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
        queue = [self._own_pid]
        while queue:
            pid = queue.pop()
            tids = _list_tids(pid)
            if pid != self._own_pid and pid in self._running:
                self._see_threads(self._running[pid], tids, names=names)
            for tid in tids:
                for child in _children(pid, tid):
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
            ppid=_parent(pid),
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
        _read_program(process)
        self._running[pid] = process
        self._by_fd[process.pidfd] = process
        self._poll.register(process.pidfd, select.POLLIN)
        self._see_threads(process, _list_tids(pid), names=True)

    def _see_threads(self, process: Process, tids: list[int], *, names: bool) -> None:
        now = now_ns()
        for tid in tids:
            thread = process.threads.get(tid)
            if thread is None:
                process.threads[tid] = Thread(
                    tid,
                    now,
                    _thread_start_ns(process.pid, tid, self._anchor),
                    _comm(process.pid, tid),
                )
            elif names:
                thread.name = _comm(process.pid, tid) or thread.name
        if tids and len(tids) != len(process.threads):
            there = set(tids)
            for tid in [t for t in process.threads if t not in there]:
                process.add_ended(process.threads.pop(tid), now)
        # A process is often caught between fork and exec, so a young one is read
        # every time.
        if names or now - process.first_ns < _YOUNG_NS:
            _read_program(process)

    def _end(self, process: Process) -> None:
        if process.end_ns is not None:
            return
        process.end_ns = now_ns()
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
                process.exit_code = exit_code_of(process.pidfd)
            if process.exit_code is None and not final and time.monotonic() < deadline:
                waiting.append((deadline, process))
            else:
                _close_fd(process)
        self._unreaped = waiting


def _close_fd(process: Process) -> None:
    if process.pidfd >= 0:
        os.close(process.pidfd)
        process.pidfd = -1


def exit_code_of(pidfd: int) -> int | None:
    """Exit status of an ended process, 128 + n for signal n; None: not to be had."""
    info = bytearray(_PIDFD_INFO_BYTES)
    info[0:8] = _PIDFD_INFO_EXIT.to_bytes(8, "little")
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:  # an older kernel, or not reaped yet
        return None
    if not int.from_bytes(info[0:8], "little") & _PIDFD_INFO_EXIT:
        return None
    status = ctypes.c_int32.from_buffer(info, _PIDFD_EXIT_CODE_AT).value
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else EXIT_SIGNAL_BASE - code


def _list_tids(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - hot
    except OSError:
        return []


def _children(pid: int, tid: int) -> list[int]:
    return [int(word) for word in (_read(f"/proc/{pid}/task/{tid}/children") or b"").split()]


def _parent(pid: int) -> int | None:
    stat = _read(f"/proc/{pid}/stat")
    return int(stat[stat.rindex(b")") + 2 :].split()[1]) if stat else None


def _thread_start_ns(pid: int, tid: int, anchor: Anchor) -> int | None:
    stat = _read(f"/proc/{pid}/task/{tid}/stat")
    if not stat:
        return None
    return ticks_to_monotonic_ns(int(stat[stat.rindex(b")") + 2 :].split()[19]), anchor)


def _comm(pid: int, tid: int) -> str | None:
    name = _read(f"/proc/{pid}/task/{tid}/comm")
    return name.rstrip(b"\n").decode("utf-8", "replace") if name else None


def _read_program(process: Process) -> None:
    with contextlib.suppress(OSError):
        link = os.readlink(f"/proc/{process.pid}/exe")  # noqa: PTH115 - hot
        process.exe = os.fsencode(link).decode("utf-8", "replace")
    with contextlib.suppress(OSError):
        # Root's is also what may not be dumped, whoever it belongs to.
        uid = os.stat(f"/proc/{process.pid}").st_uid  # noqa: PTH116 - hot
        process.other_uid = uid if uid not in {os.geteuid(), 0} else None
    raw = _read(f"/proc/{process.pid}/cmdline", _CMDLINE_MAX_BYTES)
    if raw:
        words = raw.rstrip(b"\0").decode("utf-8", "replace").split("\0")
        process.cmdline = shlex.join(words)


def _read(path: str, limit: int = 65536) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, limit)
    except OSError:
        return None
    finally:
        os.close(fd)
