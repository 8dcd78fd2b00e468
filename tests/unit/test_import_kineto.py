"""PyTorch traces: what becomes of each event, and of files that are not as they should be."""

from __future__ import annotations

import gzip
import json
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import duckdb
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from import_files import (
    CALL,
    KERNEL,
    PID,
    TID,
    accounting,
    imported,
    kineto_file,
    kineto_text,
    refusal,
    rows,
)
from page_runs import document_of
from perfetto_trace import parse

from cctrace.analyze.opened import open_session
from cctrace.cli.report_page import as_html
from cctrace.errors import CctraceError
from cctrace.exporters.perfetto import write_perfetto
from cctrace.importers import json_stream, kineto
from cctrace.importers.json_stream import Number
from cctrace.store.connection import RUNS_COLUMNS
from cctrace.store.run import Run

OP: dict[str, Any] = {"ph": "X", "cat": "cpu_op", "pid": PID, "tid": TID}
EPOCH_US = 1_712_195_495_519_689


def test_each_kind_of_event(tmp_path: Path) -> None:
    # GIVEN a trace with an operator in an annotation, a copy and its call, flows and names
    args = {"correlation": 11, "External id": 3}
    gpu = {**args, "device": 1, "context": 1, "stream": 7, "bytes": 1009}
    events = [
        {**OP, "name": "ProfilerStep#3", "cat": "user_annotation", "ts": "10.500", "dur": "99.001"},
        {**OP, "name": "aten::copy_", "ts": "11.000", "dur": "50.000", "args": {"Ev Idx": 0}},
        {**CALL, "name": "cudaMemcpyAsync", "ts": "12.001", "dur": "7.003", "args": args},
        {"ph": "s", "id": 11, "pid": PID, "tid": TID, "ts": "12.001", "cat": "ac2g", "name": "a"},
        {"ph": "f", "id": 11, "pid": 1, "tid": 7, "ts": "30", "cat": "ac2g", "bp": "e"},
        {**KERNEL, "cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "ts": "30.000",
         "dur": "4.999", "args": gpu},
        {**KERNEL, "cat": "gpu_user_annotation", "name": "ProfilerStep#3", "ts": "30", "dur": "5"},
        {"ph": "i", "s": "t", "cat": "cpu_instant_event", "name": "[memory]", "pid": PID,
         "tid": TID, "ts": "13.000"},
        {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": "99"},
        {"ph": "M", "name": "thread_name", "pid": PID, "tid": TID, "ts": 0,
         "args": {"name": f"thread {TID} (pt_main_thread)"}},
        {"ph": "M", "name": "process_labels", "pid": 1, "tid": 0, "args": {"labels": "GPU 1"}},
        {"ph": "C", "name": "power", "pid": 1, "ts": 5, "args": {"watt": 3}},
    ]  # fmt: skip
    path = kineto_file(
        tmp_path / "t.json.gz", events, deviceProperties=[{"id": 0, "name": "NVIDIA H100"}]
    )
    # WHEN it is imported
    run, done = imported(path, "kineto")
    # THEN rows are as in the trace, in whole ns
    at = ("ts_ns", "dur_ns", "pid", "tid", "kind", "domain", "name", "category", "depth")
    assert rows(run, "nvtx", *at) == [
        (10500, 99001, PID, TID, "push_pop", "torch", "ProfilerStep#3", "user_annotation", 0),
        (11000, 50000, PID, TID, "push_pop", "torch", "aten::copy_", "cpu_op", 1),
        (13000, 0, PID, TID, "mark", "torch", "[memory]", "cpu_instant_event", 0),
    ]
    [call] = rows(run, "cuda_api")
    assert call == {
        "ts_ns": 12001, "dur_ns": 7003, "pid": PID, "tid": TID, "api": "cudaMemcpyAsync",
        "layer": "runtime", "class": "copy", "copy_kind": "d2h", "size_bytes": 1009, "stream": 7,
        "event": None, "host_memory": "pinned", "result": None, "depth": 0, "correlation_id": 11,
        "stack_id": None,
    }  # fmt: skip
    [copy] = rows(run, "gpu_activity")
    assert copy == {
        "ts_ns": 30000, "dur_ns": 4999, "pid": PID, "tid": TID, "class": "copy",
        "name": "Memcpy DtoH (Device -> Pinned)", "copy_kind": "d2h", "host_memory": "pinned",
        "stream": 7, "device": 1, "size_bytes": 1009, "correlation_id": 11,
    }  # fmt: skip
    assert rows(run, "threads", "pid", "tid", "name") == [(PID, TID, "pt_main_thread")]
    # AND each event has its place in the accounting: rows, folded, left out
    assert accounting(done) == {
        "user_annotation X": (1, 0, 0), "cpu_op X": (1, 0, 0), "cuda_runtime X": (1, 0, 0),
        "gpu_memcpy X": (1, 0, 0), "cpu_instant_event i": (1, 0, 0), "ac2g s": (0, 1, 0),
        "ac2g f": (0, 1, 0), "gpu_user_annotation X": (0, 0, 1), "- i": (0, 0, 1),
        "- M": (0, 1, 1), "- C": (0, 0, 1),
    }  # fmt: skip
    states = {source.name: source.state for source in done.manifest.sources}
    assert states == {
        "kineto": "attached", "cuda": "attached", "gpu": "attached", "nvtx": "attached",
        "sched": "refused", "processes": "attached",
    }  # fmt: skip
    columns = [column.name for column in RUNS_COLUMNS]
    facts = dict(zip(columns, Run(run).facts(), strict=True))
    assert facts["attached"] == "kineto,cuda,gpu,nvtx,processes"
    assert (facts["gpu_name"], facts["ended"]) == ("NVIDIA H100", "clean")
    assert (facts["events"], facts["lost"]) == (5, 0)


def test_times_from_a_base_behind_the_events(tmp_path: Path) -> None:
    # GIVEN times from baseTimeNanoseconds, which stands after the events
    base = 1_750_000_000_000_000_001
    event = {**OP, "name": "a", "ts": "5.003", "dur": "1.000"}
    path = kineto_file(tmp_path / "t.json", [event], baseTimeNanoseconds=base)
    run, done = imported(path, "kineto")
    # THEN times are ns of the epoch, and the mapping is told
    assert rows(run, "nvtx", "ts_ns", "dur_ns") == [(base + 5003, 1000)]
    assert done.manifest.start.realtime_ns == base + 5003
    assert done.manifest.options["clock"]["realtime_offset_ns"] == 0
    assert done.manifest.options["clock"]["shift_ns"] == base


def test_times_before_zero_are_moved_to_zero_and_shown(tmp_path: Path) -> None:
    # GIVEN thirteen steps that begin 500 us before the origin of the file's times
    events: list[dict[str, Any]] = []
    for i in range(13):
        step = {**OP, "cat": "user_annotation", "name": f"ProfilerStep#{i}"}
        events += [
            {**step, "ts": 100 * i - 500, "dur": 100},
            {**CALL, "name": "cudaLaunchKernel", "ts": 100 * i - 490, "dur": 5},
        ]
    run, done = imported(kineto_file(tmp_path / "t.json", events), "kineto")
    # THEN the first event is at 0, the others as far from it as they were
    assert [row[0] for row in rows(run, "nvtx", "ts_ns")] == [100_000 * i for i in range(13)]
    assert [row[0] for row in rows(run, "cuda_api", "ts_ns")][:2] == [10_000, 110_000]
    assert {row[0] for row in rows(run, "threads", "ts_ns")} == {0}
    # AND the mapping that is kept leads back to what the file has
    clock = done.manifest.options["clock"]
    assert (clock["shift_ns"], clock["realtime_offset_ns"]) == (500_000, -500_000)
    assert "plus 500000 ns" in clock["domain"]
    assert done.manifest.start.realtime_ns == -500_000
    # AND each format shows the run
    with open_session(run) as session:
        assert document_of(as_html(session).decode())["report"]["steps"][0]["steps"] == 13
    with (tmp_path / "trace").open("wb") as stream:
        write_perfetto(Run(run), stream)
    trace = parse(tmp_path / "trace")
    assert [made.ts_ns for made in trace.of("cuda_api")][:2] == [10_000, 110_000]


def test_no_digit_of_a_time_is_lost(tmp_path: Path) -> None:
    # GIVEN times that a double cannot hold to the ns, some with other numbers of digits
    written = [f"{EPOCH_US}.047", f"{EPOCH_US}.1", f"{EPOCH_US}", f"{EPOCH_US}.00049",
               f"{EPOCH_US}.0005", f"{EPOCH_US}.0015", f"{EPOCH_US / 1e15}e15"]  # fmt: skip
    events = [{**OP, "name": "a", "ts": text, "dur": 1} for text in written]
    run, _ = imported(kineto_file(tmp_path / "t.json", events), "kineto")
    expected = [int((Decimal(text) * 1000).to_integral_value(ROUND_HALF_EVEN)) for text in written]
    assert [row[0] for row in rows(run, "nvtx", "ts_ns")] == sorted(expected)
    assert EPOCH_US * 1000 + 47 in expected


@given(
    st.decimals(-(10**15), 4 * 10**15, places=6),
    st.sampled_from(["{}", "{:.3f}", "{:e}", "{:.1f}"]),
)
def test_time_is_exact_however_it_is_written(value: Decimal, form: str) -> None:
    text = form.format(value)
    exact = Decimal(text) * 1000
    if set(text) & set(".e"):
        assert kineto.to_ns(Number(text)) == exact.to_integral_value(ROUND_HALF_EVEN)


def test_graph_launch_and_memory_of_copies(tmp_path: Path) -> None:
    # GIVEN a graph launch that starts two kernels, and copies of several kinds
    def activity(name: str, category: str, correlation: int, **args: Any) -> dict[str, Any]:
        told = {"correlation": correlation, "stream": 7, "device": 0, **args}
        return {**KERNEL, "cat": category, "name": name, "ts": 9, "dur": 1, "args": told}

    names = [
        "Memcpy HtoD (Pageable -> Device)", "Memcpy DtoD (Device -> Device)", "Memcpy HtoD",
        "Memcpy PtoP (Device -> Device)", "Memcpy DtoH (Device -> Managed)", "copy",
        "Memcpy HtoH (Pinned -> Pageable)", "Memcpy HtoA (Pinned -> Array)",
    ]  # fmt: skip
    events = [
        {**CALL, "name": "cudaGraphLaunch", "ts": 1, "dur": 2, "args": {"correlation": 100}},
        activity("k1", "kernel", 100),
        activity("k2", "kernel", 100),
        *(activity(name, "gpu_memcpy", i) for i, name in enumerate(names)),
    ]
    run, done = imported(kineto_file(tmp_path / "t.json", events), "kineto")
    found = rows(run, "gpu_activity", "name", "copy_kind", "host_memory", "pid", "tid")
    # THEN kind and memory are told by the name; the process is that of the trace's calls
    assert sorted(found) == sorted(
        [
            ("k1", None, None, PID, TID),
            ("k2", None, None, PID, TID),
            (names[0], "h2d", "pageable", PID, None),
            (names[1], "d2d", None, PID, None),
            (names[2], "h2d", "unknown", PID, None),
            (names[3], "p2p", None, PID, None),
            (names[4], "d2h", "managed", PID, None),
            (names[5], "unknown", "unknown", PID, None),
            (names[6], "h2h", "pinned", PID, None),
            (names[7], "h2d", "pinned", PID, None),
        ]
    )
    assert rows(run, "cuda_api", "class", "stream", "size_bytes") == [("graph", 7, None)]
    correlation = done.manifest.sources[0].detail["correlation"]
    assert correlation == {"shared_ids": 0, "activities_without_call": len(names)}


def test_versions_of_names_and_layers(tmp_path: Path) -> None:
    calls = [
        ("cudaStreamGetCaptureInfo_v2", "cuda_runtime"), ("cuMemcpyHtoDAsync_v2", "cuda_driver"),
        ("cudaHostAlloc", "cuda_runtime"), ("cudaStreamIsCapturing", "cuda_runtime"),
        ("cuLaunchKernelEx", "cuda_driver"),
    ]  # fmt: skip
    events = [
        {**CALL, "name": name, "cat": category, "ts": i, "dur": 0}
        for i, (name, category) in enumerate(calls)
    ]
    run, _ = imported(kineto_file(tmp_path / "t.json", events), "kineto")
    told = ("api", "layer", "class", "copy_kind", "host_memory", "correlation_id")
    assert rows(run, "cuda_api", *told) == [
        ("cudaStreamGetCaptureInfo", "runtime", "other", None, None, None),
        ("cuMemcpyHtoDAsync", "driver", "copy", "h2d", "unknown", None),
        ("cudaHostAlloc", "runtime", "alloc", None, "pinned", None),
        ("cudaStreamIsCapturing", "runtime", "other", None, None, None),
        ("cuLaunchKernelEx", "driver", "launch", None, None, None),
    ]


@pytest.mark.parametrize(
    "tid",
    [-247463936, 139637976727552, 2**31, 2**63 - 1, 0],
)
def test_threads_beyond_32_bits_stay_apart(tmp_path: Path, tid: int) -> None:
    # GIVEN a thread id as pthreads have it, beside one of the kernel's
    events = [{**OP, "tid": t, "name": "a", "ts": 1, "dur": 1} for t in (tid, TID)]
    run, _ = imported(kineto_file(tmp_path / "t.json", events), "kineto")
    found = {row[0] for row in rows(run, "nvtx", "tid")}
    assert len(found) == 2
    assert {(t - found_tid) % 2**32 for t in (tid,) for found_tid in found - {TID}} == {0}


def test_odd_texts(tmp_path: Path) -> None:
    # GIVEN names with NUL, half a surrogate pair, 10,007 characters, and no character
    names = ["a\0b", "\ud83d", "x" * 10_007, "", "naïve \U0001f600", '"\\\n\t\x1b[31m']
    events = [{**OP, "name": name, "ts": i, "dur": 1} for i, name in enumerate(names)]
    run, _ = imported(kineto_file(tmp_path / "t.json", events), "kineto")
    # As DuckDB reads them, which every query does
    query = f"SELECT name FROM read_parquet('{run}/nvtx/*.parquet') ORDER BY ts_ns"
    found = duckdb.execute(query).fetchall()
    assert [row[0] for row in found] == [names[0], "\ufffd", *names[2:]]


def test_array_alone_and_no_events(tmp_path: Path) -> None:
    # GIVEN the form of the format without an object around the events
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{**OP, "name": "a", "ts": 1, "dur": 2}]))
    run, _ = imported(path, "kineto")
    assert rows(run, "nvtx", "ts_ns", "dur_ns") == [(1000, 2000)]
    # AND one without events
    path.write_text('{"traceEvents": []}')
    run, done = imported(path, "kineto", force=True)
    assert (done.manifest.events, done.manifest.tables) == (0, {})
    assert Run(run).events == 0


