"""What the session makes of options and of what adapters say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from cctrace.record.layout import RECORD
from cctrace.record.reports import parse_report
from cctrace.record.session import Options
from cctrace.store.manifest import HookReport


@pytest.mark.parametrize(
    ("ring_bytes", "records"),
    [
        (0, 1),
        (1, 1),
        (31, 1),
        (32, 1),
        (63, 1),
        (64, 2),
        (8 << 20, 1 << 18),
        ((8 << 20) - 1, 1 << 17),
        ((8 << 20) + 31, 1 << 18),
    ],
)
def test_ring_is_rounded_down_to_a_power_of_two(ring_bytes: int, records: int) -> None:
    """Never larger than asked for, and never nothing."""
    options = Options(["true"], Path("run"), ring_bytes=ring_bytes)
    assert options.geometry().ring_records == records
    assert RECORD.itemsize == 32


def test_report_is_taken_as_it_is() -> None:
    """Every field, and the pid the kernel told."""
    report = {
        "pid": 1,
        "adapter": "vllm",
        "engine_version": "0.11.0",
        "hooked": ["a", "b"],
        "missing": ["c"],
        "note": "n",
        "unknown": 3,
    }
    assert parse_report(7, report) == HookReport(7, "vllm", "0.11.0", ["a", "b"], ["c"], "n")
    assert parse_report(7, {"adapter": "x"}) == HookReport(7, "x", None, [], [])


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"adapter": None},
        {"adapter": 3},
        {"adapter": "x", "engine_version": 3},
        {"adapter": "x", "note": []},
        {"adapter": "x", "hooked": "text"},
        {"adapter": "x", "hooked": None},
        {"adapter": "x", "missing": {"a": 1}},
        {"adapter": "x", "missing": [""] * 257},
    ],
)
def test_report_of_another_shape_is_refused(report: dict[str, Any]) -> None:
    """ValueError, which the server answers with a refusal."""
    with pytest.raises(ValueError, match=r"missing|is not"):
        parse_report(7, report)


def test_words_are_cut() -> None:
    """A megabyte of note does not get into the manifest, which is rewritten all the time."""
    report = parse_report(7, {"adapter": "a" * 5000, "hooked": ["b" * 5000] * 256})
    assert len(report.adapter) == 1000
    assert [len(word) for word in report.hooked] == [1000] * 256


def test_lone_surrogates_become_printable() -> None:
    """JSON can hold them; a terminal or a UTF-8 file cannot."""
    report = parse_report(7, json.loads('{"adapter": "a\\ud800b", "hooked": ["\\udfff"]}'))
    assert (report.adapter, report.hooked) == ("a?b", ["?"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=7,
)
FIELDS = st.sampled_from(["adapter", "engine_version", "hooked", "missing", "note", "else"])


# The first value builds hypothesis's tables of characters, which takes seconds where
# the machine is busy.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(FIELDS, JSON | st.text() | st.lists(st.text())))
def test_any_json_is_a_report_or_a_value_error(report: dict[str, Any]) -> None:
    """And a report can be written into the manifest and read back."""
    try:
        parsed = parse_report(7, json.loads(json.dumps(report)))
    except ValueError:
        return
    words = [parsed.adapter, *parsed.hooked, *parsed.missing, parsed.note or ""]
    assert all(len(word) <= 1000 for word in words)
    assert json.loads(json.dumps(words)) == words
