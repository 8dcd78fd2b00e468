"""``cctrace info``: what is in a run, how it ended, what was lost."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cctrace.cli import units
from cctrace.cli.output import add_column, add_row, new_table, number, render
from cctrace.cli.units import harmless, shell_word, size
from cctrace.errors import EXIT_SIGNAL_BASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cctrace.store.manifest import HookReport, Manifest
    from cctrace.store.run import Run

_ENDED = {
    "recording": "still being recorded",
    "clean": "the target ended",
    "target_signal": "a signal ended the target",
    "stopped": "the recording was stopped; the process went on",
    "duration": "--duration was over",
    "disk_full": "the disk was full; the target went on",
    "write_failed": "the run could not be written; the target went on",
    "recorder_killed": "the recorder was killed; what it had written is here",
}


_SHOWN_REASONS = 8  # by which events of an imported file were left out
_HOW = {
    "before_load": "",
    "at_load": ", as it was loaded",
    "late": ", late: earlier calls are missing",
}


@click.command("info")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def command(run: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Show what is in a run, how it ended and what was lost.

    \b
    Example:
      cctrace info run
      cctrace info run --json
    """
    from cctrace.store.run import Run as OpenRun  # noqa: PLC0415 - --help stays fast

    opened = OpenRun(run)
    if as_json:
        click.echo(json.dumps(as_data(opened), indent=1))
    else:
        click.echo("\n\n".join(_sections(opened)))


def as_data(run: Run) -> dict[str, Any]:
    """What ``--json`` prints: the manifest, with what the parts say."""
    from cctrace.schema import TABLES  # noqa: PLC0415 - loads Arrow

    manifest = run.manifest
    data = asdict(manifest)
    data["path"] = str(run.path)
    data["duration_ns"] = _duration_ns(manifest)
    data["events"] = run.events
    data["lost"] = run.losses.lost_total
    data["losses"] = {"events_lost": run.losses.lost, "events_incomplete": run.losses.impaired}
    data["tables"] = {
        name: {
            "rows": run.rows(name),
            "size_bytes": run.size_bytes(name),
            "parts": len(run.parts(name)),
        }
        for name in TABLES
        if run.parts(name)
    }
    data["size_bytes"] = sum(table["size_bytes"] for table in data["tables"].values())
    return data


def _sections(run: Run) -> Iterator[str]:
    manifest = run.manifest
    yield _facts(run)
    yield _sources(manifest)
    if manifest.adapters:
        yield _adapters(manifest.adapters)
    yield _tables(run)
    yield _losses(run)
    if manifest.warnings:
        yield "\n".join(["Warnings", *(f"  {harmless(str(w))}" for w in manifest.warnings)])
    yield _next(run)


def _facts(run: Run) -> str:
    from cctrace.store.run import utc_text  # noqa: PLC0415 - loads Arrow

    manifest = run.manifest
    duration = _duration_ns(manifest)
    started = utc_text(manifest.start.realtime_ns)
    begun = ("started", f"{started} UTC" if started else "unknown")
    length = ("length", "unknown" if duration is None else f"{duration / 1e9:,.3f} s")
    host = zip(("host", ""), _host(run), strict=False)
    if "imported_from" in manifest.options:
        rows = [("run", str(run.path)), *_origin(manifest, begun), length, *host]
    else:
        rows = [
            ("run", str(run.path)),
            ("command", shlex.join(map(str, manifest.command)) or "unknown"),
            ("in", manifest.cwd),
            begun,
            length,
            ("ended", f"{manifest.ended}: {_ENDED.get(manifest.ended, 'unknown')}"),
            ("exit code", _exit_code(manifest)),
            ("recorded by", f"cctrace {manifest.cctrace_version}"),
            *host,
        ]
    return "\n".join(f"{name:<12}{harmless(str(value))}" for name, value in rows)


def _origin(manifest: Manifest, begun: tuple[str, str]) -> list[tuple[str, str]]:
    """Rows on where an imported run came from, and what its clock is."""
    options = manifest.options
    tool, clock = (
        fact if isinstance(fact := options.get(key), dict) else {} for key in ("tool", "clock")
    )
    made_by = " ".join(str(tool[key]) for key in ("name", "version") if tool.get(key))
    # Without an offset the anchor's CLOCK_REALTIME means nothing.
    known = clock.get("realtime_offset_ns") is not None
    return [
        ("imported", f"{options.get('file')} ({options.get('imported_from')})"),
        ("made by", made_by or "unknown"),
        begun if known else ("started", "unknown"),
        ("clock", str(clock.get("domain", "unknown"))),
        ("imported by", f"cctrace {manifest.cctrace_version}"),
    ]


def _duration_ns(manifest: Manifest) -> int | None:
    if manifest.stop is None:
        return None
    return manifest.stop.monotonic_ns - manifest.start.monotonic_ns


def _exit_code(manifest: Manifest) -> str:
    code = manifest.exit_code
    if code is None:
        return "unknown"
    if manifest.ended == "target_signal":
        with contextlib.suppress(ValueError):  # a real-time signal has no name
            return f"{code} ({signal.Signals(code - EXIT_SIGNAL_BASE).name})"
    return str(code)


