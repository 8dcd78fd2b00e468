"""Reports on what copies and collectives cost, over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mechanism_rows import KIB, MIB, MS, US, answers, call, copy, first, launch, rows, steps, wait
from query_rows import Row
from runs import make_run

from cctrace.store.manifest import Source

if TYPE_CHECKING:
    from pathlib import Path


def gpu(cc_state: str, name: str = "NVIDIA B300 SXM6 AC") -> dict[str, Any]:
    """A manifest that tells the GPU and its mode."""
    return {"host": {"gpu": {"cc_state": cc_state, "devices": [{"name": name}]}}}


class TestPinnedInversion:
    """Pinned 10 us + 11.1 GB/s and pageable 3.45 us + 15 GB/s under CC; 3.45 us at once without."""

    @staticmethod
    def uploads(
        *, pinned_ns: int, pinned_gb_s: float, sizes: list[int], pageable_factor: float = 1
    ) -> list[Row]:
        """Pinned and pageable copies to the device by turns, a wait behind each."""
        calls: list[Row] = []
        for number in range(60):
            at, size = number * 20 * MS, sizes[number % len(sizes)]
            pinned = pinned_ns + (round(size / pinned_gb_s) if pinned_gb_s else 0)
            calls += [copy(at, pinned, "h2d", size), wait(at + 5 * MS, 1_600)]
            size = round(size * pageable_factor)
            pageable = 3_450 + round(size / 15)
            calls += [
                copy(at + 9 * MS, pageable, "h2d", size, host_memory="pageable"),
                wait(at + 15 * MS, 1_600),
            ]
        return calls

    def test_large_copies_under_cc(self, tmp_path: Path) -> None:
        sizes = [MIB, 4 * MIB, 64]
        calls = self.uploads(pinned_ns=10_000, pinned_gb_s=11.1, sizes=sizes)
        run = make_run(tmp_path, manifest=gpu("on"), cuda_api=calls)
        row = first(run, "pinned_inversion")
        assert (row["answer"], row["copy_kind"], row["compared_with"]) == ("yes", "h2d", "run")
        assert (row["size_bytes"], row["pinned_copies"], row["pageable_copies"]) == (
            4 * MIB,
            20,
            20,
        )
        # 4 MiB at 11.1 and at 15 GB/s
        assert (row["pinned_ns"], row["pageable_ns"]) == (10_000 + 377_865, 3_450 + 279_620)
        assert row["ratio"] == pytest.approx(1.3702, abs=1e-4)
        assert row["evidence"] == (
            "a pinned h2d copy of 4.0 MiB takes the host 387.9 us, 1.37 times what a pageable "
            "one takes (283.1 us)"
        )

    def test_other_sizes_are_compared_by_the_bridge_model(self, tmp_path: Path) -> None:
        """Pageable copies half as large again as the pinned ones."""
        sizes = [n * MIB for n in (1, 2, 4, 8)]
        calls = self.uploads(pinned_ns=10_000, pinned_gb_s=11.1, sizes=sizes, pageable_factor=1.5)
        run = make_run(tmp_path, manifest=gpu("on"), cuda_api=calls)
        row = first(run, "pinned_inversion")
        assert (row["answer"], row["compared_with"], row["size_bytes"]) == ("yes", "run", MIB)
        # (10,000 + 94,466) / (3,450 + 69,905)
        assert row["ratio"] == pytest.approx(1.424, abs=0.05)

    def test_large_copies_without(self, tmp_path: Path) -> None:
        """A pinned copy that returns at once is no slower, however large."""
        sizes = [(1 + n) * MIB for n in range(7)]
        calls = self.uploads(pinned_ns=3_450, pinned_gb_s=0, sizes=sizes)
        run = make_run(tmp_path, manifest=gpu("off"), cuda_api=calls)
        row = first(run, "pinned_inversion")
        assert (row["answer"], row["pinned_ns_per_byte"]) == ("no", 0)
        assert row["pinned_ns"] == 3_450

    def test_small_copies_show_the_toll(self, tmp_path: Path) -> None:
        calls = self.uploads(pinned_ns=10_000, pinned_gb_s=11.1, sizes=[64, 256, 1024])
        run = make_run(tmp_path, manifest=gpu("on"), cuda_api=calls)
        row = first(run, "pinned_inversion")
        assert (row["answer"], row["size_bytes"]) == ("yes", KIB)
        assert row["ratio"] == (10_000 + 92) / (3_450 + 68)

    def test_one_memory_alone_is_compared_with_what_is_published(self, tmp_path: Path) -> None:
        """Only if the mode is known; the other's figures differ by it."""
        calls = self.uploads(pinned_ns=10_000, pinned_gb_s=11.1, sizes=[64, 256, 1024])
        pinned = [row for row in calls if row.get("host_memory") != "pageable"]
        known = make_run(tmp_path, "known", manifest=gpu("on"), cuda_api=pinned)
        unknown = make_run(tmp_path, "unknown", cuda_api=pinned)
        expected = {"known": "yes", "unknown": "unknown"}
        assert answers([known, unknown], "pinned_inversion") == expected
        row = first(known, "pinned_inversion")
        assert (row["compared_with"], row["pageable_copies"]) == ("published", 0)
        assert row["size_bytes"] == 4 * KIB
        assert "published, b300-cc" in row["evidence"]
        assert "one of them alone" in first(unknown, "pinned_inversion")["evidence"]


