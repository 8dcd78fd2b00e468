"""The loop's NVTX ranges: domain ``decode_loop``, one ``step`` range an iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nvtx
from decode.plan import Batch

_DOMAIN = nvtx.get_domain("decode_loop")
_NAMES = ("generate", "prepare_inputs", "forward", "sample", "readback")
# Made once: looking attributes up costs more than the range itself.
_RANGES: dict[str, Any] = {name: _DOMAIN.get_event_attributes(message=name) for name in _NAMES}

pop: Callable[[], None] = _DOMAIN.pop_range


def push(name: str) -> None:
    """Open the range ``name`` on this thread."""
    _DOMAIN.push_range(_RANGES[name])


def push_step(batch: Batch) -> None:
    """Open the range of one step, which tells its phase, requests and tokens."""
    _DOMAIN.push_range(
        _DOMAIN.get_event_attributes(message="step", category=batch.phase, payload=batch.payload)
    )


@contextmanager
def marked(name: str) -> Iterator[None]:
    """Have the range ``name`` around a block, however it ends."""
    push(name)
    try:
        yield
    finally:
        pop()
