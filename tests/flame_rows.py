"""A run that is small enough to check by hand, for tests of flamegraphs.

Two steps of 1,000 ns on one thread, and a second thread that copies:

    step 1  0..1000   launch 150..200 in forward (100..400); readback 500..700;
                      off the CPU 710..750, ready 760..767; a wait 950..1050, which
                      reaches into step 2 and starts after the range of step 1 has ended
    step 2  1000..2000  an upload at 1500 that never returns; its range ends at 1800
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

from part_rows import SCHED, call, copy, off_cpu
from query_rows import Row, span
from runs import make_run

import cctrace
from cctrace.exporters.flame.folded import folded
from cctrace.exporters.flame.frames import DEFAULT_LEVELS
from cctrace.exporters.flame.select import Selection, select

if TYPE_CHECKING:
    from cctrace.exporters.flame.graph import Flame

SVG = "{http://www.w3.org/2000/svg}"

NVTX = [
    span(0, 900, "step", domain="loop", category="prefill"),
    span(100, 300, "forward"),
    span(1000, 800, "step", domain="loop", category="decode"),
    span(2000, 100, "step", domain="loop", category="decode"),
]
CALLS = [
    call(150, 50, "launch", stack_id=7),
    copy(500, 200, 64, stack_id=8),
    call(950, 100, "sync"),
    copy(1500, None, 4096, "h2d"),
    copy(300, 30, 1_000_003, "h2d", tid=101, host_memory="pageable"),
    copy(1300, 70, kind="h2d", tid=101, size_bytes=None),
    call(310, 11, "copy", "cuMemcpyHtoDAsync", tid=101, depth=1, layer="driver"),
]
WAITS = [off_cpu(710, 40), off_cpu(760, 7, "runnable")]
STACKS = [
    {"stack_id": 7, "frames": [
        {"function": "launch", "module": "libtorch.so", "file": None, "line": None,
         "kind": "native"},
        {"function": "execute", "module": None, "file": "/srv/vllm/model.py", "line": 12,
         "kind": "python"},
    ]},
    {"stack_id": 8, "frames": [
        {"function": "do_sys_poll", "module": None, "file": None, "line": None,
         "kind": "kernel"},
        {"function": "to", "module": None, "file": "/srv/vllm/read.py", "line": 3,
         "kind": "python"},
    ]},
]  # fmt: skip


def small_run(parent: Path, name: str = "run", **changes: Any) -> Path:
    """The run described above, with tables or the manifest changed."""
    tables: dict[str, list[Row]] = {
        "nvtx": NVTX,
        "cuda_api": CALLS,
        "sched": WAITS,
        "stacks": STACKS,
        "processes": [{"exe": "/usr/bin/python3"}],
        "threads": [{"name": "main"}, {"tid": 101, "name": "copier"}],
    }
    return make_run(parent, name, **{"manifest": SCHED, **tables, **changes})


def flame(run: Path, *levels: str, **selection: Any) -> Flame:
    """The flamegraph of a run; all levels but ``part`` unless some are named."""
    chosen = Selection(levels=levels or DEFAULT_LEVELS, **selection)
    with cctrace.open(run) as session:
        return select(session, chosen).flame


def fold(run: Path, *levels: str, **selection: Any) -> str:
    """Folded text of a run."""
    return "".join(folded(flame(run, *levels, **selection)))


def folded_totals(text: str, weights: int = 1) -> list[int]:
    """Sums of the weights at the ends of folded lines, read as other tools do."""
    rows = [line.rsplit(" ", weights)[1:] for line in text.splitlines()]
    return [sum(int(row[i]) for row in rows) for i in range(weights)]


def svg_frames(text: str) -> list[ET.Element]:
    """Frames of an SVG flamegraph, in the order of the document."""
    return [e for e in ET.fromstring(text).iter(f"{SVG}svg") if "data-o" in e.attrib]


def svg_leaves(text: str, attribute: str = "data-w") -> int:
    """Sum of what each frame has beyond the frames inside it."""
    own = 0
    inside: list[int] = []  # what is left of the frames around, by depth
    for element in svg_frames(text):
        depth = int(element.attrib["data-d"])
        own += sum(inside[depth:])
        del inside[depth:]
        weight = int(element.attrib[attribute])
        if inside:
            inside[-1] -= weight
            assert inside[-1] >= 0, "frames inside weigh more than the frame around them"
        inside.append(weight)
    return own + sum(inside)


def speedscope_totals(data: dict[str, Any]) -> int:
    """Weight of the leaves of all profiles of a speedscope file."""
    total = 0
    for profile in data["profiles"]:
        if profile["type"] == "sampled":
            total += sum(profile["weights"])
            continue
        opened: list[int] = []
        at = 0
        for event in profile["events"]:
            total += event["at"] - at if opened else 0
            at = event["at"]
            if event["type"] == "O":
                opened.append(event["frame"])
            else:
                assert opened.pop() == event["frame"], "frames close in the order they opened"
        assert opened == []
    return total
