"""The process tree of a real command, found without privilege and told completely.

Being a subreaper and reaping every child would disturb pytest, so a helper process
follows the tree and prints its tables.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cctrace.record.clock import read_anchor
from cctrace.record.tree import ProcessTree

pytestmark = pytest.mark.quiet

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]

FOLLOW = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
from cctrace.record import target
from cctrace.record.clock import read_anchor
from cctrace.record.tree import ProcessTree
target.block_signals()
assert target.become_subreaper()
exits = []
anchor = read_anchor()
tree = ProcessTree(anchor, exits.append)
running = target.start_target(sys.argv[2:], dict(os.environ))
tree.start()
linger = float(os.environ.get("LINGER_S", "0"))
deadline = None
while deadline is None or time.monotonic() < deadline:
    for child in running.wait(0.05):
        tree.reaped(child.pid, child.exit_code)
    if deadline is None and running.exit_code is not None:
        deadline = time.monotonic() + linger
still = tree.running()
tree.close()
processes, threads = tree.tables()
processes.validate(full=True)
threads.validate(full=True)
print(json.dumps({
    "target": running.pid, "exit": running.exit_code, "exits": exits, "running": still,
    "recorder": os.getpid(), "begin": anchor.monotonic_ns, "end": time.monotonic_ns(),
    "count": tree.count(), "processes": processes.to_pylist(), "threads": threads.to_pylist(),
}), file=sys.stderr)
"""


class Followed:
    """What the helper printed, by pid and by command line."""

    def __init__(self, command: list[str], linger_s: float = 0) -> None:
        done = subprocess.run(
            [sys.executable, "-c", FOLLOW, str(ROOT), *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "LINGER_S": str(linger_s)},
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stderr.splitlines()[-1])
        self.stdout = done.stdout
        self.told: Row = told
        self.processes: list[Row] = told["processes"]
        self.threads: list[Row] = told["threads"]
        self.target: int = told["target"]

    def by_argument(self, word: str) -> Row:
        """The one process whose last argument is ``word``."""
        found = [p for p in self.processes if (p["cmdline"] or "").split(" ")[-1] == word]
        assert len(found) == 1, (word, self.processes)
        return found[0]


def sh(body: str) -> list[str]:
    """A shell command; ``sleep`` in it keeps its children long enough to be seen."""
    return ["sh", "-c", body]


def test_children_and_grandchildren_with_parents_programs_and_ends() -> None:
    """Three generations; times lie within the recording and within each other."""
    body = "sh -c 'sh -c \"sleep 0.31; exit 5\" child; exit 3' parent; exit 7"
    tree = Followed(sh(body))
    assert tree.told["exit"] == 7
    top = next(p for p in tree.processes if p["pid"] == tree.target)
    parent, child = tree.by_argument("parent"), tree.by_argument("child")
    assert (top["ppid"], top["exit_code"]) == (tree.told["recorder"], 7)
    assert (parent["ppid"], parent["exit_code"]) == (top["pid"], 3)
    assert (child["ppid"], child["exit_code"]) == (parent["pid"], 5)
    sleep = tree.by_argument("0.31")
    assert (sleep["ppid"], sleep["exit_code"]) == (child["pid"], 0)
    assert sleep["exe"] == os.path.realpath("/bin/sleep")
    assert sleep["cmdline"] == "sleep 0.31"
    assert tree.told["count"] == len(tree.processes) == 4
    assert sorted(tree.told["exits"]) == sorted(p["pid"] for p in tree.processes)
    for process in tree.processes:
        assert process["tid"] == process["pid"]
        assert tree.told["begin"] - 10**7 <= process["start_ns"] <= process["ts_ns"]
        assert process["ts_ns"] <= process["end_ns"] <= tree.told["end"]
    assert [p["start_ns"] for p in tree.processes] == sorted(p["start_ns"] for p in tree.processes)
    assert sleep["end_ns"] - sleep["start_ns"] > 290_000_000


def needs_exit_information() -> None:
    """Skip where the kernel does not tell the exit code of another's child."""
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if version < (6, 15):
        pytest.skip(f"PIDFD_GET_INFO tells exit codes since Linux 6.15, this is {version}")


