"""One recording, from the empty run directory to the closed one.

Threads: the server answers agents, the tree follows processes, the drain empties
the rings every few milliseconds, the writer decodes and writes twice a second; stacks
have a thread of their own (bpf/stacks/collector.py), and so has the end (closing.py).
The thread that calls passes signals on and waits. Whatever goes wrong in here, the
target runs on: an error of the recorder costs data, which is counted, and no more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from cctrace.errors import EXIT_OK
from cctrace.record import closing, losses, procfs, server, target
from cctrace.record.attached import AttachedProcess
from cctrace.record.bpf.cuda.source import LaunchMode
from cctrace.record.bpf.stacks.collector import StackMode
from cctrace.record.bpf_source import BpfSource
from cctrace.record.clock import read_anchor
from cctrace.record.host import HostFacts
from cctrace.record.layout import RECORD, Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.memory import keep_freed_memory
from cctrace.record.nvtx_source import NvtxSource
from cctrace.record.outcome import Outcome, Progress
from cctrace.record.rundir import Reserve, create_run_dir
from cctrace.record.scratch import remove_stale_directories
from cctrace.record.source import Source
from cctrace.record.sources import DEFAULT_SOURCES
from cctrace.record.tree import ProcessTree
from cctrace.record.writer import TableWriter
from cctrace.schema import TABLES
from cctrace.store import manifest as m
from cctrace.version import VERSION

_DRAIN_EVERY_S: Final = 0.01
_FLUSH_EVERY_S: Final = 0.5
_WAIT_S: Final = 0.25
_LAST_REAP_S: Final = 0.02
_JOIN_S: Final = 60.0  # that a thread of ours may take for what it is at
_HOST_WAIT_S: Final = 3.0  # a driver that has to wake its GPU first takes over a second
_MAX_NAMED: Final = 5
_REPLACED: Final = ("processes", "threads", "losses")  # written whole at every flush
_NOT_EVENTS: Final = frozenset({*_REPLACED, "stacks", "counters"})


@dataclass(frozen=True)
class Options:
    """What to record, and where to.

    Attributes:
        command: The target's arguments; empty with ``pid``.
        output: Run directory to make.
        force: Replace a run that is there.
        duration_s: Stop recording after so long; None: with the target.
        sources: Of ``SOURCES``.
        annotate: Give Python engines their step ranges.
        ring_bytes: Size of one thread's ring.
        bpf_ring_bytes: Size of the ring of the BPF programs, a power of two.
        launches: Of ``LAUNCH_MODES``.
        stacks: Of ``STACK_MODES``.
        pid: Record this process, which runs already, instead of a command.
    """

    command: list[str]
    output: Path
    force: bool = False
    duration_s: float | None = None
    sources: tuple[str, ...] = DEFAULT_SOURCES
    annotate: bool = True
    ring_bytes: int = Geometry().ring_records * RECORD.itemsize
    bpf_ring_bytes: int = 32 << 20
    launches: LaunchMode = "auto"
    stacks: StackMode = "none"
    pid: int | None = None

    def geometry(self) -> Geometry:
        """Sizes of a segment, the ring rounded down to a power of two records."""
        records = max(self.ring_bytes // RECORD.itemsize, 1)
        return Geometry(ring_records=1 << (records.bit_length() - 1))


class Session:
    """Record one command.

    Use: ``target.block_signals`` first of all, then ``start``, ``record`` until it
    returns, and ``wait_target``.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ledger = LossLedger()
        self._anchor = read_anchor()
        self._run_dir = options.output
        self._nvtx = NvtxSource(
            options.geometry(),
            self._anchor.monotonic_ns,
            self._ledger,
            hook_engines=options.annotate,
            from_start=options.pid is None,
        )
        self._bpf = BpfSource(
            options.sources,
            options.command,
            ring_bytes=options.bpf_ring_bytes,
            launches=options.launches,
            stacks=options.stacks,
            ledger=self._ledger,
        )
        self._sources: list[Source] = []
        if "nvtx" in options.sources:
            self._sources.append(self._nvtx)
        if self._bpf.wanted:
            self._sources.append(self._bpf)
        self._writers = {
            name: TableWriter(table, self._run_dir / name) for name, table in TABLES.items()
        }
        self._cpu_s_before = time.process_time()
        self._failed: str | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._target: target.Target | AttachedProcess | None = None
        self._server: server.HandoverServer | None = None
        self._manifest = m.Manifest(
            cctrace_version=VERSION,
            command=_command_of(options),
            cwd=_printable(os.getcwd()),  # noqa: PTH109 - the manifest stores text
            start=self._anchor,
            recorder=m.Recorder(os.getpid(), m.start_ticks(os.getpid()) or 0),
            options={
                "ring_bytes": options.geometry().ring_stride,
                "bpf_ring_bytes": options.bpf_ring_bytes,
                "annotate": options.annotate,
                "launches": options.launches,
                "stacks": options.stacks,
                "duration_s": options.duration_s,
                "pid": options.pid,
            },
        )

    def start(self) -> None:
        """Make the run directory and start the target, with everything attached.

        Raises:
            CctraceError: The output cannot be written (1), the target does not
                exist (127, a process: 1) or cannot be executed (126); no run is
                left behind.
        """
        # Whatever fails from here on leaves things as they were.
        with contextlib.ExitStack() as undo:
            undo.callback(self._bpf.close)  # it has begun a process already
            attached = AttachedProcess(self._options.pid) if self._options.pid is not None else None
            if attached is None:
                target.become_subreaper()
            remove_stale_directories()
            old_run = create_run_dir(self._run_dir, force=self._options.force)
            if old_run is not None:
                undo.callback(old_run.restore)
            undo.callback(shutil.rmtree, self._run_dir, ignore_errors=True)
            self._reserve = Reserve(self._run_dir)
            self._host = HostFacts()
            undo.callback(self._host.close)
            self._tree = ProcessTree(self._anchor, self._process_ended, self._options.pid)
            environment = target.inherited_environment()
            self._open_server()
            if self._server is not None:
                undo.callback(self._server.close)
            for source in self._sources:
                undo.callback(source.close)
                source.attach(environment)
            # What attaching took is not part of the run.
            self._manifest.start = read_anchor()
            self._write_manifest()
            if attached is not None:
                self._target = attached
                self._bpf.trace(attached)
            else:
                with self._bpf.spawning():
                    self._target = target.start_target(self._options.command, environment)
            undo.pop_all()
        # Before anything can reap it: one that ends at once is a row all the same.
        self._tree.is_traced(self._target.pid)
        if attached is None:
            program = shutil.which(self._options.command[0])
            self._tree.describe(self._target.pid, program, shlex.join(self._manifest.command))
        target.raise_descriptor_limit()
        keep_freed_memory()
        self._tree.start()
        if self._server is not None:
            self._server.start()
        for name, body in (("drain", self._drain_loop), ("writer", self._write_loop)):
            thread = threading.Thread(target=body, name=f"cctrace-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        if old_run is not None:
            old_run.discard()

    def record(self, on_progress: Callable[[Progress], None] | None = None) -> Outcome:
        """Record until the target ends or the duration is over, then close the run.

        Args:
            on_progress: Called a few times a second.

        Returns:
            What was left; a full disk is told in it, not raised.
        """
        running = self._running_target()
        deadline = None
        if self._options.duration_s is not None:
            deadline = time.monotonic() + self._options.duration_s
        while running.exit_code is None:
            timeout = _WAIT_S
            if deadline is not None:
                timeout = min(timeout, deadline - time.monotonic())
                if timeout <= 0:
                    break
            self._reap(running, timeout)
            if isinstance(running, AttachedProcess) and running.stopped:
                break
            if on_progress is not None:
                on_progress(self._progress())
        return self._close(running)

    def wait_target(self) -> int:
        """Wait for the target, passing signals on; returns its exit status (128 + n).

        A process that ran before is not waited for, and its status is not ours: 0.
        """
        running = self._running_target()
        if isinstance(running, AttachedProcess):
            return EXIT_OK
        while running.exit_code is None:
            running.wait(_WAIT_S)
        return running.exit_code

    def _running_target(self) -> target.Target | AttachedProcess:
        if self._target is None:
            raise RuntimeError("start() first")
        return self._target

    def _open_server(self) -> None:
        """Make the socket that the agent and the audit library speak to."""
        try:
            self._server = server.HandoverServer(
                server.Handlers(
                    is_traced=self._tree.is_traced,
                    hello=self._nvtx.hello,
                    more=self._nvtx.more,
                    report=self._nvtx.reports.take,
                    library=self._bpf.library,
                    library_late=self._bpf.library_late,
                ),
                self._ledger,
            )
        except OSError as error:
            self._warn(f"programs of the target cannot reach the recorder: {error}")
            return
        self._nvtx.socket = self._server
        self._bpf.socket = self._server.path

    def _process_ended(self, pid: int) -> None:
        self._nvtx.process_ended(pid)
        self._bpf.process_ended(pid)

    def _reap(self, running: target.Target | AttachedProcess, timeout_s: float) -> None:
        for child in running.wait(timeout_s):
            self._tree.reaped(child.pid, child.exit_code)

    def _drain_loop(self) -> None:
        try:
            while not self._stopping.wait(_DRAIN_EVERY_S):
                for source in self._sources:
                    source.drain()
        except Exception as error:  # noqa: BLE001 - the target must go on, whatever this is
            self._warn(f"the recorder stopped reading events: {error!r}")
            self._detach()

    def _detach(self) -> None:
        """Nothing more is kept: probes would slow the target for nothing."""
        with contextlib.suppress(Exception):
            self._bpf.stop()

    def _write_loop(self) -> None:
        while not self._stopping.wait(_FLUSH_EVERY_S):
            self._flush()

    def _flush(self) -> None:
        for source in self._sources:
            try:
                rows = source.rows(self._tree)
            except Exception as error:  # noqa: BLE001 - the target must go on, whatever this is
                self._ledger.add(losses.RECORDER, "recorder_error", 1)
                self._warn(f"the recorder failed to decode events: {error!r}")
                continue
            self._append(rows)
        if self._failed is not None:
            return
        try:
            self._write_small_tables()
            self._write_manifest()
        except OSError as error:
            self._fail(error)

    def _append(self, rows: Iterable[tuple[str, pa.Table]]) -> None:
        """Write rows; those that cannot be written are counted as lost."""
        for name, table in rows:
            if self._failed is None:
                try:
                    self._writers[name].append(table)
                except OSError as error:
                    self._fail(error)
                except Exception as error:  # noqa: BLE001 - as in _flush
                    self._ledger.add(losses.RECORDER, "recorder_error", len(table))
                    self._warn(f"the recorder failed to write {len(table)} rows: {error!r}")
                    continue
                else:
                    continue
            self._ledger.add(losses.RECORDER, self._failed or "write_failed", len(table))

    def _write_small_tables(self) -> None:
        if "processes" in self._options.sources:
            processes, threads = self._tree.tables()
            self._writers["processes"].replace(processes)
            self._writers["threads"].replace(threads)
        self._writers["losses"].replace(self._ledger.table())

    def _write_manifest(self) -> None:
        manifest = self._manifest
        manifest.host = self._host.facts()
        manifest.tables = {n: w.rows for n, w in self._writers.items() if w.rows}
        manifest.events = sum(w.rows for n, w in self._writers.items() if n not in _NOT_EVENTS)
        manifest.size_bytes = sum(w.size_bytes for w in self._writers.values())
        manifest.lost = self._ledger.lost_events()
        manifest.adapters = self._nvtx.reports.all()
        manifest.sources = self._entries()
        for source in self._sources:
            for warning in source.take_warnings():
                self._warn(warning)
        manifest.write(self._run_dir)

    def _entries(self) -> list[m.Source]:
        found = [entry for source in self._sources for entry in source.entries()]
        if "processes" in self._options.sources:
            found.append(m.Source("processes", "attached"))
        order = {name: number for number, name in enumerate(self._options.sources)}
        return sorted(found, key=lambda entry: order.get(entry.name, len(order)))

    def _fail(self, error: OSError) -> None:
        """Stop writing events; what comes from now on is counted as lost."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self._failed = "disk_full" if full else "write_failed"
        self._warn(f"recording stopped early: {error.strerror or error}")
        self._detach()
        self._reserve.release()

    def _warn(self, text: str) -> None:
        if text not in self._manifest.warnings:
            self._manifest.warnings.append(text)

    def _progress(self) -> Progress:
        return Progress(
            elapsed_s=(time.monotonic_ns() - self._manifest.start.monotonic_ns) / 1e9,
            events=sum(source.drained for source in self._sources),
            size_bytes=sum(writer.size_bytes for writer in self._writers.values()),
            lost=self._ledger.lost_events(),
            processes=self._tree.count(),
        )

    def _close(self, running: target.Target | AttachedProcess) -> Outcome:
        # First, while somebody still drains: it may be attaching to a library.
        if self._server is not None:
            self._server.close()
        self._stopping.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
        # What ended with the target is ours to reap now, and has a status to tell.
        self._reap(running, _LAST_REAP_S)
        self._tree.close()
        ended, exit_code = self._how_it_ended(running), running.exit_code
        is_whole = not any(thread.is_alive() for thread in self._threads)
        is_whole = is_whole and self._while_waiting(running, self._drain_all)
        if not is_whole:
            self._warn("the recorder's own threads did not end: the last events are missing")
        self._host.wait(_HOST_WAIT_S)
        self._host.close()
        manifest = self._manifest
        manifest.stop = read_anchor()
        manifest.exit_code, manifest.ended = exit_code, self._failure() or ended
        if exit_code is not None and (left := sorted(self._tree.running())):
            pids = ", ".join(map(str, left[:_MAX_NAMED])) + (", ..." if left[_MAX_NAMED:] else "")
            self._warn(f"the target has left running: {pids} ({len(left)} in all)")
        if self._nvtx.is_attached:
            self._warn_of_other_users()
            if not self._nvtx.traced_pids:
                self._warn("no program of the target made an NVTX call")
        # Naming takes long where files are large: whoever kills us then has a run that
        # says how it ended.
        self._last_words()
        # What a thread that does not end is at stays open, until we end.
        if is_whole and self._while_waiting(running, self._name_stacks):
            for source in self._sources:
                source.close()
        manifest.ended = self._failure() or ended
        manifest.recorder.cpu_s = round(time.process_time() - self._cpu_s_before, 3)
        self._reserve.release()
        self._last_words()
        return Outcome(self._run_dir, manifest, self._ledger.by_reason())

    def _while_waiting(
        self, running: target.Target | AttachedProcess, body: Callable[[], None]
    ) -> bool:
        is_command = self._options.pid is None
        return closing.while_waiting(running, body, self._bpf.hurry, is_command=is_command)

    def _drain_all(self) -> None:
        for source in self._sources:
            self._drain_last(source)

    def _name_stacks(self) -> None:
        try:
            self._append(self._bpf.name_stacks())
        except Exception as error:  # noqa: BLE001 - the run is there without
            self._warn(f"the recorder failed to name stacks: {error!r}")

    def _drain_last(self, source: Source) -> None:
        try:
            source.stop()
            source.drain()
            while source.pending():
                source.drain()
                self._append(source.rows(self._tree))
            self._append(source.rows(self._tree))
            self._append(source.finish())
        except Exception as error:  # noqa: BLE001 - the target must go on, whatever this is
            self._warn(f"the recorder stopped reading events: {error!r}")

    def _warn_of_other_users(self) -> None:
        others = self._tree.of_other_users()
        untraced = sorted(others.keys() - self._nvtx.traced_pids)
        if untraced:
            self._warn(
                f"NVTX calls of {len(untraced)} processes of other users could not be recorded "
                f"(the first: {untraced[0]}, user {others[untraced[0]]}): "
                "run cctrace as that user"
            )

    def _last_words(self) -> None:
        try:
            self._write_small_tables()
            self._write_manifest()
        except OSError as error:
            self._warn(f"the end of the run could not be written: {error.strerror or error}")

    def _failure(self) -> str | None:
        if self._failed is None:
            return None
        return m.DISK_FULL if self._failed == "disk_full" else m.WRITE_FAILED

    def _how_it_ended(self, running: target.Target | AttachedProcess) -> str:
        if isinstance(running, AttachedProcess) and running.stopped:
            return m.STOPPED
        if running.exit_code is None:
            return m.DURATION
        return m.TARGET_SIGNAL if running.signalled else m.CLEAN


def _command_of(options: Options) -> list[str]:
    if options.pid is None:
        return [_printable(word) for word in options.command]
    return shlex.split(procfs.read_program(options.pid).cmdline or "")


def _printable(argument: str) -> str:
    """What is no UTF-8 replaced, so that whoever reads the manifest can print it."""
    return os.fsencode(argument).decode("utf-8", "replace")
