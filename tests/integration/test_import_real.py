"""Traces of real GPUs: counts and times of the run equal those of the source.

What a figure should be is taken from the source itself, with sqlite3 and json, and
none of the importers' code.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import sqlite3
from collections import Counter
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from import_files import accounting, imported, rows

from cctrace.importers.api import Imported
from cctrace.store.run import Run

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NSYS = DATA / "nsys_h100_2gpu_1s.sqlite"
KINETO = DATA / "kineto_rank0.pt.trace.json.gz"
INGERO = DATA / "ingero_vllm_rtx4090.db"
Counts = dict[Any, Any]

# Functions of each class, written out; the importers take theirs from the symbol table.
CLASSES = {
    "copy": ("cudaMemcpyAsync",),
    "launch": ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel"),
    "sync": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cuCtxSynchronize",
             "cudaEventQuery"),
}  # fmt: skip


def _import(path: Path, kind: str, tmp_path: Path) -> tuple[Path, Imported]:
    if not path.is_file():
        pytest.skip(f"{path} is not here: a trace recorded on a real GPU")
    link = tmp_path / path.name
    link.symlink_to(path)
    return imported(link, kind)


def _sql(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
        return db.execute(query).fetchall()


def _by(rows_: list[Any], *keys: str, weight: str | None = None) -> Counts:
    """Rows, or the sum of a column, by some columns."""
    found: Counter[Any] = Counter()
    for row in rows_:
        key = tuple(row[k] for k in keys) if len(keys) > 1 else row[keys[0]]
        found[key] += 1 if weight is None else row[weight]
    return dict(found)


def _class_totals(calls: list[Any]) -> dict[str, tuple[int, int]]:
    """Calls and ns of each class."""
    count, total = _by(calls, "class"), _by(calls, "class", weight="dur_ns")
    return {cls: (count[cls], total[cls]) for cls in CLASSES if cls in count}


def _totals_by_name(by_name: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The same from the source's own count and ns by function."""
    found = {}
    for cls, names in CLASSES.items():
        told = [by_name[name] for name in names if name in by_name]
        if told:
            found[cls] = (sum(n for n, _ in told), sum(ns for _, ns in told))
    return found


