"""Which kernel functions are probed, and what is said where none can be."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.dma import Dma
from cctrace.record.bpf.kernelfs import Field, TraceFs
from cctrace.record.bpf.kprobes import KernelFunctions, Kprobes, Site, missed_returns
from cctrace.record.bpf.page_conversion import PageConversion
from cctrace.record.bpf.swiotlb import Swiotlb
from cctrace.record.bpf.tdx import Tdx
from cctrace.record.bpf.uvm_crypto import UvmCrypto
from cctrace.record.losses import LossLedger

if TYPE_CHECKING:
    from collections.abc import Collection

    from cctrace.record.bpf.probes import Probes, Rows

# /proc/kallsyms as others than root see it: names without addresses.
OLD = """\
0000000000000000 T swiotlb_map
0000000000000000 t swiotlb_bounce
0000000000000000 T swiotlb_tbl_unmap_single
0000000000000000 T swiotlb_sync_single_for_cpu
0000000000000000 T swiotlb_sync_single_for_device
0000000000000000 D swiotlb_data
0000000000000000 T set_memory_decrypted
0000000000000000 T set_memory_encrypted
"""
NEW = """\
ffffffff81413970 t swiotlb_bounce.constprop.0
ffffffff81414c80 T __swiotlb_tbl_unmap_single
ffffffff81414cf0 T __swiotlb_sync_single_for_device
ffffffff81414d70 T swiotlb_map
"""
UVM = """\
0000000000000000 t uvm_conf_computing_cpu_encrypt\t[nvidia_uvm]
0000000000000000 t uvm_conf_computing_cpu_decrypt\t[nvidia_uvm]
0000000000000000 t uvm_conf_computing_dma_buffer_alloc\t[nvidia_uvm]
0000000000000000 t uvm_conf_computing_dma_buffer_free\t[nvidia_uvm]
0000000000000000 T nvUvmInterfaceCslEncrypt\t[nvidia]
0000000000000000 T nvUvmInterfaceCslDecrypt\t[nvidia]
"""


class Table(dict[Any, Any]):
    """A map of BPF, as far as sources use it."""

    Key = staticmethod(int)
    Leaf = staticmethod(int)


class Module:
    """Compiled programs; a program's descriptor is its place among those loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.tables: dict[str, Table] = {}

    def load(self, name: str, program_type: int) -> int:
        del program_type
        self.loaded.append(name)
        return len(self.loaded) - 1

    def table(self, name: str) -> Table:
        return self.tables.setdefault(name, Table())


class Kernel:
    """Probes and a kernel that notes what is attached, and refuses some functions."""

    def __init__(self, folder: Path, kallsyms: str, refused: Collection[str] = ()) -> None:
        self.module = Module()
        self.attached: list[tuple[str, str]] = []
        self.tracepoints: list[str] = []
        self.refused = refused
        (folder / "kallsyms").write_text(kallsyms)
        self.kprobes = Kprobes(KernelFunctions(folder / "kallsyms"), folder, self._attach)

    @property
    def probes(self) -> Probes:
        return cast("Probes", self)

    def tracepoint(self, name: str) -> None:
        self.tracepoints.append(name)

    def _attach(self, program: int, function: str, is_return: bool) -> int:
        name = self.module.loaded[program]
        assert name.endswith("_return" if is_return else "_entry")
        if function in self.refused:
            raise PermissionError(1, "Operation not permitted")
        self.attached.append((name, function))
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def counters(rows: Rows) -> dict[str, float]:
    """Values by name, of rows that have at most the table of counters."""
    assert {name for name, _ in rows} <= {"counters"}
    return {row["name"]: row["value"] for _, table in rows for row in table.to_pylist()}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_names_are_found_whatever_is_around_them(tmp_path: Path) -> None:
    kprobes = Kernel(tmp_path, OLD + NEW + UVM).kprobes
    names = ("swiotlb_map", "swiotlb_data", "uvm_conf_computing_cpu_encrypt", "swiotlb")
    assert kprobes.known(names) == {"swiotlb_map", "uvm_conf_computing_cpu_encrypt"}
    # A clone of a function has other arguments.
    assert Kernel(tmp_path, NEW).kprobes.known(["swiotlb_bounce"]) == set()


