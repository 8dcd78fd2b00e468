"""From a C program's NVTX calls to the rows of its run: every event, exactly.

The truth is the program's own log (tests/targets/nvtx_log.h); the recorder is the
real one, through the command line and the Parquet files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agent_harness as harness
import pytest
from nvtx_truth import Line, read_log
from recording import losses, record, rows

from cctrace.record import layout


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled target programs."""
    directory = tmp_path_factory.mktemp("targets")
    for name in ("nvtx_workload", "nvtx_processes"):
        source = harness.TARGETS / f"{name}.c"
        harness.compile_c(source, directory / name, "-ldl", "-lpthread")
    return directory


def payload_columns(line: Line) -> tuple[int | None, float | None]:
    """The columns ``payload`` and ``payload_double`` of a logged event."""
    bits = struct.pack("<Q", line.payload)
    whole: dict[int, Callable[[], int]] = {
        layout.PAYLOAD_I64: lambda: int(struct.unpack("<q", bits)[0]),
        layout.PAYLOAD_U32: lambda: int(struct.unpack_from("<I", bits)[0]),
        layout.PAYLOAD_I32: lambda: int(struct.unpack_from("<i", bits)[0]),
    }
    if line.payload_type == layout.PAYLOAD_NONE:
        return None, None
    if line.payload_type == layout.PAYLOAD_U64:
        return (line.payload, None) if line.payload < 2**63 else (None, float(line.payload))
    if line.payload_type == layout.PAYLOAD_F64:
        return None, float(struct.unpack("<d", bits)[0])
    if line.payload_type == layout.PAYLOAD_F32:
        return None, float(struct.unpack_from("<f", bits)[0])
    return whole[line.payload_type](), None


def expected_row(line: Line, ended: Line | None) -> dict[str, Any]:
    """The row of a logged event, times apart."""
    payload, payload_double = payload_columns(line)
    kind = {"open": "push_pop", "start": "start_end"}.get(line.kind, line.kind)
    return {
        "tid": line.tid,
        "kind": kind,
        "domain": line.domain,
        "name": line.name,
        "category": None if line.category == "0" else line.category,
        "payload": payload,
        "payload_double": payload_double,
        "depth": line.depth,
        "color": line.color,
        "end_tid": ended.tid if ended is not None else None,
    }


def assert_process_is_exact(recorded: list[dict[str, Any]], lines: list[Line]) -> None:
    """Rows of one process against its log: count, names, nesting, order, times."""
    ends = {line.range_id: line for line in lines if line.kind == "end"}
    made = [line for line in lines if line.kind not in ("end", "unmatched")]
    made.sort(key=lambda line: (line.tid, line.start_lo))
    seen = sorted(recorded, key=lambda row: (row["tid"], row["ts_ns"]))
    # Starts of one thread never repeat, so this is the order of the calls.
    assert len({(row["tid"], row["ts_ns"]) for row in seen}) == len(seen)
    ended = [ends.get(li.range_id) if li.kind == "start" else None for li in made]
    assert [{k: row[k] for k in expected_row(made[0], None)} for row in seen] == [
        expected_row(line, end) for line, end in zip(made, ended, strict=True)
    ]
    for row, line, end in zip(seen, made, ended, strict=True):
        assert line.start_lo <= row["ts_ns"] <= line.start_hi
        if line.kind == "mark":
            assert row["dur_ns"] == 0
        elif line.kind == "push_pop":
            assert line.end_lo <= row["ts_ns"] + row["dur_ns"] <= line.end_hi
        elif end is not None:
            assert end.start_lo <= row["ts_ns"] + row["dur_ns"] <= end.start_hi
        else:
            assert row["dur_ns"] is None


def assert_run_is_exact(run: Path, logs: Path, processes: int) -> None:
    """All processes of a run, and no event of any other."""
    by_pid: dict[int, list[dict[str, Any]]] = {}
    for row in rows(run, "nvtx"):
        by_pid.setdefault(row["pid"], []).append(row)
    logged = {int(path.stem): read_log(path) for path in logs.glob("*.log")}
    assert len(logged) == processes
    assert by_pid.keys() == logged.keys()
    for pid, lines in logged.items():
        assert_process_is_exact(by_pid[pid], lines)
    unmatched = sum(line.kind == "unmatched" for lines in logged.values() for line in lines)
    assert losses(run) == ({"unmatched_pop": unmatched} if unmatched else {})
    known = {(thread["pid"], thread["tid"]) for thread in rows(run, "threads")}
    assert {(row["pid"], row["tid"]) for row in rows(run, "nvtx")} <= known
    assert logged.keys() <= {process["pid"] for process in rows(run, "processes")}


@pytest.mark.parametrize(
    ("mode", "status"),
    [("mixed", 0), ("kinds", 0), ("interleaved", 0), ("open", 7), ("threads", 0)],
)
def test_program_is_recorded_exactly(targets: Path, tmp_path: Path, mode: str, status: int) -> None:
    """Threads, domains, every form of message and payload, ranges left open."""
    run, logs = tmp_path / "run", tmp_path / "logs"
    logs.mkdir()
    done = record(run, targets / "nvtx_workload", mode, logs)
    assert done.returncode == status, done.stderr
    assert_run_is_exact(run, logs, 1)


@pytest.mark.parametrize(
    ("mode", "processes"),
    [("fork", 3), ("clone", 2), ("spawn", 2), ("vfork", 2), ("setsid", 2)],
)
def test_children_are_recorded_exactly(
    targets: Path, tmp_path: Path, mode: str, processes: int
) -> None:
    """Each child comes through with its own identity, however it was made."""
    run, logs = tmp_path / "run", tmp_path / "logs"
    logs.mkdir()
    done = record(run, targets / "nvtx_processes", mode, logs)
    assert done.returncode == 0, done.stderr
    assert_run_is_exact(run, logs, processes)
