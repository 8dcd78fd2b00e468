"""The simulated NCCL: ranks meet across threads and processes, and data is really reduced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from simcuda_build import simcuda_environment, simcuda_library_dir
from simcuda_run import PRELUDE, profile_figures, run, truth

BY_RANK = """
class Id(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]
nc.ncclCommInitRank.argtypes = [c_void_p, c_int, Id, c_int]
nc.ncclAllReduce.argtypes = [c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p]
nc.ncclAllGather.argtypes = [c_void_p, c_void_p, c_size_t, c_int, c_void_p, c_void_p]
nc.ncclReduceScatter.argtypes = nc.ncclAllReduce.argtypes
nc.ncclBroadcast.argtypes = [c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p]
nc.ncclReduce.argtypes = [c_void_p, c_void_p, c_size_t, c_int, c_int, c_int, c_void_p, c_void_p]
nc.ncclSend.argtypes = [c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p]
nc.ncclRecv.argtypes = nc.ncclSend.argtypes
import numpy as np
def up(array):
    at = device(array.nbytes)
    ok(rt.cudaMemcpy(at, array.ctypes.data, array.nbytes, H2D))
    return at
def down(at, like):
    into = np.empty_like(like)
    ok(rt.cudaMemcpy(into.ctypes.data, at, into.nbytes, D2H))
    return into
"""

WORKER = (
    PRELUDE
    + BY_RANK
    + """
rank, ranks = int(sys.argv[1]), int(sys.argv[2])
unique = Id()
ctypes.memmove(byref(unique), bytes.fromhex(sys.stdin.readline()), 128)
ok(rt.cudaSetDevice(rank))
comm, s = c_void_p(), stream()
ok(nc.ncclCommInitRank(byref(comm), ranks, unique, rank))
N = 400_009  # more than one piece of the exchange
mine = np.arange(N, dtype=np.float32) * (rank + 1)
a, b = up(mine), device(mine.nbytes)
said = {}
for turn in range(3):
    ok(nc.ncclAllReduce(a, b, N, 7, 0, comm, s))
ok(rt.cudaStreamSynchronize(s))
ramp = np.arange(N, dtype=np.float32)
said["sum"] = bool((down(b, mine) == ramp * sum(range(1, ranks + 1))).all())
ok(nc.ncclGroupStart())
ok(nc.ncclSend(a, N, 7, (rank + 1) % ranks, comm, s))
ok(nc.ncclRecv(b, N, 7, (rank - 1) % ranks, comm, s))
ok(nc.ncclGroupEnd()); ok(rt.cudaStreamSynchronize(s))
left = (rank - 1) % ranks
said["ring"] = bool((down(b, mine) == ramp * (left + 1)).all())
say(said)
sys.stdin.readline()
ok(nc.ncclCommDestroy(comm))
"""
)


def _workers(ranks: int, text: str, tmp_path: Path, profile: str) -> list[subprocess.Popen[str]]:
    """One process a rank, each told the id; they wait on their stdin before they end."""
    unique = run(
        BY_RANK + "u = Id(); ok(nc.ncclGetUniqueId(byref(u))); say(bytes(u).hex())", tmp_path
    ).said[0]
    workers = []
    for rank in range(ranks):
        worker = subprocess.Popen(
            [sys.executable, "-c", text, str(rank), str(ranks)],
            env=simcuda_environment(tmp_path / "ranks", profile),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin is not None
        worker.stdin.write(unique + "\n")
        worker.stdin.flush()
        workers.append(worker)
    return workers


def test_processes_reduce_and_pass_on_their_data(tmp_path: Path) -> None:
    # GIVEN three processes, one rank each / WHEN they all-reduce, then pass data around
    workers = _workers(3, WORKER, tmp_path, "b300-cc")
    answers = [worker.communicate("end\n", timeout=120) for worker in workers]
    # THEN each has the sum of all, and its neighbour's data
    assert [worker.returncode for worker in workers] == [0, 0, 0], answers
    assert [json.loads(out) for out, _ in answers] == [{"sum": True, "ring": True}] * 3
    # THEN a collective ends for all ranks at once, when the last was ready plus its time
    logs = truth.read(tmp_path / "ranks")
    reduces = [process.ops("collective")[:3] for process in logs]
    size = 400_009 * 4
    figures = profile_figures("b300-cc")
    dur_ns = int(figures["collective.latency_ns"]) + int(size / figures["collective.gb_per_s"])
    for turn in range(3):
        ready_ns = max(int(ops["start_ns"][turn]) for ops in reduces)
        assert {int(ops["end_ns"][turn]) for ops in reduces} == {ready_ns + dur_ns}
    # THEN every call is logged, with a driver launch inside
    for process in logs:
        calls = process.calls("ncclAllReduce")
        assert list(calls["size_bytes"]) == [size] * 3
        launches = process.calls("cuLaunchKernelEx")
        assert len(launches) == 4
        assert ((launches["depth"] == 1) & (launches["layer_depth"] == 0)).all()


ORPHAN = WORKER.split("N = 400_009", maxsplit=1)[0] + (
    """
