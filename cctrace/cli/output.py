"""What the commands share: where results go, in which format, safe to look at.

stdout is data and stderr is talk. Text that came from the target is untrusted:
control characters never reach a terminal.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
import tempfile
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cctrace.cli.units import harmless
from cctrace.errors import EXIT_FAILED, EXIT_USAGE, CctraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import BinaryIO

    from cctrace.store.run import Run
    from cctrace.store.session import Result

    Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = ("table", "csv", "json", "parquet", "markdown")
# What is too wide for the terminal is shown a column a line, up to so many rows.
RECORD_ROWS = 20
_TEXT_WIDTH = 16  # narrower than that, folded text is hard to read
_GAP = 2  # between columns
TABLE_ROWS = 10_000  # a table is laid out as a whole, so it has to end somewhere


def output_options(command: Command) -> Command:
    """Add ``-o`` and ``--force``, which every command that writes a file has."""
    command = click.option("--force", is_flag=True, help="Overwrite FILE.")(command)
    return click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write to FILE instead of standard output.",
    )(command)


def number(value: int) -> str:
    """Integer with thousands separated."""
    return f"{value:,}"


def talk(text: str) -> None:
    """Say something to the user, on stderr."""
    click.echo(harmless(text), err=True)


def warn_of_losses(runs: Iterable[Run]) -> None:
    """Give one line on stderr for each run that lost something."""
    for run in runs:
        losses = run.losses
        parts = []
        if losses.lost:
            total = run.events + losses.lost_total
            parts.append(
                f"{number(losses.lost_total)} of {number(total)} events lost "
                f"({next(iter(losses.lost)) if len(losses.lost) == 1 else _counts(losses.lost)})"
            )
        if losses.impaired:
            parts.append(f"incomplete: {_counts(losses.impaired)}")
        if parts:
            talk(f"WARNING: {'; '.join(parts)} in {run.path}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number(count)}" for name, count in counts.items())


@contextmanager
def destination(output: Path | None, *, force: bool, binary: bool) -> Iterator[BinaryIO]:
    """Stream to write results to: FILE, put in place when whole, or stdout.

    Raises:
        CctraceError: Exit code 2 where FILE exists and may not be overwritten, or
            binary data would go to a terminal; 1 where it cannot be written.
    """
    if output is None:
        if binary and sys.stdout.isatty():
            raise CctraceError(
                "binary output is not for a terminal", "name a file: -o FILE", EXIT_USAGE
            )
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replacing(output, force=force) as temporary, temporary.open("wb") as stream:
        yield stream


@contextmanager
def replacing(output: Path, *, force: bool) -> Iterator[Path]:
    """Temporary file beside ``output`` that takes its place when all went well.

    Raises:
        CctraceError: Exit code 2 where ``output`` exists and ``force`` is not
            given; 1 where it cannot be written.
    """
    refuse_overwrite(output, force=force)
    try:
        folder = tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise CctraceError(f"cannot write {output}: {error.strerror}", None, EXIT_FAILED) from error
    temporary = Path(folder) / output.name
    try:
        yield temporary
        if force:
            os.replace(temporary, output)
        else:  # a link does not replace what has turned up meanwhile
            os.link(temporary, output)
    except FileExistsError:
        refuse_overwrite(output, force=force)
        raise
    except OSError as error:
        raise CctraceError(f"cannot write {output}: {error}", None, EXIT_FAILED) from error
    finally:
        for left in Path(folder).iterdir():
            left.unlink()
        Path(folder).rmdir()


def refuse_overwrite(output: Path, *, force: bool) -> None:
    """Refuse to write where something is already, unless forced.

    Raises:
        CctraceError: Exit code 2.
    """
    if not force and (output.exists() or output.is_symlink()):
        raise CctraceError(f"{output} exists", "add --force to overwrite it", EXIT_USAGE)


_VERDICT = ("run", "answer", "evidence")  # how the columns of a report with an answer begin
_DIGITS, _LONG = 6, 10  # digits shown of a fraction whose text is longer than that


def write_result(
    result: Result, kind: str, output: Path | None, *, force: bool, limit: int = TABLE_ROWS
) -> int:
    """Write ``result`` in format ``kind``; all but tables are streamed.

    Returns:
        Rows written.

    Raises:
        CctraceError: The query failed, or the output cannot be written.
    """
    with destination(output, force=force, binary=kind == "parquet") as stream:
        if kind == "parquet":
            return _write_parquet(result, stream)
        if kind in {"table", "markdown"}:
            return _write_laid_out(result, kind, stream, limit)
        to_terminal = output is None and sys.stdout.isatty()
        text = io.TextIOWrapper(stream, "utf-8", errors="backslashreplace", newline="")
        try:
            if kind == "csv":
                return _write_csv(result, text, harmless if to_terminal else str)
            return _write_json(result, text)
        finally:
            text.detach()  # flushes, and leaves the stream open


def _write_parquet(result: Result, stream: BinaryIO) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415 - only this format needs it here

    rows = 0
    with pq.ParquetWriter(stream, result.schema, compression="zstd") as writer:
        for batch in result.batches():
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _rows(result: Result) -> Iterator[tuple[Any, ...]]:
    for batch in result.batches():
        columns = [column.to_pylist() for column in batch.columns]
        yield from zip(*columns, strict=True)


def _write_csv(result: Result, text: io.TextIOWrapper, shown: Callable[[str], str]) -> int:
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(result.columns)
    rows = 0
    for row in _rows(result):
        writer.writerow([shown(_cell(value, "")) for value in row])
        rows += 1
    return rows


def _write_json(result: Result, text: io.TextIOWrapper) -> int:
    keys = _unique(result.columns)
    rows = 0
    for row in _rows(result):
        line = json.dumps(dict(zip(keys, map(plain, row), strict=True)), allow_nan=False)
        text.write(("[\n" if rows == 0 else ",\n") + line)
        rows += 1
    text.write("[]\n" if rows == 0 else "\n]\n")
    return rows


def _unique(names: Sequence[str]) -> list[str]:
    """Names with a number after those that repeat: an object has a key once."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique


