"""Run a short Python program on the simulated device, and read what it logged.

The program sees CUDA through ctypes: ``rt`` (runtime), ``cu`` (driver), ``nc`` (NCCL), and
the few helpers of PRELUDE. What it prints by ``say`` comes back as a list.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simcuda_build import SOURCE, simcuda_environment

sys.path.insert(0, str(SOURCE))

import truth

__all__ = ["profile_figures", "run", "truth"]  # truth: for those who read logs

TIMEOUT_S = 120

PRELUDE = """
import ctypes, json, os, sys, threading, time
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p, c_float
rt = ctypes.CDLL("libcudart.so.13")
cu = ctypes.CDLL("libcuda.so.1")
nc = ctypes.CDLL("libnccl.so.2")
H2H, H2D, D2H, D2D, ANY = range(5)

class Dim3(ctypes.Structure):
    _fields_ = [("x", c_uint), ("y", c_uint), ("z", c_uint)]

ONE = Dim3(1, 1, 1)
for name in ("cudaMemcpy", "cudaMemcpy_ptds"):
    getattr(rt, name).argtypes = [c_void_p, c_void_p, c_size_t, c_int]
for name in ("cudaMemcpyAsync", "cudaMemcpyAsync_ptsz"):
    getattr(rt, name).argtypes = [c_void_p, c_void_p, c_size_t, c_int, c_void_p]
for name in ("cudaLaunchKernel", "cudaLaunchKernel_ptsz"):
    getattr(rt, name).argtypes = [c_void_p, Dim3, Dim3, c_void_p, c_size_t, c_void_p]
for name in ("cudaStreamSynchronize", "cudaStreamQuery", "cudaStreamDestroy", "cudaFree",
             "cudaFreeHost", "cudaEventSynchronize", "cudaEventQuery", "cudaEventDestroy"):
    getattr(rt, name).argtypes = [c_void_p]
for name in ("cudaEventRecord", "cudaGraphLaunch"):
    getattr(rt, name).argtypes = [c_void_p, c_void_p]
rt.cudaStreamWaitEvent.argtypes = [c_void_p, c_void_p, c_uint]
rt.cudaMemset.argtypes = [c_void_p, c_int, c_size_t]
cu.simcuda_set_kernel_ns.argtypes = [c_void_p, c_uint64]

def ok(result):
    assert result == 0, result

def say(*values):
    print(json.dumps(values[0] if len(values) == 1 else values), flush=True)

def device(size):
    at = c_void_p(); ok(rt.cudaMalloc(byref(at), c_size_t(size))); return at.value

def pinned(size):
    at = c_void_p(); ok(rt.cudaHostAlloc(byref(at), c_size_t(size), 0)); return at.value

def managed(size):
    at = c_void_p(); ok(rt.cudaMallocManaged(byref(at), c_size_t(size), 1)); return at.value

def pageable(size):
    buffer = (ctypes.c_char * size)(); kept.append(buffer); return ctypes.addressof(buffer)

kept = []

def put(at, data):
    ctypes.memmove(at, data, len(data))

def get(at, size):
    return ctypes.string_at(at, size)

def stream(flags=1):
    at = c_void_p(); ok(rt.cudaStreamCreateWithFlags(byref(at), flags)); return at.value

def event(flags=0):
    at = c_void_p(); ok(rt.cudaEventCreateWithFlags(byref(at), flags)); return at.value

def launch(function, on=None, suffix=""):
    ok(getattr(rt, "cudaLaunchKernel" + suffix)(function, ONE, ONE, None, 0, on))

def kernel(function, dur_ns):
    ok(cu.simcuda_set_kernel_ns(function, dur_ns)); return function

def pattern(size, seed=1):
    return bytes((i * 31 + seed * 17) % 251 for i in range(size))
"""


@dataclass
class Done:
    """How a program ended, what it said, and what the simulator logged."""

    code: int
    said: list[Any]
    stderr: str
    processes: list[truth.Process] = field(default_factory=list)

    @property
    def process(self) -> truth.Process:
        """The log of the only process."""
        assert len(self.processes) == 1, [p.path.name for p in self.processes]
        return self.processes[0]


def run(
    text: str,
    tmp_path: Path,
    *,
    profile: str = "b300",
    check: bool = True,
    **environment: str,
) -> Done:
    """Run PRELUDE and a program.

    Args:
        text: The program.
        tmp_path: Where its log goes.
        profile: A profile's name or path.
        check: Fail the test, with the program's stderr, unless it ends with 0.
        environment: More of it.
    """
    logs = tmp_path / "truth"
    tmp_path.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + text],
        env={**simcuda_environment(logs, profile), **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return Done(done.returncode, said, done.stderr, truth.read(logs) if logs.is_dir() else [])


def profile_figures(profile: str) -> dict[str, float]:
    """The numbers of a profile as ``section.key``, read without the simulator's own code."""
    figures = {}
    section = ""
    for line in (SOURCE / "profiles" / f"{profile}.toml").read_text("utf-8").splitlines():
        text = line.split("#", 1)[0].strip()
        if text.startswith("["):
            section = text.strip("[]")
        elif "=" in text:
            key, value = (part.strip() for part in text.split("=", 1))
            if value[0].isdigit():
                figures[f"{section}.{key}"] = float(value.replace("_", ""))
    return figures
