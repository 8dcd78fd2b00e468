"""Rolling Parquet parts: each whole when it has its name, small ones merged later.

A part is written under a temporary name and renamed, so whatever kills the
recorder leaves only whole parts, and at most what came since the last flush is
missing. Flushing often makes small parts; runs of them are merged into one whose
name covers their numbers (``part-000000-000007.parquet``). Should the recorder die
between the renaming and the deleting, readers skip the parts that another covers.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from cctrace.schema import Table

_MERGE_PARTS: Final = 8
# Merging a row costs more than writing it; larger parts are few enough as they are.
_MERGE_BELOW_ROWS: Final = 1 << 16
_ZSTD_LEVEL: Final = 1
_ROW_GROUP_ROWS: Final = 1 << 20
# Integers of neighbouring rows are close, so differences pack well (Parquet's
# delta encoding) and cost less time than looking for repeated values.
_DELTA: Final = "DELTA_BINARY_PACKED"


@dataclass
class _Part:
    first: int
    last: int
    rows: int
    level: int
    path: Path
    size_bytes: int


@dataclass
class TableWriter:
    """Writes one table of a run.

    Attributes:
        table: Its schema.
        folder: Its folder in the run directory; made at the first part.
        rows: Rows written so far.
    """

    table: Table
    folder: Path
    rows: int = 0
    _next: int = 0
    _parts: list[_Part] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts that are there now."""
        return sum(part.size_bytes for part in self._parts)

    def append(self, data: pa.Table) -> None:
        """Write ``data`` as a part of its own, then merge where parts got many.

        Raises:
            OSError: The disk is full or refuses; no half part is left behind.
        """
        if not data.num_rows:
            return
        part = self._write(self._next, self._next, 0, data)
        self._next += 1
        self.rows += data.num_rows
        self._parts.append(part)
        # A merge saves files, not rows: where the disk has no room for it, the
        # small parts stay.
        with contextlib.suppress(OSError):
            while (level := self._mergeable()) is not None:
                self._merge(level)

    def replace(self, data: pa.Table) -> None:
        """Make ``data`` the whole content of the table, in one part.

        Raises:
            OSError: The disk is full or refuses; the old content stays.
        """
        if not data.num_rows:
            return
        self._parts = [self._write(0, 0, 0, data)]
        self.rows = data.num_rows

    def _mergeable(self) -> int | None:
        tail = self._parts[-_MERGE_PARTS:]
        if len(tail) < _MERGE_PARTS or len({part.level for part in tail}) != 1:
            return None
        if max(part.rows for part in tail) >= _MERGE_BELOW_ROWS:
            return None
        return tail[0].level

    def _merge(self, level: int) -> None:
        small = self._parts[-_MERGE_PARTS:]
        data = pa.concat_tables(
            [pq.ParquetFile(part.path).read() for part in small]
        ).unify_dictionaries()
        merged = self._write(small[0].first, small[-1].last, level + 1, data)
        self._parts[-_MERGE_PARTS:] = [merged]
        for part in small:
            part.path.unlink()

    def _write(self, first: int, last: int, level: int, data: pa.Table) -> _Part:
        self.folder.mkdir(exist_ok=True)
        span = f"{first:06d}" if first == last else f"{first:06d}-{last:06d}"
        path = self.folder / f"part-{span}.parquet"
        temporary = self.folder / f".part-{span}.parquet.tmp"
        try:
            pq.write_table(
                data.cast(self.table.arrow) if data.schema != self.table.arrow else data,
                temporary,
                row_group_size=_ROW_GROUP_ROWS,
                compression="zstd",
                compression_level=_ZSTD_LEVEL,
                **self._encodings(),
            )
            size_bytes = temporary.stat().st_size
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return _Part(first, last, data.num_rows, level, path, size_bytes)

    def _encodings(self) -> dict[str, object]:
        # Names are dictionaries already; integers change little from row to row.
        # Nested columns keep Parquet's own choice.
        # Least and greatest help readers to skip parts by integers alone, and those
        # of strings are a third of the work of writing.
        dictionary, delta = [], {}
        for column in self.table.columns:
            if pa.types.is_signed_integer(column.type):
                delta[column.name] = _DELTA
            elif not pa.types.is_nested(column.type):
                dictionary.append(column.name)
        return {
            "use_dictionary": dictionary,
            "column_encoding": delta,
            "write_statistics": list(delta),
        }
