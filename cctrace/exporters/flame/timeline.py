"""The time of threads that drive steps, in the order it passed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from cctrace.exporters.flame.frames import CALL, PROCESS, THREAD
from cctrace.exporters.flame.select import make_naming

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cctrace.exporters.flame.frames import Frame, Path
    from cctrace.exporters.flame.select import Selection
    from cctrace.store.session import Session

MOST_STRETCHES: Final = 100_000  # beyond it a file is more than a viewer takes gladly


@dataclass(frozen=True)
class Stretch:
    """A time in which the frames stay the same.

    Attributes:
        at_ns: Start, ns since the track's first one.
        dur_ns: Length, ns, > 0.
        path: Frames, outermost first.
        call_ns: Start of the call it is in, ns of CLOCK_MONOTONIC; None: no call.
    """

    at_ns: int
    dur_ns: int
    path: Path
    call_ns: int | None


@dataclass(frozen=True)
class Track:
    """What one thread did for one engine.

    Attributes:
        name: Engine, process and thread.
        stretches: By start; none overlap, and pauses of the loop are not in them.
    """

    name: str
    stretches: Sequence[Stretch]

    @property
    def end_ns(self) -> int:
        """End of the last one, ns since the first one's start."""
        last = self.stretches[-1]
        return last.at_ns + last.dur_ns

    def events(self) -> Iterator[tuple[str, Frame, int]]:
        """O and C for a frame that opens or closes, and when, ns since the start.

        A call closes at its end though the same function is called again at once.
        """
        opened: Path = ()
        call_ns: int | None = None
        at_ns = 0
        for stretch in self.stretches:
            same = _shared(opened, stretch.path) if stretch.at_ns == at_ns else 0
            if stretch.call_ns != call_ns:
                same = min(same, _call_at(stretch.path), _call_at(opened))
            for frame in reversed(opened[same:]):
                yield "C", frame, at_ns
            for frame in stretch.path[same:]:
                yield "O", frame, stretch.at_ns
            opened, call_ns = stretch.path, stretch.call_ns
            at_ns = stretch.at_ns + stretch.dur_ns
        for frame in reversed(opened):
            yield "C", frame, at_ns


def _shared(one: Path, two: Path) -> int:
    """Frames that both begin with."""
    for place, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return place
    return min(len(one), len(two))


def _call_at(path: Path) -> int:
    """Where in ``path`` the call is; its length where there is none."""
    return next((i for i, frame in enumerate(path) if frame.kind == CALL), len(path))


def read_timeline(session: Session, selection: Selection) -> list[Track]:
    """What threads that drive steps did, in order.

    Returns:
        A track for each engine and thread; none where there would be more than
        ``MOST_STRETCHES`` stretches in all, or launches counted in the kernel are among
        them: when those were made is not known.
    """
    params = {**selection.params, "most": MOST_STRETCHES}
    rows: list[dict[str, Any]] = session.report("flame_timeline", params).arrow().to_pylist()
    naming = make_naming(session, selection, rows)
    tracks = []
    for _, grouped in groupby(rows, key=lambda row: row["track"]):
        own = list(grouped)
        stretches = []
        head: list[Frame] = []
        for row in own:
            whole = naming.path(row)
            head = [frame for frame in whole if frame.kind in {PROCESS, THREAD}]
            path = tuple(frame for frame in whole if frame.kind not in {PROCESS, THREAD})
            stretches.append(
                Stretch(
                    row["ts_ns"] - own[0]["ts_ns"], row["dur_ns"], path or whole, row["call_ns"]
                )
            )
        name = " / ".join([own[0]["engine"], *(frame.name for frame in head)])
        tracks.append(Track(name, stretches))
    return tracks
