"""Attach to libraries before their first call.

Those found beforehand are attached to before the target starts, others when a process
announces that it is loading one, and late those that neither covered.

The audit library (``probes/agent/audit.c``) has a process wait while its library is
attached to. Programs that the loader does not audit (another C library, static, a
dropped environment) are found by their mappings afterwards, and their first calls are
missed: that is counted.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

from cctrace.annotate import SOCKET
from cctrace.errors import CctraceError
from cctrace.record import library_files, program_file
from cctrace.record.clock import now_ns
from cctrace.record.library_files import Identity, OpenedFile
from cctrace.record.library_search import find_libraries
from cctrace.record.losses import LossLedger
from cctrace.store.manifest import start_ticks

LD_AUDIT: Final = "LD_AUDIT"  # ld.so(8)
LIBRARIES: Final = "CCTRACE_LIBRARIES"
# Beginnings of file names; auditwheel puts a hash before ".so" (libcudart-d0da41ae.so.11.0).
PREFIXES: Final = ("libcudart", "libcuda.so", "libcuda-", "libnccl")
_NAMES_MAX_BYTES: Final = 511  # NAMES_BYTES of audit.c less its NUL
_SCAN_COST: Final = 50  # scans may take one fiftieth of the time
# A library that a scan sees may be announced this moment: it is late when it is not.
_LATE_AFTER_NS: Final = 3_000_000_000
_MAX_SEEN: Final = 65536

How = Literal["before_load", "at_load", "late"]
Callback = Callable[[Path, "int | None"], None]
# A file, and the process where each is told: its pid and start.
_Key = tuple[Identity, "tuple[int, int | None] | None"]
_Match = tuple[str, Callback]
Watched = tuple[str, "str | re.Pattern[str]", Callback]


@dataclass
class LoadedLibrary:
    """One file that was attached to, or could not be.

    Attributes:
        label: Which of the watched libraries it is.
        path: Its path, as the recorder sees it where it can.
        pid: Process that loaded it first; None: found beforehand.
        ts_ns: When it was attached to, ns of CLOCK_MONOTONIC.
        how: Before anyone loaded it, while its loader waited, or late: calls may be
            missing.
        error: Why it could not be attached to.
    """

    label: str
    path: str
    pid: int | None
    ts_ns: int
    how: How
    error: str | None = None


@dataclass
class _Known:
    """A file that was seen.

    Attributes:
        record: What is told of it.
        stamp: Size and time of change when it was attached to.
        asked: Process, path and address of the announcement it was attached for.
        done: Set once its callback has returned.
    """

    record: LoadedLibrary
    stamp: tuple[int, int]
    asked: tuple[int, str, int] | None = None
    done: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Program:
    """What a process ran, and how much of it was executable, when it was scanned."""

    ticks: int | None
    exe: str | None
    size: bytes


class LibraryWatch:
    """Has each watched library attached to once, whoever loads it; thread-safe.

    Args:
        watched: Label, regular expression that a file's name must match from its
            beginning, and what attaches: called with a path that leads to the file
            while the call lasts, and the process that loads it (None: none yet). One
            call at a time; its errors are recorded here, not raised.
        ledger: Takes the count of libraries attached late.
        source: Source these losses are of.
        every_process: Labels of which every process that loads the file is told, not
            the first one alone; nothing is told of files found beforehand.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        ledger: LossLedger,
        source: str = "cuda",
        every_process: Collection[str] = (),
    ) -> None:
        self._watched = [(label, re.compile(name), attach) for label, name, attach in watched]
        self._ledger = ledger
        self._source = source
        self._every_process = frozenset(every_process)
        self._lock = threading.Lock()
        self._attaching = threading.Lock()
        self._known: dict[_Key, _Known] = {}
        self._records: list[LoadedLibrary] = []
        self._late: dict[tuple[int, _Key], int] = {}
        self._seen: set[tuple[bytes, int | None]] = set()
        self._programs: dict[int, _Program] = {}
        self._scan_due_s = 0.0
        self.search_was_whole = True

    def prescan(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Attach to what ``command`` may load, in time for everything it calls."""
        paths, self.search_was_whole = find_libraries(
            command, environment, lambda name: self._match(name) is not None
        )
        for path in paths:
            matching = self._match(path.rpartition("/")[2])
            if matching is None or matching[0] in self._every_process:
                continue
            with self._opened(partial(library_files.open_named, None, path)) as file:
                if file is not None:
                    key = self._key(matching, file, None)
                    self._attach(matching, key, file, None, "before_load")

    def announced(self, pid: int, path: bytes | str, address: int = 0) -> None:
        """Attach to a library that ``pid`` has mapped and waits to run.

        Args:
            pid: The process.
            path: As the process has it; not trusted.
            address: Somewhere in the library, which says which file it is however
                the process sees it; 0: go by the path.
        """
        name = os.fsdecode(path)
        matching = self._match(name.rpartition("/")[2])
        if matching is None:
            return
        with self._opened(partial(_open_announced, pid, name, address)) as file:
            if file is None:
                return
            key = self._key(matching, file, pid)
            mine = self._attach(matching, key, file, pid, "at_load")
            with self._lock:
                if mine:
                    self._known[key].asked = (pid, name, address)
                # Seen by a scan a moment ago, but nothing of it has run.
                if self._late.pop((pid, key), None) is not None:
                    self._known[key].record.how = "at_load"

    def missed(self, pid: int, path: bytes | str, address: int = 0) -> None:
        """Take note that ``pid`` went on before ``announced`` was through."""
        name = os.fsdecode(path)
        if self._match(name.rpartition("/")[2]) is None:
            return
        self._ledger.add(self._source, "late_attach", 1, pid=pid, first_ns=now_ns())
        with self._lock:
            for known in self._known.values():
                if known.asked == (pid, name, address):  # the process may be gone by now
                    known.record.how = "late"

    def scan(self, pid: int) -> None:
        """Attach to what ``pid`` has mapped and nobody announced."""
        for mapping in library_files.file_mappings(pid, executable=True):
            matching = self._match(mapping.basename)
            if matching is None:
                continue
            seen = (mapping.key, pid if matching[0] in self._every_process else None)
            if seen in self._seen:
                continue
            with self._opened(partial(library_files.open_mapped, pid, mapping)) as file:
                if file is None:
                    continue
                key = self._key(matching, file, pid)
                if self._attach(matching, key, file, pid, "late"):
                    with self._lock:
                        self._late[pid, key] = now_ns()
            if len(self._seen) < _MAX_SEEN:
                self._seen.add(seen)

    def scan_all(self, pids: Iterable[int]) -> None:
        """Scan processes whose executable part has changed, unless it was done just now.

        Takes one fiftieth of the time at most, however often it is called; a look at a
        process that has loaded nothing since the last one costs some 0.1 ms.
        """
        begun_s = time.monotonic()
        if begun_s < self._scan_due_s:
            return
        running = set(pids)
        for pid in running:
            now = _program(pid)
            if now is not None and now != self._programs.get(pid):
                self._programs[pid] = now
                self.scan(pid)
        for gone in self._programs.keys() - running:
            del self._programs[gone]
        self._settle(now_ns() - _LATE_AFTER_NS)
        self._scan_due_s = time.monotonic() + (time.monotonic() - begun_s) * _SCAN_COST

    def close(self) -> None:
        """Count what was late; nothing is announced or scanned from now on."""
        self._settle(now_ns())

    def records(self) -> list[LoadedLibrary]:
        """Files attached to, or refused, in the order they were met."""
        with self._lock:
            return [LoadedLibrary(**vars(record)) for record in self._records]

    def _match(self, basename: str) -> _Match | None:
        for label, pattern, callback in self._watched:
            if pattern.match(basename):
                return label, callback
        return None

    @contextmanager
    def _opened(self, opener: Callable[[], OpenedFile]) -> Iterator[OpenedFile | None]:
        """A file, or None where it is gone, is no file, or may not be opened."""
        try:
            file = opener()
        except (OSError, ValueError):
            yield None
            return
        with closing(file):
            yield file

    def _key(self, matching: _Match, file: OpenedFile, pid: int | None) -> _Key:
        if matching[0] in self._every_process and pid is not None:
            return file.identity, (pid, start_ticks(pid))
        return file.identity, None

    def _attach(
        self, matching: _Match, key: _Key, file: OpenedFile, pid: int | None, how: How
    ) -> bool:
        """Attach to a file once; returns whether this call did, successfully."""
        label, callback = matching
        with self._lock:
            known = self._known.get(key)
            mine = known is None or (
                known.done.is_set() and known.record.error is not None and known.stamp != file.stamp
            )
            if known is None or mine:
                record = LoadedLibrary(label, file.shown, pid, now_ns(), how)
                known = self._known[key] = _Known(record, file.stamp)
                self._records.append(record)
        if not mine:
            known.done.wait()  # who loads it second must not go on before it is attached to
            return False
        try:
            with self._attaching:
                callback(file.path(), pid)
        except CctraceError as error:
            known.record.error = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the loading process must go on
            known.record.error = repr(error)
        finally:
            known.record.ts_ns = now_ns()
            known.done.set()
        return known.record.error is None

    def _settle(self, until_ns: int) -> None:
        with self._lock:
            due = [(key, ts) for key, ts in self._late.items() if ts <= until_ns]
            for key, _ in due:
                del self._late[key]
        for (pid, _), ts_ns in due:
            self._ledger.add(self._source, "late_attach", 1, pid=pid, first_ns=ts_ns, last_ns=ts_ns)


def environment(
    base_env: Mapping[str, str],
    socket: Path,
    library: Path,
    command: Sequence[str] = (),
    prefixes: Sequence[str] = PREFIXES,
) -> dict[str, str]:
    """Return what has the target announce the libraries it loads.

    Args:
        base_env: Environment the target would have without cctrace.
        socket: The recorder's hand-over socket.
        library: The audit library.
        command: The target's arguments; a 32-bit program gets nothing, since its
            loader would complain of a 64-bit auditor.
        prefixes: Beginnings of the file names to announce.

    Raises:
        CctraceError: The audit library's path cannot be written in LD_AUDIT.
    """
    if command and program_file.is_32_bit(program_file.find_program(command[0], base_env)):
        return {}
    ours = str(library)
    if ":" in ours or "$" in ours:
        raise CctraceError(
            f"libraries that load later cannot be seen: LD_AUDIT cannot name {ours}",
            "install cctrace in a folder without ':' and '$' in its path",
        )
    names = ":".join(prefixes)
    if len(os.fsencode(names)) > _NAMES_MAX_BYTES:
        raise ValueError(f"names of libraries to announce take over {_NAMES_MAX_BYTES} bytes")
    existing = base_env.get(LD_AUDIT)
    audit = ours
    if existing:
        audit = existing if ours in existing.split(":") else f"{existing}:{ours}"
    return {LD_AUDIT: audit, SOCKET: str(socket), LIBRARIES: names}


def _open_announced(pid: int, path: str, address: int) -> OpenedFile:
    mapping = library_files.mapping_at(pid, address) if address else None
    if mapping is not None:
        return library_files.open_mapped(pid, mapping)
    return library_files.open_named(pid, path)


def _program(pid: int) -> _Program | None:
    """What changes when a process loads a library or becomes another program."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
        exe = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - text, compared only
    except OSError:
        return None
    sizes = [line for line in status.splitlines() if line.startswith((b"VmExe", b"VmLib"))]
    return _Program(start_ticks(pid), exe, b" ".join(sizes))
