"""A session on windows of one run's time, for work that cannot hold the whole run.

The analysis walks a long run window by window. Here the tables of the run are cut to
those windows, by the times in the parts' footers first, so that no part is read in
vain; the library's views then compute on what is left. Rows that are to outlive a
window are kept, and stand in for their view from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.schema import TABLES
from cctrace.store import connection
from cctrace.store.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cctrace.store.library import Item
    from cctrace.store.run import Run

# Tables that grow with the length of a run. The others are read whole: launches counted
# in the kernel stand for more time than their window.
CUT_TABLES: Final = (
    "nvtx",
    "cuda_api",
    "sched",
    "swiotlb",
    "page_conversion",
    "uvm_crypto",
    "user_crypto",
    "gpu_activity",
)
_SCHEMA: Final = "kept"  # of DuckDB, for tables that outlive a window


class Window(NamedTuple):
    """A stretch of time: from ``first_ns`` on, up to and without ``end_ns``."""

    first_ns: int
    end_ns: int


@dataclass(frozen=True)
class Group:
    """One row group of a part: where its rows start, and how many there are.

    Attributes:
        path: The part.
        first_ns: Least ``ts_ns`` in it.
        last_ns: Greatest one.
        rows: Rows.
    """

    path: Path
    first_ns: int
    last_ns: int
    rows: int


@dataclass(frozen=True)
class Kept:
    """What an excerpt has kept.

    Attributes:
        tables: Rows by name, each a ``pyarrow.Table``.
        given: Names of those that stand in for a view.
        long_ns: As given to :meth:`Excerpt.cut_long`; None: it was not.
    """

    tables: dict[str, Any]
    given: tuple[str, ...]
    long_ns: int | None


def row_groups(run: Run, table: str) -> list[Group]:
    """The row groups of ``table``, from the footers of its parts.

    Raises:
        CctraceError: Exit code 4; a part cannot be read.
    """
    found = []
    for part in run.parts(table):
        try:
            with part.path.open("rb") as file:
                footer: Any = pq.ParquetFile(file).metadata
        except (OSError, pa.ArrowException) as error:
            raise CctraceError(f"{part.path} is damaged: {error}", None, EXIT_BAD_DATA) from error
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            told = group.column(TABLES[table].column_names.index("ts_ns")).statistics
            known = told is not None and told.has_min_max
            first, last = (told.min, told.max) if known else (-(2**63), 2**63 - 1)
            found.append(Group(part.path, int(first), int(last), int(group.num_rows)))
    return found


class Excerpt(Session):
    """One run, cut to windows of its time; all of it at first.

    Args:
        run: The run.
        memory_limit: What DuckDB may use, as ``2GiB``; beyond it data is spilled.
        threads: Threads DuckDB may use; one for each core unless given.
    """

    def __init__(
        self, run: Run, memory_limit: str | None = None, threads: int | None = None
    ) -> None:
        super().__init__([run], memory_limit=memory_limit, threads=threads)
        self._run = run
        self._windows: tuple[Window, ...] | None = None
        self._kept_windows: tuple[Window, ...] | None = None
        self._outermost = False
        self._tables: set[str] = set()  # base tables that are copies in memory
        self._collected: set[str] = set()  # views of which rows are kept
        self._given: set[str] = set()  # views that a kept table stands in for
        self._long_ns: int | None = None
        self._groups: dict[str, list[Group]] = {}
        self._execute(f"CREATE SCHEMA {_SCHEMA}")

    def cut_long(self, long_ns: int) -> None:
        """Choose which rows belong to every window they reach into.

        A row belongs to the window it starts in. Rows that are longer than ``long_ns``
        or still open are told apart once, by a scan of the run, and are in all windows
        they overlap.
        """
        self.focus(None)
        for name in self._cut_tables():
            self._execute(f"DROP TABLE IF EXISTS {_kept(_long(name))}")
            self._execute(
                f"CREATE TABLE {_kept(_long(name))} AS SELECT * FROM {connection.quote(name)} "  # noqa: S608 - quoted
                f"WHERE dur_ns IS NULL OR dur_ns > {int(long_ns)}"
            )
        self._long_ns = long_ns

    def focus(
        self,
        windows: Sequence[Window] | None,
        kept: Sequence[Window] | None = None,
        *,
        outermost: bool = False,
    ) -> None:
        """Cut the tables to ``windows``; views are computed anew.

        Args:
            windows: Windows in order that do not overlap; None: the whole run.
            kept: Windows of the rows that stand in for views; the same unless given.
            outermost: Leave out calls that were made inside other calls: for views that
                do not look at them there are half as many rows.
        """
        for view in connection.library().views:
            if view.name in self._kept - self._given:
                self._execute(f"DROP TABLE {connection.quote(view.name)}")
                self._define(view)
        self._kept = set(self._given)
        self._windows = None if windows is None else tuple(windows)
        self._kept_windows = self._windows if kept is None else tuple(kept)
        self._outermost = outermost
        for name in self._cut_tables():
            kind = "TABLE" if name in self._tables else "VIEW"
            self._execute(f"DROP {kind} {connection.quote(name)}")
            self._execute(f"CREATE VIEW {connection.quote(name)} AS {self._cut(name)}")
        self._tables.clear()
        for name in self._given:
            self._stand_in(name)

    def keep(self, name: str) -> None:
        """Keep the rows a view has now; from now on they stand in for it.

        Windows cut them too, where they have a ``ts_ns``.
        """
        self.materialize([name])
        self._execute(f"CREATE TABLE {_kept(name)} AS SELECT * FROM {connection.quote(name)}")  # noqa: S608 - quoted
        self._execute(f"DROP TABLE {connection.quote(name)}")
        self._kept.add(name)
        self._given.add(name)
        self._create_stand_in(name)

    def collect(self, name: str) -> None:
        """Begin to keep rows of a view, none so far; see :meth:`add_rows`."""
        source = f"SELECT * FROM {connection.quote(name)} LIMIT 0"  # noqa: S608 - quoted
        self._execute(f"CREATE TABLE {_kept(name)} AS {source}")
        self._collected.add(name)

    def add_rows(self, name: str, window: Window) -> None:
        """Keep the rows of a view, of those it has now, that start in ``window``.

        They stand in for the view from :meth:`give` on, here or, by :meth:`adopt_rows`,
        in another excerpt.
        """
        self.materialize([name])
        rows = f"SELECT * FROM {connection.quote(name)} WHERE {_within([window])}"  # noqa: S608 - quoted
        self._execute(f"INSERT INTO {_kept(name)} {rows}")

    def give(self, name: str) -> None:
        """Let the rows kept of a view stand in for it from now on."""
        self._execute(f"DROP TABLE {connection.quote(name)}")
        self._kept.add(name)
        self._given.add(name)
        self._create_stand_in(name)

    def kept(self) -> Kept:
        """All that is kept here, for other excerpts of the same run."""
        names = [*self._given, *self._collected]
        if self._long_ns is not None:
            names += [_long(name) for name in self._cut_tables()]
        tables = {}
        cursor = self._connection.cursor()
        try:
            for name in names:
                rows = cursor.sql(f"SELECT * FROM {_kept(name)}")  # noqa: S608 - quoted
                tables[name] = rows.to_arrow_table()
        except (duckdb.Error, RuntimeError, OSError) as error:
            raise self.explain(error) from error
        finally:
            cursor.close()
        return Kept(tables, tuple(self._given), self._long_ns)

    def adopt(self, kept: Kept) -> None:
        """Begin with what another excerpt of the run has kept."""
        for name, rows in kept.tables.items():
            self.adopt_rows(name, [rows])
        for name in kept.given:
            self.give(name)
        self._long_ns = kept.long_ns

    def adopt_rows(self, name: str, tables: Sequence[Any]) -> None:
        """Keep rows of a view that other excerpts of the run have computed; see :meth:`give`.

        Args:
            name: Name of the view.
            tables: ``pyarrow.Table`` of each of them, one at least.
        """
        cursor = self._connection.cursor()
        try:
            for number, rows in enumerate(tables):
                cursor.register("adopted", rows)
                how = f"INSERT INTO {_kept(name)}" if number else f"CREATE TABLE {_kept(name)} AS"
                cursor.execute(f"{how} SELECT * FROM adopted").fetchall()  # noqa: S608 - quoted
                cursor.unregister("adopted")
        except (duckdb.Error, RuntimeError, OSError) as error:
            raise self.explain(error) from error
        finally:
            cursor.close()

    def materialize(self, names: Iterable[str]) -> None:
        """Compute views as any session does; windows of the tables they read are copied."""
        if self._windows is not None:
            needed = {r for v in self._needed(names) for r in v.requires}
            for name in self._cut_tables():
                if name in needed and name not in self._tables:
                    self._execute(f"DROP VIEW {connection.quote(name)}")
                    self._execute(f"CREATE TABLE {connection.quote(name)} AS {self._cut(name)}")
                    self._tables.add(name)
        super().materialize(names)

    def _needed(self, names: Iterable[str]) -> tuple[Item, ...]:
        return connection.library().closure(names, self._given)

    def _define(self, view: Item) -> None:
        self._run_all([connection.definition(view)])

    def _stand_in(self, name: str) -> None:
        self._execute(f"DROP TABLE {connection.quote(name)}")
        self._create_stand_in(name)

    def _create_stand_in(self, name: str) -> None:
        where = ""
        if self._kept_windows is not None and self._has_time(name):
            where = f" WHERE {_within(self._kept_windows)}"
        self._execute(
            f"CREATE TABLE {connection.quote(name)} AS SELECT * FROM {_kept(name)}{where}"  # noqa: S608 - quoted
        )

    def _has_time(self, name: str) -> bool:
        [view] = [v for v in connection.library().views if v.name == name]
        return any(column.name == "ts_ns" for column in view.columns)

    def _cut_tables(self) -> Iterable[str]:
        return (name for name in CUT_TABLES if self._run.parts(name))

    def _cut(self, name: str) -> str:
        """SQL for the rows of a table in the windows."""
        if self._windows is None:
            return connection.table_sql(name, [self._run], self._roots)
        if name not in self._groups:
            self._groups[name] = row_groups(self._run, name)
        parts = {
            group.path
            for group in self._groups[name]
            for window in self._windows
            if group.rows and group.first_ns < window.end_ns and group.last_ns >= window.first_ns
        }
        rows = connection.table_sql(name, [self._run], self._roots, parts)
        cut = f"SELECT * FROM ({rows}) WHERE ({_within(self._windows)})"  # noqa: S608 - quoted
        if name == "cuda_api" and self._outermost:
            cut += " AND depth = 0"
        if self._long_ns is None:
            return cut
        reaching = " OR ".join(
            f"(ts_ns < {w.first_ns} AND (dur_ns IS NULL OR dur_ns > {w.first_ns} - ts_ns))"
            for w in self._windows
        )
        elsewhere = f"({reaching}) AND NOT ({_within(self._windows)})"
        return f"{cut} UNION ALL SELECT * FROM {_kept(_long(name))} WHERE {elsewhere}"  # noqa: S608 - quoted

    def _execute(self, statement: str) -> None:
        self._run_all([statement])


def _long(table: str) -> str:
    return f"long {table}"


def _kept(name: str) -> str:
    return f"{_SCHEMA}.{connection.quote(name)}"


def _within(windows: Sequence[Window]) -> str:
    """SQL that is true for rows that start in one of the windows."""
    tests = [f"(ts_ns >= {w.first_ns} AND ts_ns < {w.end_ns})" for w in windows]
    return " OR ".join(tests) if tests else "false"
