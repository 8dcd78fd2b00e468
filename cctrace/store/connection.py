"""DuckDB over one or several runs: a view per table, then the library's views.

Every view has a leading ``run`` column. The views are plain selections of
``read_parquet`` with explicit columns, so DuckDB pushes projections and filters
into the scan and prunes runs by their label.

The connection can read the parts of these runs and nothing else: external
access is off but for their paths, no extension can be loaded, Python variables
are not looked at, and the configuration is locked. What a statement may be is
the business of sandbox.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.schema import TABLES
from cctrace.store.library import ColumnDoc, Item, Library, load_library

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from cctrace.schema import Table
    from cctrace.store.run import Run

_RUN_DOC = "label of the run: the name of its directory, or its tail where names repeat"

RUNS_DOC = "one run of those opened, from its run.json"
RUNS_COLUMNS = (
    ColumnDoc("run", "VARCHAR", _RUN_DOC),
    ColumnDoc("path", "VARCHAR", "the run directory"),
    ColumnDoc("command", "VARCHAR", "the target's arguments, shell-quoted"),
    ColumnDoc("started", "TIMESTAMP", "start, UTC; NULL: out of range"),
    ColumnDoc("start_ns", "BIGINT", "start, ns of CLOCK_MONOTONIC"),
    ColumnDoc("stop_ns", "BIGINT", "end, ns of CLOCK_MONOTONIC; NULL: recording, or it was killed"),
    ColumnDoc("ended", "VARCHAR", "how the run ended, as in run.json; recorder_killed, recording"),
    ColumnDoc("exit_code", "INTEGER", "the target's status, 128 + n for signal n; NULL: not known"),
    ColumnDoc("events", "BIGINT", "events recorded"),
    ColumnDoc("lost", "BIGINT", "events lost"),
    ColumnDoc("size_bytes", "BIGINT", "bytes of all parts"),
    ColumnDoc("tee", "VARCHAR", "none, tdx, sev-snp or unknown; NULL: not recorded"),
    ColumnDoc("gpu_cc", "VARCHAR", "off, on, devtools or unknown; NULL: not recorded"),
    ColumnDoc("gpu_name", "VARCHAR", "the first GPU's name; NULL: not known"),
    ColumnDoc("gpu_driver", "VARCHAR", "version of the GPU's driver; NULL: not known"),
    ColumnDoc("attached", "VARCHAR", "sources that were attached, with commas between"),
    ColumnDoc(
        "probe_ns",
        "DOUBLE",
        "what a CUDA call's probes add to its recorded length, ns; NULL: not measured",
    ),
    ColumnDoc(
        "probe_call_ns",
        "DOUBLE",
        "what its probes cost the caller of a CUDA call, a call around it included, ns; "
        "NULL: not measured",
    ),
    ColumnDoc("cctrace_version", "VARCHAR", "version of cctrace that recorded it"),
)

_PLAIN_TYPES = {
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint32(): "UINTEGER",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
}


@dataclass(frozen=True)
class Relation:
    """A table as queries see it: name, meaning, columns with ``run`` first."""

    name: str
    doc: str
    columns: tuple[ColumnDoc, ...]


def relations() -> dict[str, Relation]:
    """Tables as queries see them, ``runs`` first, by name."""
    found = {"runs": Relation("runs", RUNS_DOC, RUNS_COLUMNS)}
    for table in TABLES.values():
        columns = [ColumnDoc("run", "VARCHAR", _RUN_DOC)]
        columns += [ColumnDoc(c.name, duckdb_type(c.type), c.doc) for c in table.columns]
        found[table.name] = Relation(table.name, table.doc, tuple(columns))
    return found


def library() -> Library:
    """The installed views and reports."""
    return load_library(relations())


def duckdb_type(kind: Any) -> str:
    """DuckDB's name of an Arrow type of the schema."""
    if pa.types.is_dictionary(kind):
        return duckdb_type(kind.value_type)
    if pa.types.is_list(kind):
        return f"{duckdb_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        return f"STRUCT({', '.join(f'{quote(f.name)} {duckdb_type(f.type)}' for f in fields)})"
    return _PLAIN_TYPES[kind]


