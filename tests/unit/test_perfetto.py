"""A run as a Perfetto trace, read back by protobuf's own classes."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from perfetto_trace import Slice, Trace, parse
from runs import START, STOP, Row, make_run

import cctrace
from cctrace.cli import cli
from cctrace.errors import CctraceError
from cctrace.exporters.perfetto import trace as exporter
from cctrace.exporters.perfetto import write_perfetto
from cctrace.exporters.perfetto.lanes import OPEN_NS, Lanes
from cctrace.store.manifest import Anchor
from cctrace.store.run import Run

if TYPE_CHECKING:
    from conftest import Golden

T = 2_000_000_000  # within the run of make_run
TORTURE = [
    "<script>alert(1)</script>",
    "\"quotes\"; 'and' semicolons\nnewline\ttab",
    "nul \x00 bell \x07 escape \x1b[31m",
    "\u202eright to left\u202c \u200f",
    "x" * 10_000,
    "",
]


def exported(run: Path) -> Trace:
    """What the run's trace says."""
    output = run.parent / f"{run.name}.pftrace"
    with output.open("wb") as stream:
        write_perfetto(Run(run), stream)
    return parse(output)


def call(ts_ns: int, dur_ns: int | None, api: str, cls: str, **more: Any) -> Row:
    row = {"ts_ns": ts_ns, "dur_ns": dur_ns, "api": api, "class": cls, "layer": "runtime"}
    return {"result": None if dur_ns is None else 0, "depth": 0, "stream": 7, **row, **more}


def span(ts_ns: int, dur_ns: int | None, name: str | None, depth: int = 0, **more: Any) -> Row:
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "name": name, "depth": depth, **more}


