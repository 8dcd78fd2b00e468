"""How a recording stands, and what it has left."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cctrace.store import manifest as m


@dataclass(frozen=True)
class Progress:
    """How a recording stands.

    Attributes:
        elapsed_s: Since its start.
        events: Events taken from the rings.
        size_bytes: Written to disk.
        lost: Events lost.
        processes: Processes seen.
    """

    elapsed_s: float
    events: int
    size_bytes: int
    lost: int
    processes: int


@dataclass
class Outcome:
    """What a recording left.

    Attributes:
        run_dir: Where it is.
        manifest: Its manifest as written.
        losses: Counts by reason.
    """

    run_dir: Path
    manifest: m.Manifest
    losses: dict[str, int] = field(default_factory=dict)
