"""The ranking of serialization points and its predictions, against loops run with the remedies.

The default run checks one case. The grid, ``pytest -m grid``, checks two more and draws 44
from a seed (CCTRACE_GRID_SEED, CCTRACE_GRID_CASES), prints them case by case, and writes
them as JSON to the file CCTRACE_GRID_JSON where that is set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bpf_here import require_bpf
from grid import HEADER, draw, judge


@pytest.fixture(autouse=True)
def _bpf() -> None:
    """What costs time in the loop is recorded by probes."""
    require_bpf()


RIGHT_SHARE = 0.95
QUICK = {
    "a copy to the host blocks": ["--profile", "b300-cc", "--gpu-us", "1499"],
    "a wait for the stream blocks": ["--profile", "h200", "--gpu-us", "997", "--python-us", "499"],
    "uploads block a loop with a worker": [
        *("--profile", "b300-cc", "--async-scheduling", "--readback", "worker"),
        *("--crossings", "31", "--gpu-us", "1201", "--python-us", "199"),
    ],
}
DEFAULT = "a copy to the host blocks"
EXPECTED = {
    "a copy to the host blocks": {"worker_readback"},
    "a wait for the stream blocks": {"async_scheduling_on", "worker_readback"},
    "uploads block a loop with a worker": {"pageable_host_memory", "batch_copies"},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == DEFAULT else pytest.mark.grid) for name in QUICK],
)
def test_the_first_point_is_the_one_that_helps_most(tmp_path: Path, name: str) -> None:
    """Ranked as measured, and the ITL with its remedy as predicted."""
    verdict = judge(QUICK[name], tmp_path)
    print(HEADER, verdict.line(), sep="\n")
    assert verdict.first[2] in EXPECTED[name]
    assert verdict.is_ranked_right, verdict.line()
    assert verdict.is_close, verdict.line()


@pytest.mark.grid
def test_grid(tmp_path: Path) -> None:
    """At least 95% of the cases are ranked as measured, and predicted within 5%."""
    seed = int(os.environ.get("CCTRACE_GRID_SEED", "5"))
    count = int(os.environ.get("CCTRACE_GRID_CASES", "44"))
    print(f"seed {seed}", HEADER, sep="\n")
    verdicts = []
    for number, switches in enumerate(draw(seed, count)):
        verdicts.append(judge(switches, tmp_path / str(number)))
        print(verdicts[-1].line(), flush=True)
    right = sum(verdict.is_ranked_right for verdict in verdicts)
    close = sum(verdict.is_close for verdict in verdicts)
    cases = [verdict.as_json() for verdict in verdicts]
    found = {"seed": seed, "ranked_right": right, "close": close, "cases": cases}
    target = os.environ.get("CCTRACE_GRID_JSON")
    if target:
        Path(target).write_text(json.dumps(found, indent=1) + "\n")
    assert right >= RIGHT_SHARE * count
    assert close >= RIGHT_SHARE * count
