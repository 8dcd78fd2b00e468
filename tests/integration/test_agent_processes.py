"""The C agent across processes: fork, exec, spawn, kill, and no recorder at all."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import agent_harness as harness
import pytest
from agent_harness import Geometry, Image, Recorder, assert_recorded, only_log, read_log, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent is for Linux")

BURST = 23 + 7 + 2 * 5  # records of log_burst: ranges, marks, starts with ends


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("targets")
    for name in ("nvtx_workload", "nvtx_processes", "nvtx_chained"):
        source = harness.TARGETS / f"{name}.c"
        harness.compile_c(source, directory / name, "-ldl", "-lpthread")
    for name in ("nvtx_tool", "no_wipeonfork"):
        source = harness.TARGETS / f"{name}.c"
        harness.compile_c(source, directory / f"{name}.so", "-shared", "-fPIC", "-ldl")
    return directory


def by_pid(recorder: Recorder) -> dict[int, list[Image]]:
    found: dict[int, list[Image]] = {}
    for image in recorder.images:
        found.setdefault(image.pid, []).append(image)
    return found


def assert_all_recorded(recorder: Recorder, directory: Path, processes: int) -> None:
    """Each process's events are in its own segments."""
    images = by_pid(recorder)
    logs = {int(path.stem): read_log(path) for path in directory.glob("*.log")}
    assert len(logs) == processes
    assert images.keys() == logs.keys()
    for pid, lines in logs.items():
        assert_recorded(images[pid], lines)


@pytest.mark.parametrize(
    ("mode", "processes", "bursts"),
    [("fork", 3, 5), ("clone", 2, 3), ("spawn", 2, 3), ("vfork", 2, 3), ("setsid", 2, 2)],
)
def test_children_have_their_own_identity(
    targets: Path, tmp_path: Path, mode: str, processes: int, bursts: int
) -> None:
    # GIVEN a program whose children emit by handles made before the fork
    with Recorder() as recorder:
        run(recorder, targets / "nvtx_processes", mode, tmp_path)
        # THEN each process said hello and has its events, and no other's
        assert_all_recorded(recorder, tmp_path, processes)
        assert [kind for kind, _ in recorder.requests] == [harness.HELLO] * processes
        events = [event for image in recorder.images for event in image.events()]
        outer = [event for event in events if event.name == "outer"]
        assert len(outer) == (mode == "fork")
        assert len(events) - len(outer) == bursts * BURST


