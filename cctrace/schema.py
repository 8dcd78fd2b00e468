"""The tables of a run: the single truth for columns, types, units and order.

Everything that writes a run (the recorder, the importers) and everything that
reads one (the DuckDB views, the exporters) takes its columns from here. A table
becomes one folder of Parquet parts in the run directory and one DuckDB view of
the same name. Times are integer nanoseconds of CLOCK_MONOTONIC.

This module must not import anything else of cctrace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

SCHEMA_VERSION = 1
CLOCK_DOMAIN = "CLOCK_MONOTONIC"

_KEY_VERSION = b"cctrace.schema_version"
_KEY_CLOCK = b"cctrace.clock"
_KEY_TABLE = b"cctrace.table"

_DICT = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Column:
    """One column: its name (which carries the unit), Arrow type and meaning.

    Attributes:
        name: Column name; ``_ns``, ``_bytes`` and the like carry the unit.
        type: Arrow type in the Parquet parts.
        doc: Meaning, range, and what NULL means where ``nullable``.
        nullable: Whether NULL can occur.
    """

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One table: its name, what a row is, and its columns in order."""

    name: str
    doc: str
    columns: tuple[Column, ...]

    @cached_property
    def arrow(self) -> pa.Schema:
        """Arrow schema with version, clock and table name in its metadata."""
        return pa.schema(
            [pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns],
            metadata={
                _KEY_VERSION: str(SCHEMA_VERSION).encode(),
                _KEY_CLOCK: CLOCK_DOMAIN.encode(),
                _KEY_TABLE: self.name.encode(),
            },
        )

    @property
    def column_names(self) -> tuple[str, ...]:
        """Column names in file order."""
        return tuple(c.name for c in self.columns)


def _ts(doc: str = "start, ns of CLOCK_MONOTONIC") -> Column:
    return Column("ts_ns", pa.int64(), doc)


def _dur(doc: str = "length, ns; NULL while still open at the end of the run") -> Column:
    return Column("dur_ns", pa.int64(), doc, nullable=True)


def _pid() -> Column:
    return Column("pid", pa.int32(), "process (thread-group id)")


def _tid() -> Column:
    return Column("tid", pa.int32(), "thread id")


def _text(name: str, doc: str, nullable: bool = True) -> Column:
    return Column(name, _DICT, doc, nullable)


def _size(nullable: bool = False) -> Column:
    return Column("size_bytes", pa.int64(), "bytes moved, >= 0", nullable)


def _stack_id() -> Column:
    return Column("stack_id", pa.int64(), "joins stacks.stack_id; NULL: no stack taken", True)


