"""The Parquet parts of a table's folder: their names, and which of them count.

The recorder writes ``part-000007.parquet`` and later merges neighbours into
``part-000001-000007.parquet`` (both ends inclusive) before it deletes them. A
kill between the two leaves both, so a part whose range lies within another's is
left out here. Nothing but a footer is read in this module.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.schema import Table

_NAME = re.compile(r"part-(\d{6,18})(?:-(\d{6,18}))?\.parquet", re.ASCII)
_KEY_VERSION = b"cctrace.schema_version"
_KEY_TABLE = b"cctrace.table"
_ATTEMPTS = 10


@dataclass(frozen=True)
class Part:
    """One Parquet part that counts.

    Attributes:
        path: The file.
        first: Sequence number of the first batch in it.
        last: Sequence number of the last one; equals ``first`` unless merged.
        rows: Rows, from the footer.
        size_bytes: Size of the file.
    """

    path: Path
    first: int
    last: int
    rows: int
    size_bytes: int


def part_name(first: int, last: int | None = None) -> str:
    """Name of the part that holds batch ``first``, or ``first`` to ``last``."""
    if last is None:
        return f"part-{first:06d}.parquet"
    return f"part-{first:06d}-{last:06d}.parquet"


def list_parts(folder: Path, table: Table) -> tuple[Part, ...]:
    """Find and check the parts in ``folder``, in the order they were written.

    Args:
        folder: ``RUN/<table>``; it need not exist.
        table: What every part must hold.

    Returns:
        The parts that count: no temporary files, none covered by a merged one.

    Raises:
        CctraceError: Exit code 4; a file that is no part, is damaged or cut off,
            belongs to another table or format version, or is a symbolic link.
    """
    # A recorder at work may merge parts away after they were listed; what they
    # held is then in a part that was not, so the list is made anew.
    for _ in range(_ATTEMPTS):
        parts = _list_once(folder, table)
        whole = tuple(part for part in parts if part is not None)
        if len(whole) == len(parts):
            return whole
    raise CctraceError(
        f"the parts in {folder} keep changing", "wait until the recording is over", EXIT_BAD_DATA
    )


def _list_once(folder: Path, table: Table) -> list[Part | None]:
    ranges: list[tuple[int, int, Path]] = []
    try:
        _refuse_link(folder)
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CctraceError(f"cannot read {folder}: {error}", None, EXIT_BAD_DATA) from error
    for path in entries:
        if path.name.startswith(".") or path.name.endswith(".tmp"):
            continue
        match = _NAME.fullmatch(path.name)
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        if not match or last < first:
            raise CctraceError(
                f"{path} is no part of a run: its name is not part-NNNNNN.parquet",
                "move it out of the run directory",
                EXIT_BAD_DATA,
            )
        ranges.append((first, last, path))
    return [_check(path, first, last, table) for first, last, path in _outermost(ranges)]


def _outermost(ranges: list[tuple[int, int, Path]]) -> list[tuple[int, int, Path]]:
    """Leave out every range that lies within another one."""
    kept: list[tuple[int, int, Path]] = []
    for first, last, path in sorted(ranges, key=lambda r: (r[0], -r[1], r[2].name)):
        if kept and last <= kept[-1][1]:
            continue
        if kept and first <= kept[-1][1]:
            raise CctraceError(
                f"{path} and {kept[-1][2].name} overlap without one holding the other",
                "the run directory was changed by hand; restore it",
                EXIT_BAD_DATA,
            )
        kept.append((first, last, path))
    return kept


def _refuse_link(path: Path) -> int:
    """Refuse what is no plain file or directory; return the size in bytes."""
    info = path.lstat()
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        raise CctraceError(
            f"{path} is a link or a special file; a run holds plain files only",
            "copy what it points to in its place",
            EXIT_BAD_DATA,
        )
    return info.st_size


def _check(path: Path, first: int, last: int, table: Table) -> Part | None:
    """Check one part; None where a recorder has just merged it away."""
    try:
        size_bytes = _refuse_link(path)
        with path.open("rb") as file:
            footer: Any = pq.ParquetFile(file)
            metadata = footer.schema_arrow.metadata or {}
            found = footer.schema_arrow
            rows = int(footer.metadata.num_rows)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CctraceError(
            f"{path} is damaged: {reason}",
            "delete that part to read the rest of the run",
            EXIT_BAD_DATA,
        ) from error
    version = metadata.get(_KEY_VERSION)
    if version is None:
        raise CctraceError(
            f"{path} was not written by cctrace: it carries no cctrace.schema_version",
            "move it out of the run directory",
            EXIT_BAD_DATA,
        )
    if version != str(SCHEMA_VERSION).encode():
        raise CctraceError(
            f"{path} has run format version {version.decode(errors='replace')}; "
            f"this cctrace reads version {SCHEMA_VERSION}",
            "open it with the cctrace that wrote it",
            EXIT_BAD_DATA,
        )
    if metadata.get(_KEY_TABLE) != table.name.encode():
        name = (metadata.get(_KEY_TABLE) or b"?").decode(errors="replace")
        raise CctraceError(
            f"{path} holds table {name!r}, not {table.name!r}",
            "move it to the folder of its own table",
            EXIT_BAD_DATA,
        )
    _check_columns(path, found, table)
    return Part(path, first, last, rows, size_bytes)


def _check_columns(path: Path, found: Any, table: Table) -> None:
    """Compare names, order and types; nullability is the writer's own matter."""
    expected = [(f.name, f.type) for f in table.arrow]
    actual = [(f.name, f.type) for f in found]
    if len(actual) == len(expected) and all(
        a[0] == e[0] and _plain(a[1]) == _plain(e[1]) for a, e in zip(actual, expected, strict=True)
    ):
        return
    differing = sorted({a[0] for a in actual} ^ {e[0] for e in expected})
    detail = f"columns {', '.join(differing)}" if differing else "the order or types of columns"
    raise CctraceError(
        f"{path} does not match table {table.name} of run format {SCHEMA_VERSION}: {detail} differ",
        "record again, or use the cctrace that wrote the run",
        EXIT_BAD_DATA,
    )


def _plain(kind: Any) -> str:
    """Arrow type as Parquet keeps it: no dictionary, no name of a list's element."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_list(kind):
        return f"list<{_plain(kind.value_type)}>"
    if pa.types.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        return f"struct<{', '.join(f'{f.name}: {_plain(f.type)}' for f in fields)}>"
    return str(kind)
