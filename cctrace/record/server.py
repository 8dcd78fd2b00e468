"""The hand-over socket: gives each process of the target its shared memory.

Listens on a unix socket in a directory only this user can enter. A request comes
from whoever found the socket, so the kernel's word on the peer (SO_PEERCRED) is
what counts: another user, or a process that the target did not start, is refused.
Runs in a thread of its own, because the engine waits for the reply. Libraries that
were just loaded are announced here too; attaching to one takes a while, so threads of
their own do that and reply.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import selectors
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cctrace.record import layout
from cctrace.record.losses import NVTX, RECORDER, LossLedger
from cctrace.record.scratch import ScratchDirectory, directory_name
from cctrace.record.segment import Segment

_PEERCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))
_PATIENCE_S: Final = 2.0  # for a peer that connects and says nothing
_MAX_PEERS: Final = 256
# A pool of workers forks at once; who finds no place in the queue waits for seconds.
_BACKLOG: Final = 4096
_PATH_MAX_BYTES: Final = 107  # sockaddr_un.sun_path less its final NUL (unix(7))
_BREATH_S: Final = 0.05
_LIBRARY_WAIT_S: Final = 2.0  # WAIT_NS of probes/agent/audit.c
_LIBRARY_THREADS: Final = 4  # who loads a known library does not wait for a new one
_MAX_LOADING: Final = 1024
_ATTACH_PATIENCE_S: Final = 10.0  # for an attach under way when recording ends


@dataclass(frozen=True)
class Peer:
    """Who is on the other end, as the kernel says.

    Attributes:
        pid: Process id in the recorder's namespace; 0: not in it.
        uid: User id.
    """

    pid: int
    uid: int


@dataclass(frozen=True)
class Handlers:
    """What the session does with requests; each is called in the server's thread.

    Attributes:
        is_traced: Whether a pid belongs to the target's tree.
        hello: Makes the first segment of a new process image, named by its token.
        more: Makes a further one; None refuses.
        report: Takes an adapter's report; raises ValueError where it makes no sense.
        library: Attaches to a library that a process has mapped and not run yet, by
            its path as the process has it and an address in it; the process waits
            meanwhile. Called in threads of its own, several at once; None refuses.
        library_late: Told, with the same, that the process had stopped waiting and
            gone on when ``library`` returned.
    """

    is_traced: Callable[[int], bool]
    hello: Callable[[Peer, int], Segment]
    more: Callable[[Peer, int], Segment | None]
    report: Callable[[Peer, dict[str, Any]], None]
    library: Callable[[Peer, bytes, int], None] | None = None
    library_late: Callable[[Peer, bytes, int], None] | None = None


@dataclass(frozen=True)
class _Loading:
    """A process that waits for its library to be attached to."""

    socket: socket.socket
    peer: Peer
    path: bytes
    address: int
    since_s: float


def _place() -> str:
    """The temporary directory, or /tmp where its path is too long for a socket's."""
    place = tempfile.gettempdir()
    name = f"{directory_name()}xxxxxxxx/agent.sock"
    return place if len(os.fsencode(f"{place}/{name}")) <= _PATH_MAX_BYTES else "/tmp"  # noqa: S108 - mkdtemp


