"""What functions that the simulated device lacks are asked for, as their prototypes say it.

The functions print what they were given (tests/targets/cuda_prototypes.c), the compiler
put it where the ABI says; cctrace's table of symbols says where to look.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from bpf_here import require_bpf
from simcuda_build import ROOT, SOURCE, simcuda_library_dir

from cctrace.record.bpf.cuda.source import Cuda
from cctrace.record.bpf.cuda.symbols import PROBE_COST_SITE, api_name, symbol_table
from cctrace.record.bpf.layout import NO_COPY_KIND, CudaFlag
from cctrace.record.bpf.probes import Events, Probes, Rows
from cctrace.record.losses import LossLedger

TARGET: Final = ROOT / "tests" / "targets" / "cuda_prototypes.c"
TIMEOUT_S: Final = 60


class Watched(Cuda):
    """The source, keeping what the programs sent."""

    def __init__(self, ledger: LossLedger) -> None:
        super().__init__("full", ledger)
        self.events: list[Events] = []

    def decode(self, events: Events) -> Rows:
        # But for the calls by which the recorder measures what probes cost.
        self.events.append(events[events["what"] != PROBE_COST_SITE])
        return super().decode(events)


def compiled(folder: Path, name: str, *flags: str) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc: apt-get install gcc")
    simcuda_library_dir()  # skips where there are no headers
    script = ROOT / "scripts" / "cuda_include.py"
    include = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    headers = ["-isystem", include.stdout.strip(), "-isystem", str(SOURCE / "compat")]
    common = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]
    path = folder / name
    subprocess.run(
        [compiler, *common, *headers, *flags, str(TARGET), "-o", str(path), "-ldl"], check=True
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prototypes")


@pytest.fixture(scope="module")
def calls(folder: Path) -> Iterator[tuple[list[list[str]], Events]]:
    """What the functions printed, and what was recorded of them."""
    require_bpf()
    # The program keeps its symbols to itself: they are in .symtab alone.
    program = compiled(folder, "cuda_prototypes")
    library = compiled(
        folder, "libcudart.so.12", "-DCUDA12", "-shared", "-fPIC", "-Wl,-soname,libcudart.so.12"
    )
    ledger = LossLedger()
    cuda = Watched(ledger)
    probes = Probes([cuda], 16 << 20, ledger)
    probes.start()
    assert [error.message for _, error in probes.refused()] == []
    try:
        assert cuda.attach_library(program).label == "program"
        assert cuda.attach_library(library, "cudart").soname == "libcudart.so.12"
        with probes.spawning():
            process = subprocess.Popen(
                [str(program), str(library)], stdout=subprocess.PIPE, text=True
            )
        output, _ = process.communicate(timeout=TIMEOUT_S)
        probes.drain()
        probes.rows()
        assert process.returncode == 0
        assert not probes.warnings
        assert not ledger.by_reason()
        events = np.concatenate(cuda.events)
        yield [line.split() for line in output.splitlines()], events[np.argsort(events["ts_ns"])]
    finally:
        probes.detach()
        probes.close()


def test_every_call_is_there(calls: tuple[list[list[str]], Events]) -> None:
    """In the order they were made."""
    printed, events = calls
    symbols = symbol_table().symbols
    recorded = [symbols[int(site)].api for site in events["what"]]
    assert recorded == [api_name(line[0]).removeprefix("__") for line in printed]
    assert len(recorded) == 23 + 3


@pytest.mark.parametrize("column", ["size_bytes", "stream", "dst", "src", "detail"])
def test_each_argument_is_found(calls: tuple[list[list[str]], Events], column: str) -> None:
    """Where the prototype puts it."""
    printed, events = calls
    names = ("size_bytes", "stream", "dst", "src", "detail")
    flag = {
        "size_bytes": CudaFlag.HAS_SIZE,
        "stream": CudaFlag.HAS_STREAM,
        "dst": CudaFlag.HAS_ADDRESS,
        "src": CudaFlag.HAS_ADDRESS,
    }
    for line, event in zip(printed, events, strict=True):
        expected = None if line[1 + names.index(column)] == "-" else line[1 + names.index(column)]
        found: Any = int(event[column])
        if column == "detail":
            found = None if found == NO_COPY_KIND else found
        elif not event["flags"] & flag[column]:
            found = None
        assert found == (None if expected is None else int(expected)), line
