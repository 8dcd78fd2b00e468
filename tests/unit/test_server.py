"""The hand-over socket: serves the target's processes and outlives everybody else."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from fake_agent import FakeAgent
from hypothesis import HealthCheck, given, settings

from cctrace.record import layout, server
from cctrace.record.layout import Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.segment import Segment
from cctrace.record.server import Handlers, HandoverServer, Peer

GEOMETRY = Geometry(slots=2, ring_records=8, stack_frames=4, dict_bytes=64)
DEADLINE_S = 20.0
HUNDREDS = 307


@dataclass
class Session:
    """What the handlers were asked, and what they answer."""

    traced: bool = True
    error: Exception | None = None
    hellos: list[tuple[Peer, int]] = field(default_factory=list)
    more: list[tuple[Peer, int]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def handlers(self) -> Handlers:
        """The handlers of this session."""
        return Handlers(
            is_traced=lambda _: self.traced,
            hello=self.take_hello,
            more=self.take_more,
            report=self.take_report,
        )

    def take_hello(self, peer: Peer, token: int) -> Segment:
        """Give out a segment."""
        self.hellos.append((peer, token))
        if self.error is not None:
            raise self.error
        self.segments.append(Segment(GEOMETRY, 0))
        return self.segments[-1]

    def take_more(self, peer: Peer, token: int) -> Segment | None:
        """Give one out for tokens that a hello got."""
        self.more.append((peer, token))
        if token not in [known for _, known in self.hellos]:
            return None
        self.segments.append(Segment(GEOMETRY, 1))
        return self.segments[-1]

    def take_report(self, peer: Peer, report: dict[str, Any]) -> None:
        """Take a report, or refuse it."""
        del peer
        if report.get("refuse"):
            raise ValueError("refused")
        self.reports.append(report)


@dataclass
class Served:
    """A running server with its session."""

    session: Session
    ledger: LossLedger
    server: HandoverServer

    def connect(self) -> socket.socket:
        """Connect as a process of the target does."""
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(str(self.server.path))  # waits where the backlog is full
        peer.settimeout(DEADLINE_S)
        return peer

    def ask(self, message: bytes) -> tuple[bytes, list[int]]:
        """Send one message; returns the reply and the descriptors with it."""
        with self.connect() as peer:
            peer.send(message)
            data, fds, _, _ = socket.recv_fds(peer, 4096, 4)
            return data, list(fds)

    def bad_messages(self, expected: int) -> bool:
        """Whether the ledger gets to this count in time."""
        return until(lambda: self.ledger.by_reason().get("bad_message", 0) == expected)


def until(condition: Callable[[], bool]) -> bool:
    """Poll a condition until it holds or the deadline is over."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def request(
    kind: int,
    *,
    magic: int = layout.WIRE_MAGIC,
    version: int = layout.WIRE_VERSION,
    token: int = 0,
) -> bytes:
    """A ``struct cct_request``."""
    return struct.pack("<IHHIIQ", magic, version, kind, 1, 1, token)


def reply(data: bytes) -> tuple[int, int, int]:
    """Status, token and segment size of a ``struct cct_reply``."""
    magic, version, status, token, size_bytes = struct.unpack("<IHHQQ", data)
    assert (magic, version) == (layout.WIRE_MAGIC, layout.WIRE_VERSION)
    return status, token, size_bytes


REFUSED = struct.pack("<IHHQQ", layout.WIRE_MAGIC, layout.WIRE_VERSION, layout.REPLY_REFUSED, 0, 0)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session, ledger = Session(), LossLedger()
    running = Served(session, ledger, HandoverServer(session.handlers(), ledger))
    running.server.start()
    yield running
    running.server.close()
    assert list(tmp_path.glob("cctrace-*")) == []


def test_hello_and_more_get_segments_that_can_be_mapped(served: Served) -> None:
    """The memfd comes with its size and a token, which names the image later."""
    data, fds = served.ask(request(layout.REQ_HELLO))
    status, token, size_bytes = reply(data)
    assert (status, len(fds)) == (layout.REPLY_OK, 1)
    assert os.fstat(fds[0]).st_size == size_bytes == GEOMETRY.segment_bytes
    assert served.session.hellos == [(Peer(os.getpid(), os.geteuid()), token)]
    assert 0 < token < 2**63
    data, more_fds = served.ask(request(layout.REQ_MORE, token=token))
    assert reply(data) == (layout.REPLY_OK, token, GEOMETRY.segment_bytes)
    for fd in (*fds, *more_fds):
        os.close(fd)
    assert served.ledger.by_reason() == {}
    assert until(lambda: all(segment.fd == -1 for segment in served.session.segments))


def test_each_hello_has_a_token_of_its_own(served: Served) -> None:
    """Tokens are not to be guessed from one another."""
    tokens = set()
    for _ in range(17):
        data, fds = served.ask(request(layout.REQ_HELLO))
        tokens.add(reply(data)[1])
        os.close(fds[0])
    assert len(tokens) == 17


