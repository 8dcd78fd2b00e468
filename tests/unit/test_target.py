"""The wrapper's manners: what the target is given, what reaches it, how it ended.

Blocking signals and being a subreaper would change pytest itself, so each test runs
a small wrapper of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from cctrace.errors import CctraceError
from cctrace.record.target import FORWARDED, start_target

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0

WRAPPER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from cctrace.record import target
target.block_signals()
assert target.become_subreaper()
running = target.start_target(sys.argv[2:], dict(os.environ))
reaped = []
while running.exit_code is None:
    reaped += running.wait(0.25)
assert any(r.pid == running.pid and r.exit_code == running.exit_code for r in reaped)
print(json.dumps([running.signalled, len(reaped)]), file=sys.stderr)
sys.exit(running.exit_code)
"""

# Prints each signal it gets, and ends at SIGUSR2.
LISTENER = """
import signal
from signal import SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2
mask = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, mask)
print("ready", flush=True)
while True:
    number = signal.sigwaitinfo(mask).si_signo
    print(number, flush=True)
    if number == signal.SIGUSR2:
        break
"""


def wrapper(*command: str | bytes) -> list[str | bytes]:
    """The arguments of a wrapper around ``command``."""
    return [sys.executable, "-c", WRAPPER, str(ROOT), *command]


def run(*command: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the wrapper; its stderr is its own report, then the target's."""
    return subprocess.run(wrapper(*command), capture_output=True, check=False, **options)


def line(stream: IO[bytes]) -> bytes:
    """One line, before the deadline."""
    ready, _, _ = select.select([stream], [], [], DEADLINE_S)
    assert ready, "no line came"
    return stream.readline()


ARGUMENTS = [
    b"plain",
    b"",
    b"with space",
    b"\"quoted\" 'too'",
    b"line\nfeed\ttab",
    b"$HOME `id` * ; |",
    "h\u00e9".encode(),
    b"not utf-8: \xff\xfe",
    b"-o",
    b"--",
]


def test_arguments_and_environment_arrive_byte_for_byte() -> None:
    """Spaces, quotes, nothing at all, and bytes that are no text."""
    code = (
        "import os\n"
        "words = open('/proc/self/cmdline', 'rb').read().split(b'\\0')\n"
        "os.write(1, b'\\0'.join(words[3:-1]))\n"
    )
    done = run(sys.executable, "-c", code, *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(b"\0") == ARGUMENTS
    environment = {b"A": b"", b"B": b"x=y", b"C": b"\xff two\nlines", b"PATH": b"/usr/bin:/bin"}
    # Where the locale is C, Python gives its own process an LC_CTYPE (PEP 538).
    environment[b"LC_ALL"] = b"C.UTF-8"
    done = run("cat", "/proc/self/environ", env=environment)
    found = dict(entry.split(b"=", 1) for entry in done.stdout.split(b"\0") if entry)
    assert found == environment


def test_relative_path_with_a_space_in_it(tmp_path: Path) -> None:
    """Taken from the directory the wrapper is in, which the target keeps."""
    script = tmp_path / "my engine.sh"
    script.write_text("#!/bin/sh\npwd -P\nexit 3\n")
    script.chmod(0o755)
    done = run("./my engine.sh", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, f"{tmp_path.resolve()}\n".encode())


ENDS = [
    ("exit 0", 0, False),
    ("exit 1", 1, False),
    ("exit 255", 255, False),
    ("exit 137", 137, False),
    ("kill -9 $$", 137, True),
    ("kill -TERM $$", 143, True),
    ("kill -SEGV $$", 139, True),
    ("kill -PIPE $$", 141, True),
]


@pytest.mark.parametrize(("body", "status", "signalled"), ENDS)
def test_exit_status(body: str, status: int, signalled: bool) -> None:
    """As a shell would tell it, and whether it was a signal."""
    done = run("sh", "-c", f"ulimit -c 0; {body}")
    assert done.returncode == status
    assert json.loads(done.stderr.splitlines()[-1]) == [signalled, 1]


def test_orphans_are_reaped_and_not_taken_for_the_target() -> None:
    """Five processes whose parent goes away come to the wrapper."""
    body = 'for i in 1 2 3 4 5; do (sh -c "exit $i" & ); done; sleep 0.3; exit 7'
    done = run("sh", "-c", body)
    assert done.returncode == 7
    assert json.loads(done.stderr) == [False, 6]


def status_words(text: bytes) -> dict[str, int]:
    """The signal masks of /proc/PID/status."""
    lines = (entry.split(":\t") for entry in text.decode().splitlines())
    return {key: int(value, 16) for key, value in lines if key.startswith("Sig") and key != "SigQ"}


def bit(number: int) -> int:
    """A signal's bit in a mask."""
    return 1 << (number - 1)


def test_signal_state_is_what_a_shell_gives() -> None:
    """Nothing blocked; SIGPIPE and SIGXFSZ, which Python ignores, are at their default."""
    masks = status_words(run("cat", "/proc/self/status").stdout)
    assert masks["SigBlk"] == masks["SigCgt"] == masks["SigPnd"] == 0
    assert masks["SigIgn"] & (bit(signal.SIGPIPE) | bit(signal.SIGXFSZ)) == 0


def test_mask_and_ignored_signals_of_the_caller_are_passed_on() -> None:
    """As under nohup, or when whoever started us had something blocked."""
    launch = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGWINCH])\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", launch, *wrapper("cat", "/proc/self/status")],
        capture_output=True,
        check=True,
    )
    masks = status_words(done.stdout)
    assert masks["SigBlk"] == bit(signal.SIGUSR1) | bit(signal.SIGWINCH)
    assert masks["SigIgn"] & bit(signal.SIGHUP)