def test_nsys(tmp_path: Path) -> None:
    run, done = _import(NSYS, "nsys", tmp_path)
    # Counts by table: rows, folded, left out
    tables = ["RUNTIME", "KERNEL", "MEMCPY", "MEMSET", "SYNCHRONIZATION", "OVERHEAD"]
    count = {
        name: _sql(NSYS, f"SELECT count(*) FROM {name}")[0][0]
        for name in ["NVTX_EVENTS", *(f"CUPTI_ACTIVITY_KIND_{table}" for table in tables)]
    }
    assert sum(count.values()) == 27388
    folded, left_out = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", "CUPTI_ACTIVITY_KIND_OVERHEAD"
    assert accounting(done) == {
        name: (0, n, 0) if name == folded else (0, 0, n) if name == left_out else (n, 0, 0)
        for name, n in count.items()
    }
    # Calls: count and ns by function, and by class
    named = _sql(
        NSYS,
        "SELECT value, count(*), sum(end - start) FROM CUPTI_ACTIVITY_KIND_RUNTIME "
        "JOIN StringIds ON id = nameId GROUP BY value",
    )
    by_name = {re.sub(r"_v\d+$", "", name): (n, ns) for name, n, ns in named}
    calls = rows(run, "cuda_api")
    assert _by(calls, "api") == {name: n for name, (n, _) in by_name.items()}
    assert _by(calls, "api", weight="dur_ns") == {name: ns for name, (_, ns) in by_name.items()}
    assert _class_totals(calls) == _totals_by_name(by_name)
    assert {call["depth"] for call in calls} == {0}
    # Activities: count, ns and bytes by process, device, stream and direction
    columns = "globalPid >> 24 & 0xFFFFFF, deviceId, streamId, count(*), sum(end - start)"
    kinds = {1: "h2d", 2: "d2h", 8: "d2d"}
    activities = rows(run, "gpu_activity")
    for table, cls in (("KERNEL", "kernel"), ("MEMCPY", "copy"), ("MEMSET", "memset")):
        source = f"FROM CUPTI_ACTIVITY_KIND_{table} GROUP BY globalPid, deviceId, streamId"
        expected = _sql(NSYS, f"SELECT {columns} {source}")
        ours = [row for row in activities if row["class"] == cls]
        number = _by(ours, "pid", "device", "stream")
        total = _by(ours, "pid", "device", "stream", weight="dur_ns")
        assert {key: (number[key], total[key]) for key in number} == {
            row[:3]: row[3:] for row in expected
        }
    copies = [row for row in activities if row["class"] == "copy"]
    moved = _sql(
        NSYS, "SELECT copyKind, sum(bytes) FROM CUPTI_ACTIVITY_KIND_MEMCPY GROUP BY copyKind"
    )
    assert _by(copies, "copy_kind", weight="size_bytes") == {kinds[k]: n for k, n in moved}
    # What a copy call learns from its activity, by a join of SQLite's
    joined = _sql(
        NSYS,
        "SELECT m.copyKind, count(*), sum(m.bytes) FROM CUPTI_ACTIVITY_KIND_RUNTIME AS r "
        "JOIN CUPTI_ACTIVITY_KIND_MEMCPY AS m ON m.correlationId = r.correlationId "
        "AND m.globalPid >> 24 = r.globalTid >> 24 GROUP BY m.copyKind",
    )
    known = [c for c in calls if c["class"] == "copy" and c["size_bytes"] is not None]
    assert _by(known, "copy_kind") == {kinds[k]: n for k, n, _ in joined}
    assert _by(known, "copy_kind", weight="size_bytes") == {kinds[k]: n for k, _, n in joined}
    # Ranges
    ranges = _sql(
        NSYS,
        "SELECT globalTid & 0xFFFFFF, count(*), sum(end - start), min(start) "
        "FROM NVTX_EVENTS GROUP BY globalTid",
    )
    nvtx = rows(run, "nvtx")
    assert _by(nvtx, "tid") == {row[0]: row[1] for row in ranges}
    assert _by(nvtx, "tid", weight="dur_ns") == {row[0]: row[2] for row in ranges}
    assert nvtx[0]["ts_ns"] == min(row[3] for row in ranges)
    # Clocks: the capture's start in UTC
    [(utc_ns, system_ns)] = _sql(
        NSYS, "SELECT utcEpochNs, systemClockNs FROM TARGET_INFO_SESSION_START_TIME"
    )
    start = done.manifest.start
    assert start.realtime_ns - start.monotonic_ns == utc_ns
    assert done.manifest.options["clock"]["monotonic_offset_ns"] == system_ns
    assert Run(run).find_damage() is None


def test_kineto(tmp_path: Path) -> None:
    run, done = _import(KINETO, "kineto", tmp_path)
    with gzip.open(KINETO) as file:
        events = json.load(file, parse_float=Decimal)["traceEvents"]

    def ns(value: Decimal | int) -> int:
        exact = Decimal(value) * 1000
        assert exact == int(exact)
        return int(exact)

    # Every event has its place
    kinds = Counter(f"{e.get('cat', '-')} {e['ph']}" for e in events)
    assert {kind: sum(told) for kind, told in accounting(done).items()} == dict(kinds)
    assert sum(kinds.values()) == 68692
    # Calls, by function: count and ns; and by class
    calls = [e for e in events if e.get("cat") == "cuda_runtime"]
    by_name = {
        name.removesuffix("_v2"): (n, sum(ns(e["dur"]) for e in calls if e["name"] == name))
        for name, n in Counter(e["name"] for e in calls).items()
    }
    ours = rows(run, "cuda_api")
    assert _by(ours, "api") == {name: n for name, (n, _) in by_name.items()}
    assert _by(ours, "api", weight="dur_ns") == {name: t for name, (_, t) in by_name.items()}
    assert _class_totals(ours) == _totals_by_name(by_name)
    # Each call and range is where it was, to the ns
    spans = {
        "cuda_api": calls,
        "nvtx": [e for e in events if e.get("cat") in ("cpu_op", "user_annotation")],
    }
    for table, source in spans.items():
        found = Counter(rows(run, table, "pid", "tid", "ts_ns", "dur_ns"))
        assert found == Counter((e["pid"], e["tid"], ns(e["ts"]), ns(e["dur"])) for e in source)
    # GPU activity: the same, and the thread of the call with its correlation id
    launched = {e["args"]["correlation"]: (e["pid"], e["tid"]) for e in calls}
    classes = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "memset"}
    expected = Counter(
        (
            *launched[e["args"]["correlation"]],
            *(classes[e["cat"]], ns(e["ts"]), ns(e["dur"]), e["args"]["device"]),
            *(e["args"]["stream"], e["args"].get("bytes"), e["args"]["correlation"]),
        )
        for e in events
        if e.get("cat") in classes
    )
    told = ("pid", "tid", "class", "ts_ns", "dur_ns", "device", "stream", "size_bytes",
            "correlation_id")  # fmt: skip
    assert Counter(rows(run, "gpu_activity", *told)) == expected
    # Sizes of the calls that copied or set memory
    sizes = {e["args"]["correlation"]: e["args"].get("bytes") for e in events
             if e.get("cat") in ("gpu_memcpy", "gpu_memset")}  # fmt: skip
    for call in ours:
        assert call["size_bytes"] == sizes.get(call["correlation_id"])
    assert Run(run).find_damage() is None


