"""Calls that do not come back the way they went: recorded as far as they happened."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from bpf_here import require_bpf

from cctrace.errors import CctraceError
from cctrace.record.bpf.cuda import frames, kernel_map
from cctrace.record.bpf.cuda.source import Cuda
from cctrace.record.bpf.probes import Probes
from cctrace.record.bpf.uprobes import Mode
from cctrace.record.losses import LossLedger

TARGETS: Final = Path(__file__).resolve().parents[1] / "targets"
TIMEOUT_S: Final = 60
Calls = list[dict[str, Any]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc: apt-get install gcc")
    path = tmp_path_factory.mktemp("hardships") / "cuda_hardships"
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-rdynamic", "-fno-omit-frame-pointer"]
    source = str(TARGETS / "cuda_hardships.c")
    subprocess.run([compiler, *flags, source, "-o", str(path), "-lpthread"], check=True)
    return path


class Session:
    """The probes of one recording of the target."""

    def __init__(self, target: Path, mode: Mode | None = None, launches: Any = "full") -> None:
        require_bpf()
        self.target = target
        self.ledger = LossLedger()
        self.cuda = Cuda(launches, self.ledger, mode=mode)
        self.probes = Probes([self.cuda], 64 << 20, self.ledger)
        self.probes.start()
        assert [error.message for _, error in self.probes.refused()] == []
        self.cuda.attach_library(target)
        self._lost: dict[str, int] = {}

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.probes.spawning():
            return subprocess.Popen(
                [str(self.target), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )

    def run(self, *arguments: str) -> None:
        process = self.spawn(*arguments)
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0

    def rows(self, table: str = "cuda_api") -> Calls:
        """What was recorded since the last time, by start."""
        self.probes.drain()
        found = self.probes.rows()
        assert not self.probes.warnings
        rows = [row for name, part in found if name == table for row in part.to_pylist()]
        return sorted(rows, key=lambda row: (row["ts_ns"], row.get("depth", 0)))

    def losses(self) -> dict[str, int]:
        """What was lost since the last time, less what others who use BPF make us lose."""
        now = self.ledger.by_reason()
        now.pop("program_not_run", None)
        new = {reason: count - self._lost.get(reason, 0) for reason, count in now.items()}
        self._lost = now
        return {reason: count for reason, count in new.items() if count}

    def close(self) -> None:
        self.probes.close()


@pytest.fixture(scope="module")
def session(target: Path) -> Iterator[Session]:
    made = Session(target)
    yield made
    made.close()


def told(calls: Calls, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(call[name] for name in names) for call in calls]


def test_deep_nesting_loses_the_deepest_and_nothing_else(session: Session) -> None:
    """Eleven calls inside each other: eight are followed, the other three counted."""
    session.run("nest", "3")
    calls = session.rows()
    expected = [(depth, 11 - depth, 11 - depth) for depth in range(8)] * 3
    assert told(calls, "depth", "size_bytes", "result") == expected
    assert session.losses() == {"nested_too_deep": 9}


def test_calls_left_by_longjmp_are_missed_returns(session: Session) -> None:
    """What is called next is at its own depth all the same."""
    session.run("longjmp", "13")
    assert told(session.rows(), "api", "depth", "stream") == [("cuStreamSynchronize", 0, 7)]
    assert session.losses() == {"missed_return": 13}


def test_a_function_that_jumps_to_another_contains_it(session: Session) -> None:
    """Both are recorded, and both return at once."""
    session.run("tail", "17")
    calls = session.rows()
    assert (
        told(calls, "api", "depth", "result")
        == [
            ("cuMemcpyDtoH", 0, 5),
            ("cuMemcpyHtoD", 1, 5),
        ]
        * 17
    )
    for outer, inner in zip(calls[::2], calls[1::2], strict=True):
        assert outer["ts_ns"] <= inner["ts_ns"]
        assert inner["ts_ns"] + inner["dur_ns"] <= outer["ts_ns"] + outer["dur_ns"]
    assert not session.losses()


def test_threads_that_end_inside_a_call_leave_it_open(session: Session) -> None:
    """Open calls have neither length nor result."""
    session.run("end_thread", "7")
    calls = session.rows()
    still_open = [call for call in calls if call["dur_ns"] is None]
    assert (
        told(still_open, "api", "stream", "depth", "result")
        == [("cuStreamSynchronize", 7, 0, None)] * 7
    )
    assert len({call["tid"] for call in still_open}) == 7
    assert told([c for c in calls if c["dur_ns"] is not None], "api") == [("cuMemcpyHtoD",)]
    assert not session.losses()


def test_a_process_that_ends_inside_a_call_leaves_it_open(session: Session) -> None:
    """As a thread does."""
    session.run("end_process")
    expected = [("cuStreamSynchronize", None, None)]
    assert told(session.rows(), "api", "dur_ns", "result") == expected
    assert not session.losses()


def test_exec_inside_a_call(session: Session) -> None:
    """The call stays open; the new program starts at depth 0, in the same thread."""
    session.run("exec")
    calls = session.rows()
    assert told(calls, "api", "depth", "result") == [
        ("cuStreamSynchronize", 0, None),
        *(("cuMemcpyHtoD", 0, size) for size in (1, 3, 5)),
    ]
    assert len({call["tid"] for call in calls}) == 1
    assert not session.losses()


def test_fork_inside_a_call(session: Session) -> None:
    """The call is the parent's; the child, which returns from it as well, has its own."""
    session.run("fork", "5")
    calls = session.rows()
    by_process: dict[int, list[tuple[Any, ...]]] = {}
    for call in calls:
        key = (call["api"], call["depth"], call["size_bytes"])
        by_process.setdefault(call["pid"], []).append(key)
    own = [("cuMemcpyHtoD", 0, size) for size in (1, 3, 5, 7, 9)]
    parent = calls[0]["pid"]
    assert by_process.pop(parent) == [("cuStreamSynchronize", 0, None), *own]
    assert list(by_process.values()) == [own]
    assert not session.losses()