def test_pieces_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a trace with characters of several bytes, numbers and text after the events
    events = [
        {**OP, "name": f"näme \U0001f600 {i}", "ts": f"{EPOCH_US + i}.{i:03}", "dur": "1.5"}
        for i in range(23)
    ]
    path = kineto_file(tmp_path / "t.json", events, baseTimeNanoseconds=1234567890)
    expected = None
    # WHEN it is read in pieces of every small size
    for size in (1, 2, 3, 5, 7, 31, 97, 1 << 22):
        monkeypatch.setattr(json_stream, "_CHUNK_BYTES", size)
        run, _ = imported(path, "kineto", force=True)
        found = rows(run, "nvtx", "ts_ns", "dur_ns", "name")
        # THEN it is always the same
        expected = expected or found
        assert found == expected
    assert expected is not None
    assert expected[7] == ((EPOCH_US + 7) * 1000 + 7 + 1234567890, 1500, "näme \U0001f600 7")


GOOD = {**OP, "name": "a", "ts": "1.000", "dur": "2.000"}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({**GOOD, "dur": "-0.001"}, "negative dur"),
        ({**GOOD, "ts": None}, "time is no number"),
        ({**GOOD, "ts": [1]}, "time is no number"),
        ({**GOOD, "ts": True}, "time is no number"),
        ({**GOOD, "ts": float("nan")}, "time is no number"),
        ({**GOOD, "ts": float("inf")}, "time is no number"),
        ({**GOOD, "ts": 10**40}, "time out of range"),
        ({**GOOD, "ts": "1e999999999"}, "time out of range"),
        ({**GOOD, "dur": 2**62}, "time out of range"),
        ({**GOOD, "pid": "Spans"}, "pid is no process id"),
        ({**GOOD, "pid": -1}, "pid is no process id"),
        ({**GOOD, "pid": 2**31}, "pid is no process id"),
        ({**GOOD, "tid": 2**63}, "tid is no thread id"),
        ({**GOOD, "tid": 1.5}, "tid is no thread id"),
        ({**GOOD, "name": None}, "name is no text"),
        ({**GOOD, "name": 5}, "name is no text"),
        ({**GOOD, "ph": 5}, "ph is no text"),
        ({**GOOD, "cat": {}}, "cat is no text"),
        ([1, 2], "not an object"),
        (None, "not an object"),
        ({**CALL, **GOOD, "cat": "cuda_runtime", "args": []}, "args is no object"),
        ({**GOOD, "cat": "cuda_runtime", "args": {"correlation": "x"}}, "correlation is no whole"),
        ({**GOOD, "cat": "cuda_driver", "args": {"correlation": 2**70}}, "correlation is no whole"),
        ({**KERNEL, "name": "k", "ts": 1, "dur": 1, "args": {"bytes": -7}}, "bytes is no whole"),
        ({**KERNEL, "name": "", "ts": 1, "dur": 1, "args": {"device": 2**31}}, "device is no"),
    ],
)  # fmt: skip
def test_event_that_makes_no_sense(tmp_path: Path, bad: Any, why: str) -> None:
    # GIVEN an event that makes no sense between two that do
    path = kineto_file(tmp_path / "t.json", [GOOD, bad, GOOD])
    # WHEN it is imported THEN the message tells which event and where, and nothing is left
    message = refusal(path, "kineto")
    place, reason = message.split(": ", maxsplit=1)
    assert reason.startswith(why)
    start = path.read_text().index(json.dumps(GOOD).replace('"1.000"', "1.000").replace(
        '"2.000"', "2.000")) + len(json.dumps(GOOD)) - 4 + 2  # fmt: skip
    assert place == f"event 2, byte {start}"
    # AND it can be left out, counted
    run, done = imported(path, "kineto", skip_bad=True)
    assert len(rows(run, "nvtx")) == 2
    assert done.bad == done.left_out == 1
    assert done.manifest.lost == 1
    assert rows(run, "losses", "source", "reason", "count") == [("kineto", "bad_event", 1)]


