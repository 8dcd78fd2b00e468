"""``cctrace import``: what another tool recorded, as a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cctrace.cli.output import talk
from cctrace.cli.units import count, shell_word, size

if TYPE_CHECKING:
    from cctrace.importers.api import Imported

_FORMATS = ("nsys", "kineto", "ingero")  # a test compares them with the importers


@click.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
@click.option(
    "--from",
    "kind",
    type=click.Choice(_FORMATS),
    required=True,
    help="nsys: SQLite export of Nsight Systems; kineto: JSON of the PyTorch profiler, "
    "plain or gzip; ingero: SQLite file of Ingero.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="RUN",
    help="Run directory to write.",
)
@click.option("--force", is_flag=True, help="Replace the run that is there already.")
@click.option(
    "--skip-bad",
    is_flag=True,
    help="Leave out, and count, events that make no sense instead of failing.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors and losses only.")
def command(
    file: Path,
    *,
    kind: str,
    output: Path,
    force: bool,
    skip_bad: bool,
    quiet: bool,
) -> None:
    """Write what another tool recorded as a run directory.

    Every event of FILE becomes a row, is folded into one, or is counted with the
    reason in run.json; `cctrace info` shows it. A file that is damaged or cut off
    gives exit status 4, and no run.

    \b
    Example:
      cctrace import trace.json.gz --from kineto -o run
      cctrace import report.sqlite --from nsys -o run
    """
    from cctrace.importers.api import import_file  # noqa: PLC0415 - --help stays fast

    done = import_file(file, kind, output, force=force, skip_bad=skip_bad)
    _warn(done)
    if quiet:
        return
    manifest = done.manifest
    talk(f"Wrote {output} ({count(manifest.events, 'event')}, {size(manifest.size_bytes)})")
    talk(
        f"of {count(done.imported + done.folded + done.left_out, 'event')} in the file: "
        f"{done.imported:,} rows, {done.folded:,} folded into others, {done.left_out:,} left out"
    )
    talk(f"next: cctrace info {shell_word(output)}")


def _warn(done: Imported) -> None:
    if done.bad:
        talk(f"WARNING: left out {count(done.bad, 'event')} that made no sense")
    for warning in done.manifest.warnings:
        talk(f"WARNING: {warning}")