BAD = {
    "wrong magic": request(layout.REQ_HELLO, magic=0x12345678),
    "wrong version": request(layout.REQ_HELLO, version=2),
    "no type": request(0),
    "unknown type": request(4),
    "more without a token": request(layout.REQ_MORE),
    "more with another's token": request(layout.REQ_MORE, token=12345),
    "empty report": request(layout.REQ_REPORT),
    "report of garbage": request(layout.REQ_REPORT) + b"\xff\xfe{",
    "report cut short": request(layout.REQ_REPORT) + b'{"adapter": "v',
    "report of a list": request(layout.REQ_REPORT) + b"[]",
    "report of a number": request(layout.REQ_REPORT) + b"1",
    "report of a huge number": request(layout.REQ_REPORT) + b'{"a": ' + b"1" * 60000 + b"}",
    "deep lists": request(layout.REQ_REPORT) + b"[" * 60000,
    "deep objects": request(layout.REQ_REPORT) + b'{"a":' * 12000,
    "refused report": request(layout.REQ_REPORT) + b'{"refuse": 1}',
    "report too long": request(layout.REQ_REPORT) + b'{"a": "' + b"x" * 66000 + b'"}',
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
def test_request_that_makes_no_sense_is_refused_and_counted(message: bytes, served: Served) -> None:
    """The agent hears "do not ask again", and gets no descriptor."""
    assert served.ask(message) == (REFUSED, [])
    assert served.bad_messages(1)
    assert served.session.hellos == []
    assert served.session.reports == []


@pytest.mark.parametrize("size", [1, 23])
def test_short_request_is_hung_up_on_and_counted(size: int, served: Served) -> None:
    """Less than a request is answered with an end of file."""
    assert served.ask(request(layout.REQ_HELLO)[:size]) == (b"", [])
    assert served.bad_messages(1)


def test_reports_reach_the_session(served: Served) -> None:
    """The largest that fits, too."""
    room = layout.REPORT_MAX - len('{"note": ""}')
    for report in ({"adapter": "vllm"}, {}, {"note": "é" * 97}, {"note": "x" * room}):
        text = json.dumps(report).encode()
        assert len(text) <= layout.REPORT_MAX
        data, _ = served.ask(request(layout.REQ_REPORT) + text)
        assert reply(data)[0] == layout.REPLY_OK
        assert served.session.reports[-1] == report
    assert served.ledger.by_reason() == {}


def test_process_outside_the_tree_is_refused(served: Served) -> None:
    """Whatever it asks for; SO_PEERCRED counts, not the pid it claims."""
    served.session.traced = False
    for kind in (layout.REQ_HELLO, layout.REQ_MORE, layout.REQ_REPORT):
        assert served.ask(request(kind) + b"{}") == (REFUSED, [])
    assert served.bad_messages(3)
    assert served.session == Session(traced=False)


def test_peer_is_the_process_that_connected(served: Served) -> None:
    """A child's pid is what the session hears."""
    code = (
        "import socket, sys\n"
        "peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "peer.connect(sys.argv[1])\n"
        "peer.send(bytes.fromhex(sys.argv[2]))\n"
        "assert len(peer.recv(100)) == 24\n"
    )
    message = request(layout.REQ_HELLO).hex()
    child = subprocess.Popen([sys.executable, "-c", code, str(served.server.path), message])
    assert child.wait() == 0
    assert [peer.pid for peer, _ in served.session.hellos] == [child.pid]


def test_another_user_is_refused(served: Served) -> None:
    """Even if it got at the socket: only our own user and root are served."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    for above in served.server.path.parents[:4]:
        with contextlib.suppress(PermissionError):
            above.chmod(0o755)
    served.server.path.chmod(0o777)
    code = (
        "import os, socket, sys\n"
        "os.chdir(sys.argv[1])\n"
        "os.setuid(65534)\n"
        "peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "peer.connect('agent.sock')\n"
        "peer.send(bytes.fromhex(sys.argv[2]))\n"
        "print(peer.recv(100).hex())\n"
    )
    folder = str(served.server.path.parent)
    message = request(layout.REQ_HELLO).hex()
    printed = subprocess.run(
        [sys.executable, "-c", code, folder, message], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == REFUSED.hex()
    assert served.session.hellos == []


def test_directory_is_ours_alone(served: Served) -> None:
    """Mode 0700, named after the recorder, gone at the end (see the fixture)."""
    folder = served.server.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.name.startswith(f"cctrace-{os.getpid()}-")
    assert len(str(served.server.path)) < 108  # sizeof(sun_path)


def test_silent_peers_are_dropped_in_the_end_and_counted(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hear an end of file; nobody waits for them."""
    monkeypatch.setattr(server, "_PATIENCE_S", 0.05)
    silent = [served.connect() for _ in range(7)]
    for peer in silent:
        assert peer.recv(1) == b""
        peer.close()
    assert served.bad_messages(7)


def test_agent_is_served_promptly_among_hundreds_of_others(served: Served) -> None:
    """Silent peers, more of them than the server keeps, do not keep an agent out."""
    silent = [served.connect() for _ in range(HUNDREDS)]
    begun_s = time.monotonic()
    data, fds = served.ask(request(layout.REQ_HELLO))
    took_s = time.monotonic() - begun_s
    assert reply(data)[0] == layout.REPLY_OK
    assert took_s < 1
    os.close(fds[0])
    # The ones that had been silent for longest made room, and were counted.
    assert served.bad_messages(HUNDREDS + 1 - server._MAX_PEERS)
    for peer in silent:
        peer.close()


def test_connect_and_close_is_counted(served: Served) -> None:
    """Hundreds that say nothing and go."""
    for _ in range(HUNDREDS):
        served.connect().close()
    assert served.bad_messages(HUNDREDS)


def test_peer_that_goes_before_its_reply_costs_a_segment_and_no_more(served: Served) -> None:
    """The next one is served."""
    for _ in range(31):
        with served.connect() as peer:
            peer.send(request(layout.REQ_HELLO))
    assert until(lambda: len(served.session.hellos) == 31)
    data, fds = served.ask(request(layout.REQ_HELLO))
    assert reply(data)[0] == layout.REPLY_OK
    os.close(fds[0])
    assert until(lambda: all(segment.fd == -1 for segment in served.session.segments))


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "no descriptors"), MemoryError(), RuntimeError("a bug")]
)
def test_error_of_a_handler_does_not_end_the_server(error: Exception, served: Served) -> None:
    """The peer hears an end of file, it is counted, and the next is served."""
    served.session.error = error
    assert served.ask(request(layout.REQ_HELLO)) == (b"", [])
    assert served.bad_messages(1)
    served.session.error = None
    data, fds = served.ask(request(layout.REQ_HELLO))
    assert reply(data)[0] == layout.REPLY_OK
    os.close(fds[0])


