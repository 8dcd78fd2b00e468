"""The bridge model and what it is made of, over rows small enough to check by hand."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any

import pytest
from query_rows import Row, lines, span, table
from runs import make_run
from simcuda_build import SOURCE
from simcuda_run import profile_figures

import cctrace
from cctrace.store.losses import REASONS
from cctrace.store.manifest import Source

if TYPE_CHECKING:
    from pathlib import Path

US = 1000
STREAM = 7


def call(ts_ns: int, dur_ns: int | None, api: str, cls: str, **more: Any) -> Row:
    """One CUDA call of the runtime, on STREAM unless told otherwise."""
    row = {"api": api, "class": cls, "layer": "runtime", "depth": 0, "stream": STREAM}
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, **row, **more}


def copy(ts_ns: int, dur_ns: int | None, kind: str = "d2h", size: int = 64, **more: Any) -> Row:
    """An asynchronous copy, pinned unless told otherwise."""
    what = {"copy_kind": kind, "host_memory": "pinned", "size_bytes": size}
    return {**call(ts_ns, dur_ns, "cudaMemcpyAsync", "copy"), **what, **more}


def plain_copy(ts_ns: int, dur_ns: int | None, kind: str = "d2h", **more: Any) -> Row:
    """A copy by a call that has no stream and waits."""
    return {**copy(ts_ns, dur_ns, kind), "api": "cudaMemcpy", "stream": None, **more}


def launch(ts_ns: int, dur_ns: int | None = 3, **more: Any) -> Row:
    return call(ts_ns, dur_ns, "cudaLaunchKernel", "launch", **more)


def sync(ts_ns: int, dur_ns: int | None = 3, **more: Any) -> Row:
    return call(ts_ns, dur_ns, "cudaStreamSynchronize", "sync", **more)


def device_sync(ts_ns: int, dur_ns: int = 3, **more: Any) -> Row:
    return call(ts_ns, dur_ns, "cudaDeviceSynchronize", "sync", stream=None, **more)


def record(ts_ns: int, event: int = 99, **more: Any) -> Row:
    return call(ts_ns, 1, "cudaEventRecord", "event", event=event, **more)


def event_sync(ts_ns: int, dur_ns: int = 3, event: int = 99, **more: Any) -> Row:
    return call(ts_ns, dur_ns, "cudaEventSynchronize", "sync", stream=None, event=event, **more)


def idle(tmp_path: Path, *rows: Row) -> list[int]:
    """Starts of the copies that are known to come on an idle stream."""
    run = make_run(tmp_path, cuda_api=list(rows))
    query = "SELECT ts_ns FROM _idle_crossings WHERE class = 'copy' ORDER BY ts_ns"
    return [int(line) for line in table(run, query).split()]


def test_a_wait_for_the_stream_makes_it_idle(tmp_path: Path) -> None:
    assert idle(tmp_path, launch(10), sync(20), copy(30, 5)) == [30]


def test_the_first_work_of_a_stream_is_not_known_to_be_it(tmp_path: Path) -> None:
    # GIVEN nothing before: work from before the recording may be on the stream
    assert idle(tmp_path, copy(10, 5), sync(20), copy(30, 5)) == [30]


def test_work_after_the_wait_makes_it_busy(tmp_path: Path) -> None:
    assert idle(tmp_path, launch(10), sync(20), launch(25), copy(30, 5)) == []


def test_a_failed_or_open_wait_shows_nothing(tmp_path: Path) -> None:
    assert idle(tmp_path, launch(10), sync(20, result=600), copy(30, 5)) == []
    assert idle(tmp_path / "open", launch(10), sync(20, None), copy(30, 5)) == []


def test_a_query_that_succeeds_shows_as_much(tmp_path: Path) -> None:
    asked = call(20, 1, "cudaStreamQuery", "sync", result=0)
    assert idle(tmp_path, launch(10), asked, copy(30, 5)) == [30]
    assert idle(tmp_path / "busy", launch(10), {**asked, "result": 600}, copy(30, 5)) == []


def test_streams_are_apart_and_processes_too(tmp_path: Path) -> None:
    rows = [launch(10), sync(20, stream=8), copy(30, 5)]
    assert idle(tmp_path, *rows) == []
    assert idle(tmp_path / "pid", launch(10), sync(20, pid=101), copy(30, 5)) == []


def test_a_wait_by_another_thread_counts_once_it_is_over(tmp_path: Path) -> None:
    rows = [launch(10), sync(20, 30, tid=101), copy(40, 2), launch(43), copy(60, 5)]
    assert idle(tmp_path, *rows) == []
    # At the moment it returns, it has.
    rows = [launch(10), sync(20, 30, tid=101), copy(50, 5)]
    assert idle(tmp_path / "after", *rows) == [50]


def test_a_wait_for_the_device_is_one_for_every_stream(tmp_path: Path) -> None:
    rows = [launch(10), launch(12, stream=8), device_sync(20), copy(30, 5), copy(40, 5, stream=8)]
    assert idle(tmp_path, *rows) == [30, 40]


def test_an_event_stands_for_what_was_before_it(tmp_path: Path) -> None:
    # GIVEN an event after the last work: waiting for it drains the stream
    assert idle(tmp_path, launch(10), record(15), event_sync(20), copy(30, 5)) == [30]
    # or before more work: then not
    rows = [launch(10), record(15), launch(17), event_sync(20), copy(30, 5)]
    assert idle(tmp_path / "before", *rows) == []
    # or recorded once more meanwhile, on another stream
    rows = [launch(10), record(15), record(17, stream=8), event_sync(20), copy(30, 5)]
    assert idle(tmp_path / "moved", *rows) == []
    # or one that is not known
    rows = [launch(10), record(15), event_sync(20, event=98), copy(30, 5)]
    assert idle(tmp_path / "other", *rows) == []


def test_waiting_for_an_event_on_the_device_is_work(tmp_path: Path) -> None:
    rows = [launch(10), sync(20), call(25, 1, "cudaStreamWaitEvent", "event"), copy(30, 5)]
    assert idle(tmp_path, *rows) == []


def test_a_copy_that_blocks_leaves_the_stream_idle(tmp_path: Path) -> None:
    rows = [launch(10), copy(20, 5, host_memory="pageable"), copy(30, 5)]
    assert idle(tmp_path, *rows) == [30]
    # The legacy default stream is one, whether it is named or not.
    rows = [plain_copy(10, 5), copy(20, 5, stream=0), sync(27, stream=0), plain_copy(30, 5)]
    assert idle(tmp_path / "legacy", *rows) == [20, 30]


def test_per_thread_default_streams_are_each_threads_own(tmp_path: Path) -> None:
    rows = [launch(10, stream=2), sync(20, stream=2, tid=101), copy(30, 5, stream=2)]
    assert idle(tmp_path, *rows) == []
    assert idle(tmp_path / "own", launch(10, stream=2), sync(20, stream=2), rows[2]) == [30]


def readbacks(count: int, copy_ns: int, wait_ns: int) -> list[Row]:
    """Pinned copies to the host, each behind a kernel and before a wait."""
    return [
        row
        for i in range(count)
        for row in (
            launch(i * US * US),
            copy(i * US * US + 10, copy_ns),
            sync(i * US * US + 900 * US, wait_ns),
        )
    ]


@pytest.mark.parametrize(
    ("copy_us", "wait_us", "waits"),
    [(500, 2, True), (5, 500, False), (30, 500, False), (5, 2, None)],
    ids=["waits", "passes", "passes slowly", "nothing to wait for"],
)
def test_whether_copies_wait_shows_in_the_next_wait(
    tmp_path: Path, copy_us: int, wait_us: int, waits: bool | None
) -> None:
    run = make_run(tmp_path, cuda_api=readbacks(5, copy_us * US, wait_us * US))
    query = "SELECT waited, passed, waits FROM _copy_waits"
    waited, passed = 5 * (waits is True), 5 * (waits is False)
    shown = "" if waits is None else waits
    assert table(run, query) == f"{waited},{passed},{shown}\n"
    # Where nothing shows, the mode outside of confidential computing is assumed.
    query = "SELECT blocks, mode, profile, profile_basis FROM bridge_model WHERE class = 'copy' \
        AND calls > 0"
    assert table(run, query) == lines(
        "True,host_synchronous,b300-cc,behaviour"
        if waits
        else f"False,async,b300,{'assumed' if waits is None else 'behaviour'}"
    )


@pytest.mark.parametrize(
    ("early", "copy_us", "waits"),
    [(15, 500, "True,run"), (16, 500, ","), (0, 45, ",")],
    ids=["a quarter waits", "less", "late is not waiting"],
)
def test_calls_that_are_late_do_not_show_that_copies_wait(
    tmp_path: Path, early: int, copy_us: int, waits: str
) -> None:
    calls = readbacks(early, 5 * US, 2 * US)
    later = [
        {**row, "ts_ns": row["ts_ns"] + early * US * US}
        for row in readbacks(5, copy_us * US, 2 * US)
    ]
    run = make_run(tmp_path, cuda_api=calls + later)
    assert table(run, "SELECT waits, waits_source FROM _copy_waits") == lines(waits)


def test_four_copies_are_too_few_to_tell(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=readbacks(4, 500 * US, 2 * US))
    assert table(run, "SELECT waited, waits FROM _copy_waits") == "4,\n"


@pytest.mark.parametrize(
    ("host", "profile", "basis"),
    [
        ({}, "b300", "assumed"),
        ({"tee": {"kind": "tdx"}}, "b300-cc", "assumed"),
        ({"gpu": {"cc_state": "on"}}, "b300-cc", "behaviour"),
        ({"gpu": {"cc_state": "on", "devices": [{"name": "NVIDIA H200"}]}}, "h200-cc", "told"),
        ({"gpu": {"cc_state": "off", "devices": [{"name": "NVIDIA B200"}]}}, "b300", "told"),
        ({"gpu": {"cc_state": "devtools", "devices": [{"name": "H100"}]}}, "h200-cc", "told"),
    ],
)
def test_the_profile_is_that_of_the_machine(
    tmp_path: Path, host: dict[str, Any], profile: str, basis: str
) -> None:
    run = make_run(tmp_path, manifest={"host": host})
    assert table(run, "SELECT profile, basis FROM _run_profiles") == f"{profile},{basis}\n"


def drained(durations: list[tuple[int, int]]) -> list[Row]:
    """Copies to the device of (bytes, ns), each on a drained stream; they block."""
    rows = [sync(0)]
    for i, (size, dur_ns) in enumerate(durations):
        at = (i + 1) * US * US
        rows += [plain_copy(at, dur_ns, "h2d", size_bytes=size), sync(at + dur_ns + 1, stream=0)]
    return rows


MODEL = """
    SELECT n, round(toll_ns, 3), round(gb_per_s, 3), source, bandwidth_source, confidence
    FROM bridge_model WHERE class = 'copy' AND calls > 0
