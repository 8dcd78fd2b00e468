"""Steps of a run without step ranges, from CUDA calls written out by hand.

The loops here are made of calls of 1 ns at given times, so every start, period and
phase can be worked out on paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from query_rows import Row, lines, span, table
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

STARTS = "SELECT pid, tid, ts_ns, dur_ns, period_ns, phase FROM steps ORDER BY pid, tid, ts_ns"
SHORT = "SELECT ts_ns, period_ns FROM steps ORDER BY ts_ns"


def call(ts_ns: int, what: str, size_bytes: int | None = None, **more: Any) -> Row:
    """One call of 1 ns: h2d, d2h, launch, graph, sync, record, query, alloc or reduce."""
    apis = {
        "h2d": ("cudaMemcpyAsync", "copy"),
        "d2h": ("cudaMemcpyAsync", "copy"),
        "launch": ("cudaLaunchKernel", "launch"),
        "graph": ("cudaGraphLaunch", "graph"),
        "sync": ("cudaStreamSynchronize", "sync"),
        "record": ("cudaEventRecord", "event"),
        "wait": ("cudaStreamWaitEvent", "event"),
        "query": ("cudaEventQuery", "sync"),
        "alloc": ("cudaMalloc", "alloc"),
        "reduce": ("ncclAllReduce", "collective"),
    }
    api, kind = apis[what]
    row: Row = {"ts_ns": ts_ns, "dur_ns": 1, "api": api, "class": kind, "layer": "runtime"}
    if kind == "copy":
        row |= {"copy_kind": what, "size_bytes": 4 if size_bytes is None else size_bytes}
    return row | more


def calls(ts_ns: int, *whats: str, **more: Any) -> list[Row]:
    """Calls one after the other, 2 ns apart."""
    return [call(ts_ns + 2 * i, what, **more) for i, what in enumerate(whats)]


INLINE = ("h2d", "h2d", "graph", "launch", "d2h", "sync")


SET_UP = ("h2d", "h2d", "launch", "launch", "sync")


def loop(starts: list[int], *whats: str, **more: Any) -> list[Row]:
    """Set-up that ends with a wait, then the same calls from each of the starts on."""
    steps = [row for ts_ns in starts for row in calls(ts_ns, *whats, **more)]
    return [*calls(10, *SET_UP, **more), *steps]


def test_a_step_is_from_first_submission_to_the_next_ones(tmp_path: Path) -> None:
    # GIVEN set-up and five steps of six calls, 11 ns each
    run = make_run(tmp_path, cuda_api=loop([100, 117, 136, 157, 180], *INLINE))
    # THEN they tile; the last one ends with its copy to the host
    assert table(run, STARTS) == lines("""
        100,100,100,11,17,
        100,100,117,11,19,
        100,100,136,11,21,
        100,100,157,11,23,
        100,100,180,9,,
    """)
    assert table(run, "SELECT DISTINCT engine, found_by FROM steps") == "pattern,pattern\n"
    assert table(run, "itl") == "run,pattern,,4,20,19,23,23,23\n"


def test_without_a_wait_before_it_the_first_step_is_not_known(tmp_path: Path) -> None:
    steps = [row for ts_ns in (100, 117, 136, 157, 180) for row in calls(ts_ns, *INLINE)]
    run = make_run(tmp_path, cuda_api=[call(10, "h2d"), *steps])
    assert table(run, SHORT) == "117,19\n136,21\n157,23\n180,\n"


def test_a_wait_for_an_upload_is_no_readback(tmp_path: Path) -> None:
    # GIVEN uploads that are each waited for, as torch does with pageable memory, and
    # queries in between, as its allocator makes them
    whats = ("h2d", "sync", "h2d", "sync", "query", "graph", "d2h", "query", "sync")
    run = make_run(tmp_path, cuda_api=loop([100, 123, 146, 169, 193], *whats))
    assert table(run, SHORT) == lines("""
        100,23
        123,23
        146,23
        169,24
        193,
    """)


def test_tokens_that_are_read_a_step_late(tmp_path: Path) -> None:
    # GIVEN a copy on a second stream, and a wait for the one of the step before
    whats = ("h2d", "graph", "record", "wait", "d2h", "record", "sync")
    run = make_run(tmp_path, cuda_api=loop([100, 117, 134, 151, 168], *whats))
    assert table(run, SHORT) == "100,17\n117,17\n134,17\n151,17\n168,\n"


def test_readbacks_with_no_upload_between_are_passes_of_one_step(tmp_path: Path) -> None:
    # GIVEN three drafts and a verification, each read back: as in speculative decoding
    passes = ("h2d", *("graph", "launch", "d2h", "sync") * 4)
    run = make_run(tmp_path, cuda_api=loop([100, 137, 174, 211, 248], *passes))
    assert table(run, SHORT) == "100,37\n137,37\n174,37\n211,37\n248,\n"


def test_uploads_that_are_rare_do_not_make_many_steps_one(tmp_path: Path) -> None:
    # GIVEN sixteen steps whose inputs stay on the device for each one that uploads
    rows = calls(10, *SET_UP)
    for i in range(64):
        rows += calls(100 + 17 * i, *(["h2d"] if i % 16 == 0 else []), "graph", "d2h", "sync")
    run = make_run(tmp_path, cuda_api=rows)
    assert table(run, "SELECT count(*), quantile_disc(period_ns, 0.5) FROM steps") == "64,17\n"


def test_a_worker_thread_that_reads_back_leaves_the_loop_its_steps(tmp_path: Path) -> None:
    # GIVEN a loop that records an event where its tokens are there, and a thread that
    # waits for it, copies, and waits again; name, events and all of it cross
    starts = [100, 120, 141, 163, 186]
    rows = loop(starts, "h2d", "h2d", "graph", "record", tid=101)
    for ts_ns in starts:
        rows += calls(ts_ns + 9, "sync", "d2h", "sync", tid=102)
    run = make_run(tmp_path, cuda_api=rows)
    # THEN the thread that submits drives; its step ends where it records
    assert table(run, STARTS) == lines("""
        100,101,100,7,20,
        100,101,120,7,21,
        100,101,141,7,22,
        100,101,163,7,23,
        100,101,186,7,,
    """)


def test_a_thread_that_waits_but_copies_nothing_back(tmp_path: Path) -> None:
    # GIVEN a loop that reads what the device has written to memory of the host
    run = make_run(tmp_path, cuda_api=loop([100, 113, 126, 139], "h2d", "graph", "launch", "sync"))
    assert table(run, SHORT) == "100,13\n113,13\n126,13\n139,\n"


def test_each_worker_process_has_steps_of_its_own(tmp_path: Path) -> None:
    whats = ("h2d", "graph", "reduce", "d2h", "sync")
    rows = loop([100, 120, 140, 160], *whats, pid=201, tid=201)
    rows += loop([103, 124, 145, 166], *whats, pid=202, tid=202)
    run = make_run(tmp_path, cuda_api=rows)
    query = "SELECT step_id, pid, ts_ns, period_ns FROM steps ORDER BY step_id"
    assert table(run, query) == lines("""
        1,201,100,20
        2,202,103,21
        3,201,120,20
        4,202,124,21
        5,201,140,20
        6,202,145,21
        7,201,160,
        8,202,166,
    """)
    assert table(run, "SELECT count(*) FROM worker_steps") == "0\n"


def test_steps_of_workers_belong_to_those_of_the_loop(tmp_path: Path) -> None:
    # GIVEN a thread that marks its steps and leaves the device to two workers
    whats = ("h2d", "graph", "reduce", "d2h", "sync")
    starts = [90, 110, 130, 150]
    rows = loop([100, 120, 140, 160], *whats, pid=201, tid=201)
    rows += loop([109, 129, 149, 169], *whats, pid=202, tid=202)
    steps = [span(ts_ns, 19, "step", category=f"p{ts_ns}") for ts_ns in starts]
    run = make_run(tmp_path, cuda_api=rows, nvtx=steps)
    # THEN the loop's steps are the run's, and the workers' belong to those they start in
    assert table(run, "SELECT DISTINCT pid, found_by FROM steps") == "100,nvtx\n"
    query = "SELECT * FROM worker_steps ORDER BY pid, ts_ns"
    assert table(run, query) == lines("""
        run,1,201,201,100,9,20,p90
        run,2,201,201,120,9,20,p110
        run,3,201,201,140,9,20,p130
        run,4,201,201,160,7,,p150
        run,1,202,202,109,9,20,p90
        run,2,202,202,129,9,20,p110
        run,3,202,202,149,9,20,p130
        run,4,202,202,169,7,,p150
    """)


def test_a_loop_with_marks_and_calls_of_its_own_has_no_worker_steps(tmp_path: Path) -> None:
    rows = loop([100, 120, 140, 160], *INLINE) + loop([101, 121, 141, 161], *INLINE, pid=201)
    run = make_run(tmp_path, cuda_api=rows, nvtx=[span(100, 19, "step")])
    assert table(run, "SELECT count(*), min(found_by) FROM steps") == "1,nvtx\n"
    assert table(run, "SELECT count(*) FROM worker_steps") == "0\n"


def test_with_several_loops_a_worker_is_its_parents(tmp_path: Path) -> None:
    # GIVEN two processes with loops; one worker's parent is the second of them, and of
    # the other worker no parent is known
    whats = ("h2d", "graph", "d2h", "sync")
    rows = loop([100, 120, 140, 160], *whats, pid=201) + loop([100, 120, 140, 160], *whats, pid=202)
    steps = [span(ts_ns, 9, "step", pid=pid) for ts_ns in (95, 125) for pid in (50, 60)]
    processes = [{"pid": 201, "tid": 201, "ppid": 60, "start_ns": 1}]
    run = make_run(tmp_path, cuda_api=rows, nvtx=steps, processes=processes)
    query = """
        SELECT w.pid, w.ts_ns, s.pid AS loop FROM worker_steps w
        LEFT JOIN steps s ON w.step_id = s.step_id ORDER BY w.pid, w.ts_ns
    """
    assert table(run, query) == lines("""
        201,100,60
        201,120,60
        201,140,60
        201,160,60
        202,100,
        202,120,
        202,140,
        202,160,
    """)


def test_the_thread_that_submits_most_drives_a_process(tmp_path: Path) -> None:
    # GIVEN a loop, and a second thread that reads back as regularly but submits less
    rows = loop([100, 120, 140, 160], "h2d", "launch", "launch", "launch", "d2h", "sync", tid=101)
    rows += loop([101, 121, 141, 161], "launch", "d2h", "sync", tid=102)
    run = make_run(tmp_path, cuda_api=rows)
    assert table(run, "SELECT DISTINCT tid FROM steps") == "101\n"


def test_calls_without_rhythm_are_no_steps(tmp_path: Path) -> None:
    # GIVEN readbacks at intervals that double each time
    rows = loop([100 + 2**i for i in range(4, 14)], "h2d", "graph", "d2h", "sync")
    run = make_run(tmp_path, cuda_api=rows)
    assert table(run, "SELECT count(*) FROM steps") == "0\n"


def test_three_readbacks_are_too_few(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=loop([100, 120, 140], "h2d", "graph", "d2h"))
    assert table(run, "SELECT count(*) FROM steps") == "0\n"


def test_a_pause_ends_a_sequence(tmp_path: Path) -> None:
    # GIVEN steps 20 ns apart, and one 212 ns after the last call of the one before it:
    # a pause; another one 199 ns after it, which is not more than ten periods
    starts = [100, 120, 140, 160, 180, 403, 423, 443, 653, 673]
    run = make_run(tmp_path, cuda_api=loop(starts, *INLINE))
    assert table(run, SHORT) == lines("""
        100,20
        120,20
        140,20
        160,20
        180,
        403,20
        423,20
        443,210
        653,20
        673,
    """)


def test_a_long_wait_in_a_readback_is_no_pause(tmp_path: Path) -> None:
    # GIVEN a step whose copy waits 500 ns for a prefill
    rows = loop([100, 120, 140], *INLINE)
    rows += [call(160, "h2d"), call(162, "graph"), call(164, "d2h", dur_ns=500)]
    rows += loop([670, 690, 710], *INLINE)[len(SET_UP) :]
    run = make_run(tmp_path, cuda_api=rows)
    query = "SELECT ts_ns, dur_ns, period_ns FROM steps WHERE ts_ns = 160"
    assert table(run, query) == "160,504,510\n"


def test_a_warm_up_before_the_first_pause_is_no_step(tmp_path: Path) -> None:
    # GIVEN three dummy steps, a pause, and the loop
    starts = [100, 120, 140, *range(1000, 1200, 20)]
    run = make_run(tmp_path, cuda_api=loop(starts, *INLINE))
    assert table(run, "SELECT count(*), min(ts_ns) FROM steps") == "10,1000\n"


def test_what_is_submitted_after_the_last_readback_is_no_step(tmp_path: Path) -> None:
    rows = loop([100, 120, 140, 160, 180], *INLINE)
    run = make_run(tmp_path, cuda_api=[*rows, *calls(300, "h2d", "launch", "sync")])
    assert table(run, SHORT) == "100,20\n120,20\n140,20\n160,20\n180,\n"


def sized_loop(sizes: list[int], **more: Any) -> list[Row]:
    """Steps 20 ns apart that upload so many bytes each."""
    rows = calls(10, *SET_UP, **more)
    for i, size_bytes in enumerate(sizes):
        rows.append(call(100 + 20 * i, "h2d", size_bytes, **more))
        rows += calls(102 + 20 * i, "graph", "d2h", "sync", **more)
    return rows


def phases(run: Path) -> str:
    """The first letters of the phases of a run's steps in order, `-` for NULL."""
    query = """
        SELECT string_agg(coalesce(left(phase, 1), '-'), '' ORDER BY ts_ns) FROM steps
    """
    return table(run, query).strip()


