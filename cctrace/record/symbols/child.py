"""The recorder's end of the child process that reads untrusted files."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from cctrace.record.symbols.limits import MAX_REQUEST_BYTES

# -I: nothing of the working directory runs in the child. Modules come from where ours did.
_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from cctrace.record.symbols.worker import main; main(int(sys.argv[1]))"
)
_PACKAGE_PARENT: Final = str(Path(__file__).resolve().parents[3])
_MAX_ANSWER_BYTES: Final = 64 << 20
_PATIENCE_S: Final = 15.0  # beyond a request's own time: the child may still be starting


class Child:
    """Asks the child, one request at a time; any thread may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._is_stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        places = [place for place in sys.path if place.startswith("/")]
        with theirs, contextlib.suppress(OSError):
            if not sys.executable:
                return
            # A session of its own: Ctrl-C is for the recorder alone.
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-c", _PROGRAM, str(theirs.fileno())),
                    *(*places, _PACKAGE_PARENT),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # it forks: no threads
            )

    @property
    def lost(self) -> bool:
        """Whether there is no child to ask any more."""
        return self._process is None

    def ask(self, request: dict[str, Any], fds: list[int], seconds: float) -> dict[str, Any] | None:
        """Send a request and wait for its answer.

        Args:
            request: See :mod:`.worker`.
            fds: Descriptors it is about, which stay the caller's.
            seconds: Time the child may take.

        Returns:
            The answer; None where the child died of the request or took too long.
        """
        with self._lock:
            if self.lost or self._is_stopped:
                return None
            with contextlib.ExitStack() as memories:
                try:
                    return self._ask({**request, "seconds": seconds}, fds, seconds, memories)
                except (OSError, ValueError):
                    self._give_up()
                    return None

    def stop(self) -> None:
        """Have no more to do with the child; who waits for its answer gets none."""
        self._is_stopped = True
        with contextlib.suppress(OSError):  # closed already
            self._channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._give_up()

    def _ask(
        self,
        request: dict[str, Any],
        fds: list[int],
        seconds: float,
        memories: contextlib.ExitStack,
    ) -> dict[str, Any] | None:
        content = json.dumps(request).encode()
        if len(content) > MAX_REQUEST_BYTES:
            return None
        deadline = time.monotonic() + seconds + _PATIENCE_S
        sent = dict([self._send(content, fds, memories)])
        took = False
        while True:
            self._channel.settimeout(max(deadline - time.monotonic(), 0.001))
            word, _, of = self._channel.recv(64).partition(b" ")
            if not word:
                raise OSError("the child has ended")
            if word == b"died" and took:
                return None
            # It died of an earlier one. Whether it had this one in its hands by then, and
            # took it along, cannot be told: asked once more, the first answer counts.
            if word == b"died" and len(sent) == 1:
                sent.update([self._send(content, fds, memories)])
            if word == b"took" and of in sent:
                took = True
            if word == b"done" and of in sent:
                return _read(sent[of])

    def _send(
        self, content: bytes, fds: list[int], memories: contextlib.ExitStack
    ) -> tuple[bytes, int]:
        """Send a request; returns its number, and the memory file its answer will be in."""
        memory = os.memfd_create("cctrace-symbols")
        memories.callback(os.close, memory)
        os.write(memory, content)
        self._number += 1
        number = b"%d" % self._number
        socket.send_fds(self._channel, [number], [memory, *fds])
        return number, memory

    def _give_up(self) -> None:
        self._channel.close()
        process, self._process = self._process, None
        if process is None:
            return
        # It ends by itself when the channel closes, unless it is at work.
        for kill in (False, True):
            if kill:
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
                return
        process.returncode = -1  # in an uninterruptible sleep; init gets it in the end


def _read(memory: int) -> dict[str, Any] | None:
    size = os.fstat(memory).st_size
    if size > _MAX_ANSWER_BYTES:
        return None
    found = json.loads(os.pread(memory, size, 0))
    return found if isinstance(found, dict) else None