def test_the_first_name_that_can_be_probed_is(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, OLD, refused=["swiotlb_sync_single_for_cpu"])
    site = Site("swiotlb_sync", ("swiotlb_sync_single_for_cpu", "swiotlb_sync_single_for_device"))
    before = open_descriptors()
    assert kernel.kprobes.attach(kernel.probes, site)
    # Entries first, so that a return has its entry.
    assert kernel.attached == [
        ("on_swiotlb_sync_entry", "swiotlb_sync_single_for_device"),
        ("on_swiotlb_sync_return", "swiotlb_sync_single_for_device"),
    ]
    assert kernel.kprobes.detail() == {
        "functions": ["swiotlb_sync_single_for_device"],
        "missing": {},
    }
    kernel.kprobes.detach()
    assert open_descriptors() == before


def test_bounces_on_an_old_kernel(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, OLD)
    source = Swiotlb(LossLedger(), kernel.kprobes)
    source.attach(kernel.probes)
    assert kernel.kprobes.functions == [
        "swiotlb_map",
        "swiotlb_bounce",
        "swiotlb_tbl_unmap_single",
        "swiotlb_sync_single_for_device",
        "swiotlb_sync_single_for_cpu",
    ]
    assert kernel.tracepoints == ["swiotlb:swiotlb_bounced"]
    assert kernel.module.tables["swiotlb_mode"] == {0: 2}
    assert source.detail()["attached"] == "kprobes"
    source.detach()


def test_bounces_without_their_copies_are_not_recorded_by_halves(tmp_path: Path) -> None:
    before = open_descriptors()
    kernel = Kernel(tmp_path, NEW)  # swiotlb_bounce has no symbol of its own
    source = Swiotlb(LossLedger(), kernel.kprobes)
    source.attach(kernel.probes)
    detail = source.detail()
    assert detail["attached"] == "tracepoint"
    assert "swiotlb_bounce: not in this kernel" in detail["missing"]
    assert kernel.module.tables["swiotlb_mode"] == {0: 1}
    source.finish()
    assert open_descriptors() == before


def test_encryption_by_one_interface_at_a_time(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, UVM)
    source = UvmCrypto(LossLedger(), kernel.kprobes)
    source.prepare(cast("TraceFs", None))
    source.attach(kernel.probes)
    assert source.detail()["attached"] == "uvm_conf_computing"
    assert source.detail()["functions"] == [
        "uvm_conf_computing_cpu_encrypt",
        "uvm_conf_computing_cpu_decrypt",
        "uvm_conf_computing_dma_buffer_alloc",
        "uvm_conf_computing_dma_buffer_free",
    ]
    assert ("on_uvm_buffer_taken_return", "uvm_conf_computing_dma_buffer_alloc") in kernel.attached
    source.detach()


def test_encryption_by_the_interface_below_where_one_direction_is_refused(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, UVM, refused=["uvm_conf_computing_cpu_decrypt"])
    source = UvmCrypto(LossLedger(), kernel.kprobes)
    source.attach(kernel.probes)
    detail = source.detail()
    assert detail["attached"] == "nvUvmInterfaceCsl"
    assert detail["functions"][:2] == ["nvUvmInterfaceCslEncrypt", "nvUvmInterfaceCslDecrypt"]
    assert detail["missing"] == {"uvm_conf_computing_cpu_decrypt": "Operation not permitted"}
    assert ("on_uvm_decrypt_return", "nvUvmInterfaceCslDecrypt") in kernel.attached
    source.detach()


def test_a_source_without_its_functions_says_what_would_help(tmp_path: Path) -> None:
    kprobes = Kernel(tmp_path, "0000000000000000 T printk\n").kprobes
    for source, message, hint in (
        (UvmCrypto(LossLedger(), kprobes), "nvidia_uvm is not loaded", "modprobe nvidia-uvm"),
        (PageConversion(LossLedger(), kprobes), "cannot convert pages", "CONFIG_INTEL_TDX_GUEST"),
    ):
        with pytest.raises(CctraceError, match=message) as told:
            source.prepare(cast("TraceFs", None))
        assert told.value.hint is not None
        assert hint in told.value.hint
        assert told.value.exit_code == EXIT_UNSUPPORTED


