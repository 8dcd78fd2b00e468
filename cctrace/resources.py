"""Where the files beside the Python code are: SQL, C sources, the built agent.

``queries/`` and ``probes/`` lie at the top of the source tree and inside the
package in a wheel; the source tree wins, so that an edit is seen at once.
"""

from __future__ import annotations

import sysconfig
from functools import cache
from importlib import metadata
from pathlib import Path

from cctrace.errors import CctraceError

_PACKAGE = Path(__file__).resolve().parent
_SOURCE_TREE = _PACKAGE.parent


@cache
def resource_dir(name: str) -> Path:
    """Directory ``queries`` or ``probes``, of the source tree or of the package.

    Raises:
        CctraceError: The installation lacks it.
    """
    for candidate in (_SOURCE_TREE / name, _PACKAGE / "_data" / name):
        if candidate.is_dir() and (
            candidate.parent != _SOURCE_TREE or (_SOURCE_TREE / "pyproject.toml").is_file()
        ):
            return candidate
    raise CctraceError(
        f"this installation of cctrace has no {name}/ directory",
        "install it again: pip install --force-reinstall cctrace",
    )


@cache
def native_library(name: str) -> Path:
    """Path of a library the build made, such as ``libcctrace_agent.so``.

    An editable install keeps it in site-packages while the package itself is in
    the source tree, so the installed locations are searched too.

    Raises:
        CctraceError: The installation lacks it.
    """
    candidates = [_PACKAGE / "_native" / name]
    candidates += [
        Path(sysconfig.get_path(scheme)) / "cctrace" / "_native" / name
        for scheme in ("platlib", "purelib")
    ]
    try:
        files = metadata.files("cctrace") or []
        candidates += [Path(str(f.locate())) for f in files if f.name == name]
    except metadata.PackageNotFoundError:
        pass
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise CctraceError(
        f"this installation of cctrace has no {name}",
        "build it: pip install . (or pip install -e . in a source tree)",
    )
