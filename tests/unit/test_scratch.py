"""cctrace/record/scratch.py: directories of recorders, living and killed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from cctrace.record.scratch import ScratchDirectory, remove_stale_directories


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def make_stale(folder: Path, name: str) -> Path:
    """A socket directory with a file in it."""
    path = folder / name
    path.mkdir()
    (path / "agent.sock").touch()
    return path


def dead_pid() -> int:
    """The pid of a process that is gone."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_only_our_own_stale_directories_are_removed(tmp_path: Path) -> None:
    """A dead recorder's goes; a live one's, other names, files and symlinks stay."""
    gone = dead_pid()
    stale = make_stale(tmp_path, f"cctrace-{gone}-abc")
    kept = [
        make_stale(tmp_path, f"cctrace-{os.getpid()}-abc"),
        make_stale(tmp_path, f"cctrace-x{gone}-abc"),
        make_stale(tmp_path, "cctrace--abc"),
        make_stale(tmp_path, f"other-{gone}-abc"),
        tmp_path / f"cctrace-{gone}-file",
        tmp_path / f"cctrace-{gone}-link",
    ]
    kept[-2].touch()
    precious = make_stale(tmp_path, "precious")
    kept[-1].symlink_to(precious)
    inner = make_stale(tmp_path, f"cctrace-{gone}-inner")
    (inner / "link").symlink_to(precious)
    remove_stale_directories()
    assert not stale.exists()
    assert not inner.exists()
    assert [path.name for path in kept if not path.is_symlink() and not path.exists()] == []
    assert kept[-1].is_symlink()
    assert (precious / "agent.sock").exists()


def test_stale_directory_of_another_user_stays(tmp_path: Path) -> None:
    """Root could remove it, and must not."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a directory of another user")
    theirs = make_stale(tmp_path, f"cctrace-{dead_pid()}-abc")
    os.chown(theirs, 65534, 65534)
    remove_stale_directories()
    assert (theirs / "agent.sock").exists()


def test_a_directory_is_named_for_its_recorder_and_private(tmp_path: Path) -> None:
    made = ScratchDirectory("headers")
    assert made.path.parent == tmp_path
    assert made.path.name.startswith(f"cctrace-{os.getpid()}-headers-")
    assert made.path.stat().st_mode & 0o777 == 0o700
    (made.path / "file").touch()
    made.close()
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_a_living_recorder_of_another_pid_namespace_keeps_its_own(tmp_path: Path) -> None:
    """Its pid is nobody's here; what tells is that it holds the directory."""
    made = ScratchDirectory()
    theirs = made.path.rename(tmp_path / f"cctrace-{dead_pid()}-abc")
    remove_stale_directories()
    assert theirs.is_dir()
    made.close()
    remove_stale_directories()
    assert not theirs.exists()


def test_without_a_place_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ScratchDirectory(place=str(tmp_path / "none"))


def test_what_has_the_name_already_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder with the same pid in another namespace, and the same luck."""
    made = tmp_path / "cctrace.new-abcdefgh"
    made.mkdir()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(made))
    theirs = make_stale(tmp_path, f"cctrace-{os.getpid()}-abcdefgh")
    with pytest.raises(OSError, match="not empty"):
        ScratchDirectory()
    assert (theirs / "agent.sock").exists()
    assert not made.exists()
