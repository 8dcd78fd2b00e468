"""How fast records of CUDA calls become rows of a run; prints JSON lines.

Pinned to one core. Each mix is decoded in batches as the recorder does it at its
flushes, and written as parts; the figures are of the whole path from the ring's
copy to the closed Parquet file, and of decoding alone. No file is synchronised.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from cctrace.record.bpf import layout
from cctrace.record.bpf.cuda.decode import CallDecoder
from cctrace.record.bpf.cuda.memory import MemoryMap
from cctrace.record.bpf.cuda.symbols import symbol_table
from cctrace.record.losses import LossLedger

SEED = 20_260
BASE = 1 << 40
SLOT_BYTES = 1 << 16
ALL = layout.CudaFlag.HAS_SIZE | layout.CudaFlag.HAS_STREAM | layout.CudaFlag.HAS_ADDRESS
TABLE = symbol_table()
SITE = {symbol.name: symbol.site for symbol in TABLE.symbols}

Mix = Callable[[int, np.random.Generator], npt.NDArray[np.void]]


def blank(count: int, random: np.random.Generator) -> npt.NDArray[np.void]:
    """Calls a microsecond apart, of a few threads, with everything read."""
    events = np.zeros(count, layout.CUDA_EVENT)
    events["ts_ns"] = 10**12 + np.arange(count) * 1_000
    events["pid"] = 1000
    events["tid"] = 1000 + random.integers(0, 7, count)
    events["kind"] = layout.Kind.CUDA
    events["flags"] = ALL
    events["dur_ns"] = random.integers(500, 20_000, count)
    events["stream"] = random.integers(0, 5, count) << 12
    events["detail"] = layout.NO_COPY_KIND
    return events


def launches(count: int, random: np.random.Generator) -> npt.NDArray[np.void]:
    """Launches in both layers."""
    events = blank(count, random)
    both = [SITE["cudaLaunchKernel"], SITE["cuLaunchKernel"]]
    events["what"] = np.resize(both, count)
    events["depth"] = np.resize([0, 1], count)
    events["flags"] = layout.CudaFlag.HAS_STREAM
    return events


def decode_step(count: int, random: np.random.Generator) -> npt.NDArray[np.void]:
    """Nine launches to one copy, half of those told by their addresses."""
    events = launches(count, random)
    copies = np.arange(count) % 10 == 0
    total = int(copies.sum())
    names = ["cudaMemcpyAsync", "cuMemcpyDtoHAsync_v2", "cuMemcpyAsync", "cuMemcpyHtoDAsync_v2"]
    events["what"][copies] = random.choice([SITE[name] for name in names], total)
    events["detail"][copies] = 4
    events["flags"][copies] = ALL
    for side in ("src", "dst"):
        events[side][copies] = BASE + random.integers(0, 20_000, total) * SLOT_BYTES
    events["size_bytes"][copies] = random.integers(4, SLOT_BYTES, total)
    return events


def copies_only(count: int, random: np.random.Generator) -> npt.NDArray[np.void]:
    """Copies told by their addresses, all of them."""
    events = blank(count, random)
    events["what"] = SITE["cuMemcpyAsync"]
    for side in ("src", "dst"):
        events[side] = BASE + random.integers(0, 20_000, count) * SLOT_BYTES
    events["size_bytes"] = random.integers(4, SLOT_BYTES, count)
    return events


def allocations(count: int, random: np.random.Generator) -> npt.NDArray[np.void]:
    """A storm of allocations and frees, a copy after each allocation."""
    events = blank(count, random)
    names = ["cuMemHostAlloc", "cuMemcpyHtoDAsync_v2", "cuMemFreeHost"]
    events["what"] = np.resize([SITE[name] for name in names], count)
    address = BASE + random.integers(0, 5_000, -(-count // 3)) * SLOT_BYTES
    events["dst"] = events["src"] = np.repeat(address, 3)[:count]
    events["dur_ns"] = 700
    events["size_bytes"] = 4096
    return events


MIXES: dict[str, Mix] = {
    "launches": launches,
    "decode_step": decode_step,
    "copies": copies_only,
    "allocations": allocations,
}


def remembered(random: np.random.Generator) -> npt.NDArray[np.void]:
    """Ranges of an engine that runs: 20,000 of them, pinned and device."""
    events = blank(20_000, random)
    events["ts_ns"] = 1 + np.arange(20_000)
    events["what"] = np.resize([SITE["cuMemHostAlloc"], SITE["cuMemAlloc_v2"]], 20_000)
    events["dst"] = BASE + np.arange(20_000) * SLOT_BYTES
    events["size_bytes"] = SLOT_BYTES
    return events


def measure(name: str, mix: Mix, batch: int, batches: int, folder: Path) -> dict[str, Any]:
    """Decode and write ``batches`` batches; the best of them, in ns per record."""
    random = np.random.default_rng(SEED)
    ledger = LossLedger()
    memory = MemoryMap(ledger)
    memory.watch_from_start()
    decoder = CallDecoder(TABLE, memory, ledger)
    if mix is not allocations:
        decoder.rows(remembered(random))
    decoding, whole = [], []
    for number in range(batches):
        events = mix(batch, random)
        events["ts_ns"] += number * batch * 1_000
        begun = time.thread_time_ns()
        [(table_name, table)] = decoder.rows(events)
        decoded = time.thread_time_ns()
        pq.write_table(
            table, folder / f"{table_name}.parquet", compression="zstd", compression_level=1
        )
        decoding.append((decoded - begun) / batch)
        whole.append((time.thread_time_ns() - begun) / batch)
    return {
        "mix": name,
        "batch": batch,
        "batches": batches,
        "decode_ns": round(min(decoding)),
        "decode_and_write_ns": round(min(whole)),
        "events_per_s": round(1e9 / min(whole)),
        "median_events_per_s": round(1e9 / sorted(whole)[batches // 2]),
        "losses": ledger.by_reason(),
    }


def main() -> int:
    """Measure every mix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=250_007, help="records a flush")
    parser.add_argument("--batches", type=int, default=7)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        for name, mix in MIXES.items():
            found = measure(name, mix, arguments.batch, arguments.batches, Path(folder))
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
