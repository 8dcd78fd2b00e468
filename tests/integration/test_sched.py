"""Off-CPU intervals and lives of threads, against what the kernel itself counts.

The truth is the program's own log (tests/targets/sched_workload.c): times of its
calls, and the context switches that getrusage(2) says each thread has made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agent_harness as harness
import bpf_here
import pytest
from recording import OF_SCHED, losses, record, rows

Row = dict[str, Any]
ATTEMPTS = 7
OPTIONS = ("--sources", "sched,processes", "--quiet")
WOKEN = 20_000_000  # ns: an end is seen within it


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program."""
    bpf_here.require_bpf()
    name = "sched_workload"
    output = tmp_path_factory.mktemp("sched") / name
    return harness.compile_c(harness.TARGETS / f"{name}.c", output, "-lpthread")


@dataclass(frozen=True)
class Span:
    """A stretch of one thread and the switches it made, as the program logged it."""

    name: str
    pid: int
    tid: int
    begin_ns: int
    end_ns: int
    voluntary: int
    involuntary: int


@dataclass
class Recorded:
    """One recording and the program's log."""

    run: Path
    lines: list[list[str]]

    @property
    def spans(self) -> list[Span]:
        return [
            Span(line[1], *(int(word) for word in line[2:]))
            for line in self.lines
            if line[0] == "span"
        ]

    def numbers(self, kind: str) -> list[list[int]]:
        """The numbers of the log's lines of one kind."""
        return [[int(word) for word in line[1:]] for line in self.lines if line[0] == kind]

    def peer(self) -> int:
        """The thread that wakes the others."""
        return next(int(line[2]) for line in self.lines if line[0] == "peer")

    def within(self, span: Span) -> list[Row]:
        """Intervals of the span's thread that began in it."""
        return [
            row
            for row in rows(self.run, "sched")
            if row["tid"] == span.tid and span.begin_ns <= row["ts_ns"] < span.end_ns
        ]


def recorded(run: Path, *command: str | Path) -> Recorded:
    """Record the program to its good end, with nothing lost.

    Where the kernel kept events from our probes, as it does on a busy machine and the run
    must tell, the program is recorded again.
    """
    for _ in range(ATTEMPTS):
        done = record(run, *command, options=(*OPTIONS, "--force"))
        assert done.returncode == 0, done.stderr
        if not losses(run, with_sched=True).keys() & OF_SCHED:
            break
    assert losses(run, with_sched=True) == {}
    return Recorded(run, [line.split() for line in done.stdout.splitlines()])


def is_wait(row: Row) -> bool:
    return row["state"] in ("blocked", "io")


def preemptions(intervals: Sequence[Row]) -> list[Row]:
    """Intervals of a thread that left the CPU without waiting."""
    after_waits = {row["ts_ns"] + row["dur_ns"] for row in intervals if is_wait(row)}
    return [r for r in intervals if r["state"] == "runnable" and r["ts_ns"] not in after_waits]


def assert_is_exact(span: Span, intervals: Sequence[Row]) -> None:
    """As many waits and preemptions as the kernel counted, and never two at once."""
    assert sum(map(is_wait, intervals)) == span.voluntary
    assert len(preemptions(intervals)) == span.involuntary
    assert {row["pid"] for row in intervals} <= {span.pid}
    ends = [row["ts_ns"] + row["dur_ns"] for row in intervals]
    starts = [row["ts_ns"] for row in intervals[1:]]
    assert all(end <= start for end, start in zip(ends, starts, strict=False))
    assert all(row["dur_ns"] >= 0 for row in intervals)
    # The program ran when it took the time of the end.
    assert all(end <= span.end_ns for end in ends)


def test_sleeps_are_as_many_and_as_long_as_they_were(workload: Path, tmp_path: Path) -> None:
    # GIVEN a thread that sleeps 101 times for 1.1 ms
    times, length_ns = 101, 1_100_000
    found = recorded(tmp_path / "run", workload, "sleeps", "main", str(times), str(length_ns))
    (span,) = found.spans
    intervals = found.within(span)
    # THEN the waits are those the kernel counted
    assert span.voluntary >= times - 3, "the machine was too busy for the test to say anything"
    assert_is_exact(span, intervals)
    waits = found.numbers("wait")
    assert len(waits) == times
    for _, begin_ns, end_ns, switches in waits:
        inside = [r for r in intervals if is_wait(r) and begin_ns <= r["ts_ns"] < end_ns]
        assert len(inside) == switches
        for row in inside:
            # AND each went on until the time it was set to, and no longer than the call
            assert row["state"] == "blocked"
            woken_ns = row["ts_ns"] + row["dur_ns"]
            assert begin_ns + length_ns <= woken_ns <= end_ns


