"""Each file is attached to once, whoever loads it; the target's environment."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cctrace.errors import CctraceError
from cctrace.record import libraries, library_files
from cctrace.record.libraries import LibraryWatch
from cctrace.record.losses import LossLedger

NAME = "libwatched.so.12"  # no real one: tests that ran before may have mapped it
DEADLINE_S = 20.0


def put(path: Path, text: str = "an ELF file") -> Path:
    """A file and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class Attached:
    """A watch whose callback notes what it was given."""

    def __init__(self) -> None:
        self.ledger = LossLedger()
        self.calls: list[tuple[str, tuple[int, int], int | None]] = []
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.watch = LibraryWatch(
            [("watched", r"libwatched.*\.so", self.attach), ("nccl", r"libnccl\.so", self.attach)],
            self.ledger,
        )

    def attach(self, path: Path, pid: int | None) -> None:
        """What a source does: it must be able to read the file at the path."""
        stat = path.stat()
        self.calls.append((path.read_text("latin1")[:4], (stat.st_dev, stat.st_ino), pid))
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error


@pytest.fixture
def attached() -> Attached:
    return Attached()


def test_each_file_is_attached_to_once_by_whatever_name(tmp_path: Path, attached: Attached) -> None:
    """Links, hard links and a second process; a copy is another file."""
    library = put(tmp_path / NAME, "one")
    (tmp_path / "libwatched.so").symlink_to(NAME)
    os.link(library, tmp_path / "libwatched.so.0")
    copy = put(tmp_path / "copy" / NAME, "two")
    me = os.getpid()
    for path in (library, tmp_path / "libwatched.so", tmp_path / "libwatched.so.0", library, copy):
        attached.watch.announced(me, os.fsencode(path))
    assert [text for text, _, _ in attached.calls] == ["one", "two"]
    records = attached.watch.records()
    assert [(r.label, r.path, r.pid, r.how, r.error) for r in records] == [
        ("watched", str(path), me, "at_load", None) for path in (library, copy)
    ]
    assert attached.ledger.by_reason() == {}


@pytest.mark.parametrize("name", ["fifo", "folder", "device", "gone", "socket", "relative"])
def test_path_that_is_no_file_is_ignored(
    name: str, tmp_path: Path, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The announcement is a stranger's; a fifo must not be waited on."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / NAME
    text = str(path)
    with ExitStack() as stack:
        if name == "fifo":
            os.mkfifo(path)
        elif name == "folder":
            path.mkdir()
        elif name == "device":
            path.symlink_to("/dev/null")
        elif name == "socket":
            made = stack.enter_context(socket.socket(socket.AF_UNIX))
            made.bind(str(path))
        elif name == "relative":
            text = f"../../{NAME}"
        attached.watch.announced(os.getpid(), text)
        attached.watch.announced(os.getpid(), text + "\0x")
        attached.watch.announced(2**31 - 1, text)
    assert attached.calls == []
    assert attached.watch.records() == []


def test_names_that_do_not_match_are_ignored(tmp_path: Path, attached: Attached) -> None:
    """The audit library knows beginnings only."""
    for name in ("libwatched_static.a", "xlibwatched.so", "libnccl-net.so", "libnccl.so.d"):
        put(tmp_path / name)
        attached.watch.announced(os.getpid(), str(tmp_path / name))
    assert [record.label for record in attached.watch.records()] == ["nccl"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CctraceError("no symbol"), "no symbol"),
        (OSError(errno.EPERM, "no"), "PermissionError(1, 'no')"),
    ],
)
def test_error_of_a_callback_is_kept_and_not_repeated(
    error: Exception, told: str, tmp_path: Path, attached: Attached
) -> None:
    """Until the file has changed."""
    library = put(tmp_path / NAME, "one")
    attached.error = error
    for _ in range(3):
        attached.watch.announced(os.getpid(), str(library))
    assert len(attached.calls) == 1
    assert [record.error for record in attached.watch.records()] == [told]
    library.write_text("another one")
    attached.error = None
    attached.watch.announced(os.getpid(), str(library))
    assert [record.error for record in attached.watch.records()] == [told, None]


def test_second_process_waits_until_the_file_is_attached_to(
    tmp_path: Path, attached: Attached
) -> None:
    """It must not go on because somebody else's announcement came first."""
    library = put(tmp_path / NAME)
    attached.gate = threading.Event()
    through: list[int] = []

    def announce(number: int) -> None:
        attached.watch.announced(os.getpid(), str(library))
        through.append(number)

    threads = [threading.Thread(target=announce, args=(i,)) for i in range(7)]
    for thread in threads:
        thread.start()
    assert attached.entered.wait(DEADLINE_S)
    assert through == []
    attached.gate.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(through) == list(range(7))
    assert len(attached.calls) == 1


def test_every_process_is_told_of_where_that_is_asked_for(tmp_path: Path) -> None:
    """But each once, and nobody of a file that no process has."""
    told: list[int | None] = []
    watch = LibraryWatch(
        [("watched", r"libwatched\.so", lambda _, pid: told.append(pid))],
        LossLedger(),
        every_process=["watched"],
    )
    library = put(tmp_path / NAME, "one " * 1024)
    watch.prescan(["x"], {"LD_LIBRARY_PATH": str(tmp_path)})
    assert told == []
    code = "import sys; print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        for pid in (os.getpid(), child.pid, os.getpid(), child.pid):
            watch.announced(pid, str(library))
        with closing(map_file(library)):
            watch.scan(os.getpid())
        child.communicate()
    assert told == [os.getpid(), child.pid]


