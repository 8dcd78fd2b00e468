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
        run,1,vllm,100,100,100,50,100,prefill,3,29,nvtx
        run,2,vllm,100,100,200,50,100,decode,3,3,nvtx
        run,3,vllm,100,100,300,50,,mixed,2,11,nvtx
        run,4,vllm,100,100,900,50,100,prefill,1,7,nvtx
        run,5,vllm,100,100,1000,,,decode,1,1,nvtx
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
    assert table(run, "steps") == "run,1,vllm,100,100,100,50,,decode,1,1,nvtx\n"


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
        run,1,transformers,100,100,10,20,31,prefill,1,5,nvtx
        run,2,transformers,100,100,41,20,,decode,1,1,nvtx
        run,3,transformers,100,100,200,20,37,prefill,1,7,nvtx
        run,4,transformers,100,100,237,20,,decode,1,1,nvtx
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
        run,1,mine,100,100,10,20,30,prefill,1,5,nvtx
        run,2,mine,100,100,40,20,31,decode,1,1,nvtx
        run,3,mine,100,100,71,20,,,,,nvtx
        run,4,default,100,100,100,20,50,,,,nvtx
        run,5,default,100,100,150,20,,,,,nvtx
        run,6,default,100,100,200,9,,,,,nvtx
    """)
    assert table(run, "steps", {"engine": "mine", "phase": "decode"}) == lines(
        "run,2,mine,100,100,40,20,31,decode,1,1,nvtx"
    )


def test_one_step_has_no_period(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=vllm_step(7, 3, "decode", BATCH))
    assert table(run, "steps") == "run,1,vllm,100,100,7,3,,decode,1,0,nvtx\n"
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


def profiled(number: int, ts_ns: int, dur_ns: int | None, **more: Any) -> Row:
    """A step of torch.profiler, as an imported trace has it."""
    kind = {"domain": "torch", "category": "user_annotation", "kind": "start_end"}
    return span(ts_ns, dur_ns, f"ProfilerStep#{number}", **{**kind, **more})


STEPS_FOUND = """
    SELECT run, engine, tid, ts_ns, dur_ns, period_ns, phase, requests, found_by
    FROM steps ORDER BY run, step_id
"""


def test_steps_of_a_profiler(tmp_path: Path) -> None:
    # GIVEN five steps, 13 ns apart but for a pause of more than ten times that, the
    # backward pass of the second one on autograd's own thread, an optimizer in the last
    run = make_run(
        tmp_path,
        nvtx=[
            profiled(7, 100, 11),
            profiled(8, 113, 11),
            span(120, 2, "autograd::engine::evaluate_function: MmBackward0", tid=7),
            profiled(9, 126, 11),
            profiled(10, 126 + 11 + 131, 11),
            profiled(11, 281, None),
            span(290, 1, "Optimizer.step#SGD.step", domain="torch"),
            {"ts_ns": 300, "kind": "mark", "name": "ProfilerStep#12", "domain": "torch"},
        ],
    )
    # THEN what is inside a step tells that it trains; of an open one nothing is inside
    assert table(run, STEPS_FOUND) == lines("""
        run,profiler,100,100,11,13,,,annotation
        run,profiler,100,113,11,13,train,,annotation
        run,profiler,100,126,11,,,,annotation
        run,profiler,100,268,11,13,,,annotation
        run,profiler,100,281,,,,,annotation
    """)


def test_steps_that_engines_name_by_their_batch(tmp_path: Path) -> None:
    def trtllm(number: int, ts_ns: int, prefills: int, decodes: int) -> Row:
        name = f"[Executor] _forward_step {number}: {prefills} ctx reqs, {decodes} gen reqs"
        return span(ts_ns, 5, name)

    one = make_run(
        tmp_path,
        "one",
        nvtx=[trtllm(1, 10, 2, 0), trtllm(2, 21, 1, 2), trtllm(3, 33, 0, 3), trtllm(4, 46, 0, 0)],
    )
    two = make_run(
        tmp_path,
        "two",
        nvtx=[
            span(10, 5, "execute_context_3(101)_generation_0(0)", domain="vllm"),
            span(17, 5, "execute_context_0(0)_generation_3(3), op_id = 17", domain="vllm"),
        ],
    )
    assert table([one, two], STEPS_FOUND) == lines("""
        one,tensorrt_llm,100,10,5,11,prefill,2,annotation
        one,tensorrt_llm,100,21,5,12,mixed,3,annotation
        one,tensorrt_llm,100,33,5,13,decode,3,annotation
        one,tensorrt_llm,100,46,5,,,0,annotation
        two,vllm,100,10,5,7,prefill,3,annotation
        two,vllm,100,17,5,,decode,3,annotation
    """)


def test_numbered_iterations_are_steps_and_their_parts_are_not(tmp_path: Path) -> None:
    names = ["Iteration 3", "iteration_4", "iteration5", "Iteration [6]", "ITERATION: 7"]
    rows = [span(10 * i, 5, name) for i, name in enumerate(names)]
    rows += [span(10 * i + 1, 2, f"iter_{i}_forward") for i in range(5)]
    # A name that is there only once on each thread is no loop.
    rows += [span(0, 50, "train_step"), span(0, 50, "train_step", tid=7)]
    # The rule of the lowest rank that repeats is the run's: not the optimizer's here.
    rows += [span(10 * i + 3, 1, "Optimizer.step#Adam.step") for i in range(5)]
    run = make_run(tmp_path, nvtx=rows)
    query = "SELECT engine, ts_ns, period_ns, phase FROM steps ORDER BY step_id"
    assert table(run, query) == lines("""
        iteration,0,10,train
        iteration,10,10,train
        iteration,20,10,train
        iteration,30,10,train
        iteration,40,,train
    """)


def test_a_loop_without_a_range_of_its_own_is_told_by_its_optimizer(tmp_path: Path) -> None:
    rows = [
        span(100 * i + 10 * rank, 7, f"Optimizer.step#AdamW.step, op_id = {i}", pid=100 + rank)
        for i in range(3)
        for rank in range(2)
    ]
    run = make_run(tmp_path, nvtx=rows)
    query = "SELECT engine, pid, ts_ns, period_ns, phase FROM steps ORDER BY pid, ts_ns"
    assert table(run, query) == lines("""
        optimizer,100,0,100,train
        optimizer,100,100,100,train
        optimizer,100,200,,train
        optimizer,101,10,100,train
        optimizer,101,110,100,train
        optimizer,101,210,,train
    """)


def test_an_engines_own_steps_come_first(tmp_path: Path) -> None:
    # GIVEN a run with steps and a profiler's, and another one with the latter alone
    annotated = [profiled(i, 10 * i, 5) for i in range(3)]
    one = make_run(tmp_path, "one", nvtx=[span(3, 4, "step", domain="mine"), *annotated])
    two = make_run(tmp_path, "two", nvtx=annotated)
    # THEN the first run has its own step only
    query = "SELECT run, step_id, engine, ts_ns, found_by FROM steps ORDER BY run, step_id"
    assert table([one, two], query) == lines("""
        one,1,mine,3,nvtx
        two,1,profiler,0,annotation
        two,2,profiler,10,annotation
        two,3,profiler,20,annotation
    """)


def test_ranges_of_cctrace_s_own_domain_are_no_annotations(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, nvtx=[span(10 * i, 5, f"iteration {i}", domain="cctrace") for i in range(3)]
    )
    assert table(run, "SELECT count(*) FROM steps") == "0\n"
