"""What the recorder does while the last, long part of a recording is under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cctrace.errors import CctraceError
from cctrace.record import bpf_source, closing
from cctrace.record.bpf_source import BpfSource
from cctrace.record.losses import LossLedger
from cctrace.record.session import Options, Session
from cctrace.record.target import Reaped, Target


class FakeTarget:
    """A target that gets the signals of a list, one each time it is waited for."""

    def __init__(self, exit_code: int | None, signals: list[int]) -> None:
        self.exit_code = exit_code
        self.stop_signals = 5  # of before
        self.waits = 0
        self._signals = signals

    def wait(self, timeout_s: float) -> list[Reaped]:
        assert timeout_s == 0
        self.waits += 1
        self.stop_signals += self._signals.pop(0) if self._signals else 0
        return []


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[tuple[Any, threading.Event]]:
    """A session, and whether it has been told to hurry."""
    made: Any = Session(Options(["true"], tmp_path / "run", sources=("nvtx",)))
    hurried = threading.Event()
    made._bpf.hurry = hurried.set
    yield made, hurried
    made._bpf.close()


@pytest.mark.parametrize(
    ("exit_code", "signals"), [(0, [0, 1]), (143, [1]), (None, [1, 0, 1]), (None, [2])]
)
def test_a_signal_that_the_target_has_no_use_for_is_for_us(
    recording: tuple[Any, threading.Event], exit_code: int | None, signals: list[int]
) -> None:
    """The first where it has ended, the second where it goes on."""
    made, hurried = recording
    running = FakeTarget(exit_code, list(signals))
    made._while_waiting(cast("Target", running), lambda: hurried.wait(60))
    assert hurried.is_set()
    assert running.waits >= len(signals)


def test_nothing_is_left_out_unasked(recording: tuple[Any, threading.Event]) -> None:
    made, hurried = recording
    running = FakeTarget(None, [1])
    done = threading.Event()

    def body() -> None:
        while running.waits < 3:
            done.wait(0.01)
        done.set()

    assert made._while_waiting(cast("Target", running), body)
    assert done.is_set()
    assert not hurried.is_set()


def test_what_does_not_end_is_left(
    recording: tuple[Any, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some time after it was told to hurry."""
    made, hurried = recording
    monkeypatch.setattr(closing, "_HURRY_S", 0.0)
    never = threading.Event()
    assert not made._while_waiting(cast("Target", FakeTarget(0, [1])), never.wait)
    assert hurried.is_set()
    never.set()


def test_no_process_is_begun_where_bpf_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:

    def refuse() -> None:
        raise CctraceError("no privilege", None)

    monkeypatch.setattr(bpf_source, "require_bpf", refuse)
    made: Any = BpfSource(
        ("cuda", "sched"),
        ["true"],
        ring_bytes=1 << 20,
        launches="auto",
        stacks="all",
        ledger=LossLedger(),
    )
    assert made._stacks is None
    assert list(made.name_stacks()) == []
    made.close()