_TABLES = (
    Table(
        "processes",
        "one process of the traced tree; an exec keeps the row, with the last program in it",
        (
            _ts("when the process was first known, ns of CLOCK_MONOTONIC"),
            _pid(),
            _tid(),
            Column("start_ns", pa.int64(), "start, ns of CLOCK_MONOTONIC (10 ms grain)"),
            Column("end_ns", pa.int64(), "end; NULL: still running when recording ended", True),
            Column("ppid", pa.int32(), "parent when first seen; NULL: unknown", True),
            Column("exe", pa.string(), "path of the program; NULL: unknown", True),
            Column("cmdline", pa.string(), "arguments, shell-quoted; NULL: unknown", True),
            Column(
                "exit_code",
                pa.int32(),
                "exit status, 128 + n for signal n; NULL: still running or not observable",
                True,
            ),
        ),
    ),
    Table(
        "threads",
        "one thread of the traced tree",
        (
            _ts("when the thread was first known, ns of CLOCK_MONOTONIC"),
            _pid(),
            _tid(),
            Column("name", pa.string(), "last name seen; NULL: gone before it was read", True),
            Column("start_ns", pa.int64(), "start, ns of CLOCK_MONOTONIC (10 ms grain)", True),
            Column(
                "end_ns",
                pa.int64(),
                "when it was first seen to be gone; NULL: still there when recording ended",
                True,
            ),
        ),
    ),
    Table(
        "nvtx",
        "one NVTX range or mark",
        (
            _ts(),
            _pid(),
            _tid(),
            _dur("length, ns; 0 for a mark; NULL while still open at the end"),
            _text("kind", "push_pop, start_end or mark", nullable=False),
            _text("domain", "NVTX domain; NULL: the default domain"),
            _text("name", "message; NULL: the event had none, or it was lost (see losses)"),
            _text("category", "category name, or its number where it was never named"),
            Column(
                "payload",
                pa.int64(),
                "integer payload; NULL: none, floating, or beyond the range of BIGINT",
                True,
            ),
            Column(
                "payload_double",
                pa.float64(),
                "floating payload, or an unsigned one of 2^63 and more; NULL: none",
                True,
            ),
            Column(
                "depth",
                pa.int32(),
                "nesting depth within its thread and domain, 0 is outermost; 0 for the other kinds",
            ),
            Column("color", pa.uint32(), "ARGB colour; NULL: none", True),
            Column(
                "end_tid",
                pa.int32(),
                "start_end: thread that ended it; NULL: other kinds, or still open",
                True,
            ),
        ),
    ),
    Table(
        "cuda_api",
        "one CUDA call",
        (
            _ts(),
            _pid(),
            _tid(),
            _dur(),
            _text("api", "function name without version suffix", nullable=False),
            _text("layer", "runtime or driver", nullable=False),
            _text(
                "class",
                "copy, launch, graph, sync, alloc, free, memset, event or collective; "
                "other: any other call of an imported trace",
                nullable=False,
            ),
            _text("copy_kind", "h2d, d2h, d2d, p2p, h2h or unknown; NULL: not a copy"),
            _size(nullable=True),
            Column("stream", pa.int64(), "stream handle, 0 is the default; NULL: none", True),
            Column("event", pa.int64(), "event handle; NULL: none, or unknown", True),
            _text("host_memory", "pinned, pageable, registered, managed or unknown"),
            Column("result", pa.int32(), "CUDA status, 0 is success; NULL: not seen", True),
            Column("depth", pa.int32(), "0: called by the program; n: inside n probed calls"),
            Column(
                "correlation_id",
                pa.int64(),
                "joins gpu_activity.correlation_id within the process; NULL: none was told",
                True,
            ),
            _stack_id(),
        ),
    ),
    Table(
        "cuda_launches",
        "calls of one kind on one thread and stream, aggregated in the kernel over a window",
        (
            _ts("start of the window, ns of CLOCK_MONOTONIC"),
            _pid(),
            _tid(),
            Column("window_ns", pa.int64(), "length of the window"),
            _text("api", "function name without version suffix", nullable=False),
            Column("stream", pa.int64(), "stream handle, 0 is the default; NULL: none", True),
            Column("calls", pa.int64(), "calls in the window"),
            Column("total_ns", pa.int64(), "sum of their durations"),
            Column("max_ns", pa.int64(), "longest of them"),
            Column(
                "histogram",
                pa.list_(pa.int64()),
                "calls by duration: element i counts [2^i, 2^(i+1)) ns",
            ),
        ),
    ),
    Table(
        "sched",
        "one off-CPU interval of a traced thread",
        (
            _ts(),
            _pid(),
            _tid(),
            _dur(),
            _text(
                "state",
                "runnable, blocked or io; unknown: off the CPU, an imported trace does not say why",
                nullable=False,
            ),
            Column(
                "waker_tid",
                pa.int32(),
                "thread that woke it (a timer: whichever it interrupted); NULL: unknown",
                True,
            ),
            _stack_id(),
        ),
    ),
    Table(
        "swiotlb",
        "one bounce-buffer operation of the kernel",
        (
            _ts(),
            _pid(),
            _tid(),
            _dur("length, ns; NULL where only the tracepoint could be used"),
            _text("op", "map, bounce, unmap, sync or full", nullable=False),
            _text("device", "device name"),
            _text("direction", "to_device, from_device or bidirectional; NULL: unknown"),
            _size(),
        ),
    ),
    Table(
        "page_conversion",
        "one conversion of pages between shared and private",
        (
            _ts(),
            _pid(),
            _tid(),
            _dur(),
            _text("to", "shared or private", nullable=False),
            Column("pages", pa.int64(), "4 KiB pages converted"),
        ),
    ),
    Table(
        "uvm_crypto",
        "one encryption or decryption by nvidia-uvm",
        (
            _ts(),
            _pid(),
            _tid(),
            _dur(),
            _text("direction", "encrypt or decrypt", nullable=False),
            _size(),
        ),
    ),
    Table(
        "user_crypto",
        "one libcrypto encryption or decryption made under the CUDA driver",
        (
            _ts(),
            _pid(),
            _tid(),
            _dur(),
            _text("direction", "encrypt or decrypt", nullable=False),
            _size(),
        ),
    ),
    Table(
        "gpu_activity",
        "one GPU-side interval",
        (
            _ts("start, mapped to ns of CLOCK_MONOTONIC"),
            Column("pid", pa.int32(), "process; NULL: unknown", True),
            Column("tid", pa.int32(), "launching thread; NULL: unknown", True),
            _dur(),
            _text("class", "kernel, copy or memset", nullable=False),
            _text("name", "kernel or copy name"),
            _text("copy_kind", "h2d, d2h, d2d, p2p, h2h or unknown; NULL: not a copy"),
            _text("host_memory", "pinned, pageable, registered, managed or unknown"),
            Column("stream", pa.int64(), "stream; NULL: unknown", True),
            Column("device", pa.int32(), "device ordinal; NULL: unknown", True),
            _size(nullable=True),
            Column("correlation_id", pa.int64(), "joins the launching call; NULL: none", True),
        ),
    ),
    Table(
        "stacks",
        "one distinct stack",
        (
            Column("stack_id", pa.int64(), "identifies the stack within the run"),
            Column(
                "frames",
                pa.list_(
                    pa.struct(
                        [
                            pa.field("function", pa.string()),
                            pa.field("module", pa.string()),
                            pa.field("file", pa.string()),
                            pa.field("line", pa.int32()),
                            pa.field("kind", pa.string()),
                        ]
                    )
                ),
                "frames, innermost first; kind is native, python or kernel",
            ),
        ),
    ),
    Table(
        "counters",
        "one sample of a counter",
        (
            _ts("when sampled, ns of CLOCK_MONOTONIC"),
            Column("pid", pa.int32(), "process; NULL: the whole machine", True),
            Column("tid", pa.int32(), "thread; NULL: the whole process", True),
            _text("name", "counter name", nullable=False),
            Column("value", pa.float64(), "value in its unit"),
            _text("unit", "unit of value", nullable=False),
        ),
    ),
    Table(
        "losses",
        "one reason for lost data, of one thread or process",
        (
            Column("pid", pa.int32(), "process it was lost in; NULL: the recorder itself", True),
            Column("tid", pa.int32(), "thread; NULL: not one thread's", True),
            _text("source", "source that lost it, as in run.json", nullable=False),
            _text("reason", "why; docs/run-format.md lists them", nullable=False),
            Column("count", pa.int64(), "events lost, > 0"),
            Column("first_ns", pa.int64(), "first loss, ns; NULL: unknown", True),
            Column("last_ns", pa.int64(), "last loss, ns; NULL: unknown", True),
        ),
    ),
)

TABLES: dict[str, Table] = {t.name: t for t in _TABLES}
