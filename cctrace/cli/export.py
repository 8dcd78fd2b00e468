"""``cctrace export``: a run in another tool's format."""

from __future__ import annotations

from pathlib import Path

import click

from cctrace.cli.output import replacing, talk, warn_of_losses
from cctrace.cli.units import count, shell_word, size


@click.command("export")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["duckdb"]),
    required=True,
    help="duckdb: a database file with the tables, the views and their documentation.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="File to write.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def command(
    runs: tuple[str, ...],
    kind: str,  # noqa: ARG001 - one format so far
    output: Path,
    force: bool,  # noqa: FBT001 - click passes flags by name
) -> None:
    """Write runs in the format of another tool.

    The .duckdb file holds copies of the data: it needs neither the runs nor
    cctrace, and any DuckDB client opens it.

    \b
    Example:
      cctrace export run --format duckdb -o run.duckdb
      duckdb run.duckdb "FROM steps"
    """
    from cctrace.exporters.duckdb_file import write_duckdb  # noqa: PLC0415 - --help stays fast
    from cctrace.store.run import open_runs  # noqa: PLC0415 - as above

    opened = open_runs(runs)
    warn_of_losses(opened)
    with replacing(output, force=force) as temporary:
        write_duckdb(opened, temporary)
        written = size(temporary.stat().st_size)
    events = sum(run.events for run in opened)
    talk(f"Wrote {output} ({count(events, 'event')}, {written})")
    talk(f'next: duckdb {shell_word(output)} "FROM nvtx LIMIT 10"')
