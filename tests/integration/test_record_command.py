"""`cctrace record` is a wrapper one does not notice: status, signals, terminal, output."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recording import CCTRACE, DEADLINE_S, environment, record, rows
from terminal import read_until_closed

from cctrace.store.manifest import read_manifest

# Without probes, which take seconds to compile, where the test is not about them.
RECORD = (*CCTRACE, "record", "--sources", "nvtx,processes")


@pytest.mark.parametrize(("body", "status"), [("exit 0", 0), ("exit 41", 41), ("kill -9 $$", 137)])
def test_status_of_the_target_is_returned(tmp_path: Path, body: str, status: int) -> None:
    """An exit status comes through, a signal as 128 + n, and the run says how it ended."""
    run = tmp_path / "run"
    done = record(run, "sh", "-c", f"echo out; echo err >&2; {body}")
    assert done.returncode == status
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    manifest = read_manifest(run)
    assert manifest.exit_code == status
    assert manifest.ended == ("target_signal" if status > 128 else "clean")
    assert manifest.stop is not None


def test_target_that_does_not_exist_is_127(tmp_path: Path) -> None:
    """As a shell has it; the error names the command, and no run is left."""
    done = record(tmp_path / "run", "no-such-program-31")
    assert done.returncode == 127
    assert "cctrace: cannot run 'no-such-program-31'" in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "run").exists()


def test_target_that_is_not_executable_is_126(tmp_path: Path) -> None:
    """A file without the execute bit, and a directory."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o644)
    for target in (script, tmp_path):
        done = record(tmp_path / "run", target)
        assert done.returncode == 126
        assert f"cctrace: cannot run '{target}'" in done.stderr
        assert not (tmp_path / "run").exists()


def test_missing_interpreter_is_told(tmp_path: Path) -> None:
    """The kernel's ENOENT for the interpreter must not read as a missing script."""
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = record(tmp_path / "run", script)
    assert done.returncode == 127
    assert "interpreter" in done.stderr


