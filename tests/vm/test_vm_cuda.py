"""CUDA calls recorded on a kernel without multi-uprobe: one perf event for each symbol.

The truth is the simulated device's own log, which cctrace never reads.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from cuda_calls import IN_BYTES, OUT_BYTES
from guest import ROOT, Guest, GuestResult
from recording import losses, rows

sys.path.append(str(ROOT / "examples" / "simcuda"))  # it is no package
import truth

pytestmark = pytest.mark.vm

CALLS = ROOT / "tests" / "vm" / "cuda_calls.py"
COPIES_IN, COPIES_OUT, LAUNCHES = 101, 53, 211

SCRIPT = f"""
set -u
export LD_LIBRARY_PATH=/src/examples/simcuda/build SIMCUDA_PROFILE=b300 SIMCUDA_TRUTH=/results/truth
mkdir truth
cctrace record -q -o run --sources cuda,sched --launches full -- \\
	python3 /src/tests/vm/cuda_calls.py {COPIES_IN} {COPIES_OUT} {LAUNCHES}
echo $? >run.status
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> GuestResult:
    """A program on the simulated device, recorded in the guest."""
    folder = ROOT / "examples" / "simcuda"
    subprocess.run(["make", "-s", "-C", folder, f"PYTHON={sys.executable}"], check=True)
    carry = {"examples/simcuda/build": folder / "build"}
    done = Guest(carry=carry).run(SCRIPT, tmp_path_factory.mktemp("cuda") / "results")
    assert (done.results / "run.status").read_text().strip() == "0", done.output
    return done


@pytest.fixture(scope="module")
def calls(guest: GuestResult) -> list[dict[str, Any]]:
    """The recorded calls."""
    return rows(guest.results / "run", "cuda_api")


@pytest.fixture(scope="module")
def process(guest: GuestResult) -> truth.Process:
    """The device's log of the one process."""
    (only,) = truth.read(guest.results / "truth")
    assert only.dropped == 0
    return only


def plain(name: str) -> str:
    """A function's name as the table has it: no version, no stream suffix."""
    return re.sub(r"(_v\d+)?(_pt[ds]s|_ptsz)?$", "", name)


def test_attached_without_multi_uprobe(guest: GuestResult) -> None:
    """The manifest says so; nothing was lost."""
    manifest = json.loads((guest.results / "run" / "run.json").read_text())
    (cuda,) = (source for source in manifest["sources"] if source["name"] == "cuda")
    assert cuda["state"] == "attached", cuda
    assert losses(guest.results / "run") == {}


def test_the_programs_calls_are_there(calls: list[dict[str, Any]]) -> None:
    """What the program called is there, as often, with its bytes."""
    mine = [row for row in calls if row["layer"] == "runtime" and row["depth"] == 0]
    told = Counter(row["api"] for row in mine)
    expected = {
        "cudaMemcpy": COPIES_IN,
        "cudaMemcpyAsync": COPIES_OUT,
        "cudaStreamSynchronize": COPIES_OUT,
        "cudaLaunchKernel": LAUNCHES,
        "cudaMalloc": 1,
        "cudaFree": 1,
    }
    assert {api: told[api] for api in expected} == expected
    moved = Counter[str]()
    for row in mine:
        if row["class"] == "copy":
            moved[row["copy_kind"]] += row["size_bytes"]
    assert moved == {"h2d": COPIES_IN * IN_BYTES, "d2h": COPIES_OUT * OUT_BYTES}


def test_every_call_is_the_devices(calls: list[dict[str, Any]], process: truth.Process) -> None:
    """By layer and function as many as the device logged, nested driver calls included."""
    logged = Counter(
        (layer, plain(name))
        for layer, name in (process.names[int(number)] for number in process.api["api"])
    )
    seen = Counter((row["layer"], row["api"]) for row in calls)
    assert seen == {key: logged[key] for key in seen}
    driver = {api for layer, api in seen if layer == "driver"}
    assert {"cuMemcpyHtoD", "cuMemcpyDtoHAsync", "cuLaunchKernel"} <= driver
    assert {row["pid"] for row in calls} == {process.pid}


def test_times_enclose_the_devices(calls: list[dict[str, Any]], process: truth.Process) -> None:
    """A call begins before the device's own first instruction of it and ends after its last."""
    logged = process.calls("cudaMemcpy")
    seen = [row for row in calls if row["api"] == "cudaMemcpy"]
    for row, told in zip(seen, logged, strict=True):
        assert row["ts_ns"] <= told["entry_ns"]
        assert told["exit_ns"] <= row["ts_ns"] + row["dur_ns"]
        assert row["size_bytes"] == told["size_bytes"]


def test_calls_have_the_stack_of_the_program(
    guest: GuestResult, calls: list[dict[str, Any]]
) -> None:
    """Walked on this kernel too: each crossing leads to the line that made it."""
    lines = CALLS.read_text().splitlines()
    stacks = {row["stack_id"]: row["frames"] for row in rows(guest.results / "run", "stacks")}
    crossings = [c for c in calls if c["depth"] == 0 and c["class"] in {"copy", "launch", "sync"}]
    assert len(crossings) >= COPIES_IN + COPIES_OUT + LAUNCHES
    for call in crossings:
        python = [frame for frame in stacks[call["stack_id"]] if frame["kind"] == "python"]
        assert [frame["function"] for frame in python] == ["main.<locals>.call", "main", "<module>"]
        assert f'call("{call["api"]}"' in lines[python[1]["line"] - 1]
