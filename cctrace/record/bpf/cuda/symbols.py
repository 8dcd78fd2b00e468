"""The table of probed calls: ``probes/bpf/cuda_symbols.toml``, checked and packed.

Each line of the file becomes one or more ``Symbol``; its place in the table is its
*site*, which records carry. What a program needs to know of a site's arguments goes
into the 64-bit cookie of its probe, so that no map has to be looked up per call.
"""

from __future__ import annotations

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cctrace import resources
from cctrace.errors import EXIT_BAD_DATA, CctraceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIBRARIES: Final = ("cuda", "cudart", "nccl")
CLASSES: Final = (
    "copy",
    "launch",
    "graph",
    "sync",
    "alloc",
    "free",
    "memset",
    "event",
    "collective",
)
COPY_KINDS: Final = ("h2d", "d2h", "d2d", "p2p", "h2h", "argument", "addresses")
MEMORY_ROLES: Final = (
    "pinned_alloc",
    "managed_alloc",
    "device_alloc",
    "register",
    "free",
    "unregister",
)
# enum cuda_shape of cuda.bpf.c, in its order, and how many arguments `size` names.
SHAPES: Final = {
    "none": (0, 0),
    "product": (1, 3),
    "nccl": (2, 2),
    "pitched": (2, 2),
    "pitched_3d": (2, 2),
    "batch": (2, 2),
    "batch_3d": (2, 2),
    "operation_3d": (1, 1),
    "CUDA_MEMCPY2D": (1, 1),
    "CUDA_MEMCPY3D": (1, 1),
    "CUDA_MEMCPY3D_PEER": (1, 1),
    "cudaMemcpy3DParms": (1, 1),
    "cudaMemcpy3DPeerParms": (1, 1),
}
MAX_SITES: Final = 4095
# The last number that fits a cookie is no function of CUDA, but probe_cost.py's.
PROBE_COST_SITE: Final = 4095
_MAX_ARGUMENT: Final = 15
_KEYS: Final = {
    *("api", "copy", "memory", "since", "until", "stream", "stream_in", "dst", "src", "out"),
    *("kind", "event", "size", "unit_bytes", "shape"),
}
_NAME: Final = re.compile(r"(?P<stem>\w+)(?:\[(?P<suffix>\w+)\])?")
_VARIANT: Final = re.compile(r"(?:_v\d+)?(?:_ptds|_ptsz)?$")

# Bits of the cookie; cuda.bpf.c unpacks them.
COOKIE_SITE_BITS: Final = 12
COOKIE_LAUNCH: Final = 1 << 12
COOKIE_OUT: Final = 1 << 13
COOKIE_STREAM_IN_CONFIG: Final = 1 << 14
COOKIE_DATA: Final = 1 << 15  # anything to read but a stream
COOKIE_ADDRESS: Final = 1 << 16
_SHAPE_SHIFT: Final = 17
_UNIT_SHIFT: Final = 22
_SIZE_SHIFTS: Final = (24, 28, 32)
_KIND_SHIFT: Final = 36
_STREAM_SHIFT: Final = 40
_DST_SHIFT: Final = 44
_SRC_SHIFT: Final = 48
COOKIE_CROSSING: Final = 1 << 52
# Classes of calls that cross the bridge, of whose callers a stack is taken.
CROSSINGS: Final = frozenset({"copy", "launch", "graph", "sync", "alloc", "collective"})


