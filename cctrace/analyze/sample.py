"""A sample of a run's steps, ready to be replayed as it was or with remedies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cctrace.analyze import remedies as known
from cctrace.analyze.costs import load_costs
from cctrace.analyze.recording import choose, count_events, load, load_steps
from cctrace.analyze.replay import replay
from cctrace.analyze.stretch import Sites, build

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.analyze.costs import Costs
    from cctrace.analyze.recording import Recording, Step
    from cctrace.analyze.remedies import Remedy
    from cctrace.analyze.replay import Replay
    from cctrace.analyze.stretch import Stretch
    from cctrace.store.session import Session

MAX_EVENTS = 60_000
DECODE = "decode"
_DECODE_SHARE = 0.2  # of the steps, from which on those that only decode are what counts


class Sample:
    """Stretches of a run, ready to be replayed with any remedies.

    Attributes:
        costs: What calls cost in the run.
        sites: Its call sites.
        stretches: The stretches, with likely lengths on the device.
        phase: Phase of the steps that count; None: all do.
        hidden: Whether how long the device works is a guess, in part.
        counted: Whether launches were counted rather than recorded, in part.
        unlinked: Whether several threads take part, and who waited for whom was not
            recorded.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        costs: Costs,
        sites: Sites,
        phase: str | None,
        *,
        has_waits: bool = True,
    ) -> None:
        self.costs = costs
        self.sites = sites
        self.phase = phase
        self._recordings = recordings
        self.stretches = [build(recording, costs, sites) for recording in recordings]
        self.hidden = any(stretch.hidden for stretch in self.stretches)
        self.counted = any(stretch.counted for stretch in self.stretches)
        self.unlinked = not has_waits and any(
            len(stretch.graph.threads) > 1 for stretch in self.stretches
        )
        self._others: dict[str, list[Stretch]] = {"likely": self.stretches}

    def bound(self, which: str) -> list[Stretch]:
        """Return the stretches with lengths on the device at one end of their bounds."""
        if which not in self._others:
            self._others[which] = [
                build(recording, self.costs, self.sites, which) for recording in self._recordings
            ]
        return self._others[which]

    def counts(self, step: Step) -> bool:
        """Whether a step is of the phase that counts."""
        return self.phase is None or step.phase == self.phase

    def periods_ns(
        self, remedies: Sequence[Remedy] = (), which: str = "likely"
    ) -> list[dict[int, float]]:
        """Replay all stretches.

        Args:
            remedies: What to change first.
            which: low, likely or high: bounds of the lengths on the device.

        Returns:
            For each stretch the length of its steps that count, ns, by number.
        """
        return [
            self.of_replay(s, replay(known.apply(s.graph, remedies))) for s in self.bound(which)
        ]

    def of_replay(self, stretch: Stretch, found: Replay) -> dict[int, float]:
        """Return the length of the steps that count in a replay, ns, by number."""
        periods = found.periods_ns(stretch.graph.first_step, stretch.graph.last_step)
        return {
            number: length
            for number, length in periods.items()
            if self.counts(stretch.steps[number])
        }


def load_sample(
    session: Session, run_label: str, max_events: int = MAX_EVENTS
) -> tuple[Sample, list[Step], bool] | None:
    """Read the stretches to replay.

    Args:
        session: The run, opened.
        run_label: Its label.
        max_events: Events to replay at most, about.

    Returns:
        The sample, all steps of the loop, and whether the sample leaves some out; None
        where there are too few steps.
    """
    steps = load_steps(session, run_label)
    if not steps:
        return None
    chosen = choose(steps, count_events(session, run_label, steps), max_events)
    if not chosen:
        return None
    costs = load_costs(session, run_label)
    rows = session.sql(
        "SELECT pid, tid, role FROM thread_roles WHERE run = $run", {"run": run_label}
    ).fetchall()
    sites = Sites({(pid, tid): role for pid, tid, role in rows})
    recordings = [load(session, run_label, piece) for piece in chosen]
    decoding = sum(step.phase == DECODE for piece in chosen for step in piece)
    phase = DECODE if decoding > sum(map(len, chosen)) * _DECODE_SHARE else None
    sampled = sum(map(len, chosen)) < len(steps)
    [(attached,)] = session.sql(
        "SELECT attached FROM runs WHERE run = $run", {"run": run_label}
    ).fetchall()
    has_waits = "sched" in (attached or "").split(",")
    return Sample(recordings, costs, sites, phase, has_waits=has_waits), steps, sampled