class TestAsyncCopiesThatBlock:
    """A step: a graph, then the copy of its result, which waits for it or does not."""

    @staticmethod
    def loop(copy_ns: int, sync_ns: int, count: int = 23, **more: Any) -> list[Row]:
        calls: list[Row] = []
        for number in range(count):
            at = number * 10 * MS
            calls += [
                call(at, 7 * US, "cudaGraphLaunch"),
                copy(at + 100 * US, copy_ns, "d2h", 28, **more),
                wait(at + 8 * MS, sync_ns),
            ]
        return calls

    def test_copies_that_wait(self, tmp_path: Path) -> None:
        calls = self.loop(2 * MS, 1_600)
        calls += [copy(900 * MS, None, "d2h", 28), copy(901 * MS, 5, "d2h", 28, result=1)]
        run = make_run(tmp_path, cuda_api=calls)
        row = first(run, "async_copies_that_block")
        assert row["answer"] == "yes"
        assert row["evidence"].startswith(
            "23 of 23 cudaMemcpyAsync d2h (pinned) returned only after the graph before them, "
        )
        assert (row["queued"], row["blocked"], row["ratio"]) == (23, 23, 1.0)
        assert (row["calls"], row["open_calls"], row["errors"]) == (23, 1, 1)
        # 2 ms less the copy's own 10 us, published, for each.
        assert row["blocked_p50_ns"] == pytest.approx(1_990_000, abs=2_000)
        assert row["blocked_ns"] == pytest.approx(23 * 1_990_000, abs=23 * 2_000)
        assert (row["behind_class"], row["is_documented"]) == ("graph", False)

    def test_copies_that_do_not(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, cuda_api=self.loop(3_450, 2 * MS))
        row = first(run, "async_copies_that_block")
        assert (row["answer"], row["queued"], row["blocked"]) == ("no", 23, 0)
        assert row["evidence"] == (
            "0 of 23 asynchronous copies that were queued behind other work waited for it"
        )

    def test_short_waits_are_none(self, tmp_path: Path) -> None:
        """The borders are 30 us, and a copy's own toll."""
        calls = [copy(0, 10 * US, "h2d", 64)]
        for number, wait_ns in enumerate([29_000] * 11 + [31_000] * 6 + [900_000] * 6):
            at = (1 + number) * 10 * MS
            calls += [
                call(at, 7 * US, "cudaGraphLaunch"),
                copy(at + 100 * US, 10_000 + wait_ns, "d2h", 28),
                wait(at + 8 * MS, 1_600),
            ]
        run = make_run(tmp_path, manifest=gpu("on"), cuda_api=calls)
        found = {row["copy_kind"]: row for row in rows(run, "async_copies_that_block")}
        assert (found["d2h"]["queued"], found["d2h"]["blocked"]) == (23, 12)
        assert found["d2h"]["answer"] == "yes"
        params: dict[str, Any] = {"min_wait_ns": 32_000}
        assert first(run, "async_copies_that_block", **params)["answer"] == "no"

    def test_copies_to_pageable_memory_wait_everywhere(self, tmp_path: Path) -> None:
        calls = self.loop(2 * MS, 1_600, host_memory="pageable")
        row = first(make_run(tmp_path, cuda_api=calls), "async_copies_that_block")
        assert (row["answer"], row["is_documented"]) == ("yes", True)
        assert row["evidence"].endswith("to pageable memory they do so without CC too")

    def test_copies_on_idle_streams_say_nothing(self, tmp_path: Path) -> None:
        calls: list[Row] = []
        for number in range(23):
            calls += [wait(number * MS, 1_600), copy(number * MS + 9_000, 10_000, "h2d", 64)]
        row = first(make_run(tmp_path, cuda_api=calls), "async_copies_that_block")
        # Before the first of them, nothing has shown that the stream is idle.
        assert (row["answer"], row["queued"]) == ("unknown", 1)
        assert row["evidence"].startswith("1 of 23 asynchronous copies came when work was queued")

    def test_plain_copies_are_meant_to_wait(self, tmp_path: Path) -> None:
        calls = self.loop(2 * MS, 1_600, api="cudaMemcpy")
        row = first(make_run(tmp_path, cuda_api=calls), "async_copies_that_block")
        assert (row["answer"], row["api"]) == ("unknown", None)

    def test_streams_are_told_apart(self, tmp_path: Path) -> None:
        """Copies that wait for their own stream, at times that overlap another's."""
        calls = self.loop(2 * MS, 1_600)
        for row in self.loop(2 * MS, 1_600):
            calls.append({**row, "ts_ns": row["ts_ns"] + 50 * US, "stream": 8, "tid": 101})
        row = first(make_run(tmp_path, cuda_api=calls), "async_copies_that_block")
        assert (row["answer"], row["behind_class"]) == ("yes", "graph")
        assert sum(r["blocked"] for r in rows(tmp_path / "run", "async_copies_that_block")) == 46


