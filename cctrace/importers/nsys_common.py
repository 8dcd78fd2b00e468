"""What the readers of an Nsight Systems file share: identifiers, strings, checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cctrace.importers.accounting import Rejects
from cctrace.importers.sqlite_file import TIME_LIMIT_NS, beyond

if TYPE_CHECKING:
    from cctrace.importers.accounting import Accounting
    from cctrace.importers.sqlite_file import Batch, SqliteFile
    from cctrace.importers.staging import Staging

_Ints = npt.NDArray[np.int64]
_MASK_24: Final = 0xFFFFFF
_MAX_STRINGS: Final = 1 << 16


def process_of(serialized: _Ints) -> _Ints:
    """Process id of a globalPid or globalTid: bits 24 to 47."""
    return (serialized >> 24) & _MASK_24


def thread_of(serialized: _Ints) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Process and thread id of a globalTid: bits 24 to 47, and 0 to 23.

    Source: SQLite Export Schema Reference, "Serialized process and thread identifiers".
    """
    return process_of(serialized).astype(np.int32), (serialized & _MASK_24).astype(np.int32)


class Strings:
    """Texts of the table StringIds, a bounded number of them in memory."""

    def __init__(self, db: SqliteFile) -> None:
        self._db = db
        self._known: dict[int, str | None] = {}

    def get(self, number: int) -> str | None:
        """The text of that id; None: there is none."""
        if number not in self._known:
            if len(self._known) >= _MAX_STRINGS:
                self._known.clear()
            self._known[number] = self._db.lookup("StringIds", "id", "value", number)
        return self._known[number]


@dataclass(frozen=True)
class Context:
    """One file being read, and where its events go."""

    db: SqliteFile
    strings: Strings
    staging: Staging
    accounting: Accounting
    rejects: Rejects

    def expect(self, table: str) -> int:
        """Count the rows of a table as events; return how many they are."""
        count = self.db.count(table)
        self.accounting.expect(count)
        return count

    def batches(
        self, table: str, columns: Mapping[str, Any], order_by: tuple[str, ...] = ()
    ) -> Iterator[Batch]:
        """Rows of a table in batches."""
        return self.db.batches(table, columns, self.rejects, table, order_by)

    def facts(self, table: str, columns: Mapping[str, Any]) -> Iterator[Batch]:
        """Rows of a table that holds no events: one that makes no sense ends the import."""
        strict = Rejects(self.db.path, self.accounting, skip=False)
        return self.db.batches(table, columns, strict, table)

    def drop(self, table: str, batch: Batch, bad: Any, columns: list[str], reason: str) -> Batch:
        """The batch without rows that make no sense."""
        return batch.drop_bad(self.rejects, table, bad, columns, reason)

    def with_thread(self, table: str, batch: Batch) -> Batch:
        """The batch without events of no thread."""
        of_none = batch.null["globalTid"]
        self.accounting.left_out(table, "of no thread", int(np.count_nonzero(of_none)))
        return batch.keep(~of_none)

    def named(self, table: str, batch: Batch, column: str) -> tuple[Batch, list[str]]:
        """The batch with the texts of a column of string ids, without rows that have none."""
        names = {i: self.strings.get(i) for i in np.unique(batch.values[column]).tolist()}
        unknown = [i for i, name in names.items() if name is None]
        bad = np.isin(batch.values[column], unknown) | batch.null[column]
        good = self.drop(table, batch, bad, [column], f"{column} is not in StringIds")
        return good, [names[i] or "" for i in good.values[column].tolist()]

    def stage(self, kind: str, table: str, count: int, columns: dict[str, Any]) -> None:
        """Stage rows, one for each event, and account for them."""
        self.staging.add(table, count, columns)
        self.accounting.imported(kind, table, count)


def spans(context: Context, table: str, batch: Batch) -> Batch:
    """The batch without events whose times make no sense; ``end`` may be NULL."""
    start, end, is_open = batch.values["start"], batch.values["end"], batch.null["end"]
    out_of_range = (beyond(start, TIME_LIMIT_NS)) | (~is_open & (beyond(end, TIME_LIMIT_NS)))
    good = context.drop(table, batch, out_of_range, ["start", "end"], "time out of range")
    backwards = ~good.null["end"] & (good.values["end"] < good.values["start"])
    return context.drop(table, good, backwards, ["start", "end"], "end before start")