def test_open_range_has_no_length(tmp_path: Path) -> None:
    event = {key: value for key, value in GOOD.items() if key != "dur"}
    run, _ = imported(kineto_file(tmp_path / "t.json", [event]), "kineto")
    assert rows(run, "nvtx", "ts_ns", "dur_ns") == [(1000, None)]


TEXT = kineto_text([GOOD, GOOD], baseTimeNanoseconds=17, displayTimeUnit="ms")


@pytest.mark.parametrize(
    "cut", [0, 1, 5, 20, 40, 60, len(TEXT) // 2, len(TEXT) - 30, len(TEXT) - 1]
)
def test_truncated_text(tmp_path: Path, cut: int) -> None:
    # GIVEN a trace that ends too early
    path = tmp_path / "t.json"
    path.write_text(TEXT[:cut])
    # WHEN / THEN the place is told, which is not beyond the end
    message = refusal(path, "kineto")
    assert message.startswith("byte ")
    assert int(message.split()[1].rstrip(":")) <= cut


def test_truncated_gzip(tmp_path: Path) -> None:
    data = gzip.compress(TEXT.encode() * 1)
    path = tmp_path / "t.json.gz"
    for cut in (2, 9, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:cut])
        assert "cannot be read" in refusal(path, "kineto")
    path.write_bytes(data[:30] + b"\xff\xff\xff" + data[33:])
    assert "cannot be read" in refusal(path, "kineto") or "byte" in refusal(path, "kineto")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "byte 0: no JSON object"),
        ("17", "byte 0: no JSON object"),
        ("{}", "top level: no array traceEvents"),
        ('{"traceEvents": 5}', "top level: no array traceEvents"),
        ('{"traceEvents": [] ', "byte 19: '}' was expected"),
        ('{"traceEvents": []} x', "byte 20: something follows"),
        ('{"traceEvents": [{"ph": "M"} {}]}', "byte 29: a comma was expected, not '{'"),
        ('{"traceEvents": [{]}', "byte 18: Expecting property name"),
        ("{5: []}", "byte 2: a name was expected, not 5"),
        ('{"a" 5}', "byte 5: ':' was expected"),
        ('{"a": ' + "[" * 200_000, "byte 6: RecursionError"),
        ('{"traceEvents": [' + '{"a":' * 200_000, "byte 17: RecursionError"),
        ('{"a": ' + "9" * 5000 + "}", "byte 6: ValueError"),
        ('{"traceEvents": [], "baseTimeNanoseconds": "x"}', "baseTimeNanoseconds: 'x' is no time"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    assert refusal(path, "kineto").startswith(why)


def test_a_value_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a compressed value far larger than any event
    monkeypatch.setattr(json_stream, "_MAX_VALUE_CHARS", 1 << 16)
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 1 << 12)
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(b'{"traceEvents": [{"name": "' + b"x" * (1 << 22)))
    # WHEN / THEN reading stops at the limit
    assert "a value of more than 65536 characters" in refusal(path, "kineto")


