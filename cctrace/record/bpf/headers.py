"""Kernel headers for BCC: the running kernel's own, or the best stand-in there is.

Programs of cctrace read no kernel structure by itself: tracepoint fields come from
the kernel's own ``format`` files, arguments from registers. So headers of another
kernel serve to compile them, and a kernel that ships none can be traced too.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.scratch import ScratchDirectory

_MODULES: Final = Path("/lib/modules")
_SOURCES: Final = Path("/usr/src")
_KHEADERS: Final = (Path("/sys/kernel/kheaders.tar.xz"), Path("/proc/kheaders.tar.xz"))
_MARK: Final = "include/linux/kconfig.h"
_ARCH_MARK: Final = "arch/x86/include/asm/ptrace.h"
_GENERATED: Final = "include/generated/autoconf.h"
_HINT: Final = "apt-get install linux-headers-amd64 (Ubuntu: -generic); any version serves"


@dataclass
class Headers:
    """The header tree in use.

    Attributes:
        kind: ``running`` (the kernel's own), ``kheaders`` (from the kernel itself) or
            ``overlay`` (another kernel's, merged into a private directory).
        tree: Where it came from.
        path: For BCC_KERNEL_SOURCE; None: BCC finds it by itself.
    """

    kind: str
    tree: str
    path: Path | None
    _made: ScratchDirectory | None = field(default=None, repr=False)

    def close(self) -> None:
        """Delete what was made for it."""
        if self._made is not None:
            self._made.close()
            self._made = None


def find_headers(release: str | None = None) -> Headers:
    """Choose the headers to compile with.

    Args:
        release: Kernel release; default: the running one.

    Raises:
        CctraceError: There are none at all.
    """
    release = release or platform.release()
    running = _MODULES / release
    if _is_whole([running / "build", running / "source"]):
        return Headers("running", str((running / "build").resolve()), None)
    # BCC unpacks them by these two.
    if any(path.is_file() for path in _KHEADERS) and shutil.which("tar") and shutil.which("xz"):
        return Headers("kheaders", "kheaders", None)
    trees = _installed_trees()
    if not trees:
        raise CctraceError(
            f"no kernel headers for {release}, nor any other", _HINT, EXIT_UNSUPPORTED
        )
    arch, common = min(trees, key=lambda pair: _distance(pair[0].name, release))
    overlay = ScratchDirectory("headers")
    try:
        _merge(overlay.path, [arch] if common is None else [arch, common])
    except OSError as error:
        overlay.close()
        raise CctraceError(
            f"kernel headers in {arch} cannot be used: {error}", _HINT, EXIT_UNSUPPORTED
        ) from error
    return Headers("overlay", str(arch), overlay.path, overlay)


def _is_whole(trees: list[Path]) -> bool:
    """Whether trees, the configured one first, have together what BCC compiles with."""
    return (trees[0] / _GENERATED).is_file() and all(
        any((tree / mark).is_file() for tree in trees) for mark in (_MARK, _ARCH_MARK)
    )


def _installed_trees() -> list[tuple[Path, Path | None]]:
    """Header trees: (configured tree, the tree shared with others, as Debian splits it)."""
    trees: list[tuple[Path, Path | None]] = []
    found = [
        *sorted(_SOURCES.glob("linux-headers-*")),  # Debian, Ubuntu
        *sorted(_SOURCES.glob("kernels/*")),  # Fedora, RHEL
        *sorted(_MODULES.glob("*/build")),  # wherever else packages put them
    ]
    for arch in dict.fromkeys(path.resolve() for path in found):
        if _is_whole([arch]):
            trees.append((arch, None))
        elif (arch / _GENERATED).is_file():
            common = _common_of(arch)
            if common is not None:
                trees.append((arch, common))
    return trees


def _common_of(arch: Path) -> Path | None:
    """The tree that a split one shares with its sisters.

    Debian: linux-headers-6.1.0-50-cloud-amd64 beside linux-headers-6.1.0-50-common
    (rt: -common-rt); Ubuntu: linux-headers-6.8.0-40-generic beside
    linux-headers-6.8.0-40.
    """
    parts = arch.name.split("-")
    for count in range(len(parts) - 1, 2, -1):
        stem = "-".join(parts[:count])
        for name in (f"{stem}-common", f"{stem}-common-rt", stem):
            common = arch.with_name(name)
            if _is_whole([arch, common]):
                return common
    return None


def _distance(name: str, release: str) -> tuple[int, int]:
    """How far a tree's version is from ours; a smaller pair is nearer."""
    ours, theirs = _version(release), _version(name)
    return abs(ours[0] - theirs[0]), abs(ours[1] - theirs[1])


def _version(text: str) -> tuple[int, int]:
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _merge(into: Path, trees: list[Path]) -> None:
    """Fill ``into`` with links, so that it shows all ``trees``; the first one wins."""
    into.mkdir(exist_ok=True)
    names: dict[str, list[Path]] = {}
    for tree in trees:
        for entry in os.scandir(tree):
            names.setdefault(entry.name, []).append(Path(entry.path))
    for name, paths in names.items():
        folders = [path for path in paths if path.is_dir()]
        if len(folders) > 1:
            _merge(into / name, folders)
        else:
            (into / name).symlink_to(paths[0])
