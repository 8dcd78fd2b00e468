"""Read the simulated device's own log of what was called and what the device did.

The simulator writes one file per process image into the directory that ``SIMCUDA_TRUTH``
names (README.md describes the format). cctrace never reads it: it is what tests compare a
recording with.

    for process in read(directory):
        copies = process.calls("cudaMemcpyAsync")
        print(process.pid, len(copies), copies["size_bytes"].sum())

``python truth.py DIRECTORY`` prints a summary.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

MAGIC: Final = b"SIMCUDA1"
VERSION: Final = 1
API: Final = 1
DEVICE: Final = 2

LAYERS: Final = {1: "runtime", 2: "driver", 3: "nccl"}
COPY_KINDS: Final = {0: None, 1: "h2d", 2: "d2h", 3: "d2d", 4: "p2p", 5: "h2h"}
HOST_MEMORY: Final = {0: None, 1: "pageable", 2: "pinned", 3: "registered", 4: "managed"}
OPS: Final = {
    1: "kernel",
    2: "copy",
    3: "memset",
    4: "graph",
    5: "host_func",
    6: "event",
    7: "wait",
    8: "collective",
    9: "alloc",
}

_HEADER: Final = struct.Struct("<8s6IQQQII64s")
_NAMES_AT: Final = 4096
_NAME_BYTES: Final = 64

API_RECORD: Final = np.dtype(
    [
        ("entry_ns", "<u8"),
        ("exit_ns", "<u8"),
        ("size_bytes", "<u8"),
        ("stream", "<u8"),
        ("correlation_id", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("result", "<i4"),
        ("api", "<u2"),
        ("copy_kind", "u1"),
        ("host_memory", "u1"),
        ("depth", "u1"),
        ("layer_depth", "u1"),
        ("layer", "u1"),
        ("reserved", "u1", 4),
        ("type", "u1"),
    ]
)
DEVICE_RECORD: Final = np.dtype(
    [
        ("enqueue_ns", "<u8"),
        ("start_ns", "<u8"),
        ("end_ns", "<u8"),
        ("done_ns", "<u8"),
        ("size_bytes", "<u8"),
        ("stream", "<u8"),
        ("correlation_id", "<u8"),
        ("device", "<u2"),
        ("op", "u1"),
        ("copy_kind", "u1"),
        ("host_memory", "u1"),
        ("reserved", "u1", 2),
        ("type", "u1"),
    ]
)

Records = npt.NDArray[np.void]


class TruthError(Exception):
    """A file is not a whole truth file of this version."""


@dataclass(frozen=True)
class Process:
    """What one process image called, and what its devices did.

    Attributes:
        path: The file.
        pid: The process.
        ppid: Its parent when the log began.
        start_ns: CLOCK_MONOTONIC when the log began.
        profile: The profile's name.
        dropped: Records that found the file full; 0 or the log is not the whole truth.
        names: API number -> (layer, function).
        api: n calls x API_RECORD, by entry time.
        device: n ops x DEVICE_RECORD, by start time.
    """

    path: Path
    pid: int
    ppid: int
    start_ns: int
    profile: str
    dropped: int
    names: dict[int, tuple[str, str]]
    api: Records
    device: Records

    def calls(self, *names: str) -> Records:
        """The calls of functions with these names, by entry time.

        Args:
            names: Exact names, suffixes included; none: all calls.

        Returns:
            n calls x API_RECORD.
        """
        if not names:
            return self.api
        wanted = [number for number, (_, name) in self.names.items() if name in names]
        return self.api[np.isin(self.api["api"], wanted)]

    def ops(self, *kinds: str) -> Records:
        """The device's work of these kinds (values of OPS), by start time.

        Args:
            kinds: None: all of it.

        Returns:
            n ops x DEVICE_RECORD.
        """
        if not kinds:
            return self.device
        wanted = [number for number, kind in OPS.items() if kind in kinds]
        return self.device[np.isin(self.device["op"], wanted)]

    def name(self, call: np.void) -> str:
        """The function that a call is of."""
        return self.names[int(call["api"])][1]

    def counts(self, layer: str | None = None) -> Counter[str]:
        """Calls by function, of one layer (a value of LAYERS) or of all."""
        numbers, counts = np.unique(self.api["api"], return_counts=True)
        return Counter(
            {
                self.names[int(number)][1]: int(count)
                for number, count in zip(numbers, counts, strict=True)
                if layer in (None, self.names[int(number)][0])
            }
        )


def read_file(path: Path) -> Process:
    """Read one file, of a process that may still run.

    Args:
        path: A file that the simulator wrote.

    Raises:
        TruthError: It is not one, or of another version.
    """
    data = path.read_bytes()
    if len(data) < _HEADER.size or data[:8] != MAGIC:
        raise TruthError(f"{path}: not a truth file of the simulated device")
    (_, version, header_bytes, record_bytes, chunk_bytes, pid, ppid, start_ns, chunks, dropped) = (
        _HEADER.unpack_from(data)[:10]
    )
    name_count = _HEADER.unpack_from(data)[10]
    profile = _HEADER.unpack_from(data)[12]
    if version != VERSION or record_bytes != API_RECORD.itemsize:
        raise TruthError(f"{path}: version {version}, this reader knows {VERSION}")
    names = {}
    for number in range(1, name_count):
        at = _NAMES_AT + number * _NAME_BYTES
        text = data[at + 1 : at + _NAME_BYTES].split(b"\0", 1)[0].decode("ascii")
        names[number] = (LAYERS[data[at]], text)
    body = data[header_bytes : header_bytes + chunks * chunk_bytes]
    body = body[: len(body) // record_bytes * record_bytes]
    records = np.frombuffer(body, API_RECORD)
    device = np.frombuffer(body, DEVICE_RECORD)
    api = records[records["type"] == API]
    device = device[device["type"] == DEVICE]
    return Process(
        path=path,
        pid=pid,
        ppid=ppid,
        start_ns=start_ns,
        profile=profile.split(b"\0", 1)[0].decode(),
        dropped=dropped,
        names=names,
        api=api[np.argsort(api["entry_ns"], kind="stable")],
        device=device[np.argsort(device["start_ns"], kind="stable")],
    )


def read(directory: Path | str) -> list[Process]:
    """Read every process's file in a directory, in the order they began.

    Raises:
        TruthError: A file is not a truth file of this version.
    """
    files = sorted(Path(directory).glob("truth-*.bin"))
    return sorted((read_file(path) for path in files), key=lambda process: process.start_ns)


def main() -> int:
    """Print what each process called."""
    arguments = sys.argv[1:]
    if len(arguments) != 1:
        print("usage: truth.py DIRECTORY", file=sys.stderr)
        return 2
    for process in read(arguments[0]):
        print(f"{process.path.name}: pid {process.pid}, profile {process.profile}")
        for name, count in sorted(process.counts().items()):
            took_ns = process.calls(name)["exit_ns"] - process.calls(name)["entry_ns"]
            print(f"  {count:8d}  median {int(np.median(took_ns)):10d} ns  {name}")
        for number, kind in OPS.items():
            ops = process.device[process.device["op"] == number]
            if len(ops):
                busy_ns = int((ops["end_ns"] - ops["start_ns"]).sum())
                print(f"  {len(ops):8d}  sum    {busy_ns:10d} ns  device: {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
