"""The bridge model fitted to recordings, against the profile the device was given.

A program copies random sizes, each on streams that a wait has just drained, in both
directions, from pinned and pageable memory, by calls that wait and by calls that need not.
What a copy that blocks lasts is then known beforehand: ``host_ns + latency_ns + size /
gb_per_s`` of the profile, and what the simulator's code and the machine's own memory take
(examples/simcuda/README.md). What that is, the device's log of the same program tells when
nothing records it.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from bpf_here import require_bpf
from recording import record
from simcuda_build import simcuda_environment
from simcuda_run import PRELUDE, profile_figures
from simcuda_run import run as run_alone

import cctrace

if TYPE_CHECKING:
    from pathlib import Path

COPIES: Final = 499  # of each of eight ways
LARGEST: Final = 32_749
BEHIND: Final = 13  # copies behind a kernel, of each direction
ATTEMPTS: Final = 5
TOLERANCE: Final = 0.05
pytestmark = pytest.mark.grid  # compares times: see `make test-grid`

SIMULATOR_NS: Final = 400  # of its own code in a call, on top of the profile's time
MEMORY_NS: Final = 0.04  # a byte once more by the machine's memory: 25 GB/s
# Of the device's log.
KINDS: Final = {"h2d": 1, "d2h": 2}
MEMORY: Final = {"pageable": 1, "pinned": 2}

TARGET = f"""
import random
rng = random.Random(int(os.environ["COPY_SEED"]))
on = stream()
there = device({LARGEST})
hosts = {{"pinned": pinned({LARGEST}), "pageable": pageable({LARGEST})}}
step = kernel(0x1009, 3_001_000)
empty = kernel(0x1013, 0)

def copied(kind, host, size, waits):
    to, source = (there, host) if kind == H2D else (host, there)
    if waits:
        ok(rt.cudaMemcpy(to, source, size, kind))
    else:
        ok(rt.cudaMemcpyAsync(to, source, size, kind, on))

ways = [(kind, memory, waits) for kind in (H2D, D2H) for memory in hosts for waits in (0, 1)]
for _ in range({COPIES}):
    for kind, memory, waits in ways:
        copied(kind, hosts[memory], rng.randrange(64, {LARGEST}), waits)
        ok(rt.cudaStreamSynchronize(on))
        ok(rt.cudaDeviceSynchronize())
    launch(empty, on)
    ok(rt.cudaStreamSynchronize(on))
# Whether copies wait for what is before them shows behind a kernel alone.
for kind in (H2D, D2H):
    for _ in range({BEHIND}):
        launch(step, on)
        copied(kind, hosts["pinned"], 64, False)
        ok(rt.cudaStreamSynchronize(on))
"""


def undisturbed(values: Any) -> float:
    """Mean of those within 15% of the fastest tenth: load only makes a call longer."""
    return float(values[values <= 1.15 * np.percentile(values, 10)].mean())


def truth_of(log: Any, api: str, kind: str, memory: str) -> tuple[float, float]:
    """What a copy of no bytes lasts, ns, and what a byte adds, by the device's log.

    A runtime's call has one of the driver within, which knows the memory.
    """
    outer = log.calls("cudaMemcpy", "cudaMemcpyAsync")
    inner = log.calls(*(name for name in log.counts("driver") if name.startswith("cuMemcpy")))
    assert len(inner) == len(outer)
    chosen = (
        np.isin(outer["entry_ns"], log.calls(api)["entry_ns"])
        & (inner["copy_kind"] == KINDS[kind])
        & (inner["host_memory"] == MEMORY[memory])
    )
    lengths_ns = (outer["exit_ns"] - outer["entry_ns"]).astype(np.int64)[chosen]
    sizes = inner["size_bytes"].astype(np.int64)[chosen]
    means, tolls = [], []
    for low, high in pairwise(np.linspace(64, LARGEST, 9)):
        of_size = (sizes >= low) & (sizes < high)
        means.append(float(sizes[of_size].mean()))
        tolls.append(undisturbed(lengths_ns[of_size]))
    slope, toll = np.polyfit(means, tolls, 1)
    return float(toll), float(slope)


def model_of(run: Path) -> dict[tuple[str, str | None, str | None], dict[str, Any]]:
    """Rows of ``bridge_model`` for what occurs, by API, kind of copy and memory."""
    with cctrace.open(run) as session:
        rows = session.sql("SELECT * FROM bridge_model WHERE calls > 0").arrow().to_pylist()
    return {(row["api"], row["copy_kind"], row["host_memory"]): row for row in rows}


def recorded_and_alone(
    tmp_path: Path, profile: str, environment: dict[str, Any]
) -> tuple[dict[tuple[str, str | None, str | None], dict[str, Any]], Any]:
    """The program once under cctrace: its model; and once alone: the device's log."""
    done = record(
        tmp_path / "run",
        sys.executable,
        "-c",
        PRELUDE + TARGET,
        options=("--sources", "cuda,sched"),
        env={**simcuda_environment(tmp_path / "recorded", profile), **environment},
    )
    assert done.returncode == 0, done.stderr
    alone = run_alone(TARGET, tmp_path / "alone", profile=profile, **environment)
    return model_of(tmp_path / "run"), alone.process


