"""Source ``user_crypto``: what libcrypto encrypts under the CUDA driver (opt-in).

A part of the path of pageable copies: what libcuda encrypts with code of its own is not
seen, and the engine's TLS is left out.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.elf import ElfFile
from cctrace.record.bpf.io_rows import head, io_events, named, sizes
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.kprobes import arm_calls, count_missed_returns
from cctrace.record.bpf.probes import Events, Probes, Rows
from cctrace.record.bpf.uprobes import UprobeLink, UprobePrograms
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

# The driver's crypto library, by the name of its file.
_DRIVER_LIBRARY: Final = re.compile(r"libnvidia-pkcs11.*\.so.*")

# (program, function): EVP_CipherUpdate calls one of the two, in 1.1.1 and 3.x alike.
_FUNCTIONS: Final = {
    "EVP_EncryptUpdate": "crypto_encrypt",
    "EVP_DecryptUpdate": "crypto_decrypt",
}
_DIRECTIONS: Final = {
    int(layout.IoOp.ENCRYPT): "encrypt",
    int(layout.IoOp.DECRYPT): "decrypt",
}
_PROC: Final = Path("/proc")


class UserCrypto:
    """OpenSSL's cipher calls below the CUDA driver.

    Args:
        ledger: Takes returns that were missed.
    """

    name = "user_crypto"
    kinds = (layout.Kind.CRYPTO,)
    files = ("calls.bpf.c", "user_crypto.bpf.c")

    def __init__(self, ledger: LossLedger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._probes: Probes | None = None
        self._programs: dict[str, UprobePrograms] = {}
        self._links: dict[tuple[int, int], list[UprobeLink]] = {}
        self._libraries: list[dict[str, Any]] = []
        self._processes = 0
        self._detached = False

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """No flags."""
        del tracefs
        return []

    def attach(self, probes: Probes) -> None:
        """Load the programs; ``attach_library`` puts them to a library."""
        self._probes = probes
        self._programs = {
            function: UprobePrograms(probes.module, f"on_{program}_entry", f"on_{program}_return")
            for function, program in _FUNCTIONS.items()
        }
        arm_calls(probes, layout.Kind.CRYPTO)

    def attach_library(self, path: Path) -> None:
        """Attach to a libcrypto; once per file, from any thread.

        Args:
            path: The file.

        Raises:
            CctraceError: It is no usable library, or lacks the functions.
            OSError: It cannot be opened.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            stat = os.fstat(fd)
            identity = (stat.st_dev, stat.st_ino)
            with self._lock:
                if identity in self._links or self._detached or not self._programs:
                    return
                with ElfFile(fd, str(path)) as elf:
                    found = {f.name: f.offset for f in elf.functions(_FUNCTIONS)}
                # By descriptor: the name may be one of another mount namespace.
                self._links[identity] = self._attach_functions(f"/proc/self/fd/{fd}", path, found)
        finally:
            os.close(fd)

    def driver_loaded(self, pid: int) -> None:
        """Count calls that come from the driver's crypto library, mapped by process ``pid``."""
        with self._lock:
            where = _code_range(pid)
            if where is None or self._probes is None or self._detached:
                return
            table = self._probes.module.table("crypto_callers")
            leaf = table.Leaf()
            leaf.first, leaf.end = where
            table[table.Key(pid)] = leaf
            self._processes += 1

    def decode(self, events: Events) -> Rows:
        """Rows of ``user_crypto``."""
        records = io_events(events)
        table = pa.Table.from_arrays(
            [*head(records), named(records["what"], _DIRECTIONS), sizes(records)],
            schema=TABLES["user_crypto"].arrow,
        )
        return [("user_crypto", table)]

    def poll(self) -> Rows:
        """Nothing beyond the ring."""
        return []

    def finish(self) -> Rows:
        """Count what never returned."""
        count_missed_returns(self._probes, layout.Kind.CRYPTO, self._ledger, self.name)
        return []

    def detail(self) -> dict[str, Any]:
        """What is probed, and in how many processes the driver's library was found."""
        return {"libraries": list(self._libraries), "driver_processes": self._processes}

    def detach(self) -> None:
        """Take the probes away."""
        with self._lock:
            self._detached = True
            for links in self._links.values():
                for link in links:
                    link.close()
            self._links.clear()

    def _attach_functions(self, file: str, path: Path, found: dict[str, int]) -> list[UprobeLink]:
        missing = sorted(set(_FUNCTIONS) - set(found))
        if not found:
            raise CctraceError(
                f"{path} has no {' and no '.join(missing)}",
                "it is not OpenSSL's libcrypto, or it was stripped of its symbols",
                EXIT_UNSUPPORTED,
            )
        links = []
        failed = {}
        for function, offset in found.items():
            link = self._programs[function].attach(file, [(offset, 0)])
            links.append(link)
            for _, error in link.failed:
                failed[function] = error.strerror or str(error)
        self._libraries.append(
            {"path": str(path), "functions": sorted(set(found) - set(failed))}
            | ({"missing": missing} if missing else {})
            | ({"refused": failed} if failed else {})
        )
        return links


def _code_range(pid: int) -> tuple[int, int] | None:
    """Addresses of the driver's crypto library's code in a process; None: not mapped.

    Source: proc_pid_maps(5).
    """
    try:
        lines = (_PROC / str(pid) / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    ranges = []
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 6 or "x" not in fields[1]:  # noqa: PLR2004 - the last is the path
            continue
        if _DRIVER_LIBRARY.match(fields[5].rpartition("/")[2]):
            first, _, end = fields[0].partition("-")
            ranges.append((int(first, 16), int(end, 16)))
    if not ranges:
        return None
    return min(first for first, _ in ranges), max(end for _, end in ranges)
