"""A recorder for tests of the C agent alone.

It gives segments out over the socket as ``probes/agent/cctrace_shm.h`` says and
reads them with ``struct``, without a line of the real recorder, so that an
error in one does not hide behind the same error in the other.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from nvtx_truth import Line, only_log, read_log

from cctrace.resources import native_library

__all__ = ["Line", "only_log", "read_log"]  # for the tests that use both

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ROOT / "tests" / "targets"

MAGIC = 0x31474553544343
WIRE_MAGIC = 0x57544343
HELLO, MORE, REPORT = 1, 2, 3
FREE, LIVE, EXITED = 0, 1, 2
PUSH_POP, MARK, START, END = 1, 2, 3, 4
KEY, DOMAIN, CATEGORY, THREAD = 1, 2, 3, 4
HAS_TEXT, TRUNCATED, HAS_COLOR = 1, 2, 4
(
    RING_FULL,
    STACK_OVERFLOW,
    STRING_TABLE_FULL,
    REENTRANT,
    UNMATCHED_POP,
    TRUNCATED_STRING,
    NO_SLOT,
) = range(7)

REQUEST = struct.Struct("<IHHIIQ")
REPLY = struct.Struct("<IHHQQ")
RECORD = struct.Struct("<QQQIHBB")
FRAME = struct.Struct("<QQIIHBBI")
ENTRY = struct.Struct("<8I")
LOSS = struct.Struct("<3Q")
HEADER = struct.Struct("<QIIQIIIIQQQQQQQ")

SLOTS_AT = 384  # a cache line boundary beyond the header
DICT_HEAD_AT = 120
SEGMENT_LOSSES_AT = 184
SLOT_BYTES = 384
SLOT_HEAD_AT = 64
SLOT_DEPTH_AT = 72
SLOT_TAIL_AT = 128
SLOT_LOSSES_AT = 192


@dataclass(frozen=True)
class Geometry:
    """Sizes of the segments a recorder gives out."""

    slots: int = 8
    ring_records: int = 4096
    stack_frames: int = 64
    dict_bytes: int = 1 << 20

    def header(self, index: int) -> bytes:
        """The header as the agent must find it, up to the agent's own part."""
        slots_at = SLOTS_AT
        rings_at = slots_at + self.slots * SLOT_BYTES
        ring_stride = self.ring_records * RECORD.size
        stacks_at = rings_at + self.slots * ring_stride
        stack_stride = self.stack_frames * FRAME.size
        dict_at = stacks_at + self.slots * stack_stride
        dict_bytes = self.dict_bytes if index == 0 else 0
        return HEADER.pack(
            MAGIC,
            1,
            index,
            dict_at + dict_bytes,
            self.slots,
            self.ring_records,
            self.stack_frames,
            0,
            slots_at,
            rings_at,
            ring_stride,
            stacks_at,
            stack_stride,
            dict_at,
            dict_bytes,
        )


@dataclass(frozen=True)
class Event:
    """One record or open range, names resolved."""

    kind: int
    ts_ns: int
    value: int
    payload: int
    payload_type: int
    depth: int
    tid: int
    domain: str | None
    name: str | None
    category: str | int
    color: int | None
    truncated: bool = False


@dataclass
class Dictionary:
    """The decoded dictionary log."""

    keys: dict[int, tuple[int, int, int, int, bytes]] = field(default_factory=dict)
    domains: dict[int, str] = field(default_factory=dict)
    categories: dict[tuple[int, int], str] = field(default_factory=dict)
    threads: dict[int, str] = field(default_factory=dict)


@dataclass
class Slot:
    """A slot as it lies in the segment, its ring read from ``tail`` to ``head``."""

    state: int
    tid: int
    head: int
    tail: int
    records: list[tuple[int, ...]]
    frames: list[tuple[int, ...]]
    losses: dict[int, tuple[int, int, int]]


