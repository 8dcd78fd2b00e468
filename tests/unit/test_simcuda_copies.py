"""The simulated device really copies, refuses what makes no sense, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from simcuda_build import SOURCE
from simcuda_run import run, truth

SIZE = 70_001  # no multiple of anything; larger than a page and than a heap block

ROUND_TRIPS = f"""
N = {SIZE}
want = pattern(N)
for host in (pinned, pageable, managed):
    a, b, d, e = host(N), host(N), device(N), device(N)
    s = stream()
    put(a, want)
    ok(rt.cudaMemcpyAsync(d, a, N, H2D, s)); ok(rt.cudaMemcpyAsync(e, d, N, D2D, s))
    ok(rt.cudaMemcpyAsync(b, e, N, D2H, s)); ok(rt.cudaStreamSynchronize(s))
    say(get(b, N) == want)
    ctypes.memset(b, 0, N)
    ok(rt.cudaMemcpy(d, a, N, ANY)); ok(rt.cudaMemcpy_ptds(b, d, N, ANY))
    say(get(b, N) == want)
    ctypes.memset(b, 0, N)
    ok(rt.cudaMemcpy(b, a, N, H2H))
    say(get(b, N) == want)
"""


@pytest.mark.parametrize("profile", ["b300", "b300-cc"])
def test_bytes_come_back_over_every_kind_of_memory(tmp_path: Path, profile: str) -> None:
    # GIVEN host memory of each kind / WHEN it goes to the device, across, and back
    done = run(ROUND_TRIPS, tmp_path, profile=profile)
    # THEN every byte is there, and the log says what was copied over what
    assert done.said == [True] * 9
    calls = done.process.calls("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2")
    kinds = [(truth.COPY_KINDS[c["copy_kind"]], truth.HOST_MEMORY[c["host_memory"]]) for c in calls]
    memories = ("pinned", "pageable", "managed")
    assert kinds == [(kind, memory) for memory in memories for kind in ("h2d", "d2h")]
    assert set(calls["size_bytes"]) == {SIZE}


def test_a_pageable_source_may_change_once_the_call_is_back(tmp_path: Path) -> None:
    # GIVEN a stream that is busy, so that the copy runs later
    done = run(
        """
s, d, a = stream(), device(4096), pageable(4096)
launch(kernel(1, 30_000_000), s)
put(a, b"first" + bytes(4091))
ok(rt.cudaMemcpyAsync(d, a, 4096, H2D, s))
put(a, b"later" + bytes(4091))
say(rt.cudaStreamQuery(s))
ok(rt.cudaStreamSynchronize(s))
b = pageable(4096); ok(rt.cudaMemcpy(b, d, 4096, D2H)); say(get(b, 5).decode())
""",
        tmp_path,
    )
    # WHEN / THEN the copy was queued (600: not ready) and took what was there at the call
    assert done.said == [600, "first"]


BOXES = """
import itertools
W, H, P, Q = 37, 11, 64, 512
host, back, d = pageable(P * H), pageable(P * H), device(Q * H)
put(host, pattern(P * H))
s = stream()
for sync in (True, False):
    ctypes.memset(back, 0, P * H); ok(rt.cudaMemset(d, 0, Q * H))
    if sync:
        f = rt.cudaMemcpy2D; f.argtypes = [c_void_p, c_size_t] * 2 + [c_size_t] * 2 + [c_int]
        ok(f(d, Q, host, P, W, H, H2D)); ok(f(back, P, d, Q, W, H, D2H))
    else:
        f = rt.cudaMemcpy2DAsync_ptsz
        f.argtypes = [c_void_p, c_size_t] * 2 + [c_size_t] * 2 + [c_int, c_void_p]
        ok(f(d, Q, host, P, W, H, H2D, s)); ok(f(back, P, d, Q, W, H, D2H, s))
        ok(rt.cudaStreamSynchronize(s))
    rows = [get(back + P * y, P) for y in range(H)]
    want = [get(host + P * y, W) + bytes(P - W) for y in range(H)]
    say(rows == want)

class Pitched(ctypes.Structure):
    _fields_ = [("ptr", c_void_p), ("pitch", c_size_t), ("xsize", c_size_t), ("ysize", c_size_t)]
class Three(ctypes.Structure):
    _fields_ = [(n, c_size_t) for n in "xyz"]
class Boxes(ctypes.Structure):
    _fields_ = [("srcArray", c_void_p), ("srcPos", Three), ("srcPtr", Pitched),
                ("dstArray", c_void_p), ("dstPos", Three), ("dstPtr", Pitched),
                ("extent", Three), ("kind", c_int)]
