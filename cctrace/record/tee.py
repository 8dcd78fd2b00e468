"""Which hypervisor and which trusted execution environment this guest runs in.

Part of the host facts. What is told here is what the machine says of itself: it
labels a run, it proves nothing (that takes attestation). No single sign works
on every kernel and cloud, so all that can be read are collected, each with its
source, and the first in a fixed order of trust decides. Nothing here raises.

The signs, in that order:

======================================  =========================================
sign                                    where it holds
======================================  =========================================
CPUID 0x4000000C EBX[3:0]               Hyper-V with a paravisor (Azure), which
                                        hides the processor's own leaves
CPUID 0x21 "IntelTDX    "               any TD
/proc/cpuinfo flag ``tdx_guest``        TD, kernel 5.16 and later
``misc/tdx_guest``                      TD, kernel 6.2 and later, driver loaded
/sys/devices/system/cpu/sev             SNP guest, kernel 6.11 and later
platform device ``sev-guest``           SNP guest, kernel 5.19 and later
MSR 0xC0010131                          SEV, -ES, -SNP; root and the msr module
kernel log, "Memory Encryption ..."     all; while the log still has its start
CPUID 0x8000001F EAX[1,3,4]             SEV guests; the hypervisor's word alone
======================================  =========================================

The ``sev*`` flags of /proc/cpuinfo are not used: a host has them too, and the
kernel clears them in guests (early_detect_mem_encrypt).

Source: Linux arch/x86/coco/{tdx/tdx.c,sev/core.c}, arch/x86/mm/mem_encrypt.c,
arch/x86/kernel/cpu/amd.c, Documentation/ABI/testing/sysfs-devices-system-cpu;
Intel TDX module ABI (leaf 0x21); AMD APM vol. 3 (leaf 0x8000001F) and vol. 2
(SEV_STATUS MSR); Hyper-V TLFS (isolation configuration leaf).
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cctrace.errors import CctraceError
from cctrace.resources import native_library

Registers = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX
Cpuid = Callable[[int, int], Registers]  # leaf, subleaf

MSR_SEV_STATUS = 0xC0010131
_LEAF_VENDOR = 0x0
_LEAF_FEATURES = 0x1
_LEAF_TDX = 0x21
_LEAF_HYPERVISOR = 0x40000000
_LEAF_HYPERVISOR_SECOND = 0x40000100  # KVM or Xen beside Hyper-V's own leaves
_LEAF_HYPERV_FEATURES = 0x40000003
_LEAF_HYPERV_ISOLATION = 0x4000000C
_LEAF_EXTENDED = 0x80000000
_LEAF_MEMORY_ENCRYPTION = 0x8000001F
_ECX_HYPERVISOR = 1 << 31
_EBX_HYPERV_ISOLATION = 1 << 22
_EBX_HYPERV_CPU_MANAGEMENT = 1 << 12  # the root partition: the host itself
_HYPERV_ISOLATION = {2: "sev-snp", 3: "tdx"}
_SIGNATURE_HYPERV = "Microsoft Hv"
_HYPERVISORS = {
    "KVMKVMKVM": "kvm",
    "Linux KVM Hv": "kvm",  # KVM under another name: Hyper-V clocks only
    _SIGNATURE_HYPERV: "hyperv",
    "VMwareVMware": "vmware",
    "XenVMMXenVMM": "xen",
    "TCGTCGTCGTCG": "qemu-tcg",
    "bhyve bhyve": "bhyve",
    "ACRNACRNACRN": "acrn",
}
_SIGNATURE_TDX = "IntelTDX    "
# Highest first: each implies the ones below it.
_SEV_STATUS_BITS = ((1 << 2, "sev-snp"), (1 << 1, "sev-es"), (1 << 0, "sev"))
_SEV_LEAF_BITS = ((1 << 4, "sev-snp"), (1 << 3, "sev-es"), (1 << 1, "sev"))

_KMSG_RECORDS = 8192
_KMSG_BYTES = 8192  # CONSOLE_EXT_LOG_MAX: a shorter read fails with EINVAL
_KMSG_BOOT_US = 120_000_000  # what is looked for is printed early in the boot
_LOG_FEATURES = re.compile(r"Memory Encryption Features active: (.*)")


@dataclass(frozen=True)
class Roots:
    """Where the kernel's files are; tests point them at made-up trees.

    Attributes:
        proc: procfs.
        sys: sysfs.
        dev: Device nodes.
        etc: Configuration, for os-release.
    """

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    etc: Path = Path("/etc")


@dataclass
class Tee:
    """What a guest says of the environment that protects it.

    Attributes:
        kind: ``none``, ``tdx``, ``sev-snp``, ``sev-es``, ``sev`` or ``unknown``.
        how: What told it.
        evidence: Every sign found, strongest first.
    """

    kind: str
    how: str
    evidence: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KernelLog:
    """The start of the kernel's log.

    Attributes:
        lines: The kernel's own messages, oldest first; what user space wrote to
            the log is left out.
        whole: Whether the log still had its first record.
        error: Why it could not be read; None where it could.
    """

    lines: tuple[str, ...] = ()
    whole: bool = False
    error: str | None = None


def read_text(path: Path) -> str | None:
    """Text of ``path`` without surrounding space, or None where unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def native_cpuid() -> Cpuid | None:
    """CPUID of this processor, or None where the library is not to be had."""
    try:
        library = ctypes.CDLL(str(native_library("libcctrace_host.so")))
        call = library.cctrace_cpuid
    except (OSError, AttributeError, CctraceError):
        return None
    call.argtypes = (ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32))
    call.restype = None

    def cpuid(leaf: int, subleaf: int) -> Registers:
        out = (ctypes.c_uint32 * 4)()
        call(leaf, subleaf, out)
        return out[0], out[1], out[2], out[3]

    return cpuid


