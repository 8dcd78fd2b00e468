"""``cctrace record``: wrap a command, record it, say what was written and lost."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cctrace.record.bpf.cuda.source import LaunchMode
    from cctrace.record.bpf.stacks.collector import StackMode
    from cctrace.record.outcome import Outcome, Progress
    from cctrace.store.manifest import Source

from cctrace.cli import units
from cctrace.errors import EXIT_NOT_FOUND, EXIT_USAGE, CctraceError
from cctrace.record.sources import (
    DEFAULT_SOURCES,
    LAUNCH_MODES,
    SOURCES,
    STACK_MODES,
    WHERE_PRESENT,
)
from cctrace.record.target import block_signals

_MIB = 1 << 20
_STDERR = 2


def _parse_sources(_ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(n.strip() for n in value.split(",") if n.strip())
    for name in names:
        if name not in SOURCES:
            raise click.BadParameter(
                f"{name!r} is no source; there are: {', '.join(SOURCES)}", param=param
            )
    return names


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Run directory to write.  [default: cctrace-DATE-TIME]",
)
@click.option("--force", is_flag=True, help="Replace the run that is there already.")
@click.option(
    "--sources",
    callback=_parse_sources,
    metavar="LIST",
    default=",".join(DEFAULT_SOURCES),
    show_default="all but " + ", ".join(n for n in SOURCES if n not in DEFAULT_SOURCES),
    help="What to record, comma-separated: " + ", ".join(SOURCES) + ".",
)
@click.option(
    "--launches",
    type=click.Choice(LAUNCH_MODES),
    default="auto",
    show_default=True,
    help="Record each kernel launch in full, or sums of them; auto: in full while that takes "
    "under 1% of a thread's time, else sums, of all of the time or of samples of it.",
)
@click.option(
    "--stacks",
    type=click.Choice(STACK_MODES),
    default="crossings",
    show_default=True,
    help="Take the stack of each CUDA call that crosses the bridge and is recorded in full, "
    "native and Python; all: also of each wait off the CPU, with the kernel's part.",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop recording after so long; the command itself goes on.",
)
@click.option(
    "--annotate/--no-annotate",
    default=True,
    show_default=True,
    help="Make vLLM and transformers emit NVTX ranges for their steps.",
)
@click.option(
    "--buffer-mb",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Buffer of each traced thread, in MiB (rounded down to a power of two).",
)
@click.option(
    "--bpf-buffer-mb",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Buffer of all BPF sources, in MiB (rounded down to a power of two).",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors and losses only.")
@click.option(
    "--pid",
    type=click.IntRange(1),
    help="Record a process that runs already (and all it has started) instead of CMD.",
)
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
def command(
    output: Path | None,
    *,
    force: bool,
    sources: tuple[str, ...],
    duration: float | None,
    annotate: bool,
    buffer_mb: int,
    bpf_buffer_mb: int,
    launches: LaunchMode,
    stacks: StackMode,
    quiet: bool,
    pid: int | None,
    cmd: tuple[str, ...],
) -> int:
    """Run CMD and record what it does into a run directory; or record a running process.

    CMD keeps the terminal, gets its signals, and its exit status is what record
    ends with (128 + n for signal n; 127: not found; 126: not executable). A full
    buffer drops events and counts them; the command never waits for it.

    \b
    Example:
      cctrace record -o run -- vllm serve my/model
      cctrace record --duration 30 -- python generate.py --steps 64
      cctrace record --duration 10 --pid 4711
    """
    if pid is None and not cmd:
        raise click.UsageError("name a command to run, or a process with --pid")
    if pid is not None and cmd:
        raise click.UsageError("give either --pid or a command, not both")
    if cmd and not cmd[0]:
        raise CctraceError("the command is an empty word", None, EXIT_NOT_FOUND)
    if not sources:
        raise CctraceError("no source to record", f"there are: {', '.join(SOURCES)}", EXIT_USAGE)
    # Before NumPy starts threads of its own: a thread that does not block a signal
    # is where the kernel delivers it, and there it would end the recorder.
    block_signals()
    _fill_standard_descriptors()
    from cctrace.record.session import Options, Session  # noqa: PLC0415 - see above

    run_dir = output if output is not None else _default_output()
    session = Session(
        Options(
            command=list(cmd),
            output=run_dir,
            force=force,
            duration_s=duration,
            sources=sources,
            annotate=annotate,
            ring_bytes=buffer_mb * _MIB,
            bpf_ring_bytes=(1 << (bpf_buffer_mb.bit_length() - 1)) * _MIB,
            launches=launches,
            stacks=stacks,
            pid=pid,
        )
    )
    session.start()
    line = _ProgressLine(enabled=not quiet and sys.stderr is not None and sys.stderr.isatty())
    outcome = session.record(line.show)
    line.clear()
    _warn(outcome, asked=sources != DEFAULT_SOURCES)
    if not quiet:
        _summarise(outcome)
    return session.wait_target()


def _fill_standard_descriptors() -> None:
    """Take descriptors 0 to 2 that are closed, so that no part of the run gets one.

    They are closed again for the command, which is to find what we were given.
    """
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= _STDERR:
        pass
    os.close(fd)


def _default_output() -> Path:
    base = time.strftime("cctrace-%Y%m%d-%H%M%S")
    candidate, number = Path(base), 1
    while candidate.exists():
        number += 1
        candidate = Path(f"{base}-{number}")
    return candidate


def _say(text: str) -> None:
    # The terminal may be gone (SIGHUP); the run is on disk all the same.
    with contextlib.suppress(OSError):
        click.echo(units.harmless(text), err=True)


class _ProgressLine:
    """One line on stderr that the target's own output may overwrite."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._last: Progress | None = None
        self._rate = 0.0

    def show(self, now: Progress) -> None:
        """Draw ``now``."""
        if not self._enabled:
            return
        if self._last is not None and now.elapsed_s > self._last.elapsed_s:
            self._rate = (now.events - self._last.events) / (now.elapsed_s - self._last.elapsed_s)
        self._last = now
        lost = f", {now.lost:,} lost" if now.lost else ""
        text = (
            f"cctrace: {now.elapsed_s:.0f} s, {units.count(now.processes, 'process')}, "
            f"{self._rate:,.0f} events/s, {units.size(now.size_bytes)}{lost}"
        )
        self._put(f"\r\x1b[2K\x1b[2m{text}\x1b[0m\r")

    def clear(self) -> None:
        """Take the line away."""
        if self._enabled and self._last is not None:
            self._put("\r\x1b[2K")

    def _put(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            self._enabled = False


def _warn(outcome: Outcome, *, asked: bool) -> None:
    """Say what the run lacks, which --quiet does not silence.

    Args:
        outcome: The recording.
        asked: Whether the user named the sources.
    """
    manifest = outcome.manifest
    total = manifest.events + manifest.lost
    if manifest.lost:
        reasons = ", ".join(
            f"{reason} {count:,}" for reason, count in sorted(outcome.losses.items())
        )
        _say(f"WARNING: {manifest.lost:,} of {total:,} events lost ({reasons})")
        for reason, option in (("ring_full", "--buffer-mb"), ("bpf_ring_full", "--bpf-buffer-mb")):
            if reason in outcome.losses:
                _say(f"hint: raise {option}")
    _warn_of_refusals(manifest.sources, asked=asked)
    for adapter in manifest.adapters:
        if adapter.missing:
            _say(
                f"WARNING: {adapter.adapter} {adapter.engine_version or ''} in process "
                f"{adapter.pid} lacks: {', '.join(adapter.missing)}"
            )
    for warning in manifest.warnings:
        _say(f"WARNING: {warning}")


def _warn_of_refusals(sources: list[Source], *, asked: bool) -> None:
    """Say what could not be recorded, once for each reason.

    What the machine does not have is worth a word only where it was ``asked`` for.
    """
    by_reason: dict[tuple[str | None, str | None], list[str]] = {}
    for source in sources:
        if source.state == "refused":
            by_reason.setdefault((source.reason, source.hint), []).append(source.name)
    for (reason, hint), names in by_reason.items():
        if not asked and WHERE_PRESENT.issuperset(names):
            continue
        verb = "was" if len(names) == 1 else "were"
        _say(f"WARNING: {', '.join(names)} {verb} not recorded: {reason}")
        if hint:
            _say(f"hint: {hint}")


def _summarise(outcome: Outcome) -> None:
    manifest = outcome.manifest
    processes = manifest.tables.get("processes", 0)
    _say(
        f"Wrote {outcome.run_dir} ({units.count(manifest.events, 'event')}, "
        f"{units.size(manifest.size_bytes)}, {units.count(processes, 'process')})"
    )
    run = units.shell_word(outcome.run_dir)
    if manifest.tables.get("cuda_api") or manifest.tables.get("nvtx"):
        _say(f"next: cctrace report {run}")
    else:
        _say(f"next: cctrace query {run} --name processes")
    if manifest.exit_code is None and manifest.options.get("pid") is None:
        _say("the command goes on; cctrace waits for it")
