"""The facts of a run around its figures: what ran, what was lost, what cannot be said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cctrace.analyze import sentences
from cctrace.analyze.attribution import LossFact, RunFacts, SourceFact
from cctrace.store.losses import REASONS
from cctrace.store.run import utc_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cctrace.analyze.attribution import Attribution, Unknown
    from cctrace.store.run import Run
    from cctrace.store.session import Session

_STILL_RUNNING = ("recording", "recorder_killed")


def run_facts(run: Run, session: Session) -> RunFacts:
    """What ran, on what, and how it was recorded.

    Args:
        run: The run.
        session: A session on it.

    Raises:
        CctraceError: Exit code 4; a part is damaged or gone.
    """
    manifest = run.manifest
    tool = manifest.options.get("imported_from")
    known = session.sql("SELECT gpu_name FROM runs").fetchall()
    counted = session.sql("SELECT coalesce(sum(calls), 0)::BIGINT FROM _counted_launches")
    return RunFacts(
        path=str(run.path),
        command=tuple(manifest.command),
        started=utc_text(manifest.start.realtime_ns),
        length_ns=_length_ns(run),
        ended=manifest.ended,
        exit_code=manifest.exit_code,
        imported_from=tool if isinstance(tool, str) else None,
        cctrace_version=str(manifest.cctrace_version),
        kernel=run.host_fact("kernel"),
        cpu=run.host_fact("cpu", "model"),
        tee=run.host_fact("tee", "kind"),
        gpu_cc=run.host_fact("gpu", "cc_state"),
        gpu=known[0][0],
        gpu_driver=run.host_fact("gpu", "driver_version"),
        processes=run.rows("processes"),
        events=run.events,
        cuda_calls=run.rows("cuda_api"),
        launches_counted=counted.fetchall()[0][0],
        lost=run.losses.lost_total,
        size_bytes=sum(row[0] for row in session.sql("SELECT size_bytes FROM runs").fetchall()),
        sources=tuple(
            SourceFact(s.name, s.state, _text(s.reason), _text(s.hint)) for s in manifest.sources
        ),
    )


def _length_ns(run: Run) -> int | None:
    stop = run.manifest.stop
    return None if stop is None else stop.monotonic_ns - run.manifest.start.monotonic_ns


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def loss_facts(run: Run) -> tuple[LossFact, ...]:
    """What was lost, by reason: missing events first, most first."""
    losses = run.losses
    return tuple(
        LossFact(name, count, loses, REASONS[name].doc if name in REASONS else "unknown reason")
        for counts, loses in ((losses.lost, True), (losses.impaired, False))
        for name, count in counts.items()
    )


def unknowns(made: Attribution, run: Run, session: Session) -> tuple[Unknown, ...]:
    """What the run cannot tell, the most important first.

    Args:
        made: The attribution so far.
        run: The run.
        session: A session on it.
    """
    has_calls = made.run.cuda_calls > 0 or made.run.launches_counted > 0
    found = [*_missing(made, run, has_calls=has_calls), *_lossy(made, session)]
    if has_calls:
        found += _estimated(made, run, session)
    return tuple(found)


def _missing(made: Attribution, run: Run, *, has_calls: bool) -> Iterator[Unknown]:
    """What was not there to be recorded, or no source recorded."""
    sources = {source.name: source for source in made.run.sources}
    if not has_calls:
        yield sentences.no_calls(sources.get("cuda"))
    if not made.steps:
        yield sentences.no_steps(has_ranges=run.rows("nvtx") > 0, has_calls=has_calls)
    elif not any(step.periods for step in made.steps):
        yield sentences.no_lengths(sum(step.steps for step in made.steps))
    elif made.replay is None or not made.replay.steps:
        yield sentences.too_few_steps(sum(step.periods for step in made.steps))
    sched = sources.get("sched")
    if made.run.imported_from is not None:
        yield sentences.imported(made.run.imported_from, has_sched=run.rows("sched") > 0)
    elif sched is None or sched.state != "attached":
        yield sentences.no_sched(sched)


def _lossy(made: Attribution, session: Session) -> Iterator[Unknown]:
    """What was there, and was recorded in part."""
    if made.losses:
        yield sentences.lost(made.run.lost, made.run.events, made.losses)
    if made.run.ended in _STILL_RUNNING:
        yield sentences.not_over(made.run.ended)
    if made.run.launches_counted:
        sampled = session.sql("SELECT count(*) FROM _counted_launches WHERE sampled").fetchall()
        yield sentences.counted(sampled=sampled[0][0] > 0)


def _estimated(made: Attribution, run: Run, session: Session) -> Iterator[Unknown]:
    """What is told from something else than itself."""
    crossings = session.sql("SELECT sum(crossings) FROM step_parts").fetchall()[0][0]
    if crossings == 0 and run.rows("cuda_api"):
        yield sentences.no_calls_of_driver()
    assumed = {sentences.crossing(row) for row in made.bridge if row.source != "run" and row.calls}
    if assumed:
        yield sentences.from_profile(sorted(assumed), made.bridge)
    if not run.rows("gpu_activity"):
        yield sentences.no_activity()
    if made.run.gpu_cc in {None, "unknown"}:
        yield sentences.unknown_cc()
    if made.replay and made.replay.steps and not any(point.remedy for point in made.points):
        yield sentences.no_remedy()
    if made.run.processes <= 1:
        yield sentences.one_process()