class TestSmallAllocCopy:
    """Some 330 us with CC, 7.5 us without; the border is 49.75 us."""

    @staticmethod
    def pairs(alloc_ns: int, copy_ns: int, count: int = 7) -> list[Row]:
        """In each millisecond an allocation, a copy to it, a launch, a free, and a copy alone."""
        calls: list[Row] = []
        for at in range(0, count * MS, MS):
            calls += [
                call(at, alloc_ns, "cudaMalloc", size_bytes=4 * KIB),
                copy(at + 100 * US, copy_ns, "h2d", 4 * KIB, api="cudaMemcpy"),
                launch(at + 500 * US, 7 * US),
                call(at + 600 * US, 3 * US, "cudaFree"),
                copy(at + 700 * US, 10 * US, "h2d", 64),
                wait(at + 800 * US, 1_600),
            ]
        return calls

    @pytest.mark.parametrize(
        ("copy_ns", "answer"), [(5_500, "no"), (47_700, "no"), (47_800, "yes"), (328_000, "yes")]
    )
    def test_the_border(self, tmp_path: Path, copy_ns: int, answer: str) -> None:
        row = first(make_run(tmp_path, cuda_api=self.pairs(2_000, copy_ns)), "small_alloc_copy")
        assert (row["answer"], row["pairs"], row["freed"]) == (answer, 7, 7)
        assert (row["alloc_p50_ns"], row["copy_p50_ns"]) == (2_000, copy_ns)
        assert (row["pair_p50_ns"], row["free_p50_ns"]) == (2_000 + copy_ns, 3_000)
        assert row["ratio"] == pytest.approx((2_000 + copy_ns) / 7_500)
        assert (row["pairs_per_step"], row["ns_per_step"]) == (None, None)

    def test_what_a_step_pays(self, tmp_path: Path) -> None:
        """Seven pairs, of which six start in the three steps of two milliseconds."""
        content: dict[str, Any] = {"cuda_api": self.pairs(2_000, 328_000), "nvtx": steps(3, 2 * MS)}
        row = first(make_run(tmp_path, **content), "small_alloc_copy")
        assert (row["answer"], row["pairs"], row["pairs_per_step"]) == ("yes", 7, 2.0)
        assert row["ns_per_step"] == 2 * (2_000 + 328_000 + 3_000)
        assert "666.0 us of each step" in row["evidence"]

    def test_what_is_no_pair(self, tmp_path: Path) -> None:
        """Too large, to pinned memory, larger than what was allocated, on another thread."""
        calls: list[Row] = []
        for at in range(0, 70 * MS, 10 * MS):
            calls += [
                call(at, 2_000, "cudaMalloc", size_bytes=MIB),
                copy(at + MS, 9_000, "h2d", 64 * KIB + 1),
                call(at + 2 * MS, 2_000, "cudaHostAlloc", size_bytes=64),
                copy(at + 3 * MS, 9_000, "h2d", 64),
                call(at + 4 * MS, 2_000, "cudaMalloc", size_bytes=63),
                copy(at + 5 * MS, 9_000, "h2d", 64),
                call(at + 6 * MS, 2_000, "cudaMalloc", size_bytes=64),
                copy(at + 7 * MS, 9_000, "h2d", 64, tid=101),
                copy(at + 8 * MS, 9_000, "d2h", 64),
            ]
        row = first(make_run(tmp_path, cuda_api=calls), "small_alloc_copy")
        assert (row["answer"], row["pairs"]) == ("no", 0)
        assert row["evidence"].startswith("none of 21 allocations of device memory was followed")

    def test_sizes_of_nothing_and_not_told_failures_and_open_calls(self, tmp_path: Path) -> None:
        calls: list[Row] = []
        odd: list[Row] = [
            {},
            {"size_bytes": 0},
            {"result": 2},
            {"dur_ns": None},
            {"size_bytes": None},
        ]
        for number, more in enumerate([{}, {}, *odd]):
            at = number * MS
            calls.append(call(at, 2_000, "cudaMalloc"))
            calls.append({**copy(at + 9_000, 328_000, "h2d", 64), **more})
        row = first(make_run(tmp_path, cuda_api=calls), "small_alloc_copy")
        # Nobody knows that a copy without a size is a small one.
        assert (row["pairs"], row["open_calls"], row["errors"]) == (4, 1, 1)
        assert row["freed"] == 0

    def test_two_pairs_are_too_few(self, tmp_path: Path) -> None:
        row = first(make_run(tmp_path, cuda_api=self.pairs(2_000, 328_000, 2)), "small_alloc_copy")
        assert row["answer"] == "unknown"
        assert row["evidence"] == (
            "2 allocations were followed at once by a small copy, and 3 of one kind are needed"
        )


