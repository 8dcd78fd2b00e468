"""The reader of run directories: what it opens, what it refuses, and by which name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import make_manifest, make_run, write_part

import cctrace
from cctrace.errors import CctraceError
from cctrace.schema import TABLES
from cctrace.store import parts
from cctrace.store.manifest import RECORDER_KILLED, Recorder, start_ticks
from cctrace.store.run import Run, is_run, open_runs, unique_labels

NAMES = ["a", "b", "c", "d"]


def refusal(action: Any, *args: Any) -> CctraceError:
    """The error that ``action`` ends with."""
    with pytest.raises(CctraceError) as caught:
        action(*args)
    return caught.value


def names(run: Path) -> list[str]:
    """Names of all nvtx events, as a query gives them."""
    with cctrace.open(run) as session:
        return [row[0] for row in session.sql("SELECT name FROM nvtx ORDER BY name").fetchall()]


def part(run: Path, name: str, *events: str) -> Path:
    """Write a part of nvtx with the events named."""
    return write_part(run / "nvtx" / name, "nvtx", [{"name": event} for event in events])


def test_a_run_opens_with_its_label_rows_and_bytes(tmp_path: Path) -> None:
    path = make_run(tmp_path, "first", nvtx=[{"name": "a"}, {"name": "b"}], losses=[{"count": 7}])
    run = Run(path)
    assert run.label == "first"
    assert run.rows("nvtx") == 2
    assert run.rows("sched") == 0
    assert run.size_bytes("nvtx") == (path / "nvtx" / "part-000000.parquet").stat().st_size
    assert run.events == 2
    assert run.losses.lost == {"ring_full": 7}


def test_a_merged_part_stands_in_for_those_it_holds(tmp_path: Path) -> None:
    # GIVEN a run whose recorder was killed after a merge, before it deleted the parts
    run = make_run(tmp_path)
    part(run, "part-000000-000001.parquet", "a", "b")
    part(run, "part-000000.parquet", "a")
    part(run, "part-000001.parquet", "b")
    part(run, "part-000002.parquet", "c")
    # THEN nothing is counted twice
    assert names(run) == ["a", "b", "c"]
    assert [p.path.name for p in Run(run).parts("nvtx")] == [
        "part-000000-000001.parquet",
        "part-000002.parquet",
    ]


def test_parts_merged_while_they_are_listed_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a recorder that merges two parts between the listing and the first look
    run = make_run(tmp_path)
    small = [part(run, "part-000000.parquet", "a"), part(run, "part-000001.parquet", "b")]
    check = parts._check

    def merge_first(path: Path, *rest: Any) -> Any:
        if small:
            part(run, "part-000000-000001.parquet", "a", "b")
            while small:
                small.pop().unlink()
        return check(path, *rest)

    monkeypatch.setattr(parts, "_check", merge_first)
    # THEN the rows are all there
    assert names(run) == ["a", "b"]


def test_merges_of_merges_leave_the_widest(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    part(run, "part-000000-000003.parquet", *NAMES)
    part(run, "part-000000-000001.parquet", "a", "b")
    part(run, "part-000002-000003.parquet", "c", "d")
    part(run, "part-000003.parquet", "d")
    assert names(run) == NAMES


def test_parts_that_overlap_otherwise_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    part(run, "part-000000-000002.parquet", "a")
    part(run, "part-000002-000003.parquet", "b")
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert "overlap" in error.message


def test_temporary_files_are_not_looked_at(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[{"name": "a"}])
    for name in (".part-000001.parquet.tmp", "part-000001.parquet.tmp", ".reserve"):
        (run / "nvtx" / name).write_bytes(b"half")
    assert names(run) == ["a"]


@pytest.mark.parametrize("cut", [0, 3, 4, 7, 100, -1])
def test_a_cut_part_is_named(tmp_path: Path, cut: int) -> None:
    run = make_run(tmp_path, nvtx=[{"name": "a"}])
    path = run / "nvtx" / "part-000000.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert error.message.startswith(f"{path} is damaged: ")


def test_damage_behind_a_whole_footer_is_told_when_it_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[{"name": f"name {i}", "ts_ns": i * i} for i in range(997)])
    path = run / "nvtx" / "part-000000.parquet"
    content = bytearray(path.read_bytes())
    content[4:1000] = bytes(996)
    path.write_bytes(content)
    with cctrace.open(run) as session:
        error = refusal(session.sql("SELECT sum(ts_ns), max(name) FROM nvtx").fetchall)
    assert error.exit_code == 4
    assert str(path) in error.message


def test_a_part_merged_away_under_a_query_is_no_damage(tmp_path: Path) -> None:
    # GIVEN an opened run whose recorder merges its parts away before they are read
    run = make_run(tmp_path)
    small = part(run, "part-000000.parquet", "a")
    with cctrace.open(run) as session:
        small.rename(run / "nvtx" / "part-000000-000007.parquet")
        error = refusal(lambda: session.sql("SELECT name FROM nvtx").fetchall())
    # THEN the hint is to open it again, not to delete anything
    assert error.exit_code == 4
    assert error.message == f"{small} is gone"
    assert "open it again" in (error.hint or "")
    # ... and that helps
    assert names(run) == ["a"]


@pytest.mark.parametrize("name", ["part-1.parquet", "notes.txt", "part-000003-000001.parquet"])
def test_a_file_that_is_no_part_is_named(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path, nvtx=[{"name": "a"}])
    shutil.copy(run / "nvtx" / "part-000000.parquet", run / "nvtx" / name)
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert name in error.message


def test_a_part_of_another_program_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "nvtx").mkdir()
    pq.write_table(pa.table({"name": ["a"]}), run / "nvtx" / "part-000000.parquet")
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert "was not written by cctrace" in error.message


def test_a_part_of_another_table_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_part(run / "nvtx" / "part-000000.parquet", "sched", [{"state": "io"}])
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert "holds table 'sched', not 'nvtx'" in error.message


def test_a_part_of_an_unknown_version_is_refused_by_its_number(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[{"name": "a"}])
    path = run / "nvtx" / "part-000000.parquet"
    table = pq.ParquetFile(path).read()
    metadata = {**table.schema.metadata, b"cctrace.schema_version": b"97"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert "run format version 97" in error.message


def test_a_part_with_other_columns_is_refused_with_their_names(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[{"name": "a"}])
    path = run / "nvtx" / "part-000000.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.drop_columns(["color"]), path)
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert "columns color differ" in error.message


def test_a_run_of_an_unknown_version_is_refused_by_its_number(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest={"schema_version": 97})
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert "run format version 97" in error.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"schema_version": 1}',
        "\xff",
        json.dumps({"schema_version": 1, "start": {"monotonic_ns": "soon"}}),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    error = refusal(cctrace.open, tmp_path)
    assert error.exit_code == 4
    assert str(tmp_path / "run.json") in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exit_code", "0"),
        ("exit_code", 2**64),
        ("command", [1]),
        ("start", {"monotonic_ns": 1.5, "realtime_ns": 1, "boottime_ns": 1}),
        ("sources", [{"name": 3, "state": "attached"}]),
    ],
)
def test_a_manifest_with_a_field_of_another_kind_is_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    run = make_run(tmp_path)
    raw = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**raw, field: value}))
    error = refusal(cctrace.open, run)
    assert error.exit_code == 4
    assert "is damaged" in error.message


def test_no_run_there(tmp_path: Path) -> None:
    error = refusal(cctrace.open, tmp_path / "nothing")
    assert error.exit_code == 4
    assert error.message.startswith(f"no run at {tmp_path / 'nothing'}")
    assert not is_run(tmp_path)


def test_a_run_whose_recorder_was_killed_opens(tmp_path: Path) -> None:
    # GIVEN a manifest that was never closed, of a process that is no more
    run = make_run(
        tmp_path,
        nvtx=[{"name": "a"}],
        manifest={"ended": "recording", "stop": None, "exit_code": None},
    )
    # THEN it opens and says so
    with cctrace.open(run) as session:
        assert session.manifest.ended == RECORDER_KILLED
        query = "SELECT ended, stop_ns, exit_code FROM runs"
        assert session.sql(query).fetchall() == [("recorder_killed", None, None)]
    assert names(run) == ["a"]


def test_a_run_that_is_being_recorded_opens(tmp_path: Path) -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    recorder = Recorder(os.getpid(), ticks)
    run = make_run(tmp_path, manifest={"ended": "recording", "stop": None, "recorder": recorder})
    assert Run(run).manifest.ended == "recording"


def test_a_link_in_the_place_of_a_part_or_a_table_is_refused(tmp_path: Path) -> None:
    # GIVEN links to a valid part and to a valid table outside the run
    outside = make_run(tmp_path, "outside", nvtx=[{"name": "secret"}])
    by_file = make_run(tmp_path, "by_file")
    (by_file / "nvtx").mkdir()
    (by_file / "nvtx" / "part-000000.parquet").symlink_to(outside / "nvtx" / "part-000000.parquet")
    by_folder = make_run(tmp_path, "by_folder")
    (by_folder / "nvtx").symlink_to(outside / "nvtx")
    # THEN neither run opens
    for run in (by_file, by_folder):
        error = refusal(cctrace.open, run)
        assert error.exit_code == 4
        assert "is a link" in error.message


def test_every_table_of_the_schema_is_there_and_empty(tmp_path: Path) -> None:
    with cctrace.open(make_run(tmp_path)) as session:
        for table in TABLES.values():
            result = session.sql(f"FROM {table.name}")
            assert result.columns == ["run", *table.column_names]
            assert result.fetchall() == []


def test_a_part_without_rows_is_no_trouble(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[])
    assert names(run) == []


def test_several_runs_are_told_apart_by_the_column_run(tmp_path: Path) -> None:
    first = make_run(tmp_path / "x", "run", nvtx=[{"name": "a"}])
    second = make_run(tmp_path / "y", "run", nvtx=[{"name": "b"}])
    third = make_run(tmp_path, "third")
    with cctrace.open(first, second, third) as session:
        rows = session.sql("SELECT run, name FROM nvtx ORDER BY ALL").fetchall()
        labels = session.sql("SELECT run FROM runs ORDER BY ALL").fetchall()
    assert rows == [("x/run", "a"), ("y/run", "b")]
    assert labels == [("third",), ("x/run",), ("y/run",)]


def test_a_run_named_twice_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert refusal(open_runs, [run, f"{run}/../run"]).exit_code == 2
    assert refusal(open_runs, []).exit_code == 2


_COMPONENT = st.sampled_from(["a", "b", "run"])


@given(st.lists(st.lists(_COMPONENT, min_size=1, max_size=4), unique_by=tuple, max_size=6))
def test_labels_are_unique_tails(tails: list[list[str]]) -> None:
    paths = [Path("/", *tail) for tail in tails]
    labels = unique_labels(paths)
    assert len(set(labels)) == len(paths)
    assert all(str(p).endswith(f"/{label}") for p, label in zip(paths, labels, strict=True))


def test_a_run_alone_is_labelled_by_its_name() -> None:
    assert unique_labels([Path("/a/b/c")]) == ["c"]
    assert unique_labels([Path("/")]) == ["/"]


@pytest.mark.parametrize("name", ["it's", "a b", "ru[n]*?", "x=1", 'q"', "$HOME", "s3:", "ü\n"])
def test_any_directory_name_serves(tmp_path: Path, name: str) -> None:
    # GIVEN, beside it, a directory that the name would match as a pattern
    make_run(tmp_path, "runXY", nvtx=[{"name": "other"}])
    run = make_run(tmp_path, name, nvtx=[{"name": "a"}])
    with cctrace.open(run) as session:
        assert session.sql("SELECT run, name FROM nvtx").fetchall() == [(name, "a")]


def test_a_directory_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"run\xff")
    error = refusal(cctrace.open, make_run(tmp_path, name))
    assert error.exit_code == 4
    assert "no run at" in error.message


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_INT64 = st.integers(-(2**63), 2**63 - 1)
_ROW = st.fixed_dictionaries(
    {
        "ts_ns": _INT64,
        "pid": st.integers(0, 2**31 - 1),
        "dur_ns": st.none() | _INT64,
        "name": st.none() | _TEXT,
        "payload": st.none() | _INT64,
        "payload_double": st.none() | st.floats(allow_nan=False),
        "color": st.none() | st.integers(0, 2**32 - 1),
    }
)


@settings(deadline=None, max_examples=50)  # opening a run takes as long as it takes
@given(st.lists(_ROW, max_size=30))
def test_what_was_written_is_what_a_query_gives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    run = make_run(tmp_path_factory.mktemp("round"), nvtx=rows)
    columns = ", ".join(_ROW_COLUMNS)
    with cctrace.open(run) as session:
        found = session.sql(f"SELECT {columns} FROM nvtx").fetchall()
    assert found == [tuple(row[name] for name in _ROW_COLUMNS) for row in rows]


_ROW_COLUMNS = ("ts_ns", "pid", "dur_ns", "name", "payload", "payload_double", "color")


def test_the_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = make_manifest(command=["a b", "'"], warnings=["w"])
    manifest.write(tmp_path)
    assert Run(tmp_path).manifest == manifest