def test_sigpipe_ends_a_target_in_a_pipe() -> None:
    """``yes | head -1`` ends, as without us."""
    with subprocess.Popen(wrapper("yes"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as outer:
        assert outer.stdout is not None
        assert line(outer.stdout) == b"y\n"
        outer.stdout.close()
        assert outer.wait(DEADLINE_S) == 128 + signal.SIGPIPE


def test_only_the_standard_descriptors_are_inherited() -> None:
    """No socket, segment or file of the recorder's leaks into the target."""
    # One more is that of the listing itself.
    code = "import os; print(len(os.listdir('/proc/self/fd')) - 1)"
    done = run(sys.executable, "-c", code, stdin=subprocess.DEVNULL)
    assert done.stdout == b"3\n"


FAILURES = {
    "does not exist": ("no-such-program-anywhere", 127, "No such file or directory", "PATH"),
    "path does not exist": ("./no/such", 127, "No such file or directory", "PATH"),
    "empty": ("", 126, "posix_spawnp: argv first element cannot be empty", ""),
    "directory": ("./folder", 126, "Permission denied", "it is a directory"),
    "not executable": ("./plain", 126, "Permission denied", "chmod"),
    "no interpreter line": ("./shebangless", 126, "Exec format error", "interpreter"),
    "interpreter missing": ("./orphaned", 127, "No such file or directory", "interpreter"),
    "below a file": ("./plain/x", 126, "Not a directory", ""),
    "zero byte": ("a\0b", 126, "embedded null byte", ""),
}


@pytest.mark.parametrize(
    ("program", "code", "reason", "hint"), FAILURES.values(), ids=FAILURES.keys()
)
def test_target_that_cannot_be_started(  # noqa: PLR0917 - parameters of the test
    program: str,
    code: int,
    reason: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """127 where it is not there, 126 where it is no program; the fix is named."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("true\n")
    for name, text in (("shebangless", "true\n"), ("orphaned", "#!/no/such/interpreter\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CctraceError) as caught:
        start_target([program, "argument"], dict(os.environ))
    assert caught.value.exit_code == code
    assert caught.value.message == f"cannot run {program!r}: {reason}"
    assert hint in (caught.value.hint or "")


def test_arguments_too_long_are_no_program_that_is_missing() -> None:
    """E2BIG is told as such."""
    with pytest.raises(CctraceError) as caught:
        start_target(["true", "x" * (1 << 18)], {})
    assert caught.value.exit_code == 126
    assert caught.value.message == "cannot run 'true': Argument list too long"


@pytest.fixture
def listening() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        wrapper(sys.executable, "-c", LISTENER), stdout=subprocess.PIPE, start_new_session=True
    ) as outer:
        assert outer.stdout is not None
        assert line(outer.stdout) == b"ready\n"
        yield outer
        if outer.poll() is None:
            os.killpg(outer.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "number", [s for s in FORWARDED if s != signal.SIGUSR2], ids=lambda s: s.name
)
def test_signal_sent_to_the_wrapper_arrives_exactly_once(
    number: signal.Signals, listening: subprocess.Popen[bytes]
) -> None:
    """kill(2) on the wrapper is kill(2) on the target, three times over."""
    assert listening.stdout is not None
    for _ in range(3):
        listening.send_signal(number)
        assert line(listening.stdout) == b"%d\n" % number
    listening.send_signal(signal.SIGUSR2)
    assert listening.stdout.read() == b"%d\n" % signal.SIGUSR2
    assert listening.wait(DEADLINE_S) == 0


def test_stopped_and_continued_wrapper_goes_on(listening: subprocess.Popen[bytes]) -> None:
    """SIGSTOP and SIGCONT interrupt its waiting and nothing else."""
    assert listening.stdout is not None
    for _ in range(3):
        listening.send_signal(signal.SIGSTOP)
        until_state(listening.pid, "T")
        listening.send_signal(signal.SIGCONT)
        listening.send_signal(signal.SIGUSR1)
        assert line(listening.stdout) == b"%d\n" % signal.SIGUSR1
    listening.send_signal(signal.SIGUSR2)
    assert listening.stdout.read() == b"%d\n" % signal.SIGUSR2
    assert listening.wait(DEADLINE_S) == 0


def until_state(pid: int, state: str) -> None:
    """Wait until a process is in a state of proc_pid_stat(5)."""
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != state:
        assert time.monotonic() < deadline, f"{pid} is not in state {state}"
        time.sleep(0.001)


class Terminal:
    """A wrapper that leads a session on a pseudo-terminal of its own."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        launch = (
            "import fcntl, os, sys, termios\n"
            "os.setsid()\n"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "os.execv(sys.argv[1], sys.argv[1:])\n"
        )
        self.outer = subprocess.Popen(
            [sys.executable, "-c", launch, *wrapper(sys.executable, "-c", LISTENER)],
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
        )
        os.close(slave)
        assert self.outer.stdout is not None
        self.stdout = self.outer.stdout
        assert line(self.stdout) == b"ready\n"

    def close(self) -> None:
        """Kill what is left."""
        if self.master >= 0:
            os.close(self.master)
        if self.outer.poll() is None:
            os.killpg(self.outer.pid, signal.SIGKILL)
            self.outer.wait()
        self.stdout.close()

    def rest(self) -> bytes:
        """End the target and read all that it still prints."""
        self.outer.send_signal(signal.SIGUSR2)
        rest = self.stdout.read()
        assert self.outer.wait(DEADLINE_S) == 0
        return rest


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)], ids=["^C", "^\\"]
)
def test_key_on_the_terminal_arrives_exactly_once(
    key: bytes, number: int, terminal: Terminal
) -> None:
    """The driver signals the whole foreground group, so nothing is passed on."""
    for _ in range(3):
        os.write(terminal.master, key)
        assert line(terminal.stdout) == b"%d\n" % number
    assert terminal.rest() == b"%d\n" % signal.SIGUSR2


def test_hang_up_of_the_terminal_reaches_the_target_exactly_once(terminal: Terminal) -> None:
    """The kernel tells the session's leader alone, so a leader passes it on."""
    assert fcntl.ioctl(terminal.master, termios.FIONREAD, b"\0" * 4)
    os.close(terminal.master)
    terminal.master = -1
    assert line(terminal.stdout) == b"%d\n" % signal.SIGHUP
    terminal.outer.send_signal(signal.SIGUSR2)
    assert terminal.stdout.read() == b"%d\n" % signal.SIGUSR2