@pytest.mark.parametrize(("end", "code"), [("exit 11", 11), ("kill -9 $$", 137)])
def test_exit_code_of_a_process_that_is_not_our_child(end: str, code: int) -> None:
    """A grandchild reaped by its own parent; its code comes from the kernel."""
    needs_exit_information()
    tree = Followed(sh(f"sh -c 'sleep 0.3; {end}' grandchild; exit 0"))
    assert tree.by_argument("grandchild")["exit_code"] == code


def test_setsid_and_double_fork_do_not_get_away() -> None:
    """A daemon that left its session and its parent is still in the tree."""
    body = (
        "setsid sh -c 'sleep 0.4; exit 5' session & "
        "(sh -c 'sleep 0.4; exit 6' orphan &) ; sleep 0.7; exit 0"
    )
    tree = Followed(sh(body))
    assert tree.by_argument("session")["exit_code"] == 5
    orphan = tree.by_argument("orphan")
    assert orphan["exit_code"] == 6
    assert orphan["pid"] in tree.told["exits"]


def test_what_outlives_the_target_is_still_running() -> None:
    """It keeps an open end: no end, no exit code, in the tables and its threads."""
    tree = Followed(sh("sleep 3.1 & sleep 0.3; exit 0"))
    left = tree.by_argument("3.1")
    assert (left["end_ns"], left["exit_code"]) == (None, None)
    assert tree.told["running"] == [left["pid"]]
    assert [t["end_ns"] for t in tree.threads if t["pid"] == left["pid"]] == [None]


def test_orphan_that_ends_after_the_target_is_followed_to_its_end() -> None:
    """The recorder may stay on after the target; the orphan's own code is told."""
    tree = Followed(sh("(sh -c 'sleep 0.4; exit 9' late &) ; exit 0"), linger_s=0.8)
    assert tree.by_argument("late")["exit_code"] == 9
    assert tree.told["running"] == []


def test_program_after_exec_is_the_one_told() -> None:
    """Seen between fork and exec or not: the row has the last program, and one row only."""
    tree = Followed(sh("for i in 1 2 3 4 5 6 7; do sleep 0.1$i & done; exec sleep 0.41"))
    top = next(p for p in tree.processes if p["pid"] == tree.target)
    assert (top["cmdline"], top["exe"]) == ("sleep 0.41", os.path.realpath("/bin/sleep"))
    for i in range(1, 8):
        assert tree.by_argument(f"0.1{i}")["exe"] == os.path.realpath("/bin/sleep")
    assert tree.told["count"] == 8


THREADS = """
import threading, time, ctypes
libc = ctypes.CDLL(None)
def body(name, length_s):
    libc.prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME
    time.sleep(length_s)
lengths_s = [0.3, 0.6, 0.3, 0.6, 0.3]
threads = [threading.Thread(target=body, args=(f"worker {i}", s)) for i, s in enumerate(lengths_s)]
for thread in threads: thread.start()
for thread in threads: thread.join()
time.sleep(0.2)
"""


def test_threads_with_names_starts_and_ends() -> None:
    """Five workers of two lengths and the main thread, each once."""
    tree = Followed([sys.executable, "-c", THREADS])
    threads = {t["tid"]: t for t in tree.threads if t["pid"] == tree.target}
    assert len(threads) == 6
    assert len(tree.threads) == 6
    main = threads.pop(tree.target)
    ends = {}
    for thread in threads.values():
        assert thread["start_ns"] <= thread["end_ns"] <= main["end_ns"]
        ends[thread["name"]] = thread["end_ns"]
    # Names are read when a thread is first seen and once a second; here the
    # first look may come before the thread names itself.
    assert set(ends) <= {"worker 0", "worker 1", "worker 2", "worker 3", "worker 4", main["name"]}
    short = sorted(thread["end_ns"] for thread in threads.values())
    assert short[3] - short[2] > 200_000_000
    assert main["start_ns"] <= min(t["start_ns"] for t in threads.values())


def test_names_given_later_are_seen() -> None:
    """A thread is renamed within its life; the last name counts."""
    code = (
        "import ctypes, time\n"
        "libc = ctypes.CDLL(None)\n"
        "for name in (b'first', b'last) name (x'):\n"
        "    libc.prctl(15, name, 0, 0, 0)\n"
        "    time.sleep(1.2)\n"
    )
    tree = Followed([sys.executable, "-c", code])
    assert [t["name"] for t in tree.threads] == ["last) name (x"]
    assert [p["exit_code"] for p in tree.processes] == [0]


