"""What goes wrong costs data that is counted, never the target and never in silence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recording import CCTRACE, DEADLINE_S, environment, losses, record, rows

from cctrace.store.manifest import read_manifest


def write_script(tmp_path: Path, body: str) -> Path:
    """A target of the test's own; `nvtx` is the package every engine uses."""
    script = tmp_path / "target.py"
    script.write_text(f"import json, os, signal, sys, time\nimport nvtx\n{body}")
    return script


def start_recorder(run: Path, *command: str | Path, **kwargs: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CCTRACE, "record", "-o", str(run), "--", *map(str, command)],
        env=environment(), text=True, stderr=subprocess.PIPE, **kwargs,
    )  # fmt: skip


def test_killed_target_loses_nothing_it_wrote(tmp_path: Path) -> None:
    """1,009 marks, 31 closed ranges and 3 open ones before SIGKILL are all there."""
    run, ready = tmp_path / "run", tmp_path / "ready"
    os.mkfifo(ready)
    script = write_script(
        tmp_path,
        "for i in range(3): nvtx.push_range(f'open {i}')\n"
        "left = nvtx.start_range('started')\n"
        "for i in range(31):\n    nvtx.push_range('closed'); nvtx.pop_range()\n"
        "for i in range(1009): nvtx.mark('mark', payload=i)\n"
        f"open({str(ready)!r}, 'w').write(str(os.getpid()))\n"
        "signal.pause()\n",
    )
    recorder = start_recorder(run, sys.executable, script)
    os.kill(int(ready.read_text()), signal.SIGKILL)
    _, said = recorder.communicate(timeout=DEADLINE_S)
    assert recorder.returncode == 128 + signal.SIGKILL, said
    events = rows(run, "nvtx")
    assert [e["payload"] for e in events if e["name"] == "mark"] == list(range(1009))
    assert sum(e["name"] == "closed" for e in events) == 31
    still_open = [e for e in events if e["dur_ns"] is None]
    assert [(e["name"], e["depth"]) for e in still_open] == [
        ("open 0", 0),
        ("open 1", 1),
        ("open 2", 2),
        ("started", 0),
    ]
    assert len(events) == 1009 + 31 + 4
    assert losses(run) == {}
    manifest = read_manifest(run)
    assert (manifest.ended, manifest.exit_code) == ("target_signal", 137)


def test_killed_recorder_leaves_the_engine_alone_and_a_run_that_opens(tmp_path: Path) -> None:
    """The engine ends as ever; all but the last second before the kill is in the run."""
    run, go, over = tmp_path / "run", tmp_path / "go", tmp_path / "over"
    log, result = tmp_path / "log", tmp_path / "result"
    os.mkfifo(go)
    os.mkfifo(over)
    # Marks for 2.5 s, then tells; a million more without a reader; then the result.
    script = write_script(
        tmp_path,
        "at = []\n"
        "end = time.monotonic() + 2.5\n"
        "while time.monotonic() < end:\n"
        "    nvtx.mark('mark', payload=len(at)); at.append(time.monotonic_ns())\n"
        "    time.sleep(0.001)\n"
        f"json.dump(at, open({str(log)!r}, 'w'))\n"
        f"open({str(go)!r}, 'w').write('x'); open({str(go)!r}).read()\n"
        "for i in range(300007): nvtx.mark('later')\n"
        "print('engine output')\n"
        f"json.dump({{'sum': 300007}}, open({str(result)!r}, 'w'))\n"
        f"open({str(over)!r}, 'w').write('done')\n"
        "sys.exit(19)\n",
    )
    recorder = start_recorder(run, sys.executable, script, stdout=subprocess.PIPE)
    go.read_text()
    recorder.kill()
    recorder.wait(DEADLINE_S)
    go.write_text("x")
    assert over.read_text() == "done"
    out, _ = recorder.communicate(timeout=DEADLINE_S)
    assert out == "engine output\n"
    assert json.loads(result.read_text()) == {"sum": 300007}
    emitted_ns = json.loads(log.read_text())
    manifest = read_manifest(run)
    assert manifest.ended == "recorder_killed"
    recorded = {e["payload"] for e in rows(run, "nvtx")}
    expected = {i for i, at in enumerate(emitted_ns) if at < emitted_ns[-1] - 1_000_000_000}
    assert len(expected) > 100
    assert expected <= recorded
    assert rows(run, "processes")[0]["cmdline"].endswith("target.py")


