"""Rows of somebody else's SQLite file, in batches, with every value's type checked.

The file is read only, never written: not even the lock files SQLite would make
beside a file in WAL mode. Only plain tables are read: a view could hold any query.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.importers.accounting import broken, shown

Kind = Literal["int", "int?", "text", "text?", "real", "real?"]

_BATCH_ROWS: Final = 1 << 16
_TYPES: Final[dict[str, set[type]]] = {"int": {int}, "text": {str}, "real": {float, int}}
_NAMES: Final = {"int": "integer", "text": "text", "real": "number"}
# UnicodeError: SQLite's own message quotes a damaged schema.
_ERRORS: Final = (sqlite3.Error, OverflowError, UnicodeError)
_HEADER: Final = b"SQLite format 3\0"
TIME_LIMIT_NS: Final = 1 << 62


class Rejecting(Protocol):
    """What is told of a row that makes no sense; ``Rejects`` is one."""

    def event(self, kind: str, place: str, why: str, reason: str) -> None:
        """Take note of one row, or end the import."""


@dataclass
class Batch:
    """Some rows of a table.

    Attributes:
        table: Its name.
        rows: Number of each row in the order they were read, from 1.
        values: By column: int64, float64, or object (text) arrays; NULL as 0 or "".
        null: By column: where it is NULL.
    """

    table: str
    rows: npt.NDArray[np.int64]
    values: dict[str, npt.NDArray[Any]]
    null: dict[str, npt.NDArray[np.bool_]]

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, mask: npt.NDArray[np.bool_]) -> Batch:
        """The rows where ``mask`` is true."""
        if mask.all():
            return self
        return Batch(
            self.table,
            self.rows[mask],
            {name: values[mask] for name, values in self.values.items()},
            {name: null[mask] for name, null in self.null.items()},
        )

    def optional(self, name: str) -> list[Any]:
        """A column as a list, NULL as None."""
        values = self.values[name].tolist()
        return [None if n else v for v, n in zip(values, self.null[name].tolist(), strict=True)]

    def drop_bad(
        self,
        rejects: Rejecting,
        kind: str,
        bad: npt.NDArray[np.bool_],
        columns: Sequence[str],
        reason: str,
    ) -> Batch:
        """Without rows that make no sense; each of them is counted, or ends the import.

        Args:
            rejects: What to do with them.
            kind: Kind of event.
            bad: Which rows.
            columns: Columns whose values show it.
            reason: What is wrong.
        """
        for i in np.flatnonzero(bad).tolist():
            values = ", ".join(f"{name} {self._shown(name, i)}" for name in columns)
            place = f"table {self.table}, row {self.rows[i]}"
            rejects.event(kind, place, f"{reason}: {values}", reason)
        return self.keep(~bad)

    def _shown(self, name: str, i: int) -> str:
        return "NULL" if self.null[name][i] else shown(self.values[name][i : i + 1].tolist()[0])


class SqliteFile:
    """A SQLite file, opened for reading.

    Args:
        path: The file.

    Attributes:
        columns: Columns of each plain table.

    Raises:
        CctraceError: Exit code 4; it is no SQLite file, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                header = file.read(len(_HEADER))
        except OSError as error:
            raise CctraceError(
                f"cannot read {path}: {error.strerror or error}", None, EXIT_BAD_DATA
            ) from error
        if header != _HEADER:
            raise broken(path, "byte 0", f"not a SQLite file: it starts with {shown(header)}")
        # What a writer has not yet folded in lies in FILE-wal; reading that takes the
        # lock files. Without it the file is whole, and nothing beside it is touched.
        real = path.resolve()
        wal = real.with_name(real.name + "-wal")
        is_whole = not (wal.is_file() and wal.stat().st_size)
        options = "mode=ro&immutable=1" if is_whole else "mode=ro"
        self._name = "schema"
        try:
            self._db = sqlite3.connect(f"file:{quote(str(real))}?{options}", uri=True)
            self._db.text_factory = lambda data: data.decode("utf-8", "replace")
            self._db.execute("PRAGMA trusted_schema = OFF")
            self._db.execute("PRAGMA query_only = ON")
            self.columns = self._read_schema()
        except _ERRORS as error:
            raise broken(path, "schema", str(error)) from error

    def _read_schema(self) -> dict[str, tuple[str, ...]]:
        names = [
            name
            for name, sql in self._db.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
            )
            if isinstance(name, str) and "VIRTUAL" not in str(sql).split("(", 1)[0].upper()
        ]
        return {
            name: tuple(
                str(row[1]) for row in self._db.execute(f"PRAGMA table_info({_quoted(name)})")
            )
            for name in names
        }

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def require(self, table: str, columns: Sequence[str], tool: str) -> None:
        """Check that a table is there with these columns.

        Raises:
            CctraceError: Exit code 4; it is not.
        """
        if table not in self.columns:
            raise broken(self.path, "schema", f"no table {table}: not a file of {tool}")
        missing = [name for name in columns if name not in self.columns[table]]
        if missing:
            raise broken(
                self.path, f"table {table}", f"no column {', '.join(missing)}: not a file of {tool}"
            )

    def count(self, table: str) -> int:
        """Rows of a table."""
        with self._reading(table):
            return int(self._db.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0])  # noqa: S608 - quoted

    def batches(
        self,
        table: str,
        columns: Mapping[str, Kind],
        rejects: Rejecting,
        kind: str,
        order_by: Sequence[str] = (),
    ) -> Iterator[Batch]:
        """Rows of a table, in batches.

        Args:
            table: One that is there.
            columns: Type of each column wanted; with ``?`` it may be NULL or absent.
            rejects: What to do with a row that has another type in it.
            kind: Kind of event, for the accounting.
            order_by: Columns to order by; otherwise as they lie in the file.

        Raises:
            CctraceError: Exit code 4; the table lacks a column or cannot be read.
        """
        have = self.columns[table]
        required = [name for name, kind_ in columns.items() if not kind_.endswith("?")]
        missing = [name for name in required if name not in have]
        if missing:
            raise broken(self.path, f"table {table}", f"no column {', '.join(missing)}")
        wanted = ", ".join(_quoted(n) if n in have else "NULL" for n in columns)
        order = f" ORDER BY {', '.join(map(_quoted, order_by))}" if order_by else ""
        first = 1
        with self._reading(table):
            cursor = self._db.execute(f"SELECT {wanted} FROM {_quoted(table)}{order}")  # noqa: S608 - quoted
        while True:
            with self._reading(table, first):
                rows = cursor.fetchmany(_BATCH_ROWS)
            if not rows:
                return
            by_column = dict(zip(columns, zip(*rows, strict=True), strict=True))
            yield _checked((table, first), by_column, columns, rejects, kind)
            first += len(rows)

    def lookup(self, table: str, key: str, value: str, wanted: int) -> str | None:
        """Text ``value`` of the row whose ``key`` is ``wanted``; None: no such row."""
        with self._reading(table):
            row = self._db.execute(
                f"SELECT {_quoted(value)} FROM {_quoted(table)} WHERE {_quoted(key)} = ?",  # noqa: S608 - quoted
                (wanted,),
            ).fetchone()
        return row[0] if row and isinstance(row[0], str) else None

    def pairs(self, table: str, key: str, value: str) -> dict[Any, Any]:
        """Two columns of a small table as a dictionary; empty where it is not there."""
        have = self.columns.get(table, ())
        if key not in have or value not in have:
            return {}
        with self._reading(table):
            return dict(
                self._db.execute(f"SELECT {_quoted(key)}, {_quoted(value)} FROM {_quoted(table)}")  # noqa: S608 - quoted
            )

    @contextlib.contextmanager
    def _reading(self, table: str, row: int | None = None) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            place = f"table {table}" if row is None else f"table {table}, after row {row - 1}"
            raise broken(self.path, place, str(error)) from error


