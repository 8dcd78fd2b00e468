"""What a C target says it emitted: the logs of tests/targets/nvtx_log.h."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """One line of a target's own log (tests/targets/nvtx_log.h)."""

    tid: int
    kind: str
    domain: str | None
    name: str | None
    category: str
    payload_type: int
    payload: int
    depth: int
    color: int | None
    range_id: int | None
    start_lo: int
    start_hi: int
    end_lo: int
    end_hi: int


def read_log(path: Path) -> list[Line]:
    """The events one process says it made."""
    lines = []
    for text in path.read_text().splitlines():
        row = [None if part == "-" else part for part in text.split("\t")]
        tid, kind, domain, name, category, *numbers = row
        payload_type, payload, depth, color, range_id, *times = numbers
        assert tid is not None
        assert kind is not None
        assert category is not None
        lines.append(
            Line(
                int(tid),
                kind,
                domain,
                name,
                category,
                int(payload_type or 0),
                int(payload or 0),
                int(depth or 0),
                None if color is None else int(color),
                None if range_id is None else int(range_id),
                *(int(t or 0) for t in times),
            )
        )
    return lines


def only_log(directory: Path) -> list[Line]:
    """The log of a target that is one process."""
    (path,) = directory.glob("*.log")
    return read_log(path)
