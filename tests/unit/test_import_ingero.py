"""Ingero's SQLite files: what a time and an argument mean, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from import_files import Row, accounting, imported, ingero_file, refusal, rows, sqlite_file

PID = 72801
NOW = 1_774_099_490_735_428_380
EVENT: Row = {"timestamp": NOW, "pid": PID, "tid": PID, "source": 1, "op": 3, "duration": 1000}
STACK = -9_140_174_266_748_206_908


def test_calls(tmp_path: Path) -> None:
    # GIVEN a launch with the driver's inside it, copies of each layer, an allocation, a wait
    path = ingero_file(
        tmp_path / "i.db",
        [
            {**EVENT, "arg0": 140362770935120, "stack_hash": STACK},
            {**EVENT, "timestamp": NOW + 100, "source": 4, "op": 1, "duration": 500},
            {**EVENT, "timestamp": NOW + 2000, "op": 7, "arg0": 4096, "arg1": 1, "ret_code": 2},
            {**EVENT, "timestamp": NOW + 4000, "source": 4, "op": 3, "arg0": 77, "arg1": 0},
            {**EVENT, "timestamp": NOW + 6000, "op": 1, "arg0": 1 << 30},
            {**EVENT, "timestamp": NOW + 8000, "op": 5, "arg0": 0},
            {**EVENT, "timestamp": NOW + 9500, "op": 7, "arg0": 5, "arg1": 4},
        ],
        stack_traces=[
            {"hash": STACK, "ips": "", "frames": json.dumps(
                [{"s": "cudaLaunchKernel+0x2eb", "f": "libcudart.so.12"}, {"i": "0x7fa9"},
                 {"s": "forward", "f": "model.py", "l": 42}])},
            {"hash": 5, "ips": '["0x10", "0x20"]', "frames": ""},
            {"hash": 6, "ips": "[", "frames": "{" * 5000},
        ],
    )  # fmt: skip
    run, done = imported(path, "ingero")
    told = ("ts_ns", "dur_ns", "api", "layer", "class", "depth", "copy_kind", "host_memory",
            "size_bytes", "stream", "result", "stack_id")  # fmt: skip
    assert [(row[0] - NOW, *row[1:]) for row in rows(run, "cuda_api", *told)] == [
        (0, 1000, "cudaLaunchKernel", "runtime", "launch", 0, None, None, None, None, 0, STACK),
        (100, 500, "cuLaunchKernel", "driver", "launch", 1, None, None, None, None, 0, None),
        (2000, 1000, "cudaMemcpyAsync", "runtime", "copy", 0, "h2d", "unknown", 4096, None, 2,
         None),
        (4000, 1000, "cuMemcpyAsync", "driver", "copy", 0, "unknown", "unknown", 77, None, 0,
         None),
        (6000, 1000, "cudaMalloc", "runtime", "alloc", 0, None, None, 1 << 30, None, 0, None),
        (8000, 1000, "cudaStreamSynchronize", "runtime", "sync", 0, None, None, None, 0, 0, None),
        (9500, 1000, "cudaMemcpyAsync", "runtime", "copy", 0, "unknown", "unknown", 5, None, 0,
         None),
    ]  # fmt: skip
    assert done.left_out == 0
    stacks = {row["stack_id"]: row["frames"] for row in rows(run, "stacks")}
    assert [(f["function"], f["module"], f["file"], f["line"], f["kind"]) for f in stacks[STACK]
            ] == [
        ("cudaLaunchKernel+0x2eb", "libcudart.so.12", None, None, "native"),
        ("0x7fa9", None, None, None, "native"),
        ("forward", None, "model.py", 42, "python"),
    ]  # fmt: skip
    assert [frame["function"] for frame in stacks[5]] == ["0x10", "0x20"]
    assert stacks[6] == []


def test_an_interval_from_before_zero_is_moved_to_zero(tmp_path: Path) -> None:
    # GIVEN a switch at 600 ns, after 701 ns off the CPU
    early = {**EVENT, "source": 3, "op": 1, "timestamp": 600, "duration": 701}
    run, done = imported(ingero_file(tmp_path / "i.db", [early, {**EVENT, "op": 3}]), "ingero")
    assert rows(run, "sched", "ts_ns", "dur_ns") == [(0, 701)]
    assert rows(run, "cuda_api", "ts_ns") == [(NOW + 101,)]
    clock = done.manifest.options["clock"]
    assert (clock["shift_ns"], clock["realtime_offset_ns"]) == (101, -101)


def test_off_cpu_interval_ends_at_its_event(tmp_path: Path) -> None:
    # GIVEN a switch, written when the thread came back after 700 ns, and other events
    host = {**EVENT, "source": 3}
    path = ingero_file(
        tmp_path / "i.db",
        [
            {**host, "op": 1, "duration": 700},
            {**host, "op": 2, "duration": 0, "arg1": PID},
            {**EVENT, "source": 7, "op": 1},
            {**EVENT, "source": 9, "op": 8},
        ],
        system_snapshots=[
            {"timestamp": NOW, "cpu_pct": 1.5, "mem_pct": 20.0, "mem_avail": 13129, "swap_mb": 0,
             "load_avg": 0.35}
        ],
        process_names=[{"pid": PID, "name": "VLLM::EngineCor"}, {"pid": 5, "name": "other"}],
        event_aggregates=[
            {"bucket": 0, "source": 1, "op": 3, "count": 1000, "stored": 17},
            {"bucket": 0, "source": 3, "op": 2, "count": 50, "stored": 1},
            {"bucket": 0, "source": 7, "op": 1, "count": 50, "stored": 1},
        ],
    )  # fmt: skip
    run, done = imported(path, "ingero")
    assert rows(run, "sched", "ts_ns", "dur_ns", "state", "waker_tid") == [
        (NOW - 700, 700, "unknown", None)
    ]
    samples = rows(run, "counters", "ts_ns", "name", "value", "unit")
    assert sorted(samples) == [
        (NOW, "system.cpu", 1.5, "%"),
        (NOW, "system.load", 0.35, "processes"),
        (NOW, "system.memory", 20.0, "%"),
        (NOW, "system.memory_available", 13129.0, "MiB"),
        (NOW, "system.swap", 0.0, "MiB"),
    ]
    assert rows(run, "threads", "pid", "tid", "name") == [(PID, PID, "VLLM::EngineCor")]
    assert accounting(done) == {
        "HOST sched_switch": (1, 0, 0), "HOST sched_wakeup": (0, 0, 1), "NET net_send": (0, 0, 1),
        "9 8": (0, 0, 1), "system_snapshots": (1, 0, 0),
    }  # fmt: skip
    # THEN what Ingero did not store itself is told as lost
    losses = sorted(rows(run, "losses", "source", "reason", "count"))
    assert losses == [("cuda", "not_in_file", 983), ("sched", "not_in_file", 49)]
    assert done.manifest.lost == 983 + 49
    assert done.manifest.start.realtime_ns == done.manifest.start.monotonic_ns == NOW - 700


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": -1}, "row 2: negative duration: duration -1"),
        ({"duration": 2**62}, "row 2: time out of range: timestamp"),
        ({"timestamp": -(2**63)}, "row 2: time out of range: timestamp -9223372036854775808"),
        ({"pid": 2**31}, f"row 2: no process or thread id: pid {2**31}"),
        ({"tid": "x"}, "row 2, column tid: 'x' is no integer"),
        ({"op": None}, "row 2, column op: None is no integer"),
    ],
)
def test_event_that_makes_no_sense(tmp_path: Path, change: Row, message: str) -> None:
    path = ingero_file(tmp_path / "i.db", [EVENT, {**EVENT, **change}, {**EVENT, "duration": 7}])
    assert refusal(path, "ingero").startswith(f"table events, {message}")
    run, done = imported(path, "ingero", skip_bad=True)
    assert rows(run, "cuda_api", "dur_ns") in ([(1000,), (7,)], [(7,), (1000,)])
    assert (done.imported, done.left_out, done.bad) == (2, 1, 1)


def test_several_bad_events_of_different_kinds(tmp_path: Path) -> None:
    # GIVEN events of which every second one makes no sense, each in its own way
    bad = [{"duration": -1}, {"pid": 2**40}, {"duration": 2**62}, {"duration": -5}]
    events = [row for change in bad for row in (EVENT, {**EVENT, **change})]
    run, done = imported(ingero_file(tmp_path / "i.db", events), "ingero", skip_bad=True)
    assert rows(run, "cuda_api", "dur_ns") == [(1000,)] * 4
    assert done.bad == 4


def test_what_is_no_such_file(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "i.db", {"events": "id INTEGER"}, events=[])
    assert refusal(path, "ingero").startswith("table events: no column timestamp, pid")
    path.write_text("{}")
    assert refusal(path, "ingero").startswith("byte 0: not a SQLite file")
