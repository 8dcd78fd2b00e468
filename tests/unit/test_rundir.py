"""The run directory: nothing but a run is ever replaced, and some disk is held back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from runs import make_manifest

from cctrace.errors import CctraceError
from cctrace.record import rundir
from cctrace.record.rundir import Reserve, create_run_dir
from cctrace.store.manifest import MANIFEST_NAME, RECORDING, Recorder, start_ticks


def contents(path: Path) -> list[str]:
    """Everything below ``path``."""
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


@pytest.mark.parametrize("force", [True, False])
def test_new_and_empty_directories_are_used(tmp_path: Path, force: bool) -> None:
    """Parents are made; an empty directory is as good as none."""
    for path in (tmp_path / "a" / "b c" / "run", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        create_run_dir(path, force=force)
        assert contents(path) == []


def test_run_is_replaced_with_force_only(tmp_path: Path) -> None:
    """Without, it stays as it is, and the fix is named."""
    run = tmp_path / "run"
    (run / "nvtx").mkdir(parents=True)
    (run / "nvtx" / "part-000000.parquet").touch()
    (run / MANIFEST_NAME).touch()
    with pytest.raises(CctraceError) as caught:
        create_run_dir(run, force=False)
    assert (caught.value.exit_code, caught.value.message) == (1, f"{run} exists")
    assert "--force" in (caught.value.hint or "")
    assert len(contents(run)) == 3
    create_run_dir(run, force=True)
    assert contents(run) == []


def test_run_being_recorded_is_not_replaced(tmp_path: Path) -> None:
    """Two recorders would write into one directory; a killed one's run may go."""
    run = tmp_path / "run"
    run.mkdir()
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    recorder = Recorder(os.getpid(), ticks)
    make_manifest(stop=None, ended=RECORDING, recorder=recorder).write(run)
    with pytest.raises(CctraceError) as caught:
        create_run_dir(run, force=True)
    assert caught.value.exit_code == 1
    assert caught.value.message.endswith(f"is being recorded right now, by process {os.getpid()}")
    assert contents(tmp_path) == ["run", f"run/{MANIFEST_NAME}"]
    recorder.start_ticks += 1  # another process had that pid
    make_manifest(stop=None, ended=RECORDING, recorder=recorder).write(run)
    create_run_dir(run, force=True)
    assert contents(run) == []


@pytest.mark.parametrize("kind", ["file", "directory", "symlink to a run", "dangling symlink"])
@pytest.mark.parametrize("force", [True, False])
def test_what_is_no_run_is_never_touched(
    kind: str,
    force: bool,
    tmp_path: Path,
) -> None:
    """Not even with --force, and not through a symlink."""
    path, run = tmp_path / "out", tmp_path / "run"
    run.mkdir()
    (run / MANIFEST_NAME).touch()
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
        (path / "precious").touch()
    elif kind == "symlink to a run":
        path.symlink_to(run)
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    with pytest.raises(CctraceError) as caught:
        create_run_dir(path, force=force)
    assert caught.value.exit_code == 1
    assert caught.value.message == f"{path} exists and is not a cctrace run"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["/proc/no/run", "/dev/null/run", "/sys/run"])
def test_place_that_cannot_be_written(place: str) -> None:
    """The error names the place and another way."""
    with pytest.raises(CctraceError) as caught:
        create_run_dir(Path(place), force=False)
    assert caught.value.exit_code == 1
    assert caught.value.message.startswith(f"cannot write a run to {place}: ")
    assert "-o" in (caught.value.hint or "")


def test_old_run_is_back_where_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk --force leaves the run that was there, and nothing beside it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / MANIFEST_NAME).touch()
    before = contents(tmp_path)

    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rundir, "_probe", full)
    with pytest.raises(CctraceError, match="No space left"):
        create_run_dir(run, force=True)
    with pytest.raises(CctraceError, match="No space left"):
        create_run_dir(tmp_path / "other", force=False)
    assert contents(tmp_path) == before


def test_directory_without_write_permission(tmp_path: Path) -> None:
    """An empty directory that refuses a file is found out before the target starts."""
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(CctraceError, match="Permission denied"):
        create_run_dir(tmp_path, force=False)


def test_reserve_holds_real_blocks_until_released(tmp_path: Path) -> None:
    """512 KiB are taken from the disk and given back; twice is fine."""
    reserve = Reserve(tmp_path)
    held = tmp_path / ".reserve"
    assert held.stat().st_blocks * 512 >= 512 * 1024
    reserve.release()
    reserve.release()
    assert contents(tmp_path) == []


def test_reserve_where_the_filesystem_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fallocate there: recording goes on without."""

    def refused(*_: int) -> None:
        raise OSError

    monkeypatch.setattr(os, "posix_fallocate", refused)
    held = len(list(Path("/proc/self/fd").iterdir()))
    Reserve(tmp_path).release()
    assert len(list(Path("/proc/self/fd").iterdir())) == held
