"""The reports on mechanisms, on recordings of a device whose figures are known.

The same programs run under the profile without confidential computing (CC) and under the
one with it. What the reports answer has to flip with the profile, and the figures they
name have to be the profile's, as read from its file.

Host times can only come out longer than the profile's: probes, the program's own code and a
busy machine add to them. Tolerances are on that side.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bpf_here import require_bpf
from mechanism_rows import first, rows
from recording import CCTRACE, environment
from simcuda_build import ROOT, SOURCE, simcuda_environment, simcuda_library_dir
from simcuda_run import PRELUDE, profile_figures

if TYPE_CHECKING:
    from query_rows import Row

PROFILES = ("b300", "b300-cc")
LIMIT_S = 180
LOOP = ROOT / "examples" / "decode_loop.py"
STEPS = 31
TIMES = 101  # how often each of the copies and launches below is made
# What a call takes beyond the profile's figure: probes whose cost is known to some 0.5 us,
# the simulator's own work in the call, and the caches of a machine that others use.
EXTRA_NS = 6_000

# Launches that are waited for, copies of several sizes from both memories, and copies behind
# a kernel of 3 ms; each by turns, so that a busy moment does not hit one kind alone.
CALLS = f"""
s = stream()
short, long = kernel(0x1000, 2_000), kernel(0x2000, 3_000_000)
sizes = [1 << 19, 1 << 21]
to, back, page = device(max(sizes)), pinned(max(sizes)), pageable(max(sizes))
wait = lambda: ok(rt.cudaStreamSynchronize(s))
wait()
for turn in range({TIMES}):
    launch(short, s); wait()
    size = sizes[turn % len(sizes)]
    for source in (back, page):
        ok(rt.cudaMemcpyAsync(to, source, size, H2D, s)); wait()
    launch(long, s); ok(rt.cudaMemcpyAsync(back, to, 64, D2H, s)); wait()
"""

# Pinned copies alone, which a host that does not wait for their bytes is done with at once.
UPLOADS = f"""
s = stream()
sizes = [1 << 20, 1 << 22]
to, source = device(max(sizes)), pinned(max(sizes))
for turn in range({TIMES}):
    for size in sizes:
        ok(rt.cudaMemcpyAsync(to, source, size, H2D, s)); ok(rt.cudaStreamSynchronize(s))
"""


def record(run: Path, profile: str, *command: str | Path) -> Path:
    """Record a program on the simulated device; skips where there is no BPF."""
    require_bpf()
    command_line = [
        *(
            *CCTRACE,
            "record",
            "-o",
            str(run),
            "--sources",
            "nvtx,processes,cuda",
            "--stacks",
            "none",
        ),
        *("--launches", "full", "--", sys.executable, *map(str, command)),
    ]
    with subprocess.Popen(
        command_line,
        env=environment() | simcuda_environment(profile=profile),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # Ahead of other programs: where they get a turn in between, waits are theirs.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(1))
        try:
            _, stderr = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 0, stderr
    return run


def both(where: Path, *command: str | Path) -> dict[str, Path]:
    return {profile: record(where / profile, profile, *command) for profile in PROFILES}


def slow_profile(where: Path, profile: str) -> Path:
    """A profile with a quarter of the bandwidth.

    The simulator's copies are the machine's own. At 15 GB/s its memory, where others
    use it too, would decide what a copy takes.
    """
    text = (SOURCE / "profiles" / f"{profile}.toml").read_text("utf-8")
    slow = re.sub(
        r"^gb_per_s = ([\d.]+)", lambda m: f"gb_per_s = {float(m[1]) / 4}", text, flags=re.MULTILINE
    )
    path = where / f"{profile}.toml"
    path.write_text(slow, "utf-8")
    return path


def loop(where: Path, *switches: str) -> dict[str, Path]:
    """The example's decode loop under both profiles."""
    sizes = ("--steps", str(STEPS), "--sim-dir", str(simcuda_library_dir()))
    return both(where, LOOP, *sizes, *switches)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program above."""
    where = tmp_path_factory.mktemp("calls")
    (where / "calls.py").write_text(PRELUDE + CALLS, "utf-8")
    return {
        profile: record(where / profile, str(slow_profile(where, profile)), where / "calls.py")
        for profile in PROFILES
    }


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The other program above."""
    where = tmp_path_factory.mktemp("uploads")
    (where / "uploads.py").write_text(PRELUDE + UPLOADS, "utf-8")
    return both(where, where / "uploads.py")


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """199 kernels a step that take the device 4 ms, and a small buffer made in each step."""
    switches = ("--launches", "eager", "--kernels", "199", "--gpu-us", "4000")
    return loop(tmp_path_factory.mktemp("eager"), *switches, "--alloc-per-step")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One graph a step of 2.5 ms, and its tokens read back by the loop itself."""
    return loop(tmp_path_factory.mktemp("graphs"), "--gpu-us", "2500")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two processes that reduce over their devices after each of seven layers."""
    switches = ("--workers", "2", "--launches", "eager", "--kernels", "29")
    return loop(tmp_path_factory.mktemp("workers"), *switches)


