"""Runs in the guest: record the calls of the stand-in module and print them as JSON.

    standin_record.py MODULE.ko

Two recordings: with all that kprobes give, and with what is left where the kernel has
no kprobes for the bounce buffers and hides the usual functions of nvidia-uvm.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cctrace.record.bpf.ioctl import Ioctl
from cctrace.record.bpf.kprobes import KernelFunctions, Kprobes
from cctrace.record.bpf.page_conversion import PageConversion
from cctrace.record.bpf.probes import Family, Probes
from cctrace.record.bpf.swiotlb import Swiotlb
from cctrace.record.bpf.tdx import Tdx
from cctrace.record.bpf.uvm_crypto import UvmCrypto
from cctrace.record.losses import LossLedger

RUN = Path("/sys/module/cctrace_standin/parameters/run")
READS, READ_BYTES = 11, 4096  # a page: one segment, wherever memory is
# NVOS54_PARAMETERS as far as its command: client, object, NVC56F_CTRL_CMD_GET_KMB
KEYS = (ctypes.c_uint32 * 3)(1, 2, 0xC56F010B)


def record(families: Sequence[Family], ledger: LossLedger, calls: Sequence[str]) -> dict[str, Any]:
    """Record what the module does for each of ``calls``, or reading for ``read``."""
    probes = Probes(families, 4 << 20, ledger)
    probes.start()
    probes.trace([os.getpid()])
    found: dict[str, list[pa.Table]] = {}
    for call in calls:
        if call == "read":
            read_directly()
        else:
            RUN.write_text(call)
    detail = {family.name: family.detail() for family in probes.attached()}
    probes.detach()
    probes.drain()
    for name, table in [*probes.rows(), *probes.finish()]:
        found.setdefault(name, []).append(table)
    probes.close()
    return {
        "rows": {name: pa.concat_tables(tables).to_pylist() for name, tables in found.items()},
        "detail": detail,
        "refused": {family.name: str(error) for family, error in probes.refused()},
        "losses": ledger.by_reason(),
        "warnings": probes.warnings,
    }


def read_directly() -> None:
    """Read from a disk behind the bounce buffers, past the page cache."""
    disk = next(
        block.name
        for block in Path("/sys/block").iterdir()
        if (block / "serial").exists() and (block / "serial").read_text().strip() == "data0"
    )
    source, block, count = f"if=/dev/{disk}", f"bs={READ_BYTES}", f"count={READS}"
    command = ["dd", source, "of=/dev/null", block, count, "iflag=direct", "status=none"]
    subprocess.run(command, check=True)


def main() -> None:
    """Insert the module, record twice, print."""
    subprocess.run(["insmod", sys.argv[1]], check=True)
    here = Path("standin")
    here.mkdir()
    (here / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu vme tdx_guest\n")
    hidden = Path("/proc/kallsyms").read_text().replace("uvm_conf_computing_cpu", "hidden")
    (here / "kallsyms").write_text(hidden)

    ledger = LossLedger()
    everything: list[Family] = [
        Swiotlb(ledger),
        PageConversion(ledger),
        UvmCrypto(ledger),
        Tdx(cpuinfo=here / "cpuinfo"),
        Ioctl(),
    ]
    usual = record(
        everything,
        ledger,
        ["convert", "new", "old", "exits", f"ioctl {ctypes.addressof(KEYS)}", "read"],
    )
    ledger = LossLedger()
    poor: list[Family] = [
        Swiotlb(ledger, Kprobes(pmu=here / "none")),
        PageConversion(ledger, Kprobes(pmu=here / "none")),
        UvmCrypto(ledger, Kprobes(KernelFunctions(here / "kallsyms"))),
        Tdx(),
    ]
    fallback = record(poor, ledger, ["csl", "read"])
    Path("standin.json").write_text(
        json.dumps({"pid": os.getpid(), "usual": usual, "fallback": fallback}, indent=1)
    )


if __name__ == "__main__":
    main()
