"""The C agent alone: events in one process, names, losses, limits.

Truth comes from the target's own log; the recorder is the one in agent_harness.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import agent_harness as harness
import pytest
from agent_harness import Geometry, Recorder, assert_recorded, only_log, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent is for Linux")


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("targets")
    source = harness.TARGETS / "nvtx_workload.c"
    return harness.compile_c(source, directory / "nvtx_workload", "-ldl", "-lpthread")


@pytest.mark.parametrize("mode", ["mixed", "kinds", "interleaved"])
def test_every_event_arrives_exactly(workload: Path, tmp_path: Path, mode: str) -> None:
    # GIVEN a program that logs what it emits
    with Recorder() as recorder:
        # WHEN it runs with the agent
        run(recorder, workload, mode, tmp_path)
        # THEN the segment holds those events, and nothing else was lost
        lines = only_log(tmp_path)
        assert len(lines) > 13
        (image,) = recorder.images
        assert_recorded([image], lines)
        assert set(image.losses()) <= {harness.UNMATCHED_POP}


def test_counts_of_the_mixed_workload(workload: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        run(recorder, workload, "mixed", tmp_path)
        kinds = [event.kind for event in recorder.images[0].events()]
    # 4 threads x 37 rounds x 4 ranges and a mark; 11 ranges across threads
    assert kinds.count(harness.PUSH_POP) == 4 * 37 * 4
    assert kinds.count(harness.MARK) == 4 * 37
    assert (kinds.count(harness.START), kinds.count(harness.END)) == (11, 11)


def test_thread_names_reach_the_dictionary(workload: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        run(recorder, workload, "kinds", tmp_path)
        (image,) = recorder.images
        assert image.segments[0].dictionary().threads == {image.pid: "named by NVTX"}


def test_odd_calls_are_survived(workload: Path, tmp_path: Path) -> None:
    # GIVEN NULL attributes and texts, short structs, texts beyond the limit
    with Recorder() as recorder:
        run(recorder, workload, "odd", tmp_path)
        (image,) = recorder.images
        events = image.events()
        # THEN each event is there, with what could be read of it
        assert [event.kind for event in events] == [harness.MARK] * 10
        assert [event.name for event in events[:3]] == [None] * 3
        # cut before the character that lies across the limit
        assert events[3].name == "x" * 65534
        assert events[4].name == "y" * 5 + "\ufffd" + "y" * (65535 - 8)
        assert [event.truncated for event in events[3:5]] == [True, True]
        short = events[5]
        assert (short.name, short.category, short.payload) == (None, 6, 17)
        assert [event.name for event in events[6:]] == [
            None,
            None,
            "after its destruction",
            "x" * 65534,
        ]
        assert events[8].domain == "odd"
        # ... and each cut is counted
        assert image.losses() == {harness.TRUNCATED_STRING: 3}


@pytest.mark.parametrize("pushes", [97, 5003])
def test_stack_overflow_is_counted_and_pops_still_pair(
    workload: Path, tmp_path: Path, pushes: int
) -> None:
    # GIVEN room for 61 open ranges and a program that nests more
    with Recorder(Geometry(stack_frames=61)) as recorder:
        run(recorder, workload, "deep", tmp_path, "61", str(pushes))
        (image,) = recorder.images
        # THEN the first 61 and all that follows are exact
        assert_recorded([image], only_log(tmp_path))
        assert image.losses() == {harness.STACK_OVERFLOW: pushes - 61}


def test_open_ranges_outlive_the_process(workload: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        run(recorder, workload, "open", tmp_path, status=7)
        (image,) = recorder.images
        assert_recorded([image], only_log(tmp_path))
        assert [event.name for event in image.open_ranges()] == ["open"] * 4


def test_more_threads_than_slots_get_more_segments(workload: Path, tmp_path: Path) -> None:
    # GIVEN segments of 7 slots that nobody frees
    with Recorder(Geometry(slots=7)) as recorder:
        # WHEN 61 threads emit
        run(recorder, workload, "threads", tmp_path)
        (image,) = recorder.images
        # THEN the agent asked for nine segments
        assert_recorded([image], only_log(tmp_path))
        assert len(image.segments) == 9
        assert recorder.requests == [
            (harness.HELLO, image.pid),
            *[(harness.MORE, image.pid)] * 8,
        ]
        assert image.losses() == {}


def test_freed_slots_are_used_again(workload: Path, tmp_path: Path) -> None:
    # GIVEN one slot, and a recorder that takes and frees it after each thread
    with Recorder(Geometry(slots=1)) as recorder:
        recorder.segments_max = 1
        taken: list[tuple[int, int]] = []
        with subprocess.Popen(
            [workload, "threads", tmp_path, "1"],
            env=recorder.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(61):
                assert process.stdout.readline() == "next\n"
                segment = recorder.images[0].segments[0]
                tid = segment.slot(0).tid
                taken += [(tid, record[5]) for record in segment.drain(0)]
                process.stdin.write("\n")
                process.stdin.flush()
            assert process.wait(60) == 0
        # THEN every thread's events came through it, one thread after the other
        lines = only_log(tmp_path)
        assert len({line.tid for line in lines}) == 61
        assert taken == [(line.tid, harness.KINDS[line.kind]) for line in lines]
        assert recorder.images[0].losses() == {}
        assert len(recorder.requests) == 1


def test_a_thread_that_ends_gives_its_slot_back(workload: Path, tmp_path: Path) -> None:
    # GIVEN a thread that leaves ranges open and emits while its data is destroyed
    with Recorder() as recorder:
        run(recorder, workload, "leaving", tmp_path)
        (image,) = recorder.images
        # THEN the last event has the thread's slot still, which then is marked
        assert_recorded([image], only_log(tmp_path))
        (slot,) = image.slots()
        assert slot.state == harness.EXITED
        assert [event.name for event in image.open_ranges()] == ["left open"] * 2
        assert image.events()[-1].name == "last words"


def test_no_slot_is_counted(workload: Path, tmp_path: Path) -> None:
    # GIVEN one slot in all, which nobody frees
    with Recorder(Geometry(slots=1)) as recorder:
        recorder.segments_max = 1
        run(recorder, workload, "threads", tmp_path)
        (image,) = recorder.images
        lines = only_log(tmp_path)
        first = [line for line in lines if line.tid == lines[0].tid]
        assert_recorded([image], first)
        # THEN each of the other 60 threads' calls is a loss: 23 pushes and pops,
        # 7 marks, 5 starts (the end of a lost start is none)
        assert image.losses() == {harness.NO_SLOT: 60 * (23 + 23 + 7 + 5)}
        assert len(recorder.requests) == 2


def test_full_ring_drops_and_counts(workload: Path, tmp_path: Path) -> None:
    # GIVEN a ring of 256 records that nobody reads
    with Recorder(Geometry(ring_records=256)) as recorder:
        run(recorder, workload, "many", tmp_path, "1009")
        (image,) = recorder.images
        # THEN written and dropped are all that was emitted, the oldest kept
        assert [event.name for event in image.events()] == [f"many-{i // 10}" for i in range(256)]
        assert image.losses() == {harness.RING_FULL: 1009 - 256}
        _, first_ns, last_ns = image.slots()[0].losses[harness.RING_FULL]
        assert image.events()[-1].ts_ns < first_ns < last_ns


def test_senseless_tails_do_no_harm(workload: Path, tmp_path: Path) -> None:
    # GIVEN a recorder gone mad, which writes noise where its tail should be
    with (
        Recorder(Geometry(slots=1, ring_records=64)) as recorder,
        subprocess.Popen(
            [workload, "many", tmp_path, "499979"], env=recorder.environment()
        ) as process,
    ):
        generator = random.Random(7)
        at = harness.SLOTS_AT + harness.SLOT_TAIL_AT
        while process.poll() is None:
            if recorder.images and recorder.images[0].segments:
                noise = generator.randbytes(8)
                recorder.images[0].segments[0].map[at : at + 8] = noise
        # THEN the program ends well, and what it did not write it counted
        assert process.returncode == 0
        segment = recorder.images[0].segments[0]
        segment.map[at : at + 8] = segment.map[at - 64 : at - 56]
        slot = segment.slot(0)
        lost = sum(count for count, _, _ in slot.losses.values())
        assert slot.head + lost >= 499979


def test_full_dictionary_keeps_events(workload: Path, tmp_path: Path) -> None:
    # GIVEN a dictionary for 40 names (an entry of 32 bytes and 8 of text)
    with Recorder(Geometry(dict_bytes=40 * 40)) as recorder:
        run(recorder, workload, "many", tmp_path, "1009")
        (image,) = recorder.images
        names = [event.name for event in image.events()]
        # THEN all events are there, the later ones without their name
        assert names == [f"many-{i // 10}" for i in range(400)] + [None] * 609
        assert image.losses() == {harness.STRING_TABLE_FULL: 609}


def test_many_names_outgrow_the_first_table(workload: Path, tmp_path: Path) -> None:
    with Recorder(Geometry(slots=1, ring_records=1 << 17, dict_bytes=1 << 22)) as recorder:
        run(recorder, workload, "many", tmp_path, "99991")
        (image,) = recorder.images
        dictionary = image.segments[0].dictionary()
        texts = [key[4].decode() for key in dictionary.keys.values()]
        assert texts == [f"many-{i}" for i in range(10000)]
        keys = [record[3] for record in image.slots()[0].records]
        assert keys == [i // 10 + 1 for i in range(99991)]
        assert image.losses() == {}


def test_threads_that_see_new_names_at_once(workload: Path, tmp_path: Path) -> None:
    # GIVEN four threads that all meet the same 4001 names first
    with Recorder(Geometry(ring_records=1 << 13)) as recorder:
        run(recorder, workload, "race", tmp_path)
        (image,) = recorder.images
        # THEN each name has one key, and each thread's events have the right one
        keys = image.segments[0].dictionary().keys
        assert sorted(key[4] for key in keys.values()) == sorted(
            b"race-%d" % i for i in range(4001)
        )
        wanted = [b"race-%d" % (i // 2) for i in range(2 * 4001)]
        for slot in image.slots():
            assert [keys[record[3]][4] for record in slot.records] == wanted
        assert image.losses() == {}


def test_signal_handlers_events_are_recorded_or_counted(workload: Path, tmp_path: Path) -> None:
    # GIVEN a handler that pushes, marks and pops, at any moment of the program
    with Recorder(Geometry(slots=1, ring_records=1 << 20, dict_bytes=1 << 23)) as recorder:
        done = run(recorder, workload, "signals", tmp_path)
        emitted, handled = map(int, done.stdout.split())
        (image,) = recorder.images
        keys = image.segments[0].dictionary().keys
        (slot,) = image.slots()
        kinds = [(keys[record[3]][4] == b"handler", record[5]) for record in slot.records]
        # THEN the program's own events are all there
        assert kinds.count((False, harness.PUSH_POP)) == emitted
        # ... and the handler's are, or were counted as they met one of those
        whole = kinds.count((True, harness.MARK))
        assert kinds.count((True, harness.PUSH_POP)) == whole
        assert image.losses() == {harness.REENTRANT: 3 * (handled - whole)}


def test_closed_descriptors_do_no_harm(workload: Path, tmp_path: Path) -> None:
    with Recorder() as recorder:
        run(recorder, workload, "close", tmp_path)
        (image,) = recorder.images
        assert_recorded([image], only_log(tmp_path))
        assert len(image.segments) == 2  # 12 threads, 8 slots


def test_libraries_with_their_own_nvtx_share_one_state(tmp_path: Path) -> None:
    # GIVEN two libraries that each carry NVTX and create the same domain
    source = harness.TARGETS / "nvtx_library.c"
    one, two = (
        harness.compile_c(source, tmp_path / f"lib{name}.so", "-shared", "-fPIC", "-ldl")
        for name in ("one", "two")
    )
    program = (
        "import ctypes, sys\n"
        "one, two = map(ctypes.CDLL, sys.argv[1:])\n"
        "one.emit_ranges(b'one', 7)\n"
        "two.emit_ranges(b'two', 11)\n"
        "print(one.open_range(b'outer'), two.open_range(b'inner'))\n"
        "two.emit_ranges(b'nested', 3)\n"
    )
    with Recorder() as recorder:
        done = run(recorder, sys.executable, "-c", program, one, two)
        (image,) = recorder.images
        # THEN there is one hello, one domain, and one nesting
        assert recorder.requests == [(harness.HELLO, image.pid)]
        assert image.segments[0].dictionary().domains == {1: "shared"}
        assert done.stdout == "0 1\n"
        seen = [(event.name, event.depth) for event in image.events()]
        assert seen == [("one", 0)] * 7 + [("two", 0)] * 11 + [("nested", 2)] * 3
        assert [event.name for event in image.open_ranges()] == ["outer", "inner"]


def test_python_nvtx_package() -> None:
    # GIVEN the nvtx package from Python
    program = (
        "import nvtx\n"
        "nvtx.push_range('plain', color='red')\n"
        "nvtx.pop_range()\n"
        "with nvtx.annotate('noted', domain='py', category='prefill', payload=-17):\n"
        "    nvtx.mark('mark', domain='py', payload=0.25)\n"
        "nvtx.end_range(nvtx.start_range('ranged', domain='py'))\n"
        "nvtx.mark('extended', domain='py', payload=[1, 2])\n"
        "d = nvtx.get_domain('py')\n"
        "for i in range(101):\n"
        "    d.push_range(d.get_event_attributes(message='fast', payload=i))\n"
        "    d.pop_range()\n"
    )
    with Recorder() as recorder:
        run(recorder, sys.executable, "-c", program)
        (image,) = recorder.images
        events = image.events()
        head = [(e.kind, e.domain, e.name, e.category, e.payload_type) for e in events[:6]]
        assert head == [
            (harness.PUSH_POP, None, "plain", 0, 0),
            (harness.MARK, "py", "mark", 0, 3),
            (harness.PUSH_POP, "py", "noted", "prefill", 2),
            (harness.START, "py", "ranged", 0, 0),
            (harness.END, None, None, 0, 0),
            (harness.MARK, "py", "extended", 0, 0),  # a payload by schema is not kept
        ]
        assert events[0].color == 0xFF0000  # nvtx.colors has no alpha
        assert events[1].payload == 0x3FD0000000000000  # 0.25 in IEEE 754
        assert events[2].payload == 2**64 - 17
        assert [(e.name, e.payload) for e in events[6:]] == [("fast", i) for i in range(101)]
        assert image.losses() == {}


def test_emit_library() -> None:
    # GIVEN a Python program that loads the emitter as the adapters do
    program = (
        "import ctypes, os\n"
        "e = ctypes.PyDLL(os.environ['CCTRACE_EMIT'])\n"
        "u64, u32, i = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int\n"
        "for f in (e.cct_emit_domain, e.cct_emit_string, e.cct_emit_start):\n"
        "    f.restype = u64\n"
        "e.cct_emit_string.argtypes = [u64, ctypes.c_char_p]\n"
        "e.cct_emit_category.argtypes = [u64, u32, ctypes.c_char_p]\n"
        "for f in (e.cct_emit_push, e.cct_emit_mark, e.cct_emit_start):\n"
        "    f.argtypes = [u64, u64, u32, i, u64]\n"
        "e.cct_emit_pop.argtypes = [u64]\n"
        "e.cct_emit_end.argtypes = [u64, u64]\n"
        "d = e.cct_emit_domain(b'cctrace')\n"
        "s = e.cct_emit_string(d, b'vllm.step')\n"
        "e.cct_emit_category(d, 2, b'decode')\n"
        "assert e.cct_emit_string(d, b'vllm.step') == s\n"
        "assert e.cct_emit_push(d, s, 2, 1, 3 << 32 | 7) == 0\n"
        "assert e.cct_emit_push(d, s, 0, 0, 99) == 1\n"
        "e.cct_emit_mark(d, s, 1, 1, 2**64 - 1)\n"
        "assert e.cct_emit_pop(d) == 1\n"
        "assert e.cct_emit_pop(d) == 0\n"
        "assert e.cct_emit_pop(d) < 0\n"
        "e.cct_emit_end(d, e.cct_emit_start(d, 0, 0, 0, 0))\n"
    )
    with Recorder() as recorder:
        run(recorder, sys.executable, "-c", program)
        (image,) = recorder.images
        seen = [
            (e.kind, e.domain, e.name, e.category, e.payload_type, e.payload, e.depth)
            for e in image.events()
        ]
        assert seen == [
            (harness.MARK, "cctrace", "vllm.step", 1, 1, 2**64 - 1, 0),
            (harness.PUSH_POP, "cctrace", "vllm.step", 0, 0, 0, 1),
            (harness.PUSH_POP, "cctrace", "vllm.step", "decode", 1, 3 << 32 | 7, 0),
            (harness.START, "cctrace", None, 0, 0, 0, 0),
            (harness.END, None, None, 0, 0, 0, 0),
        ]
    # ... and without a tool the same calls do nothing
    quiet = {k: v for k, v in os.environ.items() if not k.startswith("NVTX")}
    quiet["CCTRACE_EMIT"] = str(harness.emit_library())
    plain = program.replace("== 0", "< 0").replace("== 1", "< 0")
    subprocess.run([sys.executable, "-c", plain], env=quiet, check=True, timeout=60)


def test_only_the_entry_points_are_exported() -> None:
    def exported(library: Path) -> list[str]:
        command = ["nm", "-D", "--defined-only", str(library)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return [line.split()[-1] for line in done.stdout.splitlines()]

    assert exported(harness.agent_library()) == ["InitializeInjectionNvtx2"]
    assert all(name.startswith("cct_emit_") for name in exported(harness.emit_library()))
