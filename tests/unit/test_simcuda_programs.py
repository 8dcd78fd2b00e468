"""The simulated device under whole programs: threads, forks, graphs, host functions, ends."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import numpy as np
from simcuda_run import run, truth


def test_threads_have_their_streams_and_their_records(tmp_path: Path) -> None:
    # GIVEN seven threads that each launch and copy on their own default stream
    done = run(
        """
ok(rt.cudaSetDevice(0))
N, kernels = 257, 31
def work(i):
    d, h, back = device(N), pinned(N), pinned(N)
    put(h, pattern(N, i))
    for _ in range(kernels): launch(1, None, "_ptsz")
    ok(rt.cudaMemcpyAsync_ptsz(d, h, N, H2D, None))
    ok(rt.cudaMemcpyAsync_ptsz(back, d, N, D2H, None))
    ok(rt.cudaStreamSynchronize_ptsz(None))
    results.append((threading.get_native_id(), get(back, N) == pattern(N, i)))
results = []
threads = [threading.Thread(target=work, args=(i,)) for i in range(7)]
for t in threads: t.start()
for t in threads: t.join()
say(results)
""",
        tmp_path,
    )
    # WHEN / THEN their bytes are their own, and the log has every call under its thread
    process = done.process
    assert [good for _, good in done.said[0]] == [True] * 7
    tids = {tid for tid, _ in done.said[0]}
    assert Counter(process.calls("cudaLaunchKernel_ptsz")["tid"].tolist()) == dict.fromkeys(
        tids, 31
    )
    assert Counter(process.calls("cuLaunchKernel_ptsz")["tid"].tolist()) == dict.fromkeys(tids, 31)
    streams = process.ops("kernel")["stream"]
    assert Counter(Counter(streams.tolist()).values()) == {31: 7}
    assert process.dropped == 0


def test_calls_are_nested_as_their_depths_say(tmp_path: Path) -> None:
    # GIVEN runtime calls, each with a driver call inside
    done = run("s = stream()\nfor i in range(5): launch(1, s)", tmp_path)
    outer = done.process.calls("cudaLaunchKernel")
    inner = done.process.calls("cuLaunchKernel")
    # WHEN / THEN times enclose, depths count
    assert len(outer) == len(inner) == 5
    assert (outer["entry_ns"] <= inner["entry_ns"]).all()
    assert (inner["exit_ns"] <= outer["exit_ns"]).all()
    assert set(outer["depth"]) == {0}
    assert set(inner["depth"]) == {1}
    assert set(inner["layer_depth"]) == {0}


def test_a_forked_child_of_a_cuda_process_gets_an_error_and_a_log_of_its_own(
    tmp_path: Path,
) -> None:
    # GIVEN a process that forks after its first CUDA call
    done = run(
        """
d = device(64)
child = os.fork()
if child == 0:
    at = c_void_p()
    say("child", rt.cudaMalloc(byref(at), c_size_t(64)), rt.cudaMemcpy(d, d, 8, D2D), os.getpid())
    os._exit(0)
os.waitpid(child, 0)
ok(rt.cudaMemset(d, 1, 64)); say("parent", os.getpid())
""",
        tmp_path,
    )
    # WHEN the child calls CUDA / THEN it gets 3, initialization error, as from NVIDIA's
    (_, *child), (_, parent_pid) = done.said
    assert child[:2] == [3, 3]
    # THEN each has its own calls in its own file
    parent, forked = done.processes
    assert (parent.pid, forked.pid, forked.ppid) == (parent_pid, child[2], parent_pid)
    assert list(forked.calls("cudaMalloc")["result"]) == [3]
    assert len(parent.calls("cudaMalloc")) == 1
    assert len(parent.calls("cudaMemset")) == 1


def test_children_forked_before_the_first_call_have_devices(tmp_path: Path) -> None:
    # GIVEN a parent that has loaded the libraries but called nothing
    done = run(
        """
for i in range(3):
    if os.fork() == 0:
        ok(rt.cudaSetDevice(i)); d, h = device(64), pinned(64)
        put(h, b"x" * 64); ok(rt.cudaMemcpy(d, h, 64, H2D))
        os._exit(0)