class HandoverServer:
    """Answers hello, more and report until closed.

    Args:
        handlers: What to do with requests.
        ledger: Takes the count of requests that made no sense.

    Raises:
        OSError: The socket cannot be made.
    """

    def __init__(self, handlers: Handlers, ledger: LossLedger) -> None:
        self._handlers = handlers
        self._ledger = ledger
        self._directory = ScratchDirectory(place=_place())
        self.path = self._directory.path / "agent.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.bind(str(self.path))
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.close()
            self._directory.close()
            raise
        self._socket.setblocking(False)  # noqa: FBT003 - the library's signature
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._deadlines: dict[socket.socket, float] = {}
        self._loading: queue.Queue[_Loading | None] = queue.Queue(_MAX_LOADING)
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="cctrace-server", daemon=True)
        self._library_threads = [
            threading.Thread(target=self._attach_libraries, name="cctrace-library", daemon=True)
            for _ in range(_LIBRARY_THREADS if handlers.library is not None else 0)
        ]

    def start(self) -> None:
        """Begin to answer."""
        for thread in (self._thread, *self._library_threads):
            thread.start()

    def close(self) -> None:
        """Stop answering and remove the socket; peers get a refused connection."""
        if self._thread.is_alive():
            self._closing = True
            os.write(self._wake_write, b"x")
            self._thread.join()
            for _ in self._library_threads:
                self._loading.put(None)
            for thread in self._library_threads:
                thread.join(_ATTACH_PATIENCE_S)
        self._socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._directory.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                timeout = _PATIENCE_S if self._deadlines else None
                for key, _ in selector.select(timeout):
                    if key.fileobj == self._wake_read:
                        for peer in list(self._deadlines):
                            peer.close()
                        return
                    if key.fileobj is self._socket:
                        self._accept(selector)
                    elif key.fileobj in self._deadlines:  # not dropped a moment ago
                        self._answer_and_close(selector, key.fileobj)
                self._drop_silent(selector)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            peer, _ = self._socket.accept()
        except BlockingIOError:  # it went away again
            return
        except OSError:  # out of descriptors or memory: it stays ready, so do not spin
            time.sleep(_BREATH_S)
            return
        peer.setblocking(False)  # noqa: FBT003 - the library's signature
        if len(self._deadlines) >= _MAX_PEERS:
            # The one that has been silent for longest, not the newcomer: an agent
            # speaks at once.
            self._forget(selector, next(iter(self._deadlines)))
            self._ledger.add(NVTX, "bad_message", 1)
        self._deadlines[peer] = time.monotonic() + _PATIENCE_S
        selector.register(peer, selectors.EVENT_READ)

    def _drop_silent(self, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        for peer in [p for p, deadline in self._deadlines.items() if deadline < now]:
            self._forget(selector, peer)
            self._ledger.add(NVTX, "bad_message", 1)

    def _forget(self, selector: selectors.BaseSelector, peer: socket.socket) -> None:
        selector.unregister(peer)
        del self._deadlines[peer]
        peer.close()

    def _answer_and_close(self, selector: selectors.BaseSelector, peer: socket.socket) -> None:
        try:
            if not self._answer(selector, peer):
                self._ledger.add(NVTX, "bad_message", 1)
        except Exception:  # noqa: BLE001 - the peer is gone, or no segment could be
            # made for it; whatever it is, the next one has to be answered.
            self._ledger.add(NVTX, "bad_message", 1)
        finally:
            if peer in self._deadlines:  # not handed on
                self._forget(selector, peer)

    def _answer(self, selector: selectors.BaseSelector, peer: socket.socket) -> bool:
        """Read one request and reply; False where it made no sense or was refused."""
        data = peer.recv(layout.REQUEST.itemsize + layout.REPORT_MAX)
        who = _credentials(peer)
        if len(data) < layout.REQUEST.itemsize:
            return False
        request = np.frombuffer(data, layout.REQUEST, 1)[0]
        if (
            request["magic"] != layout.WIRE_MAGIC
            or request["version"] != layout.WIRE_VERSION
            or who.uid not in (os.geteuid(), 0)
            or not self._handlers.is_traced(who.pid)
        ):
            _reply(peer, layout.REPLY_REFUSED)
            return False
        kind = int(request["type"])
        if kind == layout.REQ_REPORT:
            return self._take_report(peer, who, data[layout.REQUEST.itemsize :])
        if kind == layout.REQ_LIBRARY:
            path = data[layout.REQUEST.itemsize :]
            address = int(request["token"])
            return self._hand_on(selector, _Loading(peer, who, path, address, time.monotonic()))
        segment: Segment | None = None
        token = 0
        if kind == layout.REQ_HELLO:
            token = secrets.randbits(63) | 1
            segment = self._handlers.hello(who, token)
        elif kind == layout.REQ_MORE:
            token = int(request["token"])
            segment = self._handlers.more(who, token)
        if segment is None:
            _reply(peer, layout.REPLY_REFUSED)
            return False
        try:
            _reply(peer, layout.REPLY_OK, token, segment)
        finally:
            segment.close_fd()
        return True

    def _hand_on(self, selector: selectors.BaseSelector, loading: _Loading) -> bool:
        """Leave a process that loads a library to the threads that attach."""
        if (
            self._handlers.library is None
            or not 0 < len(loading.path) < layout.LIBRARY_PATH_MAX
            or b"\0" in loading.path
        ):
            _reply(loading.socket, layout.REPLY_REFUSED)
            return False
        selector.unregister(loading.socket)
        del self._deadlines[loading.socket]
        try:
            self._loading.put_nowait(loading)
        except queue.Full:  # the process goes on; a scan finds what it loads
            loading.socket.close()
        return True

    def _attach_libraries(self) -> None:
        while True:
            loading = self._loading.get()
            if loading is None:
                return
            with loading.socket:
                self._attach_library(loading)

    def _attach_library(self, loading: _Loading) -> None:
        if self._closing or self._handlers.library is None:
            return
        try:
            self._handlers.library(loading.peer, loading.path, loading.address)
        except Exception:  # noqa: BLE001 - a fault of ours must not keep the process waiting
            self._ledger.add(RECORDER, "recorder_error", 1)
        try:
            _reply(loading.socket, layout.REPLY_OK)
        except OSError:
            # One that hangs up earlier has not gone on: it was killed.
            waited_s = time.monotonic() - loading.since_s
            if self._handlers.library_late is not None and waited_s > _LIBRARY_WAIT_S / 2:
                self._handlers.library_late(loading.peer, loading.path, loading.address)

    def _take_report(self, peer: socket.socket, who: Peer, text: bytes) -> bool:
        try:
            report = json.loads(text)
            if not isinstance(report, dict):
                raise ValueError("not an object")  # noqa: TRY004, TRY301 - one path for all
            self._handlers.report(who, report)
        except (ValueError, RecursionError):
            _reply(peer, layout.REPLY_REFUSED)
            return False
        _reply(peer, layout.REPLY_OK)
        return True


def _credentials(peer: socket.socket) -> Peer:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid, uid, _ = _PEERCRED.unpack(raw)
    return Peer(pid, uid)


def _reply(
    peer: socket.socket, status: int, token: int = 0, segment: Segment | None = None
) -> None:
    reply = np.zeros(1, layout.REPLY)
    reply["magic"] = layout.WIRE_MAGIC
    reply["version"] = layout.WIRE_VERSION
    reply["status"] = status
    reply["token"] = token
    if segment is None:
        peer.sendmsg([reply.tobytes()])
        return
    reply["segment_bytes"] = segment.geometry.segment_bytes
    socket.send_fds(peer, [reply.tobytes()], [segment.fd])
