"""The simulated device keeps time: order, tolls, who waits for what, and how many at once.

What is compared comes from the simulator's log: device times are computed and hold
exactly; host times are measured, so that only their lower bounds are sharp.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from simcuda_run import profile_figures, run, truth

pytestmark = pytest.mark.quiet

PROFILES = ("b300", "b300-cc", "h200", "h200-cc")
CALLS = 29
SLACK_NS = 30_000  # of a busy machine, on the fastest fifth of the calls


def _took_ns(calls: truth.Records) -> npt.NDArray[np.int64]:
    took_ns: npt.NDArray[np.int64] = (calls["exit_ns"] - calls["entry_ns"]).astype(np.int64)
    return took_ns


def test_one_stream_runs_in_order_without_gaps(tmp_path: Path) -> None:
    # GIVEN kernels of known lengths and copies, queued at once on one stream
    done = run(
        """
s, d, h = stream(), device(4096), pinned(4096)
for i in range(1, 14): kernel(i, i * 100_000)
for i in range(1, 14):
    launch(i, s); ok(rt.cudaMemcpyAsync(d, h, 4096, H2D, s))
ok(rt.cudaStreamSynchronize(s))
""",
        tmp_path,
    )
    # WHEN / THEN each starts when the one before it has ended, in the order of the calls
    ops = done.process.ops("kernel", "copy")
    assert list(ops["correlation_id"]) == sorted(ops["correlation_id"])
    assert (ops["start_ns"][1:] >= ops["end_ns"][:-1]).all()
    kernels = ops[ops["op"] == 1]
    assert list(kernels["end_ns"] - kernels["start_ns"]) == [i * 100_000 for i in range(1, 14)]
    # THEN once the queue is longer than its submission there are no gaps
    assert list(ops["start_ns"][13:]) == list(ops["end_ns"][12:-1])
    # THEN the wait ends after the device does, and the copies were done when it ended
    (wait,) = done.process.calls("cudaStreamSynchronize")
    assert wait["exit_ns"] >= ops["end_ns"].max()
    copies = ops[ops["op"] == 2]
    assert (copies["done_ns"] > 0).all()
    assert copies["done_ns"].max() <= wait["exit_ns"]


BLOCKING = """
import itertools
s, d = stream(), device(1024)
hosts = {"pinned": pinned(1024), "pageable": pageable(1024)}
ok(rt.cudaMemcpy(d, hosts["pinned"], 1024, H2D)); ok(rt.cudaMemcpy(d, hosts["pageable"], 1024, H2D))
for direction, kind in itertools.product((H2D, D2H), hosts):
    launch(kernel(1, 60_000_000), s)
    h = hosts[kind]
    ok(rt.cudaMemcpyAsync(*((d, h) if direction == H2D else (h, d)), 1024, direction, s))
    ok(rt.cudaStreamSynchronize(s))
"""
# What waits for all that is queued: by CUDA's rules, and under confidential computing.
WAITS = {
    "b300": {("d2h", "pageable")},
    "b300-cc": {("h2d", "pinned"), ("d2h", "pinned"), ("d2h", "pageable")},
}


@pytest.mark.parametrize("profile", sorted(WAITS))
def test_who_waits_behind_a_busy_stream(tmp_path: Path, profile: str) -> None:
    # GIVEN an asynchronous copy behind a kernel of 60 ms, each way, from each memory
    process = run(BLOCKING, tmp_path, profile=profile).process
    kernels = process.ops("kernel")
    copies = process.calls("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2")
    assert len(copies) == len(kernels) == 4
    # WHEN its call returns before the kernel ends, and when it does not
    waited = set()
    for copy, kernel in zip(copies, kernels, strict=True):
        kind = (truth.COPY_KINDS[copy["copy_kind"]], truth.HOST_MEMORY[copy["host_memory"]])
        (op,) = process.device[process.device["correlation_id"] == copy["correlation_id"]]
        assert op["start_ns"] >= kernel["end_ns"]
        if copy["exit_ns"] >= op["end_ns"]:
            waited.add(kind)
        else:
            assert copy["exit_ns"] < kernel["end_ns"], kind
    # THEN just those wait that should
    assert waited == WAITS[profile]


TOLLS = f"""
s, d = stream(), device(1 << 20)
for i in range({CALLS}): launch(7, s)
ok(rt.cudaStreamSynchronize(s))
for i in range({CALLS}):
    launch(8, s); ok(rt.cudaStreamSynchronize(s))
for h in (pinned(1 << 20), pageable(1 << 20)):
    for size in (64, 1 << 20):
        for i in range({CALLS}):
            ok(rt.cudaMemcpy(d, h, size, H2D))
for i in range(5):
    x = device(4096); ok(rt.cudaMemcpy(x, h, 64, H2D)); ok(rt.cudaFree(x))
