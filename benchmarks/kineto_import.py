"""Speed and memory of `cctrace import --from kineto` on a generated trace.

    python benchmarks/kineto_import.py --mb 600

The trace is as a training loop makes it: nested operators on two threads, launches
with kernels, copies, flows, annotations; times in microseconds with three digits.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_START_NS = 1_750_000_000 * 10**9
_THREADS = 2
_FLUSH_EVENTS = 20_000


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"


def _operator(at: int, thread: int, number: int) -> Iterator[str]:
    """One operator with another in it, which launches a kernel and copies."""
    name = f"aten::op_{number % 300}"
    tid = 5000 + thread
    for depth, length in ((0, 40_000), (1, 30_000)):
        yield (
            f'{{"ph": "X", "cat": "cpu_op", "name": "{name}", "pid": 5000, "tid": {tid},\n'
            f'    "ts": {_us(at + depth * 2000)}, "dur": {_us(length)},\n'
            f'    "args": {{"External id": {number}, "Ev Idx": {number}}}}}'
        )
    calls = (
        ("cudaLaunchKernel", "kernel", f"void kernel_{number % 500}<float, {number % 7}>(float*)"),
        ("cudaMemcpyAsync", "gpu_memcpy", "Memcpy HtoD (Pageable -> Device)"),
    )
    for place, (api, category, activity) in enumerate(calls):
        correlation = number * 2 + place
        start = at + 4000 + place * 9000
        yield (
            f'{{"ph": "X", "cat": "cuda_runtime", "name": "{api}", "pid": 5000, "tid": {tid},\n'
            f'    "ts": {_us(start)}, "dur": {_us(8123)},\n'
            f'    "args": {{"External id": {number}, "cbid": 211, "correlation": {correlation}}}}}'
        )
        yield (
            f'{{"ph": "s", "id": {correlation}, "pid": 5000, "tid": {tid}, "ts": {_us(start)},\n'
            f'    "cat": "ac2g", "name": "ac2g"}}'
        )
        yield (
            f'{{"ph": "X", "cat": "{category}", "name": "{activity}", "pid": 0, "tid": 7,\n'
            f'    "ts": {_us(start + 20_000)}, "dur": {_us(5321)},\n'
            f'    "args": {{"External id": {number}, "device": 0, "context": 1, "stream": 7,\n'
            f'    "correlation": {correlation}, "bytes": {4096 + number % 9}}}}}'
        )


def write_trace(path: Path, size_bytes: int) -> int:
    """Write a trace of at least that size; return how many events it has."""
    events = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"schemaVersion": 1, "traceEvents": [\n')
        number = 0
        pending: list[str] = []
        while file.tell() < size_bytes:
            while len(pending) < _FLUSH_EVENTS:
                at = _START_NS + number // _THREADS * 50_000
                pending += _operator(at, number % _THREADS, number)
                number += 1
            file.write((",\n" if events else "") + ",\n".join(pending))
            events += len(pending)
            pending.clear()
        file.write('\n], "displayTimeUnit": "ms"}\n')
    return events


def main() -> None:
    """Write a trace, import it, and say what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=600, help="size of the trace, MB")
    parser.add_argument("--in", dest="folder", type=Path, help="where to write; default: TMPDIR")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        trace, run = Path(temporary, "trace.json"), Path(temporary, "run")
        events = write_trace(trace, arguments.mb * 10**6)
        command = [sys.executable, "-m", "cctrace", "import", str(trace), "--from", "kineto"]
        started = time.perf_counter()
        subprocess.run([*command, "-o", str(run), "-q"], check=True)
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = trace.stat().st_size
        parts = sum(part.stat().st_size for part in run.rglob("*.parquet"))
    result = {
        "trace_mb": round(size / 1e6, 1),
        "events": events,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "mb_per_cpu_s": round(size / 1e6 / (used.ru_utime + used.ru_stime), 1),
        "peak_rss_mb": round(used.ru_maxrss * 1024 / 1e6),
        "run_mb": round(parts / 1e6, 1),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