def beyond(values: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.bool_]:
    """Where the absolute value is ``limit`` or more; abs() of the least integer is negative."""
    return (values <= -limit) | (values >= limit)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _checked(
    where: tuple[str, int],
    by_column: dict[str, tuple[Any, ...]],
    columns: Mapping[str, Kind],
    rejects: Rejecting,
    kind: str,
) -> Batch:
    table, first = where
    good = np.ones(len(next(iter(by_column.values()))), np.bool_)
    for name, wanted in columns.items():
        allowed = _TYPES[wanted.rstrip("?")] | ({type(None)} if wanted.endswith("?") else set())
        if set(map(type, by_column[name])) <= allowed:
            continue
        for i, value in enumerate(by_column[name]):
            if type(value) not in allowed and good[i]:
                good[i] = False
                what = _NAMES[wanted.rstrip("?")]
                place = f"table {table}, row {first + i}, column {name}"
                rejects.event(kind, place, f"{shown(value)} is no {what}", f"{name} is no {what}")
    if not good.all():
        by_column = {
            name: tuple(v for v, ok in zip(column, good.tolist(), strict=True) if ok)
            for name, column in by_column.items()
        }
    values, null = {}, {}
    for name, wanted in columns.items():
        values[name], null[name] = _array(by_column[name], wanted.rstrip("?"))
    return Batch(table, np.flatnonzero(good) + first, values, null)


def _array(column: tuple[Any, ...], kind: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    null = np.fromiter((value is None for value in column), np.bool_, len(column))
    if kind == "text":
        values = np.empty(len(column), object)
        values[:] = ["" if value is None else value for value in column]
        return values, null
    filled = [0 if value is None else value for value in column] if null.any() else list(column)
    return np.array(filled, np.int64 if kind == "int" else np.float64), null
