"""Nsight Systems' SQLite exports: what becomes of each table, and of damaged files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from import_files import (
    NSYS_COLUMNS,
    PID,
    TID,
    Row,
    accounting,
    global_tid,
    imported,
    nsys_file,
    refusal,
    rows,
    sqlite_file,
)

from cctrace.errors import CctraceError
from cctrace.importers import sqlite_file as reader

UTC_NS, SYSTEM_NS = 1_779_630_014_975_716_426, 35_255_823_190
STRINGS = ["cudaMemcpyAsync_v3020", "cudaLaunchKernel_ptsz_v7000", "void k<float>(float*)",
           "cuCtxSynchronize", "worker", "cudaStreamWaitEvent_v3020", "futex"]  # fmt: skip
HERE = global_tid()
CALL = {"start": 100, "end": 150, "globalTid": HERE, "correlationId": 11, "nameId": 0,
        "returnValue": 0}  # fmt: skip
COPY = {"start": 160, "end": 260, "deviceId": 1, "streamId": 7, "correlationId": 11,
        "globalPid": HERE, "bytes": 1009, "copyKind": 2, "srcKind": 2, "dstKind": 0}  # fmt: skip
SESSION = {"utcEpochNs": UTC_NS, "systemClockNs": SYSTEM_NS}


def test_calls_and_activities(tmp_path: Path) -> None:
    # GIVEN a copy with a driver call inside, a launch, a wait; kernels, a graph, a memset
    kernel: Row = {"start": 300, "end": 311, "deviceId": 0, "streamId": 9, "correlationId": 13,
                   "globalPid": HERE, "demangledName": 2}  # fmt: skip
    path = nsys_file(
        tmp_path / "r.sqlite",
        STRINGS,
        CUPTI_ACTIVITY_KIND_RUNTIME=[
            CALL,
            {**CALL, "start": 110, "end": 120, "correlationId": None, "nameId": 3},
            {**CALL, "start": 200, "end": 207, "correlationId": 13, "nameId": 1,
             "returnValue": 700},
            {**CALL, "start": 250, "end": None, "correlationId": 17, "nameId": 5},
        ],
        CUPTI_ACTIVITY_KIND_KERNEL=[kernel, {**kernel, "globalPid": global_tid(9, 9)}],
        CUPTI_ACTIVITY_KIND_MEMCPY=[COPY],
        CUPTI_ACTIVITY_KIND_MEMSET=[{k: v for k, v in COPY.items() if k in kernel or k == "bytes"}],
        CUPTI_ACTIVITY_KIND_GRAPH_TRACE=[
            {k: v for k, v in kernel.items() if k != "demangledName"} | {"graphId": 5}
        ],
        CUPTI_ACTIVITY_KIND_SYNCHRONIZATION=[
            {"start": 1, "end": 2, "streamId": 22, "correlationId": 17, "globalPid": HERE,
             "syncType": 2, "eventId": 7197},
            {"start": 1, "end": 2, "streamId": 22, "correlationId": None, "syncType": 2},
        ],
        OSRT_API=[{"start": 5, "end": 6, "globalTid": HERE, "nameId": 6}],
        TARGET_INFO_SESSION_START_TIME=[SESSION],
    )  # fmt: skip
    run, done = imported(path, "nsys")
    # THEN calls have versionless names, nesting, and what their activities tell
    told = ("ts_ns", "dur_ns", "api", "layer", "class", "depth", "copy_kind", "host_memory",
            "size_bytes", "stream", "event", "result", "correlation_id")  # fmt: skip
    sync = ("sync", 1, None, None, None, None, None, 0, None)
    assert rows(run, "cuda_api", *told) == [
        (100, 50, "cudaMemcpyAsync", "runtime", "copy", 0, "d2h", "pageable", 1009, 7, None, 0, 11),
        (110, 10, "cuCtxSynchronize", "driver", *sync),
        (200, 7, "cudaLaunchKernel", "runtime", "launch", 0, None, None, None, 9, None, 700, 13),
        (250, None, "cudaStreamWaitEvent", "runtime", "event", 0, None, None, None, 22, 7197, 0,
         17),
    ]  # fmt: skip
    assert rows(run, "cuda_api", "pid", "tid") == [(PID, TID)] * 4
    shown = ("class", "name", "pid", "tid", "device", "stream", "dur_ns", "size_bytes",
            "copy_kind", "host_memory")  # fmt: skip
    assert sorted(rows(run, "gpu_activity", *shown), key=str) == [
        ("copy", "Memcpy DtoH (Device -> Pageable)", PID, TID, 1, 7, 100, 1009, "d2h", "pageable"),
        ("kernel", "CUDA graph 5", PID, TID, 0, 9, 11, None, None, None),
        ("kernel", "void k<float>(float*)", PID, TID, 0, 9, 11, None, None, None),
        ("kernel", "void k<float>(float*)", 9, None, 0, 9, 11, None, None, None),
        ("memset", "Memset", PID, TID, 1, 7, 100, 1009, None, None),
    ]
    # AND all are accounted for: rows, folded, left out
    assert accounting(done) == {
        "CUPTI_ACTIVITY_KIND_RUNTIME": (4, 0, 0), "CUPTI_ACTIVITY_KIND_KERNEL": (2, 0, 0),
        "CUPTI_ACTIVITY_KIND_MEMCPY": (1, 0, 0), "CUPTI_ACTIVITY_KIND_MEMSET": (1, 0, 0),
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": (1, 0, 0),
        "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": (0, 1, 1), "OSRT_API": (0, 0, 1),
    }  # fmt: skip
    assert done.manifest.sources[0].detail["correlation"]["activities_without_call"] == 1


def test_ranges(tmp_path: Path) -> None:
    # GIVEN ranges of two domains, one open; a range that ends elsewhere, a mark, payloads
    span: Row = {"start": 100, "end": 200, "eventType": 59, "globalTid": HERE, "text": "outer",
                 "domainId": 0}  # fmt: skip
    named = {"globalTid": HERE, "domainId": 5, "start": 0}
    path = nsys_file(
        tmp_path / "r.sqlite",
        ["registered"],
        NVTX_EVENTS=[
            {**named, "eventType": 75, "text": "NCCL"},
            {**named, "eventType": 33, "text": "p2p", "category": 3},
            span,
            {**span, "start": 110, "end": 120, "text": None, "textId": 0, "color": 2**32 - 1},
            {**span, "start": 115, "end": None, "domainId": 5, "text": "n", "category": 3,
             "int64Value": -7},
            {**span, "start": 130, "eventType": 60, "endGlobalTid": global_tid(PID, 99),
             "domainId": 6, "category": 4, "uint64Value": -1},
            {**span, "start": 140, "end": None, "eventType": 34, "doubleValue": 2.5},
            {**span, "start": 150, "globalTid": None},
            {**span, "start": 150, "eventType": 39},
        ],
    )  # fmt: skip
    run, done = imported(path, "nsys")
    told = ("ts_ns", "dur_ns", "kind", "domain", "name", "category", "payload", "payload_double",
            "depth", "color", "end_tid")  # fmt: skip
    assert rows(run, "nvtx", *told) == [
        (100, 100, "push_pop", None, "outer", None, None, None, 0, None, None),
        (110, 10, "push_pop", None, "registered", None, None, None, 1, 2**32 - 1, None),
        (115, None, "push_pop", "NCCL", "n", "p2p", -7, None, 0, None, None),
        (130, 70, "start_end", "domain 6", "outer", "4", None, float(2**64), 0, None, 99),
        (140, 0, "mark", None, "outer", None, None, 2.5, 0, None, None),
    ]
    assert accounting(done) == {"NVTX_EVENTS": (5, 2, 2)}


def test_scheduler(tmp_path: Path) -> None:
    # GIVEN switches of two threads, not in order, one without its other half
    def switch(at: int, is_in: int, tid: int = TID, state: int | None = None) -> Row:
        return {"start": at, "isSchedIn": is_in, "globalTid": global_tid(PID, tid),
                "threadState": state, "cpu": 0}  # fmt: skip

    path = nsys_file(
        tmp_path / "r.sqlite",
        [],
        SCHED_EVENTS=[
            switch(150, 1), switch(100, 0, state=1), switch(90, 1), switch(200, 0, state=2),
            switch(210, 0, state=1), switch(250, 1), switch(300, 0, state=5),
            switch(120, 0, tid=50, state=3), switch(170, 1, tid=50),
        ],
        ENUM_SAMPLING_THREAD_STATE=[
            {"id": 1, "name": "Running"}, {"id": 2, "name": "Interruptible"},
            {"id": 3, "name": "Uninterruptible"}, {"id": 5, "name": "OSRuntime"},
        ],
    )  # fmt: skip
    run, done = imported(path, "nsys")
    assert rows(run, "sched", "ts_ns", "dur_ns", "tid", "state") == [
        (100, 50, TID, "runnable"),
        (120, 50, 50, "io"),
        (200, 50, TID, "blocked"),
        (300, None, TID, "unknown"),
    ]
    # THEN of nine switches four are rows, three their ends, and two have no other half
    assert accounting(done) == {"SCHED_EVENTS": (4, 3, 2)}


@pytest.mark.parametrize(
    ("export", "session", "realtime_offset", "monotonic_offset"),
    [
        ({}, [SESSION], UTC_NS, SYSTEM_NS),
        ({"EXPORT_PARAM_TIME_SHIFT": "1000"}, [SESSION], UTC_NS - 1000, SYSTEM_NS - 1000),
        ({"EXPORT_PARAM_TIME_NORMALIZE": "true"}, [SESSION], 0, SYSTEM_NS - UTC_NS),
        ({"EXPORT_PARAM_TIME_NORMALIZE": "true", "EXPORT_PARAM_TIME_SHIFT": "-5"}, [SESSION], 5,
         SYSTEM_NS - UTC_NS + 5),
        ({"EXPORT_PARAM_TIME_SHIFT": "x"}, [], None, None),
    ],
)  # fmt: skip
def test_clocks(
    tmp_path: Path,
    export: dict[str, str],
    session: list[Row],
    realtime_offset: int | None,
    monotonic_offset: int | None,
) -> None:
    # GIVEN an export with times as they were, or moved to UTC, or shifted
    path = nsys_file(
        tmp_path / "r.sqlite",
        STRINGS,
        CUPTI_ACTIVITY_KIND_RUNTIME=[CALL],
        META_DATA_EXPORT=[{"name": k, "value": v} for k, v in export.items()],
        TARGET_INFO_SESSION_START_TIME=session,
    )
    run, done = imported(path, "nsys")
    # THEN times are kept, and their relation to the other clocks is told
    assert rows(run, "cuda_api", "ts_ns") == [(100,)]
    clock = done.manifest.options["clock"]
    assert clock["realtime_offset_ns"] == realtime_offset
    assert clock["monotonic_offset_ns"] == monotonic_offset
    assert done.manifest.start.monotonic_ns == 100
    if realtime_offset is not None:
        assert done.manifest.start.realtime_ns == 100 + realtime_offset


def test_times_before_the_capture_are_moved_to_zero(tmp_path: Path) -> None:
    # GIVEN events that a --ts-shift has moved to before the start of the capture
    span = {"eventType": 59, "globalTid": global_tid(), "text": "a"}
    path = nsys_file(
        tmp_path / "r.sqlite",
        [],
        NVTX_EVENTS=[{**span, "start": -907, "end": -900}, {**span, "start": 11, "end": 18}],
        TARGET_INFO_SESSION_START_TIME=[SESSION],
        META_DATA_EXPORT=[{"name": "EXPORT_PARAM_TIME_SHIFT", "value": "-1000"}],
    )
    run, done = imported(path, "nsys")
    # THEN the first is at 0, and the offsets still give its moments on the other clocks
    assert rows(run, "nvtx", "ts_ns", "dur_ns") == [(0, 7), (918, 7)]
    clock = done.manifest.options["clock"]
    assert clock["shift_ns"] == 907
    assert clock["realtime_offset_ns"] == UTC_NS + 1000 - 907
    assert clock["monotonic_offset_ns"] == SYSTEM_NS + 1000 - 907
    assert done.manifest.start.monotonic_ns == 0
    assert done.manifest.start.realtime_ns == UTC_NS + 1000 - 907


def test_facts_and_what_is_not_taken(tmp_path: Path) -> None:
    # GIVEN a file with the machine's facts, the target's environment in it, and a warning
    path = nsys_file(
        tmp_path / "r.sqlite",
        STRINGS,
        CUPTI_ACTIVITY_KIND_RUNTIME=[CALL],
        TARGET_INFO_SYSTEM_ENV=[
            {"name": "NvDriverVersion", "value": "580.95.05"},
            {"name": "DeviceEnvironment", "value": "API_KEY=swordfish"},
            {"name": "CpuDescription", "value": "unknown"},
        ],
        TARGET_INFO_GPU=[{"id": 0, "name": "NVIDIA H100", "totalMemory": 5, "uuid": "GPU-1"}],
        META_DATA_EXPORT=[{"name": "EXPORT_PRODUCT_VERSION", "value": "2026.2.1"}],
        PROCESSES=[{"globalPid": HERE, "pid": PID, "name": "python3"}, {"globalPid": 1 << 24}],
        ThreadNames=[{"nameId": 4, "priority": 20, "globalTid": HERE}],
        DIAGNOSTIC_EVENT=[
            {"timestamp": 1, "severity": 2, "text": "CUDA events were lost"},
            {"timestamp": 1, "severity": 1, "text": "started"},
        ],
    )
    run, done = imported(path, "nsys")
    manifest = done.manifest
    assert manifest.host["gpu"]["driver_version"] == "580.95.05"
    assert [gpu["name"] for gpu in manifest.host["gpu"]["devices"]] == ["NVIDIA H100"]
    assert manifest.host["cpu"]["model"] is None
    assert manifest.options["tool"]["version"] == "2026.2.1"
    assert manifest.options["file"] == "r.sqlite"
    assert manifest.warnings == ["Nsight Systems: CUDA events were lost"]
    assert rows(run, "processes", "pid") == [(1,), (PID,)] or rows(run, "processes", "pid") == [
        (PID,), (1,)]  # fmt: skip
    assert rows(run, "threads", "pid", "tid", "name") == [(PID, TID, "worker")]
    # THEN no secret of the environment is in the run
    assert not [p for p in run.rglob("*") if p.is_file() and b"swordfish" in p.read_bytes()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": 99}, "row 2: end before start: start 100, end 99"),
        ({"start": "soon"}, "row 2, column start: 'soon' is no integer"),
        ({"start": None}, "row 2, column start: None is no integer"),
        ({"start": 1.5}, "row 2, column start: 1.5 is no integer"),
        ({"start": b"\0"}, "row 2, column start: b'\\x00' is no integer"),
        ({"end": 2**63 - 1}, "row 2: time out of range: start 100, end 9223372036854775807"),
        ({"start": -(2**63)}, "row 2: time out of range: start -9223372036854775808, end 150"),
        ({"nameId": 99}, "row 2: nameId is not in StringIds: nameId 99"),
    ],
)
def test_call_that_makes_no_sense(tmp_path: Path, change: Row, message: str) -> None:
    path = nsys_file(
        tmp_path / "r.sqlite",
        STRINGS,
        CUPTI_ACTIVITY_KIND_RUNTIME=[CALL, {**CALL, **change}, CALL],
    )
    assert refusal(path, "nsys") == f"table CUPTI_ACTIVITY_KIND_RUNTIME, {message}"
    run, done = imported(path, "nsys", skip_bad=True)
    assert len(rows(run, "cuda_api")) == 2
    assert accounting(done) == {"CUPTI_ACTIVITY_KIND_RUNTIME": (2, 0, 1)}
    assert rows(run, "losses", "source", "reason", "count") == [("nsys", "bad_event", 1)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"bytes": -1}, "size out of range: bytes -1"), ({"bytes": 2**62}, "size out of range"),
     ({"deviceId": -5}, "device out of range: deviceId -5")],
)  # fmt: skip
def test_copy_that_makes_no_sense(tmp_path: Path, change: Row, reason: str) -> None:
    path = nsys_file(
        tmp_path / "r.sqlite", [], CUPTI_ACTIVITY_KIND_MEMCPY=[{**COPY, **change}, COPY]
    )
    assert refusal(path, "nsys").startswith(f"table CUPTI_ACTIVITY_KIND_MEMCPY, row 1: {reason}")
    run, _ = imported(path, "nsys", skip_bad=True)
    assert rows(run, "gpu_activity", "size_bytes", "name") == [
        (1009, "Memcpy DtoH (Device -> Pageable)")
    ]


def test_what_is_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.write_bytes(b"")
    assert refusal(path, "nsys").startswith("byte 0: not a SQLite file")
    path.write_text("SQLite format 3, but not really")
    assert refusal(path, "nsys").startswith("byte 0: not a SQLite file")
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    assert refusal(path, "nsys").startswith("schema: ")
    path.unlink()
    sqlite_file(path, {"t": "a INTEGER"}, t=[])
    assert refusal(path, "nsys") == "schema: no table StringIds: not a file of Nsight Systems"
    path.unlink()
    sqlite_file(path, {"StringIds": "id INTEGER"}, StringIds=[])
    assert refusal(path, "nsys") == (
        "table StringIds: no column value: not a file of Nsight Systems"
    )
    path.unlink()
    short = {**NSYS_COLUMNS, "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER"}
    sqlite_file(path, short, StringIds=[], CUPTI_ACTIVITY_KIND_RUNTIME=[])
    assert refusal(path, "nsys") == "table CUPTI_ACTIVITY_KIND_RUNTIME: no column nameId"


def test_views_are_not_read(tmp_path: Path) -> None:
    # GIVEN a view in the place of a table, which would go on for ever
    path = nsys_file(tmp_path / "r.sqlite", STRINGS, CUPTI_ACTIVITY_KIND_MEMCPY=[COPY])
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i AS start FROM n"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE VIEW CUPTI_ACTIVITY_KIND_RUNTIME AS {endless}")
    _, done = imported(path, "nsys")
    assert accounting(done) == {"CUPTI_ACTIVITY_KIND_MEMCPY": (1, 0, 0)}


def test_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN more calls than a batch has, nested over the border between two
    monkeypatch.setattr(reader, "_BATCH_ROWS", 3)
    calls = [{**CALL, "start": 100 + i, "end": 200 - i, "correlationId": i} for i in range(7)]
    copies = [{**COPY, "correlationId": i, "bytes": 10 + i} for i in reversed(range(7))]
    path = nsys_file(
        tmp_path / "r.sqlite",
        STRINGS,
        CUPTI_ACTIVITY_KIND_RUNTIME=calls,
        CUPTI_ACTIVITY_KIND_MEMCPY=copies,
    )
    run, _ = imported(path, "nsys")
    assert rows(run, "cuda_api", "depth", "size_bytes") == [(i, 10 + i) for i in range(7)]


def test_the_file_and_its_folder_are_not_touched(tmp_path: Path) -> None:
    # GIVEN a file in WAL mode, all of it in the main file, in a folder of its own
    folder = tmp_path / "source"
    folder.mkdir()
    path = nsys_file(folder / "r.sqlite", STRINGS, CUPTI_ACTIVITY_KIND_RUNTIME=[CALL])
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    before = (path.read_bytes(), sorted(p.name for p in folder.iterdir()))
    imported(path, "nsys")
    after = (path.read_bytes(), sorted(p.name for p in folder.iterdir() if p.name != "run"))
    assert after == before


def test_what_only_the_log_has(tmp_path: Path) -> None:
    # GIVEN a file whose writer is still at work: the last call is in the log beside it
    path = nsys_file(tmp_path / "r.sqlite", STRINGS, CUPTI_ACTIVITY_KIND_RUNTIME=[])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        names = ", ".join(CALL)
        values = [*CALL.values()]
        db.execute(
            f"INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME ({names}) VALUES (?, ?, ?, ?, ?, ?)", values
        )
        run, _ = imported(path, "nsys")
    assert rows(run, "cuda_api", "ts_ns") == [(100,)]


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats()
CELLS = st.none() | NUMBERS | st.text(max_size=5) | st.binary(max_size=5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cells_are_counted(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # GIVEN tables with any values in any column
    tables: dict[str, list[Row]] = {}
    events = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_MEMCPY", "SCHED_EVENTS",
              "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", "NVTX_EVENTS")  # fmt: skip
    for table in events:
        columns = [part.split()[0] for part in NSYS_COLUMNS[table].split(", ")]
        row = st.fixed_dictionaries({name: CELLS | st.integers(0, 60) for name in columns})
        tables[table] = data.draw(st.lists(row, max_size=3))
    path = nsys_file(tmp_path_factory.mktemp("fuzz") / "r.sqlite", STRINGS, **tables)
    # WHEN imported without what makes no sense THEN every row is accounted for
    _, done = imported(path, "nsys", skip_bad=True)
    assert done.imported + done.folded + done.left_out == sum(map(len, tables.values()))


@example(place=3829, garbage=b"\x80")  # in the schema's own text
@settings(max_examples=60, deadline=None)
@given(place=st.integers(16, 20_000), garbage=st.binary(min_size=1, max_size=64))
def test_any_damage_is_told_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, garbage: bytes
) -> None:
    # GIVEN a file with some bytes of it replaced
    path = nsys_file(
        tmp_path_factory.mktemp("fuzz") / "r.sqlite",
        STRINGS,
        CUPTI_ACTIVITY_KIND_RUNTIME=[{**CALL, "correlationId": i} for i in range(200)],
        CUPTI_ACTIVITY_KIND_MEMCPY=[COPY],
    )
    content: Any = bytearray(path.read_bytes())
    content[place : place + len(garbage)] = garbage
    path.write_bytes(content)
    try:
        imported(path, "nsys")
    except CctraceError:
        refusal(path, "nsys")
