"""From a run to its attribution: which views are computed over which part of the run.

Views do the work. Here is decided what they see at a time, so that memory does not grow
with a run:

1. steps, over the whole run, from its NVTX ranges.
2. What holds for the run as a whole (the bridge model, what threads do), over slices
   spread over the run where it is long.
3. Parts of each step and idle time of each device, chunk by chunk; a row per step stays.
4. Serialization points, by replay of some slices.

A run that fits is one chunk, and its own sample.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from cctrace.analyze import chunks, points, report_data, sentences
from cctrace.analyze.attribution import (
    Attribution,
    BridgeCost,
    DeviceIdle,
    PartStats,
    Point,
    Remedy,
    ReplayFacts,
    StepStats,
)
from cctrace.analyze.pieces import Pieces
from cctrace.errors import EXIT_USAGE, CctraceError
from cctrace.store.excerpt import CUT_TABLES, Excerpt, row_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cctrace.analyze.chunks import Chunk, Density, Loop
    from cctrace.analyze.points import Gain, SerializationPoint
    from cctrace.store.excerpt import Window
    from cctrace.store.run import Run

# Facts of the run as a whole, in the order they are computed in.
_OF_THE_RUN: Final = (
    "_probe_costs",
    "_copy_waits",
    "_run_profiles",
    "bridge_model",
    "thread_roles",
    "_usual_work",
)
_OF_STEPS: Final = ("step_parts", "device_idle")
_GIB: Final = 1 << 30


@dataclass(frozen=True)
class Limits:
    """How much of a run is looked at at once. The defaults are for two cores and 2 GiB.

    Attributes:
        chunk_events: Events in a chunk, about.
        sample_events: Events that facts of the run as a whole are told from.
        sample_slices: Stretches they are taken from.
        replay_events: Events that are replayed.
        replay_slices: Stretches they are taken from.
        workers: Chunks worked on at a time.
        memory_bytes: What DuckDB may use, for one chunk or for all at work.
    """

    chunk_events: int = 1_000_000
    sample_events: int = 500_000
    sample_slices: int = 8
    replay_events: int = 100_000
    replay_slices: int = 4
    workers: int = 2
    memory_bytes: int = _GIB


def limits_for(events: int) -> Limits:
    """Limits for a run of so many events: a longer one has more steps to keep."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = _GIB + 24 * events
    return Limits(memory_bytes=max(min(wanted, 4 * _GIB, physical // 2), _GIB // 2))


def attribute(run: Run, limits: Limits | None = None) -> Attribution:
    """Tell where the time of a run's steps goes.

    Args:
        run: The run.
        limits: How much of it is looked at at once; by its length unless given.

    Raises:
        CctraceError: Exit code 4; a part is damaged or gone.
    """
    with attributing(run, limits) as told:
        return told.attribution


@dataclass(frozen=True)
class Told:
    """An attribution, and the session in which what it rests on is at hand.

    Attributes:
        attribution: The attribution.
        excerpt: The run. Rows of ``steps``, ``step_parts``, ``device_idle``,
            ``bridge_model`` and ``thread_roles`` are kept in it, so that they cost nothing.
        sample: Windows that stand for the run where it is too long to ask of all its
            events; None: ask of all of it.
    """

    attribution: Attribution
    excerpt: Excerpt
    sample: tuple[Window, ...] | None


@contextmanager
def attributing(run: Run, limits: Limits | None = None) -> Iterator[Told]:
    """Attribute, and leave the session open for what else is to be asked of the run.

    Args:
        run: The run.
        limits: How much of it is looked at at once; by its length unless given.

    Raises:
        CctraceError: Exit code 4; a part is damaged or gone.
    """
    limits = limits or limits_for(run.events)
    with Excerpt(run, memory_limit=f"{limits.memory_bytes}B") as excerpt:
        work = _Work(run, excerpt, limits)
        yield Told(work.attribution(), excerpt, work.sample)


class _Work:
    """One attribution at work."""

    def __init__(self, run: Run, excerpt: Excerpt, limits: Limits) -> None:
        self._run = run
        self._excerpt = excerpt
        self._limits = limits
        self.sample: tuple[Window, ...] | None = None

    def attribution(self) -> Attribution:
        self._excerpt.keep("steps")
        columns = "pid, tid, ts_ns, dur_ns, period_ns"
        steps = self._excerpt.sql(f"SELECT {columns} FROM steps").arrow()  # noqa: S608 - constant
        found = chunks.loops(steps)
        density = chunks.Density(
            group for name in CUT_TABLES for group in row_groups(self._run, name)
        )
        sampled = self._keep_facts_of_the_run(found, density)
        pieces = chunks.cut(found, density, self._limits.chunk_events)
        held_up, replayed = self._points_and_steps(found, density, pieces)
        facts = report_data.run_facts(self._run, self._excerpt)
        made = Attribution(
            run=facts,
            steps=tuple(
                StepStats(**row) for row in self._rows("_step_stats", "total_ns DESC, engine")
            ),
            parts=tuple(
                PartStats(**_without(row, "rank"))
                for row in self._rows("_part_stats", "engine, phase, rank")
            ),
            bridge=tuple(
                _bridge_cost(row)
                for row in self._rows("bridge_model", '"class", api, copy_kind, host_memory')
            ),
            device_idle=tuple(
                _device_idle(row) for row in self._rows("_idle_stats", "pid, device")
            ),
            points=held_up,
            replay=replayed,
            losses=report_data.loss_facts(self._run),
            cannot_say=(),
            bridge_sampled=sampled,
            chunks=max(len(pieces), 1),
        )
        return replace(made, cannot_say=report_data.unknowns(made, self._run, self._excerpt))

    def _keep_facts_of_the_run(self, found: Sequence[Loop], density: Density) -> bool:
        limits = self._limits
        slices = chunks.sample(found, density, limits.sample_events, limits.sample_slices)
        self._look_at(slices)
        for name in _OF_THE_RUN:
            self._excerpt.keep(name)
        return slices is not None

    def _points_and_steps(
        self, found: Sequence[Loop], density: Density, pieces: Sequence[Chunk]
    ) -> tuple[tuple[Point, ...], ReplayFacts | None]:
        """Find the points, and keep what is told of each step."""
        if len(pieces) < 2:  # noqa: PLR2004 - one chunk is the whole run
            points = self._points(found, density)
            self._look_at(None)
            for name in _OF_STEPS:
                self._excerpt.keep(name)
            return points
        self._excerpt.cut_long(chunks.longest_inside(pieces))
        with Pieces(
            self._run,
            pieces,
            _OF_STEPS,
            self._excerpt.kept(),
            workers=self._limits.workers,
            memory_bytes=self._limits.memory_bytes,
        ) as at_work:
            # The replay is Python's work, and leaves a core to the chunks.
            points = self._points(found, density)
            self._look_at(None)
            for name in _OF_STEPS:
                self._excerpt.adopt_rows(name, at_work.rows(name))
                self._excerpt.give(name)
        return points

    def _points(
        self, found: Sequence[Loop], density: Density
    ) -> tuple[tuple[Point, ...], ReplayFacts | None]:
        limits = self._limits
        slices = chunks.sample(found, density, limits.replay_events, limits.replay_slices)
        self.sample = None if slices is None else tuple(piece.core for piece in slices)
        if not found:
            return (), None
        self._look_at(slices)
        sites, summary = points.find_points(self._excerpt, self._run.label)
        values = {name: getattr(summary, name) for name in ReplayFacts.__dataclass_fields__}
        values["sampled"] = summary.sampled or slices is not None
        found_points = tuple(
            _point(site, self._size_bytes(site), self._called_from(site)) for site in sites
        )
        return found_points, ReplayFacts(**values)

    def _size_bytes(self, site: SerializationPoint) -> int | None:
        """Size of a point's example."""
        rows = self._excerpt.sql(
            "SELECT max(size_bytes) FROM cuda_api "
            "WHERE depth = 0 AND pid = $pid AND tid = $tid AND ts_ns = $ts_ns",
            {"pid": site.pid, "tid": site.tid, "ts_ns": site.example_ts_ns},
        ).fetchall()
        size_bytes: int | None = rows[0][0]
        return size_bytes

    def _called_from(self, site: SerializationPoint) -> tuple[str, ...]:
        """Who makes most of a point's calls."""
        if site.stack_id is None:
            return ()
        rows = self._excerpt.sql(
            "SELECT callers FROM stack_callers WHERE stack_id = $stack_id",
            {"stack_id": site.stack_id},
        ).fetchall()
        return tuple(rows[0][0]) if rows else ()

    def _look_at(self, slices: Sequence[Chunk] | None) -> None:
        if slices is None:
            self._excerpt.focus(None)
        else:
            self._excerpt.focus([s.window for s in slices], [s.core for s in slices])

    def _rows(self, view: str, order: str) -> list[dict[str, Any]]:
        """Rows of a view as dicts without ``run``, in order."""
        result = self._excerpt.sql(f"SELECT * FROM {view} ORDER BY {order}")  # noqa: S608 - constants
        rows = result.fetchall()
        return [_without(dict(zip(result.columns, row, strict=True)), "run") for row in rows]


def _without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def _bridge_cost(row: dict[str, Any]) -> BridgeCost:
    # Sums of doubles differ in their last digits with the order they are added in.
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
    values = {**rounded, "cls": row["class"], "samples": row["n"]}
    return BridgeCost(**{name: values[name] for name in BridgeCost.__dataclass_fields__})


def _device_idle(row: dict[str, Any]) -> DeviceIdle:
    shares = {
        "idle_share": _ratio(row["idle_ns"], row["estimated_ns"]),
        "observed_share": _ratio(row["observed_idle_ns"], row["observed_total_ns"]),
        "within_bounds": _ratio(row["within_bounds"], row["scored_steps"]),
        "error_ratio": _ratio(row["error_ns"], row["error_of_ns"]),
    }
    values = {**row, **shares}
    return DeviceIdle(**{name: values[name] for name in DeviceIdle.__dataclass_fields__})


def _ratio(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _point(site: SerializationPoint, size_bytes: int | None, called_from: tuple[str, ...]) -> Point:
    """A serialization point as the report has it, in one sentence."""
    values = {n: getattr(site, n) for n in Point.__dataclass_fields__ if hasattr(site, n)}
    values["remedy"] = site.remedy and _remedy(site.remedy)
    values["alternatives"] = tuple(_remedy(gain) for gain in site.alternatives)
    point = Point(**values, sentence="", size_bytes=size_bytes, called_from=called_from)
    return replace(point, sentence=sentences.point(point))


def _remedy(gain: Gain) -> Remedy:
    return Remedy(**{name: getattr(gain, name) for name in Remedy.__dataclass_fields__})


def choose(runs: Sequence[Run], label: str | None) -> Run:
    """The run of ``label``, or the only one.

    Raises:
        CctraceError: Exit code 2; none has that label, or there are several.
    """
    labels = ", ".join(run.label for run in runs)
    if label is None and len(runs) == 1:
        return runs[0]
    for run in runs:
        if run.label == label:
            return run
    raise CctraceError(
        "several runs are open" if label is None else f"no run is labelled {label!r}",
        f"name one of {labels}",
        EXIT_USAGE,
    )