def test_a_sequence_that_starts_with_large_uploads_starts_with_prefill(tmp_path: Path) -> None:
    # GIVEN a prompt in two chunks, then tokens, then a prompt among them
    run = make_run(tmp_path, cuda_api=sized_loop([400, 200, 8, 8, 12, 8, 300, 10, 8, 15]))
    # THEN whether the last prompt's step decodes as well cannot be told
    assert phases(run) == "ppdddd-ddd"


def test_equal_uploads_tell_no_phase(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=sized_loop([400] * 9))
    assert phases(run) == "-" * 9


def test_bulk_uploads_are_no_prompts(tmp_path: Path) -> None:
    # GIVEN a mebibyte before the prompt: a cache that is restored, not tokens
    run = make_run(tmp_path, cuda_api=sized_loop([2**20, 400, 8, 8, 8, 8, 8]))
    assert phases(run) == "-pddddd"


def test_a_process_that_launches_on_other_threads_tells_no_phase(tmp_path: Path) -> None:
    # GIVEN another thread with more than a quarter of the process's launches, as autograd's
    rows = sized_loop([400, 8, 8, 8, 8, 8, 8])
    rows += [call(101 + i, "launch", tid=7) for i in range(15)]
    run = make_run(tmp_path, cuda_api=rows)
    assert phases(run) == "-" * 7


