"""Queries over opened runs: what ``cctrace.open`` returns and ``query`` uses."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from cctrace.errors import (
    EXIT_BAD_DATA,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    CctraceError,
)
from cctrace.schema import TABLES
from cctrace.store import connection, notebook, sandbox
from cctrace.store.run import Run, open_runs

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from cctrace.store.library import Item, ParamValue
    from cctrace.store.manifest import Manifest

BATCH_ROWS = 65_536
# A notebook shows so many rows, and looks at so many to say how many more there are.
_SHOWN_ROWS, _COUNTED_ROWS = 20, 1_000
_MISTAKES = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)
_NOT_OF_THE_FILES = (*_MISTAKES, duckdb.PermissionException)
# Where comments can be seen.
_CATALOG = re.compile(r"duckdb_|pg_|information_schema", re.IGNORECASE)
_CALCULATION = (duckdb.DataError, duckdb.OutOfMemoryException, duckdb.NotSupportedError)


class Result:
    """Rows of one query. Nothing runs before rows are asked for.

    Each of the methods runs the query again.

    Attributes:
        columns: Names of the columns.
        types: DuckDB types of the columns.
    """

    def __init__(
        self,
        relation: duckdb.DuckDBPyRelation,
        cursor: duckdb.DuckDBPyConnection,
        session: Session,
        reads: frozenset[str] = frozenset(),
    ) -> None:
        self._relation = relation
        self._cursor = cursor
        self._session = session  # both are kept open
        self._reads = reads
        self.columns: list[str] = list(relation.columns)
        self.types: list[str] = [str(t) for t in relation.types]

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[Any]:
        """Stream the rows as Arrow record batches of at most ``rows`` rows.

        Raises:
            CctraceError: The query failed; exit code 130 where it was interrupted,
                4 where a part is damaged or gone.
        """
        reader = self._read(lambda: _arrow_reader(self._relation, rows))
        while True:
            batch = self._run(lambda: next(reader, None))
            if batch is None:
                return
            yield batch

    @property
    def schema(self) -> Any:
        """Arrow schema of the batches."""
        return self._run(lambda: _arrow_reader(self._relation.limit(0), 1).schema)

    def arrow(self) -> Any:
        """All rows as a ``pyarrow.Table``."""
        return self._read(self._relation.to_arrow_table)

    def df(self) -> Any:
        """All rows as a pandas DataFrame; needs pandas."""
        return self._read(self._relation.df)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows as tuples."""
        rows: list[tuple[Any, ...]] = self._read(self._relation.fetchall)
        return rows

    def __repr__(self) -> str:
        columns = ", ".join(f"{n} {t}" for n, t in zip(self.columns, self.types, strict=True))
        return f"<Result ({columns})>"

    def _repr_html_(self) -> str:
        """The first rows, for a notebook."""
        rows = self._read(self._relation.limit(_COUNTED_ROWS + 1).fetchall)
        parts = [notebook.table(self.columns, rows[:_SHOWN_ROWS], types=self.types)]
        left = len(rows) - _SHOWN_ROWS
        if left > 0:
            least = "at least " if len(rows) > _COUNTED_ROWS else ""
            parts.append(notebook.note(f"and {least}{left:,} more rows: .df() has all of them"))
        return notebook.output(*parts)

    def _read(self, action: Any) -> Any:
        # The relation is bound anew as it runs, so it finds the tables in the views' place.
        self._session.materialize(self._reads)
        return self._run(action)

    def _run(self, action: Any) -> Any:
        try:
            return action()
        except (duckdb.Error, pa.ArrowException, RuntimeError, OSError) as error:
            raise self._session.explain(error) from error
        except KeyboardInterrupt:
            raise CctraceError("interrupted", None, EXIT_INTERRUPTED) from None


def _arrow_reader(relation: duckdb.DuckDBPyRelation, rows: int) -> Any:
    # DuckDB 1.4 has the older name only, which later versions are about to drop.
    open_reader = getattr(relation, "to_arrow_reader", None)
    return open_reader(rows) if open_reader else relation.fetch_arrow_reader(rows)