def read_kernel_log(path: Path) -> KernelLog:
    """Read the boot part of ``/dev/kmsg`` without waiting for more.

    Source: Documentation/ABI/testing/dev-kmsg: one record per read, "priority,
    sequence,timestamp_us,flags;text", facility in the priority's upper bits (0
    is the kernel), EPIPE where records were overwritten meanwhile.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return KernelLog(error=f"{path}: {error.strerror}")
    lines: list[str] = []
    whole = False
    try:
        for _ in range(_KMSG_RECORDS):
            try:
                chunk = os.read(fd, _KMSG_BYTES)
            except BrokenPipeError:
                continue
            except BlockingIOError:
                break
            except OSError as error:
                return KernelLog(tuple(lines), whole, f"{path}: {error.strerror}")
            if not chunk or not _add_records(chunk, lines):
                break
            whole = whole or chunk.partition(b",")[2].startswith(b"0,")
    finally:
        os.close(fd)
    return KernelLog(tuple(lines), whole)


def _add_records(chunk: bytes, lines: list[str]) -> bool:
    """Append the kernel's messages of ``chunk``; False once past the boot."""
    for record in chunk.decode("utf-8", "replace").splitlines():
        head, separator, text = record.partition(";")
        fields = head.split(",")
        if not separator or record.startswith(" ") or len(fields) < 3:  # noqa: PLR2004 - the three fields used here
            continue
        if not (fields[0].isdecimal() and fields[2].isdecimal()):
            continue
        if int(fields[2]) > _KMSG_BOOT_US:
            return False
        if int(fields[0]) >> 3 == 0:
            lines.append(text)
    return True


def _signature(*registers: int) -> str:
    raw = struct.pack(f"<{len(registers)}I", *registers)
    return raw.decode("latin-1").rstrip("\0")