def test_who_wakes_whom_through_a_pipe(workload: Path, tmp_path: Path) -> None:
    # GIVEN two threads that wake each other 499 times, and nobody else does
    found = recorded(tmp_path / "run", workload, "ping-pong", "499")
    (span,) = found.spans
    intervals = found.within(span)
    assert span.voluntary >= 100, "the machine was too busy for the test to say anything"
    # THEN every wait is there and names the other thread
    assert_is_exact(span, intervals)
    waits = [row for row in intervals if is_wait(row)]
    assert {row["waker_tid"] for row in waits} == {found.peer()}
    assert {row["state"] for row in waits} == {"blocked"}
    # AND each is followed, without a gap, by the time it took to get a CPU
    starts = {row["ts_ns"]: row for row in intervals if row["state"] == "runnable"}
    for row in waits:
        following = starts[row["ts_ns"] + row["dur_ns"]]
        assert following["waker_tid"] == found.peer()


def test_a_mutex_is_given_by_its_holder(workload: Path, tmp_path: Path) -> None:
    # GIVEN a thread that waits 37 times for a mutex whose holder sleeps
    found = recorded(tmp_path / "run", workload, "contend", "37")
    (span,) = found.spans
    intervals = found.within(span)
    assert span.voluntary >= 37
    # THEN all its waits end by the holder's hand
    assert_is_exact(span, intervals)
    assert {row["waker_tid"] for row in intervals if is_wait(row)} == {found.peer()}


def test_two_that_want_one_cpu_are_runnable(workload: Path, tmp_path: Path) -> None:
    # GIVEN two threads on one CPU that each need 61 ms of it
    found = recorded(tmp_path / "run", workload, "spin", "61000000")
    assert {span.name for span in found.spans} == {"spin0", "spin1"}
    for span in found.spans:
        intervals = found.within(span)
        # THEN they never wait, and are put off the CPU as often as the kernel says
        assert span.involuntary > 0
        assert span.voluntary == 0
        assert_is_exact(span, intervals)
        assert {row["state"] for row in intervals} == {"runnable"}
        # AND what they were not on the CPU is what their CPU time leaves of the span
        # (the kernel reads its clock for the CPU time a moment before the tracepoint)
        off_ns = sum(row["dur_ns"] for row in intervals)
        slack_ns = 20_000 * span.involuntary
        assert off_ns <= span.end_ns - span.begin_ns - 61_000_000 + slack_ns


def test_fork_and_exec_are_followed(workload: Path, tmp_path: Path) -> None:
    """Also an exec in a thread that is not the first, whose id then changes."""
    found = recorded(tmp_path / "run", workload, "family")
    assert [span.name for span in found.spans] == ["forked", "execed", "execed"]
    assert len({span.pid for span in found.spans}) == 3
    for span, least in zip(found.spans, (23, 29, 29), strict=True):
        assert span.tid == span.pid
        assert span.voluntary >= least - 3
        assert_is_exact(span, found.within(span))


def test_short_lived_processes_are_all_there(workload: Path, tmp_path: Path) -> None:
    # GIVEN 499 children that end at once, one after the other
    found = recorded(tmp_path / "run", workload, "processes", "499")
    log = {pid: times for pid, *times in found.numbers("process")}
    assert len(log) == 499, "a process id came twice"
    # THEN each is there once, with its parent and its times
    table = [row for row in rows(found.run, "processes") if row["pid"] in log]
    assert sorted(row["pid"] for row in table) == sorted(log)
    (parent,) = {row["ppid"] for row in table}
    assert parent in {row["pid"] for row in rows(found.run, "processes")} - set(log)
    for row in table:
        before_ns, after_ns, reaped_ns = log[row["pid"]]
        assert before_ns <= row["start_ns"] <= after_ns
        assert row["start_ns"] <= row["end_ns"] <= reaped_ns
        assert row["end_ns"] - row["start_ns"] <= reaped_ns - before_ns
    # AND so is the one thread of each
    threads = [row for row in rows(found.run, "threads") if row["pid"] in log]
    assert sorted(row["tid"] for row in threads) == sorted(log)
    for row in threads:
        before_ns, _, reaped_ns = log[row["pid"]]
        assert row["tid"] == row["pid"]
        assert before_ns <= row["start_ns"] <= row["end_ns"] <= reaped_ns


def test_short_lived_threads_are_all_there(workload: Path, tmp_path: Path) -> None:
    # GIVEN 503 threads that end at once, one after the other
    found = recorded(tmp_path / "run", workload, "threads", "503")
    log = {tid: times for tid, *times in found.numbers("thread")}
    assert len(log) == 503, "a thread id came twice"
    # THEN each is there once, with its times
    table = [row for row in rows(found.run, "threads") if row["tid"] in log]
    assert sorted(row["tid"] for row in table) == sorted(log)
    assert len({row["pid"] for row in table}) == 1
    for row in table:
        before_ns, after_ns, joined_ns = log[row["tid"]]
        assert before_ns <= row["start_ns"] <= after_ns
        # pthread_join(3) returns a moment before the thread has left the kernel.
        assert row["start_ns"] <= row["end_ns"] <= joined_ns + WOKEN


def test_without_bpf_they_are_missed(workload: Path, tmp_path: Path) -> None:
    """What the two tests above prove is BPF's doing."""
    options = ("--sources", "processes", "--quiet")
    done = record(tmp_path / "run", workload, "processes", "499", options=options)
    assert done.returncode == 0
    assert len(rows(tmp_path / "run", "processes")) < 499
