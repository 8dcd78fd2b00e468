"""Rows on their way into a run: staged in batches, so that memory holds one batch.

A batch lies in a Parquet part of its own until the whole file has been read. What is
not told (depth, the call that started an activity) is filled in when it is written
for good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cctrace.schema import TABLES

BATCH_ROWS: Final = 1 << 17
# Not a table of a run: what a synchronisation record tells of the call it belongs to.
HINTS: Final = "hints"
_HINTS_SCHEMA: Final = pa.schema(
    [
        pa.field("pid", pa.int32()),
        pa.field("correlation_id", pa.int64()),
        pa.field("stream", pa.int64()),
        pa.field("event", pa.int64()),
    ]
)
# Times of these tables are not when something happened, but when it was first known.
_NO_EVENTS: Final = ("processes", "threads")
# Columns of time besides ts_ns.
_TIMES: Final = {"processes": ("ts_ns", "start_ns"), "threads": ("ts_ns",)}


def schema_of(table: str) -> pa.Schema:
    """Arrow schema of a staged table."""
    return _HINTS_SCHEMA if table == HINTS else TABLES[table].arrow


def texts(values: list[str | None]) -> pa.Array:
    """Text as Arrow; what UTF-8 cannot hold (half of a surrogate pair) is replaced."""
    try:
        return pa.array(values, pa.string())
    except (UnicodeEncodeError, pa.ArrowException):
        return pa.array([None if v is None else _clean(v) for v in values], pa.string())


def _clean(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass
class Staging:
    """Staged batches of all tables.

    Attributes:
        folder: Where they lie; of this import's own.
        rows: Rows by table.
        first_ns: Earliest time of an event in the clock of the file; None: no event.
        last_ns: Latest one, ends included.
    """

    folder: Path
    rows: dict[str, int] = field(default_factory=dict)
    first_ns: int | None = None
    last_ns: int | None = None
    _parts: dict[str, list[Path]] = field(default_factory=dict)

    def add(self, table: str, count: int, columns: dict[str, Any]) -> None:
        """Stage a batch.

        Args:
            table: Table of the schema, or ``HINTS``.
            count: Rows, n.
            columns: By name n values (Arrow, numpy, or a list), or a single text for all
                rows; columns left out are NULL, ``depth`` is 0.

        Raises:
            OSError: The disk is full or refuses.
        """
        if not count:
            return
        schema = schema_of(table)
        unknown = columns.keys() - set(schema.names)
        if unknown:
            raise KeyError(f"{table} has no column {', '.join(sorted(unknown))}")
        arrays = [_column(columns, field_, count) for field_ in schema]
        data = pa.Table.from_arrays(arrays, schema=schema)
        folder = self.folder / table
        folder.mkdir(exist_ok=True)
        parts = self._parts.setdefault(table, [])
        path = folder / f"{len(parts)}.parquet"
        pq.write_table(data, path, compression="zstd", compression_level=1)
        parts.append(path)
        self.rows[table] = self.rows.get(table, 0) + count
        if table not in _NO_EVENTS:
            self._look_at_times(data)

    def _look_at_times(self, data: pa.Table) -> None:
        if "ts_ns" not in data.column_names:
            return
        starts = data["ts_ns"]
        ends = starts
        if "dur_ns" in data.column_names:
            ends = pc.add(starts, pc.fill_null(data["dur_ns"], 0))
        first, last = pc.min(starts).as_py(), pc.max(ends).as_py()
        self.first_ns = first if self.first_ns is None else min(first, self.first_ns)
        self.last_ns = last if self.last_ns is None else max(last, self.last_ns)

    def parts(self, table: str) -> list[Path]:
        """Staged parts of a table, in order."""
        return self._parts.get(table, [])

    def columns(self, table: str, names: list[str]) -> pa.Table:
        """Some columns of all rows of a table, in order, their dictionaries unified."""
        parts = self.parts(table)
        if not parts:
            schema = schema_of(table)
            return pa.schema([schema.field(name) for name in names]).empty_table()
        return pa.concat_tables(
            [pq.ParquetFile(path).read(columns=names) for path in parts]
        ).unify_dictionaries()


class Columns:
    """Columns of all rows of a staged table, each read when it is asked for.

    Holding one at a time is what keeps the memory of a large file's join low.
    """

    def __init__(self, staging: Staging, table: str) -> None:
        self._staging = staging
        self._table = table

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self._staging.columns(self._table, [name])[name]


def shifted(table: str, data: pa.Table, by_ns: int) -> pa.Table:
    """``data`` with its times moved by ``by_ns``."""
    if not by_ns:
        return data
    for name in _TIMES.get(table, ("ts_ns",)):
        if name in data.column_names:
            index = data.column_names.index(name)
            data = data.set_column(index, data.schema.field(index), pc.add(data[name], by_ns))
    return data


def ints(data: Columns, name: str, null: int = 0) -> np.ndarray[Any, Any]:
    """A column as numpy, NULL replaced."""
    column = data[name]
    column = pc.fill_null(column, null) if column.null_count else column
    return np.asarray(column.to_numpy())


def nulls(data: Columns, name: str) -> np.ndarray[Any, Any]:
    """Where a column is NULL."""
    return np.asarray(data[name].is_null().to_numpy())


def codes(data: Columns, name: str) -> tuple[np.ndarray[Any, Any], list[str]]:
    """A column of text as numbers, and what they stand for; -1: NULL."""
    column = data[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no rows
        return np.zeros(0, np.int32), []
    indices = pc.fill_null(column.indices, -1)
    return np.asarray(indices.to_numpy(zero_copy_only=False)), column.dictionary.to_pylist()


def _column(columns: dict[str, Any], wanted: pa.Field, count: int) -> Any:
    values = columns.get(wanted.name)
    if values is None:
        if wanted.name == "depth":
            return pa.array(np.zeros(count, np.int32))
        if not wanted.nullable:
            raise KeyError(f"column {wanted.name} is never NULL")
        return pa.nulls(count, wanted.type)
    if pa.types.is_dictionary(wanted.type):
        return _dictionary(values, count)
    if isinstance(values, list) and pa.types.is_string(wanted.type):
        return texts(values)
    return (
        values.cast(wanted.type) if isinstance(values, pa.Array) else pa.array(values, wanted.type)
    )


def _dictionary(values: str | list[str | None], count: int) -> pa.DictionaryArray:
    if isinstance(values, str):
        return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([values]))
    return texts(values).dictionary_encode()