def test_ingero(tmp_path: Path) -> None:
    run, done = _import(INGERO, "ingero", tmp_path)
    # Counts and ns by operation
    by_op = {
        (source, op): (n, ns)
        for source, op, n, ns in _sql(
            INGERO,
            "SELECT sources.name, ops.name, count(*), sum(duration) FROM events "
            "JOIN sources ON sources.id = source "
            "JOIN ops ON ops.source_id = source AND ops.op_id = op GROUP BY source, op",
        )
    }
    snapshots = _sql(INGERO, "SELECT count(*) FROM system_snapshots")[0][0]
    assert {kind: sum(told) for kind, told in accounting(done).items()} == {
        **{f"{source} {op}": n for (source, op), (n, _) in by_op.items()},
        "system_snapshots": snapshots,
    }
    assert sum(n for n, _ in by_op.values()) == 10869
    full = {"cudaStreamSync": "cudaStreamSynchronize", "cudaDeviceSync": "cudaDeviceSynchronize"}
    by_name = {
        full.get(op, op): told for (source, op), told in by_op.items()
        if source in ("CUDA", "DRIVER")
    }  # fmt: skip
    calls = rows(run, "cuda_api")
    assert _by(calls, "api") == {name: n for name, (n, _) in by_name.items()}
    assert _by(calls, "api", weight="dur_ns") == {name: ns for name, (_, ns) in by_name.items()}
    assert _class_totals(calls) == _totals_by_name(by_name)
    # Copies: bytes by the kind in arg1
    kinds = {1: "h2d", 2: "d2h", 3: "d2d"}
    moved = _sql(
        INGERO, "SELECT arg1, sum(arg0) FROM events WHERE source = 1 AND op = 7 GROUP BY 1"
    )
    copies = [call for call in calls if call["class"] == "copy"]
    assert _by(copies, "copy_kind", weight="size_bytes") == {kinds[k]: n for k, n in moved}
    # Off the CPU: the same time in all; and no call of that thread begins or ends meanwhile
    sched = rows(run, "sched")
    assert len(sched) == by_op["HOST", "sched_switch"][0]
    assert sum(row["dur_ns"] for row in sched) == by_op["HOST", "sched_switch"][1]
    [main] = {call["tid"] for call in calls}
    away = [(row["ts_ns"], row["ts_ns"] + row["dur_ns"]) for row in sched if row["tid"] == main]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(away))
    edges = sorted(t for c in calls for t in (c["ts_ns"], c["ts_ns"] + c["dur_ns"]))
    inside, at = 0, 0
    for begin, end in away:
        while at < len(edges) and edges[at] <= begin:
            at += 1
        while at < len(edges) and edges[at] < end:
            inside, at = inside + 1, at + 1
    assert inside == 0
    # Every call's stack is there
    stacks = {row["stack_id"] for row in rows(run, "stacks")}
    assert {call["stack_id"] for call in calls} <= stacks
    assert Run(run).find_damage() is None