for i in range(3): assert os.wait()[1] == 0
""",
        tmp_path,
    )
    # WHEN / THEN all three work, and _exit loses nothing
    assert [len(p.calls("cudaMemcpy")) for p in done.processes] == [1, 1, 1]
    assert sorted(int(p.ops("copy")["device"][0]) for p in done.processes) == [0, 1, 2]


def test_a_killed_process_leaves_its_finished_calls(tmp_path: Path) -> None:
    # GIVEN a process that is killed by the kernel between two calls
    done = run(
        "s = stream()\nfor i in range(997): launch(1, s)\nos.kill(os.getpid(), 9)",
        tmp_path,
        check=False,
    )
    # WHEN / THEN nothing that had returned is missing
    assert done.code == -signal.SIGKILL
    assert len(done.process.calls("cudaLaunchKernel")) == 997
    assert len(done.process.ops("kernel")) == 997


GRAPH = """
s, other = stream(), stream()
d, h, back = device(256), pinned(256), pinned(256)
for i in range(1, 8): kernel(i, i * 10_000)
graph, run = c_void_p(), c_void_p()
ok(rt.cudaStreamBeginCapture(c_void_p(s), 0))
ok(rt.cudaMemcpyAsync(d, h, 256, H2D, s))
for i in range(1, 5): launch(i, s)
fork, join = event(2), event(2)
ok(rt.cudaEventRecord(fork, s)); ok(rt.cudaStreamWaitEvent(other, fork, 0))
for i in range(5, 8): launch(i, other)
ok(rt.cudaEventRecord(join, other)); ok(rt.cudaStreamWaitEvent(s, join, 0))
ok(rt.cudaMemcpyAsync(back, d, 256, D2H, s))
status = c_int(); ok(rt.cudaStreamIsCapturing(c_void_p(other), byref(status))); say(status.value)
ok(rt.cudaStreamEndCapture(c_void_p(s), byref(graph)))
ok(rt.cudaStreamIsCapturing(c_void_p(other), byref(status))); say(status.value)
count = c_size_t(); ok(rt.cudaGraphGetNodes(graph, None, byref(count))); say(count.value)
ok(rt.cudaGraphInstantiate(byref(run), graph, c_ulonglong(0))); ok(rt.cudaGraphDestroy(graph))
for turn in range(3):
    put(h, pattern(256, turn)); ctypes.memset(back, 0, 256)
    ok(rt.cudaGraphLaunch(run, s)); ok(rt.cudaStreamSynchronize(s))
    say(get(back, 256) == pattern(256, turn))
ok(rt.cudaGraphExecDestroy(run)); say(rt.cudaGraphExecDestroy(run))
"""


def test_a_captured_graph_is_replayed_as_one(tmp_path: Path) -> None:
    # GIVEN a capture of two streams: copies and seven kernels / WHEN it is launched thrice
    done = run(GRAPH, tmp_path)
    # THEN each replay copies what is there then
    assert done.said == [1, 0, 9, True, True, True, 1]
    # THEN the device ran graphs and no single kernels, each the sum of its nodes
    process = done.process
    assert len(process.ops("kernel", "copy")) == 0
    graphs = process.ops("graph")
    lengths = graphs["end_ns"] - graphs["start_ns"]
    assert len(set(lengths)) == 1
    copies_ns = 2 * (2050 + int(256 / 55.7))
    assert lengths[0] == sum(range(1, 8)) * 10_000 + copies_ns
    assert list(graphs["size_bytes"]) == [512] * 3


def test_what_may_not_be_captured_ends_the_capture(tmp_path: Path) -> None:
    # GIVEN a stream that is captured / WHEN it is waited for
    done = run(
        """
s, graph = stream(), c_void_p()
ok(rt.cudaStreamBeginCapture(c_void_p(s), 0)); launch(1, s)
say(rt.cudaStreamSynchronize(s), rt.cudaLaunchKernel(1, ONE, ONE, None, 0, s))
say(rt.cudaStreamEndCapture(c_void_p(s), byref(graph)), graph.value)
say(rt.cudaStreamEndCapture(c_void_p(s), byref(graph)), rt.cudaStreamBeginCapture(None, 0))
launch(1, s); say(rt.cudaStreamSynchronize(s))
""",
        tmp_path,
    )
    # THEN CUDA's errors: unsupported, invalidated; illegal without one; then it works again
    assert done.said == [[900, 901], [901, None], [401, 900], 0]


def test_host_functions_run_in_stream_order(tmp_path: Path) -> None:
    # GIVEN host functions between kernels and a copy, one of which takes a while
    done = run(
        """
