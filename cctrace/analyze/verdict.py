"""The one sentence of a report: what to change, or why nothing is named.

Names in it are the traced program's own words: whoever shows it escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cctrace.analyze.sentences import duration

if TYPE_CHECKING:
    from cctrace.analyze.attribution import Attribution, Point, ReplayFacts

_WORTH_SHARE: Final = 0.02  # of a step: a smaller saving is not told as the thing to do


@dataclass(frozen=True)
class Verdict:
    """What somebody with ten seconds should know.

    Attributes:
        kind: change: a remedy is worth it; little: the best one saves next to nothing;
            held: calls hold the loop up, no remedy is known; even: nothing does;
            silent: the run cannot tell.
        sentence: It in one sentence.
        because: What it rests on, a sentence; empty: nothing to name.
        trust: How far to trust it, some words; empty: nothing is estimated.
    """

    kind: str
    sentence: str
    because: str
    trust: str


def verdict(made: Attribution) -> Verdict:
    """Say the most important thing that an attribution has to say."""
    replay = made.replay
    if replay is None or not replay.recorded_itl_ns:
        why = next((unknown.sentence for unknown in made.cannot_say), "nothing was recorded")
        return Verdict(
            "silent", "This run cannot say what holds its loop up.", f"Nor can it say {why}.", ""
        )
    step = f"a {replay.phase} step" if replay.phase else "a step"
    takes = f"{_first_up(step)} takes {duration(replay.recorded_itl_ns)}"
    if not made.run.cuda_calls:
        why = made.cannot_say[0].sentence
        return Verdict(
            "silent", f"{takes}; this run cannot say what for.", f"Nor can it say {why}.", ""
        )
    if not made.points:
        return Verdict("even", f"{takes}, and no call holds the loop up.", "", _trust(replay))
    best = made.points[0]
    because, trust = f"{_first_up(best.sentence)}.", _trust(replay, best)
    if best.remedy is None:
        return Verdict("held", f"No known change makes {step} shorter.", because, trust)
    instead = (
        f"{step} would take about {duration(best.remedy.expected_itl_ns)} "
        f"instead of {duration(replay.recorded_itl_ns)}"
    )
    share = best.remedy.recoverable_ns / replay.recorded_itl_ns
    if share < _WORTH_SHARE:
        title = f"{best.remedy.title[0].lower()}{best.remedy.title[1:]}"
        return Verdict(
            "little",
            f"No known change helps much: the best is to {title}, and {instead}.",
            because,
            trust,
        )
    return Verdict("change", f"{best.remedy.title}: {instead}.", because, trust)


def _trust(replay: ReplayFacts, point: Point | None = None) -> str:
    words = ["an estimate"] if point else []
    if point:
        reason = f" ({point.confidence_reason})" if point.confidence_reason else ""
        words.append(f"{point.confidence} confidence{reason}")
    if replay.error_ratio is not None:
        words.append(f"the replay is off by {abs(replay.error_ratio):.1%}")
    steps = f"{replay.steps:,} step{'' if replay.steps == 1 else 's'} replayed"
    words.append(f"{steps}, a sample" if replay.sampled else steps)
    return ", ".join(words)


def _first_up(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
