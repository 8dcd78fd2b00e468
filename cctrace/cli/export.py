"""``cctrace export``: a run in another tool's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from cctrace.cli.output import replacing, talk, warn_of_losses
from cctrace.cli.units import count, shell_word, size
from cctrace.errors import EXIT_USAGE, CctraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cctrace.store.run import Run


class _Format(NamedTuple):
    """A format to export to.

    Attributes:
        help: What it is, in a line.
        write: Writes runs to a new file.
        next: What to do with the file, with its name as a shell has it in place of ``{}``.
    """

    help: str
    write: Callable[[Sequence[Run], Path], None]
    next: str


def _duckdb(runs: Sequence[Run], path: Path) -> None:
    from cctrace.exporters.duckdb_file import write_duckdb  # noqa: PLC0415 - --help stays fast

    write_duckdb(runs, path)


def _perfetto(runs: Sequence[Run], path: Path) -> None:
    from cctrace.exporters.perfetto import write_perfetto  # noqa: PLC0415 - --help stays fast

    if len(runs) > 1:
        raise CctraceError(
            f"a Perfetto trace has one clock, and {len(runs)} runs were named",
            "export them one by one",
            EXIT_USAGE,
        )
    with path.open("wb") as stream:
        write_perfetto(runs[0], stream)


_FORMATS = {
    "duckdb": _Format(
        "a database file with the tables, the views and their documentation",
        _duckdb,
        'duckdb {} "FROM nvtx LIMIT 10"',
    ),
    "perfetto": _Format(
        "a trace of one run for Perfetto's user interface and trace processor",
        _perfetto,
        "open {} in Perfetto's user interface (ui.perfetto.dev, or one of your own)",
    ),
}


@click.command("export")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(_FORMATS)),
    required=True,
    help="; ".join(f"{name}: {made.help}" for name, made in _FORMATS.items()) + ".",
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
    kind: str,
    output: Path,
    force: bool,  # noqa: FBT001 - click passes flags by name
) -> None:
    """Write runs in the format of another tool.

    The .duckdb file holds copies of the data: it needs neither the runs nor
    cctrace, and any DuckDB client opens it. docs/perfetto.md says what a
    Perfetto trace shows.

    \b
    Example:
      cctrace export run --format duckdb -o run.duckdb
      duckdb run.duckdb "FROM steps"
      cctrace export run --format perfetto -o run.pftrace
    """
    from cctrace.store.run import open_runs  # noqa: PLC0415 - --help stays fast

    chosen = _FORMATS[kind]
    opened = open_runs(runs)
    warn_of_losses(opened)
    with replacing(output, force=force) as temporary:
        chosen.write(opened, temporary)
        written = size(temporary.stat().st_size)
    events = sum(run.events for run in opened)
    talk(f"Wrote {output} ({count(events, 'event')}, {written})")
    talk(f"next: {chosen.next.format(shell_word(output))}")