@dataclass
class Guest:
    """The signs of one machine, each read once and only when asked for.

    Args:
        roots: Where the kernel's files are.
        cpuid: The instruction; None where it cannot be had.
        log: The kernel's log.
    """

    roots: Roots
    cpuid: Cpuid | None
    log: KernelLog = field(default_factory=KernelLog)

    @cached_property
    def cpu(self) -> dict[str, str]:
        """First processor's block of /proc/cpuinfo, by key."""
        block = (read_text(self.roots.proc / "cpuinfo") or "").partition("\n\n")[0]
        pairs = (line.partition(":") for line in block.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}

    @cached_property
    def flags(self) -> frozenset[str]:
        """Flags of the first processor."""
        return frozenset(self.cpu.get("flags", "").split())

    @cached_property
    def vendor(self) -> str:
        """``GenuineIntel``, ``AuthenticAMD``, ... or an empty string."""
        return self.cpu.get("vendor_id", "")

    @cached_property
    def is_guest(self) -> bool | None:
        """Whether a hypervisor is below; None where nothing tells."""
        if self.cpuid:
            return bool(self.cpuid(_LEAF_FEATURES, 0)[2] & _ECX_HYPERVISOR)
        return "hypervisor" in self.flags if self.flags else None

    def hypervisor(self) -> str:
        """Name of the hypervisor, ``none`` on bare metal, or ``unknown``."""
        if self.is_guest is False:
            return "none"
        if self.cpuid and self.is_guest:
            for leaf in (_LEAF_HYPERVISOR_SECOND, _LEAF_HYPERVISOR):
                name = _HYPERVISORS.get(_signature(*self.cpuid(leaf, 0)[1:]))
                if name:
                    return name
        return read_text(self.roots.sys / "hypervisor/type") or "unknown"

    def tee(self) -> Tee:
        """Collect the signs and decide."""
        if self.is_guest is False:
            return Tee("none", "CPUID and /proc/cpuinfo name no hypervisor: not a guest")
        if self.cpuid is None and not self.flags:
            return Tee("unknown", "neither CPUID nor the flags in /proc/cpuinfo can be read")
        signs = [*self._cpuid_signs(), *self._file_signs()]
        status = self._sev_status()
        if status is not None:
            signs += _bits(status, _SEV_STATUS_BITS, "MSR 0xC0010131 (SEV_STATUS)")
        signs += self._log_signs()
        if status is None:
            signs += self._weak_signs()
        if signs:
            evidence = [f"{kind}: {how}" for kind, how in signs]
            return Tee(*signs[0], evidence)
        if self.cpuid:
            return Tee("none", "CPUID names no trusted execution environment")
        return Tee("unknown", "no sign of one, but CPUID cannot be read")

    def _cpuid_signs(self) -> list[tuple[str, str]]:
        if self.cpuid is None:
            return []
        signs = []
        _, ebx, ecx, edx = self.cpuid(_LEAF_HYPERVISOR, 0)
        features = self.cpuid(_LEAF_HYPERV_FEATURES, 0)[1]
        isolated = features & _EBX_HYPERV_ISOLATION and not features & _EBX_HYPERV_CPU_MANAGEMENT
        if _signature(ebx, ecx, edx) == _SIGNATURE_HYPERV and isolated:
            kind = _HYPERV_ISOLATION.get(self.cpuid(_LEAF_HYPERV_ISOLATION, 0)[1] & 0xF)
            if kind:
                signs.append((kind, "CPUID 0x4000000C: Hyper-V isolation"))
        if self.cpuid(_LEAF_VENDOR, 0)[0] >= _LEAF_TDX:
            _, ebx, ecx, edx = self.cpuid(_LEAF_TDX, 0)
            if _signature(ebx, edx, ecx) == _SIGNATURE_TDX:
                signs.append(("tdx", 'CPUID 0x21: "IntelTDX"'))
        return signs

    def _file_signs(self) -> list[tuple[str, str]]:
        signs = []
        if "tdx_guest" in self.flags:
            signs.append(("tdx", "flag tdx_guest in /proc/cpuinfo"))
        for kind, path, shown in (
            ("tdx", self.roots.sys / "devices/virtual/misc/tdx_guest", "/sys/.../misc/tdx_guest"),
            ("tdx", self.roots.dev / "tdx_guest", "/dev/tdx_guest"),
            ("sev-snp", self.roots.sys / "devices/system/cpu/sev", "/sys/devices/system/cpu/sev"),
            (
                "sev-snp",
                self.roots.sys / "devices/platform/sev-guest",
                "/sys/devices/platform/sev-guest",
            ),
            ("sev-snp", self.roots.dev / "sev-guest", "/dev/sev-guest"),
        ):
            if path.exists():
                signs.append((kind, shown))
        return signs

    def _sev_status(self) -> int | None:
        if self.vendor != "AuthenticAMD":
            return None
        try:
            fd = os.open(self.roots.dev / "cpu/0/msr", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            raw = os.pread(fd, 8, MSR_SEV_STATUS)
        except OSError:
            return None
        finally:
            os.close(fd)
        return int.from_bytes(raw, "little") if len(raw) == struct.calcsize("<Q") else None

    def _log_signs(self) -> list[tuple[str, str]]:
        for line in self.log.lines:
            found = _LOG_FEATURES.search(line)
            if not found:
                continue
            words = found[1].split()
            for word, kind in (
                ("TDX", "tdx"),
                ("SEV-SNP", "sev-snp"),
                ("SEV-ES", "sev-es"),
                ("SEV", "sev"),
            ):
                if word in words:
                    return [(kind, f'kernel log: "{found[0]}"')]
        return []

    def _weak_signs(self) -> list[tuple[str, str]]:
        if self.cpuid is None or self.vendor != "AuthenticAMD":
            return []
        if self.cpuid(_LEAF_EXTENDED, 0)[0] < _LEAF_MEMORY_ENCRYPTION:
            return []
        eax = self.cpuid(_LEAF_MEMORY_ENCRYPTION, 0)[0]
        return _bits(eax, _SEV_LEAF_BITS, "CPUID 0x8000001F, by the hypervisor's word alone")


def _bits(value: int, bits: tuple[tuple[int, str], ...], how: str) -> list[tuple[str, str]]:
    return next(([(kind, how)] for bit, kind in bits if value & bit), [])
