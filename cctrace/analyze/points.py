"""Serialization points: where the loop is held up, ranked by what can be had back.

A sample of the run's steps is replayed as it was, and again with each remedy there is
evidence for. What a remedy saves is the difference of the two replays, so that what the
replay leaves out cancels. A site's rank is by the best of its remedies.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cctrace.analyze import remedies as known
from cctrace.analyze.candidates import Candidate, Candidates, gather
from cctrace.analyze.replay import replay as replay_graph
from cctrace.analyze.sample import MAX_EVENTS, load_sample
from cctrace.analyze.sentences import COUNTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.analyze.candidates import SiteFacts
    from cctrace.analyze.recording import Step
    from cctrace.analyze.sample import Sample
    from cctrace.store.session import Session

_LEAST_SHARE = 0.005  # of the ITL: what a site must hold or save to be a point
_SAME_SHARE = 0.005  # of the ITL: savings that differ by less are the same
_SIMPLE = (  # remedies from a setting to a change of the engine
    "async_scheduling_on",
    "async_scheduling_off",
    "pageable_host_memory",
    "pinned_host_memory",
    "cuda_graphs",
    "worker_readback",
    "reuse_allocations",
    "batch_copies",
    "no_wait",
)
_GOOD_ERROR = 0.03  # of the replay unchanged
_FEW_STEPS = 10
_WIDE = 0.5  # width of the recoverable time's range, as a share of it
_BLOCK_STEPS = 8  # steps of a piece whose mean counts as one observation
_DRAWS = 200
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True)
class Gain:
    """What one remedy is expected to bring.

    Attributes:
        code: Name of the remedy.
        title: What to do.
        switch: Settings that do it.
        evidence: Why it is thought of here.
        recoverable_ns: What a step gets shorter by, ns; negative: longer.
        low_ns: Lower end of its range, ns.
        high_ns: Upper end of its range, ns.
        expected_itl_ns: Median step with it, ns.
    """

    code: str
    title: str
    switch: str
    evidence: str
    recoverable_ns: int
    low_ns: int
    high_ns: int
    expected_itl_ns: int


@dataclass(frozen=True)
class SerializationPoint:
    """A call site that holds the loop up.

    Attributes:
        rank: 1 is where most can be had back.
        role: Role of the thread, as in ``thread_roles``.
        path: NVTX path of the calls.
        api: Function.
        cls: Class of the function.
        copy_kind: Kind of copy; None: no copy.
        size_class: Class of its size; None: no size.
        stack_id: The stack with most of the time in these calls; None: none was taken.
        stack_share: That stack's share of their time, 0 to 1; None: none was taken.
        count_per_step: Calls a step, of each thread that makes them.
        blocked_ns_per_step: Time a step in which these calls waited, ns, on each thread.
        held_ns_per_step: Time a step in these calls in all, ns, on each thread.
        bubble_ns_per_step: Time a step in which the device was idle after they returned,
            as the replay has it, ns.
        next_launch_delay_ns: From such a call's start until the thread's next launch,
            ns; None: no launch follows.
        recoverable_ns: What a step would get shorter by with the best remedy, ns.
        recoverable_low_ns: Lower end of its range, ns.
        recoverable_high_ns: Upper end of its range, ns.
        recoverable_bound_ns: The same if nothing waited at these calls any more, those of
            the same readback included, ns; a remedy that changes other calls as well may
            bring more.
        expected_itl_ns: Median step with the remedy, ns; None: no remedy is known.
        remedy: The best remedy; None: none brings anything.
        alternatives: The others, best first.
        confidence: high, medium or low.
        confidence_reason: Why not higher; empty for high.
        example_step_id: Step of the example.
        example_ts_ns: Start of a typical call, ns.
        example_dur_ns: Its length, ns.
        pid: Process of the example.
        tid: Thread of the example.
    """

    rank: int
    role: str
    path: str
    api: str
    cls: str
    copy_kind: str | None
    size_class: str | None
    stack_id: int | None
    stack_share: float | None
    count_per_step: float
    blocked_ns_per_step: int
    held_ns_per_step: int
    bubble_ns_per_step: int
    next_launch_delay_ns: int | None
    recoverable_ns: int
    recoverable_low_ns: int
    recoverable_high_ns: int
    recoverable_bound_ns: int
    expected_itl_ns: int | None
    remedy: Gain | None
    alternatives: tuple[Gain, ...]
    confidence: str
    confidence_reason: str
    example_step_id: int | None
    example_ts_ns: int
    example_dur_ns: int
    pid: int
    tid: int


@dataclass(frozen=True)
class ReplaySummary:
    """How the replay went.

    Attributes:
        steps: Steps that were replayed and count.
        recorded_itl_ns: Median step of the run as recorded, ns.
        recorded_mean_ns: Mean step of it, ns.
        replayed_itl_ns: Median step of the unchanged replay, ns.
        error_ratio: Mean of replayed over recorded steps, less 1; None: no steps.
        sampled: Whether only a part of the run was replayed.
        phase: Phase of the steps that count; None: all do.
        stuck: Waits in the unchanged replay that nothing would have ended.
    """

    steps: int
    recorded_itl_ns: int | None
    recorded_mean_ns: int | None
    replayed_itl_ns: int | None
    error_ratio: float | None
    sampled: bool
    phase: str | None
    stuck: int


def _flat(periods: Sequence[dict[int, float]]) -> list[float]:
    return [length for piece in periods for length in piece.values()]


def _blocks_ns(
    before: Sequence[dict[int, float]], after: Sequence[dict[int, float]]
) -> list[float]:
    """Mean difference of each piece of some steps, ns."""
    found = []
    for piece, changed in zip(before, after, strict=True):
        both = [number for number in piece if number in changed]
        for at in range(0, len(both), _BLOCK_STEPS):
            some = both[at : at + _BLOCK_STEPS]
            if len(some) > _BLOCK_STEPS // 2 or at == 0:
                found.append(statistics.fmean(piece[n] - changed[n] for n in some))
    return found


def _spread(values: list[float], draw: random.Random) -> tuple[float, float]:
    """The range that the median of such values lies in, by drawing from them anew."""
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_DRAWS))
    return medians[int(_LOW * _DRAWS)], medians[int(_HIGH * _DRAWS)]


class _Ranking:
    """Replays the candidates, and makes points of the sites."""

    def __init__(self, sample: Sample, steps: Sequence[Step], *, sampled: bool) -> None:
        self._sample = sample
        self._draw = random.Random(1)  # noqa: S311 - repeatable, no secret
        counting = [step.period_ns for step in steps if sample.counts(step)]
        self._itl_ns = statistics.median(counting)
        self._replays = [replay_graph(stretch.graph) for stretch in sample.stretches]
        self._base = [
            sample.of_replay(s, r) for s, r in zip(sample.stretches, self._replays, strict=True)
        ]
        flat = _flat(self._base)
        recorded = [
            float(stretch.steps[number].period_ns)
            for stretch, piece in zip(sample.stretches, self._base, strict=True)
            for number in piece
        ]
        self._error = sum(flat) / sum(recorded) - 1 if recorded else None
        self.summary = ReplaySummary(
            len(flat),
            round(self._itl_ns),
            round(statistics.fmean(counting)),
            round(statistics.median(flat)) if flat else None,
            self._error,
            sampled,
            sample.phase,
            sum(found.stuck for found in self._replays),
        )

    def gain(self, candidate: Candidate) -> Gain:
        """Replay with a remedy, and say what it brings."""
        remedy = candidate.remedy
        after = self._sample.periods_ns([remedy])
        blocks = _blocks_ns(self._base, after)
        saved_ns = statistics.median(_flat(self._base)) - statistics.median(_flat(after))
        low_ns, high_ns = _spread(blocks, self._draw)
        low_ns, high_ns = min(low_ns, saved_ns), max(high_ns, saved_ns)
        if self._sample.hidden:
            for which in ("low", "high"):
                base = _flat(self._sample.periods_ns([], which))
                other = _flat(self._sample.periods_ns([remedy], which))
                found_ns = statistics.median(base) - statistics.median(other)
                low_ns, high_ns = min(low_ns, found_ns), max(high_ns, found_ns)
        return Gain(
            remedy.code,
            remedy.title,
            remedy.switch,
            candidate.evidence,
            round(saved_ns),
            round(low_ns),
            round(high_ns),
            round(self._itl_ns - saved_ns),
        )

    def points(self) -> list[SerializationPoint]:
        """Return the points by rank."""
        facts = gather(self._sample, self._replays)
        gains: dict[int, list[Gain]] = defaultdict(list)
        candidates = Candidates(self._sample, facts, self.summary.steps)
        for candidate in candidates.run():
            gains[candidate.site].append(self.gain(candidate))
        floor_ns = _LEAST_SHARE * self._itl_ns
        found = []
        for site, site_facts in facts.items():
            best = self._best_first(gains[site])
            per_step_ns = site_facts.held_ns / self._turns(site_facts)
            if per_step_ns >= floor_ns or (best and best[0].recoverable_ns >= floor_ns):
                around = candidates.together.get(site, frozenset([site]))
                found.append(self._point(site, site_facts, best, around))
        found.sort(key=lambda point: (-point.recoverable_ns, -point.held_ns_per_step))
        return [replace(point, rank=rank) for rank, point in enumerate(found, 1)]

    def _point(
        self, site: int, facts: SiteFacts, gains: list[Gain], around: frozenset[int]
    ) -> SerializationPoint:
        key = self._sample.sites.keys[site]
        turns = self._turns(facts)
        best = gains[0] if gains and gains[0].recoverable_ns > 0 else None
        bound = self.gain(Candidate(known.NoWait(around), site, ""))
        lengths = sorted(facts.lengths, key=lambda entry: entry[:2])
        dur_ns, ts_ns, item = lengths[len(lengths) // 2]
        call = item.call
        # Of as long ones the one of the least number, whichever came first.
        usual = max(facts.stacks_ns.items(), key=lambda known: (known[1], -known[0]), default=None)
        confidence, reason = self._confidence(best)
        return SerializationPoint(
            rank=0,
            role=key.role,
            path=key.path,
            api=key.api,
            cls=key.cls,
            copy_kind=key.copy_kind,
            size_class=key.size_class,
            stack_id=usual[0] if usual else None,
            stack_share=usual[1] / facts.held_ns if usual and facts.held_ns else None,
            count_per_step=facts.calls / turns,
            blocked_ns_per_step=round(facts.blocked_ns / turns),
            held_ns_per_step=round(facts.held_ns / turns),
            bubble_ns_per_step=round(facts.bubble_ns / turns),
            next_launch_delay_ns=(
                round(statistics.median(facts.delays_ns)) if facts.delays_ns else None
            ),
            recoverable_ns=best.recoverable_ns if best else 0,
            recoverable_low_ns=best.low_ns if best else 0,
            recoverable_high_ns=best.high_ns if best else 0,
            recoverable_bound_ns=max(0, bound.recoverable_ns),
            expected_itl_ns=best.expected_itl_ns if best else None,
            remedy=best,
            alternatives=tuple(gain for gain in gains if gain is not best),
            confidence=confidence,
            confidence_reason=reason,
            example_step_id=self._step_id(ts_ns),
            example_ts_ns=ts_ns,
            example_dur_ns=dur_ns,
            pid=call.pid if call else 0,
            tid=call.tid if call else 0,
        )

    def _best_first(self, gains: Sequence[Gain]) -> list[Gain]:
        """Order by what they bring; of those that bring the same the simplest is first."""
        found = sorted(gains, key=lambda gain: -gain.recoverable_ns)
        same_ns = _SAME_SHARE * self._itl_ns
        as_good = [g for g in found if g.recoverable_ns >= found[0].recoverable_ns - same_ns]
        simplest = min(as_good, key=lambda gain: _SIMPLE.index(gain.code), default=None)
        return [] if simplest is None else [simplest, *(g for g in found if g is not simplest)]

    def _turns(self, facts: SiteFacts) -> int:
        """Steps times threads: where several processes do the same, figures are of each."""
        return self.summary.steps * len(facts.threads)

    def _step_id(self, ts_ns: int) -> int | None:
        for stretch in self._sample.stretches:
            for step in stretch.steps:
                if step.ts_ns <= ts_ns < step.ts_ns + step.period_ns:
                    return step.step_id
        return None

    def _confidence(self, gain: Gain | None) -> tuple[str, str]:
        """How sure a point's figures are, and why no surer."""
        low, medium = "", ""
        if self._error is None or abs(self._error) > _GOOD_ERROR:
            low = f"the replay without a change is off by {self._error or 0:.1%}"
        elif self.summary.steps < _FEW_STEPS:
            one = self.summary.steps == 1
            low = f"only {self.summary.steps} {'step was' if one else 'steps were'} replayed"
        elif self._sample.counted:
            low = COUNTED
        elif self._sample.unlinked:
            low = "who waits for whom was not recorded (source sched)"
        elif self.summary.stuck:
            low = "some waits end by what is not in the run"
        elif gain is None:
            medium = "no remedy is known to help"
        elif gain.high_ns - gain.low_ns > _WIDE * max(1, gain.recoverable_ns):
            why = "how long the device works is hidden" if self._sample.hidden else "steps differ"
            low = f"{why}: {gain.low_ns / 1000:.0f} to {gain.high_ns / 1000:.0f} us"
        elif self._sample.hidden:
            medium = "how long the device works is hidden in part"
        if low:
            return "low", low
        return ("medium", medium) if medium else ("high", "")


def find_points(
    session: Session, run_label: str, max_events: int = MAX_EVENTS
) -> tuple[list[SerializationPoint], ReplaySummary]:
    """Find and rank the serialization points of a run.

    Args:
        session: The run, opened; its views may be tables of a part of it.
        run_label: Its label.
        max_events: Events to replay at most, about.

    Returns:
        The points by rank, and how the replay went; no points where there are too few
        steps to replay.
    """
    loaded = load_sample(session, run_label, max_events)
    if loaded is None:
        return [], ReplaySummary(0, None, None, None, None, sampled=False, phase=None, stuck=0)
    sample, steps, sampled = loaded
    ranking = _Ranking(sample, steps, sampled=sampled)
    if not ranking.summary.steps:
        return [], ranking.summary
    return ranking.points(), ranking.summary