D = 3
host, back, d = pageable(P * H * D), pageable(P * H * D), device(Q * H * D)
put(host, pattern(P * H * D))
small = Three(W - 5, H - 2, D - 1)
there = Boxes(None, Three(5, 2, 1), Pitched(host, P, W, H), None, Three(), Pitched(d, Q, W, H),
              small, H2D)
ok(rt.cudaMemcpy3D(byref(there)))
here = Boxes(None, Three(), Pitched(d, Q, W, H), None, Three(5, 2, 1), Pitched(back, P, W, H),
             small, D2H)
ok(rt.cudaMemcpy3DAsync(byref(here), c_void_p(s))); ok(rt.cudaStreamSynchronize(s))
def inside(x, y, z):
    return 5 <= x < W and 2 <= y < H and 1 <= z < D
source, got = get(host, P * H * D), get(back, P * H * D)
want = bytes(source[(z * H + y) * P + x] if inside(x, y, z) else 0
             for z in range(D) for y in range(H) for x in range(P))
say(got == want)
"""


def test_rectangles_and_boxes_go_where_they_should(tmp_path: Path) -> None:
    # GIVEN pitched copies both ways, with pitches and offsets that differ / WHEN / THEN
    done = run(BOXES, tmp_path)
    assert done.said == [True, True, True]
    sizes = done.process.calls("cudaMemcpy2D", "cudaMemcpy2DAsync_ptsz")["size_bytes"]
    assert set(sizes) == {37 * 11}


def test_batches_symbols_peers_and_sets(tmp_path: Path) -> None:
    # GIVEN the less common ways to move bytes / WHEN each is used / THEN the bytes are there
    done = run(
        """
N = 1009
s = stream()
hosts = [pinned(N) for _ in range(3)]; devices = [device(N) for _ in range(3)]
for i, h in enumerate(hosts): put(h, pattern(N, i))
A, Z = c_void_p * 3, c_size_t * 3
ok(rt.cudaMemcpyBatchAsync(A(*devices), A(*hosts), Z(N, N, N), c_size_t(3), None, None,
                           c_size_t(0), c_void_p(s)))
fail = c_size_t(7)
backs = [pinned(N) for _ in range(3)]
ok(cu.cuMemcpyBatchAsync(A(*backs), A(*devices), Z(N, N, N), c_size_t(3), None, None,
                         c_size_t(0), byref(fail), c_void_p(s)))
ok(rt.cudaStreamSynchronize(s))
say([get(b, N) == pattern(N, i) for i, b in enumerate(backs)])
symbol = pageable(8)
rt.__getattr__("__cudaRegisterVar")(None, c_void_p(symbol), None, b"x", 0, c_size_t(N), 0, 0)
ok(rt.cudaMemcpyToSymbol(c_void_p(symbol), c_void_p(hosts[1]), c_size_t(N), c_size_t(0), H2D))
ctypes.memset(backs[0], 0, N)
ok(rt.cudaMemcpyFromSymbol(c_void_p(backs[0]), c_void_p(symbol), c_size_t(N - 9), c_size_t(9), D2H))
say(get(backs[0], N - 9) == pattern(N, 1)[9:])
say(rt.cudaMemcpyToSymbol(c_void_p(hosts[1]), c_void_p(hosts[1]), c_size_t(1), c_size_t(0), H2D))
ok(rt.cudaSetDevice(1)); far = device(N)
ok(rt.cudaMemcpyPeer(c_void_p(far), 1, c_void_p(devices[2]), 0, c_size_t(N)))
ok(rt.cudaMemcpy(backs[1], far, N, D2H)); say(get(backs[1], N) == pattern(N, 2))
ok(rt.cudaSetDevice(0))
ok(cu.cuMemsetD16_v2(c_void_p(devices[0]), 0x1234, c_size_t(500)))
ok(cu.cuMemsetD32_v2_ptds(c_void_p(devices[0] + 4), 0x89abcdef, c_size_t(1)))
ok(rt.cudaMemcpy(backs[2], devices[0], 10, D2H)); say(get(backs[2], 10).hex())
""",
        tmp_path,
    )
    assert done.said == [[True] * 3, True, 13, True, "34123412efcdab893412"]
    assert [truth.COPY_KINDS[c["copy_kind"]] for c in done.process.calls("cuMemcpyPeer")] == ["p2p"]


def test_what_makes_no_sense_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    # GIVEN handles and sizes that are wrong in every way a program gets them wrong
    done = run(
        """
