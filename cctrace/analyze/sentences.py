"""The sentences of a report: what a point does, and what a run cannot tell.

Names in them are the traced program's own words: whoever prints them escapes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cctrace.analyze.attribution import Unknown
from cctrace.analyze.recording import WARM_UP_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.analyze.attribution import BridgeCost, LossFact, Point, Remedy, SourceFact

_NS_PER_US: Final = 1_000
_UNITS: Final = (("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000))
_DIGITS: Final = 3
_SEVERAL: Final = 1.5  # calls a step
_SMALL_NS: Final = 1_000  # a delay below this is no delay
_NOUNS: Final = {
    "copy": "copy",
    "launch": "launch",
    "graph": "graph launch",
    "sync": "wait for the device",
    "alloc": "allocation",
    "collective": "collective",
}
_KINDS: Final = {"h2d": "H2D", "d2h": "D2H", "d2d": "D2D", "p2p": "P2P", "h2h": "H2H"}
_MANY: Final = 3
COUNTED: Final = "launches were counted, not recorded one by one"  # why figures are trusted less


def duration(value_ns: float) -> str:
    """A length in the largest unit that leaves at least 1, to three digits.

    >>> duration(10_900_000)
    '10.9 ms'
    """
    unit, scale = _UNITS[0]
    for name, size in _UNITS:
        if abs(value_ns) >= size * 0.9995:
            unit, scale = name, size
    value = value_ns / scale
    whole = len(str(int(abs(value))))
    return f"{value:.{max(_DIGITS - whole, 0) if scale > 1 else 0}f} {unit}"


def size(size_bytes: int) -> str:
    """Bytes as an adjective: 32-byte, 64 KiB, 1.5 MiB."""
    value, unit = float(size_bytes), ""
    for name in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1 << 10:
            break
        value, unit = value / (1 << 10), name
    return f"{value:.3g} {unit}" if unit else f"{size_bytes}-byte"


def point(found: Point) -> str:
    """A serialization point in one sentence."""
    on = f"on thread {found.tid}" + (f" ({found.role})" if found.role else "")
    example = "a step's" if found.example_step_id is None else f"step {found.example_step_id}'s"
    if found.blocked_ns_per_step * 2 < found.held_ns_per_step:
        # It costs by being there, not by waiting: launches, allocations.
        if found.count_per_step < _SEVERAL:
            return f"{example} {_what(found)} {on} takes {duration(found.example_dur_ns)}"
        held = duration(found.held_ns_per_step)
        return f"a step's {found.count_per_step:,.0f} {_plural(found)} {on} take {held}"
    text = f"{example} {_what(found)} {on} blocks {duration(found.example_dur_ns)}"
    delay_ns = found.bubble_ns_per_step / max(found.count_per_step, 1)
    if delay_ns >= _SMALL_NS:
        text += f" and delays the next launch by {duration(delay_ns)}"
    return text


def _what(found: Point) -> str:
    """The call, as `32-byte D2H readback` or `cudaStreamSynchronize`."""
    if found.cls != "copy":
        return found.api or _NOUNS.get(found.cls, found.cls)
    words = [] if found.size_bytes is None else [size(found.size_bytes)]
    words += [_KINDS.get(found.copy_kind or "", "")]
    words += ["readback" if found.copy_kind == "d2h" else "copy"]
    return " ".join(word for word in words if word)


def _plural(found: Point) -> str:
    if found.cls != "copy":
        return f"{_what(found)} calls"
    return (
        _what(found).removesuffix("copy") + "copies"
        if found.copy_kind != "d2h"
        else (f"{_what(found)}s")
    )


def gain(remedy: Remedy, recorded_itl_ns: float) -> str:
    """A remedy's effect, as `ITL 12.3 -> 8.1 ms, -34%`."""
    change = remedy.expected_itl_ns / recorded_itl_ns - 1
    before, unit = duration(recorded_itl_ns).split()
    after, other = duration(remedy.expected_itl_ns).split()
    first = before if unit == other else f"{before} {unit}"
    return f"ITL {first} -> {after} {other}, {change:+.0%}"


def crossing(row: BridgeCost) -> str:
    """A kind of crossing, as `pinned D2H copies` or `graph`."""
    if row.cls != "copy":
        return row.cls
    memory = "" if row.host_memory is None else f"{row.host_memory} "
    return f"{memory}{_KINDS.get(row.copy_kind or '', row.copy_kind or 'unknown')} copies"


def _because(source: SourceFact | None) -> str:
    if source is None:
        return "its source was not asked for"
    return source.reason or "none were seen"