class TestCopyTollBySize:
    """Pinned and asynchronous: 3.45 us without CC, 10 us + bytes / 11.1 GB/s with it."""

    @staticmethod
    def uploads(copy_ns: int, size: int | None, count: int = 23, **more: Any) -> list[Row]:
        calls: list[Row] = []
        for at in range(0, count * MS, MS):
            calls += [copy(at, copy_ns, "h2d", size, **more), wait(at + 900 * US, 1_600)]
        return calls

    @pytest.mark.parametrize(
        ("copy_ns", "answer"), [(3_450, "no"), (5_800, "no"), (6_000, "yes"), (10_000, "yes")]
    )
    def test_small_copies(self, tmp_path: Path, copy_ns: int, answer: str) -> None:
        """The border of 64 bytes is the square root of 3,450 * 10,006: 5,875 ns."""
        run = make_run(tmp_path, manifest=gpu("on"), cuda_api=self.uploads(copy_ns, 64))
        row = first(run, "copy_toll_by_size")
        assert (row["answer"], row["costs_more"]) == (answer, answer == "yes")
        assert (row["size_from_bytes"], row["calls"], row["size_bytes"]) == (64, 23, 23 * 64)
        assert (row["p50_ns"], row["open_ns"], row["cc_ns"]) == (copy_ns, 3_450, 10_006)
        assert row["gb_per_s"] == pytest.approx(64 / copy_ns)
        assert row["timed"] >= 22  # of the first one nothing is known

    def test_classes_are_powers_of_four(self, tmp_path: Path) -> None:
        sizes = [0, 1, 3, 4, 15, 16, 63, 64, 4 * KIB - 1, 4 * KIB, 4 * MIB, None]
        calls = [copy(n * MS, 9_000, "h2d", size) for n, size in enumerate(sizes)]
        found = rows(make_run(tmp_path, cuda_api=calls), "copy_toll_by_size")
        assert [(row["size_from_bytes"], row["calls"]) for row in found] == [
            (0, 1),
            (1, 2),
            (4, 2),
            (16, 2),
            (64, 1),
            (KIB, 1),
            (4 * KIB, 1),
            (4 * MIB, 1),
            (None, 1),
        ]
        assert {row["answer"] for row in found} == {"unknown"}
        assert found[-1]["size_bytes"] is None

    def test_copies_that_wait_for_others_are_not_timed(self, tmp_path: Path) -> None:
        """Nor are first copies into fresh memory, open ones and those that failed."""
        calls = self.uploads(10_000, 64)
        for at in range(100 * MS, 123 * MS, MS):
            calls += [launch(at, 7_000), copy(at + 9_000, 700_000, "h2d", 64)]
            calls += [wait(at + 800 * US, 1_600)]
        for at in range(200 * MS, 223 * MS, MS):
            calls += [call(at, 2_000, "cudaMalloc"), copy(at + 9_000, 320_000, "h2d", 64)]
            calls += [wait(at + 800 * US, 1_600)]
        calls += [copy(300 * MS, None, "h2d", 64), copy(301 * MS, 1, "h2d", 64, result=1)]
        run = make_run(tmp_path, manifest=gpu("on"), cuda_api=calls)
        row = first(run, "copy_toll_by_size")
        assert (row["answer"], row["p50_ns"], row["p99_ns"]) == ("yes", 10_000, 10_000)
        assert (row["calls"], row["open_calls"], row["errors"]) == (69, 1, 1)
        assert 22 <= row["timed"] <= 23
        assert row["queue_wait_ns"] == pytest.approx(23 * 690_000, rel=0.01)

    def test_figures_that_hardly_differ_tell_nothing(self, tmp_path: Path) -> None:
        """Small pageable copies to the device: 3.45 us either way."""
        calls = self.uploads(3_450, 64, host_memory="pageable")
        row = first(make_run(tmp_path, cuda_api=calls), "copy_toll_by_size")
        assert (row["answer"], row["costs_more"]) == ("unknown", None)
        assert row["ratio"] == pytest.approx(3_450 / (3_450 + 64 / 19.2), rel=0.001)


