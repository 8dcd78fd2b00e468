"""One process image, its fake agent, and the rows the recorder makes of it."""

from __future__ import annotations

from typing import Any

from fake_agent import FakeAgent

from cctrace.record.clock import now_ns
from cctrace.record.images import Images
from cctrace.record.layout import Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.nvtx import to_table
from cctrace.record.server import Peer
from cctrace.schema import TABLES

PID = 4242
GEOMETRY = Geometry(slots=3, ring_records=64, stack_frames=16, dict_bytes=1 << 20)
Row = dict[str, Any]


class Recording:
    """One image, its agent, and the rows decoded so far."""

    def __init__(self, geometry: Geometry = GEOMETRY) -> None:
        self.ledger = LossLedger()
        self.base_ns = now_ns()
        self.images = Images(geometry, self.base_ns - 10**9, self.ledger)
        self.agent = FakeAgent(self.images.hello(Peer(PID, 0), 1))
        self.rows: list[Row] = []

    def more(self) -> None:
        """Hand a further segment over."""
        segment = self.images.more(Peer(PID, 0), 1)
        assert segment is not None
        self.agent.add(segment)

    def flush(self) -> list[Row]:
        """Drain and decode; returns the rows this gave, times counted from the base."""
        self.images.drain()
        parts = self.images.decode()
        if not parts:
            return []
        table = to_table(parts, self.images.run_keys)
        assert table.schema.equals(TABLES["nvtx"].arrow, check_metadata=True)
        table.validate(full=True)
        fresh: list[Row] = table.to_pylist()
        for row in fresh:
            row["ts_ns"] -= self.base_ns
        self.rows += fresh
        return fresh

    def end(self) -> list[Row]:
        """End the process and flush; returns all rows."""
        self.images.process_ended(PID)
        self.flush()
        assert self.images.alive() == 0
        return self.rows


def row(ts_ns: int, tid: int, dur_ns: int | None, kind: str, **values: Any) -> Row:
    """A row with NULLs where nothing else is said."""
    made = dict.fromkeys(TABLES["nvtx"].column_names)
    made |= {"ts_ns": ts_ns, "pid": PID, "tid": tid, "dur_ns": dur_ns, "kind": kind, "depth": 0}
    return made | values
