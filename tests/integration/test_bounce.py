"""The bounce paths, as far as this machine's kernel lets them be watched.

What needs kprobes is in tests/vm, where a kernel has them.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import frontend, probes
from cctrace.record.bpf.cuda.source import Cuda
from cctrace.record.bpf.dma import Dma
from cctrace.record.bpf.headers import find_headers
from cctrace.record.bpf.ioctl import Ioctl
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.kprobes import KernelFunctions, Kprobes
from cctrace.record.bpf.page_conversion import PageConversion
from cctrace.record.bpf.probes import Family, Probes
from cctrace.record.bpf.swiotlb import Swiotlb
from cctrace.record.bpf.tdx import Tdx
from cctrace.record.bpf.user_crypto import UserCrypto
from cctrace.record.bpf.uvm_crypto import UvmCrypto
from cctrace.record.losses import LossLedger

TARGETS = Path(__file__).parents[1] / "targets"
RING_BYTES = 1 << 20
# A machine with the NVIDIA driver would be watched there, and the tests use another file.
NO_KPROBES = Kprobes(KernelFunctions(Path(os.devnull)))


@pytest.fixture(scope="module", autouse=True)
def _bpf() -> None:
    """Skip, with the reason, where BPF cannot be used."""
    try:
        probes.require_bpf()
        frontend.load_bcc()
        find_headers().close()
    except CctraceError as error:
        pytest.skip(f"no BPF here: {error}")


def build(folder: Path, source: str, output: str, *flags: str) -> Path:
    """Compile a test program or library; every warning is an error."""
    place = folder / output
    command = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    command += [str(TARGETS / source), "-o", str(place), *flags, "-ldl"]
    subprocess.run(command, check=True)
    return place


class Recording:
    """Probes of some families, attached, with what they recorded once it is over."""

    def __init__(self, families: Sequence[Family], ledger: LossLedger) -> None:
        self.ledger = ledger
        self.probes = Probes(families, RING_BYTES, ledger)
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.details: dict[str, dict[str, Any]] = {}

    @property
    def refused(self) -> dict[str, str]:
        return {family.name: str(error) for family, error in self.probes.refused()}

    def take(self, rows: Sequence[tuple[str, pa.Table]]) -> None:
        for name, table in rows:
            self.tables.setdefault(name, []).extend(table.to_pylist())


@contextmanager
def recording(ledger: LossLedger, *families: Family) -> Iterator[Recording]:
    """Attach; after the block everything is detached, drained and decoded."""
    record = Recording(families, ledger)
    record.probes.start()
    try:
        yield record
        record.probes.detach()
        record.probes.drain()
        record.take(record.probes.rows())
        record.take(record.probes.finish())
        record.details = {f.name: f.detail() for f in record.probes.attached()}
        assert record.probes.warnings == {}
    finally:
        record.probes.close()


def test_keys_handed_to_libcuda_are_noticed(tmp_path: Path) -> None:
    program = build(tmp_path, "get_kmb.c", "get_kmb")
    before_ns = time.monotonic_ns()
    with recording(LossLedger(), Ioctl(NO_KPROBES)) as record:
        assert record.refused == {}
        with record.probes.spawning():
            first = subprocess.Popen([program])
            second = subprocess.Popen([program])
        # One that is not traced asks as well.
        subprocess.run([program], check=True)
        assert (first.wait(), second.wait()) == (0, 0)
    samples = record.tables["counters"]
    assert {(row["pid"], row["name"], row["value"], row["unit"]) for row in samples} == {
        (first.pid, "get_kmb", 7.0, "requests"),
        (second.pid, "get_kmb", 7.0, "requests"),
    }
    assert all(before_ns < row["ts_ns"] < time.monotonic_ns() for row in samples)
    detail = record.details["ioctl"]
    assert detail["libcuda_encrypts"] is True
    assert [(seen["pid"], seen["requests"]) for seen in detail["seen"]] == sorted(
        [(first.pid, 7), (second.pid, 7)]
    )
    # Each has one request whose parameters cannot be read.
    assert record.ledger.by_reason() == {"unreadable_argument": 2}


def test_nothing_noticed_is_said_too() -> None:
    with recording(LossLedger(), Ioctl(NO_KPROBES)) as record, record.probes.spawning():
        subprocess.run(["true"], check=True)
    assert record.details["ioctl"] == {
        "attached": "tracepoint",
        "libcuda_encrypts": False,
        "seen": [],
    }
    assert record.tables == {}


def test_encryption_under_the_driver_is_recorded_and_no_other(tmp_path: Path) -> None:
    libcrypto = loaded_libcrypto()
    driver = build(
        tmp_path, "cipher_driver.c", "libnvidia-pkcs11-openssl3.so.999.7", "-shared", "-fPIC"
    )
    program = build(tmp_path, "cipher_program.c", "cipher_program", "-rdynamic")
    ledger = LossLedger()
    source = UserCrypto(ledger)
    cuda = Cuda("full", ledger)
    with recording(ledger, cuda, source) as record:
        assert record.refused == {}
        cuda.attach_library(program)
        source.attach_library(libcrypto)
        source.attach_library(libcrypto)  # once per file
        with record.probes.spawning():
            target = subprocess.Popen(
                [program, libcrypto, driver],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        with target:
            answer = conversation(target)
            # GIVEN both are loaded: the driver's calls count, the program's own do not
            assert answer("driver")
            source.driver_loaded(target.pid)
            assert answer("go", "own")
            # GIVEN the program is inside a CUDA call: now its own count
            assert answer("go", "end")
            answer("go", None)
        assert target.returncode == 0
    assert [row["api"] for row in record.tables["cuda_api"]] == ["cuMemcpyHtoD"]
    rows = record.tables["user_crypto"]
    assert Counter((row["direction"], row["size_bytes"]) for row in rows) == {
        ("encrypt", 1009): 7,
        ("decrypt", 499): 5,
        ("encrypt", 251): 3,  # by EVP_CipherUpdate, once each
        ("decrypt", 241): 2,
        ("encrypt", 61): 13,
    }
    assert {(row["pid"], row["tid"]) for row in rows} == {(target.pid, target.pid)}
    assert all(0 < row["dur_ns"] < 10**9 for row in rows)
    assert [row["ts_ns"] for row in rows] == sorted(row["ts_ns"] for row in rows)
    assert ledger.by_reason() == {}
    assert record.details["user_crypto"] == {
        "libraries": [
            {"path": str(libcrypto), "functions": ["EVP_DecryptUpdate", "EVP_EncryptUpdate"]}
        ],
        "driver_processes": 1,
    }


def test_a_library_that_is_no_libcrypto_is_named(tmp_path: Path) -> None:
    ledger = LossLedger()
    source = UserCrypto(ledger)
    other = build(tmp_path, "cipher_driver.c", "libcrypto.so.3", "-shared", "-fPIC")
    with recording(ledger, source) as record:
        assert record.refused == {}
        with pytest.raises(CctraceError, match=r"libcrypto.so.3 has no EVP_DecryptUpdate") as told:
            source.attach_library(other)
        assert told.value.exit_code == EXIT_UNSUPPORTED
        assert told.value.hint is not None
    # After the end, attaching does nothing, rather than fail in the watcher's thread.
    source.attach_library(loaded_libcrypto())


def test_every_family_attaches_or_says_why_not() -> None:
    ledger = LossLedger()
    families: list[Family] = [
        Swiotlb(ledger),
        PageConversion(ledger),
        UvmCrypto(ledger),
        UserCrypto(ledger),
        Tdx(),
        Dma(),
        Ioctl(),
    ]
    with recording(ledger, *families) as record:
        attached = {family.name for family in record.probes.attached()}
        assert attached | set(record.refused) == {family.name for family in families}
        for name, error in record.refused.items():
            assert error, name
    assert "user_crypto" in attached
    tracefs = TraceFs()
    try:
        for name, tracepoint in (
            ("swiotlb", "swiotlb:swiotlb_bounced"),
            ("dma", "dma:dma_alloc"),
            ("ioctl", "syscalls:sys_enter_ioctl"),
        ):
            there = tracefs.tracepoint_id(tracepoint) is not None
            assert (name in attached) == there, record.refused.get(name)
    finally:
        tracefs.close()
    if not Path("/sys/bus/event_source/devices/kprobe").exists():
        assert record.details["swiotlb"]["attached"] == "tracepoint"
        assert "built without kprobes" in record.details["swiotlb"]["missing"]


def test_bounces_fall_back_to_the_tracepoint_where_the_kernel_says_no() -> None:
    ledger = LossLedger()
    kprobes = Kprobes(pmu=Path("/"), attacher=refuse_kprobe)
    with recording(ledger, Swiotlb(ledger, kprobes)) as record:
        if record.refused:
            pytest.skip(f"no bounce buffers here: {record.refused['swiotlb']}")
    detail = record.details["swiotlb"]
    assert detail["attached"] == "tracepoint"
    assert "swiotlb_map: Operation not permitted" in detail["missing"]


def test_page_conversion_is_refused_where_the_kernel_says_no() -> None:
    ledger = LossLedger()
    source = PageConversion(ledger, Kprobes(pmu=Path("/"), attacher=refuse_kprobe))
    with recording(ledger, source) as record:
        pass
    (error,) = [error for _, error in record.probes.refused()]
    if "set_memory_decrypted" not in Path("/proc/kallsyms").read_text():
        assert "cannot convert pages" in str(error)
        return
    assert "set_memory_decrypted: Operation not permitted" in str(error)
    assert error.hint is not None
    assert "locked down" in error.hint


def refuse_kprobe(program: int, function: str, is_return: bool) -> int:
    """Attach nothing, as a kernel that is locked down."""
    del program, function, is_return
    raise PermissionError(1, "Operation not permitted")


def loaded_libcrypto() -> Path:
    """The libcrypto of this Python."""
    pytest.importorskip("ssl", reason="this Python has no OpenSSL")
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(None, 5)[-1]
        if os.path.basename(path).startswith("libcrypto"):  # noqa: PTH119 - a word, maybe no path
            return Path(path)
    pytest.skip("this Python has OpenSSL linked in")


def conversation(target: subprocess.Popen[str]) -> Callable[..., bool]:
    """A function that sends a word, if there are two, and expects a line."""
    assert target.stdin is not None
    assert target.stdout is not None
    write, read = target.stdin, target.stdout

    def answer(*words: str | None) -> bool:
        if len(words) > 1:
            write.write(f"{words[0]}\n")
            write.flush()
        expected = words[-1]
        return expected is None or read.readline() == f"{expected}\n"

    return answer