@dataclass(frozen=True)
class Symbol:
    """One function of one library.

    Attributes:
        site: Its index in the table.
        name: As exported.
        api: As shown to users, without version suffix.
        library: ``cuda``, ``cudart`` or ``nccl``.
        layer: ``runtime`` or ``driver``; NCCL counts as runtime.
        cls: One of ``CLASSES``.
        copy_kind: One of ``COPY_KINDS``; None: no copy.
        memory: One of ``MEMORY_ROLES``; None: none.
        since: First version of the library that has these arguments; None: any.
        until: First version that has others; None: none.
        size: Arguments that give the size, counted from 1; meaning as ``shape`` says.
        shape: One of ``SHAPES``.
        unit_bytes: What the size is counted in.
        stream: Argument that is the stream; 0: none.
        stream_in_config: The argument points at a launch configuration that holds it.
        dst: Argument with the destination's address; 0: none.
        src: Argument with the source's address; 0: none.
        out: Argument that points at where the allocated address is stored; 0: none.
        kind: Argument that is the cudaMemcpyKind; 0: none.
        event: Argument that is the event; 0: none. It takes the place of ``dst``.
    """

    site: int
    name: str
    api: str
    library: str
    cls: str
    copy_kind: str | None = None
    memory: str | None = None
    since: int | None = None
    until: int | None = None
    size: tuple[int, ...] = ()
    shape: str = "none"
    unit_bytes: int = 1
    stream: int = 0
    stream_in_config: bool = False
    dst: int = 0
    src: int = 0
    out: int = 0
    kind: int = 0
    event: int = 0

    @property
    def layer(self) -> str:
        """Which layer of CUDA it belongs to."""
        return "driver" if self.library == "cuda" else "runtime"

    @property
    def is_launch(self) -> bool:
        """Whether it may be aggregated and sampled: there are many of these."""
        return self.cls in ("launch", "graph")

    @property
    def is_crossing(self) -> bool:
        """Whether the stack of its callers is taken: what it costs depends on them."""
        return self.cls in CROSSINGS and self.site != PROBE_COST_SITE

    @property
    def cookie(self) -> int:
        """What its probes are given: site and arguments in 64 bits."""
        has_address = self.cls == "copy" or self.dst or self.src or self.event
        value = self.site
        value |= COOKIE_LAUNCH if self.is_launch else 0
        value |= COOKIE_OUT if self.out else 0
        value |= COOKIE_STREAM_IN_CONFIG if self.stream_in_config else 0
        value |= COOKIE_DATA if has_address or self.out or self.size else 0
        value |= COOKIE_ADDRESS if has_address else 0
        value |= COOKIE_CROSSING if self.is_crossing else 0
        value |= list(SHAPES).index(self.shape) << _SHAPE_SHIFT
        value |= (self.unit_bytes.bit_length() - 1) << _UNIT_SHIFT
        for argument, shift in zip(self.size, _SIZE_SHIFTS, strict=False):
            value |= argument << shift
        value |= self.kind << _KIND_SHIFT | self.stream << _STREAM_SHIFT
        dst = self.out or self.dst or self.event
        return value | dst << _DST_SHIFT | self.src << _SRC_SHIFT

    def fits(self, version: int | None) -> bool:
        """Whether these are its arguments in that version; None: not known, the newest."""
        if version is None:
            return self.until is None
        return (self.since or 0) <= version and (self.until is None or version < self.until)


@dataclass(frozen=True)
class SymbolTable:
    """All probed functions.

    Attributes:
        symbols: By site.
    """

    symbols: tuple[Symbol, ...]

    def by_name(self, library: str | None, version: int | None = None) -> dict[str, Symbol]:
        """Functions of one library by exported name, in the file's order.

        Args:
            library: ``cuda``, ``cudart`` or ``nccl``; None: all of them, for a program
                that has them linked in.
            version: The number in its soname (libcudart.so.13: 13); None: not known.
        """
        return {
            symbol.name: symbol
            for symbol in self.symbols
            if library in (None, symbol.library) and symbol.fits(version)
        }


@functools.cache
def symbol_table() -> SymbolTable:
    """The table that comes with cctrace.

    Raises:
        CctraceError: The file makes no sense; the message says which line.
    """
    return load(resources.resource_dir("probes") / "bpf" / "cuda_symbols.toml")