def plain(value: Any) -> Any:
    """``value`` as JSON has it: exact integers, times as text, no NaN."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Decimal):
        whole = value.as_tuple().exponent == 0
        return int(value) if whole else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _cell(value: Any, null: str) -> str:
    if value is None:
        return null
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | Decimal):
        return str(value)
    made = plain(value)
    return made if isinstance(made, str) else json.dumps(made)


def _write_laid_out(result: Result, kind: str, stream: BinaryIO, limit: int) -> int:
    rows: list[tuple[Any, ...]] = []
    more = False
    for row in _rows(result):
        more = len(rows) == limit
        if more:
            break
        rows.append(row)
    layout = _markdown if kind == "markdown" else _table
    stream.write(layout(result, rows).encode("utf-8", errors="backslashreplace"))
    if more:
        talk(f"only the first {number(limit)} rows; --format csv, json or parquet gives all")
    return len(rows)


def _is_numeric(kind: str) -> bool:
    return kind.endswith(("INT", "INTEGER", "DOUBLE", "FLOAT")) or kind.startswith("DECIMAL")


def _table(result: Result, rows: list[tuple[Any, ...]]) -> str:
    names = [harmless(name) for name in result.columns]
    cells = [[harmless(_short(value)) for value in row] for row in rows]
    numeric = [_is_numeric(kind) for kind in result.types]
    verdicts = ""
    if tuple(names[: len(_VERDICT)]) == _VERDICT and cells:
        # Each row repeats the run's answer and its sentence: they are told once, above.
        told = dict.fromkeys(tuple(row[: len(_VERDICT)]) for row in cells)
        verdicts = "".join(f"{run}: {answer}: {evidence}\n" for run, answer, evidence in told)
        left_out = len(_VERDICT) if len(told) == 1 else 0
        keep = [i for i in range(left_out, len(names)) if i == 0 or i >= len(_VERDICT)]
        names, numeric = [names[i] for i in keep], [numeric[i] for i in keep]
        cells = [[row[i] for i in keep] for row in cells]
        cells = [row for row in cells if any(row[1 - bool(left_out) :])]
        if not cells:
            return verdicts
        verdicts += "\n"
    fits = not sys.stdout.isatty() or _fits(names, cells, numeric)
    if not fits and len(rows) <= RECORD_ROWS:
        return verdicts + _records(names, cells)
    table = new_table()
    for name, is_numeric in zip(names, numeric, strict=True):
        add_column(table, name, numeric=is_numeric)
    for row in cells:
        add_row(table, row)
    return verdicts + render(table, whole=not fits)


def _short(value: Any) -> str:
    """A cell to look at: of a fraction no more digits than anybody reads."""
    text = _cell(value, "")
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) and len(text) > _LONG else text


def _fits(names: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> bool:
    """Whether the terminal has room for the figures, and some for each text."""
    from rich.cells import cell_len  # noqa: PLC0415 - as in new_table
    from rich.console import Console  # noqa: PLC0415 - as in new_table

    width = _GAP * (len(names) - 1)
    for i, name in enumerate(names):
        widest = max(cell_len(text) for text in [name, *(row[i] for row in cells)])
        width += widest if numeric[i] else min(widest, max(_TEXT_WIDTH, cell_len(name)))
    return width <= Console().width


def _records(names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Each row as a block of lines, a column each."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - as in new_table

    width = max(map(cell_len, names)) + _GAP
    return "\n".join(
        "".join(
            f"{set_cell_size(name, width)}{text}".rstrip() + "\n"
            for name, text in zip(names, row, strict=True)
        )
        for row in cells
    )


def _markdown(result: Result, rows: list[tuple[Any, ...]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    def escaped(text: str) -> str:
        marked = re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text.replace("\n", " "))
        return harmless(marked)

    text = line(escaped(name) for name in result.columns)
    text += line("---:" if _is_numeric(kind) else "---" for kind in result.types)
    return text + "".join(line(escaped(_cell(v, "")) for v in row) for row in rows)


def new_table() -> Any:
    """Empty table of the one look all commands have."""
    from rich import box  # noqa: PLC0415 - a command without a table need not load it
    from rich.table import Table  # noqa: PLC0415 - as above

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def add_column(table: Any, name: str, *, numeric: bool = False) -> None:
    """Add a column; figures stand to the right and never wrap."""
    from rich.text import Text  # noqa: PLC0415 - as in new_table

    table.add_column(
        Text(harmless(name)),
        justify="right" if numeric else "left",
        no_wrap=numeric,
        overflow="fold",
    )


def add_row(table: Any, cells: Iterable[str]) -> None:
    """Add a row of text that is taken as it is: no markup, no control characters."""
    from rich.text import Text  # noqa: PLC0415 - as in new_table

    table.add_row(*(Text(harmless(cell)) for cell in cells))


def render(table: Any, *, whole: bool = False) -> str:
    """Lay a table out for the terminal, or as wide as it takes where there is none.

    Args:
        table: From :func:`new_table`.
        whole: Be as wide as it takes on a terminal too.
    """
    from rich.console import Console  # noqa: PLC0415 - as in new_table

    buffer = io.StringIO()
    # A pipe has no width to fit into, and a cut cell would be lost data.
    width = None if sys.stdout.isatty() and not whole else 100_000
    console = Console(file=buffer, width=width, force_terminal=False, highlight=False)
    console.print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"
