"""``cctrace doctor``: what can be traced here, and the fix for what cannot."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cctrace.errors import EXIT_OK, EXIT_UNSUPPORTED
from cctrace.record.doctor import Diagnosis, diagnose
from cctrace.record.doctor_checks import MISSING, OK, WARN
from cctrace.version import VERSION

_STYLES = {OK: "green", WARN: "yellow", MISSING: "bold red"}
_WIDTH = 80  # where stdout is no terminal


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def command(*, as_json: bool) -> int:
    """Tell what can be traced on this machine, and the fix for what cannot.

    Each check is ok, warn (works, with a limit) or missing; a star marks what NVTX
    tracing needs. One check records a small program for real, others attach BPF
    programs to the doctor itself. The exit status is 0 where anything can be recorded
    and 3 where nothing can.

    \b
    Example:
      cctrace doctor
      cctrace doctor --json
    """
    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(_as_json(diagnosis), indent=1))
    else:
        _print(diagnosis)
    can_record = diagnosis.can_trace_nvtx or diagnosis.sources
    return EXIT_OK if can_record else EXIT_UNSUPPORTED


def _as_json(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "cctrace_version": VERSION,
        "can_trace_nvtx": diagnosis.can_trace_nvtx,
        "bpf_sources": diagnosis.sources,
        "checks": [
            {"name": check.name, "needed": check.needed, **asdict(check.finding)}
            for check in diagnosis.checks
        ],
        "host": diagnosis.host,
    }


def _print(diagnosis: Diagnosis) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("found", overflow="fold")
    told: dict[tuple[str, str | None], str] = {}
    for check in diagnosis.checks:
        finding = check.finding
        first = told.setdefault((finding.found, finding.fix), check.name)
        # Text, not markup: paths and the kernel's words may hold brackets.
        found = Text(finding.found if first == check.name else f"as {first}")
        if finding.fix and first == check.name:
            found.append(f"\nfix: {finding.fix}", style="bold")
        table.add_row(
            Text(check.name + ("*" if check.needed else "")),
            Text(finding.status, style=_STYLES[finding.status]),
            found,
        )
    console.print(table)
    console.print()
    sources = ", ".join(diagnosis.sources)
    if diagnosis.can_trace_nvtx:
        through_bpf = f"; through BPF: {sources}" if sources else ", and nothing through BPF"
        console.print(f"NVTX tracing works here{through_bpf}.", soft_wrap=True)
        console.print("Next: cctrace record -- COMMAND", soft_wrap=True)
    else:
        console.print("NVTX tracing does not work here: mend what is missing*.", soft_wrap=True)
        if sources:
            console.print(f"Through BPF these do: {sources}", soft_wrap=True)