def load(path: Path) -> SymbolTable:
    """Read and check a table of symbols.

    Raises:
        CctraceError: It is no TOML, or an entry of it makes no sense.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CctraceError(f"{path.name}: {error}", None, EXIT_BAD_DATA) from error
    symbols: list[Symbol] = []
    for library, cls, key, entry in _entries(data, path.name):
        where = f"{path.name}: {library}.{cls}: {key}"
        match = _NAME.fullmatch(key)
        if match is None:
            raise CctraceError(f"{where}: not a symbol, nor symbol[suffix]", None, EXIT_BAD_DATA)
        for suffix in {"": None, match["suffix"] or "": None}:
            name = match["stem"] + suffix
            symbols.append(_symbol(len(symbols), name, (library, cls), entry, where))
    if len(symbols) > MAX_SITES:
        raise CctraceError(
            f"{path.name}: {len(symbols)} symbols; at most {MAX_SITES}", None, EXIT_BAD_DATA
        )
    _check_unambiguous(symbols, path.name)
    return SymbolTable(tuple(symbols))


def api_name(symbol: str) -> str:
    """A symbol without its version suffix: cuMemcpyHtoDAsync for cuMemcpyHtoDAsync_v2_ptsz."""
    return _VARIANT.sub("", symbol)


def _entries(data: dict[str, Any], file: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    entries: list[tuple[str, str, str, dict[str, Any]]] = []
    for library, classes in data.items():
        if library not in LIBRARIES or not isinstance(classes, dict):
            raise CctraceError(
                f"{file}: unknown library {library}",
                f"one of {', '.join(LIBRARIES)}",
                EXIT_BAD_DATA,
            )
        for cls, lines in classes.items():
            if cls not in CLASSES or not isinstance(lines, dict):
                raise CctraceError(
                    f"{file}: unknown class {library}.{cls}",
                    f"one of {', '.join(CLASSES)}",
                    EXIT_BAD_DATA,
                )
            for key, value in lines.items():
                for entry in value if isinstance(value, list) else [value]:
                    if not isinstance(entry, dict):
                        raise CctraceError(
                            f"{file}: {library}.{cls}: {key}: not a table", None, EXIT_BAD_DATA
                        )
                    entries.append((library, cls, key, entry))
    return entries


def _symbol(
    site: int, name: str, table: tuple[str, str], entry: dict[str, Any], where: str
) -> Symbol:
    library, cls = table
    check = _Checker(where, entry)
    check.that(set(entry) <= _KEYS, f"unknown key {', '.join(sorted(set(entry) - _KEYS))}")
    size = entry.get("size", [])
    size = tuple(size) if isinstance(size, list) else (size,)
    for argument in size:
        check.argument("size", argument)
    shape = entry.get("shape", "product" if size else "none")
    check.that(shape in SHAPES, f"unknown shape {shape}; one of {', '.join(SHAPES)}")
    least, most = SHAPES[shape]
    check.that(least <= len(size) <= most, f"shape {shape} takes {least} to {most} sizes")
    copy_kind = entry.get("copy")
    check.that((copy_kind in COPY_KINDS) == (cls == "copy"), "copies, and only they, have a copy")
    memory = entry.get("memory")
    check.that(memory is None or memory in MEMORY_ROLES, f"unknown memory {memory}")
    unit_bytes = entry.get("unit_bytes", 1)
    check.that(unit_bytes in (1, 2, 4, 8), "unit_bytes is 1, 2, 4 or 8")
    stream_in = entry.get("stream_in")
    check.that(stream_in in (None, "launch_config"), f"unknown stream_in {stream_in}")
    check.that("out" not in entry or "dst" not in entry, "an address is out or dst, not both")
    check.that(
        "event" not in entry or not {"dst", "src", "out", "size"} & entry.keys(),
        "a call has an event, or addresses and a size",
    )
    check.that(shape != "pitched_3d" or "out" in entry, "pitched_3d needs out")
    for version in ("since", "until"):
        check.that(isinstance(entry.get(version, 1), int), f"{version} is a number")
    return Symbol(
        site=site,
        name=name,
        api=entry.get("api", api_name(name)),
        library=library,
        cls=cls,
        copy_kind=copy_kind,
        memory=memory,
        since=entry.get("since"),
        until=entry.get("until"),
        size=size,
        shape=shape,
        unit_bytes=unit_bytes,
        stream=check.argument("stream"),
        stream_in_config=stream_in is not None,
        dst=check.argument("dst"),
        src=check.argument("src"),
        out=check.argument("out"),
        kind=check.argument("kind"),
        event=check.argument("event"),
    )


class _Checker:
    """Says which entry of the file is wrong."""

    def __init__(self, where: str, entry: dict[str, Any]) -> None:
        self._where = where
        self._entry = entry

    def that(self, condition: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as an assertion
        if not condition:
            raise CctraceError(f"{self._where}: {otherwise}", None, EXIT_BAD_DATA)

    def argument(self, key: str, value: Any = None) -> int:
        """A position from 1 to 15; 0 where the key is not there."""
        number = self._entry.get(key, 0) if value is None else value
        least = 0 if value is None and key not in self._entry else 1
        self.that(
            isinstance(number, int)
            and not isinstance(number, bool)
            and least <= number <= _MAX_ARGUMENT,
            f"{key} is an argument's number, 1 to {_MAX_ARGUMENT}",
        )
        return int(number)


def _check_unambiguous(symbols: list[Symbol], file: str) -> None:
    """No version of a library may find two lines for one function."""
    seen: dict[tuple[str, str], list[Symbol]] = {}
    for symbol in symbols:
        others = seen.setdefault((symbol.library, symbol.name), [])
        for other in others:
            first, last = sorted((symbol, other), key=lambda s: s.since or 0)
            if first.until is None or first.until > (last.since or 0):
                raise CctraceError(
                    f"{file}: {symbol.name} is there twice",
                    "give both a range of versions: since, until",
                    EXIT_BAD_DATA,
                )
        others.append(symbol)
