"""Find the Python interpreter of a process, and what the kernel needs to walk its frames.

The interpreter is a file that defines ``_PyRuntime``: libpython, or a program that has
it linked in. Its threads hang on that variable. Nothing in the process is believed
until it refers back: the first thread state must name the interpreter it was found by.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cctrace.errors import CctraceError
from cctrace.record.bpf.elf import ElfFile
from cctrace.record.bpf.layout import STACK_PROCESS, Python
from cctrace.record.bpf.stacks.memory import Memory
from cctrace.record.bpf.stacks.offsets import DEBUG_BYTES, TABLE, Offsets, debug_offsets
from cctrace.record.symbols import maps
from cctrace.record.symbols.frame import decode

_NAME: Final = re.compile(rb"(lib)?python\d")
_RUNTIME, _VERSION = "_PyRuntime", "Py_Version"
_CODE, _NONE = "PyCode_Type", "_Py_NoneStruct"
# Extension modules are named for the version; 3.10 has no Py_Version to read.
_WANTED: Final = (_RUNTIME, _VERSION, _CODE, _NONE)
_MODULE: Final = re.compile(rb"\.cpython-3(\d\d)-|python3\.(\d\d)")
_MAX_PROGRAM_BYTES: Final = 256 << 20
_MAX_LISTED: Final = 4096
_MAX_CANDIDATES: Final = 16
_MAX_TOLD: Final = 64  # threads whose numbers tell where a pthread has its own
# glibc for x86-64: tid in struct pthread (nptl/descr.h), after a header of 704 bytes
# and a list of two pointers.
_PTHREAD_TID: Final = 720
_MAX_PTHREAD: Final = 2048


@dataclass(frozen=True)
class Interpreter:
    """A Python that runs in a process.

    Attributes:
        version: (3, 11).
        path: Its file as the process has it.
        offsets: What it keeps where.
        threads_head: Address that holds the first thread state's; 0: it has not begun.
        code_type: Address of the type of code objects.
        none: Address of None, which frames of the interpreter's own run from 3.13 on.
        text: Start and length of its code.
        pthread_tid: 3.10: where in a struct pthread the kernel's number lies; else 0.
    """

    version: tuple[int, int]
    path: str
    offsets: Offsets
    threads_head: int
    code_type: int
    none: int
    text: tuple[int, int]
    pthread_tid: int


class NoWalkError(Exception):
    """There is a Python, and it cannot be walked; the text says why."""


def find_interpreter(pid: int, regions: Iterable[maps.Region]) -> Interpreter | None:
    """The interpreter of a process.

    Args:
        pid: The process.
        regions: Its executable mappings.

    Returns:
        It; None: the process runs no Python.

    Raises:
        NoWalkError: It does, and it cannot be walked.
    """
    regions = list(regions)
    for region in candidates(pid, regions):
        symbols = _symbols(pid, region)
        if _RUNTIME in symbols:
            return _Finder(pid, region, symbols, regions).find()
    return None


def candidates(pid: int, regions: Iterable[maps.Region]) -> list[maps.Region]:
    """Mappings of files that may be an interpreter's: by their name, and the program's own."""
    exe = b""
    with contextlib.suppress(OSError):
        exe = os.fsencode(os.readlink(f"/proc/{pid}/exe"))  # noqa: PTH115 - bytes
    found = [r for r in regions if r.is_file and (_is_named(r.path) or r.path == exe)]
    # A library before the program: one that is linked to libpython has none itself.
    found.sort(key=lambda region: b"libpython" not in region.path)
    return found[:_MAX_CANDIDATES]


def namespace(pid: int) -> tuple[int, int] | None:
    """Device and inode of a process's own process namespace; None: it is ours, or unknown."""
    with contextlib.suppress(OSError):
        theirs, ours = (os.stat(f"/proc/{of}/ns/pid") for of in (pid, "self"))  # noqa: PTH116 - no file
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            return theirs.st_dev, theirs.st_ino
    return None


def process_entry(interpreter: Interpreter | None, number: int, image: int, pid: int) -> np.void:
    """What the kernel is told of a process (``layout.STACK_PROCESS``).

    Args:
        interpreter: None: it runs no Python, or one that cannot be walked.
        number: What the kernel is to call it, not 0; processes that are forked from this
            one have it, too.
        image: When its program began, as the kernel has it.
        pid: The process.
    """
    entry: np.void = np.zeros(1, STACK_PROCESS)[0]
    entry["image"] = image
    entry["looked_at"] = number
    if interpreter is not None:
        offsets = interpreter.offsets
        entry["threads_head"] = interpreter.threads_head
        entry["text_start"], entry["text_bytes"] = interpreter.text
        entry["prev_at"], entry["next_at"] = offsets.prev, offsets.next
        entry["id_at"], entry["frame_at"] = offsets.thread, offsets.frame
        entry["cframe_at"] = offsets.cframe
        entry["pthread_tid_at"] = interpreter.pthread_tid
        entry["layout"] = offsets.layout
        entry["code_name_at"] = offsets.code.shown_name
        entry["code_file_at"] = offsets.code.filename
        entry["code_lines_at"] = offsets.code.linetable
        entry["text_hash_at"] = offsets.code.text_hash
        own = namespace(pid)
        if own is not None:
            entry["namespace_device"], entry["namespace_inode"] = own
    return entry


def _is_named(path: bytes) -> bool:
    return _NAME.match(path.rpartition(b"/")[2]) is not None


