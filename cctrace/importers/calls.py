"""What a CUDA function is, by its name: the same table that tells the recorder.

Traces name many more functions than are worth a probe; what the table does not have
is of class ``other``.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any, Final, NamedTuple

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.resources import resource_dir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OTHER: Final = "other"
# cudaMemcpyAsync_ptsz_v7000: the version of the interface, then of the symbol.
_SUFFIXES: Final = re.compile(r"(?:_v\d+|_ptds|_ptsz)+$")
_TEMPLATE: Final = re.compile(r"\[\w+\]$")
_HOST_MEMORY: Final = {
    "pinned_alloc": "pinned",
    "managed_alloc": "managed",
    "register": "registered",
}
_FIXED_KINDS: Final = ("h2d", "d2h", "d2d", "p2p", "h2h")


class Api(NamedTuple):
    """One CUDA function.

    Attributes:
        name: Without version suffix.
        layer: ``runtime`` or ``driver``; NCCL counts as runtime.
        cls: Value of ``cuda_api.class``.
        copy_kind: What it copies, where the function itself says so.
        host_memory: What it makes, for an allocation of host memory.
    """

    name: str
    layer: str
    cls: str
    copy_kind: str | None
    host_memory: str | None


@functools.lru_cache(maxsize=4096)
def api(symbol: str) -> Api:
    """What the function of that exported name is."""
    name = _SUFFIXES.sub("", symbol) or symbol
    known = _table().get(name)
    if known is not None:
        return known
    # The driver's functions are cuX..., the runtime's cudaX... (cuda.h, cuda_runtime_api.h).
    is_driver = re.match(r"cu[A-Z]", name) is not None
    return Api(name, "driver" if is_driver else "runtime", OTHER, None, None)


@functools.cache
def _table() -> dict[str, Api]:
    path = resource_dir("probes") / "bpf" / "cuda_symbols.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CctraceError(f"{path.name}: {error}", None, EXIT_BAD_DATA) from error
    found: dict[str, Api] = {}
    for library, classes in data.items():
        layer = "driver" if library == "cuda" else "runtime"
        for cls, entries in classes.items():
            for key, entry in entries.items():
                name = _SUFFIXES.sub("", _TEMPLATE.sub("", key))
                entry_api = _api(name, layer, cls, entry)
                found.setdefault(name, entry_api)
                found.setdefault(entry_api.name, entry_api)
    return found


def _api(name: str, layer: str, cls: str, entry: Any) -> Api:
    # Versions of one function differ in their arguments, not in what they do.
    fields = entry[0] if isinstance(entry, list) else entry
    kind = fields.get("copy")
    return Api(
        fields.get("api", name),
        layer,
        cls,
        kind if kind in _FIXED_KINDS else None,
        _HOST_MEMORY.get(fields.get("memory", "")),
    )