order, gate = [], threading.Event()
@ctypes.CFUNCTYPE(None, c_void_p)
def note(data):
    if data == 2: gate.wait()
    order.append((data, get(back, 1)[0], rt.cudaStreamQuery(None)))
s, d, h, back = stream(), device(64), pinned(64), pinned(64)
put(h, b"\\7"); ctypes.memset(back, 0, 64)
launch(kernel(1, 3_000_000), s)
ok(rt.cudaLaunchHostFunc(c_void_p(s), note, c_void_p(1)))
ok(rt.cudaMemcpyAsync(d, h, 64, H2D, s)); ok(rt.cudaMemcpyAsync(back, d, 64, D2H, s))
ok(rt.cudaLaunchHostFunc(c_void_p(s), note, c_void_p(2)))
launch(kernel(2, 1_000_000), s)
say(rt.cudaStreamQuery(s)); gate.set()
ok(rt.cudaStreamSynchronize(s)); say(order)
""",
        tmp_path,
    )
    # WHEN / THEN each ran after what was before it; CUDA calls inside are not permitted (800)
    assert done.said == [600, [[1, 0, 800], [2, 7, 800]]]
    ops = done.process.ops("kernel", "copy", "host_func")
    assert [truth.OPS[int(op)] for op in ops["op"]] == [
        *("kernel", "host_func", "copy", "copy", "host_func", "kernel"),
    ]
    assert (ops["start_ns"][1:] >= ops["end_ns"][:-1]).all()


def test_a_stream_waits_for_a_value_in_memory(tmp_path: Path) -> None:
    # GIVEN a stream that waits until a word is 5 or more, and a kernel behind
    done = run(
        """
s, h = stream(), pinned(64); ctypes.memset(h, 0, 64)
ok(cu.cuStreamWaitValue32_v2(c_void_p(s), c_void_p(h), 5, 0)); launch(1, s)
say(rt.cudaStreamQuery(s))
ctypes.cast(h, ctypes.POINTER(c_uint))[0] = 6
ok(rt.cudaStreamSynchronize(s))
""",
        tmp_path,
    )
    # WHEN / THEN the kernel runs after the word is written
    assert done.said == [600]
    (wait,), (kernel,) = done.process.ops("wait"), done.process.ops("kernel")
    assert kernel["start_ns"] >= wait["end_ns"]


def test_memory_freed_on_a_stream_lasts_until_the_stream_gets_there(tmp_path: Path) -> None:
    # GIVEN memory that is allocated, used and freed in stream order behind a kernel
    done = run(
        """
s, at, h = stream(), c_void_p(), pinned(8192)
launch(kernel(1, 5_000_000), s)
ok(rt.cudaMallocAsync(byref(at), c_size_t(8192), c_void_p(s)))
ok(rt.cudaMemcpyAsync(at, h, 8192, H2D, s))
ok(rt.cudaFreeAsync(at, c_void_p(s)))
say(rt.cudaFreeAsync(at, c_void_p(s)), rt.cudaFree(at))
free, total = c_size_t(), c_size_t()
ok(rt.cudaStreamSynchronize(s)); ok(rt.cudaMemGetInfo(byref(free), byref(total)))
say(total.value - free.value)
""",
        tmp_path,
    )
    # WHEN / THEN it cannot be freed twice, and is given back at the end
    assert done.said == [[1, 1], 0]
    assert len(done.process.ops("copy")) == 1


def test_the_log_names_more_calls_than_one_chunk_holds(tmp_path: Path) -> None:
    # GIVEN more calls than fit into many chunks and growths of the file
    done = run(
        "v = c_int()\nfor i in range(50_021): cu.cuDriverGetVersion(byref(v))\nsay(v.value)",
        tmp_path,
    )
    calls = done.process.calls("cuDriverGetVersion")
    # WHEN / THEN all are there, in order, each with a number of its own
    assert len(calls) == 50_021
    assert done.said[0] >= 13_000
    assert len(np.unique(calls["correlation_id"])) == 50_021
    assert (np.diff(calls["entry_ns"].astype(np.int64)) >= 0).all()