"""


@pytest.mark.parametrize("profile", PROFILES)
def test_tolls_are_the_profiles(tmp_path: Path, profile: str) -> None:
    # GIVEN calls of every class on an idle device
    process = run(TOLLS, tmp_path, profile=profile).process
    figures = profile_figures(profile)

    def close(took_ns: npt.NDArray[np.int64], wanted_ns: float) -> None:
        assert took_ns.min() >= int(wanted_ns) - 1, (took_ns.min(), wanted_ns)
        assert np.quantile(took_ns, 0.2) <= wanted_ns * 1.3 + SLACK_NS, (took_ns, wanted_ns)

    # WHEN / THEN a launch takes its caller that long
    launches = process.calls("cuLaunchKernel")
    close(_took_ns(launches), figures["launch.host_ns"])
    # THEN launching and waiting takes what is published for both together
    waits = process.calls("cuStreamSynchronize")[1:]
    both_ns = waits["exit_ns"].astype(np.int64) - launches["entry_ns"][CALLS:].astype(np.int64)
    published_ns = {"b300": 14_000, "b300-cc": 55_000, "h200": 14_000, "h200-cc": 36_400}
    close(both_ns, published_ns[profile])
    # THEN a blocking copy takes toll and transfer, by its memory and size
    copies = process.calls("cuMemcpyHtoD_v2")
    at = 0
    for memory in ("pinned", "pageable"):
        f = {k: figures[f"copy.h2d.{memory}.{k}"] for k in ("host_ns", "latency_ns", "gb_per_s")}
        for size in (64, 1 << 20):
            series = copies[at + 1 : at + CALLS]  # the first of all has its own toll
            assert set(series["size_bytes"]) == {size}
            ops = process.device[
                np.isin(process.device["correlation_id"], series["correlation_id"])
            ]
            device_ns = f["latency_ns"] + int(size / f["gb_per_s"])
            assert set(ops["end_ns"] - ops["start_ns"]) == {int(device_ns)}
            if size == 64:  # a large one also takes this machine's own memcpy
                close(_took_ns(series), f["host_ns"] + device_ns)
            at += CALLS
    # THEN the first copy of a new allocation has the toll of one
    firsts = _took_ns(copies[at:])
    assert firsts.min() >= figures["alloc.first_copy_ns"]
    close(_took_ns(process.calls("cuMemAlloc_v2")), figures["alloc.device_ns"])


TWO_STREAMS = """
N = 1 << 20
a, b = stream(), stream()
d, e, h, g = device(N), device(N), pageable(N), pageable(N)
launch(kernel(1, 150_000_000), a); launch(1, b)
for i in range(5):
    ok(rt.cudaMemcpyAsync(d, h, N, H2D, a)); ok(rt.cudaMemcpyAsync(e, g, N, H2D, b))
ok(rt.cudaDeviceSynchronize())
"""


def _overlaps(ops: truth.Records) -> int:
    return int((ops["start_ns"][1:] < np.maximum.accumulate(ops["end_ns"])[:-1]).sum())


@pytest.mark.parametrize(("profile", "at_once"), [("b300", 2), ("b300-cc", 1)])
def test_copies_at_once(tmp_path: Path, profile: str, at_once: int) -> None:
    # GIVEN copies on two streams of one context, queued while both are busy
    process = run(TWO_STREAMS, tmp_path, profile=profile).process
    copies = process.ops("copy")
    # WHEN / THEN they overlap with two engines, and never under confidential computing
    assert len(copies) == 10
    assert (_overlaps(copies) > 0) == (at_once == 2)


def test_two_contexts_copy_at_once_even_under_confidential_computing(tmp_path: Path) -> None:
    # GIVEN a stream in each of two contexts of one device
    text = """
N = 1 << 20
made = c_void_p()
streams = []
for i in range(2):
    ok(cu.cuCtxCreate_v2(byref(made), 0, 0)); context = made.value
    at = c_void_p(); ok(cu.cuMemAlloc_v2(byref(at), c_size_t(N)))
    s = c_void_p(); ok(cu.cuStreamCreate(byref(s), 1))
    streams.append((context, at, s)); ok(cu.cuCtxPopCurrent_v2(byref(made)))
h = pageable(N)
gate = None  # both streams go on at once: when a kernel of the first one has ended
for context, at, s in streams:
    ok(cu.cuCtxPushCurrent_v2(c_void_p(context)))
    if gate is None:
        gate = event(2)
        launch(kernel(1, 200_000_000), s); ok(cu.cuEventRecord(c_void_p(gate), s))
    else:
        ok(cu.cuStreamWaitEvent(s, c_void_p(gate), 0))
    for i in range(7): ok(cu.cuMemcpyHtoDAsync_v2(at, c_void_p(h), c_size_t(N), s))
    ok(cu.cuCtxPopCurrent_v2(byref(made)))
for context, at, s in streams:
    ok(cu.cuCtxPushCurrent_v2(c_void_p(context))); ok(cu.cuCtxSynchronize())
    ok(cu.cuCtxPopCurrent_v2(byref(made)))
