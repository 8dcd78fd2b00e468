"""BCC: find it, compile programs with it, load them.

BCC is Debian's python3-bpfcc, a pure-Python layer over libbcc. It lives outside this
Python's path, so it is imported from where it lies. PyPI's ``bcc`` is another thing.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf.headers import Headers

_PLACES: Final = (
    Path("/usr/lib/python3/dist-packages/bcc"),  # Debian, Ubuntu
    *sorted(Path("/usr/lib").glob("python3.*/site-packages/bcc")),  # Fedora, RHEL, Arch
    *sorted(Path("/usr/local/lib").glob("python3*/*-packages/bcc")),
)
_HINT: Final = "apt-get install python3-bpfcc (not pip: PyPI's bcc is another package)"
_REPAIR: Final = "apt-get install --reinstall python3-bpfcc libbpfcc"
_TAIL_LINES: Final = 12

# Program types and attach types, include/uapi/linux/bpf.h
KPROBE: Final = 2
TRACEPOINT: Final = 5


def find_bcc() -> Path:
    """Folder of the Python package ``bcc``.

    Raises:
        CctraceError: It is not installed.
    """
    for place in _PLACES:
        if (place / "libbcc.py").is_file():
            return place
    raise CctraceError("BCC is not installed", _HINT, EXIT_UNSUPPORTED)


def load_bcc() -> ModuleType:
    """Import BCC from where it lies, and nothing else from there.

    Raises:
        CctraceError: It is missing, or cannot be imported.
    """
    loaded = sys.modules.get("bcc")
    if loaded is not None and hasattr(loaded, "BPF"):
        return loaded
    place = find_bcc()
    spec = importlib.util.spec_from_file_location(
        "bcc", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    if spec is None or spec.loader is None:
        raise CctraceError(f"BCC in {place} cannot be imported", _REPAIR, EXIT_UNSUPPORTED)
    module = importlib.util.module_from_spec(spec)
    _forget_bcc()  # what PyPI's left, if anybody imported that
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError, AttributeError, SyntaxError) as error:
        # AttributeError: a libbcc that is older than the package.
        _forget_bcc()
        raise CctraceError(
            f"BCC in {place} cannot be imported: {error}", _REPAIR, EXIT_UNSUPPORTED
        ) from error
    if not hasattr(module, "BPF"):
        _forget_bcc()
        raise CctraceError(f"{place} is no BCC: it has no BPF", _REPAIR, EXIT_UNSUPPORTED)
    return module


def _forget_bcc() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "bcc"]:
        del sys.modules[name]


class Module:
    """Programs compiled together, sharing maps.

    Args:
        files: Sources below ``probes/bpf``, in order; the last words of each may use
            what earlier ones declare.
        cflags: For the compiler.
        headers: Kernel headers to compile with.

    Attributes:
        programs: Descriptors of those loaded, by name.

    Raises:
        CctraceError: BCC is missing, or the programs do not compile.
    """

    def __init__(self, files: list[Path], cflags: list[str], headers: Headers) -> None:
        self.programs: dict[str, int] = {}
        bcc = load_bcc()
        text = "".join(
            f'#line 1 "{file.name}"\n{file.read_text(encoding="utf-8")}\n' for file in files
        )
        folder = files[0].parent
        with _kernel_source(headers), _captured_stderr() as said:
            try:
                self._bpf = bcc.BPF(text=text.encode(), cflags=[f"-I{folder}", *cflags])
            except Exception as error:
                raise CctraceError(
                    f"BPF programs do not compile: {_tail(said()) or error}",
                    f"headers in use: {headers.kind} {headers.tree}",
                    EXIT_UNSUPPORTED,
                ) from error

    def load(self, name: str, program_type: int, attach_type: int = -1) -> int:
        """Load the program ``name``; returns its descriptor, which the module owns.

        Raises:
            OSError: The kernel refuses it; the text has the verifier's last words.
        """
        with _captured_stderr() as said:
            try:
                function = self._bpf.load_func(name.encode(), program_type, None, attach_type)
            except Exception as error:
                text = f"the kernel refuses program {name}: {_verdict(said()) or error}"
                raise OSError(ctypes.get_errno(), text) from error
        self.programs[name] = int(function.fd)
        return self.programs[name]

    def table(self, name: str) -> Any:
        """BCC's object for the map ``name``."""
        return self._bpf[name.encode()]

    def map_fd(self, name: str) -> int:
        """Descriptor of the map ``name``."""
        return int(self.table(name).map_fd)

    @property
    def bpf(self) -> Any:
        """BCC's own object, for what this class has no method for (attach_kprobe)."""
        return self._bpf

    def close(self) -> None:
        """Detach what BCC attached, and give programs and maps back."""
        self._bpf.cleanup()


@contextlib.contextmanager
def _kernel_source(headers: Headers) -> Iterator[None]:
    if headers.path is None:
        yield
        return
    before = os.environ.get("BCC_KERNEL_SOURCE")
    os.environ["BCC_KERNEL_SOURCE"] = str(headers.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["BCC_KERNEL_SOURCE"]
        else:
            os.environ["BCC_KERNEL_SOURCE"] = before


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Catch what libbcc and clang write to descriptor 2; yields a function that reads it."""
    with tempfile.TemporaryFile() as file:
        inheritable = os.get_inheritable(2)  # not where record filled a closed one
        saved = os.dup(2)
        os.dup2(file.fileno(), 2, inheritable=False)

        def said() -> str:
            file.seek(0)
            return file.read().decode("utf-8", "replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2, inheritable=inheritable)
            os.close(saved)


def _verdict(text: str) -> str:
    """What the verifier objects to: the line before its statistics, or all it says."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if number and line.startswith("processed ") and " insns" in line:
            return lines[number - 1]
    return _tail(text)


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return "; ".join((errors or lines)[-_TAIL_LINES:])
