"""Write a run of a made-up decode loop with as many events as are asked for.

A step is 100 events: six NVTX ranges; three copies in, 36 launches, one memset, one
readback that waits for the device, a sync and an event record on the main thread, and
an event sync with a readback on a second stream by a worker, each as the runtime's call
and the driver's inside it; and four waits of the scheduler. One device works through
the calls of its two streams in order, so that lengths, waits and idle times fit
together. The run comes from the seed alone, whatever its length: a longer one begins
with the steps of a shorter one.

    python benchmarks/generate_run.py --events 10000000 -o /tmp/big
    cctrace report /tmp/big
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.record.writer import TableWriter
from cctrace.schema import TABLES
from cctrace.store.manifest import CLEAN, Anchor, Manifest, Recorder, Source
from cctrace.version import VERSION

EVENTS_PER_STEP = 100
LAUNCHES = 36
BLOCK_STEPS = 1_009  # steps made at a time, and in a part: what a recorder flushes
SEED = 20_260_623
START_NS = 1_000_000_000_000
REALTIME_NS = 1_781_000_000_000_000_000
PID, WORKER = 4_201, 4_207
STREAM, SIDE_STREAM, EVENT = 0x7F10_0000_1000, 0x7F10_0000_2000, 0x7F10_0000_E000
REQUESTS = 7

# Nanoseconds of a made-up device behind a slow bridge. A call's own time is drawn from
# [least, least + spread).
LAUNCH_NS, LAUNCH_SPREAD_NS = 26_000, 2_003
COPY_TOLL_NS, COPY_SPREAD_NS, COPY_GB_PER_S = 12_000, 1_009, 8
KERNEL_NS, KERNEL_SPREAD_NS = 40_000, 20_011
DEVICE_LATENCY_NS = 3_000
PYTHON_NS, PYTHON_SPREAD_NS = 400_000, 100_003
INNER_NS = 700  # a driver call begins so much after the runtime's, and ends so much before

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Generated:
    """What was written, and what the made-up device did.

    Attributes:
        path: The run.
        events: Events in it.
        steps: Steps in it.
        period_ns: Mean period of a step, ns.
        idle_ns: Mean time in a step in which the device had no work, ns.
    """

    path: Path
    events: int
    steps: int
    period_ns: float
    idle_ns: float


@dataclass
class _Columns:
    """Rows of one table for a block of steps: a list of a step's rows, each over all steps."""

    starts: list[Ints] = field(default_factory=list)
    lengths: list[Ints] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, ts_ns: Ints, dur_ns: Ints, **facts: Any) -> None:
        self.starts.append(ts_ns)
        self.lengths.append(dur_ns)
        self.facts.append(facts)

    def table(self, name: str, origin_ns: Ints) -> pa.Table:
        """All rows as the schema has them, step by step."""
        steps, rows = len(origin_ns), len(self.facts)
        columns = []
        for column in TABLES[name].columns:
            if column.name == "ts_ns":
                values = np.stack([origin_ns + s for s in self.starts], axis=1).ravel()
                columns.append(pa.array(values))
            elif column.name == "dur_ns":
                columns.append(pa.array(np.stack(self.lengths, axis=1).ravel()))
            else:
                columns.append(self._constant(column.name, column.type, steps, rows))
        return pa.Table.from_arrays(columns, schema=TABLES[name].arrow)

    def _constant(self, name: str, kind: pa.DataType, steps: int, rows: int) -> pa.Array:
        values = [facts.get(name) for facts in self.facts]
        if pa.types.is_dictionary(kind):
            known = sorted({v for v in values if v is not None})
            indices = pa.array([None if v is None else known.index(v) for v in values], pa.int32())
            tiled = indices.take(pa.array(np.tile(np.arange(rows), steps)))
            return pa.DictionaryArray.from_arrays(tiled, pa.array(known, pa.string()))
        return pa.array(values, kind).take(pa.array(np.tile(np.arange(rows), steps)))


