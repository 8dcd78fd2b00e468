"""The one sentence of a report, for each thing there may be to say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from part_rows import SCHED
from report_runs import MS, POINT, REPLAY, STEP_NS, attribution, crossing_rows, step_rows
from runs import make_run

from cctrace.analyze.sentences import COUNTED
from cctrace.analyze.verdict import verdict

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.analyze.attribution import Attribution

SENTENCE = "step 41's 32-byte D2H readback on thread 8067 (readback) blocks 10.9 ms"


@pytest.fixture
def plain(tmp_path: Path) -> Attribution:
    """Of a run with steps and nothing else."""
    return attribution(make_run(tmp_path, nvtx=step_rows(7)))


def made(plain: Attribution, **of_point: Any) -> Attribution:
    point = replace(POINT, sentence=SENTENCE, **of_point)
    return replace(plain, run=replace(plain.run, cuda_calls=7), replay=REPLAY, points=(point,))


def test_a_remedy_that_is_worth_it(plain: Attribution) -> None:
    said = verdict(made(plain))
    assert said.kind == "change"
    assert said.sentence == (
        "Drain readback on a worker thread: a decode step would take about 8.10 ms "
        "instead of 12.3 ms."
    )
    assert said.because == f"S{SENTENCE[1:]}."
    assert said.trust == (
        "an estimate, high confidence, the replay is off by 0.6%, 503 steps replayed, a sample"
    )


@pytest.mark.parametrize(("saved_ns", "kind"), [(246_000, "change"), (245_999, "little")])
def test_a_remedy_that_saves_little_is_not_the_thing_to_do(
    plain: Attribution, saved_ns: int, kind: str
) -> None:
    assert POINT.remedy is not None
    remedy = replace(POINT.remedy, recoverable_ns=saved_ns, expected_itl_ns=12_300_000 - saved_ns)
    said = verdict(made(plain, remedy=remedy, confidence="low", confidence_reason="steps differ"))
    assert said.kind == kind
    assert "low confidence (steps differ)" in said.trust
    if kind == "little":
        assert said.sentence == (
            "No known change helps much: the best is to drain readback on a worker thread, and "
            "a decode step would take about 12.1 ms instead of 12.3 ms."
        )


def test_calls_that_nothing_is_known_to_help(plain: Attribution) -> None:
    said = verdict(made(plain, remedy=None))
    assert (said.kind, said.sentence) == ("held", "No known change makes a decode step shorter.")
    assert said.because.startswith("Step 41's")


def test_nothing_holds_the_loop_up(plain: Attribution) -> None:
    run = replace(plain.run, cuda_calls=7)
    said = verdict(replace(plain, run=run, replay=replace(REPLAY, phase=None)))
    assert (said.kind, said.because) == ("even", "")
    assert said.sentence == "A step takes 12.3 ms, and no call holds the loop up."
    assert not said.trust.startswith("an estimate")


def test_counted_launches_are_no_calls_that_hold_nothing_up(tmp_path: Path) -> None:
    """Steps of 10 ms, 9 ms of each in launches that were counted and have no row of their own."""
    windows = [
        {"ts_ns": i * STEP_NS, "window_ns": STEP_NS, "api": "cudaLaunchKernel", "stream": 7,
         "calls": 907, "total_ns": 9 * MS, "max_ns": 20_000, "histogram": [0, 907]}
        for i in range(31)
    ]  # fmt: skip
    run = make_run(tmp_path, nvtx=step_rows(31), cuda_launches=windows, manifest=SCHED)
    found = attribution(run)
    assert (found.run.cuda_calls, found.run.launches_counted) == (0, 31 * 907)
    said = verdict(found)
    assert said.kind == "counted"
    assert said.sentence == (
        "A decode step takes 10.0 ms; launches were counted, not replayed, and are 90.0% of "
        "the step."
    )
    assert "launches were counted, not recorded one by one" in said.trust


def test_launches_counted_outside_of_steps_are_told_of(plain: Attribution) -> None:
    run = replace(plain.run, cuda_calls=7, launches_counted=1_009)
    said = verdict(replace(plain, run=run, replay=REPLAY))
    assert said.kind == "even"
    assert said.sentence == (
        "A decode step takes 12.3 ms; launches were counted, not replayed, and no other call "
        "holds the loop up."
    )


@pytest.mark.parametrize("reason", ["", COUNTED])
def test_counting_is_a_reason_to_trust_less_and_told_once(plain: Attribution, reason: str) -> None:
    found = made(plain, confidence_reason=reason)
    said = verdict(replace(found, run=replace(found.run, launches_counted=1_009)))
    assert said.trust.count(COUNTED) == 1


@pytest.mark.parametrize(("steps", "kind"), [(2, "silent"), (4, "silent"), (5, "change")])
def test_too_few_steps_to_replay(tmp_path: Path, steps: int, kind: str) -> None:
    found = attribution(make_run(tmp_path, nvtx=step_rows(steps), cuda_api=crossing_rows(steps)))
    assert verdict(found).kind == kind
    few = [unknown.code for unknown in found.cannot_say].count("too_few_steps")
    assert few == (kind == "silent")
    if few:
        have = "1 step has a length" if steps == 2 else "3 steps have a length"
        assert verdict(found).because == (
            f"Nor can it say which call holds the loop up: {have}, and a replay needs 4 in a row "
            "to get going; a longer run has them."
        )
    else:
        assert found.points[0].confidence_reason == "only 1 step was replayed"


def test_steps_without_calls(plain: Attribution) -> None:
    said = verdict(plain)
    assert said.kind == "silent"
    assert said.sentence == "A decode step takes 10.0 ms; this run cannot say what for."
    assert said.because.startswith("This run cannot say what crossings of the bridge cost")
    # AND where most of the steps' time is known to be for something, it is named
    swapped = {"unattributed": "host_compute", "host_compute": "unattributed"}
    parts = tuple(replace(p, part=swapped.get(p.part, p.part)) for p in plain.parts)
    said = verdict(replace(plain, parts=parts))
    assert said.sentence == "A decode step takes 10.0 ms; 100% of the steps' time is host_compute."


def test_a_run_that_cannot_tell(tmp_path: Path) -> None:
    said = verdict(attribution(make_run(tmp_path)))
    assert said.kind == "silent"
    assert said.sentence == "This run cannot say what holds its loop up."
    assert said.because.startswith(
        "Nor can it say what crossings of the bridge cost: no CUDA calls"
    )
