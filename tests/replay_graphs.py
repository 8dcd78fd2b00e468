"""Costs and graphs with figures that are easy to add, for tests of the replay."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from cctrace.analyze.costs import Costs
from cctrace.analyze.graph import Act, Call, Graph, Item, Thread
from cctrace.analyze.replay import replay

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 13
FIRST = 4  # the first that counts: until then the first launches are under way

_COPY = {"class": "copy", "toll_ns": 100.0, "mode": "host_synchronous", "gb_per_s": 1e9}
_MODEL: list[dict[str, Any]] = [
    {"class": "launch", "toll_ns": 20.0},
    {"class": "graph", "toll_ns": 20.0},
    {"class": "sync", "toll_ns": 10.0},
    {"class": "event", "toll_ns": 5.0},
    _COPY | {"copy_kind": "d2h", "host_memory": "pinned"},
    _COPY | {"copy_kind": "h2d", "host_memory": "pinned"},
    _COPY | {"copy_kind": "d2h", "host_memory": "pageable"},
    _COPY | {"copy_kind": "h2d", "host_memory": "pageable", "toll_ns": 30.0, "mode": "staged"},
]
_PUBLISHED: list[dict[str, Any]] = [
    {"class": "launch", "toll_ns": 20.0, "latency_ns": 100.0},
    {"class": "graph", "toll_ns": 20.0, "latency_ns": 100.0},
    *(
        {"class": "copy", "copy_kind": kind, "host_memory": memory, "toll_ns": 30.0}
        | {"latency_ns": 70.0, "gb_per_s": 1e9}
        for kind in ("d2h", "h2d")
        for memory in ("pinned", "pageable")
    ),
]
_EMPTY = {"api": None, "copy_kind": None, "host_memory": None}


def costs(**changes: Any) -> Costs:
    """Costs as under CC: copies take 30 and 70 on the device, pinned ones block.

    Args:
        changes: Of the rows of pinned copies.
    """
    model = [
        _EMPTY | row | (changes if row.get("host_memory") == "pinned" else {}) for row in _MODEL
    ]
    return Costs(model, [_EMPTY | row for row in _PUBLISHED], 0.0)


def item(act: Act, cls: str, api: str, **more: Any) -> Item:
    """An item with a call, whose fields may be among ``more``."""
    fields = {name: more.pop(name) for name in list(more) if name in Call.__dataclass_fields__}
    call = Call(1, 1, 0, 1, cls, api, **{"path": "step", **fields})
    return Item(act, call=call, **more)


def launch(host_ns: float = 20, device_ns: float = 0, **more: Any) -> Item:
    """A kernel on stream 0."""
    more = {"latency_ns": 100.0, "stream_handle": 0} | more
    more.pop("stream_handle")
    made = item(Act.ENQUEUE, "launch", "cudaLaunchKernel", **more)
    made.host_ns, made.device_ns, made.stream = host_ns, device_ns, 0
    return made


def copy(kind: str, act: Act = Act.BLOCKING, memory: str = "pinned", **more: Any) -> Item:
    """A copy on stream 0: 30 on the host and 70 on the device."""
    made = item(act, "copy", "cudaMemcpyAsync", copy_kind=kind, host_memory=memory, **more)
    made.host_ns = made.host_ns or 30.0
    made.device_ns, made.stream, made.bridge = 70.0, 0, True
    return made


def wait(act: Act = Act.WAIT_STREAM, **more: Any) -> Item:
    """A wait for stream 0, or for an event."""
    api = "cudaEventSynchronize" if act == Act.WAIT_EVENT else "cudaStreamSynchronize"
    made = item(act, "sync", api, **more)
    made.after_ns = 10.0
    made.stream = max(made.stream, 0)
    return made


def loop(step: Callable[[int], list[Item]]) -> Graph:
    """A graph of STEPS steps, each made of what ``step`` returns for its number."""
    items: list[Item] = []
    for number in range(STEPS + 1):
        items.append(Item(Act.MARK, step=number))
        if number < STEPS:
            made = step(number)
            for each in made:
                each.step = number
            items += made
    return Graph((Thread(1, 1, 0, items),), (0, 0), (2,), FIRST, STEPS - 1)


def itl_ns(graph: Graph) -> float:
    """Median step of a replay that nothing stopped."""
    found = replay(graph)
    assert found.stuck == 0
    periods = found.periods_ns(graph.first_step, graph.last_step)
    assert len(periods) == graph.last_step - graph.first_step + 1
    return statistics.median(periods.values())