def map_file(path: Path) -> mmap.mmap:
    """Map a file as a loader does; it stays while the result does."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC)


def test_scan_finds_what_is_mapped_and_counts_it_as_late(
    tmp_path: Path, attached: Attached
) -> None:
    """Even if it was deleted since; a second scan finds nothing new."""
    library = put(tmp_path / "with space é\n" / NAME, "one " * 1024)
    with closing(map_file(library)):
        library.unlink()
        for _ in range(2):
            attached.watch.scan(os.getpid())
        assert attached.ledger.by_reason() == {}  # it may be announced this moment
        attached.watch.close()
    assert attached.ledger.by_reason() == {"late_attach": 1}
    assert [text for text, _, _ in attached.calls] == ["one "]
    assert [(r.how, r.pid) for r in attached.watch.records()] == [("late", os.getpid())]


def test_scan_just_before_the_announcement_is_not_late(tmp_path: Path, attached: Attached) -> None:
    """The process still waits: nothing of the library has run."""
    library = put(tmp_path / NAME, "one " * 1024)
    with closing(map_file(library)):
        attached.watch.scan(os.getpid())
        attached.watch.announced(os.getpid(), str(library))
        attached.watch.close()
    assert attached.ledger.by_reason() == {}
    assert [record.how for record in attached.watch.records()] == ["at_load"]


def test_scan_all_looks_again_only_where_something_was_loaded(
    tmp_path: Path, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And rests for fifty times as long as it took."""
    scanned: list[int] = []
    monkeypatch.setattr(attached.watch, "scan", scanned.append)
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    me, gone = os.getpid(), 2**31 - 1
    attached.watch.scan_all([me, gone])
    attached.watch.scan_all([me, gone])
    assert scanned == [me]
    with closing(map_file(put(tmp_path / NAME, "one " * 1024))):
        attached.watch.scan_all([me])
        assert scanned == [me, me]
    ticks = iter([200.0, 200.1, 200.1])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    attached.watch.scan_all([me])
    monkeypatch.setattr(time, "monotonic", lambda: 204.9)
    with closing(map_file(tmp_path / NAME)):
        before = len(scanned)
        attached.watch.scan_all([me])
        assert len(scanned) == before
        monkeypatch.setattr(time, "monotonic", lambda: 205.2)
        attached.watch.scan_all([me])
        assert len(scanned) == before + 1


def test_mapped_file_is_the_one_meant_whatever_lies_at_its_path(
    tmp_path: Path, attached: Attached
) -> None:
    """An address in the library outweighs its name."""
    library = put(tmp_path / NAME, "one " * 1024)
    with closing(map_file(library)):
        library.rename(tmp_path / "elsewhere")
        put(library, "two")
        (mapping,) = [
            m
            for m in library_files.file_mappings(os.getpid(), executable=True)
            if m.path == str(tmp_path / "elsewhere")
        ]
        attached.watch.announced(os.getpid(), str(library), mapping.start + 1)
    stat = (tmp_path / "elsewhere").stat()
    assert attached.calls == [("one ", (stat.st_dev, stat.st_ino), os.getpid())]


@given(
    text=st.lists(
        st.one_of(
            st.binary(max_size=61),
            st.just(b"7f0000000000-7f0000001000 r-xp 00000000 fd:01 7 /x/libwatched.so\n"),
        )
    )
)
def test_odd_mappings_are_skipped(text: list[bytes]) -> None:
    """Paths may hold nearly anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: b"\n".join(text))
        mappings = list(library_files.file_mappings(1, executable=True))
    assert all(mapping.start <= mapping.end for mapping in mappings)


# ---- the environment ----


def test_environment_adds_to_what_the_user_has(tmp_path: Path) -> None:
    """Another auditor stays first; ours is there once."""
    ours, place = tmp_path / "audit.so", tmp_path / "sock"
    plain = libraries.environment({}, place, ours)
    assert plain["LD_AUDIT"] == str(ours)
    assert plain["CCTRACE_SOCKET"] == str(place)
    assert plain["CCTRACE_LIBRARIES"].split(":") == list(libraries.PREFIXES)
    beside = libraries.environment({"LD_AUDIT": "/a.so:/b.so"}, place, ours)
    assert beside["LD_AUDIT"] == f"/a.so:/b.so:{ours}"
    assert libraries.environment(beside, place, ours)["LD_AUDIT"] == beside["LD_AUDIT"]


@pytest.mark.parametrize("folder", ["a:b", "a$LIB"])
def test_path_that_ld_audit_cannot_hold_is_refused(folder: str, tmp_path: Path) -> None:
    """A colon separates auditors, a dollar begins a token."""
    with pytest.raises(CctraceError, match="LD_AUDIT cannot name"):
        libraries.environment({}, tmp_path, tmp_path / folder / "audit.so")


def test_program_of_32_bit_is_left_alone(tmp_path: Path) -> None:
    """Its loader would write a complaint."""
    put(tmp_path / "program", "\x7fELF\x01")
    put(tmp_path / "script", "#!/bin/sh")
    ours = tmp_path / "audit.so"
    env = {"PATH": f"/nonexistent:{tmp_path}"}
    for name in (str(tmp_path / "program"), "program"):
        assert libraries.environment(env, tmp_path, ours, [name]) == {}
    for name in ("script", sys.executable, "nonexistent", ""):
        assert libraries.environment(env, tmp_path, ours, [name]) != {}