"""


def exact(count: int = 101) -> list[tuple[int, int]]:
    """Copies of 7 us and a tenth of a ns a byte: 10 GB/s."""
    return [(size, 7 * US + size // 10) for size in range(10, 10 + count * 1000, 1000)]


def test_a_line_through_idle_copies_is_toll_and_bandwidth(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=drained([(0, 7 * US), *exact()]))
    # The first is not known to be on an idle stream.
    assert table(run, MODEL) == "101,7000.0,10.0,run,run,high\n"


def test_calls_that_were_disturbed_do_not_bend_it(tmp_path: Path) -> None:
    # GIVEN six in ten calls that are longer by up to a millisecond
    rng = random.Random(20261121)
    calls = [
        (size, ns + (rng.random() < 0.6) * rng.randrange(3 * US, US * US))
        for size, ns in exact(997)
    ]
    run = make_run(tmp_path, cuda_api=drained([(0, 7 * US), *calls]))
    [row] = table(run, MODEL).splitlines()
    _, toll_ns, gb_per_s, *_ = row.split(",")
    assert float(toll_ns) == pytest.approx(7000, rel=0.02)
    assert float(gb_per_s) == pytest.approx(10, rel=0.02)


def test_jitter_evens_out(tmp_path: Path) -> None:
    rng = random.Random(1009)
    calls = [(size, round(ns * rng.uniform(0.95, 1.05))) for size, ns in exact(997)]
    run = make_run(tmp_path, cuda_api=drained([(0, 7 * US), *calls]))
    [row] = table(run, MODEL).splitlines()
    n, toll_ns, gb_per_s, *rest = row.split(",")
    assert float(toll_ns) == pytest.approx(7000, rel=0.02)
    assert float(gb_per_s) == pytest.approx(10, rel=0.02)
    assert (n, rest) == ("997", ["run", "run", "high"])


def test_of_one_size_the_bandwidth_is_the_profiles(tmp_path: Path) -> None:
    # 55,700 bytes at the 55.7 GB/s of pinned copies are 1 us.
    run = make_run(tmp_path, cuda_api=drained([(55_700, 8 * US)] * 14))
    assert table(run, MODEL) == "13,7000.0,55.7,run,profile,medium\n"


def test_of_fewer_than_five_all_is_the_profiles(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=drained([(64, 8 * US)] * 5))
    assert table(run, MODEL) == "0,5500.0,55.7,profile,profile,low\n"
    run = make_run(tmp_path, "five", cuda_api=drained([(0, 8 * US)] * 6))
    assert table(run, MODEL) == "5,8000.0,55.7,run,profile,low\n"


def test_lost_calls_cost_confidence(tmp_path: Path) -> None:
    calls = drained([(0, 7 * US), *exact()])
    run = make_run(tmp_path, cuda_api=calls, losses=[{"source": "cuda"}])
    assert table(run, MODEL) == "101,7000.0,10.0,run,run,medium\n"


def test_what_the_probes_add_is_taken_off(tmp_path: Path) -> None:
    # GIVEN 400 ns by a call's own probes and 600 by those of the driver's call within
    source = Source("cuda", "attached", detail={"probe_ns": 400.0, "probe_call_ns": 600.0})
    calls = drained([(0, 8 * US), *((size, ns + US) for size, ns in exact())])
    inner = [
        {**row, "layer": "driver", "depth": 1, "api": "cuMemcpyHtoD"}
        for row in calls
        if row["class"] == "copy"
    ]
    run = make_run(tmp_path, cuda_api=calls + inner, manifest={"sources": [source]})
    assert table(run, MODEL) == "101,7000.0,10.0,run,run,high\n"
    # THEN in each call they are time that is not known
    query = "SELECT class, min(unattributed_ns), max(unattributed_ns) FROM crossing_costs \
        GROUP BY class ORDER BY class"
    assert table(run, query) == "copy,1000,1000\nsync,3,3\n"


def test_calls_without_a_cpu_are_left_out(tmp_path: Path) -> None:
    calls = drained([(0, 7 * US), *exact(11)])
    preempted = [row for row in calls if row["class"] == "copy"][5]
    waits = [{"ts_ns": preempted["ts_ns"] + 10, "dur_ns": 2 * US, "state": "runnable"}]
    run = make_run(tmp_path, cuda_api=calls, sched=waits)
    assert table(run, MODEL).split(",")[0] == "10"


def test_launches_captured_into_graphs_are_left_out(tmp_path: Path) -> None:
    # GIVEN 23 launches of 1 us before the first step, and 7 of 26 us in steps
    rows = [launch(i * 10 * US, US) for i in range(23)]
    rows += [launch(US * US + i * 100 * US, 26 * US) for i in range(7)]
    query = "SELECT calls, n, round(toll_ns, 3) FROM bridge_model WHERE class = 'launch'"
    run = make_run(tmp_path, cuda_api=rows, nvtx=[span(US * US - 5, US * US, "step")])
    assert table(run, query) == "30,7,26000.0\n"
    # A run without steps has all of them.
    run = make_run(tmp_path, "stepless", cuda_api=rows)
    assert table(run, query) == "30,23,1000.0\n"


def test_waits_and_queries(tmp_path: Path) -> None:
    # GIVEN waits for 500 us of work, each followed by one with nothing to wait for
    rows = []
    for i in range(11):
        at = i * US * US
        rows += [
            launch(at),
            sync(at + 10, 500 * US),
            sync(at + 600 * US, 1700),
            call(at + 700 * US, 400, "cudaStreamQuery", "sync", result=600),
        ]
    run = make_run(tmp_path, cuda_api=rows)
    query = "SELECT api, n, round(toll_ns, 3), gb_per_s FROM bridge_model \
        WHERE class = 'sync' ORDER BY api"
    assert table(run, query) == lines("""
        cudaStreamQuery,11,400.0,
        cudaStreamSynchronize,11,1700.0,
    """)


def test_what_a_run_has_none_of_is_there_for_remedies(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest={"host": {"gpu": {"cc_state": "on"}}})
    query = """
        SELECT class, copy_kind, host_memory, calls, n, toll_ns, round(gb_per_s, 1), blocks, source
        FROM bridge_model WHERE api IS NULL ORDER BY ALL
    """
    assert table(run, query) == lines("""
        copy,d2h,pageable,0,0,10000.0,15.0,True,profile
        copy,d2h,pinned,0,0,10000.0,11.1,True,profile
        copy,h2d,pageable,0,0,3450.0,15.0,False,profile
        copy,h2d,pinned,0,0,10000.0,11.1,True,profile
        graph,,,0,0,26000.0,,,profile
        launch,,,0,0,26000.0,,,profile
    """)
    assert table(run, "bridge_model") == ""
    assert len(table(run, "bridge_model", {"all_kinds": True}).splitlines()) == 6


def test_every_kind_that_occurs_has_one_row(tmp_path: Path) -> None:
    rows = [
        copy(1, None),
        copy(2, 5, "unknown", host_memory=None, size_bytes=None),
        copy(3, 5, "h2h", host_memory="registered"),
        copy(4, 5, "d2d", host_memory=None),
        copy(5, 5, "p2p", host_memory=None),
        copy(6, 5, "h2d", host_memory="managed"),
        call(7, 5, "cudaMalloc", "alloc", stream=None),
        call(8, 5, "cudaFree", "free", stream=None),
        call(9, 5, "ncclAllReduce", "collective"),
        call(10, 5, "cudaDeviceReset", "other", stream=None),
        launch(11, 0),
        {**launch(12), "depth": 1},
    ]
    run = make_run(tmp_path, cuda_api=rows)
    query = """
        SELECT class, copy_kind, host_memory, calls, mode, toll_ns > 0 FROM bridge_model
        WHERE calls > 0 ORDER BY ALL
    """
    assert table(run, query) == lines("""
        alloc,,,1,,True
        collective,,,1,,True
        copy,d2d,,1,async,True
        copy,d2h,pinned,1,async,True
        copy,h2d,managed,1,async,True
        copy,h2h,registered,1,async,True
        copy,p2p,,1,async,True
        copy,unknown,,1,async,True
        launch,,,1,,True
    """)


def test_the_report_is_the_model_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=drained([(0, 7 * US), *exact()]))
    [row] = [row for row in table(run, "bridge_model").splitlines() if ",copy," in row]
    expected = "run,copy,cudaMemcpy,h2d,pinned,102,101,7000,10.0,True,0,0,high,run,run,b300,assumed"
    assert row == expected


def test_runs_do_not_mix(tmp_path: Path) -> None:
    slow = [(size, 2 * ns) for size, ns in exact()]
    runs = [
        make_run(tmp_path, "one", cuda_api=drained([(0, US), *exact()])),
        make_run(tmp_path, "two", cuda_api=drained([(0, US), *slow])),
    ]
    query = """
        SELECT run, round(toll_ns), round(gb_per_s, 3) FROM bridge_model
        WHERE class = 'copy' AND calls > 0 ORDER BY run
    """
    assert table(runs, query) == "one,7000.0,10.0\ntwo,14000.0,5.0\n"


@pytest.mark.parametrize("profile", ["b300", "b300-cc", "h200", "h200-cc"])
def test_published_figures_are_those_of_the_simulators_profile(
    tmp_path: Path, profile: str
) -> None:
    """Two lists of the same publications: what one says the other must."""
    toml = profile_figures(profile)
    with cctrace.open(make_run(tmp_path)) as session:
        rows = session.sql(
            "SELECT * FROM _bridge_profiles WHERE profile = $name", {"name": profile}
        ).arrow()
    sections = {"launch": "launch", "collective": "collective", "memset": "memset"}
    found = 0
    for row in rows.to_pylist():
        section = sections.get(row["class"], "")
        if row["class"] == "copy":
            section = ".".join(filter(None, ("copy", row["copy_kind"], row["host_memory"])))
            assert row["toll_ns"] == toml[f"{section}.host_ns"]
        for name in ("gb_per_s", "latency_ns"):
            if f"{section}.{name}" in toml:
                assert row[name] == toml[f"{section}.{name}"], row
                found += 1
    assert found == 8 * 2 + 2 + 1 + 1  # copies, collectives, launches' latency, memsets' rate
    by_class = {(row["class"], row["host_memory"]): row["toll_ns"] for row in rows.to_pylist()}
    assert by_class["launch", None] == by_class["collective", None] == toml["launch.host_ns"]
    assert by_class["graph", None] == toml["launch.graph_host_ns"]
    assert by_class["sync", None] == toml["sync.host_ns"]
    assert by_class["query", None] == toml["sync.query_ns"]
    assert by_class["event", None] == toml["sync.event_ns"]
    assert by_class["alloc", None] == toml["alloc.device_ns"]
    assert by_class["alloc", "pinned"] == toml["alloc.host_ns"]
    assert by_class["free", None] == toml["alloc.free_ns"]
    text = (SOURCE / "profiles" / f"{profile}.toml").read_text("utf-8")
    for row in rows.to_pylist():
        if row["class"] == "copy" and row["host_memory"]:
            section = text.split(f"[copy.{row['copy_kind']}.{row['host_memory']}]")[1]
            assert section.split('mode = "')[1].split('"')[0] == row["mode"]


def test_losses_that_leave_the_event_are_no_event_losses(tmp_path: Path) -> None:
    """As REASONS says, and no others."""
    rows = [
        {"source": "cuda", "reason": reason, "first_ns": i, "last_ns": i}
        for i, reason in enumerate(REASONS)
    ]
    run = make_run(tmp_path, losses=rows)
    found = {int(line) for line in table(run, "SELECT first_ns FROM _event_losses").split()}
    lossy = {i for i, reason in enumerate(REASONS.values()) if reason.loses_event}
    assert found == lossy
    assert 0 < len(lossy) < sys.maxsize
