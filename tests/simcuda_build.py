"""The simulated CUDA device, built for tests.

One build serves all tests and all runs: it lies under ``.cache/`` by the hash of what it
is made of, and is made anew when any of that changes.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "examples" / "simcuda"
CACHE = ROOT / ".cache"
LIBRARIES = ("libcuda.so.1", "libcudart.so.13", "libnccl.so.2")
BUILD_TIMEOUT_S = 300


def _cuda_include() -> str:
    """The directory with cuda.h; skips the test where there is none."""
    given = os.environ.get("CUDA_INCLUDE")
    if given:
        return given
    script = ROOT / "scripts" / "cuda_include.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no CUDA headers for the simulated device: {done.stderr.strip()}")
    return done.stdout.strip()


def _fingerprint(cuda_include: str) -> str:
    digest = hashlib.sha256(f"{cuda_include}\0{os.environ.get('CC')}".encode())
    digest.update((Path(cuda_include) / "cuda.h").read_bytes()[:200_000])
    for path in sorted(SOURCE.rglob("*")):
        relative = path.relative_to(SOURCE)
        is_source = path.suffix in {".c", ".h", ".map", ".toml"} or path.name == "Makefile"
        if relative.parts[0] != "build" and is_source and path.is_file():
            digest.update(f"{relative}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def simcuda_library_dir() -> Path:
    """Return the directory with the three libraries and ``profiles/``, built if need be.

    Skips the calling test, saying why, without a C compiler, make, or the CUDA headers.

    Raises:
        AssertionError: The build fails; make's output is in the message.
    """
    for tool in ("gcc", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} for the simulated device: apt-get install {tool}")
    cuda_include = _cuda_include()
    directory = CACHE / f"simcuda-{_fingerprint(cuda_include)}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "simcuda.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [
                *("make", "-s", "-j2", "-C", SOURCE),
                *(f"BUILD={directory}", f"CUDA_INCLUDE={cuda_include}"),
            ],
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, f"make -C {SOURCE} failed:\n{done.stdout}{done.stderr}"
    assert all((directory / name).is_file() for name in LIBRARIES)
    return directory


def simcuda_environment(truth: Path | None = None, profile: str = "b300") -> dict[str, str]:
    """The environment of a program that is to run on the simulated device.

    Args:
        truth: Where the simulator's log goes; None: nowhere.
        profile: A profile's name or path.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIMCUDA_")}
    environment["LD_LIBRARY_PATH"] = str(simcuda_library_dir())
    environment["SIMCUDA_PROFILE"] = profile
    if truth is not None:
        environment["SIMCUDA_TRUTH"] = str(truth)
    return environment
