"""Start the command as a wrapper should, pass signals on, and learn how it ended.

The target keeps our terminal, process group, descriptors and directory. It is
started by posix_spawn with the signal state a shell would give it. The signals
are blocked in the recorder and taken by a thread in ``sigwaitinfo``, which also
says where one came from: what the terminal's driver sent (Ctrl-C) has reached the
target already, what another process sent has not and is passed on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import resource
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cctrace.errors import (
    EXIT_NOT_EXECUTABLE,
    EXIT_NOT_FOUND,
    EXIT_SIGNAL_BASE,
    CctraceError,
)

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
TAKEN_SIGNALS: Final = frozenset({*FORWARDED, signal.SIGCHLD})
# Python ignores these; a program started by a shell does not.
_RESTORED: Final = (signal.SIGPIPE, signal.SIGXFSZ)
# What a user ends a program by.
STOPPING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_SI_KERNEL: Final = 0x80  # sigaction(2): sent by the kernel, here the terminal driver
_PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)


def block_signals() -> None:
    """Block what ``Target.wait`` takes, in this thread and those it starts.

    Call it before any other thread is there (NumPy starts some when imported):
    the kernel delivers a signal to any thread that does not block it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN_SIGNALS)


def become_subreaper() -> bool:
    """Have orphans of the target become our children, so that none is out of sight.

    Returns:
        Whether the kernel agreed. It ends with the recorder's own process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def inherited_environment() -> dict[str, str]:
    """The environment as we were given it.

    In the C locale CPython sets LC_CTYPE for itself (PEP 538); the target shall
    have the environment its user gave it. /proc/self/environ still has that.
    """
    environment = dict(os.environ)
    with contextlib.suppress(OSError):
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
        if not any(entry.startswith(b"LC_CTYPE=") for entry in given):
            environment.pop("LC_CTYPE", None)
    return environment


def raise_descriptor_limit() -> None:
    """Allow ourselves as many descriptors as we may have; the target keeps its limit.

    Each traced process takes two: its segment and its pidfd.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class Reaped:
    """A child that ended: the target itself or an orphan of it.

    Attributes:
        pid: Its process id.
        exit_code: Exit status, 128 + n for signal n.
    """

    pid: int
    exit_code: int


@dataclass
class Target:
    """The running command.

    Attributes:
        pid: Its process id.
        exit_code: Exit status, 128 + n for signal n; None while it runs.
        signalled: Whether a signal ended it.
        stop_signals: How many signals that would end it have come to us.
    """

    pid: int
    exit_code: int | None = None
    signalled: bool = False
    stop_signals: int = 0
    _arrived: queue.SimpleQueue[signal.struct_siginfo] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self._listener = threading.Thread(target=self._listen, name="cctrace-signals", daemon=True)

    def wait(self, timeout_s: float) -> list[Reaped]:
        """Wait for a signal or the timeout, pass signals on, reap children.

        Returns:
            Children that ended; ``exit_code`` is set when the target was one.
        """
        if not self._listener.is_alive():
            self._listener.start()
        with contextlib.suppress(queue.Empty):
            self._take(self._arrived.get(timeout=timeout_s))
            while True:
                self._take(self._arrived.get_nowait())
        return self._reap()

    def _listen(self) -> None:
        # Not sigtimedwait in the caller: CPython's returns uninitialised memory
        # when it is interrupted (a stop and a continue) and its time is over.
        while True:
            self._arrived.put(signal.sigwaitinfo(TAKEN_SIGNALS))

    def _take(self, info: signal.struct_siginfo) -> None:
        self.stop_signals += info.si_signo in STOPPING
        by_terminal = info.si_code == _SI_KERNEL
        if info.si_signo == signal.SIGHUP and os.getsid(0) == os.getpid():
            by_terminal = False  # it tells its session's leader alone that it is gone
        if info.si_signo != signal.SIGCHLD and not by_terminal:
            self.send(info.si_signo)

    def send(self, signum: int) -> None:
        """Send a signal to the target, unless it has ended."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signum)

    def _reap(self) -> list[Reaped]:
        reaped: list[Reaped] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return reaped
            if pid == 0:
                return reaped
            code = os.waitstatus_to_exitcode(status)
            reaped.append(Reaped(pid, code if code >= 0 else EXIT_SIGNAL_BASE - code))
            if pid == self.pid:
                self.exit_code = reaped[-1].exit_code
                self.signalled = code < 0


def start_target(command: list[str], environment: dict[str, str]) -> Target:
    """Start ``command`` with ``environment``, as a shell would.

    Raises:
        CctraceError: Exit code 127 where it does not exist, 126 where it cannot
            be executed.
    """
    try:
        pid = os.posix_spawnp(
            command[0],
            command,
            environment,
            setsigmask=_inherited_mask,
            setsigdef=_RESTORED,
        )
    except FileNotFoundError as error:
        hint = "check the spelling and PATH"
        if os.path.exists(command[0]):  # noqa: PTH110 - an argument, perhaps not a path
            hint = "the file is there, but the interpreter its first line names is not"
        raise CctraceError(
            f"cannot run {command[0]!r}: {error.strerror}", hint, EXIT_NOT_FOUND
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        hint = "make it executable (chmod +x), or name its interpreter first"
        if os.path.isdir(command[0]):  # noqa: PTH112 - an argument, perhaps not a path
            hint = "it is a directory"
        raise CctraceError(
            f"cannot run {command[0]!r}: {reason}", hint, EXIT_NOT_EXECUTABLE
        ) from None
    return Target(pid)


_inherited_mask: Final = signal.pthread_sigmask(signal.SIG_BLOCK, ())