class Session:
    """One or several opened runs, and the SQL over them.

    Use it as a context manager, or let it go out of scope.

    Args:
        runs: The runs.
        memory_limit: What DuckDB may use, as ``2GiB``; DuckDB's own choice (most of the
            machine's memory) unless given. Beyond it data is spilled.
        threads: Threads DuckDB may use; one for each core unless given.

    Attributes:
        runs: The runs, in the order they were named.
    """

    def __init__(
        self, runs: list[Run], *, memory_limit: str | None = None, threads: int | None = None
    ) -> None:
        self.runs = runs
        temporary = Path(tempfile.mkdtemp(prefix="cctrace-query-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        self._roots = connection.roots(runs, temporary)
        self._connection = connection.connect(
            runs, self._roots, temporary / "spill", memory_limit=memory_limit, threads=threads
        )
        self._kept: set[str] = set()  # views whose rows are in a table by now
        self._keeping = threading.Lock()
        self._is_described = False  # the catalog has comments

    @property
    def path(self) -> Path:
        """Directory of the first run."""
        return self.runs[0].path

    @property
    def manifest(self) -> Manifest:
        """Manifest of the first run."""
        return self.runs[0].manifest

    def sql(self, query: str, params: Mapping[str, ParamValue] | None = None) -> Result:
        """Run a query on the views of the run.

        A query reads and nothing else; see cctrace/store/sandbox.py. Several
        statements may come at once: CREATE VIEW, TABLE or MACRO first, then one
        that yields rows. What was created stays for the session; with TEMP, for
        this result only.

        Args:
            query: SQL in DuckDB's dialect.
            params: Values of its ``$name`` parameters.

        Returns:
            The rows, not yet computed.

        Raises:
            CctraceError: Exit code 2; the query is wrong, refused or lacks a
                parameter.
        """
        # A cursor each, so that results can be read side by side.
        cursor = self._connection.cursor()
        try:
            statements = sandbox.check(cursor, query)
        except (duckdb.Error, RuntimeError) as error:  # an interrupt, in the main
            raise self.explain(error) from error
        given = dict(params or {})
        wanted = frozenset[str]().union(*(s.parameters for s in statements))
        if set(given) - wanted or wanted - set(given):
            extra, missing = sorted(set(given) - wanted), sorted(wanted - set(given))
            what = f"no value for {', '.join(missing)}" if missing else ""
            what += ("; " if what and extra else "") + (
                f"the query has no ${', $'.join(extra)}" if extra else ""
            )
            raise CctraceError(what, "give each $name a value: --param name=value", EXIT_USAGE)
        try:
            if _CATALOG.search(query):
                self._describe()
            for statement in statements[:-1]:
                self.materialize(statement.reads)
                cursor.execute(statement.text).fetchall()
            relation = cursor.sql(statements[-1].text, params=given or None)
            return Result(relation, cursor, self, statements[-1].reads)
        except (duckdb.Error, OSError, RuntimeError) as error:
            raise self.explain(error) from error
        except KeyboardInterrupt:
            raise CctraceError("interrupted", None, EXIT_INTERRUPTED) from None

    def report(self, name: str, params: Mapping[str, ParamValue] | None = None) -> Result:
        """Run a report of the library.

        Args:
            name: Its name; see `cctrace query --list`.
            params: Values for its parameters; the others have their defaults.

        Raises:
            CctraceError: Exit code 2; no such report or parameter.
        """
        report = connection.library().report(name)
        values: dict[str, ParamValue] = {p.name: p.default for p in report.params}
        unknown = set(params or {}) - set(values)
        if unknown:
            raise CctraceError(
                f"report {name} has no parameter {', '.join(sorted(unknown))}",
                f"it has {', '.join(values) or 'none'}",
                EXIT_USAGE,
            )
        values.update(params or {})
        return self.sql(report.sql, values)

    def materialize(self, names: Iterable[str]) -> None:
        """Compute views once for this session, and keep their rows in tables.

        Of the named views and all that they require, those whose header says
        ``materialize: yes``. Each table takes the name of its view, so no query
        sees a difference but in time. What memory cannot hold is spilled.

        Args:
            names: Names of views; those of anything else are left out.

        Raises:
            CctraceError: A view cannot be computed; as for the rows of a result.
        """
        with self._keeping:
            for view in self._needed(names):
                if view.materialize and view.name not in self._kept:
                    self._run_all(connection.replacement(view))
                    self._kept.add(view.name)
                    if self._is_described:
                        self._run_all([connection.comment(view)])

    def _describe(self) -> None:
        """Put comments into the catalog, for who looks there."""
        with self._keeping:
            if self._is_described:
                return
            self._is_described = True
            for statement in connection.comments():
                # A view that the user has replaced is his to describe.
                with contextlib.suppress(CctraceError):
                    self._run_all([statement])

    def _needed(self, names: Iterable[str]) -> tuple[Item, ...]:
        """The named views and all they require, in order."""
        return connection.library().closure(names)

    def _run_all(self, statements: Iterable[str]) -> None:
        """Run statements of cctrace's own."""
        cursor = self._connection.cursor()
        try:
            for statement in statements:
                cursor.execute(statement).fetchall()
        except (duckdb.Error, RuntimeError, OSError) as error:
            raise self.explain(error) from error
        except KeyboardInterrupt:
            raise CctraceError("interrupted", None, EXIT_INTERRUPTED) from None
        finally:
            cursor.close()  # rolls back what is not done

    def close(self) -> None:
        """Close the connection and remove what was spilled."""
        self._connection.close()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def explain(self, error: Exception) -> CctraceError:
        """Turn an error of DuckDB into one for the user."""
        text = str(error).strip() or type(error).__name__
        if isinstance(error, duckdb.InterruptException) or "interrupted" in text.lower():
            return CctraceError("interrupted", None, EXIT_INTERRUPTED)
        names_run = any(f"{root}/" in text for root in self._roots.values())
        for path, root in self._roots.items():
            text = text.replace(f"{root}/", f"{path}/")
        # DuckDB takes the name of a missing file for a pattern, and refuses that.
        gone = self._find_gone(text)
        if gone or (names_run and not isinstance(error, _NOT_OF_THE_FILES)):
            return CctraceError(
                f"{gone} is gone" if gone else f"cannot read the run: {text}",
                "if the run is still being recorded, its parts were just merged: open it again",
                EXIT_BAD_DATA,
            )
        if isinstance(error, duckdb.PermissionException):
            return CctraceError(
                f"a query cannot reach outside the run: {text}",
                "read from the run's views; save results with -o FILE",
                EXIT_USAGE,
            )
        if isinstance(error, _MISTAKES):
            return CctraceError(text, "`cctrace query RUN 'SHOW TABLES'` lists what is there", 2)
        damage = None if isinstance(error, _CALCULATION) else self._find_damage()
        if damage:
            return CctraceError(
                f"{damage[0]} is damaged: {damage[1]}",
                "delete that part to read the rest of the run",
                EXIT_BAD_DATA,
            )
        return CctraceError(f"the query failed: {text}", None, EXIT_FAILED)

    def _find_gone(self, text: str) -> Path | None:
        """The part named in ``text`` that was there when the run was opened."""
        parts = (p.path for run in self.runs for name in TABLES for p in run.parts(name))
        return next((path for path in parts if str(path) in text and not path.exists()), None)

    def _find_damage(self) -> tuple[Path, str] | None:
        return next((found for run in self.runs if (found := run.find_damage())), None)


def open_session(*paths: str | os.PathLike[str]) -> Session:
    """Open one or several runs for queries.

    Args:
        paths: Run directories.

    Raises:
        CctraceError: Exit code 4; one of them is no run this cctrace reads.
    """
    return Session(open_runs(paths))
