"""Parts: whole or not there, merged without losing a row, and never half a file."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from cctrace.record import writer
from cctrace.record.writer import TableWriter
from cctrace.schema import CLOCK_DOMAIN, SCHEMA_VERSION, TABLES

NVTX = TABLES["nvtx"]


def events(first: int, count: int) -> pa.Table:
    """``count`` rows from ``first`` on, each column telling its row apart."""
    rows = [
        {
            "ts_ns": i,
            "pid": 1,
            "tid": 2,
            "dur_ns": None if i % 7 == 0 else i * 3,
            "kind": ("push_pop", "mark", "start_end")[i % 3],
            "domain": None if i % 2 else "d",
            "name": None if i % 11 == 0 else f"name {i % 61}",
            "category": None,
            "payload": 2**63 - 1 - i,
            "payload_double": i / 3,
            "depth": i % 5,
            "color": 2**32 - 1 - i,
            "end_tid": None,
        }
        for i in range(first, first + count)
    ]
    return pa.Table.from_pylist(rows, schema=NVTX.arrow)


def files(folder: Path) -> list[str]:
    """Everything in the folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of all parts in the order of their names."""
    found: list[dict[str, Any]] = []
    for name in files(folder):
        found += pq.ParquetFile(folder / name).read().to_pylist()
    return found


def test_parts_are_numbered_and_carry_their_metadata(tmp_path: Path) -> None:
    """Version, clock and table name are in each part, columns as in the schema."""
    written = TableWriter(NVTX, tmp_path / "nvtx")
    written.append(events(0, 3))
    written.append(events(0, 0))
    written.append(events(3, 5))
    assert files(tmp_path / "nvtx") == ["part-000000.parquet", "part-000001.parquet"]
    assert written.rows == 8
    for path in (tmp_path / "nvtx").iterdir():
        file = pq.ParquetFile(path)
        assert file.schema_arrow.equals(NVTX.arrow)
        metadata = file.schema_arrow.metadata
        assert metadata[b"cctrace.schema_version"] == str(SCHEMA_VERSION).encode()
        assert metadata[b"cctrace.clock"] == CLOCK_DOMAIN.encode()
        assert metadata[b"cctrace.table"] == b"nvtx"
        assert {
            file.metadata.row_group(0).column(i).compression
            for i in range(file.metadata.num_columns)
        } == {"ZSTD"}
    sizes = [path.stat().st_size for path in (tmp_path / "nvtx").iterdir()]
    assert written.size_bytes == sum(sizes)


def test_key_value_metadata_is_readable_without_arrow(tmp_path: Path) -> None:
    """DuckDB sees the same keys in the file itself, in merged parts as well."""
    written = TableWriter(NVTX, tmp_path / "nvtx")
    for i in range(9):
        written.append(events(i, 1))
    for path in (tmp_path / "nvtx").iterdir():
        metadata = pq.read_metadata(path).metadata
        assert metadata[b"cctrace.schema_version"] == b"1"
        assert metadata[b"cctrace.table"] == b"nvtx"


def test_statistics_are_there_to_skip_parts_by_time(tmp_path: Path) -> None:
    """Least and greatest of ts_ns are in the part."""
    written = TableWriter(NVTX, tmp_path / "nvtx")
    written.append(events(100, 31))
    column = pq.read_metadata(tmp_path / "nvtx" / "part-000000.parquet").row_group(0).column(0)
    assert (column.path_in_schema, column.statistics.min, column.statistics.max) == (
        "ts_ns",
        100,
        130,
    )


def test_eight_small_parts_become_one_and_eight_of_these_another(tmp_path: Path) -> None:
    """Names cover what is in them; no row is lost, changed or moved."""
    written = TableWriter(NVTX, tmp_path / "nvtx")
    folder = tmp_path / "nvtx"
    for i in range(7):
        written.append(events(i * 13, 13))
    assert len(files(folder)) == 7
    written.append(events(7 * 13, 13))
    assert files(folder) == ["part-000000-000007.parquet"]
    assert rows(folder) == events(0, 8 * 13).to_pylist()
    for i in range(8, 67):
        written.append(events(i * 13, 13))
    assert files(folder) == [
        "part-000000-000063.parquet",
        "part-000064.parquet",
        "part-000065.parquet",
        "part-000066.parquet",
    ]
    assert rows(folder) == events(0, 67 * 13).to_pylist()
    assert written.rows == 67 * 13
    assert pq.ParquetFile(folder / "part-000000-000063.parquet").schema_arrow.equals(
        NVTX.arrow, check_metadata=False
    )


def test_large_parts_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One large part among eight and none of them is merged."""
    monkeypatch.setattr(writer, "_MERGE_BELOW_ROWS", 13)
    written = TableWriter(NVTX, tmp_path / "nvtx")
    for count in (13, 1, 1, 1, 1, 1, 1, 1):
        written.append(events(0, count))
    assert len(files(tmp_path / "nvtx")) == 8
    written.append(events(0, 1))
    assert files(tmp_path / "nvtx") == ["part-000000.parquet", "part-000001-000008.parquet"]


def test_path_that_looks_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    """``a=b`` in the run's path is a name like any other."""
    folder = tmp_path / "model=llama" / "nvtx"
    folder.parent.mkdir()
    written = TableWriter(NVTX, folder)
    for i in range(8):
        written.append(events(i, 1))
    assert rows(folder) == events(0, 8).to_pylist()


