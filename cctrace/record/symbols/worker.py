"""The child process that reads what traced processes could have written.

ELF files, debug information, perf maps and mangled names are of any size and may be
made to hurt: they are read here, under limits of memory and time, at low priority, and
as the first to go when the machine runs out of memory. What a file breaks is this
process, not the recorder.

A keeper forks the process that does the work, and another one when that has died. It is
made before the recorder starts its target (record/tree.py takes later children for the
target's), and ends when the recorder's end of the socket closes.

Each request is one packet with descriptors: a memory file with the request, JSON, then
those it is about. The worker says ``took N``, writes its answer, JSON, over the request,
and says ``done N``; the keeper says ``died`` where a worker did.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import socket
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cctrace.record.symbols import debug_files, perf_map
from cctrace.record.symbols.limits import MAX_DESCRIPTORS, MAX_REQUEST_BYTES
from cctrace.record.symbols.module import BAD_FILE, Module

_MEMORY_BYTES: Final = 6 << 30  # address space, file mappings included
_KEPT_BYTES: Final = 512 << 20  # of modules made ready, from one request to the next
_MAX_DEATHS: Final = 1000
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_VDSO: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$", re.MULTILINE)

Answer = dict[str, Any]


class Kept:
    """Modules and maps that are ready, the longest unused ones dropped first."""

    def __init__(self) -> None:
        self._modules: OrderedDict[object, Module] = OrderedDict()
        self._maps: OrderedDict[object, perf_map.PerfMap | None] = OrderedDict()

    def module(self, key: object, make: Callable[[], Module]) -> Module:
        """The module of that key, made if need be."""
        module = self._modules.pop(key, None) or make()
        self._modules[key] = module
        return module

    def map(
        self, key: object, make: Callable[[], perf_map.PerfMap | None]
    ) -> perf_map.PerfMap | None:
        """The perf map of that key, read if need be."""
        if key not in self._maps:
            self._maps.clear()  # one process's at a time: they are asked for in turn
            self._maps[key] = make()
        return self._maps[key]

    def shrink(self) -> None:
        """Drop what is beyond the room there is."""
        total = sum(module.size_bytes for module in self._modules.values())
        while self._modules and total > _KEPT_BYTES:
            total -= self._modules.popitem(last=False)[1].size_bytes


def answer(request: dict[str, Any], fds: list[int], kept: Kept) -> Answer:
    """Do what a request asks for.

    Args:
        request: ``op`` and what it needs: see :mod:`.resolver`, which makes them.
        fds: What it is about; they stay the caller's.
        kept: What earlier requests left.

    Returns:
        ``frames``: for each address a list of (function, file, line, kind), innermost
        first; ``known``: for each whether it has a function; or ``reason`` alone.
    """
    try:
        if request["op"] == "perf_map":
            return _by_perf_map(request, fds[0], kept)
        if request["op"] == "vdso":
            found: Module | None = kept.module("vdso", _vdso)
        else:
            found = _module(request, fds, kept)
    except BAD_FILE:
        return {"reason": "bad_file"}
    if found is None:
        return {"reason": "changed_file"}
    frames, known = [], []
    for offset, back in zip(request["addresses"], request["backs"], strict=True):
        places, is_known = found.frames(offset, back)
        frames.append([(*place, "native") for place in places])
        known.append(is_known)
    kept.shrink()
    return {"frames": frames, "known": known, "note": found.note}


def _module(request: dict[str, Any], fds: list[int], kept: Kept) -> Module | None:
    """The module that the first descriptor leads to; None: its file has been changed."""
    status = os.fstat(fds[0])
    if [status.st_size, status.st_mtime_ns] != request["stamp"]:
        return None

    def make() -> Module:
        fd = debug_files.reopen(fds[0])
        try:
            return Module(fd, request["directory"], fds[1:], lines=request["lines"])
        finally:
            os.close(fd)

    return kept.module((request["key"], request["lines"]), make)


def _vdso() -> Module:
    """Our own vDSO: the kernel gives the same one to every 64-bit process."""
    found = _VDSO.search(Path("/proc/self/maps").read_text())
    if found is None:
        raise ValueError("no vDSO")
    start, end = int(found[1], 16), int(found[2], 16)
    fd = os.memfd_create("vdso")
    try:
        os.write(fd, ctypes.string_at(start, end - start))
        return Module(fd, "/", (), lines=False)
    finally:
        os.close(fd)


def _by_perf_map(request: dict[str, Any], root: int, kept: Kept) -> Answer:
    """Names of code that the process made itself."""

    def make() -> perf_map.PerfMap | None:
        return perf_map.read(fd, request["uid"], request["not_before_s"])

    try:
        fd = debug_files.open_regular(root, request["path"])
    except OSError:
        return {"reason": "no_perf_map"}
    try:
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, request["uid"])
        names = kept.map(key, make)
    finally:
        os.close(fd)
    if names is None:
        return {"reason": "no_perf_map"}
    frames: list[list[tuple[str | None, str | None, int | None, str]]] = []
    known = []
    for address, back in zip(request["addresses"], request["backs"], strict=True):
        named = names.find(address - back)
        known.append(named is not None)
        function, file, kind = named or (f"{address:#x}", None, "native")
        frames.append([(function, file, None, kind)])
    return {"frames": frames, "known": known, "note": None}


def serve(channel: socket.socket) -> None:
    """Answer requests until the other end closes."""
    kept = Kept()
    while True:
        packet, fds, _, _ = socket.recv_fds(channel, 64, MAX_DESCRIPTORS)
        try:
            if not packet:
                return
            _serve_one(channel, int(packet), fds, kept)
        finally:
            for fd in fds:
                os.close(fd)


def _serve_one(channel: socket.socket, number: int, fds: list[int], kept: Kept) -> None:
    channel.send(b"took %d" % number)
    request = json.loads(os.pread(fds[0], MAX_REQUEST_BYTES, 0))
    # Its default action ends the process, within whatever library it is.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    content = json.dumps(answer(request, fds[1:], kept)).encode()
    os.ftruncate(fds[0], 0)
    os.lseek(fds[0], 0, os.SEEK_SET)
    for start in range(0, len(content), 1 << 20):
        os.write(fds[0], content[start : start + (1 << 20)])
    signal.setitimer(signal.ITIMER_REAL, 0)
    channel.send(b"done %d" % number)


def limit() -> None:
    """Take little, and give way."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bytes_max = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_max, hard))


def keep(channel: socket.socket) -> None:
    """Have a process that serves, until one ends in peace: the recorder has closed."""
    keeper = os.getpid()
    for _ in range(_MAX_DEATHS):
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text("1000")
            if os.getppid() == keeper:
                serve(channel)
            return
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return
        with contextlib.suppress(OSError):
            channel.send(b"died")


def main(fd: int) -> None:
    """Run in the child, with its end of the socket."""
    limit()
    with socket.socket(fileno=fd) as channel:
        keep(channel)
