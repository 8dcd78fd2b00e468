"""A process that runs already: watched, never signalled, never waited for as a child."""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
import time
from typing import Final

from cctrace.errors import EXIT_FAILED, EXIT_SIGNAL_BASE, EXIT_UNSUPPORTED, CctraceError
from cctrace.record import procfs
from cctrace.record.target import STOPPING, TAKEN_SIGNALS, Reaped

_ROUND_S: Final = 0.05


class AttachedProcess:
    """What ``Target`` is for a command, for a process of somebody else's.

    Signals that would end a wrapped command end the recording here; the process does
    not see them.

    Args:
        pid: The process.

    Attributes:
        pid: As given.
        exit_code: Its exit status, 128 + n for signal n, once it has ended; 0 where
            that cannot be told.
        signalled: Whether a signal ended it.
        stopped: Whether the user ended the recording.
        stop_signals: How many signals to do so have come.

    Raises:
        CctraceError: There is no such process, or it is the recorder itself.
    """

    def __init__(self, pid: int) -> None:
        if pid == os.getpid():
            raise CctraceError("cctrace cannot record itself", "name another process", EXIT_FAILED)
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise CctraceError(
                f"cannot record process {pid}: {error.strerror}",
                "name the process id of a running process, not of a thread",
                EXIT_FAILED if isinstance(error, ProcessLookupError) else EXIT_UNSUPPORTED,
            ) from error
        self.pid = pid
        self.exit_code: int | None = None
        self.signalled = False
        self.stopped = False
        self.stop_signals = 0
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="cctrace-signals", daemon=True).start()

    def wait(self, timeout_s: float) -> list[Reaped]:
        """Wait for the process to end, for a signal to us, or for the timeout."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            try:
                if self._arrived.get(timeout=max(min(left_s, _ROUND_S), 0)) in STOPPING:
                    self.stopped = True
                    self.stop_signals += 1
            except queue.Empty:
                pass
            if select.select([self._pidfd], [], [], 0)[0]:
                code = procfs.exit_code_of(self._pidfd)
                self.exit_code = code if code is not None else 0
                self.signalled = self.exit_code > EXIT_SIGNAL_BASE
                return []
            if self.stopped or left_s <= 0:
                return []

    def processes(self) -> list[int]:
        """The process and all it has started that run now."""
        found: list[int] = []
        todo = [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            for tid in procfs.list_tids(pid):
                todo += procfs.children(pid, tid)
        return found

    def threads(self) -> list[int]:
        """Threads of all those processes."""
        return [tid for pid in self.processes() for tid in procfs.list_tids(pid)]

    def _listen(self) -> None:
        while True:
            self._arrived.put(signal.sigwaitinfo(TAKEN_SIGNALS).si_signo)