def no_calls(source: SourceFact | None) -> Unknown:
    """No CUDA call is in the run."""
    return Unknown(
        "no_cuda_calls",
        f"what crossings of the bridge cost: no CUDA calls were recorded ({_because(source)})",
    )


def no_steps(*, has_ranges: bool, has_calls: bool) -> Unknown:
    """No step was found."""
    tried = "none of its NVTX ranges is a step" if has_ranges else "it has no NVTX ranges"
    if has_calls:
        tried += ", and its launches and readbacks do not repeat"
    return Unknown(
        "no_steps",
        f"ITL and what a step's time is for: no steps were found ({tried}); "
        "a range named `step` around each iteration makes them",
    )


def no_lengths(steps: int) -> Unknown:
    """Steps were found, but no two in a row."""
    found = "one step was found, and no next one" if steps == 1 else "no step follows another"
    return Unknown("no_step_lengths", f"ITL and what a step's time is for: {found}")


def too_few_steps(periods: int) -> Unknown:
    """Steps have lengths, but too few follow each other for a replay."""
    lengths = "1 step has a length" if periods == 1 else f"{periods:,} steps have a length"
    return Unknown(
        "too_few_steps",
        f"which call holds the loop up: {lengths}, and a replay needs {WARM_UP_STEPS + 1} in a row "
        "to get going; a longer run has them",
    )


def no_sched(source: SourceFact | None) -> Unknown:
    """The scheduler was not watched."""
    return Unknown(
        "no_sched",
        "whether a thread worked or slept outside of CUDA calls: no scheduler events "
        f"({_because(source)}); that time is unattributed",
    )


def imported(tool: str, *, has_sched: bool) -> Unknown:
    """The run is another tool's trace."""
    text = f"what {tool} did not record: the trace is imported, so there is no bounce buffer"
    text += " or page conversion" if has_sched else ", page conversion or scheduler event"
    return Unknown("imported", f"{text} in it, and its tool's own cost is in its times")


def lost(events_lost: int, events: int, losses: Sequence[LossFact]) -> Unknown:
    """Something was lost."""
    names = ", ".join(f"{loss.reason} {loss.count:,}" for loss in losses[:_MANY])
    if not events_lost:
        return Unknown("incomplete", f"all about some events: they are incomplete ({names})")
    return Unknown(
        "losses",
        f"what the {events_lost:,} lost of {events + events_lost:,} events were ({names}); "
        "in steps they touch, host work is unattributed",
    )


def not_over(ended: str) -> Unknown:
    """The recording has no end."""
    why = "the recorder was killed" if ended == "recorder_killed" else "it is being recorded"
    return Unknown("not_over", f"how the run ended: {why}")


def counted(*, sampled: bool) -> Unknown:
    """Launches were counted in the kernel."""
    how = "sampled" if sampled else "counted"
    return Unknown(
        "launches_counted",
        f"which launch took how long: launches were {how} in the kernel, and steps have an "
        "estimated share of them",
    )


def from_profile(kinds: Sequence[str], bridge: Sequence[BridgeCost]) -> Unknown:
    """Some costs are published figures."""
    named = ", ".join(kinds[:_MANY]) + (f" and {len(kinds) - _MANY} more" * (len(kinds) > _MANY))
    profile = next((row.profile for row in bridge if row.profile), "published figures")
    return Unknown(
        "costs_from_profile",
        f"what these cost here: {named}; the run has too few undisturbed ones, so "
        f"figures of {profile} stand in",
    )


def no_calls_of_driver() -> Unknown:
    """The thread that drives the loop leaves all calls to others."""
    return Unknown(
        "driver_without_calls",
        "what each worker's calls cost a step: the thread that drives the loop makes none, and "
        "its lock_wait is its wait for those that do",
    )


def no_activity() -> Unknown:
    """The device itself was not watched."""
    return Unknown(
        "no_device_activity",
        "when the device really worked: it was not recorded (CC mode does not allow it), so idle "
        "time is inferred from host calls, with bounds",
    )


def unknown_cc() -> Unknown:
    """The state of confidential computing is not known."""
    return Unknown(
        "cc_state_unknown",
        "whether the GPU was in CC mode: its state was not recorded; it is told from how copies "
        "behave",
    )


def no_remedy() -> Unknown:
    """No known remedy helps."""
    return Unknown(
        "no_remedy",
        "what would give time back: by replay, none of the known remedies makes a step shorter",
    )


def one_process() -> Unknown:
    """Only one process was seen."""
    return Unknown(
        "one_process",
        "what other ranks or servers did meanwhile: one process was recorded",
    )