def _symbols(pid: int, region: maps.Region) -> dict[str, int]:
    """Addresses in the process of the variables that are wanted, of one file."""
    mapped = f"/proc/{pid}/map_files/{region.start:x}-{region.end:x}"
    try:
        with Path(mapped).open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_PROGRAM_BYTES:
                return {}
            with ElfFile(file.fileno(), os.fsdecode(region.path)) as elf:
                values = _values(elf, _WANTED)
                for load in elf.loads():
                    first = load.offset & -mmap.PAGESIZE
                    if load.executable and first <= region.offset < load.offset + load.size_bytes:
                        bias = region.start - region.offset - (load.address - load.offset)
                        return {name: value + bias for name, value in values.items()}
    except (OSError, CctraceError, ValueError):
        pass
    return {}


def _values(elf: ElfFile, wanted: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for symbols, strings in elf.symbol_tables():
        defined = symbols[symbols["section"] != 0]
        text = np.frombuffer(strings, np.uint8)
        for name in wanted:
            if name in found:
                continue
            # All symbols at once, a byte at a time: each pass leaves few for the next.
            rows = np.flatnonzero(defined["name"] + np.int64(len(name)) < len(text))
            for at, byte in enumerate(name.encode() + b"\0"):
                rows = rows[text[defined["name"][rows].astype(np.int64) + at] == byte]
            if len(rows):
                found[name] = int(defined["value"][rows[0]])
    return found


class _Finder:
    """One look at one process's interpreter."""

    def __init__(
        self, pid: int, region: maps.Region, symbols: dict[str, int], regions: list[maps.Region]
    ) -> None:
        self._pid = pid
        self._region = region
        self._symbols = symbols
        self._regions = regions
        self._memory = Memory(pid)

    def find(self) -> Interpreter:
        """Find all of it.

        Raises:
            NoWalkError: It cannot be walked.
        """
        path = decode(self._region.path)
        runtime, code_type = self._symbols[_RUNTIME], self._symbols.get(_CODE)
        if code_type is None:
            raise NoWalkError(f"{path} does not say where its code objects' type is")
        offsets = self._offsets(runtime)
        head = self._threads_head(runtime, offsets)
        pthread_tid = 0
        if offsets.layout is Python.V_3_10 and head:
            pthread_tid = self._pthread_tid(head, offsets)
        text = (self._region.start, self._region.end - self._region.start)
        none = self._symbols.get(_NONE, 0)
        return Interpreter(offsets.version, path, offsets, head, code_type, none, text, pthread_tid)

    def _offsets(self, runtime: int) -> Offsets:
        told = debug_offsets(self._memory.read(runtime, DEBUG_BYTES) or b"")
        if told is not None:
            return told
        version = self._version()
        known = TABLE.get(version) if version is not None else None
        if known is None:
            named = ".".join(map(str, version)) if version else "of an unknown version"
            raise NoWalkError(f"Python {named}: 3.10 to 3.14 can be walked")
        return known

    def _version(self) -> tuple[int, int] | None:
        if _VERSION in self._symbols:
            version = self._memory.u32(self._symbols[_VERSION])
            return (version >> 24 & 0xFF, version >> 16 & 0xFF) if version else None
        for region in (self._region, *self._regions):
            found = _MODULE.search(region.path)
            if found is not None:
                return (3, int(found[1] or found[2]))
        return None

    def _threads_head(self, runtime: int, offsets: Offsets) -> int:
        """Where the first interpreter keeps its newest thread state; 0: not yet."""
        interpreter = self._memory.u64(runtime + offsets.interpreters)
        for _ in range(_MAX_LISTED):
            if not interpreter:
                return 0
            older = self._memory.u64(interpreter + offsets.next_interpreter)
            if older is None:
                raise NoWalkError(f"Python {_shown(offsets)}: its interpreters cannot be read")
            if not older:
                break
            interpreter = older
        head = (interpreter or 0) + offsets.threads
        state = self._memory.u64(head)
        if not state:
            return 0
        if self._memory.u64(state + offsets.interpreter) != interpreter:
            raise NoWalkError(f"Python {_shown(offsets)}: its threads are not where they should be")
        return head

    def _pthread_tid(self, head: int, offsets: Offsets) -> int:
        """Where a struct pthread has the kernel's number of its thread."""
        numbers = _numbers(self._pid)
        state = self._memory.u64(head)
        pthreads: list[int] = []
        while state and len(pthreads) < _MAX_TOLD:
            pthreads.append(self._memory.u64(state + offsets.thread) or 0)
            state = self._memory.u64(state + offsets.next)
        at: int
        for at in (_PTHREAD_TID, *range(8, _MAX_PTHREAD, 4)):
            found = [self._memory.u32(pthread + at) for pthread in pthreads]
            if found and len(set(found)) == len(found) and set(found) <= numbers:
                return at
        raise NoWalkError(f"Python {_shown(offsets)}: its threads cannot be told apart")


def _shown(offsets: Offsets) -> str:
    return ".".join(map(str, offsets.version))


def _numbers(pid: int) -> set[int | None]:
    """What the threads of a process are to themselves."""
    numbers: set[int | None] = set()
    with contextlib.suppress(OSError):
        for tid in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names, not paths
            for line in Path(f"/proc/{pid}/task/{tid}/status").read_text().splitlines():
                if line.startswith("NSpid:"):
                    numbers.add(int(line.split()[-1]))
    return numbers
