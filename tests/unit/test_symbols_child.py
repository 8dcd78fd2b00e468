"""What hostile files and a dying child do to the recorder: nothing but counts."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from symbol_programs import build

from cctrace.record import procfs
from cctrace.record.bpf.elf import ElfFile
from cctrace.record.symbols import Frame, module
from cctrace.record.symbols.child import Child
from cctrace.record.symbols.demangle import demangle
from cctrace.record.symbols.files import MappedFile
from cctrace.record.symbols.frame import CUT, MAX_CHARACTERS, decode
from cctrace.record.symbols.module import Module
from cctrace.record.symbols.resolver import Limits, Resolver

SEED = 20_261_129
MUTANTS = 61
LIBRARY = "int work(int x)\n{\nreturn x * 7;\n}\n"

Hold = Callable[[Path], MappedFile]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    return build(folder, "libwork.so", LIBRARY, "-shared", "-fPIC", "-g")


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.close()


@pytest.fixture
def resolver(child: Child) -> Iterator[Resolver]:
    made = Resolver(child, Limits(file_s=20, lines_s=1000, total_s=1000))
    yield made
    made.close()


@pytest.fixture
def hold() -> Iterator[Hold]:
    held: list[int] = []

    def open_path(path: Path) -> MappedFile:
        fd = os.open(path, os.O_PATH)
        held.append(fd)
        status = os.fstat(fd)
        stamp = (status.st_size, status.st_mtime_ns)
        return MappedFile(len(held), str(path), stamp, fd, -1)

    yield open_path
    for fd in held:
        os.close(fd)


def text_at(library: Path) -> int:
    """Offset of ``work``: of a small library, its address."""
    content = library.read_bytes()
    return content.index(b"\x8d\x04\xfd")  # lea 0(,%rdi,8),%eax


def work(resolver: Resolver, file: MappedFile, at: int) -> tuple[list[Frame], str | None]:
    (answer,) = resolver.in_file(file, [(at, 0)])
    return answer


def test_the_library_itself(resolver: Resolver, hold: Hold, library: Path) -> None:
    """What the mutants below are made of is resolved, to its line."""
    frames, why = work(resolver, hold(library), text_at(library))
    assert why is None
    assert [(f.function, f.line) for f in frames] == [("work", 3)]


def test_broken_files_never_raise(
    resolver: Resolver, child: Child, hold: Hold, library: Path, tmp_path: Path
) -> None:
    """Bytes changed, cut off, and headers of absurd sizes: an answer for every address."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    whole, at = library.read_bytes(), text_at(library)
    section_headers = struct.unpack_from("<Q", whole, 40)[0]
    for number in range(MUTANTS):
        content = bytearray(whole)
        first, last = [(0, 64), (64, 1024), (section_headers, len(whole)), (0, len(whole))][
            number % 4
        ]
        for _ in range(chance.randrange(1, 64)):
            content[chance.randrange(first, last)] = chance.choice((0, 1, 0x7F, 0xFF, 0x40))
        if number % 7 == 0:
            del content[chance.randrange(len(content)) :]
        path = tmp_path / f"mutant-{number}.so"
        path.write_bytes(content)
        frames, why = work(resolver, hold(path), at)
        assert frames
        assert all(f.module == str(path) and f.kind == "native" for f in frames)
        assert why in {None, "no_symbol", "bad_file", "too_long"}
    # THEN the child still answers
    assert not child.lost
    assert work(resolver, hold(library), at)[1] is None


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01" + b"\xff" * 200]
)
def test_files_that_are_no_elf_files(
    resolver: Resolver, hold: Hold, tmp_path: Path, content: bytes
) -> None:
    """The offset in the file is what is left."""
    path = tmp_path / "thing"
    path.write_bytes(content)
    expected = Frame("file+0x40", str(path), None, None, "native")
    assert work(resolver, hold(path), 64) == ([expected], "bad_file")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_file_is_not_opened(
    resolver: Resolver, hold: Hold, tmp_path: Path, kind: str
) -> None:
    """Nobody writes into the fifo, and yet nothing waits."""
    path = tmp_path / "thing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    assert work(resolver, hold(path), 64)[1] == "bad_file"


@pytest.mark.parametrize(
    "raw", [b"n" * 10_000, b"name\xff\xfe", b'<script>alert("x;y")', b"a\nb\x01\x1b[0m"]
)
def test_names_of_any_length_and_bytes(
    resolver: Resolver, hold: Hold, tmp_path: Path, raw: bytes
) -> None:
    """A long name is cut and marked; what is no UTF-8 is replaced; the rest is as it was."""
    name = "p" * len(raw)  # an assembler would not take the bytes
    source = f"""
__asm__(".text\\n.globl {name}\\n.type {name}, @function\\n{name}: nop\\nret\\n"
        ".size {name}, 2\\n");
"""
    path = build(tmp_path, "named.so", source, "-shared", "-fPIC", "-g0")
    content = path.read_bytes().replace(name.encode() + b"\0", raw + b"\0")
    path.write_bytes(content)
    frames, why = work(resolver, hold(path), content.index(b"\x90\xc3"))
    expected = raw.decode("utf-8", "replace")
    if len(expected) > MAX_CHARACTERS:
        expected = expected[:MAX_CHARACTERS] + CUT
    assert why is None
    assert [f.function for f in frames] == [expected]


def test_time_is_bounded(child: Child, hold: Hold, library: Path) -> None:
    """A limit that nothing can keep: the child dies of it, and serves again afterwards."""
    at = text_at(library)
    hasty = Resolver(child, Limits(file_s=0.0001, lines_s=1000, total_s=1000))
    file = hold(library)
    frames, why = work(hasty, file, at)
    assert (frames, why) == (
        [Frame(f"file+{at:#x}", str(library), None, None, "native")],
        "too_long",
    )
    assert not file.lines
    hasty.close()
    patient = Resolver(child, Limits())
    assert work(patient, hold(library), at)[1] is None
    patient.close()