def test_exec_is_a_new_image_of_the_same_process(targets: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        run(recorder, targets / "nvtx_processes", "exec", tmp_path)
        first, second = recorder.images
        assert first.pid == second.pid
        assert [len(image.events()) for image in (first, second)] == [BURST] * 2
        assert_recorded([first, second], only_log(tmp_path))


def test_children_that_only_exec_ask_for_nothing(targets: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        run(recorder, targets / "nvtx_processes", "exec_only", tmp_path)
        assert recorder.requests == [(harness.HELLO, recorder.images[0].pid)]


def test_forks_between_other_threads_events(targets: Path, tmp_path: Path) -> None:
    # GIVEN two threads that emit and register without pause
    with Recorder(Geometry(slots=4, ring_records=64)) as recorder:
        # WHEN the process forks 101 children meanwhile
        run(recorder, targets / "nvtx_processes", "fork_threads", tmp_path)
        images = by_pid(recorder)
        logs = {int(path.stem): read_log(path) for path in tmp_path.glob("*.log")}
        # THEN every child's events are exact, those of its own threads too
        assert len(logs) == 101
        for pid, lines in logs.items():
            assert len(lines) == 2 * BURST
            assert_recorded(images[pid], lines)
            assert images[pid][0].losses() == {}


def test_nothing_written_before_sigkill_is_lost(targets: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        run(recorder, targets / "nvtx_processes", "kill", tmp_path, status=-9)
        (image,) = recorder.images
        assert_recorded([image], only_log(tmp_path))
        assert [event.name for event in image.open_ranges()] == ["open"]


@pytest.mark.parametrize(("mode", "processes"), [("fork", 3), ("spawn", 2)])
def test_without_wipeonfork(targets: Path, tmp_path: Path, mode: str, processes: int) -> None:
    # GIVEN a kernel that cannot clear pages in the child of a fork
    preload = str(targets / "no_wipeonfork.so")
    with Recorder() as recorder:
        run(recorder, targets / "nvtx_processes", mode, tmp_path, LD_PRELOAD=preload)
        assert_all_recorded(recorder, tmp_path, processes)


def test_recorder_killed_before_a_fork(targets: Path, tmp_path: Path) -> None:
    # GIVEN a recorder that dies while the program runs
    with (
        Recorder(Geometry(slots=1)) as recorder,
        subprocess.Popen(
            [targets / "nvtx_workload", "threads", tmp_path, "1"],
            env=recorder.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "next\n"
        recorder.stop()
        # THEN the program goes on as if nothing were
        output, errors = process.communicate("\n" * 61, timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert output == "next\n" * 60
        # ... and what was written before is there
        assert len(recorder.images[0].slots()[0].records) == BURST


def test_refused(targets: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        recorder.refuse = True
        run(recorder, targets / "nvtx_workload", "mixed", tmp_path)
        # THEN the program ran, and asked once
        assert len(only_log(tmp_path)) == 4 * 37 * 5 + 22
        assert len(recorder.requests) == 1


def test_debug_says_why(targets: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        recorder.refuse = True
        done = subprocess.run(
            [targets / "nvtx_workload", "kinds", tmp_path],
            env=recorder.environment(CCTRACE_AGENT_DEBUG="1"),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "the recorder refuses" in done.stderr


@pytest.mark.parametrize("path", ["", "/nonexistent/agent.sock", "x" * 200])
def test_no_recorder(targets: Path, tmp_path: Path, path: str) -> None:
    with Recorder() as recorder:
        run(recorder, targets / "nvtx_processes", "fork", tmp_path, CCTRACE_SOCKET=path)
        assert recorder.requests == []
        assert len(list(tmp_path.glob("*.log"))) == 3


def test_a_recorder_that_never_answers_costs_seconds(targets: Path, tmp_path: Path) -> None:
    # GIVEN a socket that accepts connections and then says nothing
    with Recorder() as recorder, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mute:
        path = str(tmp_path / "mute.sock")
        mute.bind(path)
        mute.listen(8)
        start = time.monotonic()
        run(recorder, targets / "nvtx_processes", "fork", tmp_path, CCTRACE_SOCKET=path)
        # THEN the first event waited, 2 s, and neither child asked again
        assert time.monotonic() - start < 10
        assert len(list(tmp_path.glob("*.log"))) == 3
        mute.setblocking(False)
        mute.accept()[0].close()
        with pytest.raises(BlockingIOError):
            mute.accept()


def _broken(field: int, value: int) -> bytes:
    fields = list(harness.HEADER.unpack(Geometry().header(0)))
    fields[field] = value
    return harness.HEADER.pack(*fields)


HEADERS = {
    "zero": bytes(harness.HEADER.size),
    "noise": bytes(range(harness.HEADER.size)),
    "magic": _broken(0, harness.MAGIC + 1),
    "version": _broken(1, 2),
    "longer than the file": _broken(3, 1 << 40),
    "no slots": _broken(4, 0),
    "too many slots": _broken(4, 1 << 20),
    "records not a power of two": _broken(5, 4095),
    "more records than fit": _broken(5, 1 << 31),
    "more frames than fit": _broken(6, 1 << 30),
    "slots beyond the end": _broken(8, 1 << 62),
    "rings beyond the end": _broken(9, (1 << 64) - 64),
    "rings that overlap the end": _broken(10, 1 << 60),
    "rings too close": _broken(10, 64),
    "stacks not aligned": _broken(11, 12345),
    "dictionary beyond the end": _broken(13, 1 << 40),
    "dictionary too long": _broken(14, 1 << 40),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_makes_no_sense_is_refused(targets: Path, tmp_path: Path, name: str) -> None:
    with Recorder() as recorder:
        recorder.header = HEADERS[name]
        run(recorder, targets / "nvtx_workload", "kinds", tmp_path)
        (segment,) = recorder.images[0].segments
        # THEN the agent wrote nothing into the segment
        assert not any(segment.map[len(HEADERS[name]) :])


def test_a_segment_that_can_shrink_is_refused(targets: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        recorder.sealed = False
        run(recorder, targets / "nvtx_workload", "kinds", tmp_path)
        (segment,) = recorder.images[0].segments
        assert not any(segment.map[harness.HEADER.size :])


# ---- another NVTX tool behind the agent ----

CHAINED = """\
DomainCreateA - dom
RegisterStringA dom text
NameCudaDeviceA - gpu
NameCategoryA dom cat
DomainRangePushEx dom text
RangePushA - plain
RangePop -\x20
DomainRangePop dom\x20
DomainMarkEx dom text
MarkA - mark
DomainRangeStartEx dom text
DomainRangeEnd dom 42
ResourceCreate dom text
DomainMarkEx dom text
DomainDestroy dom\x20
"""


def chained(recorder: Recorder, targets: Path, log: Path, **environment: str) -> str:
    environment.setdefault("CCTRACE_NVTX_CHAIN", str(targets / "nvtx_tool.so"))
    environment["NVTX_TOOL_LOG"] = str(log)
    return run(recorder, targets / "nvtx_chained", status=0, **environment).stdout


def test_chained_tool_sees_what_it_would_alone(targets: Path, tmp_path: Path) -> None:
    # GIVEN a tool that was to be injected before the agent
    alone, log = tmp_path / "alone", tmp_path / "chained"
    with Recorder() as recorder:
        output = chained(recorder, targets, log)
        # THEN it gets every call, with handles of its own
        assert log.read_text() == "Initialize - \n" + CHAINED
        # ... the program gets its depths and ids
        assert output == "1000\n1001\n1001\n1000\n42\n1\n"
        # ... and the agent records as ever, the tool's own event included
        seen = [(e.kind, e.domain, e.name, e.depth) for e in recorder.images[0].events()]
        ids = [e.value for e in recorder.images[0].events() if e.kind in (3, 4)]
    assert seen == [
        (harness.MARK, None, "the tool's own", 0),
        (harness.PUSH_POP, None, "plain", 0),
        (harness.PUSH_POP, "dom", "text", 0),
        (harness.MARK, "dom", "text", 0),
        (harness.MARK, None, "mark", 0),
        (harness.START, "dom", "text", 0),
        (harness.END, None, None, 0),
        (harness.START, None, "not the tool's", 0),
        (harness.END, None, None, 0),
        (harness.MARK, "dom", "text", 0),
    ]
    assert ids[:2] == [42, 42]
    assert ids[2] == ids[3] != 42
    # Alone it sees the second creation of the domain too, and both destructions.
    environment = {**os.environ, "NVTX_INJECTION64_PATH": str(targets / "nvtx_tool.so")}
    environment.update(NVTX_TOOL_LOG=str(alone), NVTX_TOOL_MODE="quiet")
    subprocess.run([targets / "nvtx_chained"], env=environment, check=True, stdout=-3)
    calls = alone.read_text().splitlines()[1:]
    calls.remove("DomainCreateA - dom")
    calls.remove("DomainDestroy dom ")
    assert sorted(calls) == sorted(CHAINED.splitlines())


def test_chained_tool_without_a_recorder(targets: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Recorder() as recorder:
        output = chained(recorder, targets, log, CCTRACE_SOCKET="")
        assert recorder.requests == []
    assert log.read_text() == "Initialize - \n" + CHAINED
    assert output == "1000\n1001\n1001\n1000\n42\n1\n"


def test_chained_tool_that_declines(targets: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Recorder() as recorder:
        output = chained(recorder, targets, log, NVTX_TOOL_MODE="refuse")
        assert len(recorder.images[0].events()) == 9
    assert log.read_text() == "Initialize - refuse\n"
    assert output.startswith("0\n0\n0\n0\n")


@pytest.mark.parametrize("path", ["/nonexistent.so", "/dev/null", "libm.so.6", "agent"])
def test_chain_to_no_tool(targets: Path, tmp_path: Path, path: str) -> None:
    chain = str(harness.agent_library()) if path == "agent" else path
    with Recorder() as recorder:
        run(recorder, targets / "nvtx_workload", "kinds", tmp_path, CCTRACE_NVTX_CHAIN=chain)
        assert_recorded(recorder.images, only_log(tmp_path))


def test_layout_of_the_harness_is_the_headers(tmp_path: Path) -> None:
    # GIVEN offsets as the compiler sees them
    source = tmp_path / "layout.c"
    fields = [
        ("segment", "dict_offset"),
        ("segment", "dict_head"),
        ("segment", "losses"),
        ("slot", "head"),
        ("slot", "depth"),
        ("slot", "tail"),
        ("slot", "losses"),
    ]
    offsets = ",".join(f"offsetof(struct cct_{struct_}, {name})" for struct_, name in fields)
    source.write_text(
        f'#include "{harness.ROOT}/probes/agent/cctrace_shm.h"\n'
        "#include <stddef.h>\n#include <stdio.h>\n"
        f"int main(void) {{ unsigned long v[] = {{{offsets}, sizeof(struct cct_slot),"
        "sizeof(struct cct_record), sizeof(struct cct_frame), sizeof(struct cct_dict_entry),"
        "sizeof(struct cct_request), sizeof(struct cct_reply)}; fwrite(v, sizeof v, 1, stdout); }\n"
    )
    binary = harness.compile_c(source, tmp_path / "layout")
    done = subprocess.run([binary], check=True, capture_output=True)
    # THEN the harness, written by hand, has them
    assert struct.unpack("<13Q", done.stdout) == (
        80,
        harness.DICT_HEAD_AT,
        harness.SEGMENT_LOSSES_AT,
        harness.SLOT_HEAD_AT,
        harness.SLOT_DEPTH_AT,
        harness.SLOT_TAIL_AT,
        harness.SLOT_LOSSES_AT,
        harness.SLOT_BYTES,
        harness.RECORD.size,
        harness.FRAME.size,
        harness.ENTRY.size,
        harness.REQUEST.size,
        harness.REPLY.size,
    )
