"""What only a real GPU can tell: its driver's entry points, and the loop on it.

`make test-gpu` runs them and prints the tables that docs/measurements.md keeps.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import driver_symbols
import pytest
from recording import CCTRACE, environment, losses

import cctrace

Tell = Callable[[str], None]

pytestmark = pytest.mark.gpu

LOOP = Path(__file__).resolve().parents[2] / "examples" / "decode_loop.py"
LIMIT_S = 300
ITL_TOLERANCE = 0.02
STEPS = 101


@pytest.fixture(scope="module")
def driver() -> dict[str, Any]:
    """Where the entry points of the probe table are in this machine's driver."""
    answer = driver_symbols.look_up(driver_symbols.probed(), env=environment())
    if "error" in answer:
        pytest.skip(f"no NVIDIA GPU to ask: {answer['error']}")
    return answer


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Print past pytest's capture: the figures are wanted of a run that passes."""

    def show(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return show


class TestDriver:
    """Whether a probe at an exported symbol meets the calls made through pointers."""

    def test_pointers_are_the_exported_symbols(self, driver: dict[str, Any], tell: Tell) -> None:
        tell(driver_symbols.markdown(driver))
        found = [row for row in driver["symbols"] if row["exported"]]
        assert found, f"{driver['path']} exports nothing of the probe table"
        assert [row["name"] for row in found if not row["equal"]] == [], (
            "probes at these symbols miss calls through cuGetProcAddress: attach by file offset"
        )

    def test_code_is_what_the_file_has_at_that_offset(self, driver: dict[str, Any]) -> None:
        # A uprobe is placed by file offset; relocated code would need another way.
        found = [row for row in driver["symbols"] if row["exported"]]
        assert [row["name"] for row in found if not row["as_in_file"]] == []

    def test_first_instructions_are_cheap_to_probe(self, driver: dict[str, Any]) -> None:
        # The kernel emulates these; anything else is single-stepped, at ten times the cost.
        cheap = {"push %rbp", "push", "push (r8-r15)", "nop5", "jmp"}
        costly = {
            row["name"]: driver_symbols.first_instruction(bytes.fromhex(row["code"]))
            for row in driver["symbols"]
            if row["exported"]
        }
        assert {name: first for name, first in costly.items() if first not in cheap} == {}


def _torch_has_no_gpu() -> str | None:
    """Why torch has no GPU here, or None."""
    if importlib.util.find_spec("torch") is None:
        return "this Python has no torch: make test-gpu installs it"
    ask = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    return None if done.stdout.strip() == "True" else "torch sees no GPU"


@pytest.fixture(scope="module")
def torch_gpu() -> None:
    """Skip where torch cannot use a GPU."""
    reason = _torch_has_no_gpu()
    if reason is not None:
        pytest.skip(reason)


WAYS = list(
    product(("pinned", "pageable"), ("graph", "eager"), ("inline", "worker"), (False, True))
)


@pytest.fixture(scope="module")
def checksums() -> dict[str, int]:
    """The tokens each kind of launch gave, for the ways that share it."""
    return {}


@pytest.mark.usefixtures("torch_gpu")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
def test_the_loop_on_a_gpu_is_recorded(
    tmp_path: Path, checksums: dict[str, int], tell: Tell, way: tuple[str, str, str, str]
) -> None:
    """Steps and latency are the loop's own, and the tokens do not depend on who moves them."""
    memory, launches, readback, when = way
    run = tmp_path / "run"
    switches = ["--host-memory", memory, "--launches", launches, "--readback", readback]
    switches += ["--async-scheduling"] * (when == "late")
    command = [sys.executable, str(LOOP), "--backend", "torch", "--steps", str(STEPS), *switches]
    done = subprocess.run(
        [*CCTRACE, "record", "-o", str(run), "--", *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stdout)
    assert own["device"] == "cuda"
    assert losses(run) == {}
    with cctrace.open(run) as opened:
        [(steps, prefills)] = opened.sql(
            "SELECT count(*), count(*) FILTER (phase = 'prefill') FROM steps"
        ).fetchall()
        [(mean_ns,)] = opened.sql(
            "SELECT avg(period_ns) FROM steps WHERE phase = 'decode'"
        ).fetchall()
    assert (steps, prefills) == (STEPS, 1)
    assert mean_ns == pytest.approx(own["itl_mean_ns"], rel=ITL_TOLERANCE)
    made = own["processes"][0]["step_calls"]
    assert made["d2h"]["calls"] == STEPS
    assert made["classes"].get("graph", 0) == (STEPS - 1 if launches == "graph" else 0)
    assert own["tokens_checksum"] == checksums.setdefault(launches, own["tokens_checksum"])
    tell(f"| {' | '.join(way)} | {own['itl_p50_ns']:,} ns |")
