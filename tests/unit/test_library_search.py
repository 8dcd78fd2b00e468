"""Libraries a command may load are found before it runs."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from cctrace.record import library_search

NAME = "libcudart.so.12"
DEADLINE_S = 20.0


def is_wanted(name: str) -> bool:
    return name.startswith("libcudart") and ".so" in name


def put(path: Path, text: str = "an ELF file") -> Path:
    """A file and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def found_by(command: list[str | Path], **environment: str | Path) -> set[Path]:
    env = {name: str(value) for name, value in environment.items()}
    words = [str(word) for word in command]
    paths, whole = library_search.find_libraries(words, env, is_wanted, time_limit_s=DEADLINE_S)
    assert whole
    return {Path(path) for path in paths}


def make_venv(folder: Path, base: Path) -> Path:
    """An environment as ``python -m venv`` makes it; returns its Python."""
    put(base / "bin" / "python3.11", "\x7fELF").chmod(0o755)
    put(folder / "pyvenv.cfg", f"home = {base / 'bin'}\ninclude-system-site-packages = false\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(base / "bin" / "python3.11")
    return folder / "bin" / "python"


def test_wheels_of_an_environment_are_found(tmp_path: Path) -> None:
    """NVIDIA's, torch's own copy, auditwheel's, and those of the Python it was made from."""
    base, venv = tmp_path / "base", tmp_path / "venv"
    python = make_venv(venv, base)
    site = venv / "lib" / "python3.11" / "site-packages"
    there = {
        put(site / "nvidia" / "cuda_runtime" / "lib" / NAME),
        put(site / "nvidia" / "cu13" / "lib" / "libcudart.so.13"),
        put(site / "torch" / "lib" / "libcudart-d0da41ae.so.11.0"),
        put(site / "cupy_cuda12x.libs" / "libcudart-ea5b2f4c.so.12"),
        put(base / "lib" / "python3.11" / "site-packages" / "nvidia" / "cu13" / "lib" / NAME),
        put(base / "lib" / NAME),
    }
    put(site / "nvidia" / "cublas" / "lib" / "libcublas.so.12")
    script = put(venv / "bin" / "vllm", f"#!{python}\nimport sys\n")
    long_one = put(
        venv / "bin" / "long",
        f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nimport sys\n",
    )
    by_env = put(tmp_path / "any" / "tool", "#!/usr/bin/env python\n")
    for program in (script, long_one, by_env):
        program.chmod(0o755)
    path = f"{venv / 'bin'}:/usr/bin:/bin"
    commands: list[list[str | Path]] = [
        [python, "-m", "vllm"],
        [script, "serve"],
        [long_one],
        [by_env],
        ["python", "x.py"],
        ["vllm", "serve", "model"],
        ["env", "-i", "A=1", "vllm", "serve"],
        ["numactl", "-N", "0", "--", "vllm"],
    ]
    for command in commands:
        assert there <= found_by(command, PATH=path), command
        assert site / "nvidia" / "cublas" / "lib" / "libcublas.so.12" not in found_by(command)


def test_conda_and_variables_are_looked_at(tmp_path: Path) -> None:
    """CONDA_PREFIX, VIRTUAL_ENV, PYTHONPATH, LD_LIBRARY_PATH, and the user's own packages."""
    conda = put(tmp_path / "conda" / "lib" / NAME)
    venv = put(tmp_path / "v" / "lib" / "python3.12" / "site-packages" / "torch" / "lib" / NAME)
    path = put(tmp_path / "p" / "nvidia" / "cu12" / "lib" / NAME)
    user = put(tmp_path / "home/.local/lib/python3.12/site-packages/nvidia/cuda_runtime/lib" / NAME)
    plain = put(tmp_path / "plain" / NAME)
    variables: dict[str, str | Path] = {
        "CONDA_PREFIX": tmp_path / "conda",
        "VIRTUAL_ENV": tmp_path / "v",
        "PYTHONPATH": f"/nonexistent:{tmp_path / 'p'}:",
        "LD_LIBRARY_PATH": f"/nonexistent:{tmp_path / 'plain'}:",
        "HOME": tmp_path / "home",
    }
    found = found_by(["no-such-program"], **variables)
    assert {conda, venv, path, user, plain} <= found
    without = found_by(["no-such-program"], **variables, PYTHONNOUSERSITE="1")
    assert user not in without


def test_uv_uses_the_projects_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest .venv from the working directory up, or the one that is named."""
    project = tmp_path / "project"
    make_venv(project / ".venv", tmp_path / "base")
    make_venv(tmp_path / "named", tmp_path / "base")
    packages = Path("lib/python3.11/site-packages/nvidia/cu13/lib") / NAME
    nearest = put(project / ".venv" / packages)
    named = put(tmp_path / "named" / packages)
    (project / "src").mkdir()
    monkeypatch.chdir(project / "src")
    assert nearest in found_by(["uv", "run", "serve.py"])
    assert named in found_by(["uv", "run", "x"], UV_PROJECT_ENVIRONMENT=tmp_path / "named")


def test_file_with_several_names_is_found_once(tmp_path: Path) -> None:
    """By the first."""
    put(tmp_path / "libcudart.so.12.8.90")
    (tmp_path / NAME).symlink_to("libcudart.so.12.8.90")
    found = found_by(["x"], LD_LIBRARY_PATH=tmp_path)
    assert {p for p in found if p.parent == tmp_path} == {tmp_path / NAME}


def test_odd_commands_and_places_harm_nothing(tmp_path: Path) -> None:
    """Links and scripts that lead to themselves, fifos, folders, garbage."""
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    own = put(tmp_path / "own", f"#!{tmp_path / 'own'}\n")
    empty = put(tmp_path / "empty", "#!\n")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"#!\xff\xfe \x00\n")
    (tmp_path / "pyvenv.cfg").mkdir()
    for program in (tmp_path / "fifo", own, empty, garbage):
        program.chmod(0o755)
    words: list[str | Path] = [
        tmp_path / "loop",
        tmp_path / "fifo",
        own,
        empty,
        garbage,
        tmp_path,
        "",
        "\0",
        "-x",
    ]
    found_by(words, VIRTUAL_ENV=tmp_path, LD_LIBRARY_PATH=":\0:", PYTHONPATH=tmp_path / "fifo")


def test_search_ends_in_time_and_says_so(tmp_path: Path) -> None:
    """Too little time, or too many files."""
    for i in range(library_search.MAX_FILES + 1):
        put(tmp_path / f"d{i}" / NAME)
    folders = ":".join(str(tmp_path / f"d{i}") for i in range(library_search.MAX_FILES + 1))
    environment = {"LD_LIBRARY_PATH": folders}
    paths, whole = library_search.find_libraries(["x"], environment, is_wanted, DEADLINE_S)
    assert (len(paths), whole) == (library_search.MAX_FILES, False)
    assert library_search.find_libraries(["x"], environment, is_wanted, 0) == ([], False)


def test_loaders_cache_is_read_as_ldconfig_reads_it() -> None:
    """``ldconfig -p`` prints the x86-64 entries of the same file."""
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH')}:/sbin:/usr/sbin")
    if ldconfig is None or not library_search.LDCONFIG_CACHE.exists():
        pytest.skip("no ldconfig, or no cache of it")
    printed = subprocess.run([ldconfig, "-p"], check=True, capture_output=True, text=True).stdout
    lines = [line.strip() for line in printed.splitlines() if "x86-64" in line]
    expected = {(line.split(" (")[0], line.split(" => ")[1]) for line in lines}
    assert set(library_search.cached_libraries()) == expected
    assert expected


@given(data=st.binary(max_size=97), cut=st.integers(0, 4096), at=st.integers(0, 4096))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_cache_yields_less_and_no_error(
    tmp_path: Path, data: bytes, cut: int, at: int
) -> None:
    """Whatever stands in it."""
    header = b"glibc-ld.so.cache1.1" + struct.pack("<II", 3, 4096) + bytes(20)
    entry = struct.pack("<iIIIQ", 0x303, 48, 52, 0, 0)
    whole = bytearray((header + entry * 3 + b"name\0path\0").ljust(4096, b"\0"))
    whole[at : at + len(data)] = data
    cache = tmp_path / "cache"
    cache.write_bytes(whole[:cut])
    assert len(list(library_search.cached_libraries(cache))) < 4096
