"""A vLLM plugin that times the engine's steps from inside the engine.

vLLM loads it in all its processes because this directory, on the path, holds the
``entry_points.txt`` of a distribution. It knows nothing of cctrace: it wraps
``EngineCore.step`` and keeps, per call, the clock at its start and whether vLLM said
that the model was executed. When the engine ends it writes them, as JSON, into
``STEP_CLOCK_DIR``.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_STEPS = ("step", "step_with_batch_queue")


def register() -> None:
    """Wrap the steps of ``EngineCore``, once per process."""
    directory = os.environ.get("STEP_CLOCK_DIR")
    if directory is None:
        return
    from vllm.v1.engine.core import EngineCore  # noqa: PLC0415 - vLLM loads us early

    if getattr(EngineCore, "step_clock_ns", None) is not None:
        return
    EngineCore.step_clock_ns = []
    for name in _STEPS:
        setattr(EngineCore, name, _timed(getattr(EngineCore, name), EngineCore.step_clock_ns))
    EngineCore.shutdown = _saved(EngineCore.shutdown, EngineCore.step_clock_ns, Path(directory))


def _timed(step: Callable[..., Any], starts_ns: list[int]) -> Callable[..., Any]:
    @functools.wraps(step)
    def timed(self: Any) -> Any:
        start_ns = time.perf_counter_ns()
        result = step(self)
        if result[1]:  # (outputs, whether the model was executed)
            starts_ns.append(start_ns)
        return result

    return timed


def _saved(
    shutdown: Callable[..., Any], starts_ns: list[int], directory: Path
) -> Callable[..., Any]:
    @functools.wraps(shutdown)
    def saved(self: Any) -> Any:
        path = directory / f"steps-{os.getpid()}.json"
        path.write_text(json.dumps(starts_ns))
        return shutdown(self)

    return saved
