"""Whatever the engine writes into its memory: counted, never an error, never out of bounds.

Reads out of bounds would be numpy's or mmap's own error here, as every read is
bounded by an array or a slice of the mapping; the whole segment is garbage at times,
its header included, between any two drains.
"""

from __future__ import annotations

import shutil
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_agent import FakeAgent
from hypothesis import given, note, settings

from cctrace.record import layout
from cctrace.record.clock import now_ns
from cctrace.record.images import Images
from cctrace.record.layout import Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.nvtx import to_table
from cctrace.record.server import Peer
from cctrace.record.writer import TableWriter
from cctrace.schema import TABLES

PID = 4242
SEEDS = st.integers(0, 2**63)
GEOMETRIES = st.builds(
    Geometry,
    slots=st.integers(1, 5),
    ring_records=st.sampled_from([1, 2, 16, 128]),
    stack_frames=st.integers(0, 9),
    dict_bytes=st.sampled_from([8, 40, 1024, 9000]),
)


class Hostile:
    """A process that writes garbage, with the recorder's side next to it."""

    def __init__(self, geometry: Geometry, rng: np.random.Generator) -> None:
        self.rng = rng
        self.ledger = LossLedger()
        self.base_ns = now_ns()
        self.images = Images(geometry, self.base_ns - 10**9, self.ledger)
        self.agent = FakeAgent(self.images.hello(Peer(PID, 0), 1))
        more = self.images.more(Peer(PID, 0), 1)
        assert more is not None
        self.agent.add(more)
        # From our own geometry: the header is garbage soon.
        self.geometry = geometry
        self.tables: list[pa.Table] = []

    def bytes(self, size: int) -> bytes:
        """Random bytes, or all of one kind, as garbage often is."""
        kind = int(self.rng.integers(0, 4))
        if kind == 0:
            return b"\xff" * size
        if kind == 1:
            return bytes(size)
        return self.rng.bytes(size)

    def everything(self) -> None:
        """Overwrite a whole segment."""
        target = self.pick()
        target.map[:] = self.bytes(len(target.map))

    def some_bytes(self) -> None:
        """Overwrite a few bytes anywhere."""
        target = self.pick()
        for _ in range(int(self.rng.integers(1, 32))):
            at = int(self.rng.integers(0, len(target.map)))
            size = min(int(self.rng.integers(1, 64)), len(target.map) - at)
            target.map[at : at + size] = self.bytes(size)

    def slots(self) -> None:
        """Plausible heads, states and depths over garbage rings: what gets furthest."""
        for slot in self.pick().slots[: self.geometry.slots]:
            ahead = int(self.rng.integers(0, self.geometry.ring_records + 2))
            slot["head"] = int(slot["tail"]) + ahead & 2**64 - 1
            slot["state"] = self.rng.integers(0, 4)
            slot["depth"] = self.rng.integers(0, self.geometry.stack_frames + 2)
            slot["tid"] = self.rng.integers(0, 2**32)

    def records(self) -> None:
        """Records of which each field is sometimes right and sometimes not."""
        target = self.pick()
        size = self.geometry.ring_records
        fields: dict[str, Any] = {
            "ts_ns": self.base_ns + self.rng.integers(-100, 100, size),
            "value": self.rng.integers(0, 4, size),
            "payload": self.rng.integers(0, 2**64, size, np.uint64),
            "key": self.rng.integers(0, 5, size),
            "depth": self.rng.integers(0, 2**16, size),
            "kind": self.rng.integers(0, 6, size),
            "payload_type": self.rng.integers(0, 8, size),
        }
        for index in range(self.geometry.slots):
            offset = self.geometry.rings_offset + index * self.geometry.ring_stride
            ring: Any = np.frombuffer(target.map, layout.RECORD, size, offset)
            for name, values in fields.items():
                if self.rng.random() < 0.8:
                    ring[name] = values

    def dictionary(self) -> None:
        """Entries of which most make sense, and a head that may not."""
        first = self.agent.maps[0]
        log = b""
        while len(log) < self.geometry.dict_bytes:
            text = self.rng.bytes(int(self.rng.integers(0, 24)))
            words = self.rng.integers(0, 6, 8).astype("<u4")
            words[6] = len(text)
            log += words.tobytes() + text + bytes(-len(text) % 8)
        at = self.geometry.dict_offset
        first.map[at : at + self.geometry.dict_bytes] = log[: self.geometry.dict_bytes]
        first.header["dict_head"] = self.rng.integers(0, self.geometry.dict_bytes * 2)

    def losses(self) -> None:
        """Loss counters that jump."""
        target = self.pick()
        for slot in target.slots[: self.geometry.slots]:
            slot["losses"]["count"] = self.rng.integers(0, 2**64, 8, np.uint64)
            slot["losses"]["first_ns"] = self.rng.integers(0, 2**64, 8, np.uint64)

    def pick(self) -> Any:
        """One of the segments."""
        return self.agent.maps[int(self.rng.integers(0, len(self.agent.maps)))]

    def drain(self) -> None:
        """One look of the recorder."""
        self.images.drain()

    def decode(self) -> None:
        """Decode and check what comes out against the schema."""
        parts = self.images.decode()
        if parts:
            table = to_table(parts, self.images.run_keys)
            table.validate(full=True)
            assert table.schema.equals(TABLES["nvtx"].arrow)
            assert set(table["pid"].to_pylist()) == {PID}
            assert pa.compute.min(table["tid"]).as_py() >= 0
            assert pa.compute.min(table["ts_ns"]).as_py() >= self.base_ns - 10**9
            lengths = [d for d in table["dur_ns"].to_pylist() if d is not None]
            assert min(lengths, default=0) >= 0
            self.tables.append(table)
        self.ledger.table().validate(full=True)