class TestCollectiveToll:
    """7.4 us to submit without CC, 26 us with; 12.5 us more for each exchange."""

    @staticmethod
    def reduces(dur_ns: int, count: int = 23, **more: Any) -> list[Row]:
        more = {"size_bytes": 14_336, **more}
        return [call(n * MS, dur_ns, "ncclAllReduce", **more) for n in range(count)]

    @pytest.mark.parametrize(
        ("dur_ns", "answer"), [(7_400, "no"), (13_870, "no"), (13_871, "yes"), (26_000, "yes")]
    )
    def test_the_border(self, tmp_path: Path, dur_ns: int, answer: str) -> None:
        calls = self.reduces(dur_ns)
        calls += [call(900 * MS, 2_000 * MS, "ncclCommInitRank")]
        calls += [
            call(901 * MS, None, "ncclAllReduce"),
            call(902 * MS, 1, "ncclAllReduce", result=5),
        ]
        row = first(make_run(tmp_path, cuda_api=calls), "collective_toll")
        assert (row["answer"], row["side"], row["name"]) == (answer, "host", "ncclAllReduce")
        assert (row["calls"], row["open_calls"], row["errors"]) == (23, 1, 1)
        assert (row["p50_ns"], row["size_p50_bytes"], row["ranks"]) == (dur_ns, 14_336, 1)
        assert (row["calls_per_step"], row["published_ns_per_step"]) == (None, None)

    def test_per_step_and_rank(self, tmp_path: Path) -> None:
        """Two workers without steps of their own, each with 21 calls in the driver's ten steps."""
        calls = [row for pid in (7, 8) for row in self.reduces(26_000, 21, pid=pid, tid=pid)]
        content: dict[str, Any] = {"cuda_api": calls, "nvtx": steps(10, 2_100_000)}
        row = first(make_run(tmp_path, **content), "collective_toll")
        assert (row["ranks"], row["calls"], row["calls_per_step"]) == (2, 42, 2.1)
        assert row["ns_per_step"] == round(2.1 * 26_000)
        assert row["published_ns_per_step"] == round(2.1 * 12_500)
        assert "would take 26.2 us of each step more with CC" in row["evidence"]

    def test_groups_submit_at_their_end(self, tmp_path: Path) -> None:
        calls: list[Row] = []
        for at in range(0, 23 * MS, MS):
            calls += [
                call(at, 100, "ncclGroupStart"),
                call(at + 1_000, 200, "ncclAllReduce"),
                call(at + 2_000, 200, "ncclAllReduce"),
                call(at + 3_000, 40_000, "ncclGroupEnd"),
            ]
        found = {
            row["name"]: row for row in rows(make_run(tmp_path, cuda_api=calls), "collective_toll")
        }
        assert {*found} == {"ncclAllReduce", "ncclGroupEnd"}
        assert (found["ncclAllReduce"]["calls"], found["ncclAllReduce"]["grouped"]) == (46, 46)
        assert found["ncclAllReduce"]["p50_ns"] is None
        assert (found["ncclGroupEnd"]["answer"], found["ncclGroupEnd"]["p50_ns"]) == ("yes", 40_000)

    @pytest.mark.parametrize(("least_ns", "answer"), [(15_000, "no"), (90_000, "unknown")])
    def test_kernels_alone(self, tmp_path: Path, least_ns: int, answer: str) -> None:
        """The device's side can say no, where small exchanges are short."""
        name = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
        activity = [
            {
                "ts_ns": n * MS,
                "dur_ns": least_ns + n,
                "class": "kernel",
                "name": name,
                "device": n % 2,
            }
            for n in range(40)
        ]
        activity += [{**activity[0], "name": "gemm", "dur_ns": 1}]
        row = first(make_run(tmp_path, gpu_activity=activity), "collective_toll")
        assert (row["answer"], row["side"]) == (answer, "device")
        assert row["name"] == "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"
        assert (row["ranks"], row["calls"], row["p10_ns"]) == (2, 40, least_ns + 3)

    def test_probes_are_taken_off(self, tmp_path: Path) -> None:
        source = Source("cuda", "attached", detail={"probe_ns": 2_000.0})
        run = make_run(tmp_path, manifest={"sources": [source]}, cuda_api=self.reduces(14_000))
        row = first(run, "collective_toll")
        assert (row["answer"], row["p50_ns"]) == ("no", 12_000)