def test_descriptors_sent_to_the_server_are_not_kept(served: Served) -> None:
    """A peer cannot fill the recorder's descriptor table."""
    gc.collect()  # what earlier tests left would go away meanwhile
    held = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(53):
        with served.connect() as peer, open(os.devnull, "rb") as file:  # noqa: PTH123 - an fd
            socket.send_fds(peer, [request(0)], [file.fileno()] * 5)
            assert peer.recv(100) == REFUSED
    assert until(lambda: len(list(Path("/proc/self/fd").iterdir())) == held)


def test_close_while_peers_are_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hear an end of file, whether they were accepted or not, and later ones are refused."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    running = HandoverServer(Session().handlers(), LossLedger())
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(61)]
    for peer in waiting:
        peer.settimeout(DEADLINE_S)
        peer.connect(str(running.path))
    running.start()
    running.close()
    for peer in waiting:
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""
        peer.close()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late,
        pytest.raises((ConnectionRefusedError, FileNotFoundError)),
    ):
        late.connect(str(running.path))
    assert not running.path.parent.exists()


MESSAGES = st.lists(
    st.one_of(
        st.binary(max_size=97),
        st.binary(min_size=24, max_size=24),
        st.builds(request, st.integers(0, 5)),
        st.builds(lambda t: request(layout.REQ_REPORT) + t, st.binary(max_size=61)),
        st.builds(
            lambda v: request(layout.REQ_REPORT) + json.dumps(v).encode(),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
                max_leaves=7,
            ),
        ),
        st.just(b""),
    ),
    max_size=13,
)


@settings(
    deadline=None,
    max_examples=61,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one server takes it all
)
@given(messages=MESSAGES, seed=st.integers(0, 2**32))
def test_arbitrary_messages_and_then_a_good_one(
    messages: list[bytes], seed: int, served: Served
) -> None:
    """All at once, read or not read, some cut off: the agent in their midst is served."""
    rng = random.Random(seed)
    peers = []
    good_at = rng.randrange(len(messages) + 1)
    for i in range(len(messages) + 1):
        if i == good_at:
            data, fds = served.ask(request(layout.REQ_HELLO))
            assert reply(data)[0] == layout.REPLY_OK
            os.close(fds[0])
            continue
        peer = served.connect()
        message = messages[i - (i > good_at)]
        if message:
            peer.send(message)
        if rng.random() < 0.5:
            peer.close()
        else:
            peers.append(peer)
    for peer in peers:
        peer.close()


def test_segment_handed_over_is_the_recorders(served: Served) -> None:
    """What the peer writes through the descriptor is drained here."""
    _, fds = served.ask(request(layout.REQ_HELLO))
    segment = served.session.segments[0]
    segment.fd = fds[0]  # as received; the fake agent maps and closes it
    FakeAgent(segment).live_thread(7).mark(11)
    chunks, _ = segment.drain(served.ledger, 1)
    assert [(c.tid, c.records["ts_ns"].tolist()) for c in chunks] == [(7, [11])]