STEPS = (
    "everything",
    "some_bytes",
    "slots",
    "records",
    "dictionary",
    "losses",
    "drain",
    "decode",
)


@settings(max_examples=101, deadline=None)
@given(seed=SEEDS, geometry=GEOMETRIES)
def test_garbage_in_the_whole_segment(
    seed: int, geometry: Geometry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Garbage at random times between drains; what is decoded reads back from Parquet."""
    note(f"seed {seed}")
    rng = np.random.default_rng(seed)
    hostile = Hostile(geometry, rng)
    for step in rng.choice(STEPS, 97):
        getattr(hostile, str(step))()
    hostile.images.end_all()
    while hostile.images.alive():
        hostile.drain()
    hostile.decode()
    events = sum(table.num_rows for table in hostile.tables)
    run = tmp_path_factory.mktemp("run")
    writer = TableWriter(TABLES["nvtx"], run / "nvtx")
    for table in hostile.tables:
        writer.append(table)
    assert writer.rows == events
    if events:
        back = pa.concat_tables(
            [pq.ParquetFile(path).read() for path in sorted((run / "nvtx").iterdir())]
        )
        # Compared as text, since a NaN does not equal itself.
        assert repr(back.to_pylist()) == repr(pa.concat_tables(hostile.tables).to_pylist())
    TableWriter(TABLES["losses"], run / "losses").replace(hostile.ledger.table())
    shutil.rmtree(run)
    known = {*layout.LOSS_REASONS, "bad_ring", "bad_frame", "bad_record", "bad_dictionary"}
    assert set(hostile.ledger.by_reason()) <= known | {"unknown_key", "orphan_end", "untraced"}
    assert hostile.ledger.by_reason(), "garbage was not counted"


@settings(max_examples=53, deadline=None)
@given(seed=SEEDS)
def test_each_record_is_a_row_or_is_counted(seed: int) -> None:
    """Over random records of good shape, nothing vanishes: rows and losses add up."""
    note(f"seed {seed}")
    geometry = Geometry(slots=2, ring_records=128, stack_frames=3, dict_bytes=1024)
    hostile = Hostile(geometry, np.random.default_rng(seed))
    hostile.agent.maps.pop()  # one segment, so that none is chosen by chance
    taken = 0
    for _ in range(13):
        hostile.records()
        for slot in hostile.agent.maps[0].slots:
            slot["tid"], slot["state"] = 7, layout.SLOT_LIVE
            slot["head"] = int(slot["tail"]) + int(hostile.rng.integers(0, 129))
        taken += hostile.images.drain()
        hostile.decode()
    hostile.images.end_all()
    hostile.drain()
    hostile.decode()
    rows = pa.concat_tables(hostile.tables)
    joined = rows.num_rows - rows["end_tid"].null_count  # two records each
    counted = hostile.ledger.by_reason()
    lost = counted.get("bad_record", 0) + counted.get("orphan_end", 0)
    assert rows.num_rows + joined + lost == taken
