"""``cctrace query``: SQL and named reports over runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cctrace.cli.output import (
    FORMATS,
    output_options,
    refuse_overwrite,
    talk,
    warn_of_losses,
    write_result,
)
from cctrace.cli.units import count, harmless
from cctrace.errors import EXIT_BAD_DATA, EXIT_INTERRUPTED, EXIT_USAGE, CctraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.store.library import ParamValue
    from cctrace.store.session import Result, Session


@click.command("query")
@click.argument("arguments", nargs=-1, metavar="RUN... [SQL]")
@click.option("--name", metavar="NAME", help="Run the report NAME of the library.")
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="Value of a report's parameter, or of $NAME in SQL. NULL stands for none.",
)
@click.option("--list", "list_all", is_flag=True, help="List the reports, views and tables.")
@click.option(
    "--file",
    "sql_file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Read the SQL from FILE; `-` is standard input.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Format of the result. Tables show the first 10,000 rows, the others all; "
    "a few rows too wide for the terminal are shown a column a line. A report's answer and its "
    "evidence stand above the table, once a run.",
)
@output_options
def command(  # noqa: PLR0917 - click passes them by name
    arguments: tuple[str, ...],
    name: str | None,
    params: tuple[str, ...],
    list_all: bool,  # noqa: FBT001 - click passes flags by name
    sql_file: Path | None,
    kind: str,
    output: Path | None,
    force: bool,  # noqa: FBT001 - as above
) -> None:
    """Query one or several runs with SQL, or by the name of a report.

    Every table and view has a column `run`. SQL is DuckDB's; it reads these runs
    and nothing else. `-` in the place of SQL reads it from standard input. What
    the runs lost is told on stderr. Ctrl-C ends a query with status 130.

    \b
    Example:
      cctrace query run --name nvtx_summary
      cctrace query run "SELECT name, count(*) FROM nvtx GROUP BY ALL ORDER BY ALL"
      cctrace query before after --name itl --param phase=decode --format csv
    """
    if list_all:
        click.echo(listing(), nl=False)
        return
    runs, sql = split_arguments(arguments, has_query=name is not None or sql_file is not None)
    if sum(part is not None for part in (name, sql, sql_file)) != 1:
        raise CctraceError(
            "name one query: SQL, --file or --name",
            "`cctrace query --list` lists the reports",
            EXIT_USAGE,
        )
    if sql_file is not None:
        sql = _read(sql_file)
    elif sql == "-":
        sql = _read(Path("-"))
    from cctrace.store.session import open_session  # noqa: PLC0415 - --help stays fast

    if output is not None:
        refuse_overwrite(output, force=force)
    try:
        with open_session(*runs) as session:
            warn_of_losses(session.runs)
            result = _run(session, name, sql, params)
            rows = write_result(result, kind, output, force=force)
        if output is not None:
            talk(f"Wrote {output} ({count(rows, 'row')})")
    except KeyboardInterrupt:
        raise CctraceError("interrupted", None, EXIT_INTERRUPTED) from None


def _run(session: Session, name: str | None, sql: str | None, params: Sequence[str]) -> Result:
    pairs = dict(_split_param(param) for param in params)
    if name is None:
        return session.sql(sql or "", {key: _guess(text) for key, text in pairs.items()})
    from cctrace.store.connection import library  # noqa: PLC0415 - --help stays fast

    known = {p.name: p for p in library().report(name).params}
    # A name the report lacks is refused by report().
    values: dict[str, ParamValue] = {
        key: known[key].parse(text) if key in known else text for key, text in pairs.items()
    }
    return session.report(name, values)


def split_arguments(
    arguments: Sequence[str], *, has_query: bool = False
) -> tuple[list[str], str | None]:
    """Tell the runs from the SQL behind them.

    The last argument is SQL where it is ``-``, or no run and holds white space,
    and a query is not named otherwise. The first one is always a run.

    Returns:
        The runs, and the SQL or None.

    Raises:
        CctraceError: Exit code 2 where no run is named; 4 where one is no run.
    """
    from cctrace.store.run import is_run  # noqa: PLC0415 - --help stays fast

    runs, sql = list(arguments), None
    if not runs:
        raise CctraceError("no run was named", "cctrace query RUN SQL", EXIT_USAGE)
    last = runs[-1]
    looks_like_sql = last == "-" or any(c.isspace() for c in last)
    if len(runs) > 1 and not has_query and not is_run(last) and looks_like_sql:
        sql = runs.pop()
    for run in runs:
        if not is_run(run):
            is_name = len(runs) > 1 and run == last
            hint = "SQL must hold white space, and a report is named by --name" if is_name else None
            raise CctraceError(
                f"no run at {harmless(run)}",
                hint or "name a directory that `cctrace record -o` wrote",
                EXIT_BAD_DATA,
            )
    return runs, sql


def _read(path: Path) -> str:
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read().decode()
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CctraceError(f"the SQL in {path} is not UTF-8", None, EXIT_USAGE) from error
    except OSError as error:
        raise CctraceError(f"cannot read {path}: {error.strerror}", None, EXIT_USAGE) from error


def _split_param(param: str) -> tuple[str, str]:
    name, equals, value = param.partition("=")
    if not equals or not name:
        raise CctraceError(f"--param takes NAME=VALUE, not {param!r}", None, EXIT_USAGE)
    return name, value


def _guess(text: str) -> ParamValue:
    """Value of a parameter that no report declares: a number where it looks like one."""
    if text.upper() == "NULL":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def listing() -> str:
    """What `--list` prints: reports with their parameters, views and tables."""
    from cctrace.store.connection import library, relations  # noqa: PLC0415 - as above

    known = library()
    names = [*known.reports, *(view.name for view in known.views), *relations()]
    width = max(map(len, names)) + 1
    lines = ["Reports (--name NAME)"]
    for report in known.reports.values():
        lines.append(f"  {report.name:<{width}}{report.description}")
        for param in report.params:
            default = "NULL" if param.default is None else param.default
            usage = f"--param {param.name}={default}"
            lines.append(f"{'':{width + 2}}{usage:<25} {param.doc} ({param.type})")
    lines += ["", "Views"]
    lines += [
        f"  {view.name:<{width}}{view.description}"
        for view in sorted(known.views, key=lambda v: v.name)
        if not view.is_private
    ]
    lines += ["", "Tables"]
    lines += [f"  {table.name:<{width}}{table.doc}" for table in relations().values()]
    lines += ["", "Columns: cctrace query RUN 'DESCRIBE nvtx', or docs/queries.md"]
    return "\n".join(lines) + "\n"