def test_a_kernel_without_kprobes_and_one_that_refuses_them(tmp_path: Path) -> None:
    (tmp_path / "kallsyms").write_text(OLD)
    without = PageConversion(
        LossLedger(), Kprobes(KernelFunctions(tmp_path / "kallsyms"), tmp_path / "none")
    )
    with pytest.raises(CctraceError, match="built without kprobes"):
        without.prepare(cast("TraceFs", None))
    kernel = Kernel(tmp_path, OLD, refused=["set_memory_decrypted", "set_memory_encrypted"])
    refusing = PageConversion(LossLedger(), kernel.kprobes)
    refusing.prepare(cast("TraceFs", None))
    with pytest.raises(CctraceError, match="set_memory_encrypted: Operation not perm") as told:
        refusing.attach(kernel.probes)
    assert told.value.hint is not None
    assert "lockdown" in told.value.hint


def test_exits_are_counted_in_trust_domains_only(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu tdx_guest_not hypervisor\n")
    kernel = Kernel(tmp_path, "0000000000000000 T tdx_handle_virt_exception\n")
    with pytest.raises(CctraceError, match="no TDX guest"):
        Tdx(kernel.kprobes, tmp_path / "cpuinfo").prepare(cast("TraceFs", None))
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu tdx_guest hypervisor\n")
    source = Tdx(kernel.kprobes, tmp_path / "cpuinfo")
    assert source.prepare(cast("TraceFs", None)) == []
    source.attach(kernel.probes)
    assert kernel.attached == [("on_tdx_exit_entry", "tdx_handle_virt_exception")]
    source.detach()


class Tracepoints:
    """The tracepoints of some kernel: fields at made-up places, 8 bytes apart."""

    def __init__(self, **events: str) -> None:
        self._events = events

    def fields(self, name: str) -> dict[str, Field] | None:
        words = self._events.get(name.partition(":")[2])
        if words is None:
            return None
        return {word: Field(8 * place, 8) for place, word in enumerate(words.split(), 1)}


@pytest.mark.parametrize(
    ("tracepoints", "used", "flag"),
    [
        # include/trace/events/dma.h of 6.12 and of 6.18
        (
            Tracepoints(
                dma_map_page="device phys_addr dma_addr size dir attrs",
                dma_map_resource="device phys_addr dma_addr size dir attrs",
                dma_alloc="device virt_addr dma_addr size flags attrs",
                dma_map_sg="device phys_addrs dma_addrs lengths dir attrs",
            ),
            ["dma_map_page", "dma_map_resource", "dma_map_sg", "dma_alloc"],
            "-DTP_dma_map_page_size=32",
        ),
        (
            Tracepoints(
                dma_map_phys="device phys_addr dma_addr size dir attrs",
                dma_alloc="device virt_addr dma_addr size flags dir attrs",
                dma_map_sg="device full_nents full_ents truncated phys_addrs dma_addrs lengths "
                "dir attrs",
            ),
            ["dma_map_phys", "dma_map_sg", "dma_alloc"],
            "-DTP_dma_map_sg_truncated=32",
        ),
        # One whose fields are not known is left alone.
        (
            Tracepoints(dma_map_phys="device address", dma_alloc="device size"),
            ["dma_alloc"],
            "-DTP_dma_alloc_size=16",
        ),
    ],
)
def test_mappings_by_the_tracepoints_there_are(
    tmp_path: Path, tracepoints: Tracepoints, used: list[str], flag: str
) -> None:
    source = Dma(tmp_path)
    flags = source.prepare(cast("TraceFs", tracepoints))
    assert flag in flags
    assert source.detail() == {"scope": "machine", "tracepoints": used}
    kernel = Kernel(tmp_path, "")
    source.attach(kernel.probes)
    assert kernel.tracepoints == [f"dma:{name}" for name in used]


def test_mappings_behind_an_iommu_tell_nothing_of_bounces(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "type").write_text("DMA-FQ\n")
    source = Dma(tmp_path)
    source.prepare(cast("TraceFs", Tracepoints(dma_alloc="device size")))
    assert "IOMMU" in source.detail()["missing"]


def test_mappings_need_tracepoints(tmp_path: Path) -> None:
    with pytest.raises(CctraceError, match="no dma tracepoints"):
        Dma(tmp_path).prepare(cast("TraceFs", Tracepoints()))


class Call(NamedTuple):
    """struct calls_key of calls.bpf.c."""

    site: int
    sp: int


class Mapping(NamedTuple):
    """struct dma_key of dma.bpf.c."""

    device: bytes
    direction: int


@pytest.mark.parametrize("is_translated", [False, True])
def test_mappings_are_told_as_totals_of_those_that_grew(
    tmp_path: Path, *, is_translated: bool
) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "type").write_text("DMA\n" if is_translated else "identity\n")
    source = Dma(tmp_path)
    source.prepare(cast("TraceFs", Tracepoints(dma_alloc="device size")))
    kernel = Kernel(tmp_path, "")
    source.attach(kernel.probes)
    out = SimpleNamespace(mappings=7, bytes=7919, bounced_mappings=3, bounced_bytes=499)
    shared = SimpleNamespace(mappings=2, bytes=8192, bounced_mappings=0, bounced_bytes=0)
    kernel.module.tables["dma_cut_short"] = Table({0: [0, 5]})
    kernel.module.tables["dma_totals"] = Table(
        {Mapping(b"0000:03:00.0" + b"\0" * 12, 1): out, Mapping(b"nvme0\0\0", 4): shared}
    )
    bounced = {} if is_translated else {"dma.0000:03:00.0.to_device.bounced_bytes": 499}
    assert counters(source.poll()) == {
        "dma.0000:03:00.0.to_device.mappings": 7,
        "dma.0000:03:00.0.to_device.bytes": 7919,
        "dma.nvme0.coherent.mappings": 2,
        "dma.nvme0.coherent.bytes": 8192,
        **bounced,
    }
    assert source.detail()["lists_cut_short"] == 5
    shared.mappings, shared.bytes = 3, 12288
    assert counters(source.finish()) == {
        "dma.nvme0.coherent.mappings": 3,
        "dma.nvme0.coherent.bytes": 12288,
    }


