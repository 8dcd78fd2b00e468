"""``run.json``: what was run, where, how it ended, and what was left out.

The recorder rewrites the file about once a second, each time under a temporary
name that is then renamed, so a reader finds a whole one at any time. A manifest
without ``stop`` belongs to a run that is still being recorded or whose recorder
was killed; ``recorder.pid`` and ``recorder.start_ticks`` tell which.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.schema import SCHEMA_VERSION

MANIFEST_NAME = "run.json"

# How a run ended, as stored in ``ended``.
RECORDING = "recording"  # not over; or the recorder was killed
CLEAN = "clean"  # the target exited by itself
TARGET_SIGNAL = "target_signal"  # a signal ended the target
DURATION = "duration"  # --duration was over
STOPPED = "stopped"  # the user ended the recording; the process recorded goes on
DISK_FULL = "disk_full"  # recording stopped early; the target went on
WRITE_FAILED = "write_failed"  # as disk_full, for another error of the disk
RECORDER_KILLED = "recorder_killed"  # never stored: what a reader makes of RECORDING


@dataclass
class Anchor:
    """The three clocks read at one moment, ns each.

    Attributes:
        monotonic_ns: CLOCK_MONOTONIC, the clock of every ``ts_ns``.
        realtime_ns: CLOCK_REALTIME, ns since the epoch.
        boottime_ns: CLOCK_BOOTTIME.
    """

    monotonic_ns: int
    realtime_ns: int
    boottime_ns: int


@dataclass
class Recorder:
    """The recording process: tells a live run from one whose recorder was killed.

    Attributes:
        pid: Process id of the recorder.
        start_ticks: Field 22 of its /proc/PID/stat, so that a reused pid is told apart.
        cpu_s: Processor time recording took, start-up of Python not counted; None
            while recording and where the run was imported.
    """

    pid: int
    start_ticks: int
    cpu_s: float | None = None


@dataclass
class Source:
    """One source of events and whether it could be attached.

    Attributes:
        name: ``nvtx``, ``processes``, ...
        state: ``attached`` or ``refused``.
        reason: Why it was refused; None where it was attached.
        hint: The fix; None where there is none to name.
        detail: What else is to be told (versions, counts).
    """

    name: str
    state: str
    reason: str | None = None
    hint: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass
class HookReport:
    """What one annotation adapter did in one process.

    Attributes:
        pid: Process it ran in.
        adapter: ``vllm`` or ``transformers``.
        engine_version: Version of the engine found; None where unknown.
        hooked: Hook points that were found and wrapped.
        missing: Hook points this engine version does not have.
        note: What else the user should know; None for nothing.
    """

    pid: int
    adapter: str
    engine_version: str | None
    hooked: list[str]
    missing: list[str]
    note: str | None = None


@dataclass
class Manifest:
    """Contents of ``run.json``.

    Attributes:
        schema_version: Version of the run format; readers refuse others.
        cctrace_version: Version of cctrace that wrote the run.
        command: The target's arguments; empty for an imported run.
        cwd: Directory it was started in.
        start: Clocks at the start.
        stop: Clocks at the end; None while recording or after a kill.
        ended: One of the constants of this module.
        exit_code: The target's status, 128 + n for signal n; None: not over.
        recorder: The recording process.
        host: Facts of the machine, see ``cctrace.record.host``.
        sources: Every source asked for.
        adapters: What the annotation adapters reported.
        tables: Rows by table name.
        events: Rows of event tables (those that have a ``ts_ns``, less processes
            and threads).
        size_bytes: Bytes of all parts.
        lost: Events lost, the sum of losses.count over reasons that lose an event.
        options: Recorder options that shape the data.
        warnings: What the user was told at the end.
    """

    cctrace_version: str
    command: list[str]
    cwd: str
    start: Anchor
    recorder: Recorder
    schema_version: int = SCHEMA_VERSION
    stop: Anchor | None = None
    ended: str = RECORDING
    exit_code: int | None = None
    host: dict[str, Any] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    adapters: list[HookReport] = field(default_factory=list)
    tables: dict[str, int] = field(default_factory=dict)
    events: int = 0
    size_bytes: int = 0
    lost: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def write(self, run_dir: Path) -> None:
        """Write ``run.json`` into ``run_dir``, replacing it in one step.

        Raises:
            OSError: The directory cannot be written.
        """
        temporary = run_dir / f".{MANIFEST_NAME}.tmp"
        text = json.dumps(asdict(self), indent=1, ensure_ascii=True)
        temporary.write_text(text + "\n", encoding="ascii")
        os.replace(temporary, run_dir / MANIFEST_NAME)


def read_manifest(run_dir: Path) -> Manifest:
    """Read and check ``run.json`` of ``run_dir``.

    Returns:
        The manifest; ``ended`` is ``RECORDER_KILLED`` where the recorder is gone
        without having closed the run.

    Raises:
        CctraceError: Exit code 4; no run there, not JSON, a field missing or of
            the wrong kind, or a schema version this cctrace does not know.
    """
    path = run_dir / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CctraceError(
            f"no run at {run_dir}: {MANIFEST_NAME} is missing",
            "name a directory that `cctrace record -o` wrote",
            EXIT_BAD_DATA,
        ) from None
    except (OSError, ValueError) as error:
        raise CctraceError(f"cannot read {path}: {error}", None, EXIT_BAD_DATA) from error
    if not isinstance(raw, dict) or "schema_version" not in raw:
        raise CctraceError(
            f"{path} is not a cctrace manifest: no schema_version", None, EXIT_BAD_DATA
        )
    version = raw["schema_version"]
    if version != SCHEMA_VERSION:
        raise CctraceError(
            f"{run_dir} has run format version {version!r}; "
            f"this cctrace reads version {SCHEMA_VERSION}",
            "open it with the cctrace that wrote it "
            f"(version {raw.get('cctrace_version', 'unknown')})",
            EXIT_BAD_DATA,
        )
    try:
        manifest = _from_json(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise CctraceError(
            f"{path} is damaged: {type(error).__name__}: {error}", None, EXIT_BAD_DATA
        ) from error
    if manifest.ended == RECORDING and not _is_running(manifest.recorder):
        manifest.ended = RECORDER_KILLED
    return manifest


def _from_json(raw: dict[str, Any]) -> Manifest:
    known = set(Manifest.__dataclass_fields__)
    values = {k: v for k, v in raw.items() if k in known}
    values["start"] = Anchor(**raw["start"])
    values["stop"] = Anchor(**raw["stop"]) if raw.get("stop") else None
    values["recorder"] = Recorder(**raw["recorder"])
    values["sources"] = [Source(**s) for s in raw.get("sources", [])]
    values["adapters"] = [HookReport(**a) for a in raw.get("adapters", [])]
    manifest = Manifest(**values)
    _check_kinds(manifest)
    return manifest


def _check_kinds(manifest: Manifest) -> None:
    """Check what readers compute with or iterate over.

    Raises:
        TypeError: A field is of another kind.
    """
    numbers: list[Any] = [manifest.recorder.pid, manifest.recorder.start_ticks]
    numbers += asdict(manifest.start).values()
    numbers += asdict(manifest.stop).values() if manifest.stop else []
    numbers += [manifest.exit_code] if manifest.exit_code is not None else []
    for value in numbers:
        if not isinstance(value, int) or abs(value) >= 2**63:
            raise TypeError(f"{value!r} is no 64-bit integer")
    texts: list[Any] = [manifest.cctrace_version, manifest.ended, manifest.cwd, *manifest.command]
    texts += [text for s in manifest.sources for text in (s.name, s.state)]
    texts += [hook for a in manifest.adapters for hook in (a.adapter, *a.hooked, *a.missing)]
    for value in texts:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no text")


def start_ticks(pid: int) -> int | None:
    """Start time of ``pid`` in clock ticks since boot, or None where it is gone.

    Source: proc_pid_stat(5), field 22; the name in field 2 can hold spaces and
    parentheses, so fields are counted from the last one.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def _is_running(recorder: Recorder) -> bool:
    return start_ticks(recorder.pid) == recorder.start_ticks
