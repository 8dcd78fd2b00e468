"""What the page shows of a run as a whole: lengths of steps, costs of copies, a choice of steps.

Columns rather than rows, since the page draws them as they are and a long run has
thousands. Times are ns from the start of the recording, lengths ns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cctrace.store.session import Session

    Json = dict[str, Any]

BINS: Final = 2_000  # of an engine and phase over time: more than a screen has pixels
HISTOGRAM_BINS: Final = 80
_LOOPS: Final = 6  # engines and phases drawn, those with the most time
_SLOWEST: Final = 5
_FIRST: Final = 3
_EXAMPLES: Final = 8  # steps of serialization points
_TOLL_COLUMNS: Final = (
    "copy_kind",
    "host_memory",
    "size_from_bytes",
    "calls",
    "timed",
    "p50_ns",
    "p99_ns",
    "gb_per_s",
    "open_ns",
    "cc_ns",
)


def step_lengths(session: Session, report: Mapping[str, Any]) -> list[Json]:
    """How long steps took, over time and by length, of each engine and phase.

    Args:
        session: The run, opened; one run.
        report: The report, as JSON has it.

    Returns:
        An object for each of the engines and phases with the most time, in the order of
        ``report["steps"]``: ``over_time`` and ``histogram``, columns of the reports
        ``itl_over_time`` and ``itl_histogram``.
    """
    start_ns = session.manifest.start.monotonic_ns
    over_time = _grouped(session.report("itl_over_time", {"bins": BINS}))
    lengths = _grouped(session.report("itl_histogram", {"bins": HISTOGRAM_BINS}))
    found: list[Json] = []
    for step in report["steps"]:
        key = step["engine"], step["phase"]
        if key not in over_time or len(found) == _LOOPS:
            continue
        bins = over_time[key]
        bins["ts_ns"] = [ts_ns - start_ns for ts_ns in bins["ts_ns"]]
        bins["until_ns"] = [until_ns - start_ns for until_ns in bins["until_ns"]]
        found.append(
            {
                "engine": key[0],
                "phase": key[1],
                "steps": sum(bins["steps"]),
                "over_time": bins,
                "histogram": lengths[key],
            }
        )
    return found


def _grouped(result: Any) -> dict[tuple[str, str | None], Json]:
    """Columns of a report by engine and phase."""
    found: dict[tuple[str, str | None], Json] = {}
    names = result.columns[3:]  # without run, engine and phase
    for _, engine, phase, *values in result.fetchall():
        columns = found.setdefault((engine, phase), {name: [] for name in names})
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
    return found


def copy_tolls(session: Session) -> list[Json]:
    """What copies cost by their size: rows of the report ``copy_toll_by_size``.

    Args:
        session: The run, opened; its tables may be cut to a sample.

    Returns:
        Rows of the classes of size that have a figure, in the report's order.
    """
    result = session.report("copy_toll_by_size")
    rows = (dict(zip(result.columns, row, strict=True)) for row in result.fetchall())
    return [
        {name: _rounded(row[name]) for name in _TOLL_COLUMNS}
        for row in rows
        if row["p50_ns"] is not None and row["size_from_bytes"] is not None
    ]


def _rounded(value: Any) -> Any:
    # Sums of doubles differ in their last digits with the order they are added in.
    return round(value, 6) if isinstance(value, float) else value


def main_loop(report: Mapping[str, Any]) -> Json | None:
    """The steps the page is about: decode where there is any, else those with the most time."""
    parts = {(part["engine"], part["phase"]) for part in report["parts"]}
    known = [step for step in report["steps"] if (step["engine"], step["phase"]) in parts]
    decode = [step for step in known if step["phase"] == "decode"]
    return next(iter(decode or known), None)


def chosen_steps(session: Session, report: Mapping[str, Any]) -> list[Json]:
    """Choose the steps that the page shows event by event.

    Args:
        session: The run, opened.
        report: The report, as JSON has it.

    Returns:
        The steps, each once: ``step_id``, ``engine``, ``phase``, ``pid``, ``tid``,
        ``ts_ns`` (ns of CLOCK_MONOTONIC), ``period_ns`` and ``reasons``, the words of the
        report ``steps_to_show``; an example has the rank of its point, as ``point 1``.
    """
    main = main_loop(report)
    if main is None:
        return []
    points = [point for point in report["points"] if point["example_step_id"] is not None]
    examples = points[:_EXAMPLES]
    rows = session.report(
        "steps_to_show",
        {
            "engine": main["engine"],
            "phase": main["phase"],
            "examples": ",".join(str(point["example_step_id"]) for point in examples) or None,
            "slowest": _SLOWEST,
            "first": _FIRST,
        },
    ).fetchall()
    found: dict[int, Json] = {}
    for _, reason, place, step_id, engine, phase, pid, tid, ts_ns, period_ns in rows:
        step = found.setdefault(
            step_id,
            {
                "step_id": step_id,
                "engine": engine,
                "phase": phase,
                "pid": pid,
                "tid": tid,
                "ts_ns": ts_ns,
                "period_ns": period_ns,
                "reasons": [],
            },
        )
        step["reasons"] += _reasons(reason, place, step_id, examples)
    return list(found.values())


def _reasons(
    reason: str, place: int, step_id: int, examples: Sequence[Mapping[str, Any]]
) -> list[str]:
    if reason == "example":
        return [f"point {p['rank']}" for p in examples if p["example_step_id"] == step_id]
    return [f"{reason} {place}" if reason in {"slowest", "first"} else reason]
