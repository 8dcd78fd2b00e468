"""Whether the bridge dominates, over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from part_rows import SCHED, STEP_PARTS, call, steps
from query_rows import Row
from runs import make_run

import cctrace

if TYPE_CHECKING:
    from pathlib import Path


def breakdown(run: Path, **params: Any) -> list[tuple[Any, ...]]:
    with cctrace.open(run) as session:
        return session.report("step_breakdown", params).fetchall()


def looped(rows: list[Row], count: int = 10, period_ns: int = 100) -> dict[str, Any]:
    """The same calls in each of so many steps."""
    return {
        "cuda_api": [
            {**row, "ts_ns": i * period_ns + row["ts_ns"]} for i in range(count) for row in rows
        ],
        "nvtx": steps(*range(0, period_ns * (count + 1), period_ns)),
    }


@pytest.mark.parametrize(
    ("rows", "manifest", "answer"),
    [
        ([call(0, 60, "launch")], SCHED, "yes"),
        ([call(0, 40, "launch")], SCHED, "no"),
        ([call(0, 50, "launch")], SCHED, "no"),
        ([call(0, 60, "launch")], {}, "yes"),
        ([call(0, 50, "launch")], {}, "unknown"),
        ([call(0, 20, "launch"), call(30, 60, "free")], {}, "yes"),
        ([], SCHED, "no"),
    ],
)
def test_whether_the_bridge_dominates(
    tmp_path: Path, rows: list[Row], manifest: dict[str, Any], answer: str
) -> None:
    run = make_run(tmp_path, manifest=manifest, **looped(rows))
    found = breakdown(run)
    assert {row[:2] for row in found} == {("run", answer)}
    assert len(found) == len(STEP_PARTS)
    assert sum(row[10] for row in found) == pytest.approx(1)


def test_a_breakdown_by_phase(tmp_path: Path) -> None:
    rows = looped([call(0, 60, "launch")])
    for row in rows["nvtx"][:3]:
        row["category"] = "prefill"
    rows["cuda_api"][1]["dur_ns"] = 90
    found = breakdown(make_run(tmp_path, manifest=SCHED, **rows))
    evidence = (
        "of 10 steps of 0.000 ms on average the bridge takes 63.0%, waits for the device 0.0%, "
        "the host's own time 37.0%; 0.0% is not known"
    )
    assert {row[2] for row in found} == {evidence}
    launches = [row[3:] for row in found if row[5] == "launch"]
    assert launches == [
        ("loop", "prefill", "launch", 3, 70, 60, 90, pytest.approx(0.7)),
        ("loop", None, "launch", 7, 60, 60, 60, pytest.approx(0.6)),
    ]


def test_too_few_steps_for_an_answer(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest=SCHED, **looped([call(0, 60, "launch")], 9))
    [first, *_] = breakdown(run)
    assert first[1:3] == (
        "unknown",
        "only 9 steps with a known length were found; 10 are needed",
    )
    assert breakdown(run, min_steps=9)[0][1] == "yes"
    assert breakdown(run, engine="vllm") == [
        ("run", "unknown", "no steps with a known length were found", *[None] * 8)
    ]


def test_an_empty_run_is_unknown(tmp_path: Path) -> None:
    assert breakdown(make_run(tmp_path)) == [
        ("run", "unknown", "no steps with a known length were found", *[None] * 8)
    ]
