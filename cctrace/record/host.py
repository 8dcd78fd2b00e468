"""Facts of the machine for a run's manifest: what the figures were taken on.

Everything comes from files that any user can read, or says ``unknown`` and why.
Nothing here raises or waits, NVML's answer apart, which a child process brings
(see :mod:`cctrace.record.nvml`). Payload data is out of reach by design.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, final

from cctrace.record import nvml
from cctrace.record.bpf.kernelfs import KernelFs
from cctrace.record.tee import (
    Cpuid,
    Guest,
    KernelLog,
    Roots,
    Tee,
    native_cpuid,
    read_kernel_log,
    read_text,
)

NVML_WAIT_S = 3.0  # an idle driver without persistence mode takes over a second
NO_GPU = "no NVIDIA GPU and no NVIDIA driver found"
SWIOTLB_SLOT_BYTES = 2048  # 1 << IO_TLB_SHIFT, include/linux/swiotlb.h

_PCI_VENDOR_NVIDIA = "0x10de"
_PCI_CLASS_DISPLAY = "0x03"
_LOG_SWIOTLB = re.compile(r"software IO TLB: mapped \[mem (0x[0-9a-f]+)-(0x[0-9a-f]+)\]")
_NVML_TEE = {
    "tdx": "tdx",
    "tdx-connect": "tdx",
    "sev": "sev",
    "sev-snp": "sev-snp",
    "sev-snp-vtom": "sev-snp",
    "sev-tio": "sev-snp",
}
_CONFIDENTIAL = frozenset({"tdx", "sev-snp", "sev-es", "sev"})

_NOT_MOUNTED: Final = "securityfs is not mounted on /sys/kernel/security"


@final
class HostFacts:
    """The facts of this machine, with NVML asked in the background.

    A recorder makes one before it starts the target, writes :meth:`facts` into
    each manifest and closes it at the end, so that a slow driver delays nothing.

    Args:
        roots: Where the kernel's files are.
        cpuid: The CPUID instruction; None where it cannot be had.
        nvml_library: Name or path of NVML; None asks it only where there is an
            NVIDIA device.
    """

    def __init__(
        self,
        roots: Roots | None = None,
        *,
        cpuid: Cpuid | None = None,
        nvml_library: str | None = None,
    ) -> None:
        self._roots = roots or Roots()
        self._cpuid = cpuid if roots else native_cpuid()
        self._facts: dict[str, Any] | None = None
        self._probe: nvml.NvmlProbe | None = None
        if nvml_library or _has_nvidia_driver(self._roots):
            self._probe = nvml.NvmlProbe(nvml_library or nvml.LIBRARY)

    def __enter__(self) -> HostFacts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait for NVML; return whether the facts are now complete."""
        return self._probe is None or self._probe.wait(timeout_s)

    def close(self) -> None:
        """End what still runs in the background."""
        if self._probe:
            self._probe.close()

    def facts(self) -> dict[str, Any]:
        """Facts as they go into the manifest, JSON types only.

        Returns:
            ``kernel``, ``kernel_version``, ``arch``, ``distribution``, ``python``,
            ``cpu`` (model, vendor, usable), ``memory_bytes``, ``hypervisor``,
            ``tee`` (kind, how, evidence), ``lockdown`` (level, how), ``swiotlb``
            (state, state_how, size_bytes, used_bytes, how) and ``gpu`` (cc_state,
            cc_how, driver_version, devices, ...). Where a value cannot be told it
            is ``unknown`` or None, and the ``how`` beside it says why.
        """
        if self._facts is None:
            self._facts = self._collect()
        gpu = _no_driver(self._roots) if self._probe is None else self._probe.result()
        tee = self._facts["tee"]
        if tee["kind"] == "unknown" and gpu["cpu_capability"] in _NVML_TEE:
            tee = {**tee, "kind": _NVML_TEE[gpu["cpu_capability"]], "how": "NVML's word alone"}
        return {**self._facts, "tee": tee, "gpu": gpu}

    def _collect(self) -> dict[str, Any]:
        roots = self._roots
        log = read_kernel_log(roots.dev / "kmsg")
        guest = Guest(roots, self._cpuid, log)
        tee = _guarded(guest.tee, lambda why: Tee("unknown", why))
        uname = platform.uname()
        return {
            "kernel": uname.release,
            "kernel_version": uname.version,
            "arch": uname.machine,
            "distribution": _distribution(roots),
            "python": platform.python_version(),
            "cpu": _guarded(
                lambda: {
                    "model": guest.cpu.get("model name", "unknown"),
                    "vendor": guest.vendor or "unknown",
                    "usable": len(os.sched_getaffinity(0)),
                },
                lambda why: {"model": "unknown", "vendor": "unknown", "usable": None, "how": why},
            ),
            "memory_bytes": _memory_bytes(roots),
            "hypervisor": _guarded(guest.hypervisor, lambda _: "unknown"),
            "tee": asdict(tee),
            "lockdown": _lockdown(roots),
            "swiotlb": _guarded(
                lambda: _swiotlb(roots, tee, log),
                lambda why: {"state": "unknown", "state_how": why, "how": why},
            ),
        }


