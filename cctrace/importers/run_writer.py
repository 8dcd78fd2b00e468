"""The run directory of an imported file: staged rows to parts, and ``run.json``.

Everything is written into a directory of its own beside the place the run is to
have, and takes that place in one step when it is whole. So a failed import, or a
killed one, leaves nothing that looks like a run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from cctrace.errors import EXIT_FAILED, CctraceError
from cctrace.importers.accounting import Accounting, Rejects
from cctrace.importers.correlate import Column, join, thread_codes
from cctrace.importers.nesting import depths
from cctrace.importers.staging import Columns, Staging, codes, ints, shifted
from cctrace.importers.threads import stage_threads
from cctrace.schema import TABLES
from cctrace.store.losses import summarize
from cctrace.store.manifest import (
    CLEAN,
    MANIFEST_NAME,
    RECORDING,
    Anchor,
    Manifest,
    Recorder,
    Source,
    read_manifest,
    start_ticks,
)
from cctrace.store.parts import part_name
from cctrace.version import VERSION

_ROW_GROUP_ROWS: Final = 1 << 20
_NO_EVENTS: Final = ("processes", "threads", "stacks", "losses")
# Source as queries know it, and the table it fills.
_SOURCE_TABLES: Final = {
    "cuda": "cuda_api",
    "gpu": "gpu_activity",
    "nvtx": "nvtx",
    "sched": "sched",
    "processes": "processes",
}


@dataclass
class Clock:
    """How the times of the run relate to other clocks.

    Attributes:
        domain: What ``ts_ns`` counts, in words.
        source: Where the file says so, in words.
        realtime_offset_ns: CLOCK_REALTIME less ``ts_ns``; None: the file does not tell.
        monotonic_offset_ns: CLOCK_MONOTONIC of the traced machine less ``ts_ns``; None:
            the file does not tell.
        shift_ns: What is added to the staged times to give ``ts_ns``.
    """

    domain: str
    source: str
    realtime_offset_ns: int | None
    monotonic_offset_ns: int | None = None
    shift_ns: int = 0

    def from_zero(self, first_ns: int | None) -> Clock:
        """The same clock, counted from its first event where that would have a negative time.

        Times are at least 0 everywhere: no clock of a recorded run gives any other.

        Args:
            first_ns: Earliest staged time; None: no event.
        """
        before_ns = -((first_ns or 0) + self.shift_ns)
        if first_ns is None or before_ns <= 0:
            return self
        offsets = (self.realtime_offset_ns, self.monotonic_offset_ns)
        realtime_ns, monotonic_ns = (None if ns is None else ns - before_ns for ns in offsets)
        return Clock(
            domain=f"{self.domain}, plus {before_ns} ns: the first event is at 0",
            source=self.source,
            realtime_offset_ns=realtime_ns,
            monotonic_offset_ns=monotonic_ns,
            shift_ns=self.shift_ns + before_ns,
        )


@dataclass
class Described:
    """What an importer says of a file beside its events.

    Attributes:
        clock: How its times relate to other clocks.
        by_pid: Correlation ids are of a process, not of the file.
        tool: What made the file: name and version, as far as it tells.
        host: Facts of the machine, keyed as in a recorded run.
        absent: Why a source has no rows, by its name (``cuda``, ``gpu``, ...).
        detail: More on each source, by its name.
        thread_names: Names of threads by (pid, tid); None: not known.
        pids: Processes the file names.
        warnings: What the user should know.
        not_in_file: Events the tool says it left out itself, by source.
    """

    clock: Clock
    by_pid: bool
    tool: dict[str, Any]
    host: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    detail: dict[str, dict[str, Any]] = field(default_factory=dict)
    thread_names: dict[tuple[int, int], str | None] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    not_in_file: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def destination(run_dir: Path, *, force: bool) -> Iterator[Path]:
    """A directory to write a run into; it becomes ``run_dir`` when the block ends well.

    Args:
        run_dir: Where the run is to be; its parents are made.
        force: Replace a run that is there. Nothing but a run is ever replaced.

    Yields:
        An empty directory beside it.

    Raises:
        CctraceError: Something is there already, or the place cannot be written.
    """
    try:
        _check_free(run_dir, force=force)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{run_dir.name}.import-", dir=run_dir.parent))
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    try:
        yield scratch
        # mkdtemp made it for this user alone; a run is as open as any other directory.
        scratch.chmod(0o777 & ~_umask())
        _take_place(scratch, run_dir, force=force)
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _umask() -> int:
    # Asking for it means setting it; no other thread makes files here.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _take_place(scratch: Path, run_dir: Path, *, force: bool) -> None:
    _check_free(run_dir, force=force)
    if not run_dir.is_dir():
        scratch.rename(run_dir)
        return
    old = run_dir.with_name(f".{run_dir.name}.replaced-{os.getpid()}")
    run_dir.rename(old)
    try:
        scratch.rename(run_dir)
    except OSError:
        old.rename(run_dir)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_free(run_dir: Path, *, force: bool) -> None:
    if not run_dir.exists() and not run_dir.is_symlink():
        return
    if run_dir.is_dir() and not run_dir.is_symlink():
        if not any(run_dir.iterdir()):
            return
        if (run_dir / MANIFEST_NAME).is_file():
            if not force:
                raise CctraceError(
                    f"{run_dir} exists",
                    "add --force to replace that run, or name another place with -o",
                )
            _refuse_recording(run_dir)
            return
    raise CctraceError(
        f"{run_dir} exists and is not a cctrace run", "name another place with -o", EXIT_FAILED
    )


def _refuse_recording(run_dir: Path) -> None:
    try:
        manifest = read_manifest(run_dir)
    except CctraceError:  # damaged, or of another version: it may be replaced
        return
    if manifest.ended == RECORDING:
        raise CctraceError(
            f"{run_dir} is being recorded right now, by process {manifest.recorder.pid}",
            "wait for it, or name another place with -o",
        )


def _unwritable(run_dir: Path, error: OSError) -> CctraceError:
    return CctraceError(
        f"cannot write a run to {run_dir}: {error.strerror or error}",
        "name another place with -o",
        EXIT_FAILED,
    )


def write_run(
    folder: Path,
    staging: Staging,
    described: Described,
    options: dict[str, Any],
    accounted: tuple[Accounting, Rejects],
) -> Manifest:
    """Write parts and ``run.json`` from what was staged.

    Args:
        folder: The run directory, without parts so far.
        staging: All batches of the file.
        described: What the importer says of it.
        options: What the file was: ``imported_from``, ``file``, ``file_bytes``.
        accounted: What became of each event.

    Returns:
        The manifest as written.

    Raises:
        OSError: The disk is full or refuses.
    """
    accounting, rejects = accounted
    name = options["imported_from"]
    losses = {name: {"bad_event": rejects.count} if rejects.count else {}}
    for source, count in described.not_in_file.items():
        losses.setdefault(source, {})["not_in_file"] = count
    _stage_losses(staging, losses)
    stage_threads(staging, described.thread_names, described.pids)
    clock = described.clock.from_zero(staging.first_ns)
    added: dict[str, dict[str, Column]] = {}
    joined = join(staging, by_pid=described.by_pid)
    added["cuda_api"], added["gpu_activity"] = joined.calls, joined.activities
    added["nvtx"] = _nvtx_depths(staging)
    tables: dict[str, int] = {}
    size_bytes = 0
    for table in TABLES:
        if staging.parts(table):
            written = _write_table(folder, table, staging, clock.shift_ns, added)
            tables[table], size_bytes = staging.rows[table], size_bytes + written
    summary = summarize((why, n) for by_reason in losses.values() for why, n in by_reason.items())
    correlation = {"shared_ids": joined.shared_ids, "activities_without_call": joined.unmatched}
    start, stop = _anchors(staging, clock)
    pid = os.getpid()
    manifest = Manifest(
        cctrace_version=VERSION,
        command=[],
        cwd="",
        start=start,
        stop=stop,
        ended=CLEAN,
        recorder=Recorder(pid, start_ticks(pid) or 0),
        host=described.host,
        sources=_sources(name, described, tables, accounting.as_data(), correlation),
        tables=tables,
        events=sum(n for table, n in tables.items() if table not in _NO_EVENTS),
        size_bytes=size_bytes,
        lost=summary.lost_total,
        options={**options, "tool": described.tool, "clock": _clock_data(clock)},
        warnings=described.warnings,
    )
    manifest.write(folder)
    return manifest


def _stage_losses(staging: Staging, losses: dict[str, dict[str, int]]) -> None:
    rows = [(s, r, n) for s, by_reason in losses.items() for r, n in by_reason.items() if n]
    if rows:
        source, reason, count = (list(column) for column in zip(*rows, strict=True))
        columns = {"source": source, "reason": reason, "count": count}
        staging.add("losses", len(rows), columns)


def _nvtx_depths(staging: Staging) -> dict[str, Column]:
    data = Columns(staging, "nvtx")
    kind, kinds = codes(data, "kind")
    domain, domains = codes(data, "domain")
    is_range = kind == (kinds.index("push_pop") if "push_pop" in kinds else -1)
    rows = np.flatnonzero(is_range)
    depth = np.zeros(len(kind), np.int32)
    if len(rows):
        thread = thread_codes(ints(data, "pid")[rows], ints(data, "tid")[rows])
        group = thread.astype(np.int64) * (len(domains) + 1) + domain[rows] + 1
        group = np.unique(group, return_inverse=True)[1].astype(np.int32)
        length = ints(data, "dur_ns", -1)
        depth[rows] = depths(group, ints(data, "ts_ns")[rows], length[rows])
    return {"depth": Column(depth, np.zeros(len(depth), np.bool_))}


def _write_table(
    folder: Path,
    table: str,
    staging: Staging,
    shift_ns: int,
    added: dict[str, dict[str, Column]],
) -> int:
    """Write the parts of a table; return their bytes."""
    place = folder / table
    place.mkdir()
    first = size_bytes = 0
    for number, staged in enumerate(staging.parts(table)):
        data = shifted(table, pq.ParquetFile(staged).read(), shift_ns)
        rows = slice(first, first + data.num_rows)
        for name, column in added.get(table, {}).items():
            index = data.schema.get_field_index(name)
            field_ = data.schema.field(index)
            data = data.set_column(index, field_, column.arrow(rows, field_.type))
        path = place / part_name(number)
        temporary = place / f".{path.name}.tmp"
        pq.write_table(
            data.cast(TABLES[table].arrow),
            temporary,
            row_group_size=_ROW_GROUP_ROWS,
            compression="zstd",
        )
        temporary.replace(path)
        staged.unlink()
        size_bytes += path.stat().st_size
        first = rows.stop
    return size_bytes


def _anchors(staging: Staging, clock: Clock) -> tuple[Anchor, Anchor]:
    """Anchors at the first event and at the last end."""
    first = 0 if staging.first_ns is None else staging.first_ns + clock.shift_ns
    last = first if staging.last_ns is None else staging.last_ns + clock.shift_ns
    offset = clock.realtime_offset_ns or 0
    return (
        Anchor(first, first + offset, first),
        Anchor(last, last + offset, last),
    )


def _clock_data(clock: Clock) -> dict[str, Any]:
    return {
        "domain": clock.domain,
        "source": clock.source,
        "realtime_offset_ns": clock.realtime_offset_ns,
        "monotonic_offset_ns": clock.monotonic_offset_ns,
        "shift_ns": clock.shift_ns,
    }


def _sources(
    name: str,
    described: Described,
    tables: dict[str, int],
    accounting: dict[str, Any],
    correlation: dict[str, int],
) -> list[Source]:
    found = [
        Source(name, "attached", detail={"accounting": accounting, "correlation": correlation})
    ]
    for source, table in _SOURCE_TABLES.items():
        detail = described.detail.get(source, {})
        if tables.get(table):
            found.append(Source(source, "attached", detail=detail))
            continue
        reason = described.absent.get(source, "the file has no events of this kind")
        found.append(Source(source, "refused", reason, detail=detail))
    return found


def staging_folder(folder: Path) -> Staging:
    """Staging inside the directory the run is written to; ``drop_staging`` removes it."""
    place = folder / ".staged"
    place.mkdir()
    return Staging(place)


def drop_staging(staging: Staging) -> None:
    """Remove what is left of the staged batches (``HINTS`` is no table of a run)."""
    shutil.rmtree(staging.folder)