d = device(64)
say(os.getpid())
if rank == 0: os.kill(os.getpid(), 9)
ok(nc.ncclAllReduce(d, d, 16, 7, 0, comm, s)); ok(rt.cudaStreamSynchronize(s))
error = c_int(); ok(nc.ncclCommGetAsyncError(comm, byref(error))); say(error.value)
"""
)


def test_a_rank_that_dies_does_not_hang_the_others(tmp_path: Path) -> None:
    # GIVEN two ranks, one of which is killed / WHEN the other waits for it
    first, second = _workers(2, ORPHAN, tmp_path, "b300")
    first.communicate(timeout=120)
    out, err = second.communicate(timeout=120)
    # THEN it goes on, with ncclRemoteError and a word about it
    assert out.split()[1:] == ["6"]
    assert "rank 0" in err
    assert "is gone" in err


# NumPy has no bfloat16: the upper half of a float32.
TYPES = {
    "int8": (0, np.int8),
    "uint8": (1, np.uint8),
    "int32": (2, np.int32),
    "int64": (4, np.int64),
    "float16": (6, np.float16),
    "float32": (7, np.float32),
    "float64": (8, np.float64),
}


def test_reductions_are_those_of_numpy(tmp_path: Path) -> None:
    # GIVEN three ranks in one process, one stream each, and random numbers of every type
    done = run(
        BY_RANK
        + f"""
R, N = 3, 1013
comms, streams = (c_void_p * R)(), []
ok(nc.ncclCommInitAll(comms, R, None))
for r in range(R): ok(rt.cudaSetDevice(r)); streams.append(stream())
rng = np.random.default_rng(20260623)
def all_reduce(code, arrays, op):
    ins, outs = [up(a) for a in arrays], [device(a.nbytes) for a in arrays]
    ok(nc.ncclGroupStart())
    for r in range(R):
        ok(nc.ncclAllReduce(ins[r], outs[r], N, code, op, comms[r], streams[r]))
    ok(nc.ncclGroupEnd())
    for s in streams: ok(rt.cudaStreamSynchronize(s))
    return [down(o, arrays[0]) for o in outs]
for name, code in {[(n, c) for n, (c, _) in TYPES.items()]!r}:
    kind = np.dtype(name)
    arrays = [rng.integers(0, 5, N).astype(kind) if kind.kind in "iu"
              else (rng.standard_normal(N) * 3).astype(kind) for _ in range(R)]
    with np.errstate(over="ignore"):
        wanted = dict(enumerate(((arrays[0] + arrays[1]).astype(kind) + arrays[2],
                                 (arrays[0] * arrays[1]).astype(kind) * arrays[2],
                                 np.maximum.reduce(arrays), np.minimum.reduce(arrays))))
    for op, want in wanted.items():
        say(name, op, [bool((got == want).all()) for got in all_reduce(code, arrays, op)])
floats = [(rng.standard_normal(N) * 3).astype(np.float32) for _ in range(R)]
halves = [(f.view(np.uint32) >> 16).astype(np.uint16) for f in floats]
wide = [(h.astype(np.uint32) << 16).view(np.float32) for h in halves]
def narrow(f):
    bits = f.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
