"""Steps and their periods, from the NVTX ranges of each engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from query_rows import BATCH, Row, lines, span, table, vllm_step
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path


def test_steps_of_vllm(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[
            *vllm_step(100, 50, "prefill", 3 * BATCH + 29),
            *vllm_step(200, 50, "decode", 3 * BATCH + 3),
            # Nothing scheduled: no step.
            span(260, 5, "vllm.step", domain="cctrace"),
            *vllm_step(300, 50, "mixed", 2 * BATCH + 11),
            # An idle wait ends the sequence.
            span(360, 500, "vllm.wait_for_requests", domain="cctrace"),
            *vllm_step(900, 50, "prefill", BATCH + 7),
            # Killed inside the last step.
            *vllm_step(1000, None, "decode", BATCH + 1),
            # A mark outside of any step, and another domain's names.
            {"ts_ns": 270, "kind": "mark", "name": "vllm.scheduled", "domain": "cctrace"},
            span(1, 1, "vllm.step"),
            span(2, 1, "step", domain="cctrace"),
        ],
        losses=[{"count": 1, "first_ns": 250, "last_ns": 260}],
    )
    assert table(run, "steps") == lines("""
        run,1,vllm,100,100,100,50,100,prefill,3,29
        run,2,vllm,100,100,200,50,100,decode,3,3
        run,3,vllm,100,100,300,50,,mixed,2,11
        run,4,vllm,100,100,900,50,100,prefill,1,7
        run,5,vllm,100,100,1000,,,decode,1,1
    """)
    assert table(run, "itl") == lines("""
        run,vllm,decode,1,100,100,100,100,100
        run,vllm,prefill,2,100,100,100,100,100
    """)


def test_steps_of_several_engine_threads_and_processes(tmp_path: Path) -> None:
    # GIVEN two threads and a second process, their steps interleaved
    run = make_run(
        tmp_path,
        nvtx=[
            *vllm_step(100, 50, "decode", BATCH, tid=101),
            *vllm_step(110, 50, "decode", BATCH, tid=102),
            *vllm_step(120, 50, "decode", BATCH, pid=200, tid=101),
            *vllm_step(207, 50, "decode", BATCH, tid=101),
            *vllm_step(221, 50, "decode", BATCH, tid=102),
        ],
    )
    query = "SELECT step_id, pid, tid, ts_ns, period_ns FROM steps ORDER BY step_id"
    assert table(run, query) == lines("""
        1,100,101,100,107
        2,100,102,110,111
        3,200,101,120,
        4,100,101,207,
        5,100,102,221,
    """)


def idle(ts_ns: int, **more: Any) -> Row:
    """A wait of vLLM for requests."""
    return span(ts_ns, 5, "vllm.wait_for_requests", domain="cctrace", **more)


def test_marks_and_pauses_of_others_are_none_of_a_steps_own(tmp_path: Path) -> None:
    # GIVEN, between a step's start and its own mark, marks of another thread, another
    # process with the same thread id, and another run; and pauses of theirs after it
    one = make_run(
        tmp_path,
        "one",
        nvtx=[
            *vllm_step(100, 50, "decode", 2 * BATCH + 2, tid=101),
            *vllm_step(98, 50, "prefill", 3 * BATCH + 31, tid=102),
            *vllm_step(99, 50, "mixed", 5 * BATCH + 37, pid=200, tid=101),
            idle(160, tid=102),
            idle(170, pid=200, tid=101),
            *vllm_step(200, 50, "decode", 2 * BATCH + 2, tid=101),
            *vllm_step(198, 50, "decode", 3 * BATCH + 3, tid=102),
            *vllm_step(199, 50, "decode", 5 * BATCH + 5, pid=200, tid=101),
        ],
    )
    two = make_run(
        tmp_path,
        "two",
        nvtx=[
            *vllm_step(97, 50, "prefill", 7 * BATCH + 41, tid=101),
            idle(180, tid=101),
            *vllm_step(197, 50, "decode", 7 * BATCH + 7, tid=101),
        ],
    )
    # THEN each step has its own phase and batch, and only its own pause ends its period
    query = """
        SELECT run, pid, tid, ts_ns, period_ns, phase, requests, tokens FROM steps
        WHERE ts_ns < 150 ORDER BY run, ts_ns
    """
    assert table([one, two], query) == lines("""
        one,100,102,98,,prefill,3,31
        one,200,101,99,,mixed,5,37
        one,100,101,100,100,decode,2,2
        two,100,101,97,,prefill,7,41
    """)


def test_a_mark_may_be_as_early_as_its_step(tmp_path: Path) -> None:
    step, mark = vllm_step(100, 50, "decode", BATCH + 1)
    run = make_run(tmp_path, nvtx=[step, {**mark, "ts_ns": 100}])
    assert table(run, "steps") == "run,1,vllm,100,100,100,50,,decode,1,1\n"


def test_batches_of_any_size_come_apart(tmp_path: Path) -> None:
    # GIVEN the largest batch that a payload of 63 bits holds
    run = make_run(tmp_path, nvtx=[span(0, 1, "step", payload=(2**31 - 1) * BATCH + 2**32 - 1)])
    assert table(run, "SELECT requests, tokens FROM steps") == "2147483647,4294967295\n"


def test_a_pause_is_a_range_of_the_steps_own_domain(tmp_path: Path) -> None:
    # GIVEN steps in no domain and in one that is called default, a pause in the latter
    # alone, and a mark that has a pause's name
    run = make_run(
        tmp_path,
        nvtx=[
            span(10, 3, "step"),
            span(20, 3, "step", domain="default"),
            span(30, 3, "generate", domain="default"),
            {"ts_ns": 31, "kind": "mark", "name": "generate"},
            span(41, 3, "step"),
            span(53, 3, "step", domain="default"),
        ],
    )
    # THEN the pause is that domain's only
    query = "SELECT ts_ns, engine, period_ns FROM steps ORDER BY ts_ns"
    assert table(run, query) == lines("""
        10,default,31
        20,default,
        41,default,
        53,default,
    """)


def test_steps_of_transformers(tmp_path: Path) -> None:
    def forward(ts_ns: int, phase: str, tokens: int) -> Row:
        name = "transformers.forward"
        return span(
            ts_ns, 20, name, domain="cctrace", category=phase, payload=BATCH + tokens, depth=1
        )

    def generate(ts_ns: int) -> Row:
        return span(ts_ns, 100, "transformers.generate", domain="cctrace")

    run = make_run(
        tmp_path,
        nvtx=[
            generate(0),
            forward(10, "prefill", 5),
            forward(41, "decode", 1),
            generate(200),
            forward(200, "prefill", 7),
            forward(237, "decode", 1),
        ],
    )
    assert table(run, "steps") == lines("""
        run,1,transformers,100,100,10,20,31,prefill,1,5
        run,2,transformers,100,100,41,20,,decode,1,1
        run,3,transformers,100,100,200,20,37,prefill,1,7
        run,4,transformers,100,100,237,20,,decode,1,1
    """)


def test_steps_of_a_loop_of_ones_own(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[
            span(0, 1000, "generate", domain="mine"),
            span(10, 20, "step", domain="mine", category="prefill", payload=BATCH + 5),
            span(40, 20, "step", domain="mine", category="decode", payload=BATCH + 1),
            # Another domain's break is none of ours.
            span(50, 3, "generate", domain="other"),
            span(71, 20, "step", domain="mine"),
            # Payloads that were not meant as a batch must not break the query.
            span(100, 20, "step", payload=-1),
            span(150, 20, "step", payload_double=0.5),
            span(160, 3, "generate"),
            {"ts_ns": 200, "dur_ns": 9, "kind": "start_end", "name": "step"},
            {"ts_ns": 210, "kind": "mark", "name": "step"},
        ],
    )
    assert table(run, "steps") == lines("""
        run,1,mine,100,100,10,20,30,prefill,1,5
        run,2,mine,100,100,40,20,31,decode,1,1
        run,3,mine,100,100,71,20,,,,
        run,4,default,100,100,100,20,50,,,
        run,5,default,100,100,150,20,,,,
        run,6,default,100,100,200,9,,,,
    """)
    assert table(run, "steps", {"engine": "mine", "phase": "decode"}) == lines(
        "run,2,mine,100,100,40,20,31,decode,1,1"
    )


def test_one_step_has_no_period(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=vllm_step(7, 3, "decode", BATCH))
    assert table(run, "steps") == "run,1,vllm,100,100,7,3,,decode,1,0\n"
    assert table(run, "itl") == ""


def test_itl_is_the_distribution_of_periods(tmp_path: Path) -> None:
    # GIVEN 101 decode steps whose periods are 1 to 100, and 3 of prefill elsewhere
    rows, ts_ns = [], 0
    for period in [*range(1, 101), 0]:
        rows.append(span(ts_ns, 1, "step", category="decode"))
        ts_ns += period
    rows += [span(10 * i, 1, "step", category="prefill", tid=7) for i in range(4)]
    run = make_run(tmp_path, nvtx=rows)
    # THEN n, mean, p50, p90, p99 and max are those of the numbers 1 to 100
    assert table(run, "itl", {"phase": "decode"}) == "run,default,decode,100,51,50,90,99,100\n"
    assert table(run, "itl") == lines("""
        run,default,decode,100,51,50,90,99,100
        run,default,prefill,3,10,10,10,10,10
    """)
    assert table(run, "itl", {"engine": "vllm"}) == ""
