"""Flamegraphs for speedscope.

Sums are sampled profiles, a sample for each path. The time of the threads that drive steps
can be told in order as well: that is an evented profile, in which frames open and close.

Source: https://www.speedscope.app/file-format-schema.json,
https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from cctrace.exporters.flame.frames import PROCESS, THREAD
from cctrace.store.text import harmless
from cctrace.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cctrace.exporters.flame.frames import Frame, Path
    from cctrace.exporters.flame.graph import Flame
    from cctrace.exporters.flame.timeline import Track

_SCHEMA: Final = "https://www.speedscope.app/file-format-schema.json"
_UNITS: Final = {"ns": "nanoseconds", "bytes": "bytes", "calls": "none"}


class _Frames:
    """The frames of a file, each once."""

    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] = []
        self._numbers: dict[Frame, int] = {}

    def number(self, frame: Frame) -> int:
        """Number of ``frame`` in the file."""
        number = self._numbers.setdefault(frame, len(self.listed))
        if number == len(self.listed):
            made: dict[str, Any] = {"name": frame.marked(harmless(frame.name) or "?")}
            if frame.file is not None:
                made["file"] = harmless(frame.file)
            if frame.line:
                made["line"] = frame.line
            self.listed.append(made)
        return number


def sampled(flame: Flame, name: str) -> str:
    """A file with a sampled profile for each thread, the largest first.

    Where processes or threads are not the outermost levels there is one profile of all.
    What a profile is called by is not in its stacks.

    Args:
        flame: What to write, of one run.
        name: Name of the file's content.
    """
    frames = _Frames()
    profiles: dict[Path, list[tuple[list[int], int]]] = {}
    for path, (value,) in flame.leaves.items():
        whole = tuple(flame.frames[number] for number in path)
        split = 0
        while split < len(whole) and whole[split].kind in {PROCESS, THREAD}:
            split += 1
        stack = [frames.number(frame) for frame in whole[split:] or whole[-1:]]
        profiles.setdefault(whole[:split], []).append((stack, value))
    made: list[dict[str, Any]] = []
    for head, samples in profiles.items():
        weights = [value for _, value in samples]
        made.append(
            {
                "type": "sampled",
                "name": _profile_name(head, flame.weight),
                "unit": _UNITS[flame.unit],
                "startValue": 0,
                "endValue": sum(weights),
                "samples": [stack for stack, _ in samples],
                "weights": weights,
            }
        )
    made.sort(key=lambda profile: (-profile["endValue"], profile["name"]))
    return _file(made, frames, name)


def evented(tracks: Iterable[Track], name: str) -> str:
    """A file with an evented profile for each engine and thread that drives steps.

    Args:
        tracks: What they did, in order.
        name: Name of the file's content.
    """
    frames = _Frames()
    made = []
    for track in tracks:
        events = []
        for kind, frame, at_ns in track.events():
            number = frames.number(frame)
            events.append({"type": kind, "frame": number, "at": at_ns})
        made.append(
            {
                "type": "evented",
                "name": harmless(track.name),
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": track.end_ns,
                "events": events,
            }
        )
    return _file(made, frames, name)


def _profile_name(head: Sequence[Frame], weight: str) -> str:
    return harmless(" / ".join(frame.name for frame in head)) or weight


def _file(profiles: list[dict[str, Any]], frames: _Frames, name: str) -> str:
    content = {
        "$schema": _SCHEMA,
        "exporter": f"cctrace {VERSION}",
        "name": harmless(name),
        "activeProfileIndex": 0,
        "shared": {"frames": frames.listed},
        "profiles": profiles,
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n"
