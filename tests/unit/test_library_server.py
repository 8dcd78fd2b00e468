"""The server's part: a process that loads a library waits, and nobody else does."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cctrace.record import layout
from cctrace.record.layout import Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.segment import Segment
from cctrace.record.server import Handlers, HandoverServer, Peer

DEADLINE_S = 20.0


def ask(place: Path, text: bytes, kind: int = layout.REQ_LIBRARY, token: int = 0) -> socket.socket:
    """Send one request; the reply is the caller's to take."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(DEADLINE_S)
    peer.connect(str(place))
    head = struct.pack("<IHHIIQ", layout.WIRE_MAGIC, layout.WIRE_VERSION, kind, 1, 1, token)
    peer.send(head + text)
    return peer


def status_of(peer: socket.socket) -> int:
    """Status in the reply."""
    with peer:
        data, fds, _, _ = socket.recv_fds(peer, 100, 1)
    for fd in fds:
        os.close(fd)
    return int(struct.unpack("<IHHQQ", data)[2])


class Server:
    """A server whose library handler can be held up."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes, int]] = []
        self.late: list[bytes] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.error: Exception | None = None
        self.ledger = LossLedger()
        geometry = Geometry(slots=2, ring_records=8, stack_frames=4, dict_bytes=64)
        self.handlers = Handlers(
            is_traced=lambda _: True,
            hello=lambda _peer, _token: Segment(geometry, 0),
            more=lambda _peer, _token: None,
            report=lambda _peer, _report: None,
            library=self.library,
            library_late=self.take_late,
        )

    def library(self, peer: Peer, path: bytes, address: int) -> None:
        self.seen.append((peer.pid, path, address))
        self.entered.release()
        assert self.gate.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error

    def take_late(self, _peer: Peer, path: bytes, _address: int) -> None:
        self.late.append(path)


@pytest.fixture
def server() -> Iterator[tuple[Server, HandoverServer]]:
    state = Server()
    running = HandoverServer(state.handlers, state.ledger)
    running.start()
    yield state, running
    state.gate.set()
    if running.path.exists():  # not closed by the test
        running.close()


def test_announcement_is_answered_when_it_was_dealt_with(
    server: tuple[Server, HandoverServer],
) -> None:
    """With path and address as they were sent."""
    state, running = server
    peer = ask(running.path, b"/a/\xff\n", token=2**64 - 1)
    assert state.entered.acquire(timeout=DEADLINE_S)
    state.gate.set()
    assert status_of(peer) == layout.REPLY_OK
    assert state.seen == [(os.getpid(), b"/a/\xff\n", 2**64 - 1)]
    assert state.ledger.by_reason() == {}


def test_agents_do_not_wait_for_an_attach(server: tuple[Server, HandoverServer]) -> None:
    """A hundred say hello while every thread that attaches is busy."""
    state, running = server
    loading = [ask(running.path, b"/x/%d" % i) for i in range(11)]
    assert state.entered.acquire(timeout=DEADLINE_S)
    begun_s = time.monotonic()
    for _ in range(101):
        assert status_of(ask(running.path, b"", layout.REQ_HELLO)) == layout.REPLY_OK
    assert time.monotonic() - begun_s < 2.0
    state.gate.set()
    assert [status_of(peer) for peer in loading] == [layout.REPLY_OK] * 11
    assert len(state.seen) == 11


@pytest.mark.parametrize("text", [b"", b"/a\0b", b"/" + b"x" * layout.LIBRARY_PATH_MAX])
def test_announcement_that_makes_no_sense_is_refused(
    text: bytes, server: tuple[Server, HandoverServer]
) -> None:
    """No path, one with a NUL, one too long; counted."""
    state, running = server
    assert status_of(ask(running.path, text)) == layout.REPLY_REFUSED
    running.close()
    assert state.ledger.by_reason() == {"bad_message": 1}
    assert state.seen == []


@pytest.mark.parametrize(("wait_s", "late"), [(0.0, [b"/x"]), (1e9, [])])
def test_process_that_went_on_is_told_of(
    wait_s: float,
    late: list[bytes],
    server: tuple[Server, HandoverServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its library was attached to too late; one that hangs up early was killed."""
    state, running = server
    monkeypatch.setattr("cctrace.record.server._LIBRARY_WAIT_S", wait_s)
    peer = ask(running.path, b"/x")
    assert state.entered.acquire(timeout=DEADLINE_S)
    peer.close()
    state.gate.set()
    running.close()  # waits for those that attach
    assert state.late == late


def test_fault_of_the_handler_lets_the_process_go(server: tuple[Server, HandoverServer]) -> None:
    """And is counted."""
    state, running = server
    state.error = RuntimeError("a bug")
    state.gate.set()
    assert status_of(ask(running.path, b"/x")) == layout.REPLY_OK
    assert state.ledger.by_reason() == {"recorder_error": 1}


def test_session_that_watches_no_libraries_refuses() -> None:
    """As it does what it does not know."""
    state = Server()
    running = HandoverServer(replace(state.handlers, library=None), state.ledger)
    running.start()
    assert status_of(ask(running.path, b"/x")) == layout.REPLY_REFUSED
    running.close()
    assert state.ledger.by_reason() == {"bad_message": 1}


def test_close_lets_everybody_go(server: tuple[Server, HandoverServer]) -> None:
    """Those being attached to are answered, those that wait their turn hear an end of file."""
    state, running = server
    loading = [ask(running.path, b"/x/%d" % i) for i in range(31)]
    assert state.entered.acquire(timeout=DEADLINE_S)
    state.gate.set()
    running.close()
    answers: list[int] = []
    for peer in loading:
        try:
            answers.append(len(peer.recv(100)))
        except ConnectionResetError:
            answers.append(0)
        peer.close()
    assert set(answers) <= {0, 24}
    assert 24 in answers
