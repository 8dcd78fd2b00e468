"""How the vLLM adapter tells a step's phase from what the scheduler says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cctrace.annotate.engine import vllm


def batch(
    new: dict[str, int],
    cached: dict[str, tuple[int, int]],
    drafts: dict[str, list[int]] | None = None,
    *,
    old_version: bool = False,
) -> Any:
    """A SchedulerOutput: tokens of new requests, (tokens, outputs so far) of others."""
    counts = new | {name: tokens for name, (tokens, _) in cached.items()}
    others = SimpleNamespace(req_ids=list(cached))
    if not old_version:
        others.num_output_tokens = [outputs for _, outputs in cached.values()]
    return SimpleNamespace(
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
        scheduled_new_reqs=list(new),
        scheduled_cached_reqs=others,
        scheduled_spec_decode_tokens=drafts or {},
    )


@pytest.mark.parametrize(
    ("scheduled", "expected"),
    [
        pytest.param(batch({}, {}), ("", 0, 0), id="nothing"),
        pytest.param(batch({"a": 7, "b": 5}, {}), ("prefill", 2, 12), id="new"),
        pytest.param(batch({"a": 1}, {}), ("prefill", 1, 1), id="new of one token"),
        pytest.param(batch({}, {"a": (512, 0)}), ("prefill", 1, 512), id="chunk"),
        pytest.param(batch({}, {"a": (1, 0)}), ("prefill", 1, 1), id="last chunk of one token"),
        pytest.param(batch({}, {"a": (1, 1), "b": (1, 9)}), ("decode", 2, 2), id="decode"),
        pytest.param(batch({"a": 7}, {"b": (1, 3)}), ("mixed", 2, 8), id="new and decode"),
        pytest.param(
            batch({}, {"a": (512, 0), "b": (1, 3)}), ("mixed", 2, 513), id="chunk, decode"
        ),
        pytest.param(batch({}, {"a": (77, 5)}), ("prefill", 1, 77), id="recomputed"),
        pytest.param(
            batch({}, {"a": (4, 5), "b": (1, 2)}, {"a": [1, 2, 3]}), ("decode", 2, 5), id="drafts"
        ),
        pytest.param(
            batch({}, {"a": (4, 5), "b": (64, 0)}, {"a": [1, 2, 3]}),
            ("mixed", 2, 68),
            id="drafts and chunk",
        ),
        pytest.param(
            batch({}, {"a": (1, 1), "b": (1, 1)}, old_version=True),
            ("decode", 2, 2),
            id="old decode",
        ),
        pytest.param(
            batch({"a": 7}, {"b": (64, 0)}, old_version=True), ("prefill", 2, 71), id="old prefill"
        ),
        pytest.param(
            batch({"a": 7}, {"b": (1, 1)}, old_version=True), ("mixed", 2, 8), id="old mixed"
        ),
    ],
)
def test_phase(scheduled: Any, expected: tuple[str, int, int]) -> None:
    assert vllm.phase_of(scheduled) == expected
