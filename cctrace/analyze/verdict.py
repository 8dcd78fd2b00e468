"""The one sentence of a report: what to change, or why nothing is named.

Names in it are the traced program's own words: whoever shows it escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cctrace.analyze.sentences import COUNTED, duration

if TYPE_CHECKING:
    from cctrace.analyze.attribution import Attribution, Point

_WORTH_SHARE: Final = 0.02  # of a step: a smaller saving is not told as the thing to do
_HELD_SHARE: Final = 0.005  # of a step, as of a point: what a call has to hold to be told of


@dataclass(frozen=True)
class Verdict:
    """What somebody with ten seconds should know.

    Attributes:
        kind: change: a remedy is worth it; little: the best one saves next to nothing;
            held: calls hold the loop up, no remedy is known; counted: launches take time,
            and were not replayed; even: nothing holds it up; silent: the run cannot tell.
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
    if replay is None or not replay.steps or not replay.recorded_itl_ns:
        why = next((unknown.sentence for unknown in made.cannot_say), "nothing was recorded")
        return Verdict(
            "silent", "This run cannot say what holds its loop up.", f"Nor can it say {why}.", ""
        )
    step = f"a {replay.phase} step" if replay.phase else "a step"
    takes = f"{_first_up(step)} takes {duration(replay.recorded_itl_ns)}"
    if not (made.run.cuda_calls or made.run.launches_counted):
        why = made.cannot_say[0].sentence
        return Verdict("silent", f"{takes}{_main_part(made)}.", f"This run cannot say {why}.", "")
    if not made.points:
        kind, sentence = _without_points(made)
        return Verdict(kind, f"{takes}{sentence}.", "", _trust(made))
    best = made.points[0]
    because, trust = f"{_first_up(best.sentence)}.", _trust(made, best)
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


def _main_part(made: Attribution) -> str:
    """What most of the steps' time is for, where that is known."""
    phase = made.replay.phase if made.replay else None
    own = [part for part in made.parts if phase in {None, part.phase}]
    total_ns = sum(part.total_ns for part in own)
    most = max(own, key=lambda part: part.total_ns, default=None)
    if most is None or not total_ns or most.part == "unattributed":
        return "; this run cannot say what for"
    return f"; {most.total_ns / total_ns:.0%} of the steps' time is {most.part}"


def _without_points(made: Attribution) -> tuple[str, str]:
    """Kind and sentence of a run in which no call is a point."""
    if not made.run.launches_counted:
        return "even", ", and no call holds the loop up"
    counted = "; launches were counted, not replayed, and"
    share = _counted_share(made)
    if share < _HELD_SHARE:
        return "even", f"{counted} no other call holds the loop up"
    return "counted", f"{counted} are {share:.1%} of the step"


def _counted_share(made: Attribution) -> float:
    """Share of launches in the steps that count, 0 to 1; 0 where none of them was counted."""
    phase = made.replay.phase if made.replay else None
    own = [part for part in made.parts if phase in {None, part.phase}]
    launches = [part for part in own if part.part == "launch"]
    total_ns = sum(part.total_ns for part in own)
    if not total_ns or not any(part.is_estimate for part in launches):
        return 0.0
    return sum(part.total_ns for part in launches) / total_ns


def _trust(made: Attribution, point: Point | None = None) -> str:
    replay = made.replay
    assert replay is not None  # noqa: S101 - without one nothing is said that needs trust
    words = ["an estimate"] if point else []
    reason = point.confidence_reason if point else ""
    if point:
        words.append(f"{point.confidence} confidence" + (f" ({reason})" if reason else ""))
    if made.run.launches_counted and reason != COUNTED:
        words.append(COUNTED)
    if replay.error_ratio is not None:
        words.append(f"the replay is off by {abs(replay.error_ratio):.1%}")
    steps = f"{replay.steps:,} step{'' if replay.steps == 1 else 's'} replayed"
    words.append(f"{steps}, a sample" if replay.sampled else steps)
    return ", ".join(words)


def _first_up(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
