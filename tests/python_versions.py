"""Interpreters of other versions of Python, wherever this machine has them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


@functools.cache
def _find(version: str) -> Path | None:
    candidates = os.environ.get("CCTRACE_TEST_PYTHONS", "").split(os.pathsep)
    candidates.append(shutil.which(f"python{version}") or "")
    pyenv = Path.home() / ".pyenv" / "versions"
    candidates += [str(path / "bin" / "python") for path in sorted(pyenv.glob(f"{version}.*"))]
    for candidate in filter(None, candidates):
        text = "import sys; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
        done = subprocess.run([candidate, "-c", text], capture_output=True, text=True, check=False)
        if done.stdout.split() == [version, "cpython"]:
            return Path(candidate)
    return None


def interpreter(version: str) -> Path:
    """A CPython of that version; skips the test where there is none."""
    found = _find(version)
    if found is None:
        pytest.skip(
            f"no CPython {version}: neither on PATH, nor in CCTRACE_TEST_PYTHONS, nor of pyenv"
        )
    return found