step = (narrow(wide[0] + wide[1]).astype(np.uint32) << 16).view(np.float32)
say("bfloat16", 0, [bool((g == narrow(step + wide[2])).all()) for g in all_reduce(9, halves, 0)])
mean = [bool(np.allclose(g, sum(floats) / R, rtol=1e-6)) for g in all_reduce(7, floats, 4)]
say("mean", 4, mean)
""",
        tmp_path,
    )
    # WHEN / THEN sum, product, maximum and minimum agree to the bit, on every rank
    assert len(done.said) == len(TYPES) * 4 + 2
    assert [line for line in done.said if line[2] != [True] * 3] == []


def test_gather_scatter_broadcast_and_reduce(tmp_path: Path) -> None:
    # GIVEN three ranks in one process / WHEN they use the other collectives
    done = run(
        BY_RANK
        + """
R, N = 3, 270_001  # more than one piece
comms, streams = (c_void_p * R)(), []
ok(nc.ncclCommInitAll(comms, R, None))
for r in range(R): ok(rt.cudaSetDevice(r)); streams.append(stream())
parts = [np.arange(N, dtype=np.int32) + 10**6 * r for r in range(R)]
wholes = [np.arange(N * R, dtype=np.int32) * (r + 1) for r in range(R)]
def group(call):
    ok(nc.ncclGroupStart())
    for r in range(R): ok(call(r))
    ok(nc.ncclGroupEnd())
    for s in streams: ok(rt.cudaStreamSynchronize(s))
ins, outs = [up(p) for p in parts], [device(wholes[0].nbytes) for _ in range(R)]
group(lambda r: nc.ncclAllGather(ins[r], outs[r], N, 2, comms[r], streams[r]))
say([bool((down(o, wholes[0]) == np.concatenate(parts)).all()) for o in outs])
ins, outs = [up(w) for w in wholes], [device(parts[0].nbytes) for _ in range(R)]
group(lambda r: nc.ncclReduceScatter(ins[r], outs[r], N, 2, 0, comms[r], streams[r]))
total = sum(wholes)
say([bool((down(o, parts[0]) == total[r * N:(r + 1) * N]).all()) for r, o in enumerate(outs)])
ins = [up(p) for p in parts]
group(lambda r: nc.ncclBroadcast(ins[r], outs[r], N, 2, 1, comms[r], streams[r]))
say([bool((down(o, parts[0]) == parts[1]).all()) for o in outs])
group(lambda r: nc.ncclReduce(ins[r], outs[r], N, 2, 0, 2, comms[r], streams[r]))
say([bool((down(o, parts[0]) == (sum(parts) if r == 2 else parts[1])).all())
     for r, o in enumerate(outs)])
say(nc.ncclAllReduce(pageable(64), outs[0], 16, 2, 0, comms[0], streams[0]),
    nc.ncclAllReduce(ins[0], outs[0], 16, 77, 0, comms[0], streams[0]),
    nc.ncclAllReduce(ins[0], outs[0], 16, 2, 0, None, streams[0]), nc.ncclGroupEnd())
for c in comms: ok(nc.ncclCommDestroy(c_void_p(c)))
""",
        tmp_path,
    )
    # THEN every rank has what it should; wrong arguments are errors
    assert done.said == [[True] * 3] * 4 + [[4, 4, 4, 5]]


@pytest.mark.parametrize("name", ["libcudart.so.13", "libnccl.so.2"])
def test_without_a_driver_calls_fail_and_do_not_crash(name: str, tmp_path: Path) -> None:
    # GIVEN one library alone, with no libcuda.so.1 to be found
    (tmp_path / name).symlink_to(simcuda_library_dir() / name)
    call = "cudaGetDeviceCount(x)" if "cudart" in name else "ncclCommInitAll(x, 1, None)"
    # WHEN a function is called
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import ctypes; x = (ctypes.c_long * 2)(); print(ctypes.CDLL({name!r}).{call})",
        ],
        env={**simcuda_environment(), "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    # THEN it says so: insufficient driver, as NVIDIA's; NCCL's system error
    assert done.stdout.strip() == ("35" if "cudart" in name else "2")
