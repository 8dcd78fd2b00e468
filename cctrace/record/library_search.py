"""Libraries that a command may load, found before it starts and without running it.

A probe can sit in a file that no process has mapped yet, so what is found here costs
the target nothing. What is missed is announced when it is loaded, so this need not be
complete: it looks where CUDA programs usually have their libraries, within bounds.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TIME_LIMIT_S: Final = 0.15
MAX_FILES: Final = 48
_MAX_WORDS: Final = 16  # of the command: numactl, env and uv name the program later
_MAX_NESTING: Final = 4
_HEAD_BYTES: Final = 512

LDCONFIG_CACHE: Final = Path("/etc/ld.so.cache")
# struct cache_file_new and file_entry_new: glibc, sysdeps/generic/dl-cache.h.
_CACHE_MAGIC: Final = b"glibc-ld.so.cache1.1"
_CACHE_HEADER_BYTES: Final = 48
_CACHE_ENTRY: Final = struct.Struct("<iIIIQ")  # flags, key, value, osversion, hwcap
_CACHE_X86_64: Final = 0x0300  # FLAG_X8664_LIB64, within the flags' second byte
_CACHE_ARCHITECTURE: Final = 0xFF00

_SYSTEM: Final = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
)
_CUDA_HOMES: Final = ("/usr/local", "/opt")
# Below a folder of Python packages: NVIDIA's wheels, torch's own copies, what
# auditwheel puts beside a package.
_IN_PACKAGES: Final = ("nvidia/*/lib", "torch/lib", "*.libs")
_EXEC_LINE: Final = re.compile(r"^'''exec' \"?([^\"\n]+?)\"? \"\$0\"", re.MULTILINE)
_HOME_LINE: Final = re.compile(r"^home\s*=\s*(.+?)\s*$", re.MULTILINE)


def cached_libraries(cache: Path = LDCONFIG_CACHE) -> Iterator[tuple[str, str]]:
    """Names and paths of the x86-64 libraries in the loader's cache.

    Source: glibc, sysdeps/generic/dl-cache.h. Offsets of texts count from the start
    of the new-format header, which may follow one of the old format.
    """
    try:
        data = cache.read_bytes()
    except OSError:
        return
    start = data.find(_CACHE_MAGIC)
    if start < 0 or len(data) < start + _CACHE_HEADER_BYTES:
        return
    (count,) = struct.unpack_from("<I", data, start + len(_CACHE_MAGIC))
    for i in range(count):
        at = start + _CACHE_HEADER_BYTES + i * _CACHE_ENTRY.size
        if at + _CACHE_ENTRY.size > len(data):
            return
        flags, key, value, _, _ = _CACHE_ENTRY.unpack_from(data, at)
        if flags & _CACHE_ARCHITECTURE == _CACHE_X86_64:
            yield _text_at(data, start + key), _text_at(data, start + value)


def _text_at(data: bytes, at: int) -> str:
    end = data.find(b"\0", at)
    return os.fsdecode(data[at:end]) if end >= 0 else ""


@dataclass
class _Search:
    """One search: what is wanted, what was found, where it has looked."""

    is_wanted: Callable[[str], bool]
    deadline: float
    found: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    is_whole: bool = True

    def may_go_on(self) -> bool:
        if self.is_whole and (time.monotonic() > self.deadline or len(self.found) >= MAX_FILES):
            self.is_whole = False
        return self.is_whole

    def look_in(self, folder: str | Path) -> None:
        """Take in the libraries that lie in a folder."""
        name = os.fspath(folder)
        if name in self.folders or not self.may_go_on():
            return
        self.folders.add(name)
        try:
            with os.scandir(name) as entries:
                self.found += sorted(e.path for e in entries if self.is_wanted(e.name))
        except (OSError, ValueError):
            return

    def look_in_packages(self, site: Path) -> None:
        """Take in the libraries that lie beside Python packages."""
        if not site.is_dir() or os.fspath(site) in self.folders:
            return
        self.folders.add(os.fspath(site))
        for pattern in _IN_PACKAGES:
            for folder in sorted(site.glob(pattern)):
                self.look_in(folder)
                if not self.may_go_on():
                    return

    def look_in_prefix(self, prefix: Path) -> None:
        """Take in what an installation below ``prefix`` has."""
        if prefix == Path("/"):
            return
        for lib in ("lib", "lib64"):
            # Debian's packages are in dist-packages, those of its own Python without
            # a version in between.
            for pattern in ("python3*/site-packages", "python3*/dist-packages"):
                for site in sorted((prefix / lib).glob(pattern)):
                    self.look_in_packages(site)
            if prefix != Path("/usr"):
                self.look_in(prefix / lib)


def find_libraries(
    command: Sequence[str],
    environment: Mapping[str, str],
    is_wanted: Callable[[str], bool],
    time_limit_s: float = TIME_LIMIT_S,
) -> tuple[list[str], bool]:
    """Find libraries the command may load.

    Args:
        command: The target's arguments.
        environment: Its environment.
        is_wanted: Whether a file name is of interest.
        time_limit_s: Stop looking after so long.

    Returns:
        Paths in the order of how likely they are, each file by the first name it was
        found under; and whether the search came to its end.
    """
    search = _Search(is_wanted, time.monotonic() + time_limit_s)
    for folder in environment.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":"):
        if folder:
            search.look_in(folder)
    for prefix in _prefixes(command, environment):
        search.look_in_prefix(prefix)
    for entry in environment.get("PYTHONPATH", "").split(os.pathsep):
        if entry:
            search.look_in_packages(Path(entry))
    _look_in_system(search)
    real = {os.path.realpath(path): path for path in reversed(search.found)}
    return list(reversed(real.values())), search.is_whole


def _look_in_system(search: _Search) -> None:
    for name, path in cached_libraries():
        if search.is_wanted(name) and search.may_go_on():
            search.found.append(path)
    for system in _SYSTEM:
        search.look_in(system)
    for home in _CUDA_HOMES:
        for pattern in ("cuda*/lib64", "cuda*/lib", "cuda*/compat"):
            for folder in sorted(Path(home).glob(pattern)):
                search.look_in(folder)


def _prefixes(command: Sequence[str], environment: Mapping[str, str]) -> list[Path]:
    """Installations that the command's programs belong to, the likeliest first."""
    found: dict[Path, None] = {}
    for word in command[:_MAX_WORDS]:
        program = _which(word, environment)
        if program is not None:
            found.update(dict.fromkeys(_prefixes_of(program, environment)))
        if Path(word).name in ("uv", "uvx"):
            found.update(dict.fromkeys(_of_project(environment)))
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME"):
        value = environment.get(name)
        if value:
            found.update(dict.fromkeys(_with_base(Path(value))))
    home = environment.get("HOME")
    if home and found and not environment.get("PYTHONNOUSERSITE"):
        found[Path(home) / ".local"] = None
    return list(found)