def test_base_that_puts_times_out_of_range(tmp_path: Path) -> None:
    event = {**GOOD, "ts": 2**61 // 1000}
    path = kineto_file(tmp_path / "t.json", [event], baseTimeNanoseconds=2**61)
    assert "out of range" in refusal(path, "kineto")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["X", "M", "i", "s", "cpu_op", "kernel", "cuda_runtime", "gpu_memcpy"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(["ph", "cat", "name", "pid", "tid", "ts", "dur", "args", "id"])


@settings(max_examples=40, deadline=None)
@given(st.lists(VALUES | st.dictionaries(KEYS, VALUES, max_size=9), max_size=7))
def test_any_events_are_counted(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any]
) -> None:
    # GIVEN a file of any JSON values as events
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "t.json"
    path.write_text(json.dumps({"traceEvents": events}))
    # WHEN it is imported, without what makes no sense
    run, done = imported(path, "kineto", skip_bad=True)
    # THEN every one is accounted for, rows are rows, and the run can be read
    assert done.imported + done.folded + done.left_out == len(events)
    tables = ("nvtx", "cuda_api", "gpu_activity")
    assert done.imported == sum(done.manifest.tables.get(table, 0) for table in tables)
    assert Run(run).find_damage() is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.binary(min_size=1, max_size=3))
def test_any_damage_is_told_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, garbage: bytes
) -> None:
    # GIVEN a trace with some bytes of it replaced
    data = TEXT.encode()
    path = tmp_path_factory.mktemp("fuzz") / "t.json"
    path.write_bytes(data[:place] + garbage + data[place + len(garbage) :])
    # WHEN / THEN it is imported, or refused with the place (refusal checks the message)
    try:
        imported(path, "kineto")
    except CctraceError:
        refusal(path, "kineto")