def flipped(runs: dict[str, Path], report: str) -> tuple[Row, Row]:
    """First rows of both runs, whose answers must be no without CC and yes with it."""
    found = {profile: first(run, report) for profile, run in runs.items()}
    said = {profile: row["evidence"] for profile, row in found.items()}
    assert {p: row["answer"] for p, row in found.items()} == {"b300": "no", "b300-cc": "yes"}, said
    return found["b300"], found["b300-cc"]


def assert_costs(measured_ns: float, profile_ns: float, extra_ns: float = EXTRA_NS) -> None:
    """The profile's figure, or a little more; less where the probes' cost is taken off."""
    assert 0.9 * profile_ns <= measured_ns <= 1.03 * profile_ns + extra_ns


def test_launches(eager: dict[str, Path]) -> None:
    """26 us rather than 7.4, on the thread that drives the loop, and all of them."""
    for row, profile in zip(flipped(eager, "launch_toll"), PROFILES, strict=True):
        assert (row["api"], row["role"]) == ("cudaLaunchKernel", "driver")
        assert row["calls"] == STEPS * (199 + 3)
        assert_costs(row["p50_ns"], profile_figures(profile)["launch.host_ns"])


def test_launches_that_are_waited_for(calls: dict[str, Path]) -> None:
    """55 us rather than 14."""
    for row, profile in zip(flipped(calls, "launch_wait_toll"), PROFILES, strict=True):
        figures = profile_figures(profile)
        parts = ("launch.host_ns", "launch.latency_ns", "launch.kernel_ns", "sync.host_ns")
        # The program's Python runs between the two calls.
        assert_costs(row["elapsed_p10_ns"], sum(map(figures.__getitem__, parts)), 3 * EXTRA_NS)
        assert row["pairs"] >= TIMES - 1


def test_pinned_copies(calls: dict[str, Path]) -> None:
    """Slower than pageable ones under CC: 11.1 against 15 GB/s, here a quarter of that."""
    _, secure = flipped(calls, "pinned_inversion")
    assert (secure["copy_kind"], secure["compared_with"]) == ("h2d", "run")
    figures = profile_figures("b300-cc")
    for memory in ("pinned", "pageable"):
        bytes_ns = 4 * secure["size_bytes"] / figures[f"copy.h2d.{memory}.gb_per_s"]
        host_ns = figures[f"copy.h2d.{memory}.host_ns"]
        assert_costs(secure[f"{memory}_ns"], host_ns + bytes_ns, 4 * EXTRA_NS)


