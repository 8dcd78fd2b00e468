"""Steps much slower than most, and what was different in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from query_rows import Row, span, table
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

US = 1000
PERIOD = 1000 * US
COLUMNS = [
    "step_id",
    "engine",
    "pid",
    "tid",
    "phase",
    "previous_phase",
    "ts_ns",
    "period_ns",
    "p50_ns",
    "ratio",
    "part",
    "part_ns",
    "part_p50_ns",
    "grown_ns",
    "crossings",
    "p50_crossings",
    "has_losses",
    "has_gc",
]


def step(ts_ns: int, phase: str | None = "decode", **more: Any) -> Row:
    """A step's range."""
    return span(ts_ns, 10, "step", category=phase, **more)


def sync(ts_ns: int, dur_ns: int) -> Row:
    """A wait for the device."""
    row: Row = {"api": "cudaStreamSynchronize", "class": "sync", "layer": "runtime", "stream": 1}
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, **row}


def starts(*periods: int) -> list[int]:
    """Starts of steps with these periods, and of one more."""
    found = [0]
    for period in periods:
        found.append(found[-1] + period)
    return found


def outliers(run: Path, **params: float) -> tuple[set[str], list[dict[str, str]]]:
    """The distinct answers of the report, and its slow steps."""
    rows = table(run, "step_outliers", dict(params) or None).splitlines()
    # The evidence may hold commas: columns are counted from the right.
    found = [dict(zip(COLUMNS, row.rsplit(",", len(COLUMNS))[1:], strict=True)) for row in rows]
    return {row.split(",")[1] for row in rows}, [row for row in found if row["step_id"]]


def evidence(run: Path) -> str:
    """The first row's evidence, its commas included."""
    return table(run, "step_outliers").splitlines()[0].rsplit(",", len(COLUMNS))[0].split(",", 2)[2]


def test_a_slow_step_and_the_part_that_grew(tmp_path: Path) -> None:
    # GIVEN 40 steps of 1 ms that wait 0.3 ms, but for two: one waits 2.3 ms more, the
    # other takes 3 ms longer without a call; both with losses or a collection of garbage
    periods = [PERIOD] * 40
    periods[13] += 2300 * US
    periods[29] += 3000 * US
    begun = starts(*periods)
    waits = [300 * US] * 40
    waits[13] += 2300 * US
    run = make_run(
        tmp_path,
        nvtx=[*map(step, begun), span(begun[29] + 400 * US, 9, "gc.collect", domain="py")],
        cuda_api=[
            sync(ts_ns + 100 * US, dur_ns) for ts_ns, dur_ns in zip(begun, waits, strict=False)
        ],
        losses=[{"source": "swiotlb", "first_ns": begun[14] - 5, "last_ns": begun[14] - 1}],
    )
    # THEN the answer is yes, and the slowest comes first
    answers, slow = outliers(run)
    assert answers == {"yes"}
    first, second = slow
    assert first == {
        "step_id": "30",
        "engine": "default",
        "pid": "100",
        "tid": "100",
        "phase": "decode",
        "previous_phase": "decode",
        "ts_ns": str(begun[29]),
        "period_ns": str(4000 * US),
        "p50_ns": str(PERIOD),
        "ratio": "4.0",
        # Nothing was recorded that could tell what it was for.
        "part": "unattributed",
        "part_ns": str(3700 * US),
        "part_p50_ns": str(700 * US),
        "grown_ns": str(3000 * US),
        "crossings": "1",
        "p50_crossings": "1",
        "has_losses": "False",
        "has_gc": "True",
    }
    assert second["step_id"] == "14"
    assert second["ratio"] == "3.3"
    assert (second["part"], second["grown_ns"]) == ("sync_wait", str(2300 * US))
    assert (second["has_losses"], second["has_gc"]) == ("True", "False")
    assert evidence(run) == (
        "the 99th percentile of 40 steps of default in phase decode is 4.000 ms, 4.00 times "
        "their median of 1.000 ms; step 30 took 4.000 ms, of which unattributed grew by 3.000 ms"
    )


def test_a_step_is_compared_with_its_own_phase(tmp_path: Path) -> None:
    # GIVEN prefills of 5 ms before decode steps of 1 ms, each as long as others of its kind
    rows, ts_ns = [], 0
    for _ in range(20):
        rows += [step(ts_ns, "prefill"), step(ts_ns + 5 * PERIOD), step(ts_ns + 6 * PERIOD)]
        ts_ns += 7 * PERIOD
    rows.append(step(ts_ns))
    run = make_run(tmp_path, nvtx=rows)
    assert outliers(run) == ({"no"}, [])
    # and once there is one after a prefill, that is said
    slow = [step(ts_ns, "prefill"), step(ts_ns + 5 * PERIOD), step(ts_ns + 8 * PERIOD)]
    run = make_run(tmp_path, "slow", nvtx=[*rows[:-1], *slow])
    answers, [found] = outliers(run, max_ratio=2.5)
    assert answers == {"yes"}
    assert (found["previous_phase"], found["ratio"]) == ("prefill", "3.0")


def test_one_slow_step_in_many_is_shown_and_does_not_decide(tmp_path: Path) -> None:
    # GIVEN 199 steps of 1 ms and one of 9: the 99th percentile is 1 ms
    run = make_run(tmp_path, nvtx=[*map(step, starts(*[PERIOD] * 199, 9 * PERIOD))])
    answers, [found] = outliers(run)
    assert answers == {"no"}
    assert (found["step_id"], found["ratio"]) == ("200", "9.0")


def test_as_many_as_asked_for_are_shown(tmp_path: Path) -> None:
    periods = [PERIOD] * 30 + [PERIOD * i for i in (3, 5, 4)]
    run = make_run(tmp_path, nvtx=[*map(step, starts(*periods))])
    _, slow = outliers(run, most=2)
    assert [row["ratio"] for row in slow] == ["5.0", "4.0"]


def test_too_few_steps_tell_nothing(tmp_path: Path) -> None:
    # GIVEN 19 periods, and a 20th of another phase
    begun = starts(*[PERIOD] * 20)
    run = make_run(tmp_path, nvtx=[step(begun[0], None), *map(step, begun[1:])])
    assert outliers(run) == ({"unknown"}, [])
    assert evidence(run) == ("at most 19 steps of one phase have a known length, and it takes 20")
    assert outliers(run, min_steps=19) == ({"no"}, [])


def test_runs_without_periods(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "a_void"),
        make_run(tmp_path, "b_one", nvtx=[step(5)]),
        make_run(tmp_path, "c_open", nvtx=[span(5, None, "step")]),
    ]
    rows = [row.split(",")[:3] for row in table(runs, "step_outliers").splitlines()]
    assert rows == [
        [name, "unknown", "no step has a known length"] for name in ("a_void", "b_one", "c_open")
    ]