def test_nested_calls_and_other_classes_are_not_looked_at(tmp_path: Path) -> None:
    rows = loop([100, 120, 140, 160, 180], *INLINE)
    # The driver's calls inside the runtime's, and what crosses nothing.
    rows += [call(101 + 20 * i, "d2h", depth=1) for i in range(5)]
    rows += [{**call(103 + 20 * i, "sync"), "class": "free"} for i in range(5)]
    rows += [call(105 + 20 * i, "alloc") for i in range(5)]
    run = make_run(tmp_path, cuda_api=rows)
    assert table(run, SHORT) == "100,20\n120,20\n140,20\n160,20\n180,\n"


def test_a_call_that_never_returned_ends_nothing(tmp_path: Path) -> None:
    # GIVEN a process that was killed in the copy of its last step
    rows = loop([100, 120, 140, 160], *INLINE)
    rows += [call(180, "h2d"), call(182, "graph"), call(184, "d2h", dur_ns=None)]
    run = make_run(tmp_path, cuda_api=rows)
    assert table(run, STARTS).splitlines()[-1] == "100,100,180,,,"


def test_steps_of_several_runs_keep_apart(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one", cuda_api=loop([100, 120, 140, 160], *INLINE))
    two = make_run(tmp_path, "two", cuda_api=loop([107, 130, 153, 176], *INLINE))
    marked = make_run(
        tmp_path,
        "marked",
        cuda_api=loop([100, 120, 140, 160], *INLINE),
        nvtx=[span(ts_ns, 9, "step") for ts_ns in (97, 141)],
    )
    empty = make_run(tmp_path, "void")
    query = "SELECT run, step_id, ts_ns, found_by FROM steps ORDER BY run, step_id"
    assert table([one, two, marked, empty], query) == lines("""
        marked,1,97,nvtx
        marked,2,141,nvtx
        one,1,100,pattern
        one,2,120,pattern
        one,3,140,pattern
        one,4,160,pattern
        two,1,107,pattern
        two,2,130,pattern
        two,3,153,pattern
        two,4,176,pattern
    """)


def test_calls_at_one_moment_are_in_the_order_of_a_step(tmp_path: Path) -> None:
    # GIVEN a trace so coarse that a copy and its wait start together, whichever comes first
    rows = calls(10, *SET_UP)
    for ts_ns in (100, 120, 140, 160, 180):
        rows += [call(ts_ns + 9, "sync"), call(ts_ns + 9, "d2h"), *calls(ts_ns, "h2d", "graph")]
    run = make_run(tmp_path, cuda_api=rows)
    assert table(run, SHORT) == "100,20\n120,20\n140,20\n160,20\n180,\n"