def test_asynchronous_copies(calls: dict[str, Path], graphs: dict[str, Path]) -> None:
    """They return at once, or when the graph before them is done."""
    plain, secure = flipped(graphs, "async_copies_that_block")
    assert (secure["api"], secure["copy_kind"]) == ("cudaMemcpyAsync", "d2h")
    assert (secure["host_memory"], secure["role"]) == ("pinned", "driver")
    assert (secure["queued"], secure["blocked"]) == (STEPS, STEPS)
    # From the copy's start on, most of the graph's 2.5 ms is still to come.
    assert 1_500_000 < secure["blocked_p50_ns"] < 3_000_000
    assert plain["blocked"] <= 0.2 * plain["queued"]
    _, behind_kernels = flipped(calls, "async_copies_that_block")
    assert behind_kernels["blocked"] >= 0.9 * TIMES
    assert behind_kernels["blocked_p50_ns"] == pytest.approx(3_000_000, rel=0.1)


def test_small_buffers(eager: dict[str, Path]) -> None:
    """330 us for an allocation and the first copy to it, rather than 7.5."""
    for row, profile in zip(flipped(eager, "small_alloc_copy"), PROFILES, strict=True):
        figures = profile_figures(profile)
        copy = "copy.h2d.pinned."
        parts = (*("alloc.device_ns", "alloc.first_copy_ns"), copy + "host_ns", copy + "latency_ns")
        assert_costs(row["pair_p50_ns"], sum(map(figures.__getitem__, parts)), 4 * EXTRA_NS)
        assert (row["pairs"], row["freed"]) == (STEPS, STEPS)
        assert row["pairs_per_step"] == 1


def test_graphs_pay_where_launches_hold_the_loop_up(
    eager: dict[str, Path], graphs: dict[str, Path]
) -> None:
    """202 launches of 26 us take longer than the device's 4 ms; of 7.4 us they do not."""
    plain, secure = flipped(eager, "eager_vs_graph")
    for row in (plain, secure):
        assert (row["launches_per_step"], row["graphs_per_step"]) == (202, 0)
    toll_ns = profile_figures("b300-cc")["launch.host_ns"]
    assert_costs(secure["saved_ns"], 201 * toll_ns, 201 * EXTRA_NS)
    assert secure["is_launch_bound"]
    for run in graphs.values():
        row = first(run, "eager_vs_graph")
        assert (row["answer"], row["launches_per_step"], row["graphs_per_step"]) == ("no", 3, 1)


def test_collectives(workers: dict[str, Path]) -> None:
    """Seven a step and rank, each submitted as a launch is."""
    for row, profile in zip(flipped(workers, "collective_toll"), PROFILES, strict=True):
        assert (row["name"], row["ranks"], row["calls"]) == ("ncclAllReduce", 2, 2 * 7 * STEPS)
        assert row["calls_per_step"] == 7
        assert_costs(row["p50_ns"], profile_figures(profile)["launch.host_ns"])
        assert row["published_ns_per_step"] == 7 * 12_500


def test_copies_by_size(uploads: dict[str, Path]) -> None:
    """Pinned ones wait for their bytes under CC, 4 MiB of them for 0.38 ms."""
    flipped(uploads, "copy_toll_by_size")
    figures = profile_figures("b300-cc")
    host_ns = figures["copy.h2d.pinned.host_ns"] + figures["copy.h2d.pinned.latency_ns"]
    found = rows(uploads["b300-cc"], "copy_toll_by_size")
    assert [row["size_from_bytes"] for row in found] == [1 << 20, 1 << 22]
    for row in found:
        expected_ns = host_ns + row["size_from_bytes"] / figures["copy.h2d.pinned.gb_per_s"]
        assert row["cc_ns"] == pytest.approx(expected_ns, abs=1)
        # No copy of the simulator's is faster than this machine's memory.
        assert_costs(row["p50_ns"], expected_ns, 0.5 * expected_ns)
        assert row["costs_more"]
        assert TIMES - 1 <= row["timed"] <= TIMES
