"""A recorder's server and library watch, and programs that load libraries under it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agent_harness import TARGETS, _native

from cctrace.errors import CctraceError
from cctrace.record import libraries
from cctrace.record.bpf import frontend, probes, syscalls
from cctrace.record.bpf.headers import find_headers
from cctrace.record.libraries import LibraryWatch, LoadedLibrary
from cctrace.record.losses import LossLedger
from cctrace.record.segment import Segment
from cctrace.record.server import Handlers, HandoverServer, Peer

PATTERN = r"libcudart.*\.so"
DEADLINE_S = 60.0


def audit_library() -> Path:
    """The auditor under test."""
    return _native("libcctrace_audit.so")


def build(folder: Path, source: str, output: str, *flags: str) -> Path:
    """Compile a test program or library; every warning is an error."""
    place = folder / output
    command = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    command += [str(TARGETS / source), "-o", str(place), *flags, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return place


@dataclass
class Watching:
    """A recorder as far as libraries go.

    Attributes:
        calls: Path as given, and process, of each call to attach.
        on_attach: Called then, with the path and process.
    """

    folder: Path
    on_attach: Callable[[Path, int | None], None] = lambda _path, _pid: None
    ledger: LossLedger = field(default_factory=LossLedger)
    calls: list[tuple[Path, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = LibraryWatch([("cudart", PATTERN, self._attach)], self.ledger)
        self.late_told = threading.Event()

    def _attach(self, path: Path, pid: int | None) -> None:
        self.calls.append((path, pid))
        self.on_attach(path, pid)

    def handlers(self) -> Handlers:
        """The handlers of a session that only watches libraries."""

        def hello(peer: Peer, token: int) -> Segment:
            raise AssertionError((peer, token))

        def late(peer: Peer, path: bytes, address: int) -> None:
            self.watch.missed(peer.pid, path, address)
            self.late_told.set()

        return Handlers(
            is_traced=lambda _: True,
            hello=hello,
            more=lambda _peer, _token: None,
            report=lambda _peer, _report: None,
            library=lambda peer, path, address: self.watch.announced(peer.pid, path, address),
            library_late=late,
        )

    @contextmanager
    def serving(self) -> Iterator[HandoverServer]:
        """Answer processes meanwhile."""
        server = HandoverServer(self.handlers(), self.ledger)
        server.start()
        try:
            yield server
        finally:
            server.close()

    def one(self) -> LoadedLibrary:
        """The only record."""
        (record,) = self.watch.records()
        return record


def environment(socket: Path, **extra: str) -> dict[str, str]:
    """The environment of a program whose loads are announced."""
    base = {**os.environ, **extra}
    return {**base, **libraries.environment(base, socket, audit_library())}


def run(
    command: list[str | Path], env: dict[str, str], *, status: int = 0, stderr: str = ""
) -> str:
    """Run a program to its end; returns what it printed."""
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stderr) == (status, stderr)
    return done.stdout


def make_fifo(folder: Path, name: str) -> Path:
    """A new fifo."""
    os.mkfifo(folder / name)
    return folder / name


def needs_mounts() -> None:
    """Skip where the test may not mount in a namespace of its own."""
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot make a mount namespace: {done.stderr.strip()}")


class Counter:
    """Counts the calls of ``audit_call`` of each library attached to, by real uprobes.

    Args:
        library: One of them; the others are copies.
        counters: How many at most.
    """

    def __init__(self, library: Path, counters: int) -> None:
        try:
            probes.require_bpf()
            files = [TARGETS / "audit_count.bpf.c"]
            self.module = frontend.Module(files, [f"-DCOUNTERS={counters}"], find_headers())
            self.program = self.module.load(
                "on_call", frontend.KPROBE, syscalls.BPF_TRACE_UPROBE_MULTI
            )
        except (CctraceError, OSError) as error:
            pytest.skip(f"no uprobes here: {error}")
        self.offset = _file_offset(library, "audit_call")
        self.content = library.read_bytes()
        self.links: list[int] = []

    def attach(self, path: Path, pid: int | None) -> None:
        """Attach to one more library; its cookie is its number.

        A probe amid an instruction of another library would harm whoever runs it.
        """
        if path.read_bytes() != self.content:
            raise CctraceError(f"{path}, loaded by {pid}, is not the tests' library")
        site = [(self.offset, len(self.links))]
        link = syscalls.link_uprobe_multi(self.program, str(path), site, is_return=False)
        self.links.append(link)

    def hits(self) -> list[int]:
        """Calls counted, by number."""
        counts = [int(leaf.value) for leaf in self.module.table("hits").values()]
        return counts[: len(self.links)]

    def reset(self) -> None:
        """Detach from all, and count from 0."""
        syscalls.close_all(self.links)
        self.links.clear()
        self.module.table("hits").clear()

    def close(self) -> None:
        """Give the program back."""
        self.reset()
        self.module.close()


def _file_offset(library: Path, symbol: str) -> int:
    """Where a function lies in the file, as binutils has it."""

    def words(option: str) -> list[list[str]]:
        out = subprocess.run(
            ["readelf", "-W", option, library], check=True, capture_output=True, text=True
        ).stdout
        return [line.split() for line in out.splitlines()]

    address = next(int(w[1], 16) for w in words("--dyn-syms") if w[-1:] == [symbol])
    for word in words("--segments"):
        if word[:1] == ["LOAD"]:
            offset, start, size = int(word[1], 16), int(word[2], 16), int(word[4], 16)
            if start <= address < start + size:
                return address - start + offset
    raise AssertionError(f"{symbol} is in no segment")


def copies(programs: Path, folder: Path, count: int) -> list[Path]:
    """Copies of the library under names and in folders nobody could know."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    paths = []
    for i in range(count):
        place = folder / f"{dice.randrange(1 << 40):x} é{i}"
        place.mkdir()
        name = dice.choice(["libcudart.so", "libcudart.so.12.8", "libcudart-d0da41ae.so.11.0"])
        paths.append(place / name)
        shutil.copyfile(programs / "libcudart.so.12", paths[-1])
    return paths
