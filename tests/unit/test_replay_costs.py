"""cctrace/analyze/costs.py: which figures a call is taken to cost."""

from __future__ import annotations

from typing import Any

import pytest

from cctrace.analyze.costs import Costs, checked_profile, waits_by_name
from cctrace.analyze.graph import Call

TOLLS = {"b300": 7_400.0, "b300-cc": 26_000.0, "h200": 7_400.0, "h200-cc": 14_800.0}
PROFILES = [
    {"profile": name, "class": "launch", "toll_ns": toll_ns} for name, toll_ns in TOLLS.items()
]
EMPTY = {"api": None, "copy_kind": None, "host_memory": None}


@pytest.mark.parametrize(
    ("profile", "toll_ns", "is_named", "expected"),
    [
        ("h200-cc", 7_800, False, "b300"),  # launches as cheap as without; any family
        ("h200-cc", 7_800, True, "h200"),
        ("b300", 27_000, False, "b300-cc"),
        ("b300", 15_100, False, "h200-cc"),
        ("b300", 15_100, True, "b300-cc"),  # 14.8 is another family's; 26 is nearer than 7.4
        ("b300", 7_100, False, "b300"),
        ("h200", 7_100, False, "h200"),
        ("b300-cc", 24_000, False, "b300-cc"),
    ],
)
def test_launches_have_the_last_word(
    profile: str, toll_ns: float, is_named: bool, expected: str
) -> None:
    """A profile told by behaviour is one whose launches cost about as much."""
    row = {"class": "launch", "profile": profile, "profile_basis": "behaviour"}
    model = [row | {"toll_ns": toll_ns, "n": 20}]
    assert checked_profile(model, PROFILES, is_named=is_named) == expected


def test_what_the_driver_told_stays() -> None:
    """Neither few launches nor a known mode are overruled."""
    row: dict[str, Any] = {"class": "launch", "profile": "b300", "toll_ns": 27_000.0}
    told = row | {"profile_basis": "told", "n": 500}
    few = row | {"profile_basis": "behaviour", "n": 19}
    for model in ([told], [few]):
        assert checked_profile(model, PROFILES, is_named=False) == "b300"
    assert checked_profile([], PROFILES, is_named=False) == "b300"


def copies(**d2h: Any) -> Costs:
    """Costs of a run with pinned copies both ways, those to the host as given."""
    copy = {"class": "copy", "api": "cudaMemcpyAsync", "host_memory": "pinned"}
    model = [
        copy | {"copy_kind": "h2d", "toll_ns": 10_000.0, "mode": "async", "gb_per_s": 11.1},
        copy | {"copy_kind": "d2h", "toll_ns": 10_000.0, "gb_per_s": 11.1} | d2h,
    ]
    published = [
        EMPTY
        | {"class": "copy", "copy_kind": kind, "host_memory": "pinned"}
        | {"toll_ns": 3_450.0, "latency_ns": 6_550.0, "gb_per_s": 11.1, "mode": "host_synchronous"}
        for kind in ("h2d", "d2h")
    ]
    return Costs(model, published, 600.0)


def test_copies_to_the_host_tell_whether_pinned_ones_block() -> None:
    """Small copies to the device have too little to wait for, whatever they seem to do."""
    blocking = copies(mode="host_synchronous").copy("cudaMemcpyAsync", "h2d", "pinned")
    assert blocking.mode == "host_synchronous"
    assert (blocking.host_ns, blocking.latency_ns) == (3_450, 6_550)
    free = copies(mode="async").copy("cudaMemcpyAsync", "h2d", "pinned")
    assert free.mode == "async"
    assert (free.host_ns, free.latency_ns) == (10_000, 6_550)  # the toll is the host's alone


def test_a_copy_takes_its_bytes_as_well() -> None:
    """11.1 bytes a nanosecond: 111000 bytes are 10000; 600 of probes come on top."""
    found = copies(mode="host_synchronous")
    call = Call(1, 1, 0, 20_600, "copy", "cudaMemcpyAsync", "d2h", "pinned", 111_000)
    assert found.least_ns(call) == pytest.approx(20_600)
    assert not found.waited(call, found.least_ns(call))
    longer = Call(1, 1, 0, 27_000, "copy", "cudaMemcpyAsync", "d2h", "pinned", 111_000)
    assert found.waited(longer, 20_600)  # more than 0.3 of itself beyond


@pytest.mark.parametrize(
    ("api", "waits"),
    [
        ("cudaMemcpy", True),
        ("cuMemcpyDtoH", True),
        ("cudaMemcpyAsync", False),
        ("cuMemcpyHtoDAsync", False),
        ("cudaMemcpyBatchAsync", False),
    ],
)
def test_functions_that_wait_by_their_name(api: str, waits: bool) -> None:
    """CUDA's own distinction."""
    assert waits_by_name(api) is waits