def _which(word: str, environment: Mapping[str, str]) -> Path | None:
    if not word or "\0" in word or word.startswith("-"):
        return None
    with contextlib.suppress(OSError, ValueError):
        there = shutil.which(word, path=environment.get("PATH", os.defpath))
        if there is None and word.endswith(".py"):
            return None
        return Path(there).absolute() if there is not None else None
    return None


def _prefixes_of(program: Path, environment: Mapping[str, str], depth: int = 0) -> list[Path]:
    """Installations of a program: its own, its interpreter's, that one's base."""
    own = _with_base(program.parent.parent) if program.parent.name in ("bin", "sbin") else []
    head = _head(program)
    if not head.startswith("#!") or depth >= _MAX_NESTING:
        with contextlib.suppress(OSError, RuntimeError):  # a link that leads to itself
            real = program.resolve()
            if real.parent.name == "bin":
                own += _with_base(real.parent.parent)
        return own
    words = head[2:].splitlines()[0].split() if head[2:].strip() else []
    long_one = _EXEC_LINE.search(head)  # an interpreter whose path is too long for a first line
    if long_one is not None:
        words = [long_one[1]]
    for word in words[:_MAX_NESTING]:
        interpreter = _which(word, environment)
        if interpreter is not None and interpreter != program:
            own += _prefixes_of(interpreter, environment, depth + 1)
    return own


def _head(program: Path) -> str:
    try:
        if not program.is_file():  # opening a fifo would wait for a writer
            return ""
        with program.open("rb") as file:
            return file.read(_HEAD_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def _with_base(prefix: Path) -> list[Path]:
    """An environment and what it was made from (PEP 405)."""
    try:
        text = (prefix / "pyvenv.cfg").read_text("utf-8", "surrogateescape")
    except OSError:
        return [prefix]
    home = _HOME_LINE.search(text)
    return [prefix] if home is None else [prefix, Path(home[1]).parent]


def _of_project(environment: Mapping[str, str]) -> list[Path]:
    """The environment that uv uses: the project's, from the working directory up."""
    named = environment.get("UV_PROJECT_ENVIRONMENT")
    if named:
        return _with_base(Path(named).absolute())
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".venv" / "pyvenv.cfg").is_file():
            return _with_base(folder / ".venv")
    return []