"""
    process = run("ok(cu.cuInit(0))\n" + text, tmp_path, profile="b300-cc").process
    # WHEN / THEN their copies overlap: the limit is each context's own
    assert len(process.ops("copy")) == 14
    assert _overlaps(process.ops("copy")) > 0


def test_the_legacy_stream_waits_for_blocking_streams_and_they_for_it(tmp_path: Path) -> None:
    # GIVEN a kernel on a blocking stream, on the legacy stream, on the blocking one again,
    # on one that does not block, and on this thread's own default stream
    done = run(
        """
blocking, free = stream(0), stream(1)
for i in range(1, 6): kernel(i, 20_000_000)
launch(1, blocking); launch(2, None); launch(3, blocking); launch(4, free)
launch(5, None, "_ptsz")
ok(rt.cudaDeviceSynchronize())
""",
        tmp_path,
    )
    ops = done.process.ops("kernel")
    calls = done.process.calls("cuLaunchKernel", "cuLaunchKernel_ptsz")["correlation_id"]
    first, legacy, third, free, own = (ops[ops["correlation_id"] == c][0] for c in calls)
    # WHEN / THEN the first three run one after the other, and so does a thread's own stream,
    # which blocks like one that is made; only the other stream is free
    assert legacy["start_ns"] == first["end_ns"]
    assert third["start_ns"] == legacy["end_ns"]
    assert own["start_ns"] == legacy["end_ns"]
    assert free["start_ns"] < first["end_ns"]


def test_events_order_streams_and_tell_device_time(tmp_path: Path) -> None:
    # GIVEN events around a kernel of 7 ms, and another stream that waits for the second
    done = run(
        """
a, b = stream(), stream()
start, end = event(), event()
ok(rt.cudaEventRecord(start, a)); launch(kernel(1, 7_000_000), a); ok(rt.cudaEventRecord(end, a))
say(rt.cudaEventQuery(end), rt.cudaGetLastError())
ok(rt.cudaStreamWaitEvent(b, end, 0)); launch(kernel(2, 1000), b)
ok(rt.cudaStreamSynchronize(b))
say(rt.cudaEventQuery(end))
ms = c_float(); ok(rt.cudaEventElapsedTime(byref(ms), c_void_p(start), c_void_p(end)))
say(7.0 <= ms.value < 7.2)
say(rt.cudaEventElapsedTime(byref(ms), c_void_p(start), c_void_p(event())))
""",
        tmp_path,
    )
    # WHEN / THEN it is not ready at once (600, which is not remembered), then it is, and
    # the time between is the kernel's and the gap before it
    assert done.said == [[600, 0], 0, True, 400]
    first, second = done.process.ops("kernel")
    assert second["start_ns"] >= first["end_ns"]


@pytest.mark.parametrize("wait", ["event", "query", "kernel"])
def test_bytes_are_there_when_what_is_behind_them_is_over(tmp_path: Path, wait: str) -> None:
    # GIVEN a readback and, behind it, an event or a kernel, which do nothing to memory
    done = run(
        f"""
s, d, h = stream(), device(1 << 16), pinned(1 << 16)
mark, wait = event(2), {wait!r}
wrong = 0
for turn in range(53):
    ok(rt.cudaMemset(d, turn, 1 << 16)); launch(kernel(1, 300_000), None)
    ok(rt.cudaDeviceSynchronize())
    launch(1, s); ok(rt.cudaMemcpyAsync(h, d, 1 << 16, D2H, s))
    if wait == "kernel":
        launch(kernel(2, 1), s); ok(rt.cudaStreamSynchronize(s))
    else:
        ok(rt.cudaEventRecord(mark, s))
        while wait == "query" and rt.cudaEventQuery(mark): pass
        if wait == "event": ok(rt.cudaEventSynchronize(mark))
    wrong += get(h, 1 << 16) != bytes([turn]) * (1 << 16)
say(wrong)
""",
        tmp_path,
    )
    # WHEN that is waited for / THEN the bytes are there, every time
    assert done.said == [0]


def test_jitter_is_repeated_by_its_seed(tmp_path: Path) -> None:
    # GIVEN the same program with a spread of 30 %, twice with one seed and once with another
    text = """
s = stream()
for i in range(23): launch(1, s)
ok(rt.cudaStreamSynchronize(s))
"""
    lengths = []
    for turn, seed in enumerate(("5", "5", "6")):
        done = run(text, tmp_path / str(turn), SIMCUDA_JITTER="0.3", SIMCUDA_SEED=seed)
        ops = done.process.ops("kernel")
        lengths.append(list(ops["end_ns"] - ops["start_ns"]))
    # WHEN / THEN lengths are spread around the profile's 2 us, alike for one seed
    assert lengths[0] == lengths[1] != lengths[2]
    assert len(set(lengths[0])) > 15
    assert all(1400 <= length <= 2600 for length in lengths[0])