def test_engine_status_survives_the_recorder(tmp_path: Path) -> None:
    """Whoever inherits the engine sees the status it would have had."""
    run, pid_file, go = tmp_path / "run", tmp_path / "pid", tmp_path / "go"
    os.mkfifo(pid_file)
    os.mkfifo(go)
    script = write_script(
        tmp_path,
        "nvtx.mark('a')\n"
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
        f"open({str(go)!r}).read()\n"
        "sys.exit(23)\n",
    )
    # A parent that is a subreaper inherits the engine when the recorder is gone.
    parent = (
        "import ctypes, os, signal, subprocess, sys\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
        "recorder = subprocess.Popen(sys.argv[1:])\n"
        f"pid = int(open({str(pid_file)!r}).read())\n"
        "recorder.kill(); recorder.wait()\n"
        f"open({str(go)!r}, 'w').close()\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent, *CCTRACE, "record", "-o", str(run), "--",
         sys.executable, str(script)],
        env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.stdout == "23\n", done.stderr


def test_full_ring_drops_and_counts(tmp_path: Path) -> None:
    """With the recorder stopped, what does not fit is lost, counted, and told."""
    run = tmp_path / "run"
    script = write_script(
        tmp_path,
        "nvtx.mark('first')\n"
        "recorder = os.getppid()\n"
        "os.kill(recorder, signal.SIGSTOP)\n"
        "for i in range(100003): nvtx.mark('mark', payload=i)\n"
        "os.kill(recorder, signal.SIGCONT)\n",
    )
    done = record(run, sys.executable, script, options=("--buffer-mb", "1"))
    assert done.returncode == 0, done.stderr
    recorded = len(rows(run, "nvtx"))
    lost = losses(run)
    assert set(lost) == {"ring_full"}
    assert recorded + lost["ring_full"] == 100003 + 1
    assert recorded >= 32768  # 1 MiB of 32-byte records
    assert read_manifest(run).lost == lost["ring_full"]
    total = f"{recorded + lost['ring_full']:,}"
    assert f"WARNING: {lost['ring_full']:,} of {total} events lost (ring_full" in done.stderr
    assert "hint: raise --buffer-mb" in done.stderr
    loss = rows(run, "losses")[0]
    marks = rows(run, "nvtx")
    assert marks[0]["ts_ns"] < loss["first_ns"] < loss["last_ns"]
    # What was kept is the older part, in order and without a gap.
    payloads = [e["payload"] for e in marks[1:]]
    assert payloads[:32767] == list(range(32767))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_target_that_closes_its_descriptors_is_traced(tmp_path: Path, moment: str) -> None:
    """A daemon's closefrom(3), before its first event or after it."""
    close = "os.closerange(3, 4096)\n"
    first = "nvtx.mark('first')\n"
    script = write_script(
        tmp_path,
        (close + first if moment == "before" else first + close)
        + "for i in range(1013): nvtx.mark('mark')\n",
    )
    done = record(tmp_path / "run", sys.executable, script)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run", "nvtx")) == 1014


def test_target_that_exits_at_once_without_cleaning_up(tmp_path: Path) -> None:
    """_exit right after an event: no destructor runs, the event is there."""
    script = write_script(tmp_path, "nvtx.mark('only'); os._exit(29)\n")
    done = record(tmp_path / "run", sys.executable, script)
    assert done.returncode == 29
    assert [e["name"] for e in rows(tmp_path / "run", "nvtx")] == ["only"]


def test_full_disk_is_counted_and_told_and_the_engine_goes_on(tmp_path: Path) -> None:
    """On a file system of 1.5 MB the run ends early, whole, with the loss in it."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    script = write_script(
        tmp_path,
        "import glob, random\n"
        "for i in range(1009): nvtx.mark('early')\n"
        f"while not glob.glob({str(disk)!r} + '/run/nvtx/part-*'): time.sleep(0.01)\n"
        "for i in range(399000): nvtx.mark('mark', payload=random.getrandbits(62))\n"
        "print('done')\n",
    )
    inner = (
        f"mount -t tmpfs -o size=1500k tmpfs {disk} && "
        f'"$@"; status=$?; cp -a {disk}/run {out}; exit $status'
    )
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        pytest.skip("no private mounts here (unshare -rm): a full disk cannot be made")
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", inner, "sh", *CCTRACE, "record", "-o", str(disk / "run"),
         "--buffer-mb", "64", "--", sys.executable, str(script)],
        env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    manifest = read_manifest(out)
    assert manifest.ended == "disk_full"
    lost = losses(out)
    recorded = len(rows(out, "nvtx"))
    assert recorded >= 1009
    assert recorded + sum(lost.values()) == 400009
    assert set(lost) <= {"disk_full", "ring_full"}
    assert manifest.lost == sum(lost.values())
    assert "No space left" in done.stderr
    assert not list(out.rglob("*.tmp"))
    assert not list(out.rglob(".reserve"))
