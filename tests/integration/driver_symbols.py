"""Where a CUDA driver's entry points are, by name and through cuGetProcAddress.

Run as a script it loads the driver and answers as JSON; a child of its own, so that
no driver stays loaded in the tests. :func:`look_up` runs it, :func:`markdown` makes a
table of the answer. Uprobes sit at addresses: a call through a pointer of
cuGetProcAddress meets the probe of a symbol only where both are the same address.

Source: cuda.h (CUDA 13): cuGetProcAddress_v2, CUdriverProcAddress_flags; a name is
asked for without its suffixes, the version and the flags choose among them.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cctrace.record.bpf.cuda.symbols import symbol_table

LIBRARY = "libcuda.so.1"
LIMIT_S = 120

_SUFFIXES = re.compile(r"^(?P<name>cu\w+?)(?P<version>_v\d+)?(?P<stream>_ptds|_ptsz)?$")
_LEGACY, _PER_THREAD = 1, 2
_PROLOGUE_BYTES = 16
# What the first instruction means for a uprobe: emulated, or single-stepped at ten times
# the cost. Bytes: Intel SDM; which are emulated: arch/x86/kernel/uprobes.c.
_FIRST = (
    (b"\x55", "push %rbp"),
    (b"\x0f\x1f\x44\x00\x00", "nop5"),
    (b"\xf3\x0f\x1e\xfa", "endbr64"),
    (b"\x48\x83\xec", "sub %rsp"),
    (b"\x48\x81\xec", "sub %rsp"),
    (b"\xe9", "jmp"),
    (b"\xeb", "jmp"),
)


def probed() -> list[str]:
    """The driver's symbols that cctrace has probes for, from their table."""
    return sorted(symbol_table().by_name("cuda"))


def first_instruction(code: bytes) -> str:
    """Name the first instruction of a function, or give its bytes."""
    for start, name in _FIRST:
        if code.startswith(start):
            return name
    if 0x50 <= code[0] <= 0x57:
        return "push"
    if code[0] == 0x41 and 0x50 <= code[1] <= 0x57:
        return "push (r8-r15)"
    return code[:4].hex(" ")


def look_up(symbols: list[str], **run: Any) -> dict[str, Any]:
    """Ask a child process about ``symbols``; ``run`` goes to subprocess.run.

    Returns:
        ``error`` where there is no driver or device; else ``driver_version``, ``path``
        and ``symbols``: for each its name, whether exported, ``equal`` (some version
        asked of cuGetProcAddress gives the exported address), ``newest`` (the exported
        name that the driver's own version gives), ``code`` (first bytes, hex) and
        whether the file has the same bytes at that offset (``as_in_file``).
    """
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(symbols),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
        **run,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def markdown(answer: dict[str, Any]) -> str:
    """Return the answer as the tables of docs/measurements.md."""
    found = [row for row in answer["symbols"] if row["exported"]]
    firsts = Counter(first_instruction(bytes.fromhex(row["code"])) for row in found)
    equal = sum(row["equal"] for row in found)
    lines = [
        f"Driver {answer['driver_version']}: {len(answer['symbols'])} symbols are probed.",
        f"It exports {len(found)}; {equal} of those are what cuGetProcAddress gives.",
        "",
        "| first instruction | symbols |",
        "| --- | --- |",
        *(f"| `{name}` | {count} |" for name, count in firsts.most_common()),
        "",
        "| symbol | equal | newest by pointer | first instruction |",
        "| --- | --- | --- | --- |",
    ]
    for row in found:
        first = first_instruction(bytes.fromhex(row["code"]))
        same = "yes" if row["equal"] else "**no**"
        lines.append(f"| `{row['name']}` | {same} | `{row['newest']}` | `{first}` |")
    return "\n".join(lines)


def _versions(newest: int) -> list[int]:
    """All versions CUDA can have had, up to the driver's: 1000 x major + 10 x minor."""
    majors = range(2, newest // 1000 + 1)
    found = [1000 * major + 10 * minor for major in majors for minor in range(10)]
    return [version for version in found if version <= newest]


def _file_bytes(address: int) -> tuple[str, bytes]:
    """The file mapped at an address, and its bytes there."""
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            span, _, offset, _, _, *path = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end and path:
                name = path[0].strip()
                with Path(name).open("rb") as file:
                    file.seek(address - start + int(offset, 16))
                    return name, file.read(_PROLOGUE_BYTES)
    return "", b""


class Driver:
    """The loaded driver, asked by name and by cuGetProcAddress."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(LIBRARY)
        status = self.library.cuInit(0)
        count, version = ctypes.c_int(), ctypes.c_int()
        if status == 0:
            status = self.library.cuDeviceGetCount(ctypes.byref(count))
        if status != 0 or count.value == 0:
            raise OSError(f"{LIBRARY} finds no device (CUresult {status})")
        self.library.cuDriverGetVersion(ctypes.byref(version))
        self.version = version.value
        self.versions = _versions(self.version)
        self._get = self.library.cuGetProcAddress_v2
        self._get.argtypes = (
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.POINTER(ctypes.c_int),
        )

    def exported(self, name: str) -> int | None:
        """The address of an exported symbol."""
        try:
            return ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value
        except AttributeError:
            return None

    def pointer(self, name: str, version: int, flags: int) -> int | None:
        """What cuGetProcAddress gives for a name."""
        found, status = ctypes.c_void_p(), ctypes.c_int()
        result = self._get(name.encode(), ctypes.byref(found), version, flags, ctypes.byref(status))
        return found.value if result == 0 and status.value == 0 else None

    def row(self, symbol: str, names: dict[int, str]) -> dict[str, Any]:
        """All about one symbol; ``names``: exported names by address."""
        address = self.exported(symbol)
        if address is None:
            return {"name": symbol, "exported": False}
        parts = _SUFFIXES.match(symbol)
        base = parts["name"] if parts else symbol
        flags = _PER_THREAD if parts and parts["stream"] else _LEGACY
        pointers = [self.pointer(base, version, flags) for version in self.versions]
        newest = pointers[-1]
        code = ctypes.string_at(address, _PROLOGUE_BYTES)
        return {
            "name": symbol,
            "exported": True,
            "equal": address in pointers,
            "newest": None if newest is None else names.get(newest, hex(newest)),
            "code": code.hex(),
            "as_in_file": _file_bytes(address)[1] == code,
        }


def _main() -> None:
    symbols = json.load(sys.stdin)
    try:
        driver = Driver()
    except OSError as error:
        json.dump({"error": str(error)}, sys.stdout)
        return
    names: dict[int, str] = {}
    for symbol in symbols:
        address = driver.exported(symbol)
        if address is not None:
            names.setdefault(address, symbol)
    path = _file_bytes(next(iter(names), 0))[0]
    rows = [driver.row(symbol, names) for symbol in symbols]
    json.dump({"driver_version": driver.version, "path": path, "symbols": rows}, sys.stdout)


if __name__ == "__main__":
    _main()
