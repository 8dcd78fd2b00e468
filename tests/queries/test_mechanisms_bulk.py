"""Reports on loading, restores and passes of a step, over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bulk_rows import (
    MB,
    MIB,
    MS,
    T0,
    S,
    call,
    copy,
    found,
    launch,
    only,
    readback,
    step,
    steps,
    wait,
)
from query_rows import Row
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

# model_load


def test_a_load_that_waits_for_its_copies(tmp_path: Path) -> None:
    # GIVEN a load of 2.2 s before the first step at 10 s: 1 GB in 1.5 s by one thread, with a
    # small copy in between, and 0.5 GB in 1 s of which 0.5 s are at the same time
    load = [
        copy(2 * S, 1500 * MS, 1000 * MB),
        copy(3500 * MS, 100, 4096),
        copy(3000 * MS, 1000 * MS, 500 * MB, tid=101, host_memory="pinned"),
        copy(4200 * MS - 100, 100, 2 * MB, pid=200, tid=200),
    ]
    others = [
        copy(1 * S, 50 * MS, 4096),  # set-up, before any large one
        copy(5 * S, 50 * MS, 4096),  # and after the last
        copy(2500 * MS, None, 700 * MB, tid=103),  # never returned
        copy(2500 * MS, 90 * MS, 700 * MB, tid=104, result=2),  # failed
        readback(2100 * MS, 900 * MS, tid=105),
        copy(10 * S, 2 * S, 900 * MB),  # in the first step
    ]
    run = make_run(tmp_path, nvtx=[step(10 * S, 3 * S)], cuda_api=load + others)
    # WHEN
    row = only(run, "model_load")
    # THEN: covered from 2.0 to 4.0 s (the two overlap by 0.5 s, the small one lies in the
    # second) and for the last 100 ns
    assert row["answer"] == "yes"
    assert row["copies"] == 4
    assert row["bytes"] == 1502 * MB + 4096
    assert row["window_ns"] == 2200 * MS
    assert row["covered_ns"] == 2 * S + 100
    assert row["covered_ratio"] == pytest.approx(2.0000001 / 2.2)
    assert row["gb_per_s"] == pytest.approx(1.502004096 / 2.0000001)
    assert row["load_gb_per_s"] == pytest.approx(1.502004096 / 2.2)
    assert row["mean_at_once"] == pytest.approx((1.5 + 1 + 2e-7) / 2.0000001)
    # The small one begins at the moment at which the first ends.
    assert row["max_at_once"] == 2
    assert (row["processes"], row["threads"]) == (2, 3)
    assert (row["pinned_bytes"], row["pageable_bytes"]) == (500 * MB, 1002 * MB + 4096)
    assert row["first_ns"] == 2 * S
    assert row["evidence"] == (
        "1.50 GB in 4 copies before the first step: a copy was under way for 2.00 s of the "
        "2.20 s from the first to the last (91%), at 0.8 GB/s, 1.3 at once on average, from "
        "3 thread(s) of 2 process(es)"
    )


def test_copies_that_return_at_once_are_waited_for(tmp_path: Path) -> None:
    # GIVEN asynchronous copies, waited for at once or after a launch, and a query
    run = make_run(
        tmp_path,
        nvtx=[step(10 * S, S)],
        cuda_api=[
            copy(2 * S, 10, 100 * MB),
            wait(2 * S + 20, 400 * MS),
            copy(3 * S, 10, 100 * MB),
            call(3 * S + 15, 100 * MS, "cudaStreamQuery", "sync"),
            launch(3200 * MS),
            wait(3300 * MS, 600 * MS),  # for the launch as well: not the copy's alone
        ],
    )
    row = only(run, "model_load")
    assert row["covered_ns"] == 10 + 400 * MS + 10
    assert row["window_ns"] == S + 10
    assert (row["answer"], row["copies"], row["max_at_once"]) == ("no", 2, 1)


def test_copies_whose_end_nobody_sees(tmp_path: Path) -> None:
    # GIVEN asynchronous copies that nobody waits for, 700 MB in 20 us
    calls = [copy(2 * S + i * S, 10_000, 350 * MB) for i in range(2)]
    gpu = {"class": "copy", "copy_kind": "h2d", "size_bytes": 350 * MB}
    device = [gpu | {"ts_ns": 2 * S + i * S + 5000, "dur_ns": 700 * MS} for i in range(2)]
    nvtx = [step(10 * S, S)]
    row = only(make_run(tmp_path, "a", nvtx=nvtx, cuda_api=calls), "model_load")
    assert (row["answer"], row["gb_per_s"], row["covered_ns"]) == ("unknown", None, 20_000)
    assert row["evidence"].endswith("how long the device copied is not known")
    # WHEN the device tells itself, the last copy ends after its call
    more = [
        gpu | {"ts_ns": 2 * S + 100 * MS, "dur_ns": 50 * MS, "copy_kind": "d2h"},
        gpu | {"ts_ns": 2 * S - 1, "dur_ns": 50 * MS},
        gpu | {"ts_ns": 4 * S, "dur_ns": 50 * MS, "size_bytes": 4096},
        gpu | {"ts_ns": 11 * S, "dur_ns": S},
    ]
    run = make_run(tmp_path, "b", nvtx=nvtx, cuda_api=calls, gpu_activity=device + more)
    row = only(run, "model_load")
    assert (row["answer"], row["covered_ns"]) == ("yes", 1400 * MS)
    assert row["window_ns"] == 1700 * MS + 5000
    assert row["gb_per_s"] == pytest.approx(0.5)
    assert (row["max_at_once"], row["mean_at_once"]) == (1, 1.0)


def test_what_is_too_little_or_has_no_end_is_no_load(tmp_path: Path) -> None:
    big = copy(2 * S, S, 100 * MB)
    cases: dict[str, tuple[list[Row], list[Row], str]] = {
        "little": (
            [step(9 * S, S)],
            [copy(2 * S, S, 50 * MB)],
            "50.0 MB were copied to the device",
        ),
        "late": ([step(T0, S)], [big], "no copy of 1 MiB or more to the device came before"),
        "stepless": ([], [big], "no steps were found"),
        "loading": ([step(T0, 9 * S, "model_load")], [big], "no steps were found"),
    }
    for name, (nvtx, calls, evidence) in cases.items():
        row = only(make_run(tmp_path, name, nvtx=nvtx, cuda_api=calls), "model_load")
        assert row["answer"] == "unknown", name
        assert row["evidence"].startswith(evidence), name
    # What is known is shown all the same.
    assert only(tmp_path / "stepless", "model_load")["bytes"] == 100 * MB
    # A step that loads is part of the load.
    both = [step(T0, 3 * S, "model_load"), step(9 * S, S)]
    run = make_run(tmp_path, "both", nvtx=both, cuda_api=[big])
    assert only(run, "model_load")["answer"] == "yes"
    row = only(run, "model_load", min_bytes=200 * MB)
    assert (row["answer"], row["bytes"]) == ("unknown", 100 * MB)


# kv_restore


def test_bursts_between_steps_are_restores(tmp_path: Path) -> None:
    # GIVEN 10 steps of 100 ms; a burst of two copies 10 ms apart, of which a third is 1 ns too
    # far; one in another process at the same time; copies that are too small or too few
    burst = [
        copy(T0 + 200 * MS, 20 * MS, 10 * MIB),
        copy(T0 + 230 * MS, 20 * MS, 6 * MIB, host_memory="pinned"),
        copy(T0 + 240 * MS, 30 * MS, 16 * MIB, pid=200, tid=200),
    ]
    others = [
        copy(T0 + 260 * MS + 1, 5 * MS, 15 * MIB),
        *[copy(T0 + 400 * MS + i * 10, 1, 65_535) for i in range(300)],
        copy(T0 - 10, 20, 100 * MIB),  # before the first step
        copy(T0 + S, 20, 100 * MIB),  # after the last
        readback(T0 + 500 * MS, 90 * MS) | {"size_bytes": 100 * MIB},
        copy(T0 + 600 * MS, None, 100 * MIB),
    ]
    run = make_run(tmp_path, nvtx=steps(T0, 100 * MS, 10), cuda_api=burst + others)
    row = only(run, "kv_restore")
    # THEN: from 200 to 220, and from 230 to 270 ms, in 1 s
    assert row["answer"] == "yes"
    assert (row["steps"], row["restore_steps"], row["serving_ns"]) == (10, 0, S)
    assert (row["bursts"], row["copies"], row["bytes"]) == (2, 3, 32 * MIB)
    assert row["covered_ns"] == 60 * MS
    assert row["covered_ratio"] == pytest.approx(0.06)
    assert row["gb_per_s"] == pytest.approx(32 * MIB / (60 * MS))
    assert (row["max_burst_bytes"], row["max_burst_ns"]) == (16 * MIB, 50 * MS)
    assert (row["pinned_bytes"], row["pageable_bytes"]) == (6 * MIB, 26 * MIB)
    assert row["first_ns"] == T0 + 200 * MS
    assert row["evidence"] == (
        "2 burst(s) moved 0.03 GB to the device in 60.0 ms of copies, 6.0% of the 1.00 s of "
        "serving, at 0.6 GB/s; the longest took 50.0 ms"
    )
    assert only(run, "kv_restore", min_ratio=0.07)["answer"] == "no"
    assert only(run, "kv_restore", max_gap_ns=10 * MS + 1)["copies"] == 4


def test_steps_that_restore_count_whatever_they_copy(tmp_path: Path) -> None:
    # GIVEN a step that says so, with small copies; the same in training and in decode
    phases = [step(T0, S, "decode"), step(T0 + S, S, "kv_restore"), step(T0 + 2 * S, S, "train")]
    calls = [copy(T0 + at * S + i * 30 * MS, 25 * MS, 1000) for at in (0, 1) for i in range(10)]
    calls.append(copy(T0 + 2 * S + 5, 100 * MS, 100 * MIB))
    run = make_run(tmp_path, nvtx=phases, cuda_api=calls)
    row = only(run, "kv_restore")
    assert (row["answer"], row["steps"], row["restore_steps"]) == ("yes", 2, 1)
    assert (row["copies"], row["bytes"], row["covered_ns"]) == (10, 10_000, 250 * MS)
    assert row["covered_ratio"] == pytest.approx(0.125)


def test_no_bursts_is_an_answer_and_no_steps_none(tmp_path: Path) -> None:
    inputs = [copy(T0 + i * MS, 10, 4096) for i in range(7)]
    row = only(make_run(tmp_path, "a", nvtx=steps(T0, MS, 7), cuda_api=inputs), "kv_restore")
    assert row["answer"] == "no"
    assert row["evidence"] == "in 7 steps there was no burst of 16.8 MB or more to the device"
    assert row["max_burst_bytes"] is None
    row = only(make_run(tmp_path, "b", cuda_api=inputs), "kv_restore")
    assert (row["answer"], row["evidence"][:36]) == (
        "unknown",
        "no steps that serve were found, so t",
    )
    # One step that never ended has no length.
    row = only(make_run(tmp_path, "c", nvtx=[step(T0, None)], cuda_api=inputs), "kv_restore")
    assert (row["answer"], row["evidence"]) == ("unknown", "the only step has no length")


# speculative_crossings


def passes(ts_ns: int, count: int, **more: Any) -> list[Row]:
    """A step that goes to the device and back ``count`` times, each in 1 ms."""
    rows = [copy(ts_ns, 1000, 256, **more), wait(ts_ns + 1500, 500, **more)]
    for at in range(ts_ns + 2000, ts_ns + 2000 + count * MS, MS):
        rows += [
            call(at, 2000, "cudaGraphLaunch", "graph", **more),
            launch(at + 3000, **more),
            readback(at + 10_000, 600_000, **more),
            readback(at + 700_000, 100_000, **more),  # nothing new was submitted
            call(at + 850_000, 50_000, "cudaEventQuery", "sync", **more),
        ]
    return rows


def test_round_trips_of_a_step(tmp_path: Path) -> None:
    # GIVEN a prefill of one trip, and decode steps of 3, 3, 3, 3 and 2
    trips = (1, 3, 3, 3, 3, 2)
    nvtx = [step(T0 + i * 10 * MS, 9 * MS, "decode" if i else "prefill") for i in range(6)]
    nvtx.append(step(T0 + 60 * MS, None))  # the end of the last period
    calls = [row for i, count in enumerate(trips) for row in passes(T0 + i * 10 * MS, count)]
    decode, prefill = found(make_run(tmp_path, nvtx=nvtx, cuda_api=calls), "speculative_crossings")
    # THEN a wait for an upload, a second readback and a query are no trips
    assert decode["answer"] == prefill["answer"] == "yes"
    assert (decode["phase"], decode["steps"]) == ("decode", 5)
    assert (decode["trips_p50"], decode["trips_max"]) == (3, 3)
    assert decode["trips_mean"] == pytest.approx(14 / 5)
    assert decode["readbacks"] == pytest.approx(28 / 5)
    assert decode["graphs"] == decode["launches"] == pytest.approx(14 / 5)
    assert decode["crossings"] == pytest.approx((14 * 5 + 5 * 2) / 5)
    # Readbacks 0.7 ms, the query 0.05 ms a trip, and the wait for the upload once a step.
    assert decode["blocked_ns"] == pytest.approx((14 * 750_000 + 5 * 500) / 5)
    assert decode["trip_ns"] == pytest.approx((14 * 750_000 + 5 * 500) / 14)
    assert decode["blocked_ratio"] == pytest.approx(decode["blocked_ns"] / (10 * MS))
    assert decode["counted"] is False
    assert (prefill["phase"], prefill["steps"], prefill["trips_p50"]) == ("prefill", 1, 1)
    assert decode["evidence"] == (
        "a decode step waits for the device 3 times in the median (2.80 on average of 5 steps), "
        "for 2100.5 us in all of its 10000.0 us"
    )


def test_one_trip_is_plain_decoding(tmp_path: Path) -> None:
    # GIVEN a loop whose readback is drained by another thread, during the next step's launches
    nvtx = steps(T0, 10 * MS, 7)
    calls: list[Row] = []
    for at in range(T0, T0 + 70 * MS, 10 * MS):
        calls += [launch(at + 1000), launch(at + 7000), readback(at + 20_000, 9_985_000, tid=101)]
    row = only(make_run(tmp_path, "a", nvtx=nvtx, cuda_api=calls), "speculative_crossings")
    assert (row["answer"], row["trips_p50"], row["trips_max"]) == ("no", 1, 1)
    # An asynchronous copy that returns at once waits for nothing; the wait behind it does.
    calls = []
    for at in range(T0, T0 + 70 * MS, 10 * MS):
        calls += [launch(at + 1000), readback(at + 9000, 29_999), launch(at + 50_000)]
        calls.append(wait(at + 60_000, 5 * MS))
    run = make_run(tmp_path, "b", nvtx=nvtx, cuda_api=calls)
    assert only(run, "speculative_crossings")["trips_p50"] == 1
    row = only(run, "speculative_crossings", min_wait_ns=29_999)
    assert (row["answer"], row["trips_p50"]) == ("yes", 2)
    few = only(run, "speculative_crossings", min_steps=8)
    assert (few["answer"], few["trips_p50"]) == ("unknown", 1)
    assert few["evidence"] == "7 steps with crossings were found, and 8 are needed"


def test_workers_belong_to_the_steps_of_the_only_loop(tmp_path: Path) -> None:
    # GIVEN steps in one process and the crossings in two others, one of them busier
    nvtx = steps(T0, 10 * MS, 5)
    calls = []
    for at in range(T0, T0 + 50 * MS, 10 * MS):
        calls += passes(at, 1, pid=200, tid=200) + passes(at, 2, pid=300, tid=300)
    run = make_run(tmp_path, "a", nvtx=nvtx, cuda_api=calls)
    row = only(run, "speculative_crossings")
    assert (row["steps"], row["trips_p50"], row["trips_max"]) == (5, 2, 2)
    # With two loops it is not known whose they are.
    two = nvtx + [r | {"pid": 400, "tid": 400} for r in nvtx]
    row = only(make_run(tmp_path, "b", nvtx=two, cuda_api=calls), "speculative_crossings")
    assert (row["answer"], row["steps"]) == ("unknown", 0)
    assert row["evidence"] == "no step but of prefill, training or copies has crossings"


def test_trips_where_launches_are_counted(tmp_path: Path) -> None:
    # GIVEN steps of which the launches were counted in the kernel
    calls: list[Row] = []
    for at in range(T0, T0 + 50 * MS, 10 * MS):
        for begin in (at, at + 4 * MS):
            calls += [copy(begin + 1000, 500, 64), readback(begin + 2000, MS)]
    window = {
        "ts_ns": T0,
        "window_ns": 50 * MS,
        "api": "cudaLaunchKernel",
        "stream": 7,
        "calls": 101,
        "total_ns": 101_000,
        "max_ns": 2000,
        "histogram": [0] * 10 + [101] + [0] * 29,
    }
    nvtx = steps(T0, 10 * MS, 5)
    run = make_run(tmp_path, nvtx=nvtx, cuda_api=calls, cuda_launches=[window])
    row = only(run, "speculative_crossings")
    assert (row["answer"], row["trips_p50"], row["counted"]) == ("yes", 2, True)
    assert row["launches"] == 0
    # With no copy between two readbacks it is not known whether launches are.
    calls = [row for row in calls if row["copy_kind"] == "d2h" or row["ts_ns"] % (10 * MS) == 1000]
    run = make_run(tmp_path, "b", nvtx=nvtx, cuda_api=calls, cuda_launches=[window])
    row = only(run, "speculative_crossings")
    assert (row["answer"], row["trips_p50"], row["readbacks"]) == ("unknown", 1, 2)
    assert row["evidence"].startswith("a decode step reads back 2.0 times, but launches were")