class Segment:
    """A memfd given to one process image."""

    def __init__(
        self, geometry: Geometry, index: int, header: bytes | None = None, *, sealed: bool = True
    ) -> None:
        self.geometry = geometry
        good = geometry.header(index)
        self.bytes = struct.unpack_from("<Q", good, 16)[0]
        self.fd = os.memfd_create("cctrace-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.bytes)
        if sealed:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.map = mmap.mmap(self.fd, self.bytes)
        self.map[: len(good)] = header if header is not None else good

    def close(self) -> None:
        """Give the memory back."""
        self.map.close()
        os.close(self.fd)

    def _losses(self, offset: int) -> dict[int, tuple[int, int, int]]:
        found = {}
        for reason in range(8):
            count, first, last = LOSS.unpack_from(self.map, offset + reason * LOSS.size)
            if count:
                assert 0 < first <= last
                found[reason] = (count, first, last)
        return found

    def losses(self) -> dict[int, tuple[int, int, int]]:
        """Losses of no slot: reason to count, first_ns and last_ns."""
        return self._losses(SEGMENT_LOSSES_AT)

    def slot(self, i: int) -> Slot:
        """Read slot ``i``."""
        g = self.geometry
        at = SLOTS_AT + i * SLOT_BYTES
        ring_at = SLOTS_AT + g.slots * SLOT_BYTES + i * g.ring_records * RECORD.size
        stacks_at = SLOTS_AT + g.slots * (SLOT_BYTES + g.ring_records * RECORD.size)
        stack_at = stacks_at + i * g.stack_frames * FRAME.size
        state, tid = struct.unpack_from("<II", self.map, at)
        (head,) = struct.unpack_from("<Q", self.map, at + SLOT_HEAD_AT)
        (depth,) = struct.unpack_from("<I", self.map, at + SLOT_DEPTH_AT)
        (tail,) = struct.unpack_from("<Q", self.map, at + SLOT_TAIL_AT)
        assert head - tail <= g.ring_records
        assert depth <= g.stack_frames
        records = [
            RECORD.unpack_from(self.map, ring_at + (n % g.ring_records) * RECORD.size)
            for n in range(tail, head)
        ]
        frames = [FRAME.unpack_from(self.map, stack_at + n * FRAME.size) for n in range(depth)]
        return Slot(state, tid, head, tail, records, frames, self._losses(at + SLOT_LOSSES_AT))

    def drain(self, i: int) -> list[tuple[int, ...]]:
        """Take slot ``i``'s records and free the slot if its thread is gone."""
        at = SLOTS_AT + i * SLOT_BYTES
        slot = self.slot(i)
        struct.pack_into("<Q", self.map, at + SLOT_TAIL_AT, slot.head)
        if slot.state == EXITED:
            struct.pack_into("<I", self.map, at, FREE)
        return slot.records

    def dictionary(self) -> Dictionary:
        """Decode the dictionary log, checking its numbering."""
        dict_at = struct.unpack_from("<Q", self.map, 80)[0]
        (head,) = struct.unpack_from("<Q", self.map, DICT_HEAD_AT)
        assert head <= self.geometry.dict_bytes
        result = Dictionary()
        at = 0
        while at < head:
            kind, ident, domain, category, color, flags, size, _ = ENTRY.unpack_from(
                self.map, dict_at + at
            )
            start = dict_at + at + ENTRY.size
            text = bytes(self.map[start : start + size])
            at += ENTRY.size + (size + 7) // 8 * 8
            if kind == KEY:
                assert ident == len(result.keys) + 1
                assert domain <= len(result.domains)
                result.keys[ident] = (domain, category, color, flags, text)
            elif kind == DOMAIN:
                assert ident == len(result.domains) + 1
                result.domains[ident] = text.decode()
            elif kind == CATEGORY:
                result.categories[domain, ident] = text.decode()
            else:
                assert kind == THREAD
                result.threads[ident] = text.decode()
        assert at == head
        return result


@dataclass
class Image:
    """One process image: its pid and its segments."""

    pid: int
    token: int
    segments: list[Segment]

    def slots(self) -> list[Slot]:
        """Slots that were ever claimed."""
        found = [s.slot(i) for s in self.segments for i in range(s.geometry.slots)]
        return [slot for slot in found if slot.tid]

    def events(self) -> list[Event]:
        """All finished events, per slot in the order they were written."""
        return [self._event(s.tid, r) for s in self.slots() for r in s.records]

    def open_ranges(self) -> list[Event]:
        """Ranges pushed and not popped, outermost first."""
        found = []
        for slot in self.slots():
            for ts_ns, payload, key, domain, depth, payload_type, closed, _ in slot.frames:
                if closed:
                    continue
                record = (ts_ns, 0, payload, key, depth, PUSH_POP, payload_type)
                event = self._event(slot.tid, record)
                names = self.segments[0].dictionary().domains
                assert key == 0 or event.domain == names.get(domain)
                found.append(event)
        return found

    def _event(self, tid: int, record: tuple[int, ...]) -> Event:
        ts_ns, value, payload, key, depth, kind, payload_type = record
        names = self.segments[0].dictionary()
        domain, category, color, flags, text = names.keys[key] if key else (0, 0, 0, 0, b"")
        return Event(
            kind=kind,
            ts_ns=ts_ns,
            value=value,
            payload=payload,
            payload_type=payload_type,
            depth=depth,
            tid=tid,
            domain=names.domains[domain] if domain else None,
            name=text.decode() if flags & HAS_TEXT else None,
            category=names.categories.get((domain, category), category),
            color=color if flags & HAS_COLOR else None,
            truncated=bool(flags & TRUNCATED),
        )

    def losses(self) -> dict[int, int]:
        """Reason to count, over the process image."""
        total: dict[int, int] = {}
        parts = [s.losses for s in self.slots()] + [s.losses() for s in self.segments]
        for part in parts:
            for reason, (count, _, _) in part.items():
                total[reason] = total.get(reason, 0) + count
        return total


class Recorder:
    """Answers the agent's requests in a thread of its own."""

    def __init__(self, geometry: Geometry | None = None) -> None:
        self.geometry = geometry or Geometry()
        self.images: list[Image] = []
        self.requests: list[tuple[int, int]] = []  # type, peer's pid
        self.refuse = False
        self.header: bytes | None = None
        self.sealed = True
        self.segments_max = 64
        self._directory = tempfile.mkdtemp(prefix="cctrace-test-")
        self.path = str(Path(self._directory) / "agent.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(self.path)
        self._socket.listen(64)
        self._thread = threading.Thread(target=self._serve)
        self._lock = threading.Lock()

    def __enter__(self) -> Recorder:  # noqa: PYI034 - typing.Self needs Python 3.11
        self._thread.start()
        return self

    def stop(self) -> None:
        """Answer no longer, as if killed: the socket's file stays."""
        if self._thread.is_alive():
            self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._socket.close()

    def __exit__(self, *_: object) -> None:
        self.stop()
        for image in self.images:
            for segment in image.segments:
                segment.close()
        shutil.rmtree(self._directory)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer:
                request = peer.recv(REQUEST.size + 1)
                credentials = peer.getsockopt(
                    socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
                )
                self._answer(peer, request, struct.unpack("3i", credentials)[0])

    def _answer(self, peer: socket.socket, request: bytes, pid: int) -> None:
        magic, version, kind, said_pid, _, token = REQUEST.unpack(request)
        assert (magic, version, said_pid) == (WIRE_MAGIC, 1, pid)
        with self._lock:
            self.requests.append((kind, pid))
            if kind == HELLO:
                assert token == 0
                image = Image(pid, 1000 + len(self.images), [])
            else:
                image = next(i for i in self.images if i.token == token)
            if self.refuse or len(image.segments) >= self.segments_max:
                peer.send(REPLY.pack(WIRE_MAGIC, 1, 1, 0, 0))
                return
            segment = Segment(self.geometry, len(image.segments), self.header, sealed=self.sealed)
            image.segments.append(segment)
            if kind == HELLO:
                self.images.append(image)
            reply = REPLY.pack(WIRE_MAGIC, 1, 0, image.token, segment.bytes)
            socket.send_fds(peer, [reply], [segment.fd])

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of a traced program."""
        return {
            **os.environ,
            "NVTX_INJECTION64_PATH": str(agent_library()),
            "CCTRACE_SOCKET": self.path,
            "CCTRACE_EMIT": str(emit_library()),
            **extra,
        }


def _native(name: str) -> Path:
    given = os.environ.get("CCTRACE_TEST_NATIVE")
    return Path(given) / name if given else native_library(name)


def agent_library() -> Path:
    """The agent under test; CCTRACE_TEST_NATIVE names another directory of it."""
    return _native("libcctrace_agent.so")


def emit_library() -> Path:
    """The emitter under test."""
    return _native("libcctrace_emit.so")


def nvtx_include() -> str:
    """Where the NVTX headers are."""
    script = ROOT / "scripts" / "nvtx_include.py"
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def compile_c(source: Path, output: Path, *flags: str) -> Path:
    """Compile a test program; every warning is an error."""
    command = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    command += ["-isystem", nvtx_include(), str(source), "-o", str(output), *flags]
    subprocess.run(command, check=True)
    return output


KINDS = {"push_pop": PUSH_POP, "mark": MARK, "start": START, "end": END, "open": PUSH_POP}


def _what(line: Line) -> tuple[object, ...]:
    return (
        KINDS[line.kind],
        line.domain,
        line.name,
        line.category,
        line.payload_type,
        line.payload,
        line.depth,
        line.color,
    )


def _seen(event: Event) -> tuple[object, ...]:
    return (
        event.kind,
        event.domain,
        event.name,
        str(event.category),
        event.payload_type,
        event.payload,
        event.depth,
        event.color,
    )


def assert_recorded(images: list[Image], lines: list[Line]) -> None:
    """Every event of one process, and no other, in order, at the right time."""
    events = [event for image in images for event in image.events()]
    for tid in sorted({line.tid for line in lines} | {event.tid for event in events}):
        made = [li for li in lines if li.tid == tid and li.kind not in ("open", "unmatched")]
        seen = [event for event in events if event.tid == tid]
        assert [_what(line) for line in made] == [_seen(event) for event in seen]
        for line, event in zip(made, seen, strict=True):
            assert line.start_lo <= event.ts_ns <= line.start_hi
            if line.kind == "push_pop":
                assert line.end_lo <= event.ts_ns + event.value <= line.end_hi
            elif line.kind in ("start", "end"):
                assert line.range_id == event.value
        starts = [event.ts_ns for event in seen]
        assert len(set(starts)) == len(starts)
    still_open = [line for line in lines if line.kind == "open"]
    found = [event for image in images for event in image.open_ranges()]
    assert [_what(line) for line in still_open] == [_seen(event) for event in found]
    for line, event in zip(still_open, found, strict=True):
        assert line.start_lo <= event.ts_ns <= line.start_hi
    unmatched = sum(line.kind == "unmatched" for line in lines)
    assert sum(image.losses().get(UNMATCHED_POP, 0) for image in images) == unmatched


def run(
    recorder: Recorder, *command: str | Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a traced program, which must say nothing on stderr."""
    done = subprocess.run(
        command,
        env=recorder.environment(**environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")
    return done