@settings(deadline=None, max_examples=23)
@given(counts=st.lists(st.integers(0, 29), max_size=41))
def test_any_sequence_of_appends_keeps_every_row_in_order(
    counts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Reading the parts by name gives what was appended."""
    folder = tmp_path_factory.mktemp("run") / "nvtx"
    written = TableWriter(NVTX, folder)
    at = 0
    for count in counts:
        written.append(events(at, count))
        at += count
    assert (rows(folder) if at else []) == events(0, at).to_pylist()
    assert written.rows == at
    shutil.rmtree(folder.parent)


def test_merge_that_dies_before_deleting_leaves_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between renaming and deleting leaves the covering part and the covered ones."""

    class KilledError(BaseException):
        pass

    def killed(_: Path) -> None:
        raise KilledError

    written = TableWriter(NVTX, tmp_path / "nvtx")
    for i in range(7):
        written.append(events(i, 1))
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KilledError):
        written.append(events(7, 1))
    names = files(tmp_path / "nvtx")
    assert names == ["part-000000-000007.parquet", *(f"part-{i:06d}.parquet" for i in range(8))]
    assert pq.read_table(tmp_path / "nvtx" / names[0]).num_rows == 8


def test_merge_that_cannot_delete_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that stay are covered by the merged part's name; writing continues."""

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        del missing_ok
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    written = TableWriter(NVTX, tmp_path / "nvtx")
    with monkeypatch.context() as patch:
        for i in range(7):
            written.append(events(i, 1))
        patch.setattr(Path, "unlink", refused)
        written.append(events(7, 1))
    written.append(events(8, 1))
    assert written.rows == 9
    names = files(tmp_path / "nvtx")
    assert names[0] == "part-000000-000007.parquet"
    assert names[-1] == "part-000008.parquet"


def test_replace_keeps_one_part(tmp_path: Path) -> None:
    """The table is always whole: the last content, in part 0."""
    written = TableWriter(NVTX, tmp_path / "nvtx")
    for count in (3, 5, 7):
        written.replace(events(0, count))
    written.replace(events(0, 0))  # nothing known is no reason to forget
    assert files(tmp_path / "nvtx") == ["part-000000.parquet"]
    assert rows(tmp_path / "nvtx") == events(0, 7).to_pylist()
    assert written.rows == 7


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_can_be_written(name: str, tmp_path: Path) -> None:
    """Nested columns too, with NULL in whatever may be NULL."""
    table = TABLES[name]
    values = {
        "frames": [{"function": "f", "module": None, "file": "x", "line": 3, "kind": "native"}],
        "histogram": [1, 2, 3],
    }
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.nullable:
            row[column.name] = None
        elif column.name in values:
            row[column.name] = values[column.name]
        else:
            row[column.name] = "text" if pa.types.is_dictionary(column.type) else 3
    data = pa.Table.from_pylist([row], schema=table.arrow)
    TableWriter(table, tmp_path / name).append(data)
    assert rows(tmp_path / name) == [row]


FULL_DISK = """
import errno, pathlib, sys
sys.path[:0] = sys.argv[1:3]
import pyarrow as pa
from cctrace.record.writer import TableWriter
from cctrace.schema import TABLES
from test_writer import events
folder = pathlib.Path(sys.argv[3]) / "nvtx"
writer = TableWriter(TABLES["nvtx"], folder)
size = 16001
numbers = []
try:
    for i in range(1009):
        writer.append(events(i * size, size))
except OSError as error:
    numbers.append(error.errno)
(folder.parent / "ballast").unlink()
writer.append(events(writer.rows, 3))
found = sum(pa.parquet.ParquetFile(p).metadata.num_rows for p in folder.iterdir())
spans = sorted(p.name for p in folder.iterdir())
print(numbers == [errno.ENOSPC], found == writer.rows > size, writer.rows % size,
      any(name.startswith(".") for name in spans))
"""


def test_full_disk_leaves_no_half_part_and_the_writer_can_go_on(tmp_path: Path) -> None:
    """On a real full filesystem: ENOSPC is raised, all parts are whole, space makes it work."""
    mount = shutil.which("unshare")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("needs root and unshare to mount a small tmpfs")
    script = (
        f'mount -t tmpfs -o size=2m tmpfs "{tmp_path}" || exit 77\n'
        f'head -c 300000 /dev/zero > "{tmp_path}/ballast"\n'
        'exec "$@"\n'
    )
    here = Path(__file__).parent
    program = [sys.executable, "-c", FULL_DISK, str(here), str(here.parents[1]), str(tmp_path)]
    if subprocess.run([mount, "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no private mounts here (unshare -m): a full disk cannot be made")
    done = subprocess.run(
        [mount, "-m", "sh", "-c", script, "sh", *program],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True 3 False\n", "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_error_of_the_disk_is_raised_with_its_number_and_leaves_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the disk says; monkeypatched, as EIO and quotas cannot be had at will."""

    def fails(data: pa.Table, where: Path, **_: Any) -> None:
        del data
        Path(where).write_bytes(b"PAR1half")
        raise OSError(number, os.strerror(number))

    written = TableWriter(NVTX, tmp_path / "nvtx")
    written.append(events(0, 3))
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", fails)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            written.append(events(3, 5))
        assert caught.value.errno == number
    assert files(tmp_path / "nvtx") == ["part-000000.parquet"]
    written.append(events(3, 5))
    assert rows(tmp_path / "nvtx") == events(0, 8).to_pylist()


def test_merge_without_room_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are safe in small parts, so a failed merge is no failed append."""
    write_table = pq.write_table

    def fails_when_merging(data: pa.Table, where: Path, **options: Any) -> None:
        if "-000000-" in str(where):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_table(data, where, **options)

    monkeypatch.setattr(pq, "write_table", fails_when_merging)
    written = TableWriter(NVTX, tmp_path / "nvtx")
    for i in range(8):
        written.append(events(i, 1))
    assert files(tmp_path / "nvtx") == [f"part-{i:06d}.parquet" for i in range(8)]
    assert written.rows == 8
    assert rows(tmp_path / "nvtx") == events(0, 8).to_pylist()
