"""What the probes of a call cost: which records are kept back, and what harms nobody."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import bpf_here
import numpy as np
import pytest

from cctrace.errors import CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.cuda import probe_cost
from cctrace.record.bpf.cuda.probe_cost import CALLS, ProbeCost
from cctrace.record.bpf.cuda.source import Cuda
from cctrace.record.bpf.cuda.symbols import PROBE_COST_SITE
from cctrace.record.bpf.probes import Probes
from cctrace.record.bpf.sched import Sched
from cctrace.record.losses import LossLedger

pytestmark = pytest.mark.quiet


def records(*calls: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Records of (site, length)."""
    events = np.zeros(len(calls), layout.CUDA_EVENT)
    for event, (site, dur_ns) in zip(events, calls, strict=True):
        event["what"], event["dur_ns"] = site, dur_ns
    return events


class Awaiting(ProbeCost):
    """One that has made its calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._awaited = calls


def test_its_own_records_are_kept_back() -> None:
    cost = Awaiting(CALLS)
    # GIVEN batches with others' records between, one batch without
    first = cost.take(records((3, 10), *[(PROBE_COST_SITE, 700)] * 500, (5, 11)))
    assert list(first["dur_ns"]) == [10, 11]
    assert cost.recorded_ns is None  # under half of them
    second = records((7, 13))
    assert cost.take(second) is second
    # WHEN the rest comes, of which one was interrupted
    third = cost.take(records(*[(PROBE_COST_SITE, 900)] * 508, (PROBE_COST_SITE, 10**6), (1, 17)))
    # THEN it is the median that counts: of 1009 lengths the 505th
    assert list(third["dur_ns"]) == [17]
    assert cost.recorded_ns == 900
    # ... and what has such a number from now on is somebody else's
    fourth = records((PROBE_COST_SITE, 1))
    assert cost.take(fourth) is fourth


def test_nothing_measured_is_nothing_told() -> None:
    cost = ProbeCost()
    events = records((PROBE_COST_SITE, 1))
    assert cost.take(events) is events
    assert cost.recorded_ns is None
    assert cost.call_ns is None
    assert "probe_ns" not in Cuda("full", LossLedger()).detail()


def no_library(_: str) -> Path:
    raise CctraceError("this installation of cctrace has no such library")


@pytest.mark.parametrize("ring_bytes", [4096, 1 << 20])
@pytest.mark.parametrize("mode", ["uprobe_multi", "perf_link"])
def test_it_leaves_nothing_behind(ring_bytes: int, mode: Any) -> None:
    """However small the ring: no row, no loss, no thread in its maps."""
    bpf_here.require_bpf()
    ledger = LossLedger()
    cuda = Cuda("full", ledger, mode=mode)
    probes = Probes([Sched(), cuda], ring_bytes, ledger)
    probes.start()
    with closing(probes):
        if probes.refused() and mode == "uprobe_multi":
            pytest.skip("this kernel has no uprobe_multi")
        assert not probes.refused()
        probes.drain()
        assert probes.rows() == []
        assert list(probes.module.table("cuda_owners").keys()) == []
        assert list(probes.module.table("traced").keys()) == []
        assert len(cuda._open_calls()) == 0
        detail = cuda.detail()
        print(f"{mode}: {detail['probe_ns']} ns recorded, {detail['probe_call_ns']} ns a call")
        # A trap takes over 100 ns, and two of them less than 50 us, on any machine.
        assert 100 < detail["probe_ns"] < detail["probe_call_ns"] < 50_000
        probes.detach()
        probes.drain()
        assert probes.rows() + probes.finish() == []
    assert ledger.by_reason() == {}


def test_what_fails_leaves_it_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is attached all the same."""
    bpf_here.require_bpf()
    monkeypatch.setattr(probe_cost, "native_library", no_library)
    ledger = LossLedger()
    cuda = Cuda("full", ledger)
    probes = Probes([cuda], 1 << 16, ledger)
    probes.start()
    with closing(probes):
        assert probes.attached() == [cuda]
        assert not {"probe_ns", "probe_call_ns"} & cuda.detail().keys()
    assert ledger.by_reason() == {}