def test_arguments_arrive_as_given(tmp_path: Path) -> None:
    """Spaces, quotes, options of record's own, empty words, a relative program."""
    words = ["a b", "--force", "", "-o", "it's", '"', "$HOME", "*", "\n", "é"]
    shown = tmp_path / "show.py"
    shown.write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "here").symlink_to(sys.executable)
    done = record(tmp_path / "run", "./here", "show.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == words
    assert read_manifest(tmp_path / "run").command == ["./here", "show.py", *words]


def test_relative_output_and_default_name(tmp_path: Path) -> None:
    """-o is taken from where the user is; without it a dated directory is made there."""
    done = subprocess.run(
        [*RECORD, "-o", "sub/run", "true"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Wrote sub/run (0 events" in done.stderr
    assert "next: cctrace query sub/run --name processes" in done.stderr
    done = subprocess.run(
        [*CCTRACE, "record", "true"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("cctrace-*/run.json"))) == 1


def test_no_overwrite_without_force_and_only_of_runs(tmp_path: Path) -> None:
    """A run is replaced on request; anything else is never touched."""
    run = tmp_path / "run"
    assert record(run, "sh", "-c", "exit 3").returncode == 3
    again = record(run, "true")
    assert again.returncode == 1
    assert f"cctrace: {run} exists" in again.stderr
    assert "--force" in again.stderr
    assert read_manifest(run).exit_code == 3
    assert record(run, "true", options=("--force",)).returncode == 0
    assert read_manifest(run).exit_code == 0
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    refused = record(precious, "true", options=("--force",))
    assert refused.returncode == 1
    assert "is not a cctrace run" in refused.stderr
    assert (precious / "file").read_text() == "kept"


def test_unwritable_output_is_an_error_before_the_target_starts(tmp_path: Path) -> None:
    """A path below a file cannot be made, even by root."""
    (tmp_path / "file").write_text("")
    mark = tmp_path / "started"
    done = record(tmp_path / "file" / "run", "touch", mark)
    assert done.returncode == 1
    assert f"cannot write a run to {tmp_path}/file/run" in done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_sent_to_record_reach_the_target(tmp_path: Path, name: str) -> None:
    """A supervisor's signal is passed on once; the target's answer is our status."""
    run = tmp_path / "run"
    ready, answer = tmp_path / "ready", tmp_path / "answer"
    os.mkfifo(ready)
    script = tmp_path / "target.py"
    script.write_text(
        "import os, signal, sys\n"
        "got = []\n"
        "arrived, wake = os.pipe()\n"
        "os.set_blocking(wake, False)\n"
        "signal.set_wakeup_fd(wake)\n"
        f"signal.signal(signal.{name}, lambda n, f: got.append(n))\n"
        f"open({str(ready)!r}, 'w').close()\n"
        # Not pause(): the signal may come just before it.
        "os.read(arrived, 1)\n"
        f"open({str(answer)!r}, 'w').write(str(got))\n"
        "sys.exit(43)\n"
    )
    recorder = subprocess.Popen(
        [*RECORD, "-o", str(run), "--", sys.executable, str(script)],
        env=environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    ready.read_text()  # returns when the target's handler is in place
    recorder.send_signal(signal.Signals[name])
    _, stderr = recorder.communicate(timeout=DEADLINE_S)
    assert recorder.returncode == 43, stderr
    assert answer.read_text() == f"[{int(signal.Signals[name])}]"
    assert read_manifest(run).exit_code == 43


def test_terminal_is_passed_through_with_a_progress_line(tmp_path: Path) -> None:
    """On a terminal the target sees a terminal, and the summary follows its output."""
    run = tmp_path / "run"
    show = (
        "import os, select\n"
        "print('tty', os.isatty(0), os.isatty(1), flush=True)\n"
        f"select.select([0], [], [], {DEADLINE_S})\n"
    )
    leader, follower = pty.openpty()
    recorder = subprocess.Popen(
        [*RECORD, "-o", str(run), "--",
         sys.executable, "-c", show],
        stdin=follower, stdout=follower, stderr=follower,
        env=environment(TERM="xterm"), start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while b"events/s" not in shown:
        shown += os.read(leader, 65536)
    os.write(leader, b"\n")  # the progress line was there: the target may end
    shown += read_until_closed(leader)
    assert recorder.wait(DEADLINE_S) == 0
    assert b"tty True True" in shown
    assert b"events/s" in shown
    assert shown.rstrip().endswith(b"--name processes")  # nothing made an NVTX call
    assert b"Wrote " in shown


def test_duration_ends_the_recording_and_not_the_target(tmp_path: Path) -> None:
    """The run is closed while the target goes on; its status still comes through."""
    run = tmp_path / "run"
    go = tmp_path / "go"
    os.mkfifo(go)
    recorder = subprocess.Popen(
        [*RECORD, "--duration", "0.4", "-o", str(run), "--",
         "sh", "-c", f"read line < {go}; exit 17"],
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert recorder.stderr is not None
    said = ""
    while "the command goes on" not in said:
        line = recorder.stderr.readline()
        assert line, said
        said += line
    manifest = read_manifest(run)
    assert manifest.ended == "duration"
    assert manifest.exit_code is None
    assert manifest.stop is not None
    assert 0.4e9 <= manifest.stop.monotonic_ns - manifest.start.monotonic_ns < 30e9
    go.write_text("on\n")
    recorder.communicate(timeout=DEADLINE_S)
    assert recorder.returncode == 17


def test_process_tree_with_names_and_exit_codes(tmp_path: Path) -> None:
    """Children, grandchildren and a setsid daemon's orphan are in the table."""
    run = tmp_path / "run"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # The orphan lives until the main shell lets it go, and ends before it does.
    body = (
        f"(setsid sh -c 'read x < {fifo}; exit 5' &) ; "
        "sh -c 'sleep 0.5; exit 11'; "
        f"sleep 0.5; echo x > {fifo}; sleep 0.5; exit 0"
    )
    done = record(run, "sh", "-c", body)
    assert done.returncode == 0, done.stderr
    processes = rows(run, "processes")
    assert 11 in [p["exit_code"] for p in processes]
    orphan = next(p for p in processes if "exit 5" in (p["cmdline"] or "") and p["exit_code"] == 5)
    assert orphan["end_ns"] is not None
    by_pid = {p["pid"]: p for p in processes}
    assert sum(p["ppid"] in by_pid for p in processes) >= 3
    for p in processes:
        assert p["start_ns"] <= p["ts_ns"]
        assert p["end_ns"] is None or p["end_ns"] >= p["ts_ns"]
    names = {t["name"] for t in rows(run, "threads")}
    assert {"sh", "sleep"} <= names


def test_usage_errors_exit_2(tmp_path: Path) -> None:
    """An unknown source, a duration of zero, no command at all."""
    unknown = record(tmp_path / "r", "true", options=("--sources", "nvtx,ghosts"))
    assert unknown.returncode == 2
    assert "'ghosts' is no source; there are: nvtx, processes" in unknown.stderr
    assert record(tmp_path / "r", "true", options=("--duration", "0")).returncode == 2
    nothing = subprocess.run(
        [*CCTRACE, "record"], capture_output=True, text=True, check=False, env=environment()
    )
    assert nothing.returncode == 2
    assert not (tmp_path / "r").exists()


def test_every_thread_of_the_recorder_blocks_what_it_forwards(tmp_path: Path) -> None:
    """A thread that does not would be where the kernel delivers, and end the recorder.

    The one that waits for them (sigwaitinfo) shows them unblocked while it waits.
    """
    script = tmp_path / "look.py"
    script.write_text(
        "import os, pathlib\n"
        "tasks = pathlib.Path(f'/proc/{os.getppid()}/task').iterdir()\n"
        "masks = [(t / 'status').read_text().split('SigBlk:')[1].split()[0] for t in tasks]\n"
        "print(*masks)\n"
        "print(pathlib.Path('/proc/self/status').read_text().split('SigBlk:')[1].split()[0])\n"
    )
    done = record(tmp_path / "run", sys.executable, script)
    recorder, target = done.stdout.splitlines()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)
    mask = sum(1 << (number - 1) for number in wanted)
    threads = recorder.split()
    assert len(threads) >= 5
    assert [int(m, 16) & mask for m in threads].count(mask) >= len(threads) - 1
    assert int(target, 16) == 0


def test_a_process_its_parent_does_not_reap_is_one_row(tmp_path: Path) -> None:
    """A zombie is found by every walk of /proc; it is in the table once, with its status."""
    run = tmp_path / "run"
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(13)\n"
        "os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)\n"
        "until = time.monotonic() + 0.5\n"  # many walks long
        "while time.monotonic() < until: time.sleep(0.01)\n"
        "os.waitpid(child, 0)\n"
    )
    done = record(run, sys.executable, script)
    assert done.returncode == 0, done.stderr
    processes = rows(run, "processes")
    assert len(processes) == len({p["pid"] for p in processes}) == 2


def test_force_keeps_the_old_run_until_the_new_one_has_begun(tmp_path: Path) -> None:
    """A mistyped command must not cost the run that was there."""
    run = tmp_path / "run"
    assert record(run, "sh", "-c", "exit 3").returncode == 3
    assert record(run, "no-such-program-37", options=("--force",)).returncode == 127
    assert read_manifest(run).exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_target_that_ends_at_once_is_known(tmp_path: Path) -> None:
    """However short it was: its program and its status are in the table."""
    run = tmp_path / "run"
    assert record(run, "true").returncode == 0
    (process,) = rows(run, "processes")
    assert process["exit_code"] == 0
    assert process["end_ns"] >= process["start_ns"]
    assert process["exe"].endswith("/true")
    assert process["cmdline"] == "true"


def test_environment_is_the_users_but_for_the_tracing(tmp_path: Path) -> None:
    """Also in the C locale, where Python changes its own environment."""
    given = {"PATH": os.environ["PATH"], "LANG": "C", "ODD": "a=b c"}
    done = record(tmp_path / "run", "env", "-0", env=given)
    seen = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    added = seen.keys() - given.keys()
    assert {k: seen[k] for k in given} == given
    assert added == {"NVTX_INJECTION64_PATH", "CCTRACE_SOCKET", "CCTRACE_EMIT", "PYTHONPATH"}


def test_arguments_that_are_not_text_are_passed_on_and_shown(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 reach the target unchanged; the manifest has them replaced."""
    run = tmp_path / "run"
    done = subprocess.run(
        [*RECORD, "-o", str(run), "--", "printf", "%s", b"a\xffb"],
        env=environment(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout == b"a\xffb"
    assert read_manifest(run).command == ["printf", "%s", "a\ufffdb"]


@pytest.mark.parametrize("step", ["Reserve", "HostFacts", "ProcessTree"])
def test_a_start_that_fails_leaves_things_as_they_were(tmp_path: Path, step: str) -> None:
    """Whichever step of the start fails, the run that was to be replaced is back."""
    run = tmp_path / "run"
    assert record(run, "sh", "-c", "exit 3").returncode == 3
    broken = (
        "import sys, cctrace.cli, cctrace.record.session as session\n"
        "def fail(*_): raise OSError(28, 'No space left on device')\n"
        f"session.{step} = fail\n"
        f"sys.argv = ['cctrace', 'record', '--force', '-o', {str(run)!r}, '--', 'true']\n"
        "cctrace.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken],
        env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert read_manifest(run).exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
