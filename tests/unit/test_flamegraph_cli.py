"""``cctrace flamegraph``: its options, its errors, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from flame_rows import CALLS, WAITS, folded_totals, small_run, speedscope_totals, svg_leaves
from part_rows import call
from query_rows import span

from cctrace.cli import cli
from cctrace.errors import CctraceError
from cctrace.schema import TABLES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("flame"))


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["flamegraph", *map(str, arguments)])


def _error(*arguments: str | Path) -> CctraceError:
    result = _invoke(*arguments)
    assert isinstance(result.exception, CctraceError), result.output
    return result.exception


def test_the_default_is_an_svg_of_wall_time(run: Path, tmp_path: Path) -> None:
    result = _invoke(run, "-o", tmp_path / "f.svg")
    assert result.exit_code == 0
    text = (tmp_path / "f.svg").read_text("utf-8")
    assert svg_leaves(text) == 2000
    assert result.stdout == ""
    assert result.stderr.startswith(f"Wrote {tmp_path}/f.svg (11 paths, 2 us (2,000 ns), ")
    assert "Wall time of steps" in "".join(ET.fromstring(text).itertext())


@pytest.mark.parametrize(
    ("weight", "total"),
    [("wall", 2000), ("blocked", 450), ("bytes", 1_004_163), ("count", 6)],
)
def test_all_formats_have_the_tables_total(run: Path, weight: str, total: int) -> None:
    outputs = {
        kind: _invoke(run, "--weight", weight, "--format", kind).stdout
        for kind in ("svg", "folded", "speedscope")
    }
    assert svg_leaves(outputs["svg"]) == total
    assert folded_totals(outputs["folded"]) == [total]
    assert speedscope_totals(json.loads(outputs["speedscope"])) == total


def test_speedscope_is_in_order_where_that_is_told(run: Path) -> None:
    def kind(*options: str) -> str:
        text = _invoke(run, "--format", "speedscope", *options).stdout
        (found,) = {profile["type"] for profile in json.loads(text)["profiles"]}
        return str(found)

    assert kind() == kind("--steps", "2") == "evented"
    assert kind("--group-by", "nvtx,part") == kind("--weight", "count") == "sampled"


def test_speedscope_has_sums_where_order_is_not_told(tmp_path: Path) -> None:
    counted = {"ts_ns": 100, "window_ns": 100, "api": "cuLaunchKernel", "calls": 1}
    path = small_run(tmp_path, cuda_launches=[{**counted, "total_ns": 9, "histogram": []}])
    result = _invoke(path, "--format", "speedscope")
    assert {p["type"] for p in json.loads(result.stdout)["profiles"]} == {"sampled"}
    assert "sums only" in result.stderr


@pytest.mark.parametrize(
    ("steps", "total"),
    [("1", 1000), ("2:", 1000), (":2", 2000), ("1:3", 2000), ("2:2", 1000)],
)
def test_ranges_of_steps(run: Path, steps: str, total: int) -> None:
    text = _invoke(run, "--steps", steps, "--format", "folded").stdout
    assert folded_totals(text) == [total]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--steps", "5:2"), "ends before it begins"),
        (("--steps", ":"), "is not like 10:20"),
        (("--steps", "x"), "is not like 10:20"),
        (("--group-by", "thread,frame"), "'frame' is none of process, thread"),
        (("--group-by", "nvtx,nvtx"), "nvtx is named twice"),
        (("--group-by", ""), "'' is none of"),
        (("--weight", "cpu"), "is not one of"),
    ],
)
def test_wrong_usage(run: Path, options: tuple[str, ...], told: str) -> None:
    result = _invoke(run, *options)
    assert result.exit_code == 2
    assert told in result.stderr


def test_options_that_do_not_go_together(run: Path) -> None:
    assert _error(run, "--diff", run, "--format", "speedscope").exit_code == 2
    assert _error(run, "--weight", "bytes", "--group-by", "part").exit_code == 2


def test_a_file_is_not_overwritten_unless_forced(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "f.svg"
    output.write_text("mine")
    assert _error(run, "-o", output).exit_code == 2
    assert output.read_text() == "mine"
    assert _invoke(run, "-o", output, "--force").exit_code == 0
    assert output.read_text("utf-8").startswith("<?xml")


def test_a_comparison_with_itself_is_all_the_same(run: Path) -> None:
    result = _invoke(run, "--diff", run, "--format", "folded")
    pairs = [line.rsplit(" ", 2)[1:] for line in result.stdout.splitlines()]
    assert len(pairs) == 11
    assert all(base == other for base, other in pairs)
    assert result.stderr == "compared by step: 2 steps of run, 2 steps of run (other)\n"


def test_a_comparison_is_by_the_mean_step(run: Path, tmp_path: Path) -> None:
    # GIVEN twice as many steps as the run, with half the launches each
    nvtx = [span(1000 * i, 900, "step", domain="loop") for i in range(5)]
    calls = [call(1000 * i + 150, 100, "launch") for i in (0, 2)]
    other = small_run(tmp_path, "other", nvtx=nvtx, cuda_api=calls, sched=WAITS)
    text = _invoke(run, "--diff", other, "--format", "folded", "--group-by", "api").stdout
    assert "cudaLaunchKernel 50 100\n" in text
    assert folded_totals(text, 2) == [2000, 2000]


def test_without_steps_whole_runs_are_compared(run: Path, tmp_path: Path) -> None:
    other = small_run(tmp_path, "other", nvtx=[], cuda_api=CALLS[:1])
    result = _invoke(run, "--diff", other, "--weight", "count", "--format", "folded")
    assert folded_totals(result.stdout, 2) == [6, 1]
    assert result.stderr == "whole runs are compared: no steps in other\n"


def test_one_of_two_runs_may_have_nothing(run: Path, tmp_path: Path) -> None:
    none = small_run(tmp_path, "none", cuda_api=[])
    options = ("--weight", "count", "--format", "folded")
    assert folded_totals(_invoke(run, "--diff", none, *options).stdout, 2) == [6, 0]
    assert folded_totals(_invoke(none, "--diff", run, *options).stdout, 2) == [0, 6]
    assert _error(none, "--diff", none, *options).message == (
        f"{none} has no call that crosses the bridge"
    )


def test_what_has_no_weight_is_said(run: Path, tmp_path: Path) -> None:
    assert "calls that never returned: 1;" in _invoke(run, "--weight", "blocked").stderr
    assert "copies of unknown size: 1 of 4;" in _invoke(run, "--weight", "bytes").stderr
    lossy = small_run(tmp_path, losses=[{"source": "cuda", "count": 31}])
    assert "WARNING: 31 of" in _invoke(lossy, "--weight", "count").stderr


def test_text_that_is_not_utf8_is_bad_data(tmp_path: Path) -> None:
    # GIVEN a part that another program wrote, with a name that is no UTF-8
    path = small_run(tmp_path)
    schema = TABLES["threads"].arrow
    table = pq.read_table(path / "threads" / "part-000000.parquet", schema=schema)
    bad = pa.array([b"m\xff\xfen", b"x"], pa.binary()).view(pa.string())
    table = table.set_column(table.column_names.index("name"), schema.field("name"), bad)
    pq.write_table(table, path / "threads" / "part-000000.parquet")
    # THEN the error names the trouble, and there is no output
    error = _error(path, "--format", "folded")
    assert error.exit_code == 4
    assert "UTF" in error.message or "invalid" in error.message.lower()


def test_it_starts_fast() -> None:
    code = (
        "import sys, cctrace.cli.flamegraph\n"
        "print(sorted({'duckdb', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