class _Block:
    """Simulates a block of steps at once: every figure is an array over its steps."""

    def __init__(self, steps: int, random: np.random.Generator) -> None:
        self._random = random
        self._steps = steps
        zero = np.zeros(steps, np.int64)
        self.now = zero.copy()  # the main thread's clock, since the step began
        self.device = zero.copy()  # when the device is done with what it was given
        self.busy = zero.copy()
        self.tables = {name: _Columns() for name in ("nvtx", "cuda_api", "sched")}
        self._open: list[tuple[str, Ints, dict[str, Any]]] = []
        self._run()

    def _draw(self, least: int, spread: int) -> Ints:
        return self._random.integers(least, least + spread, self._steps, dtype=np.int64)

    def _work(self, issued: Ints, length: Ints) -> None:
        self.device = np.maximum(self.device, issued + DEVICE_LATENCY_NS) + length
        self.busy += length

    def _push(self, name: str, **facts: Any) -> None:
        self._open.append((name, self.now.copy(), facts))
        self.now = self.now + self._draw(300, 101)

    def _pop(self) -> None:
        name, start, facts = self._open.pop()
        own = {"kind": "push_pop", "domain": "decode_loop", "name": name, "depth": len(self._open)}
        self.tables["nvtx"].add(start, self.now - start, pid=PID, tid=PID, **own, **facts)
        self.now = self.now + self._draw(200, 101)

    def _call(self, start: Ints, length: Ints, runtime: str, driver: str, **facts: Any) -> None:
        own = {"pid": PID, "tid": PID, "result": 0, **facts}
        inner = np.maximum(length - 2 * INNER_NS, 1)
        calls = self.tables["cuda_api"]
        calls.add(start + INNER_NS, inner, api=driver, layer="driver", depth=1, **own)
        calls.add(start, length, api=runtime, layer="runtime", depth=0, **own)

    def _main(self, length: Ints, runtime: str, driver: str, **facts: Any) -> None:
        self._call(self.now, length, runtime, driver, **facts)
        self.now = self.now + length + self._draw(1_000, 503)

    def _copy_in(self, size_bytes: int) -> None:
        length = self._draw(COPY_TOLL_NS, COPY_SPREAD_NS) + size_bytes // COPY_GB_PER_S
        self._work(self.now + length, np.full(self._steps, 1_500 + size_bytes // COPY_GB_PER_S))
        facts = {"copy_kind": "h2d", "size_bytes": size_bytes, "host_memory": "pinned"}
        self._main(length, "cudaMemcpyAsync", "cuMemcpyHtoDAsync", **{"class": "copy"},
                   stream=STREAM, **facts)  # fmt: skip

    def _launch(self) -> None:
        length = self._draw(LAUNCH_NS, LAUNCH_SPREAD_NS)
        self._work(self.now + length, self._draw(KERNEL_NS, KERNEL_SPREAD_NS))
        self._main(length, "cudaLaunchKernel", "cuLaunchKernel", **{"class": "launch"},
                   stream=STREAM)  # fmt: skip

    def _read_back(self) -> None:
        toll = self._draw(COPY_TOLL_NS, COPY_SPREAD_NS)
        size_bytes = 4 * REQUESTS
        done = np.maximum(self.now, self.device) + toll
        self.busy += 1_500
        # Off the CPU from a while after the entry until the copy is there.
        sleep = self.now + 5_000
        self.tables["sched"].add(sleep, done - 3_000 - sleep, pid=PID, tid=PID, state="blocked")
        self.tables["sched"].add(done - 3_000, self._draw(900, 203), pid=PID, tid=PID,
                                 state="runnable")  # fmt: skip
        self.device = done - 1_000
        facts = {"copy_kind": "d2h", "size_bytes": size_bytes, "host_memory": "pinned"}
        self._main(done - self.now, "cudaMemcpyAsync", "cuMemcpyDtoHAsync", **{"class": "copy"},
                   stream=STREAM, **facts)  # fmt: skip

    def _worker(self, recorded: Ints) -> None:
        """A second thread copies some bytes after the event, on a stream of its own."""
        woken = recorded + self._draw(20_000, 5_003)
        waited = self._draw(5_000, 1_009)
        worker = {"tid": WORKER}
        self._call(woken, waited, "cudaEventSynchronize", "cuEventSynchronize",
                   **{"class": "sync"}, event=EVENT, **worker)  # fmt: skip
        start = woken + waited + 2_000
        length = self._draw(COPY_TOLL_NS, COPY_SPREAD_NS)
        self.busy += 1_500
        self._call(start, length, "cudaMemcpyAsync", "cuMemcpyDtoHAsync", **{"class": "copy"},
                   stream=SIDE_STREAM, copy_kind="d2h", size_bytes=4, host_memory="pinned",
                   **worker)  # fmt: skip
        asleep = start + length + 9_000
        waits = self.tables["sched"]
        waits.add(recorded + 1_000, woken - recorded - 4_000, pid=PID, tid=WORKER,
                  state="runnable")  # fmt: skip
        waits.add(asleep, self.now - asleep, pid=PID, tid=WORKER, state="blocked")

    def _run(self) -> None:
        self._push("step", category="decode", payload=(REQUESTS << 32) + REQUESTS)
        self._push("prepare_inputs")
        self.now = self.now + self._draw(PYTHON_NS // 4, PYTHON_SPREAD_NS // 4)
        for size_bytes in (4 * REQUESTS, 8 * REQUESTS, 44 * REQUESTS):
            self._copy_in(size_bytes)
        self._pop()
        self._push("forward")
        self._main(self._draw(LAUNCH_NS, LAUNCH_SPREAD_NS), "cudaMemsetAsync", "cuMemsetD8Async",
                   **{"class": "memset"}, stream=STREAM, size_bytes=4_096)  # fmt: skip
        self._work(self.now, np.full(self._steps, 2_000))
        for _ in range(LAUNCHES - 2):
            self._launch()
        self._pop()
        self._push("sample")
        self._launch()
        self._launch()
        self._pop()
        self._push("readback")
        self._read_back()
        self._main(self._draw(5_000, 1_009), "cudaStreamSynchronize", "cuStreamSynchronize",
                   **{"class": "sync"}, stream=STREAM)  # fmt: skip
        self._pop()
        self._main(self._draw(2_000, 503), "cudaEventRecord", "cuEventRecord",
                   **{"class": "event"}, stream=STREAM, event=EVENT)  # fmt: skip
        recorded = self.now
        self._push("postprocess")
        self.now = self.now + self._draw(PYTHON_NS, PYTHON_SPREAD_NS)
        self._pop()
        self._worker(recorded)
        self._pop()
        self.now = self.now + self._draw(10_000, 1_009)


def generate(path: Path, events: int, seed: int = SEED) -> Generated:
    """Write a run.

    Args:
        path: Directory to make; it must not be there.
        events: Events wanted; rounded down to whole steps.
        seed: Of all random figures.

    Raises:
        FileExistsError: There is something at ``path``.
    """
    path.mkdir(parents=True)
    steps = max(events // EVENTS_PER_STEP, 1)
    random = np.random.default_rng(seed)
    writers = {
        name: TableWriter(TABLES[name], path / name) for name in ("nvtx", "cuda_api", "sched")
    }
    clock, idle = START_NS, 0
    for first in range(0, steps, BLOCK_STEPS):
        # A whole block is drawn and then cut, so that the length changes no figure.
        block = _Block(BLOCK_STEPS, random)
        wanted = min(BLOCK_STEPS, steps - first)
        origin = clock + np.concatenate([[0], np.cumsum(block.now)[:-1]]).astype(np.int64)
        for name, columns in block.tables.items():
            rows = columns.table(name, origin)
            writers[name].append(rows.slice(0, wanted * len(columns.facts)))
        clock += int(block.now[:wanted].sum())
        idle += int((block.now - block.busy)[:wanted].sum())
    total = sum(writer.rows for writer in writers.values())
    _close(path, clock, total, seed)
    return Generated(path, total, steps, (clock - START_NS) / steps, idle / steps)


def _close(path: Path, stop_ns: int, events: int, seed: int) -> None:
    processes = [
        {"ts_ns": START_NS, "pid": PID, "tid": PID, "start_ns": START_NS, "end_ns": stop_ns,
         "ppid": 1, "exe": "generated", "cmdline": "generated", "exit_code": 0}
    ]  # fmt: skip
    threads = [
        {"ts_ns": START_NS, "pid": PID, "tid": tid, "name": name, "start_ns": START_NS,
         "end_ns": stop_ns} for tid, name in ((PID, "engine"), (WORKER, "worker"))
    ]  # fmt: skip
    for name, rows in (("processes", processes), ("threads", threads)):
        TableWriter(TABLES[name], path / name).append(
            pa.Table.from_pylist(rows, schema=TABLES[name].arrow)
        )
    length = stop_ns - START_NS
    Manifest(
        cctrace_version=VERSION,
        command=["generate_run.py", "--events", str(events), "--seed", str(seed)],
        cwd="/",
        start=Anchor(START_NS, REALTIME_NS, START_NS),
        stop=Anchor(stop_ns, REALTIME_NS + length, START_NS + length),
        recorder=Recorder(pid=1, start_ticks=0, cpu_s=None),
        ended=CLEAN,
        exit_code=0,
        sources=[Source(name, "attached") for name in ("nvtx", "cuda", "sched", "processes")],
        events=events,
    ).write(path)


def main() -> int:
    """Write the run and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="events to write")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of all random figures")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory to make")
    options = parser.parse_args()
    if options.force and options.output.exists():
        shutil.rmtree(options.output)
    made = generate(options.output, options.events, options.seed)
    print(
        f"Wrote {made.path} ({made.events:,} events, {made.steps:,} steps of "
        f"{made.period_ns / 1e6:.3f} ms, device idle {made.idle_ns / made.period_ns:.1%}, "
        f"seed {options.seed})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
