"""Host facts from made-up kernel files and a made-up processor."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cctrace.record.host import HostFacts, collect_host_facts
from cctrace.record.tee import MSR_SEV_STATUS, Roots, native_cpuid

HYPERVISOR_BIT = 1 << 31
INTEL = "GenuineIntel"
AMD = "AuthenticAMD"


@dataclass
class Machine:
    """A machine made of files under one directory and a table of CPUID leaves."""

    root: Path
    leaves: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    has_cpuid: bool = True

    def write(self, path: str, text: str = "") -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def cpuid(self, leaf: int, _subleaf: int) -> tuple[int, int, int, int]:
        return self.leaves.get(leaf, (0, 0, 0, 0))

    def facts(self) -> dict[str, Any]:
        roots = Roots(*(self.root / name for name in ("proc", "sys", "dev", "etc")))
        return collect_host_facts(roots, cpuid=self.cpuid if self.has_cpuid else None)

    def tee(self) -> tuple[str, str]:
        tee = self.facts()["tee"]
        return tee["kind"], tee["how"]


def _text(text: bytes) -> tuple[int, int, int]:
    first, second, third = struct.unpack("<3I", text)
    return first, second, third


def _machine(root: Path, vendor: str = INTEL, flags: str = "fpu hypervisor") -> Machine:
    machine = Machine(root)
    machine.write(
        "proc/cpuinfo",
        f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: Made-up 9000\nflags\t\t: {flags}\n\n"
        f"processor\t: 1\nvendor_id\t: {vendor}\nmodel name\t: second\nflags\t\t: fpu\n",
    )
    machine.write("proc/meminfo", "MemTotal:         104729 kB\nMemFree:    7 kB\n")
    machine.write("proc/cmdline", "console=ttyS0 quiet")
    machine.write("etc/os-release", 'NAME="Made"\nPRETTY_NAME="Made Linux 13"\n')
    machine.leaves[0] = (0x24, 0, 0, 0)
    machine.leaves[1] = (0, 0, HYPERVISOR_BIT, 0)
    machine.leaves[0x40000000] = (0x40000001, *_text(b"KVMKVMKVM\0\0\0"))
    machine.leaves[0x80000000] = (0x80000028, 0, 0, 0)
    return machine


def _hyperv(machine: Machine, isolation: int) -> None:
    machine.leaves[0x40000000] = (0x4000000C, *_text(b"Microsoft Hv"))
    machine.leaves[0x40000003] = (0, 1 << 22, 0, 0)
    machine.leaves[0x4000000C] = (0, isolation, 0, 0)


def _tdx_leaf(machine: Machine) -> None:
    first, second, third = _text(b"IntelTDX    ")
    machine.leaves[0x21] = (0, first, third, second)  # EBX, EDX, ECX spell it


def test_plain_guest(tmp_path: Path) -> None:
    # GIVEN an ordinary KVM guest
    machine = _machine(tmp_path)
    # WHEN its facts are collected
    facts = machine.facts()
    # THEN every one is the file's
    assert facts["cpu"]["model"] == "Made-up 9000"
    assert facts["cpu"]["vendor"] == INTEL
    assert facts["memory_bytes"] == 104729 * 1024
    assert facts["distribution"] == "Made Linux 13"
    assert facts["hypervisor"] == "kvm"
    assert facts["tee"] == {
        "kind": "none",
        "how": "CPUID names no trusted execution environment",
        "evidence": [],
    }
    assert facts["gpu"]["cc_how"] == "no NVIDIA GPU and no NVIDIA driver found"


def test_bare_metal_is_not_a_tee_whatever_the_processor_can(tmp_path: Path) -> None:
    # GIVEN an AMD host, whose CPUID and flags say that it can run SEV guests
    machine = _machine(tmp_path, AMD, "fpu sme sev sev_es sev_snp")
    machine.leaves[1] = (0, 0, 0, 0)
    machine.leaves[0x8000001F] = (0x1F, 0, 0, 0)
    # WHEN / THEN it is no guest
    assert machine.tee()[0] == "none"
    assert machine.facts()["hypervisor"] == "none"


def test_tdx_by_cpuid(tmp_path: Path) -> None:
    # GIVEN a TD whose kernel says nothing
    machine = _machine(tmp_path)
    _tdx_leaf(machine)
    # WHEN / THEN the leaf decides
    assert machine.tee() == ("tdx", 'CPUID 0x21: "IntelTDX"')


def test_tdx_evidence_is_listed_strongest_first(tmp_path: Path) -> None:
    # GIVEN a TD with driver and boot log
    machine = _machine(tmp_path, flags="fpu hypervisor tdx_guest")
    _tdx_leaf(machine)
    machine.write("dev/tdx_guest")
    machine.write("dev/kmsg", "6,0,11,-;Memory Encryption Features active: Intel TDX\n")
    # WHEN / THEN all signs are kept
    assert machine.facts()["tee"]["evidence"] == [
        'tdx: CPUID 0x21: "IntelTDX"',
        "tdx: flag tdx_guest in /proc/cpuinfo",
        "tdx: /dev/tdx_guest",
        'tdx: kernel log: "Memory Encryption Features active: Intel TDX"',
    ]


@pytest.mark.parametrize(("isolation", "kind"), [(2, "sev-snp"), (3, "tdx"), (1, "none")])
def test_hyperv_paravisor(tmp_path: Path, isolation: int, kind: str) -> None:
    # GIVEN a guest behind a paravisor, whose log knows of SEV only
    machine = _machine(tmp_path, AMD if kind == "sev-snp" else INTEL)
    _hyperv(machine, isolation)
    # WHEN / THEN Hyper-V's own leaf tells (1 is its virtualisation-based security)
    assert machine.facts()["tee"]["kind"] == kind
    assert machine.facts()["hypervisor"] == "hyperv"


def test_hyperv_leaf_outranks_the_log(tmp_path: Path) -> None:
    # GIVEN a vTOM guest: SNP, but its kernel logs "AMD SEV"
    machine = _machine(tmp_path, AMD)
    _hyperv(machine, 2)
    machine.write("dev/kmsg", "6,0,11,-;Memory Encryption Features active: AMD SEV\n")
    # WHEN / THEN
    assert machine.tee() == ("sev-snp", "CPUID 0x4000000C: Hyper-V isolation")


def test_hyperv_signature_of_kvm_is_not_hyperv(tmp_path: Path) -> None:
    # GIVEN KVM with Hyper-V enlightenments, its own signature one block up
    machine = _machine(tmp_path)
    machine.leaves[0x40000000] = (0x40000005, *_text(b"Microsoft Hv"))
    machine.leaves[0x40000100] = (0x40000101, *_text(b"KVMKVMKVM\0\0\0"))
    # WHEN / THEN
    assert machine.facts()["hypervisor"] == "kvm"
    assert machine.tee()[0] == "none"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("sys/devices/system/cpu/sev/vmpl", "/sys/devices/system/cpu/sev"),
        ("sys/devices/platform/sev-guest/uevent", "/sys/devices/platform/sev-guest"),
        ("dev/sev-guest", "/dev/sev-guest"),
    ],
)
def test_snp_by_the_kernels_files(tmp_path: Path, path: str, shown: str) -> None:
    # GIVEN an SNP guest of some kernel version
    machine = _machine(tmp_path, AMD)
    machine.write(path)
    # WHEN / THEN
    assert machine.tee() == ("sev-snp", shown)


@pytest.mark.parametrize(
    ("status", "kind"), [(0b111, "sev-snp"), (0b011, "sev-es"), (0b001, "sev"), (0, "none")]
)
def test_sev_status_register_decides_between_the_generations(
    tmp_path: Path, status: int, kind: str
) -> None:
    # GIVEN a readable MSR device, and a hypervisor that promises SNP
    machine = _machine(tmp_path, AMD)
    machine.leaves[0x8000001F] = (0b11010, 0, 0, 0)
    device = machine.root / "dev/cpu/0/msr"
    device.parent.mkdir(parents=True)
    with device.open("wb") as file:  # sparse: the offset is the register's number
        file.seek(MSR_SEV_STATUS)
        file.write(status.to_bytes(8, "little"))
    # WHEN / THEN the register is believed over CPUID
    assert machine.tee()[0] == kind


def test_sev_leaf_alone_is_marked_as_weak(tmp_path: Path) -> None:
    # GIVEN an AMD guest with nothing but the CPUID leaf
    machine = _machine(tmp_path, AMD)
    machine.leaves[0x8000001F] = (0b01010, 0, 0, 0)
    # WHEN / THEN
    assert machine.tee() == ("sev-es", "CPUID 0x8000001F, by the hypervisor's word alone")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP", "sev-snp"),
        ("AMD Memory Encryption Features active: SEV SEV-ES", "sev-es"),
        ("Memory Encryption Features active: AMD SEV", "sev"),
        ("Memory Encryption Features active: AMD SME", "none"),
    ],
)
def test_kernel_log(tmp_path: Path, line: str, kind: str) -> None:
    # GIVEN a boot log in the form of /dev/kmsg
    machine = _machine(tmp_path, AMD)
    machine.write("dev/kmsg", f"5,0,0,-;Linux version 6.8\n6,1,7,-;{line}\n SUBSYSTEM=x\n")
    # WHEN / THEN
    assert machine.tee()[0] == kind


@pytest.mark.parametrize(
    "record",
    [
        "14,1,7,-;Memory Encryption Features active: AMD SEV",  # facility 1: user space
        "6,9,130000000,-;Memory Encryption Features active: AMD SEV",  # long after the boot
        "x,1,7,-;Memory Encryption Features active: AMD SEV",
        "6,1;Memory Encryption Features active: AMD SEV",
        "Memory Encryption Features active: AMD SEV",
    ],
)
def test_forged_or_odd_log_records_tell_nothing(tmp_path: Path, record: str) -> None:
    # GIVEN a record that the kernel did not write at boot
    machine = _machine(tmp_path, AMD)
    machine.write("dev/kmsg", record + "\n")
    # WHEN / THEN
    assert machine.tee()[0] == "none"


def test_without_cpuid_silence_proves_nothing(tmp_path: Path) -> None:
    # GIVEN a guest where CPUID cannot be executed
    machine = _machine(tmp_path)
    machine.has_cpuid = False
    # WHEN / THEN "none" is not claimed, but what the kernel says still counts
    assert machine.tee() == ("unknown", "no sign of one, but CPUID cannot be read")
    machine.write("dev/sev-guest")
    assert machine.tee() == ("sev-snp", "/dev/sev-guest")


def test_empty_machine_is_all_unknown(tmp_path: Path) -> None:
    # GIVEN no files at all and no CPUID
    machine = Machine(tmp_path, has_cpuid=False)
    # WHEN
    facts = machine.facts()
    # THEN nothing raises, nothing is invented
    assert facts["tee"]["kind"] == "unknown"
    assert facts["hypervisor"] == "unknown"
    assert facts["distribution"] == "unknown"
    assert facts["memory_bytes"] is None
    assert facts["cpu"]["model"] == "unknown"
    assert facts["lockdown"]["level"] == "unknown"
    assert facts["swiotlb"]["state"] == "unknown"
    assert facts["swiotlb"]["size_bytes"] is None


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none [integrity] confidentiality\n", "integrity"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        ("something else\n", "unknown"),
    ],
)
def test_lockdown(tmp_path: Path, text: str, level: str) -> None:
    machine = _machine(tmp_path)
    machine.write("sys/kernel/security/lockdown", text)
    assert machine.facts()["lockdown"]["level"] == level


def test_lockdown_without_the_file(tmp_path: Path) -> None:
    # GIVEN no securityfs, then one of a kernel without lockdown
    machine = _machine(tmp_path)
    before = machine.facts()["lockdown"]
    machine.write("sys/kernel/security/lsm", "capability")
    after = machine.facts()["lockdown"]
    # THEN the two are told apart
    assert before == {
        "level": "unknown",
        "how": "securityfs is not mounted on /sys/kernel/security",
    }
    assert after == {"level": "none", "how": "this kernel has no lockdown"}


def test_swiotlb_of_a_td_is_forced_and_sized_by_debugfs(tmp_path: Path) -> None:
    # GIVEN a TD with debugfs, 524287 slots of 2 KiB, 251 of them in use
    machine = _machine(tmp_path)
    _tdx_leaf(machine)
    machine.write("sys/kernel/debug/swiotlb/io_tlb_nslabs", "524287\n")
    machine.write("sys/kernel/debug/swiotlb/io_tlb_used", "251\n")
    # WHEN / THEN
    assert machine.facts()["swiotlb"] == {
        "state": "forced",
        "state_how": "guest memory is encrypted (tdx)",
        "size_bytes": 524287 * 2048,
        "used_bytes": 251 * 2048,
        "how": "/sys/kernel/debug/swiotlb",
    }


@pytest.mark.parametrize(
    ("cmdline", "state", "size_bytes"),
    [
        ("quiet", "auto", None),
        ("swiotlb=noforce", "off", None),
        ("swiotlb=force", "forced", None),
        ("swiotlb=16381", "auto", 16381 * 2048),
        ("swiotlb=16381,3,force quiet", "forced", 16381 * 2048),
        ('dyndbg="file x swiotlb=force" y', "auto", None),
        ('broken="quote swiotlb=force', "forced", None),
    ],
)
def test_swiotlb_by_command_line(
    tmp_path: Path, cmdline: str, state: str, size_bytes: int | None
) -> None:
    machine = _machine(tmp_path)
    machine.write("proc/cmdline", cmdline)
    swiotlb = machine.facts()["swiotlb"]
    assert (swiotlb["state"], swiotlb["size_bytes"]) == (state, size_bytes)


def test_swiotlb_size_from_the_log(tmp_path: Path) -> None:
    # GIVEN the line that kernel/dma/swiotlb.c prints
    machine = _machine(tmp_path)
    machine.write(
        "dev/kmsg",
        "6,3,90,-;software IO TLB: mapped [mem 0x0000000076000000-0x0000000079ffffff] (64MB)\n",
    )
    swiotlb = machine.facts()["swiotlb"]
    assert (swiotlb["size_bytes"], swiotlb["how"]) == (64 * 1024 * 1024, "kernel log")


def test_gpu_without_a_driver_is_named(tmp_path: Path) -> None:
    # GIVEN an NVIDIA GPU and its audio function on the bus, and no driver
    machine = _machine(tmp_path)
    for address, kind in (("0000:01:00.0", "0x030200"), ("0000:01:00.1", "0x040300")):
        machine.write(f"sys/bus/pci/devices/{address}/vendor", "0x10de\n")
        machine.write(f"sys/bus/pci/devices/{address}/class", f"{kind}\n")
    # WHEN / THEN
    assert machine.facts()["gpu"]["cc_how"] == (
        "no NVIDIA driver is loaded for the GPU at PCI 0000:01:00.0"
    )


def test_real_machine_within_its_time() -> None:
    # GIVEN this machine, whatever it is; WHEN its facts are collected
    started_s = time.perf_counter()
    with HostFacts() as host:
        facts = host.facts()
    elapsed_s = time.perf_counter() - started_s
    # THEN the kernel's own figures are in them, and quickly
    assert facts["kernel"] == Path("/proc/sys/kernel/osrelease").read_text("utf-8").strip()
    assert facts["cpu"]["usable"] >= 1
    assert facts["tee"]["kind"] in {"none", "tdx", "sev-snp", "sev-es", "sev", "unknown"}
    assert elapsed_s < 1  # some 5 ms; 100 ms is the aim, the rest is for a loaded machine


def test_native_cpuid_agrees_with_the_kernel() -> None:
    # GIVEN the built library and the kernel's own reading of the same leaf
    cpuid = native_cpuid()
    if cpuid is None:
        pytest.skip("libcctrace_host.so is not built")
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    # WHEN leaf 0 is asked for the vendor
    _, ebx, ecx, edx = cpuid(0, 0)
    # THEN it is the one in /proc/cpuinfo
    assert struct.pack("<3I", ebx, edx, ecx).decode() in cpuinfo