def test_without_time_for_lines_there_are_functions(
    child: Child, hold: Hold, library: Path
) -> None:
    """And the file says what it lacks; without any time there are addresses."""
    at = text_at(library)
    resolver = Resolver(child, Limits(lines_s=0))
    file = hold(library)
    assert work(resolver, file, at) == ([Frame("work", str(library), None, None, "native")], None)
    assert file.note is not None
    resolver.close()
    late = Resolver(child, Limits(total_s=0))
    assert work(late, hold(library), at)[1] == "too_long"
    late.close()


@pytest.mark.parametrize("packed", ["none", "zlib"])
def test_debug_information_above_a_size_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: str
) -> None:
    """By its size when unpacked, which a small file can make endless."""
    library = build(tmp_path, "lib.so", LIBRARY, "-shared", "-fPIC", "-g3", f"-gz={packed}")
    with library.open("rb") as file, ElfFile(file.fileno(), "library") as elf:
        debug = [s for name, s in elf.sections().items() if name.startswith(".debug_")]
    in_file, unpacked = sum(s.size_bytes for s in debug), sum(s.full_bytes for s in debug)
    assert (in_file < unpacked) == (packed == "zlib")
    for limit, line in ((unpacked, 3), (unpacked - 1, None)):
        monkeypatch.setattr(module, "MAX_DEBUG_BYTES", limit)
        with library.open("rb") as file:
            made = Module(file.fileno(), "/", (), lines=True)
        assert [(f[0], f[2]) for f in made.frames(text_at(library), 0)[0]] == [("work", line)]
        assert (made.note is None) == (line == 3)


def descendants(pid: int) -> list[int]:
    return [child for tid in procfs.list_tids(pid) for child in procfs.children(pid, tid)]


def test_the_child_may_be_killed(
    child: Child, resolver: Resolver, hold: Hold, library: Path
) -> None:
    """The one that works is replaced; without the one that keeps it, addresses stay addresses."""
    at = text_at(library)
    assert work(resolver, hold(library), at)[1] is None
    assert child._process is not None
    keeper = child._process.pid
    (worker,) = descendants(keeper)
    os.kill(worker, signal.SIGKILL)
    assert work(resolver, hold(library), at)[1] is None
    os.kill(keeper, signal.SIGKILL)
    child._process.wait()
    # Its worker goes with it; what was sent and never answered is given up.
    frames, why = work(resolver, hold(library), at)
    assert why == "too_long"
    assert frames == [Frame(f"file+{at:#x}", str(library), None, None, "native")]
    assert child.lost


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ({}, "too_long"),
        ({"frames": [], "known": []}, "too_long"),
        ({"frames": [[["f", None, None, "kernel"]]], "known": [True]}, "too_long"),
        ({"frames": [[["f", None, 0, "native"]]], "known": [True]}, "too_long"),
        ({"frames": [[[7, None, 1, "native"]]], "known": [True]}, "too_long"),
        ({"frames": [["f"]], "known": [True]}, "too_long"),
        ({"frames": 3, "known": [True]}, "too_long"),
        ({"reason": "nonsense"}, "bad_file"),
        ({"frames": [[["\ud800<", None, 1, "native"]]], "known": [True]}, None),
    ],
)
def test_no_shape_of_an_answer_is_believed(  # noqa: PLR0917 - fixtures and cases
    child: Child,
    hold: Hold,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    reply: dict[str, object],
    why: str | None,
) -> None:
    """A child taken over by what it read can say anything."""
    monkeypatch.setattr(child, "ask", lambda *_: reply)
    resolver = Resolver(child, Limits())
    frames, reason = work(resolver, hold(library), 1)
    assert reason == why
    if why is None:
        assert frames[0].function == "?<"
    resolver.close()


@pytest.mark.parametrize(
    ("mangled", "expected"),
    [
        ("_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE", "core::fmt::Formatter::write_str"),
        ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
        ("_ZN2ns3BoxIiE3getEi", "ns::Box<int>::get(int)"),
        (
            "_ZNSt6vectorIiSaIiEE9push_backERKi",
            "std::vector<int, std::allocator<int>>::push_back(int const&)",
        ),
        ("main", "main"),
        ("_Z", "_Z"),
        ("_ZN", "_ZN"),
        ("_R", "_R"),
        ("", ""),
        ("_Z" + "P" * 100_000 + "i", "_Z" + "P" * (MAX_CHARACTERS - 2) + CUT),
    ],
)
def test_names_are_demangled(mangled: str, expected: str) -> None:
    """C++ and both manglings of Rust, by names that compilers made."""
    assert demangle(mangled) == expected


def test_bytes_are_decoded_and_cut() -> None:
    """At 2048 characters, of however many bytes."""
    assert decode("ä".encode() * 3000) == "ä" * MAX_CHARACTERS + CUT
    assert decode(b"\xff") == "\ufffd"


def test_who_is_stopped_gets_no_answer(child: Child) -> None:
    """Also to what was asked before, however long that would have taken."""
    # GIVEN a child that does not get on with what it is asked
    request = {"op": "vdso", "addresses": [7], "backs": [0]}
    assert child.ask(request, [], 600) is not None
    assert child._process is not None
    (worker,) = descendants(child._process.pid)
    os.kill(worker, signal.SIGSTOP)
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(child.ask(request, [], 600)))
    thread.start()
    while not child._lock.locked():
        os.sched_yield()
    # THEN who waits for it does so no longer
    child.stop()
    thread.join(60)
    assert answers == [None]
    assert child.ask(request, [], 600) is None