d, h, s = device(1024), pinned(1024), stream()
bad = 0x123450
say("free twice", rt.cudaFree(d), rt.cudaFree(d))
say("free what is not", rt.cudaFree(h), rt.cudaFreeHost(bad), rt.cudaFree(None))
d = device(1024)
say("beyond the end", rt.cudaMemcpy(d, h, 1025, H2D), rt.cudaMemcpy(d + 1000, h, 25, H2D))
say("no device side", rt.cudaMemcpy(h, h, 8, H2D), rt.cudaMemcpy(h, h, 8, D2D))
say("kind", rt.cudaMemcpy(d, h, 8, 9))
say("null", rt.cudaMemcpy(d, None, 8, H2D), rt.cudaMemcpy(d, h, 0, H2D))
say("stream", rt.cudaStreamSynchronize(bad), rt.cudaMemcpyAsync(d, h, 8, H2D, bad))
say("stream gone", rt.cudaStreamDestroy(s), rt.cudaStreamDestroy(s), rt.cudaStreamSynchronize(s))
say("event", rt.cudaEventRecord(bad, None), rt.cudaEventSynchronize(bad), rt.cudaEventQuery(d))
say("graph", rt.cudaGraphLaunch(bad, None))
say("kernel", rt.cudaLaunchKernel(None, ONE, ONE, None, 0, None),
    rt.cudaLaunchKernel(1, Dim3(0, 1, 1), ONE, None, 0, None))
say("last", rt.cudaGetLastError(), rt.cudaGetLastError())
say("device", rt.cudaSetDevice(8), rt.cudaSetDevice(-1))
at = c_void_p()
say("memory", rt.cudaMalloc(byref(at), c_size_t(1 << 50)))
free, total = c_size_t(), c_size_t(); ok(rt.cudaMemGetInfo(byref(free), byref(total)))
say("left", total.value - free.value)
""",
        tmp_path,
    )
    # WHEN / THEN each gives CUDA's own error
    said = {line[0]: line[1:] for line in done.said}
    assert said == {
        "free twice": [0, 1],
        "free what is not": [1, 1, 0],
        "beyond the end": [1, 1],
        "no device side": [1, 1],
        "kind": [21],
        "null": [1, 0],
        "stream": [400, 400],
        "stream gone": [0, 400, 400],
        "event": [400, 400, 400],
        "graph": [400],
        "kernel": [98, 1],
        "last": [1, 0],
        "device": [101, 101],
        "memory": [2],
        "left": [1024],
    }
    # THEN the log has the results
    assert list(done.process.calls("cudaFree")["result"]) == [0, 1, 1, 0]


def test_registering_is_refused_under_confidential_computing(tmp_path: Path) -> None:
    # GIVEN memory of the program's own / WHEN it is registered and a pinned pointer is asked about
    text = """
a = pageable(1 << 16)
say(rt.cudaHostRegister(c_void_p(a), c_size_t(1 << 16), 0), rt.cudaGetLastError())
class Attributes(ctypes.Structure):
    _fields_ = [("type", c_int), ("device", c_int), ("dev", c_void_p), ("host", c_void_p),
                ("reserved", ctypes.c_long * 8)]
for p in (pinned(64), device(64), managed(64), pageable(64)):
    x = Attributes(); ok(rt.cudaPointerGetAttributes(byref(x), c_void_p(p))); say(x.type)
"""
    plain = run(text, tmp_path / "plain", profile="h200")
    confidential = run(text, tmp_path / "cc", profile="h200-cc")
    # THEN it is not supported there, and pinned memory (1) says that it is managed (3)
    assert plain.said == [[0, 0], 1, 2, 3, 0]
    assert confidential.said == [[801, 801], 3, 2, 3, 0]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("host_ns = 7400", "host_nano = 7400"), "key missing: launch.host_ns"),
        (("kernel_ns = 2000", 'kernel_ns = "2000"'), ": not a number or bool: launch.kernel_ns"),
        (("at_once = 2", "at_once = 2\nat_twice = 3"), "unknown key: copy.at_twice"),
        (('mode = "async"', 'mode = "lazy"'), ": no such mode: lazy"),
        (("[launch]", "[launch"), ":16: not a section: [launch"),
        (("gb_per_s = 55.7", "gb_per_s = 0"), ": not a number in range: 0"),
    ],
)
def test_a_wrong_profile_is_told_with_its_line(
    tmp_path: Path, change: tuple[str, str], wanted: str
) -> None:
    # GIVEN a profile with one mistake
    text = (SOURCE / "profiles" / "b300.toml").read_text("utf-8")
    assert change[0] in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(*change, 1), "utf-8")
    # WHEN CUDA is initialised with it
    done = run(
        "n = c_int(); say(rt.cudaGetDeviceCount(byref(n)), n.value)", tmp_path, profile=str(path)
    )
    # THEN it fails (802: system not ready) and says where and what to do
    assert done.said == [[802, 0]]
    assert f"simcuda: {path}" in done.stderr
    assert wanted in done.stderr
    assert "hint: " in done.stderr


def test_a_profile_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = run("say(cu.cuInit(0))", tmp_path, profile="b301")
    assert done.said == [802]
    assert "cannot read the profile" in done.stderr