def test_a_thread_that_names_itself_late_and_ends_soon_has_its_name() -> None:
    """It is seen before it has a name of its own, and is gone within a second."""
    code = (
        "import ctypes, threading, time\n"
        "def run():\n"
        "    time.sleep(0.2)\n"
        "    ctypes.CDLL(None).prctl(15, b'reader', 0, 0, 0)\n"
        "    time.sleep(0.4)\n"
        "time.sleep(0.1)\n"
        "threading.Thread(target=run).start()\n"
    )
    tree = Followed([sys.executable, "-c", code])
    assert "reader" in [thread["name"] for thread in tree.threads]


@pytest.mark.parametrize("attempt", range(7))
def test_target_that_ends_at_once_is_in_the_tables(attempt: int) -> None:
    """Even if it is over before the first look; with its status."""
    tree = Followed(sh(f"exit {attempt}"))
    assert [(p["pid"], p["exit_code"]) for p in tree.processes] == [(tree.target, attempt)]


def test_arguments_are_quoted_and_need_not_be_text() -> None:
    """Column cmdline can be pasted into a shell; bytes that are no UTF-8 are replaced."""
    tree = Followed(["sh", "-c", "sleep 0.3", "a b", "it's", "\udcff"])
    top = next(p for p in tree.processes if p["pid"] == tree.target)
    # The shell may exec its only command.
    assert top["cmdline"] in ("sh -c 'sleep 0.3' 'a b' 'it'\"'\"'s' '\ufffd'", "sleep 0.3")


def test_hundreds_of_short_processes_are_never_told_twice() -> None:
    """Whatever is seen of them is one row each, ended, and reported once."""
    tree = Followed(sh("i=0; while [ $i -lt 307 ]; do true & /bin/true; i=$((i+1)); done; wait"))
    pids = [(p["pid"], p["start_ns"]) for p in tree.processes]
    assert len(set(pids)) == len(pids)
    assert all(p["end_ns"] is not None for p in tree.processes)
    assert sorted(tree.told["exits"]) == sorted(p["pid"] for p in tree.processes)
    assert tree.told["running"] == []


def test_own_helpers_and_strangers_are_not_traced() -> None:
    """Neither a child from before, nor our parent, init, ourselves or no process at all."""
    with subprocess.Popen(["sleep", "60"]) as helper:
        tree = ProcessTree(read_anchor(), lambda _: None)
        try:
            assert not tree.is_traced(helper.pid)
            with subprocess.Popen(["sleep", "60"]) as target:
                try:
                    assert tree.is_traced(target.pid)
                    assert tree.is_traced(target.pid)
                    assert tree.running() == [target.pid]
                finally:
                    target.kill()
            for stranger in (0, 1, -1, os.getppid(), os.getpid(), 2**22 + 1):
                assert not tree.is_traced(stranger), stranger
            assert tree.count() == 1
        finally:
            helper.kill()
        tree.start()
        tree.close()


def test_pid_used_again_before_its_end_was_noticed() -> None:
    """The old process is ended first, so that its end is not taken for the new one's."""
    ended: list[int] = []
    tree = ProcessTree(read_anchor(), ended.append)
    with subprocess.Popen(["sleep", "60"]) as target:
        try:
            assert tree.is_traced(target.pid)
            # As if what was seen before had started at another time.
            tree._running[target.pid].ticks -= 1
            assert tree.is_traced(target.pid)
            assert ended == [target.pid]
            assert tree.running() == [target.pid]
            assert tree.count() == 2
        finally:
            target.kill()
    tree.start()
    tree.close()


def test_name_given_by_nvtx_reaches_its_thread() -> None:
    """Names for unknown threads and processes are let go."""
    tree = ProcessTree(read_anchor(), lambda _: None)
    with subprocess.Popen(["sleep", "60"]) as target:
        assert tree.is_traced(target.pid)
        tree.name_thread(target.pid, target.pid, "decode loop")
        tree.name_thread(target.pid, 1, "nobody")
        tree.name_thread(1, 1, "nobody")
        assert [t["name"] for t in tree.tables()[1].to_pylist()] == ["decode loop"]
        target.kill()
    tree.start()
    tree.close()