def collect_host_facts(
    roots: Roots | None = None,
    *,
    cpuid: Cpuid | None = None,
    nvml_library: str | None = None,
    nvml_wait_s: float = NVML_WAIT_S,
) -> dict[str, Any]:
    """Collect the facts once, waiting for NVML where there is one.

    Takes some 5 ms without an NVIDIA driver. The arguments and the result are
    those of :class:`HostFacts`; ``nvml_wait_s`` bounds the wait for NVML, in
    seconds. Never raises.
    """
    with HostFacts(roots, cpuid=cpuid, nvml_library=nvml_library) as host:
        host.wait(nvml_wait_s)
        return host.facts()


def _guarded(collect: Callable[[], Any], otherwise: Callable[[str], Any]) -> Any:
    """Keep a surprise in one fact from costing the run the others."""
    try:
        return collect()
    except Exception as error:  # noqa: BLE001 - a fact is never worth a recording
        return otherwise(f"{type(error).__name__}: {error}")


def _distribution(roots: Roots) -> str:
    for line in (read_text(roots.etc / "os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip("\"'")
    return "unknown"


def _memory_bytes(roots: Roots) -> int | None:
    found = re.search(
        r"^MemTotal:\s+(\d+) kB$", read_text(roots.proc / "meminfo") or "", re.MULTILINE
    )
    return int(found[1]) * 1024 if found else None


def _lockdown(roots: Roots) -> dict[str, str]:
    """Read the lockdown level.

    Source: security/lockdown/lockdown.c: the file lists the levels, the one in
    force in brackets. ``lsm`` lies beside it whenever securityfs is mounted.
    """
    security = roots.sys / "kernel/security"
    text = read_text(security / "lockdown")
    if text is not None:
        found = re.search(r"\[(\w+)\]", text)
        if found:
            return {"level": found[1], "how": "/sys/kernel/security/lockdown"}
        return {"level": "unknown", "how": f"/sys/kernel/security/lockdown says {text[:80]!r}"}
    if (security / "lsm").exists():
        return {"level": "none", "how": "this kernel has no lockdown"}
    if roots.sys == Path("/sys"):
        return _lockdown_unmounted()
    return {"level": "unknown", "how": _NOT_MOUNTED}


def _lockdown_unmounted() -> dict[str, str]:
    """As root the file can be read without a mount that anybody sees."""
    unknown = {"level": "unknown", "how": _NOT_MOUNTED}
    with closing(KernelFs("securityfs", ())) as security:
        if security.root is None:
            return unknown
        text = security.read("lockdown")
        if text is None:
            return {"level": "none", "how": "this kernel has no lockdown"}
        found = re.search(r"\[(\w+)\]", text)
        return {"level": found[1], "how": "securityfs, not mounted"} if found else unknown


def _swiotlb(roots: Roots, tee: Tee, log: KernelLog) -> dict[str, Any]:
    """Read size and state of the kernel's bounce buffer.

    Source: Documentation/admin-guide/kernel-parameters.txt (``swiotlb=``);
    kernel/dma/swiotlb.c (debugfs files, log line); arch/x86/kernel/pci-dma.c:
    encrypted guests are set to bounce every transfer.
    """
    options = _swiotlb_options(roots)
    size_bytes, used_bytes, how = _swiotlb_size(roots, log, options)
    if tee.kind in _CONFIDENTIAL:
        state, state_how = "forced", f"guest memory is encrypted ({tee.kind})"
    elif "force" in options:
        state, state_how = "forced", "swiotlb= on the kernel command line"
    elif "noforce" in options:
        state, state_how = "off", "swiotlb=noforce on the kernel command line"
    elif size_bytes == 0:
        state, state_how = "off", how
    elif tee.kind == "none":
        state, state_how = "auto", "only for devices that cannot reach the memory"
    else:
        state, state_how = "unknown", f"the execution environment is not known: {tee.how}"
    return {
        "state": state,
        "state_how": state_how,
        "size_bytes": size_bytes,
        "used_bytes": used_bytes,
        "how": how,
    }


def _swiotlb_options(roots: Roots) -> list[str]:
    try:
        words = shlex.split(read_text(roots.proc / "cmdline") or "")
    except ValueError:  # an unbalanced quote
        words = (read_text(roots.proc / "cmdline") or "").split()
    values = [word.removeprefix("swiotlb=") for word in words if word.startswith("swiotlb=")]
    return [option for value in values for option in value.split(",")]


def _swiotlb_size(
    roots: Roots, log: KernelLog, options: list[str]
) -> tuple[int | None, int | None, str]:
    """Size and use in bytes, None where unknown, and what told them."""
    debugfs = roots.sys / "kernel/debug/swiotlb"
    slots = _integer(debugfs / "io_tlb_nslabs")
    if slots is not None:
        used = _integer(debugfs / "io_tlb_used")
        used_bytes = None if used is None else used * SWIOTLB_SLOT_BYTES
        return slots * SWIOTLB_SLOT_BYTES, used_bytes, "/sys/kernel/debug/swiotlb"
    for line in log.lines:
        found = _LOG_SWIOTLB.search(line)
        if found:
            return int(found[2], 16) - int(found[1], 16) + 1, None, "kernel log"
    if options and options[0].isdecimal():
        size_bytes = int(options[0]) * SWIOTLB_SLOT_BYTES
        return size_bytes, None, "swiotlb= on the kernel command line"
    why_no_log = log.error or ("it has no such line" if log.whole else "its start is gone")
    why_no_debugfs = debugfs_reason(debugfs)
    return None, None, f"debugfs: {why_no_debugfs}; kernel log: {why_no_log}"


def debugfs_reason(directory: Path) -> str:
    """Say why ``directory`` under /sys/kernel/debug cannot be read."""
    parent = directory.parent
    if not os.access(parent, os.R_OK | os.X_OK):
        return "root only"
    try:
        empty = not any(parent.iterdir())
    except OSError as error:
        return error.strerror or str(error)
    return "not mounted" if empty else f"no {directory.name} in it"


def _integer(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text is not None and text.isdecimal() else None


def _has_nvidia_driver(roots: Roots) -> bool:
    return any(
        path.exists()
        for path in (roots.proc / "driver/nvidia", roots.dev / "nvidiactl", roots.dev / "dxg")
    )


def _no_driver(roots: Roots) -> dict[str, Any]:
    gpus = sorted(path.name for path in _nvidia_displays(roots))
    if gpus:
        shown = ", ".join(gpus)
        return nvml.unknown(f"no NVIDIA driver is loaded for the GPU at PCI {shown}")
    return nvml.unknown(NO_GPU)


def _nvidia_displays(roots: Roots) -> list[Path]:
    try:
        devices = list((roots.sys / "bus/pci/devices").iterdir())
    except OSError:
        return []
    return [
        device
        for device in devices
        if read_text(device / "vendor") == _PCI_VENDOR_NVIDIA
        and (read_text(device / "class") or "").startswith(_PCI_CLASS_DISPLAY)
    ]