def tree(slices: list[Slice]) -> list[tuple[int, str | None, int, int | None]]:
    return [(made.depth, made.name, made.ts_ns - T, made.dur_ns) for made in slices]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps of a loop with everything a trace can show."""
    kernel = {"class": "kernel", "device": 0, "stream": 7, "dur_ns": 30_000}
    nvtx, cuda = [], []
    for step in (0, 1_000_000):
        nvtx += [span(T + step, 900_000, "step", domain="engine", payload=(3 << 32) + 5),
                 span(T + step + 10_000, 500_000, "forward", 1, domain="engine")]  # fmt: skip
        cuda += [
            call(T + step + 20_000, 8_000, "cudaLaunchKernel", "launch", correlation_id=step + 1),
            call(T + step + 21_000, 6_000, "cuLaunchKernel", "launch", depth=1, layer="driver",
                 correlation_id=step + 1, stack_id=5),
            call(T + step + 40_000, 60_000, "cudaStreamSynchronize", "sync"),
        ]  # fmt: skip
    return make_run(
        tmp_path,
        nvtx=[
            *nvtx,
            span(T + 5_000, 0, "a mark", kind="mark", category="7"),
            {"ts_ns": T + 100, "dur_ns": 1_500_000, "name": "request 1", "kind": "start_end",
             "end_tid": 101, "payload_double": 0.5},
            {"ts_ns": T + 200, "dur_ns": 700_000, "name": "request 2", "kind": "start_end"},
            {"ts_ns": T + 900_000, "dur_ns": None, "name": "request 3", "kind": "start_end"},
        ],
        cuda_api=[*cuda, call(T + 1_920_000, None, "cudaDeviceSynchronize", "sync")],
        gpu_activity=[
            {**kernel, "ts_ns": T + 30_000 + step, "name": "gemm", "correlation_id": step + 1}
            for step in (0, 1_000_000)
        ],
        sched=[
            {"ts_ns": T + 45_000, "dur_ns": 50_000, "state": "blocked", "waker_tid": 101,
             "stack_id": 6},
            {"ts_ns": T + 95_000, "dur_ns": 1_000, "state": "runnable"},
        ],
        swiotlb=[
            {"ts_ns": T + 1, "dur_ns": None, "op": "map", "device": "0000:01:00.0",
             "direction": "to_device", "size_bytes": 4096},
            {"ts_ns": T + 2, "dur_ns": 7, "op": "bounce", "size_bytes": 4096},
        ],
        page_conversion=[{"ts_ns": T + 3, "dur_ns": 9, "to": "shared", "pages": 512}],
        uvm_crypto=[{"ts_ns": T + 4, "dur_ns": 9, "direction": "encrypt", "size_bytes": 64}],
        user_crypto=[{"ts_ns": T + 5, "dur_ns": 9, "direction": "decrypt", "size_bytes": 32}],
        cuda_launches=[
            {"ts_ns": T + 6, "window_ns": 1_000, "api": "cuLaunchKernel", "stream": stream,
             "calls": 11, "total_ns": 900, "max_ns": 100, "histogram": []} for stream in (7, 8)
        ],
        counters=[
            {"ts_ns": T + at, "pid": None, "tid": None, "name": "swiotlb_used", "value": value,
             "unit": "bytes"} for at, value in ((10, 4096.0), (30, 0.0))
        ],
        stacks=[
            {"stack_id": 5, "frames": [
                {"function": "launch", "module": "/lib/libcudart.so", "file": "l.c", "line": 3,
                 "kind": "native"},
                {"function": "forward", "module": None, "file": "model.py", "line": 71,
                 "kind": "python"},
                {"function": None, "module": "/lib/libcudart.so", "file": None, "line": None,
                 "kind": None},
            ]},
            {"stack_id": 6, "frames": [
                {"function": "schedule", "module": "vmlinux", "file": None, "line": None,
                 "kind": "kernel"}]},
        ],
        losses=[
            {"count": 13, "first_ns": T + 50, "last_ns": T + 90},
            {"count": 2, "pid": None, "tid": None, "source": "cuda", "reason": "map_full"},
        ],
        processes=[{"ts_ns": T, "start_ns": 5, "end_ns": T + 2_000_000, "ppid": 1,
                    "exe": "/usr/bin/python3", "cmdline": "python3 serve.py"}],
        threads=[{"ts_ns": T, "start_ns": T, "end_ns": None},
                 {"ts_ns": T, "tid": 101, "name": "reader", "start_ns": T, "end_ns": T + 5}],
    )  # fmt: skip


def test_the_whole_trace(run: Path, golden: Golden) -> None:
    golden("trace.perfetto.txt", exported(run).text())


def test_every_row_is_there_once(run: Path) -> None:
    trace = exported(run)
    with cctrace.open(run) as session:
        for table in ("nvtx", "cuda_api", "gpu_activity", "sched", "swiotlb", "page_conversion",
                      "uvm_crypto", "user_crypto", "cuda_launches", "losses", "processes",
                      "steps", "bubbles"):  # fmt: skip
            [(rows,)] = session.sql(f"SELECT count(*) FROM {table}").fetchall()
            assert len(trace.of(table)) == rows > 0, table


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    write_perfetto(Run(run), first)
    moved = run.rename(tmp_path / "elsewhere")
    write_perfetto(Run(moved), second)
    assert first.getvalue() == second.getvalue()


def test_calls_nest_in_ranges(run: Path) -> None:
    trace = exported(run)
    main_thread = [made for made in trace.slices if made.track == "100 python3/100 main"]
    assert tree(main_thread) == [
        (0, "step", 0, 900_000),
        (1, "a mark", 5_000, 0),
        (1, "forward", 10_000, 500_000),
        (2, "cudaLaunchKernel", 20_000, 8_000),
        (3, "cuLaunchKernel", 21_000, 6_000),
        (2, "cudaStreamSynchronize", 40_000, 60_000),
        (0, "step", 1_000_000, 900_000),
        (1, "forward", 1_010_000, 500_000),
        (2, "cudaLaunchKernel", 1_020_000, 8_000),
        (3, "cuLaunchKernel", 1_021_000, 6_000),
        (2, "cudaStreamSynchronize", 1_040_000, 60_000),
        (0, "cudaDeviceSynchronize", 1_920_000, None),
    ]
    [launch, _, sync, *_] = trace.of("cuda_api")
    assert launch.args == {
        "layer": "runtime", "class": "launch", "stream": 7, "result": 0, "correlation_id": 1,
        "depth": 0,
    }  # fmt: skip
    # The parts of a copy or sync are those of crossing_costs, those that are 0 left out.
    with cctrace.open(run) as session:
        costs = session.sql(
            "SELECT toll_ns, sync_wait_ns, runnable_ns FROM crossing_costs "
            "WHERE class = 'sync' ORDER BY ts_ns LIMIT 1"
        )
        [row] = costs.arrow().to_pylist()
    assert sync.args == {"layer": "runtime", "class": "sync", "stream": 7, "result": 0, "depth": 0,
                         **row}  # fmt: skip
    assert sum(row.values()) == sync.dur_ns


def test_flows_join_the_wait_to_the_next_launch_and_launches_to_their_kernels(run: Path) -> None:
    found = [
        [(made.name, made.ts_ns - T, made.track.rsplit("/", 1)[-1]) for made in slices]
        for slices in exported(run).flow_pairs().values()
    ]
    assert sorted(found, key=lambda one: one[0][1]) == [
        [("cudaLaunchKernel", 20_000, "100 main"), ("gemm", 30_000, "stream 7")],
        [("cudaStreamSynchronize", 40_000, "100 main"),
         ("cudaLaunchKernel", 1_020_000, "100 main")],
        [("cudaLaunchKernel", 1_020_000, "100 main"), ("gemm", 1_030_000, "stream 7")],
    ]  # fmt: skip


def test_clocks_counters_stacks_and_losses(run: Path) -> None:
    trace = exported(run)
    assert trace.clocks == [
        {3: at.monotonic_ns, 1: at.realtime_ns, 6: at.boottime_ns} for at in (START, STOP)
    ]
    assert trace.values["swiotlb_used"] == [(T + 10, 4096.0), (T + 30, 0.0)]
    assert trace.units["swiotlb_used"] == "bytes"
    gpu = "100 python3/GPU"
    assert trace.values[f"{gpu} 0/device idle, observed"] == [
        (T + 30_000, 0.0), (T + 60_000, 1.0), (T + 1_030_000, 0.0), (T + 1_060_000, 1.0)
    ]  # fmt: skip
    # A launch is outstanding from its start until its kernel has ended.
    assert trace.values[f"{gpu}/queue depth"] == [
        (T + 20_000, 1.0), (T + 60_000, 0.0), (T + 1_020_000, 1.0), (T + 1_060_000, 0.0)
    ]  # fmt: skip
    stack = next(made.stack for made in trace.of("cuda_api") if made.args["depth"] == 1)
    assert stack == [  # outermost first
        ("?", "/lib/libcudart.so", None, None, None),
        ("forward", None, "model.py", 71, "KIND_INTERPRETED"),
        ("launch", "/lib/libcudart.so", "l.c", 3, "KIND_NATIVE"),
    ]
    assert [made.stack for made in trace.of("sched")] == [
        [("schedule", "vmlinux", None, None, "KIND_KERNEL")], None
    ]  # fmt: skip
    losses = [(s.track, s.name, s.ts_ns, s.end_ns, s.args["lost"], s.args["is_time_known"])
              for s in trace.of("losses")]  # fmt: skip
    assert losses == [
        ("losses", "map_full", START.monotonic_ns, STOP.monotonic_ns, 2, False),
        ("100 python3/losses", "ring_full", T + 50, T + 90, 13, True),
    ]
    facts = {key: value for key, value in trace.attributes.items() if "lost" in key}
    assert facts == {"cctrace lost": 15, "cctrace lost map_full": 2, "cctrace lost ring_full": 13}
    [whole] = trace.of("runs")
    assert (whole.ts_ns, whole.end_ns) == (START.monotonic_ns, STOP.monotonic_ns)
    assert whole.args["lost ring_full"] == 13


def test_domains_that_cross_have_tracks_of_their_own(tmp_path: Path) -> None:
    # GIVEN a thread on which ranges of two domains cross, and one where a call crosses one
    run = make_run(
        tmp_path,
        nvtx=[
            span(T, 100, "a", domain="A"), span(T + 50, 100, "b", domain="B"),
            span(T + 60, 10, "inner b", 1, domain="B"),
            span(T, 100, "c", tid=101), span(T + 10, 10, "inner c", 1, tid=101),
        ],
        cuda_api=[call(T + 70, 5, "cudaFree", "free"), call(T + 95, 10, "cuFree", "free", tid=101)],
        threads=[{"ts_ns": T}, {"ts_ns": T, "tid": 101, "name": "second"}],
    )  # fmt: skip
    # WHEN it is exported; THEN what does not nest has its own track, and the rest does not
    by_track: dict[str, list[Any]] = {}
    for made in exported(run).slices:
        by_track.setdefault(made.track, []).append((made.depth, made.name))
    del by_track["run"]
    assert by_track == {
        "100/100 main/CUDA": [(0, "cudaFree")],
        "100/100 main/NVTX A": [(0, "a")],
        "100/100 main/NVTX B": [(0, "b"), (1, "inner b")],
        "100/101 second": [(0, "c"), (1, "inner c")],
        "100/101 second/CUDA": [(0, "cuFree")],
    }


def test_a_range_that_lost_its_end_swallows_nothing(tmp_path: Path) -> None:
    # GIVEN a call whose return was not seen, and one that never returned
    run = make_run(
        tmp_path,
        nvtx=[span(T, 1_000, "outer")],
        cuda_api=[
            call(T + 10, None, "cudaMalloc", "alloc"), call(T + 50, 100, "cudaFree", "free"),
            call(T + 2_000, None, "cudaDeviceSynchronize", "sync"),
        ],
    )  # fmt: skip
    trace = exported(run)
    # THEN the first is beside the thread, and the last still open on it
    found = [(made.track, made.depth, made.name, made.dur_ns) for made in trace.slices]
    assert found[1:] == [
        ("100/100", 0, "outer", 1_000),
        ("100/100", 1, "cudaFree", 100),
        ("100/100", 0, "cudaDeviceSynchronize", None),
        ("100/100/CUDA without an end", 0, "cudaMalloc", None),
    ]


def test_a_domain_may_be_called_like_a_track_of_ours(tmp_path: Path) -> None:
    # GIVEN a domain named so that its track has the name of lost ends, and a lost end
    name = "a without an end"
    run = make_run(
        tmp_path,
        nvtx=[
            span(T, None, "lost", domain="a"), span(T + 5, 100, "a", domain="a"),
            span(T + 50, 100, "b", domain=name), span(T + 60, 10, "c", 1, domain=name),
        ],
    )  # fmt: skip
    # THEN its ranges are not drawn into the one that never ends
    trace = exported(run)
    found = {made.name: (made.track, made.depth) for made in trace.of("nvtx")}
    assert found == {
        "lost": ("100/100/NVTX a without an end", 0),
        "a": ("100/100/NVTX a", 0),
        "b": ("100/100/NVTX a without an end", 0),
        "c": ("100/100/NVTX a without an end", 1),
    }


def test_edges_at_one_moment(tmp_path: Path) -> None:
    # GIVEN ranges that end where others begin, of no length, and of the same extent
    run = make_run(
        tmp_path,
        nvtx=[
            span(T, 10, "first"), span(T, 10, "same", 1), span(T + 5, 5, "tail", 2),
            span(T + 10, 0, "empty", 1), span(T + 10, 20, "second"), span(T + 30, 0, "last"),
        ],
    )  # fmt: skip
    assert tree(exported(run).slices[1:]) == [
        (0, "first", 0, 10),
        (1, "same", 0, 10),
        (2, "tail", 5, 5),
        (0, "second", 10, 20),
        (1, "empty", 10, 0),
        (0, "last", 30, 0),
    ]


def test_what_is_longer_than_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN nested and overlapping slices of two threads, and windows of seven rows
    nvtx = [span(T + 97 * i, 97 * 5 if i % 5 == 0 else 90, f"r{i % 3}", int(i % 5 > 0), tid=tid)
            for tid in (100, 101) for i in range(101)]  # fmt: skip
    ranges = [{"ts_ns": T + 50 * i, "dur_ns": 331, "name": f"q{i}", "kind": "start_end"}
              for i in range(53)]  # fmt: skip
    run = make_run(tmp_path, nvtx=[*nvtx, span(T - 5, 97 * 107, "all", 0), *ranges])
    whole = exported(run)
    monkeypatch.setattr(exporter, "_WINDOW_ROWS", 7)
    parts = exported(run)
    # THEN the trace says the same as in one window
    assert parts.text() == whole.text()
    assert Counter(made.depth for made in parts.of("nvtx")) == {0: 1 + 21 + 53, 1: 80 + 21, 2: 80}
    # and ranges that overlap have lanes, as few as are ever open at once
    lanes = [track for track in parts.tracks.values() if track.name == "NVTX ranges"]
    assert len(lanes) == 7


def test_names_come_through_as_they_are(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[span(T + 10 * i, 5, name, domain=name, category=name)
              for i, name in enumerate(TORTURE)],
        threads=[{"ts_ns": T, "name": TORTURE[2]}],
        processes=[{"ts_ns": T, "exe": TORTURE[0], "cmdline": TORTURE[1]}],
        stacks=[{"stack_id": 1, "frames": [{"function": TORTURE[2], "module": TORTURE[3],
                                            "file": TORTURE[4], "line": -1, "kind": "?"}]}],
        sched=[{"ts_ns": T, "dur_ns": 1, "state": TORTURE[3], "stack_id": 1}],
        losses=[{"reason": TORTURE[1], "count": 1}],
        counters=[{"ts_ns": T, "name": TORTURE[0], "value": 1.0, "unit": TORTURE[4]}],
    )  # fmt: skip
    trace = exported(run)
    found = [(m.name, m.args["domain"], m.args["nvtx_category"]) for m in trace.of("nvtx")]
    assert found == [(name, name, name) for name in TORTURE]
    assert next(t.thread.thread_name for t in trace.tracks.values() if t.thread.tid) == TORTURE[2]
    [wait] = trace.of("sched")
    assert (wait.name, wait.stack) == (
        TORTURE[3], [(TORTURE[2], TORTURE[3], TORTURE[4], None, None)]
    )  # fmt: skip
    assert trace.attributes[f"cctrace lost {TORTURE[1]}"] == 1
    assert list(trace.units.values()) == [TORTURE[4]]


@pytest.mark.parametrize("rows", [{}, {"nvtx": []}, {"losses": [{"count": 1}]}])
def test_a_run_without_events(tmp_path: Path, rows: dict[str, Any]) -> None:
    trace = exported(make_run(tmp_path, **rows))
    assert [made.category for made in trace.slices] == ["runs", *(rows if "losses" in rows else [])]


def test_a_killed_run_is_open(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest={"stop": None, "ended": "recording"}, nvtx=[span(T, 5, "a")])
    [whole, _] = exported(run).slices
    assert (whole.name, whole.end_ns, whole.args["ended"]) == ("run", None, "recorder_killed")


def test_lanes_are_the_lowest_free_ones() -> None:
    lanes = Lanes()
    starts, ends = np.array([0, 1, 2, 10]), np.array([10, 2, 9, OPEN_NS])
    assert lanes.take(starts, ends).tolist() == [0, 1, 1, 0]
    # what is apart from all before has lane 0, unless that is still taken
    assert lanes.take(np.array([20, 30]), np.array([25, 35])).tolist() == [1, 1]


def test_lanes_never_overlap() -> None:
    seed = 20_260_711
    print("seed", seed)
    draw = random.Random(seed)
    starts = np.sort(np.array([draw.randrange(1_000) for _ in range(997)]))
    ends = starts + np.array([draw.randrange(60) for _ in range(997)])
    lanes = Lanes()
    taken = np.concatenate([lanes.take(starts[i : i + 31], ends[i : i + 31])
                            for i in range(0, 997, 31)])  # fmt: skip
    for lane in set(taken.tolist()):
        mine = taken == lane
        assert (ends[mine][:-1] <= starts[mine][1:]).all()
    most = max(int(((starts <= at) & (at < np.maximum(ends, starts + 1))).sum()) for at in starts)
    assert taken.max() < most


def test_the_command(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.pftrace"
    done = CliRunner().invoke(cli, ["export", str(run), "--format", "perfetto", "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "WARNING: 15 of" in done.stderr
    assert f"Wrote {output} (" in done.stderr
    assert len(parse(output).of("cuda_api")) == 7


@pytest.mark.parametrize("first_ns", [-1, -(2**62)])
def test_a_negative_time_is_refused(tmp_path: Path, first_ns: int) -> None:
    run = make_run(tmp_path, cuda_api=[call(first_ns, 7, "cudaLaunchKernel", "launch")])
    with pytest.raises(CctraceError, match=rf"negative time, {first_ns} ns \(_trace") as raised:
        exported(run)
    assert (raised.value.exit_code, bool(raised.value.hint)) == (4, True)


def test_a_negative_start_is_refused_and_a_negative_date_left_out(tmp_path: Path) -> None:
    clocks = {"start": Anchor(0, -5, 0), "stop": Anchor(7, 2, 7)}
    trace = exported(make_run(tmp_path, manifest=clocks))
    assert [len(clocks) for clocks in trace.clocks] == [2, 3]
    early = make_run(tmp_path, "early", manifest={"start": Anchor(-1, 5, -1)})
    with pytest.raises(CctraceError, match="negative time, -1 ns"):
        exported(early)


def test_two_runs_are_refused(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path, "other")
    output = tmp_path / "out.pftrace"
    arguments = ["export", str(run), str(other), "--format", "perfetto", "-o", str(output)]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert isinstance(done.exception, CctraceError)
    assert done.exception.exit_code == 2
    assert not output.exists()
