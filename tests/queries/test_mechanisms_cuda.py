"""Reports on what launches and waits cost, over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mechanism_rows import (
    LAUNCH_BORDER,
    MS,
    US,
    answers,
    call,
    copy,
    first,
    launch,
    rows,
    steps,
    wait,
)
from query_rows import Row
from runs import make_run

from cctrace.store.manifest import Source

if TYPE_CHECKING:
    from pathlib import Path

REPORTS = (
    "async_copies_that_block",
    "collective_toll",
    "copy_toll_by_size",
    "eager_vs_graph",
    "launch_toll",
    "launch_wait_toll",
    "pinned_inversion",
    "small_alloc_copy",
)


@pytest.mark.parametrize("report", REPORTS)
def test_an_empty_run_is_unknown_and_says_why(tmp_path: Path, report: str) -> None:
    for row in rows(make_run(tmp_path), report):
        assert (row["run"], row["answer"]) == ("run", "unknown")
        assert len(row["evidence"]) >= len("no steps were found")


@pytest.mark.parametrize("report", REPORTS)
def test_every_run_of_several_has_its_rows(tmp_path: Path, report: str) -> None:
    busy = [launch(number * MS, 26 * US) for number in range(23)]
    runs = [
        make_run(tmp_path, "a"),
        make_run(tmp_path, "b", cuda_api=busy),
        make_run(tmp_path, "c"),
    ]
    found = rows(runs, report)
    assert [*dict.fromkeys(row["run"] for row in found)] == ["a", "b", "c"]


@pytest.mark.parametrize("report", REPORTS)
def test_calls_that_never_returned_or_are_inside_others_decide_nothing(
    tmp_path: Path, report: str
) -> None:
    """A run of nothing else is unknown, or has no pairs to speak of."""
    odd: list[Row] = []
    for number in range(29):
        at = number * MS
        odd += [
            launch(at, None),
            wait(at, None),
            call(at + 1, 26 * US, "cuLaunchKernel", depth=1),
            copy(at + 2, None, "d2h", 64),
            copy(at + 3, 9 * US, "h2d", 64, depth=1),
            call(at + 4, None, "ncclAllReduce"),
        ]
    expected = "no" if report == "small_alloc_copy" else "unknown"  # no memory was allocated
    assert first(make_run(tmp_path, cuda_api=odd), report)["answer"] == expected


def counted(ts_ns: int, api: str, lengths: dict[int, int], **more: Any) -> Row:
    """A window of a second of launches counted in the kernel: calls by length."""
    histogram = [0] * 40
    for dur_ns, calls in lengths.items():
        histogram[dur_ns.bit_length() - 1] += calls
    return {
        "ts_ns": ts_ns,
        "window_ns": 1000 * MS,
        "api": api,
        "calls": sum(lengths.values()),
        "total_ns": sum(dur_ns * calls for dur_ns, calls in lengths.items()),
        "max_ns": max(lengths),
        "histogram": histogram,
        "stream": 7,
        **more,
    }


class TestLaunchToll:
    """7.4 us a launch without CC, 26 us with; the border is 13.871 us."""

    @pytest.mark.parametrize(
        ("median_ns", "answer"),
        [(7_400, "no"), (LAUNCH_BORDER, "no"), (LAUNCH_BORDER + 1, "yes"), (26_000, "yes")],
    )
    def test_the_border_is_the_geometric_mean(
        self, tmp_path: Path, median_ns: int, answer: str
    ) -> None:
        # GIVEN 23 launches, 11 of them shorter and 11 longer than the median
        lengths = [1 * US] * 11 + [median_ns] + [500 * US] * 11
        calls = [launch(number * MS, dur_ns) for number, dur_ns in enumerate(lengths)]
        row = first(make_run(tmp_path, cuda_api=calls), "launch_toll")
        assert (row["answer"], row["p50_ns"], row["calls"]) == (answer, median_ns, 23)
        assert row["ratio"] == pytest.approx(median_ns / 7_400)
        assert f"{median_ns / 1000:.1f} us" in row["evidence"]

    def test_failed_and_open_calls_are_counted_apart(self, tmp_path: Path) -> None:
        calls = [launch(number * MS, 26 * US) for number in range(23)]
        calls += [launch(50 * MS + n, 1, result=700) for n in range(3)]
        calls += [launch(60 * MS + n, None) for n in range(2)]
        row = first(make_run(tmp_path, cuda_api=calls), "launch_toll")
        assert (row["answer"], row["calls"]) == ("yes", 23)
        assert (row["errors"], row["open_calls"]) == (3, 2)
        assert (row["p50_ns"], row["total_ns"]) == (26_000, 23 * 26_000)

    def test_what_the_probes_add_is_taken_off(self, tmp_path: Path) -> None:
        source = Source("cuda", "attached", detail={"probe_ns": 6_000.0})
        calls = [launch(number * MS, 14 * US) for number in range(23)]
        run = make_run(tmp_path, manifest={"sources": [source]}, cuda_api=calls)
        row = first(run, "launch_toll")
        assert (row["answer"], row["p50_ns"]) == ("no", 8_000)
        unknown = first(make_run(tmp_path, "unknown", cuda_api=calls), "launch_toll")
        assert (unknown["answer"], unknown["p50_ns"]) == ("yes", 14_000)
        assert unknown["evidence"].endswith("; what the tracer adds is not known")
        assert "tracer" not in row["evidence"]

    def test_a_gpu_has_its_own_figures(self, tmp_path: Path) -> None:
        """Hopper: 7.4 and 14.8 us, so that 12 us lie beyond the border of 10.5 us."""
        calls = [launch(number * MS, 12 * US) for number in range(23)]
        hopper, blackwell = (
            make_run(
                tmp_path,
                name,
                manifest={"host": {"gpu": {"cc_state": "on", "devices": [{"name": gpu}]}}},
                cuda_api=calls,
            )
            for name, gpu in (("hopper", "NVIDIA H100 80GB HBM3"), ("blackwell", "NVIDIA B200"))
        )
        assert answers([hopper, blackwell], "launch_toll") == {"hopper": "yes", "blackwell": "no"}
        assert first(hopper, "launch_toll")["family"] == "h200"

    def test_launches_counted_in_the_kernel(self, tmp_path: Path) -> None:
        """Of both layers one counts; its median is the mean, within its power of two."""
        run = make_run(
            tmp_path,
            cuda_launches=[
                counted(0, "cudaLaunchKernel", {25_000: 60, 1_000_000: 1}),
                counted(0, "cuLaunchKernel", {24_000: 60, 1_000_000: 1}),
            ],
        )
        [row] = rows(run, "launch_toll")
        assert (row["answer"], row["layer"], row["calls"]) == ("yes", "runtime", 61)
        # The mean, 40,984 ns, is beyond the median's bucket [16,384, 32,768).
        assert (row["is_estimate"], row["p50_ns"], row["p90_ns"]) == (True, 32_768, 32_768)
        assert row["total_ns"] == 60 * 25_000 + 1_000_000

    def test_graphs_decide_where_no_kernels_are_launched(self, tmp_path: Path) -> None:
        graphs = [call(number * MS, 27 * US, "cudaGraphLaunch") for number in range(23)]
        functions = [call(n * MS, 1, "cudaLaunchHostFunc") for n in range(23)]
        row = first(make_run(tmp_path, cuda_api=graphs + functions), "launch_toll")
        assert (row["answer"], row["class"]) == ("yes", "graph")
        assert "assumed as for a kernel's launch" in row["evidence"]

    def test_launches_before_the_first_step_are_captured_ones(self, tmp_path: Path) -> None:
        shift = 500 * MS
        captured = [launch(number * 1_000, 300) for number in range(101)]
        made = [launch(shift + number * MS, 26 * US) for number in range(23)]
        nvtx = [{**row, "ts_ns": row["ts_ns"] + shift} for row in steps(23, MS)]
        run = make_run(tmp_path, cuda_api=captured + made, nvtx=nvtx)
        row = first(run, "launch_toll")
        assert (row["answer"], row["calls"], row["role"]) == ("yes", 23, "driver")

    def test_too_few_are_unknown(self, tmp_path: Path) -> None:
        calls = [launch(number * MS, 26 * US) for number in range(19)]
        run = make_run(tmp_path, cuda_api=calls)
        row = first(run, "launch_toll")
        assert row["answer"] == "unknown"
        assert row["evidence"] == (
            "19 launches that returned were recorded, and 20 of one kind are needed"
        )
        assert first(run, "launch_toll", min_calls=19)["answer"] == "yes"


class TestLaunchWaitToll:
    """14 us for launch and wait without CC, 55 us with; the border is 27.7 us."""

    @staticmethod
    def pairs(launch_ns: int, wait_ns: int, count: int = 11) -> list[Row]:
        """A launch, 1 us, and its wait, each pair on an idle stream but the first."""
        found: list[Row] = []
        for number in range(count):
            found.append(launch(number * MS, launch_ns, correlation_id=number))
            found.append(wait(number * MS + launch_ns + 1_000, wait_ns))
        return found

    @pytest.mark.parametrize(
        ("launch_ns", "wait_ns", "answer"),
        [
            (7_000, 6_000, "no"),
            (7_000, 19_000, "no"),  # 27.0 us
            (26_000, 28_000, "yes"),
            (26_000, 83_000, "yes"),  # 110 us: twice the figure with CC
            (26_000, 84_000, "unknown"),  # what is longer may be the device's work
            (7_000, 28_000, "unknown"),  # the launch costs what it does without CC
        ],
    )
    def test_what_is_not_observed(
        self, tmp_path: Path, launch_ns: int, wait_ns: int, answer: str
    ) -> None:
        run = make_run(tmp_path, cuda_api=self.pairs(launch_ns, wait_ns))
        row = first(run, "launch_wait_toll")
        assert row["answer"] == answer
        # Nothing is known of the stream before the first pair.
        assert (row["pairs"], row["pairs_queued"]) == (10, 1)
        assert row["elapsed_p10_ns"] == launch_ns + 1_000 + wait_ns

    @pytest.mark.parametrize(("work_ns", "answer"), [(100_000, "yes"), (140_000, "no")])
    def test_the_devices_work_is_taken_off(self, tmp_path: Path, work_ns: int, answer: str) -> None:
        """151 us less 100 us of work, and 2 us for an empty kernel, are 53 us."""
        activity = [
            {"ts_ns": n * MS, "dur_ns": work_ns, "class": "kernel", "correlation_id": n}
            for n in range(11)
        ]
        run = make_run(tmp_path, cuda_api=self.pairs(26_000, 124_000), gpu_activity=activity)
        row = first(run, "launch_wait_toll")
        assert (row["answer"], row["timed_pairs"]) == (answer, 10)
        assert row["net_p50_ns"] == 151_000 - work_ns + 2_000

    def test_a_wait_for_something_else_is_no_pair(self, tmp_path: Path) -> None:
        calls: list[Row] = []
        for number in range(11):
            at = number * 10 * MS
            calls += [launch(at, 26 * US), wait(at + MS, 9 * US, stream=8)]
            calls += [launch(at + 2 * MS, 26 * US), call(at + 3 * MS, 500, "cudaStreamQuery")]
            calls += [launch(at + 4 * MS, 26 * US), call(at + 5 * MS, 900, "cudaEventRecord")]
            calls += [wait(at + 6 * MS, 9 * US, tid=101)]
        row = first(make_run(tmp_path, cuda_api=calls), "launch_wait_toll")
        assert (row["answer"], row["launch_api"]) == ("unknown", None)
        assert row["evidence"] == "no launch was followed at once by a wait for its stream"

    def test_launches_behind_work_are_left_out(self, tmp_path: Path) -> None:
        calls: list[Row] = []
        for number in range(11):
            at = number * 10 * MS
            calls += [launch(at, 26 * US), launch(at + MS, 26 * US), wait(at + 2 * MS, 9 * US)]
        row = first(make_run(tmp_path, cuda_api=calls), "launch_wait_toll")
        assert (row["answer"], row["pairs"], row["pairs_queued"]) == ("unknown", 0, 11)

    def test_equal_timestamps(self, tmp_path: Path) -> None:
        """A clock as coarse as the calls: the shorter of two that start together is first."""
        calls = [row for n in range(11) for row in (launch(n * MS, 0), wait(n * MS, 9 * US))]
        row = first(make_run(tmp_path, cuda_api=calls), "launch_wait_toll")
        assert (row["pairs"], row["elapsed_p50_ns"], row["answer"]) == (10, 9_000, "no")


class TestEagerVsGraph:
    """Graphs pay where the launches are much of a step that hardly waits."""

    @staticmethod
    def loop(kernels: int, each_ns: int, wait_ns: int, **more: Any) -> dict[str, Any]:
        """Eleven steps of 4 ms, the last without a length: launches, then a wait."""
        calls: list[Row] = []
        for number in range(11):
            at = number * 4 * MS
            calls += [launch(at + n * 30_000, each_ns, **more) for n in range(kernels)]
            calls.append(wait(at + kernels * 30_000, wait_ns, **more))
        last = {"ts_ns": 40 * MS, "dur_ns": None, "name": "step", "domain": "loop"}
        return {"cuda_api": calls, "nvtx": [*steps(10, 4 * MS, "decode"), last]}

    def test_a_loop_that_waits_for_launches(self, tmp_path: Path) -> None:
        row = first(make_run(tmp_path, **self.loop(100, 26_000, 5_000)), "eager_vs_graph")
        assert (row["answer"], row["is_launch_bound"]) == ("yes", True)
        assert (row["steps"], row["phase"], row["engine"]) == (10, "decode", "loop")
        assert (row["launches_per_step"], row["graphs_per_step"]) == (100, 0)
        assert (row["launch_ns_per_step"], row["period_ns"]) == (2_600_000, 4_000_000)
        assert row["ratio"] == 0.65
        assert row["saved_ns"] == 99 * 26_000
        assert "up to 2,574.0 us" in row["evidence"]

    def test_a_loop_that_waits_for_the_device(self, tmp_path: Path) -> None:
        row = first(make_run(tmp_path, **self.loop(100, 7_400, 900_000)), "eager_vs_graph")
        assert (row["answer"], row["is_launch_bound"]) == ("no", False)
        assert "the device does not keep up" in row["evidence"]
        assert row["wait_ns_per_step"] == pytest.approx(898_000, abs=1_000)  # less its toll

    def test_launches_that_wait_for_room_in_a_full_queue(self, tmp_path: Path) -> None:
        """Ten of a step's hundred take 200 us: what is beyond 4 times 7.4 us is a wait."""
        content = self.loop(100, 7_400, 1_600)
        for number, row in enumerate(content["cuda_api"]):
            if row["class"] == "launch" and number % 101 >= 90:
                row["dur_ns"] = 200_000
        row = first(make_run(tmp_path, **content), "eager_vs_graph")
        assert row["answer"] == "no"
        assert row["launch_ns_per_step"] == pytest.approx(90 * 7_400 + 10 * 29_600, rel=0.001)
        assert row["wait_ns_per_step"] == pytest.approx(10 * 170_400, rel=0.001)

    def test_a_loop_of_graphs(self, tmp_path: Path) -> None:
        content = self.loop(3, 26_000, 3_000_000)
        content["cuda_api"] += [
            call(number * 4 * MS + 3_500_000, 26_000, "cudaGraphLaunch") for number in range(10)
        ]
        row = first(make_run(tmp_path, **content), "eager_vs_graph")
        assert (row["answer"], row["graphs_per_step"]) == ("no", 1)
        assert (row["launch_ns_per_step"], row["saved_ns"]) == (104_000, 52_000)
        assert row["evidence"].endswith("one graph instead would save 52.0 us at most")

    def test_launches_counted_in_the_kernel_are_spread_over_their_window(
        self, tmp_path: Path
    ) -> None:
        """Over the 40 ms of ten steps, 40 of a second's 25,000."""
        content = self.loop(0, 0, 5_000)
        window = counted(0, "cuLaunchKernel", {26_000: 25_000})
        row = first(make_run(tmp_path, **content, cuda_launches=[window]), "eager_vs_graph")
        assert (row["answer"], row["is_estimate"]) == ("yes", True)
        assert row["launches_per_step"] == pytest.approx(100)
        assert row["launch_ns_per_step"] == pytest.approx(2_600_000)

    def test_a_worker_belongs_to_the_loop_of_its_engine(self, tmp_path: Path) -> None:
        """The launching process has no steps of its own."""
        content = self.loop(100, 26_000, 5_000, pid=300, tid=301)
        row = first(make_run(tmp_path, **content), "eager_vs_graph")
        assert (row["answer"], row["pid"], row["tid"]) == ("yes", 300, 301)

    def test_failed_launches_are_left_out_and_phases_kept_apart(self, tmp_path: Path) -> None:
        content = self.loop(100, 26_000, 5_000)
        for row in content["nvtx"][:3]:
            row["category"] = "prefill"
        for odd in range(1, 100, 2):  # of the first step's hundred
            content["cuda_api"][odd] |= {"dur_ns": None} if odd < 50 else {"result": 700}
        found = {row["phase"]: row for row in rows(make_run(tmp_path, **content), "eager_vs_graph")}
        assert (found["decode"]["steps"], found["prefill"]["steps"]) == (7, 3)
        # 25 never returned and 25 failed.
        assert found["prefill"]["launches_per_step"] == pytest.approx(250 / 3)

    @pytest.mark.parametrize("count", [0, 1, 4])
    def test_few_steps_are_unknown(self, tmp_path: Path, count: int) -> None:
        calls = [launch(number * 30_000, 26_000) for number in range(100)]
        run = make_run(tmp_path, cuda_api=calls, nvtx=steps(count, 4 * MS))
        row = first(run, "eager_vs_graph")
        assert row["answer"] == "unknown"
        assert str(count or "no steps") in row["evidence"]
