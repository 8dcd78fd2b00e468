"""One run directory: its manifest, its checked parts, what it lost.

The ground both the DuckDB connection and ``cctrace info`` stand on. It reads the
manifest, footers and the small ``losses`` table, never events.
"""

from __future__ import annotations

import os
import shlex
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cctrace.errors import EXIT_BAD_DATA, EXIT_USAGE, CctraceError
from cctrace.schema import TABLES
from cctrace.store.losses import LossSummary, summarize
from cctrace.store.manifest import MANIFEST_NAME, Manifest, read_manifest
from cctrace.store.parts import Part, list_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Run:
    """One run directory that is there and of a known version.

    Args:
        path: The run directory.
        label: Value of the ``run`` column; the directory's name unless given.

    Attributes:
        path: The directory, absolute and without links.
        label: Value of the ``run`` column.
        manifest: Contents of ``run.json``.

    Raises:
        CctraceError: Exit code 4; no run there, or not one this cctrace reads.
    """

    def __init__(self, path: str | os.PathLike[str], label: str | None = None) -> None:
        given = Path(path)
        try:
            self.path = given.resolve()
            str(self.path).encode()
        except (OSError, ValueError, RuntimeError) as error:
            raise CctraceError(
                f"no run at {os.fsencode(given)!r}: {error}", None, EXIT_BAD_DATA
            ) from error
        self.manifest: Manifest = read_manifest(self.path)
        self.label = unique_labels([self.path])[0] if label is None else label
        self._parts: dict[str, tuple[Part, ...]] = {}

    def parts(self, table: str) -> tuple[Part, ...]:
        """Parts of ``table`` that count, checked, in the order they were written.

        Raises:
            CctraceError: Exit code 4; one of them is damaged or foreign.
        """
        if table not in self._parts:
            self._parts[table] = list_parts(self.path / table, TABLES[table])
        return self._parts[table]

    def rows(self, table: str) -> int:
        """Rows of ``table``, from the footers of its parts."""
        return sum(part.rows for part in self.parts(table))

    def size_bytes(self, table: str) -> int:
        """Bytes of the parts of ``table``."""
        return sum(part.size_bytes for part in self.parts(table))

    def refresh(self) -> None:
        """Look at the directory again: a run being recorded gains and merges parts."""
        self.manifest = read_manifest(self.path)
        self._parts.clear()
        self.__dict__.pop("losses", None)

    def find_damage(self) -> tuple[Path, str] | None:
        """Read every part whole; the first that cannot be read, and why.

        DuckDB does not always name the file it failed on.
        """
        for name in TABLES:
            for part in self.parts(name):
                try:
                    with part.path.open("rb") as file:
                        content: Any = pq.ParquetFile(file)
                        for _ in content.iter_batches():
                            pass
                except (OSError, pa.ArrowException) as error:
                    return part.path, str(error)
        return None

    def facts(self) -> tuple[str | float | None, ...]:
        """The row of this run in ``runs``; columns as ``RUNS_COLUMNS`` of connection.py."""
        manifest = self.manifest
        return (
            self.label,
            str(self.path),
            shlex.join(str(word) for word in manifest.command),
            utc_text(manifest.start.realtime_ns),
            manifest.start.monotonic_ns,
            manifest.stop.monotonic_ns if manifest.stop else None,
            manifest.ended,
            manifest.exit_code,
            self.events,
            self.losses.lost_total,
            sum(self.size_bytes(name) for name in TABLES),
            self.host_fact("tee", "kind"),
            self.host_fact("gpu", "cc_state"),
            self._gpu_name(),
            self.host_fact("gpu", "driver_version"),
            ",".join(source.name for source in manifest.sources if source.state == "attached"),
            self._probe_cost("probe_ns"),
            self._probe_cost("probe_call_ns"),
            str(manifest.cctrace_version),
        )

    def host_fact(self, *path: str) -> str | None:
        """A fact of the machine, or None where the manifest has none there."""
        value: Any = self.manifest.host
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None or isinstance(value, dict | list) else str(value)

    def _gpu_name(self) -> str | None:
        gpu = self.manifest.host.get("gpu")
        devices = gpu.get("devices") if isinstance(gpu, dict) else None
        first = devices[0] if isinstance(devices, list) and devices else None
        name = first.get("name") if isinstance(first, dict) else None
        return name if isinstance(name, str) else None

    def _probe_cost(self, name: str) -> float | None:
        """What the recorder has measured of its own probes, ns."""
        for source in self.manifest.sources:
            told = source.detail.get(name) if source.name == "cuda" else None
            if isinstance(told, int | float) and not isinstance(told, bool):
                return float(told)
        return None

    @property
    def events(self) -> int:
        """Rows of the tables of events: those that happen at a ``ts_ns``."""
        return sum(self.rows(name) for name in TABLES if is_event_table(name))

    @cached_property
    def losses(self) -> LossSummary:
        """What was lost, by reason.

        Raises:
            CctraceError: Exit code 4; the losses cannot be read.
        """
        rows: list[tuple[str, int]] = []
        for part in self.parts("losses"):
            try:
                with part.path.open("rb") as file:
                    table: Any = pq.read_table(file, columns=["reason", "count"])
                    rows += zip(
                        table["reason"].to_pylist(), table["count"].to_pylist(), strict=True
                    )
            except (OSError, pa.ArrowException) as error:
                raise CctraceError(
                    f"{part.path} is damaged: {error}", None, EXIT_BAD_DATA
                ) from error
        return summarize(rows)


def is_event_table(name: str) -> bool:
    """Whether rows of table ``name`` count as events of a run."""
    return name not in {"processes", "threads"} and "ts_ns" in TABLES[name].column_names


def utc_text(realtime_ns: int) -> str | None:
    """``YYYY-MM-DD HH:MM:SS`` in UTC, or None where no calendar has that moment."""
    try:
        moment = datetime.fromtimestamp(realtime_ns // 1_000_000_000, tz=timezone.utc)
    except (OverflowError, OSError, ValueError):
        return None
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a directory that has a manifest."""
    try:
        return (Path(path) / MANIFEST_NAME).is_file()
    except (OSError, ValueError):
        return False


def open_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Open several run directories, each under a label of its own.

    Raises:
        CctraceError: Exit code 4; one of them is no run this cctrace reads. Exit
            code 2; none was named, or one of them twice.
    """
    if not paths:
        raise CctraceError("no run was named", "name a run directory", EXIT_USAGE)
    runs = [Run(path) for path in paths]
    seen: set[Path] = set()
    for run in runs:
        if run.path in seen:
            raise CctraceError(f"{run.path} was named twice", "name it once", EXIT_USAGE)
        seen.add(run.path)
    for run, label in zip(runs, unique_labels(run.path for run in runs), strict=True):
        run.label = label
    return runs


def unique_labels(paths: Iterable[Path]) -> list[str]:
    """Shortest tails of ``paths`` that tell each from all others.

    Args:
        paths: Absolute paths, all different.

    Returns:
        One label per path, in order: the directory's name where that is enough,
        else as many of the last components as it takes.
    """
    tails = [path.parts[1:] or path.parts for path in paths]
    lengths = [1] * len(tails)
    while True:
        labels = ["/".join(t[-n:]) for t, n in zip(tails, lengths, strict=True)]
        clashing = {label for label in labels if labels.count(label) > 1}
        grown = [
            min(n + 1, len(t)) if label in clashing else n
            for t, n, label in zip(tails, lengths, labels, strict=True)
        ]
        if grown == lengths:
            return labels
        lengths = grown