def test_a_call_from_a_signal_handler_is_inside_the_one_it_interrupts(session: Session) -> None:
    """And has its depth."""
    session.run("signal")
    expected = [("cuStreamSynchronize", 0, 7), ("cuMemcpyHtoD", 1, 13)]
    assert told(session.rows(), "api", "depth", "result") == expected
    assert not session.losses()


def test_a_call_under_way_at_the_end_is_open(target: Path) -> None:
    """Its thread lives on, and is not harmed."""
    session = Session(target)
    try:
        process = session.spawn("blocked")
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        session.probes.drain()
        assert [table for _, table in session.probes.rows()] == []
        session.probes.detach()
        ((name, table),) = session.probes.finish()
        process.communicate(b"x", timeout=TIMEOUT_S)
    finally:
        session.close()
    assert process.returncode == 0
    assert name == "cuda_api"
    assert told(table.to_pylist(), "api", "stream", "dur_ns", "tid") == [
        ("cuStreamSynchronize", 7, None, process.pid)
    ]
    assert not session.losses()


def test_long_batches_are_summed_as_far_as_they_are_followed(session: Session) -> None:
    """64 copies of a batch; the run says that it is not all."""
    session.run("batch")
    expected = [(5 * 6 // 2, 5), (64 * 65 // 2, 5)]
    assert told(session.rows(), "size_bytes", "stream") == expected
    assert session.losses() == {"partial_size": 1}


def test_an_argument_that_cannot_be_read_is_left_out(session: Session) -> None:
    """The call is kept."""
    session.run("unreadable")
    expected = [("cuMemcpy2D", None, 1)]
    assert told(session.rows(), "api", "size_bytes", "result") == expected
    assert session.losses() == {"unreadable_argument": 1}


def check_threads(session: Session) -> None:
    session.run("threads", "101")
    sizes: dict[int, list[int]] = {}
    for call in session.rows():
        sizes.setdefault(call["tid"], []).append(call["size_bytes"])
        assert call["result"] == call["size_bytes"] % 97
    assert list(sizes.values()) == [[2 * i + 1 for i in range(101)]] * 61
    assert not session.losses()


def test_many_threads(session: Session) -> None:
    """61 threads of 101 calls."""
    check_threads(session)


def test_launches_can_be_let_go_alone(session: Session) -> None:
    """Other calls go on being recorded; launches come back."""
    session.run("launch", "11")
    session.cuda.detach_launches()
    session.run("launch", "13")
    session.run("plain", "17")
    session.cuda.attach_launches()
    session.run("launch", "19")
    counts = Counter(call["api"] for call in session.rows())
    assert counts == {"cuLaunchKernel": 11 + 19, "cuMemcpyHtoD": 17}
    assert not session.losses()


def test_without_uprobe_multi(target: Path) -> None:
    """Before Linux 6.6 every place is attached to by itself."""
    session = Session(target, "perf_link")
    try:
        check_threads(session)
        assert session.cuda.detail()["libraries"][0]["mode"] == "perf_link"
    finally:
        session.close()


def test_aggregated_launches_are_counted_exactly(target: Path) -> None:
    """No record each, but none missing; lengths add up."""
    session = Session(target, launches="aggregate")
    try:
        session.run("launch", "10007")
        rows = session.rows("cuda_launches")
    finally:
        session.close()
    assert sum(row["calls"] for row in rows) == 10007
    assert {(row["api"], row["stream"]) for row in rows} == {("cuLaunchKernel", 3)}
    for row in rows:
        assert sum(row["histogram"]) == row["calls"]
        assert row["max_ns"] <= row["total_ns"]
    assert not session.losses()


def test_frames_are_read_where_the_program_keeps_them(session: Session) -> None:
    """The structures of cuda.bpf.c, as its compiler lays them out, are those of frames.py."""
    leaf = session.probes.module.table("cuda_threads").Leaf
    frame = leaf.frames.size // frames.MAX_DEPTH
    assert (ctypes.sizeof(leaf), frame) == (frames.THREAD.itemsize, frames.FRAME.itemsize)
    assert session.probes.module.table("cuda_threads").max_entries == frames.SLOTS
    for name, offset in offsets(frames.THREAD).items():
        assert getattr(leaf, name).offset == offset, name
    members = {name: kind for name, kind, *_ in leaf._fields_}["frames"]._type_
    for name, offset in offsets(frames.FRAME).items():
        assert getattr(members, name).offset == offset, name


def test_counted_launches_are_read_where_the_program_keeps_them(session: Session) -> None:
    """The key and the value of its map are those of kernel_map.py."""
    table = session.probes.module.table("launches")
    for struct, dtype in (
        (table.Key, kernel_map.LAUNCH_KEY),
        (table.Leaf, kernel_map.LAUNCH_TOTAL),
    ):
        assert ctypes.sizeof(struct) == dtype.itemsize
        for name, offset in offsets(dtype).items():
            assert getattr(struct, name).offset == offset, name


def offsets(dtype: np.dtype[np.void]) -> dict[str, int]:
    assert dtype.fields is not None
    return {name: field[1] for name, field in dtype.fields.items()}


def test_files_that_cannot_be_probed_are_refused(session: Session, tmp_path: Path) -> None:
    """Each with its name and what is wrong; nothing waits for a fifo's other end."""
    fifo = tmp_path / "libcuda.so.1"
    os.mkfifo(fifo)
    text = tmp_path / "libcudart.so.13"
    text.write_text("GROUP ( libcudart.so.13.0 )\n" * 9)
    for path, said in (
        (fifo, "is no regular file"),
        (tmp_path, "is no regular file"),
        (tmp_path / "absent", "No such file"),
        (text, "is no ELF file"),
        (Path("/proc/self/exe").resolve(), "has no function of cudart"),
    ):
        with pytest.raises(CctraceError, match=said) as caught:
            session.cuda.attach_library(path, "cudart")
        assert path.name in caught.value.message


def test_a_file_is_attached_to_once(session: Session, tmp_path: Path) -> None:
    """By whatever name it is found."""
    other = tmp_path / "other_name"
    os.link(session.target, other)
    assert session.cuda.attach_library(other) is session.cuda.attach_library(session.target)
    session.run("plain", "3")
    assert len(session.rows()) == 3