def _host(run: Run) -> list[str]:
    """Two lines: what the machine is, and how it is protected."""
    machine = [("kernel", run.host_fact("kernel")), ("CPU", run.host_fact("cpu", "model"))]
    state = [
        ("TEE", run.host_fact("tee", "kind")),
        ("lockdown", run.host_fact("lockdown", "level")),
        ("SWIOTLB", run.host_fact("swiotlb", "state")),
        ("GPU CC", run.host_fact("gpu", "cc_state")),
    ]
    lines = [
        ", ".join(f"{name} {value}" for name, value in facts if value) for facts in (machine, state)
    ]
    return [line for line in lines if line] or ["unknown"]


def _sources(manifest: Manifest) -> str:
    lines = ["Sources"]
    for source in manifest.sources:
        reason = f": {source.reason}" if source.reason else ""
        lines.append(harmless(f"  {source.name:<16}{source.state}{reason}"))
        if source.hint:
            lines.append(harmless(f"{'':18}hint: {source.hint}"))
        for more in (_libraries(source.detail), _accounting(source.detail)):
            lines += [harmless(f"{'':18}{line}") for line in more]
    return "\n".join(lines if manifest.sources else [*lines, "  none"])


def _libraries(detail: dict[str, Any]) -> Iterator[str]:
    """A line for each library that was probed: which, how many functions, in time or late."""
    when = {
        entry.get("path"): _HOW.get(str(entry.get("how")), "")
        for entry in detail.get("loaded", ())
        if isinstance(entry, dict)
    }
    for library in detail.get("libraries", ()):
        if isinstance(library, dict):
            how = when.get(library.get("path"), "")
            functions = units.count(int(library.get("attached", 0)), "function")
            yield f"{library.get('path')}: {functions}{how}"


def _accounting(detail: dict[str, Any]) -> Iterator[str]:
    """What became of the events of an imported file, and why some are left out."""
    kinds = detail.get("accounting")
    if not isinstance(kinds, dict):
        return
    fates = {"imported": 0, "folded": 0, "left_out": 0}
    reasons: list[tuple[int, str, str]] = []
    for kind, told in kinds.items():
        for fate in fates:
            counts = told.get(fate, {})
            fates[fate] += sum(counts.values())
            if fate == "left_out":
                reasons += [(count, kind, reason) for reason, count in counts.items()]
    yield (
        f"{units.count(sum(fates.values()), 'event')} in the file: {number(fates['imported'])} "
        f"are rows, {number(fates['folded'])} folded into others, "
        f"{number(fates['left_out'])} left out"
    )
    reasons.sort(key=lambda reason: -reason[0])
    for count, kind, reason in reasons[:_SHOWN_REASONS]:
        yield f"left out: {number(count)} {kind} ({reason})"
    if len(reasons) > _SHOWN_REASONS:
        yield f"left out: {units.count(len(reasons) - _SHOWN_REASONS, 'more kind')}; see --json"


def _adapters(adapters: list[HookReport]) -> str:
    lines = ["Adapters"]
    for report in adapters:
        version = f" {report.engine_version}" if report.engine_version else ""
        lines.append(
            harmless(
                f"  {report.adapter}{version} in process {report.pid}: "
                f"{len(report.hooked)} of {len(report.hooked) + len(report.missing)} hook points"
            )
        )
        if report.missing:
            lines.append(harmless(f"    missing: {', '.join(map(str, report.missing))}"))
        if report.note:
            lines.append(harmless(f"    {report.note}"))
    return "\n".join(lines)


def _tables(run: Run) -> str:
    from cctrace.schema import TABLES  # noqa: PLC0415 - loads Arrow

    table = new_table()
    add_column(table, "Table")
    for name in ("rows", "size", "parts"):
        add_column(table, name, numeric=True)
    for name in TABLES:
        if run.parts(name):
            add_row(
                table,
                [
                    name,
                    number(run.rows(name)),
                    size(run.size_bytes(name)),
                    str(len(run.parts(name))),
                ],
            )
    return render(table).rstrip("\n")


def _losses(run: Run) -> str:
    from cctrace.store.losses import REASONS  # noqa: PLC0415 - as above

    losses = run.losses
    if not losses.lost and not losses.impaired:
        return "Losses: none"
    total = run.events + losses.lost_total
    lines = [f"Losses: {number(losses.lost_total)} of {number(total)} events lost"]
    for name, count in [*losses.lost.items(), *losses.impaired.items()]:
        doc = f"  {REASONS[name].doc}" if name in REASONS else ""
        lines.append(harmless(f"  {name:<20}{number(count):>14}{doc}"))
    return "\n".join(lines)


def _next(run: Run) -> str:
    path = shell_word(run.path)
    names = ["losses"] if run.losses.lost else []
    names += ["steps", "itl", "nvtx_summary"] if run.rows("nvtx") else []
    names += ["cuda_summary"] if run.rows("cuda_api") else []
    names += ["crossings_per_step"] if run.rows("cuda_api") and run.rows("nvtx") else []
    names += ["launches"] if run.rows("cuda_launches") else []
    names += ["swiotlb_by_device"] if run.rows("swiotlb") else []
    names = names or (["processes"] if run.rows("processes") else ["runs"])
    lines = ["Next"]
    if run.rows("cuda_api") or run.rows("nvtx"):
        lines.append(f"  cctrace report {harmless(path)}")
    lines += [f"  cctrace query {harmless(path)} --name {name}" for name in names]
    return "\n".join(lines)
