"""One recording, from the empty run directory to the closed one.

Threads: the server answers agents, the tree follows processes, the drain empties
the rings every few milliseconds, the writer decodes and writes twice a second.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cctrace import annotate, resources
from cctrace.errors import CctraceError
from cctrace.record import losses, server, target
from cctrace.record.clock import read_anchor
from cctrace.record.host import HostFacts
from cctrace.record.images import Images
from cctrace.record.layout import RECORD, Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.memory import keep_freed_memory
from cctrace.record.nvtx import to_table
from cctrace.record.rundir import Reserve, create_run_dir
from cctrace.record.segment import Segment
from cctrace.record.sources import SOURCES
from cctrace.record.tree import ProcessTree
from cctrace.record.writer import TableWriter
from cctrace.schema import TABLES
from cctrace.store import manifest as m
from cctrace.version import VERSION

_DRAIN_EVERY_S: Final = 0.01
_FLUSH_EVERY_S: Final = 0.5
_WAIT_S: Final = 0.25
_LAST_REAP_S: Final = 0.02
_HOST_WAIT_S: Final = 3.0  # a driver that has to wake its GPU first takes over a second
_MAX_NAMED: Final = 5
_MAX_REPORTS: Final = 4096
_MAX_WORDS: Final = 256
_WORD_LIMIT: Final = 1000


@dataclass(frozen=True)
class Options:
    """What to record, and where to.

    Attributes:
        command: The target's arguments.
        output: Run directory to make.
        force: Replace a run that is there.
        duration_s: Stop recording after so long; None: with the target.
        sources: Of ``SOURCES``.
        annotate: Give Python engines their step ranges.
        ring_bytes: Size of one thread's ring.
    """

    command: list[str]
    output: Path
    force: bool = False
    duration_s: float | None = None
    sources: tuple[str, ...] = SOURCES
    annotate: bool = True
    ring_bytes: int = Geometry().ring_records * RECORD.itemsize

    def geometry(self) -> Geometry:
        """Sizes of a segment, the ring rounded down to a power of two records."""
        records = max(self.ring_bytes // RECORD.itemsize, 1)
        return Geometry(ring_records=1 << (records.bit_length() - 1))


@dataclass(frozen=True)
class Progress:
    """How a recording stands.

    Attributes:
        elapsed_s: Since its start.
        events: Events taken from the rings.
        size_bytes: Written to disk.
        lost: Events lost.
        processes: Processes seen.
    """

    elapsed_s: float
    events: int
    size_bytes: int
    lost: int
    processes: int


@dataclass
class Outcome:
    """What a recording left.

    Attributes:
        run_dir: Where it is.
        manifest: Its manifest as written.
        losses: Counts by reason.
    """

    run_dir: Path
    manifest: m.Manifest
    losses: dict[str, int] = field(default_factory=dict)


class Session:
    """Record one command.

    Use: ``target.block_signals`` first of all, then ``start``, ``record`` until it
    returns, and ``wait_target``.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ledger = LossLedger()
        self._anchor = read_anchor()
        self._images = Images(options.geometry(), self._anchor.monotonic_ns, self._ledger)
        self._run_dir = options.output
        self._writers = {
            name: TableWriter(TABLES[name], self._run_dir / name)
            for name in ("nvtx", "processes", "threads", "losses")
        }
        self._cpu_s_before = time.process_time()
        self._failed: str | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._target: target.Target | None = None
        self._server: server.HandoverServer | None = None
        self._traced = 0
        self._traced_pids: set[int] = set()
        self._reports_lock = threading.Lock()
        self._manifest = m.Manifest(
            cctrace_version=VERSION,
            command=[_printable(word) for word in options.command],
            cwd=_printable(os.getcwd()),  # noqa: PTH109 - the manifest stores text
            start=self._anchor,
            recorder=m.Recorder(os.getpid(), m.start_ticks(os.getpid()) or 0),
            options={
                "ring_bytes": options.geometry().ring_stride,
                "annotate": options.annotate,
                "duration_s": options.duration_s,
            },
        )

    def start(self) -> None:
        """Make the run directory and start the target, with everything attached.

        Raises:
            CctraceError: The output cannot be written (1), the target does not
                exist (127) or cannot be executed (126); no run is left behind.
        """
        target.become_subreaper()
        server.remove_stale_directories()
        # Whatever fails from here on leaves things as they were.
        with contextlib.ExitStack() as undo:
            old_run = create_run_dir(self._run_dir, force=self._options.force)
            if old_run is not None:
                undo.callback(old_run.restore)
            undo.callback(shutil.rmtree, self._run_dir, ignore_errors=True)
            self._reserve = Reserve(self._run_dir)
            self._host = HostFacts()
            undo.callback(self._host.close)
            self._tree = ProcessTree(self._anchor, self._images.process_ended)
            environment = target.inherited_environment()
            self._attach(environment)
            if self._server is not None:
                undo.callback(self._server.close)
            self._write_manifest()
            self._target = target.start_target(self._options.command, environment)
            undo.pop_all()
        # Before anything can reap it: one that ends at once is a row all the same.
        self._tree.is_traced(self._target.pid)
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
            if on_progress is not None:
                on_progress(self._progress())
        return self._close(running)

    def wait_target(self) -> int:
        """Wait for the target, passing signals on; returns its exit status (128 + n)."""
        running = self._running_target()
        while running.exit_code is None:
            running.wait(_WAIT_S)
        return running.exit_code

    def _running_target(self) -> target.Target:
        if self._target is None:
            raise RuntimeError("start() first")
        return self._target

    def _attach(self, environment: dict[str, str]) -> None:
        if "processes" in self._options.sources:
            self._manifest.sources.append(m.Source("processes", "attached"))
        if "nvtx" not in self._options.sources:
            return
        try:
            agent = resources.native_library("libcctrace_agent.so")
            emit = resources.native_library("libcctrace_emit.so")
            Segment(self._options.geometry(), 0).close()  # can we make any at all?
            self._server = server.HandoverServer(
                server.Handlers(
                    is_traced=self._tree.is_traced,
                    hello=self._hello,
                    more=self._images.more,
                    report=self._take_report,
                ),
                self._ledger,
            )
        except (CctraceError, OSError) as error:
            hint = error.hint if isinstance(error, CctraceError) else None
            self._manifest.sources.append(m.Source("nvtx", "refused", str(error), hint))
            return
        self._manifest.sources.append(m.Source("nvtx", "attached"))
        environment.update(
            annotate.environment(
                environment,
                agent=agent,
                emit=emit,
                socket=self._server.path,
                annotate=self._options.annotate,
            )
        )

    def _hello(self, peer: server.Peer, token: int) -> Any:
        try:
            segment = self._images.hello(peer, token)
        except OSError as error:
            self._ledger.add(losses.NVTX, "untraced", 1, pid=peer.pid)
            self._warn(f"not every process could be traced: {error.strerror or error}")
            raise
        self._traced += 1
        self._traced_pids.add(peer.pid)
        return segment

    def _take_report(self, peer: server.Peer, report: dict[str, Any]) -> None:
        new = parse_report(peer.pid, report)
        with self._reports_lock:
            for known in self._manifest.adapters:
                if (known.pid, known.adapter) == (new.pid, new.adapter):
                    merge_report(known, new)
                    return
            if len(self._manifest.adapters) < _MAX_REPORTS:
                self._manifest.adapters.append(new)

    def _reap(self, running: target.Target, timeout_s: float) -> None:
        for child in running.wait(timeout_s):
            self._tree.reaped(child.pid, child.exit_code)

    def _drain_loop(self) -> None:
        try:
            while not self._stopping.wait(_DRAIN_EVERY_S):
                self._images.drain()
        except Exception as error:  # noqa: BLE001 - the target must go on, whatever this is
            self._warn(f"the recorder stopped reading events: {error!r}")

    def _write_loop(self) -> None:
        while not self._stopping.wait(_FLUSH_EVERY_S):
            self._flush()

    def _flush(self) -> None:
        rows = 0
        try:
            parts = self._images.decode()
            rows = sum(len(part) for part in parts)
            for pid, tid, ts_ns in self._images.take_new_threads():
                self._tree.note_thread(pid, tid, ts_ns)
            for pid, tid, name in self._images.take_thread_names():
                self._tree.name_thread(pid, tid, name)
            if self._failed is not None:
                self._ledger.add(losses.RECORDER, self._failed, rows)
                return
            if rows:
                self._writers["nvtx"].append(to_table(parts, self._images.run_keys))
                rows = 0
            self._write_small_tables()
            self._write_manifest()
        except OSError as error:
            self._fail(error, rows)
        except Exception as error:  # noqa: BLE001 - the target must go on, whatever this is
            self._ledger.add(losses.RECORDER, "recorder_error", rows)
            self._warn(f"the recorder failed to write {rows} events: {error!r}")

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
        manifest.events = self._writers["nvtx"].rows
        manifest.size_bytes = sum(w.size_bytes for w in self._writers.values())
        manifest.lost = self._ledger.lost_events()
        for source in manifest.sources:
            if source.name == "nvtx" and source.state == "attached":
                source.detail = {"programs": self._traced}
        with self._reports_lock:
            manifest.write(self._run_dir)

    def _fail(self, error: OSError, rows: int) -> None:
        """Stop writing events; what comes from now on is counted as lost."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self._failed = "disk_full" if full else "write_failed"
        self._ledger.add(losses.RECORDER, self._failed, rows)
        self._warn(f"recording stopped early: {error.strerror or error}")
        self._reserve.release()

    def _warn(self, text: str) -> None:
        if text not in self._manifest.warnings:
            self._manifest.warnings.append(text)

    def _progress(self) -> Progress:
        return Progress(
            elapsed_s=(time.monotonic_ns() - self._anchor.monotonic_ns) / 1e9,
            events=self._images.drained,
            size_bytes=sum(writer.size_bytes for writer in self._writers.values()),
            lost=self._ledger.lost_events(),
            processes=self._tree.count(),
        )

    def _close(self, running: target.Target) -> Outcome:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._server is not None:
            self._server.close()
        # What ended with the target is ours to reap now, and has a status to tell.
        self._reap(running, _LAST_REAP_S)
        self._tree.close()
        self._images.end_all()
        try:
            while self._images.alive():
                self._images.drain()
                self._flush()
        except Exception as error:  # noqa: BLE001 - the target must go on, whatever this is
            self._warn(f"the recorder stopped reading events: {error!r}")
        self._flush()
        self._host.wait(_HOST_WAIT_S)
        self._host.close()
        manifest = self._manifest
        manifest.stop = read_anchor()
        manifest.recorder.cpu_s = round(time.process_time() - self._cpu_s_before, 3)
        manifest.exit_code = running.exit_code
        manifest.ended = self._how_it_ended(running)
        if running.exit_code is not None and (left := sorted(self._tree.running())):
            pids = ", ".join(map(str, left[:_MAX_NAMED])) + (", ..." if left[_MAX_NAMED:] else "")
            self._warn(f"the target has left running: {pids} ({len(left)} in all)")
        if self._server is not None:
            self._warn_of_other_users()
            if not self._traced:
                self._warn("no program of the target made an NVTX call")
        self._last_words()
        return Outcome(self._run_dir, manifest, self._ledger.by_reason())

    def _warn_of_other_users(self) -> None:
        others = self._tree.of_other_users()
        untraced = sorted(others.keys() - self._traced_pids)
        if untraced:
            self._warn(
                f"NVTX calls of {len(untraced)} processes of other users could not be recorded "
                f"(the first: {untraced[0]}, user {others[untraced[0]]}): "
                "run cctrace as that user"
            )

    def _last_words(self) -> None:
        self._reserve.release()
        try:
            self._write_small_tables()
            self._write_manifest()
        except OSError as error:
            self._warn(f"the end of the run could not be written: {error.strerror or error}")

    def _how_it_ended(self, running: target.Target) -> str:
        if self._failed is not None:
            return m.DISK_FULL if self._failed == "disk_full" else m.WRITE_FAILED
        if running.exit_code is None:
            return m.DURATION
        return m.TARGET_SIGNAL if running.signalled else m.CLEAN


def _printable(argument: str) -> str:
    """What is no UTF-8 replaced, so that whoever reads the manifest can print it."""
    return os.fsencode(argument).decode("utf-8", "replace")


def merge_report(known: m.HookReport, new: m.HookReport) -> None:
    """Add to a process's report what the adapter says of a further module."""
    for ours, theirs in ((known.hooked, new.hooked), (known.missing, new.missing)):
        fresh = [word for word in theirs if word not in ours]
        ours.extend(fresh[: _MAX_WORDS - len(ours)])
    known.engine_version = known.engine_version or new.engine_version
    if new.note and new.note not in (known.note or ""):
        known.note = f"{known.note}; {new.note}"[:_WORD_LIMIT] if known.note else new.note


def parse_report(pid: int, report: dict[str, Any]) -> m.HookReport:
    """Check what an adapter reported; it comes from the target, so nothing is trusted.

    Raises:
        ValueError: A field is missing, of another kind, or too long.
    """

    def text(name: str) -> str | None:
        value = report.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} is not text")
        return _word(value) if value is not None else None

    def words(name: str) -> list[str]:
        value = report.get(name, [])
        if not isinstance(value, list) or len(value) > _MAX_WORDS:
            raise ValueError(f"{name} is not a list of at most {_MAX_WORDS}")
        return [_word(str(word)) for word in value]

    adapter = text("adapter")
    if adapter is None:
        raise ValueError("adapter is missing")
    return m.HookReport(
        pid, adapter, text("engine_version"), words("hooked"), words("missing"), text("note")
    )


def _word(text: str) -> str:
    # JSON can hold lone surrogates, which nobody could print.
    return text[:_WORD_LIMIT].encode("utf-8", "replace").decode()
