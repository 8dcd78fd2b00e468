"""The agent under ThreadSanitizer, and AddressSanitizer with UBSan.

Agent and target are both compiled with the sanitizer; a report makes the target
fail. Forks from several threads run under UBSan alone: ThreadSanitizer does not
follow threads made after one, and AddressSanitizer before GCC 14 may copy its
allocator's lock as another thread holds it, so that the child waits for ever.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import agent_harness as harness
import pytest
from agent_harness import Geometry, Recorder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent is for Linux")

AGENT = harness.ROOT / "probes" / "agent"
MODES = [
    ("nvtx_workload", "mixed"),
    ("nvtx_workload", "kinds"),
    ("nvtx_workload", "odd"),
    ("nvtx_workload", "interleaved"),
    ("nvtx_workload", "deep", "61", "5003"),
    ("nvtx_workload", "threads"),
    ("nvtx_workload", "race"),
    ("nvtx_workload", "signals"),
    ("nvtx_workload", "many", "20011"),
    ("nvtx_processes", "fork"),
]
CASES = [(sanitizers, mode) for sanitizers in ("thread", "address,undefined") for mode in MODES]
CASES.append(("undefined", ("nvtx_processes", "fork_threads")))


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a directory with agent and targets built with sanitizers, once for each."""
    return functools.cache(lambda sanitizers: _build(sanitizers, tmp_path_factory))


def _build(sanitizers: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    flag = f"-fsanitize={sanitizers}"
    directory = tmp_path_factory.mktemp(sanitizers.split(",", maxsplit=1)[0])
    probe = directory / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    try:
        subprocess.run([harness.compile_c(probe, directory / "probe", flag)], check=True)
    except subprocess.CalledProcessError:
        pytest.skip(f"no {flag} with this compiler or kernel")
    flags = [flag, "-fno-sanitize-recover=all", "-ldl", "-lpthread"]
    sources = [str(path) for path in AGENT.glob("*.c") if path.name != "emit.c"]
    shared = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,nodelete"]
    harness.compile_c(
        Path(sources[0]), directory / "libcctrace_agent.so", *sources[1:], *shared, *flags
    )
    for name in ("nvtx_workload", "nvtx_processes"):
        harness.compile_c(harness.TARGETS / f"{name}.c", directory / name, *flags)
    return directory


@pytest.mark.parametrize(
    ("sanitizers", "mode"),
    CASES,
    ids=[f"{sanitizers}-{' '.join(mode)}" for sanitizers, mode in CASES],
)
def test_sanitizer_finds_nothing(
    build: Callable[[str], Path], tmp_path: Path, sanitizers: str, mode: tuple[str, ...]
) -> None:
    sanitized = build(sanitizers)
    name, *arguments = mode
    with Recorder(Geometry(dict_bytes=1 << 22)) as recorder:
        done = subprocess.run(
            [sanitized / name, arguments[0], tmp_path, *arguments[1:]],
            env=recorder.environment(NVTX_INJECTION64_PATH=str(sanitized / "libcctrace_agent.so")),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert recorder.images[0].slots()