def expected_mode(api: str, kind: str, memory: str, *, is_cc: bool) -> str:
    """When such a call returns (CUDA's manual; under CC pinned copies wait too)."""
    if api == "cudaMemcpy" or (memory, kind) == ("pageable", "d2h"):
        return "host_synchronous"
    if memory == "pageable":
        return "staged"
    return "host_synchronous" if is_cc else "async"


@pytest.mark.parametrize(
    ("profile", "jitter", "seed"),
    [("b300", "0", 3), ("b300-cc", "0.05", 5), ("h200", "0.05", 7), ("h200-cc", "0", 11)],
)
def test_the_model_is_that_of_the_profile(
    tmp_path: Path, profile: str, jitter: str, seed: int
) -> None:
    """Modes and what blocks exactly; tolls and bandwidths within 5% of what calls take.

    Which is the profile's figure, and the simulator's own code. Load only makes calls
    longer: what is right once, with another recording's, is right.
    """
    require_bpf()
    print(f"profile {profile}, jitter {jitter}, seed {seed}")
    figures = profile_figures(profile)
    is_cc = profile.endswith("-cc")
    environment = {"SIMCUDA_JITTER": jitter, "SIMCUDA_SEED": str(seed), "COPY_SEED": str(seed)}
    ways = [
        (api, kind, memory)
        for kind in KINDS
        for memory in MEMORY
        for api in ("cudaMemcpy", "cudaMemcpyAsync")
    ]
    # What is wrong, until one recording has it right.
    wrong: dict[tuple[str, ...], Any] = {
        (*way, figure): None for way in ways for figure in ("toll_ns", "ns_per_byte")
    }
    wrong["cudaLaunchKernel", "toll_ns"] = None
    logs: list[Any] = []
    for attempt in range(ATTEMPTS):
        model, log = recorded_and_alone(tmp_path / str(attempt), profile, environment)
        logs.append(log)
        for way in ways:
            _, kind, memory = way
            row = model[way]
            mode = expected_mode(*way, is_cc=is_cc)
            assert (row["mode"], row["blocks"]) == (mode, mode == "host_synchronous"), row
            assert row["source"] == "run", row
            section = f"copy.{kind}.{memory}"
            toll_ns = figures[f"{section}.host_ns"]
            toll_ns += figures[f"{section}.latency_ns"] if row["blocks"] else 0
            ns_per_byte = 1 / figures[f"{section}.gb_per_s"]
            if mode == "async":
                assert (row["ns_per_byte"], row["bandwidth_source"]) == (0, "profile")
                wrong.pop((*way, "ns_per_byte"), None)
            found = [truth_of(each, *way) for each in logs]
            for figure, set_to, more, truths in (
                ("toll_ns", toll_ns, SIMULATOR_NS, [toll for toll, _ in found]),
                ("ns_per_byte", ns_per_byte, MEMORY_NS, [slope for _, slope in found]),
            ):
                key = (*way, figure)
                is_near = any(row[figure] == pytest.approx(t, rel=TOLERANCE) for t in truths)
                is_near &= set_to * 0.95 < row[figure] < set_to * 1.05 + more
                # Where load has scattered the calls too much, the profile's line is taken.
                is_fitted = mode == "async" or row["bandwidth_source"] == "run"
                if is_near and is_fitted:
                    wrong.pop(key, None)
                elif key in wrong:
                    wrong[key] = (row[figure], row["bandwidth_source"], truths, set_to)
        launch = model["cudaLaunchKernel", None, None]
        # No GPU is known here; without CC launches do not tell one from the other.
        assert launch["profile"] == (profile if is_cc else "b300")
        assert launch["profile_basis"] == "behaviour"
        toll_ns = figures["launch.host_ns"]
        if toll_ns * 0.95 < launch["toll_ns"] < toll_ns * 1.05 + 2 * SIMULATOR_NS:
            wrong.pop(("cudaLaunchKernel", "toll_ns"), None)
        elif ("cudaLaunchKernel", "toll_ns") in wrong:
            wrong["cudaLaunchKernel", "toll_ns"] = (launch["toll_ns"], toll_ns)
        if not wrong:
            break
    assert not wrong, "\n".join(f"{key}: {value}" for key, value in wrong.items())