def quote(name: str) -> str:
    """Quote an identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a string."""
    return "'" + text.replace("'", "''") + "'"


def roots(runs: Sequence[Run], temporary: Path) -> dict[Path, Path]:
    """Paths under which DuckDB can open the run directories.

    DuckDB takes file names as patterns, and with external access off none may
    hold a pattern character, escaped or not. Such a directory gets a link.

    Args:
        runs: The runs.
        temporary: Directory of this process's own for the links.

    Returns:
        Path to use, by path of the run directory.
    """
    found = {}
    for i, run in enumerate(runs):
        found[run.path] = run.path
        if re.search(r"[*?\[]", str(run.path)):
            found[run.path] = temporary / f"run-{i}"
            found[run.path].symlink_to(run.path, target_is_directory=True)
    return found


def connect(
    runs: Sequence[Run],
    paths: Mapping[Path, Path],
    spill: Path,
    *,
    memory_limit: str | None = None,
    threads: int | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open a sandboxed DuckDB over ``runs``.

    Args:
        runs: Runs with labels all different.
        paths: What :func:`roots` gave for them.
        spill: Directory where DuckDB may put what memory cannot hold.
        memory_limit: What DuckDB may use, as ``2GiB``; its own choice unless given.
        threads: Threads it may use; one for each core unless given.

    Returns:
        The connection, its configuration locked.

    Raises:
        CctraceError: Exit code 4; a part is damaged or foreign.
    """
    connection = duckdb.connect(
        ":memory:",
        config={
            "allow_community_extensions": "false",
            "allow_unsigned_extensions": "false",
            # A nested loop is right for few rows, and DuckDB's guess of how many a view
            # yields can be off by any factor.
            "asof_loop_join_threshold": "0",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
            "temp_directory": str(spill),
        },
    )
    try:
        if memory_limit is not None:
            connection.execute(f"SET memory_limit = {literal(memory_limit)}").fetchall()
        if threads is not None:
            connection.execute(f"SET threads = {int(threads)}").fetchall()
        allowed = [file for run in runs for name in TABLES for file in _files(run, name, paths)]
        connection.execute(f"SET allowed_paths = [{_list(allowed)}]").fetchall()
        connection.execute("SET enable_external_access = false").fetchall()
        for statement in definitions(runs, paths):
            connection.execute(statement).fetchall()
        connection.execute("SET lock_configuration = true").fetchall()
    except duckdb.Error as error:
        connection.close()
        raise CctraceError(f"cannot open the run: {error}", None, EXIT_BAD_DATA) from error
    except BaseException:
        connection.close()
        raise
    return connection


def definitions(
    runs: Sequence[Run], paths: Mapping[Path, Path], *, as_tables: bool = False
) -> Iterable[str]:
    """SQL that makes every table and view of the library.

    Args:
        runs: Runs to read.
        paths: What :func:`roots` gave for them.
        as_tables: Copy the data into tables rather than define views of the parts. Views
            that a session keeps in tables are tables then, too.
    """
    kind = "TABLE" if as_tables else "VIEW"
    for relation in relations().values():
        body = _runs_sql(runs) if relation.name == "runs" else table_sql(relation.name, runs, paths)
        is_table = as_tables or relation.name == "runs"
        yield f"CREATE {'TABLE' if is_table else kind} {quote(relation.name)} AS {body}"
    for view in library().views:
        if view.materialize and as_tables:
            yield f"CREATE TABLE {quote(view.name)} AS {view.select}"
        else:
            yield definition(view)


def comments(*, as_tables: bool = False) -> Iterable[str]:
    """SQL that puts what :func:`definitions` makes into words: comments in the catalog.

    Apart from those, since they take three times as long.

    Args:
        as_tables: As it was for those.
    """
    for relation in relations().values():
        yield _comments("TABLE" if as_tables or relation.name == "runs" else "VIEW", relation)
    for view in library().views:
        yield comment(view)


def comment(view: Item) -> str:
    """SQL for the comments of one view of the library."""
    relation = Relation(view.name, f"{view.description} Grain: {view.grain}.", view.columns)
    return _comments("TABLE" if view.materialize else "VIEW", relation)


def definition(view: Item) -> str:
    """SQL that makes a view of the library.

    One that is to be materialised is an empty table of the columns in its header, until
    :func:`replacement` puts its rows there. As a view, DuckDB would bind all that is below
    it anew for each place that names it: a time exponential in how deep views nest.
    """
    if not view.materialize:
        return view.sql
    columns = ", ".join(f"{quote(column.name)} {column.type}" for column in view.columns)
    return f"CREATE TABLE {quote(view.name)} ({columns})"


def replacement(view: Item) -> Iterable[str]:
    """SQL that puts the rows of ``view`` into the table that stands for it.

    In one transaction, so that others see none or all. Not a temporary table: cursors
    of one connection do not share those.
    """
    name, new = quote(view.name), quote(f"rows of {view.name}")
    yield "BEGIN"
    yield f"CREATE TABLE {new} AS {view.select}"
    yield f"DROP TABLE {name}"
    yield f"ALTER TABLE {new} RENAME TO {name}"
    yield "COMMIT"


def _comments(kind: str, relation: Relation) -> str:
    name = quote(relation.name)
    parts = [f"COMMENT ON {kind} {name} IS {literal(relation.doc)}"]
    parts += [
        f"COMMENT ON COLUMN {name}.{quote(c.name)} IS {literal(c.doc)}" for c in relation.columns
    ]
    return "; ".join(parts)


def _files(
    run: Run, table: str, paths: Mapping[Path, Path], parts: Collection[Path] | None = None
) -> list[str]:
    return [
        str(paths[run.path] / table / p.path.name)
        for p in run.parts(table)
        if p.rows and (parts is None or p.path in parts)
    ]


def table_sql(
    name: str,
    runs: Sequence[Run],
    paths: Mapping[Path, Path],
    parts: Collection[Path] | None = None,
) -> str:
    """SQL for the rows of a table.

    Args:
        name: Name of the table.
        runs: Runs to read.
        paths: What :func:`roots` gave for them.
        parts: Read these parts alone; all of them unless given.
    """
    table: Table = TABLES[name]
    columns = ", ".join(quote(c) for c in table.column_names)
    selects = []
    for run in runs:
        files = _list(_files(run, name, paths, parts))
        if files:
            source = f"read_parquet([{files}], hive_partitioning = false, union_by_name = false)"
            label = f"{literal(run.label)}::VARCHAR AS run"
            selects.append(f"SELECT {label}, {columns} FROM {source}")  # noqa: S608 - all quoted
    return " UNION ALL ".join(selects) or _empty_sql(relations()[name])


def _list(texts: Iterable[str]) -> str:
    return ", ".join(map(literal, texts))


def _empty_sql(relation: Relation) -> str:
    nulls = ", ".join(f"NULL::{c.type} AS {quote(c.name)}" for c in relation.columns)
    return f"SELECT {nulls} WHERE false"


def _runs_sql(runs: Sequence[Run]) -> str:
    names = ", ".join(quote(c.name) for c in RUNS_COLUMNS)
    rows = [
        ", ".join(
            f"{_value(value)}::{column.type}"
            for value, column in zip(run.facts(), RUNS_COLUMNS, strict=True)
        )
        for run in runs
    ]
    values = ", ".join(f"({row})" for row in rows)
    return f"SELECT {names} FROM (VALUES {values}) AS v({names})"  # noqa: S608 - all quoted


def _value(value: str | float | None) -> str:
    if value is None:
        return "NULL"
    return literal(value) if isinstance(value, str) else str(value)
