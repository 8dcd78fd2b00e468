"""Programs and places that leave recorder or agent little: nothing is harmed or silent."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import agent_harness as harness
import pytest
from recording import CCTRACE, DEADLINE_S, environment, losses, record, rows

from cctrace.store.manifest import read_manifest

MARK = "import nvtx; nvtx.mark('a')"


@pytest.fixture(scope="session")
def hardships(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled target, tests/targets/nvtx_hardships.c."""
    program = tmp_path_factory.mktemp("targets") / "nvtx_hardships"
    harness.compile_c(harness.TARGETS / "nvtx_hardships.c", program, "-ldl", "-lpthread")
    return program


def recorded(hardships: Path, run: Path, mode: str) -> Counter[str]:
    """Events by name of one mode, recorded; the program found itself unharmed."""
    done = record(run, "timeout", "40", hardships, mode)
    assert done.returncode == 0, done.stderr
    return Counter(row["name"] for row in rows(run, "nvtx"))


def test_handlers_that_jump_out_of_events(hardships: Path, tmp_path: Path) -> None:
    """Neither is the agent's lock left taken nor does the thread stay mute."""
    names = recorded(hardships, tmp_path / "run", "jumps")
    assert names["late"] == 1009
    assert names["first"] == 1
    assert set(losses(tmp_path / "run")) <= {"reentrant"}


def test_no_key_is_left_for_the_agent(hardships: Path, tmp_path: Path) -> None:
    """It keeps its hands off the keys of others, and records."""
    assert recorded(hardships, tmp_path / "run", "keys") == {"late": 1}


def test_no_descriptor_is_free_at_first(hardships: Path, tmp_path: Path) -> None:
    """What comes before one is free is counted; then the program is traced."""
    names = recorded(hardships, tmp_path / "run", "descriptors")
    lost = losses(tmp_path / "run")
    assert set(lost) == {"no_slot"}
    assert names["early"] == 0
    assert names["late"] >= 5003 - 1024
    assert names["late"] + lost["no_slot"] == 5003 + 5


def test_threads_that_end_without_destructors(hardships: Path, tmp_path: Path) -> None:
    """Their slots serve others, although nobody gave them back."""
    assert recorded(hardships, tmp_path / "run", "raw_exit") == {"late": 4799}
    assert losses(tmp_path / "run") == {}


def test_address_space_is_left_to_the_program(hardships: Path, tmp_path: Path) -> None:
    """With 600 MiB to have, a program that needs 200 of them gets them, traced."""
    assert recorded(hardships, tmp_path / "run", "memory") == {"late": 1009}
    assert losses(tmp_path / "run") == {}


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_descriptors(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """No file of the run takes their place, and the target finds them closed too."""
    run, seen = tmp_path / "run", tmp_path / "seen"
    body = f"import os; open({str(seen)!r}, 'w').write(str(os.listdir('/proc/self/fd')))\n{MARK}"
    closing = " ".join(f"{fd}>&-" for fd in closed)
    command = [*CCTRACE, "record", "-o", str(run), "--", sys.executable, "-c", body]
    told = {}
    for who, words in (("plain", command[-3:]), ("recorded", command)):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closing}', "sh", *words],
            env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told[who] = seen.read_text()
    assert told["recorded"] == told["plain"]
    assert len(rows(run, "nvtx")) == 1


def test_temporary_directory_with_a_long_path(tmp_path: Path) -> None:
    """A path no socket can have (108 bytes) is no reason to record nothing."""
    place = tmp_path / ("x" * 100)
    place.mkdir()
    env = environment(TMPDIR=str(place))
    done = record(tmp_path / "run", sys.executable, "-c", MARK, env=env)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run", "nvtx")) == 1


def test_what_keeps_nvtx_from_being_recorded_is_told(tmp_path: Path) -> None:
    """Under `ulimit -f` no segment can be made: said at the end, with the reason."""
    done = record(
        tmp_path / "run", sys.executable, "-c", MARK,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING: nvtx was not recorded: " in done.stderr
    assert os.strerror(27) in done.stderr  # EFBIG
    assert "made an NVTX call" not in done.stderr
    [source] = [s for s in read_manifest(tmp_path / "run").sources if s.name == "nvtx"]
    assert source.state == "refused"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_target_that_becomes_another_user_is_told(tmp_path: Path) -> None:
    """It cannot reach our socket, so why nothing of it is there has to be said."""
    body = f"import os, time; os.setuid(65534); time.sleep(0.3)\n{MARK}"
    done = record(tmp_path / "run", sys.executable, "-c", body)
    assert "user 65534" in done.stderr
    assert "run cctrace as that user" in done.stderr


def test_no_temporary_directory() -> None:
    """Without a place for the socket the command runs all the same, and why is said."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        pytest.skip("no private mounts here (unshare -rm): every place can be written")
    # The current directory is a candidate too.
    # Read-only, not hidden: the sources and this Python may lie below them.
    hide = (
        "cd /proc && for place in /tmp /var/tmp; do "
        "mount --bind $place $place && mount -o remount,bind,ro $place; done"
    )
    run = Path("/dev/shm") / f"cctrace-test-{os.getpid()}"
    try:
        done = subprocess.run(
            [unshare, "-rm", "sh", "-c", f'{hide}; exec "$@"', "sh",
             *CCTRACE, "record", "-o", str(run), "--", "sh", "-c", "echo ran; exit 7"],
            env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(run, ignore_errors=True)
    assert (done.returncode, done.stdout) == (7, "ran\n"), done.stderr
    assert "WARNING: nvtx was not recorded: " in done.stderr
    assert "No usable temporary directory" in done.stderr