def test_exits_are_told_by_reason_when_they_grew(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0 t tdx_handle_virt_exception\n")
    source = Tdx(kernel.kprobes, tmp_path)
    source.attach(kernel.probes)
    # By processor: 12 is HLT, 7 none that a guest handles.
    exits = Table({reason: [0, 0] for reason in range(96)} | {12: [101, 2], 7: [0, 1]})
    kernel.module.tables["tdx_exits"] = exits
    assert counters(source.poll()) == {"tdx_ve.hlt": 103, "tdx_ve.reason_7": 1}
    assert source.poll() == []
    exits[12] = [101, 3]
    assert counters(source.finish()) == {"tdx_ve.hlt": 104}


def test_staging_buffers_in_use_are_those_not_given_back(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, UVM)
    source = UvmCrypto(LossLedger(), kernel.kprobes)
    source.attach(kernel.probes)
    kernel.module.tables["uvm_buffers"] = Table({0: [13, 4], 1: [0, 11]})
    assert counters(source.poll()) == {
        "uvm.staging_buffers_taken": 17,
        "uvm.staging_buffers_used": 6,
    }
    assert source.poll() == []
    source.detach()


def test_calls_under_way_before_all_was_attached_are_not_missed(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "")
    since = kernel.module.tables["calls_since"] = Table(
        {int(layout.Kind.UVM): SimpleNamespace(value=0)}
    )
    kernel.module.tables["calls"] = Table(
        {
            Call(int(layout.Kind.UVM) << 8, 1): SimpleNamespace(ts_ns=99),
            Call(int(layout.Kind.UVM) << 8 | 1, 2): SimpleNamespace(ts_ns=100),
            Call(int(layout.Kind.UVM) << 8, 3): SimpleNamespace(ts_ns=101),
            Call(int(layout.Kind.SWIOTLB) << 8, 4): SimpleNamespace(ts_ns=102),
        }
    )
    assert missed_returns(kernel.probes, layout.Kind.UVM) == 0  # never armed
    since[int(layout.Kind.UVM)] = SimpleNamespace(value=100)
    assert missed_returns(kernel.probes, layout.Kind.UVM) == 2
