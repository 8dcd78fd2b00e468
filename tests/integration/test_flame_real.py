"""Flamegraphs of real traces and of a recording: their leaves have the tables' totals.

The totals are taken from the Parquet parts with pyarrow, and those of steps and bubbles
from the library's views. Folded text is read by an unmodified flamegraph.pl.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from bpf_here import require_bpf
from flame_rows import folded_totals, small_run, speedscope_totals, svg_leaves
from hostile import NAMES
from import_files import imported
from part_rows import call
from test_report_recorded import SHARED, TRACES, cctrace_output, record_loop

import cctrace
from cctrace.exporters.flame.folded import folded
from cctrace.exporters.flame.select import Selection, select
from cctrace.exporters.flame.speedscope import evented, sampled
from cctrace.exporters.flame.svg import Heading, svg
from cctrace.exporters.flame.timeline import read_timeline

CROSSINGS = ("copy", "launch", "graph", "sync", "alloc", "collective")
# Debian has it in libdevel-nytprof-perl, beside the modules.
FLAMEGRAPH = shutil.which("flamegraph.pl") or "/usr/share/perl5/Devel/NYTProf/flamegraph.pl"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_bpf()
    run = tmp_path_factory.mktemp("flame") / "run"
    record_loop(run)
    return run


def _totals(run: Path) -> dict[str, int]:
    """What each weight has in the tables; 0: nothing."""
    parts = sorted((run / "cuda_api").glob("*.parquet"))
    columns = ["depth", "class", "dur_ns", "size_bytes"]
    calls = [row for part in parts for row in _rows(part, columns)]
    outer = [c for c in calls if c["depth"] == 0 and c["class"] in CROSSINGS]
    counted: list[dict[str, Any]] = []
    for part in sorted((run / "cuda_launches").glob("*.parquet")):
        counted += _rows(part, ["api", "calls", "total_ns"])
    assert {c["api"].startswith("cuda") for c in counted} <= {True}, "one layer is counted"
    with cctrace.open(run) as session:
        ((wall,),) = session.sql("SELECT sum(period_ns) FROM steps").fetchall()
        ((bubble,),) = session.sql("SELECT sum(dur_ns) FROM bubbles").fetchall()
    return {
        "wall": wall or 0,
        "blocked": sum(c["dur_ns"] or 0 for c in outer) + sum(c["total_ns"] for c in counted),
        "bubble": bubble or 0,
        "bytes": sum(c["size_bytes"] or 0 for c in outer if c["class"] == "copy"),
        "count": len(outer) + sum(c["calls"] for c in counted),
    }


def _rows(part: Path, columns: list[str]) -> list[dict[str, Any]]:
    table = pq.read_table(part, columns=columns)
    if "depth" in columns:
        table = table.filter(pc.equal(table["depth"], 0))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check(run: Path) -> dict[str, int]:
    """Make every format of every weight there is; what the tables have."""
    totals = _totals(run)
    with cctrace.open(run) as session:
        for weight in (weight for weight, total in totals.items() if total):
            made = select(session, Selection(weight)).flame
            found = {
                "folded": folded_totals("".join(folded(made)))[0],
                "svg": svg_leaves(svg(made, Heading(weight, "", ("run",)))),
                "speedscope": speedscope_totals(json.loads(sampled(made, "run"))),
            }
            assert set(found.values()) == {totals[weight]}, (weight, found)
        if totals["wall"]:
            tracks = read_timeline(session, Selection())
            assert speedscope_totals(json.loads(evented(tracks, "run"))) == totals["wall"]
            parts = select(session, Selection(levels=("nvtx", "api", "part"))).flame
            assert parts.totals == (totals["wall"],)
    return totals


@pytest.mark.parametrize("kind", TRACES)
def test_imported_runs_add_up(kind: str, tmp_path: Path) -> None:
    path = SHARED / TRACES[kind]
    if not path.is_file():
        pytest.skip(f"{path} is not here: a trace recorded on a real GPU")
    link = tmp_path / path.name
    link.symlink_to(path)
    run, _ = imported(link, kind)
    totals = _check(run)
    assert min(totals[weight] for weight in ("blocked", "bubble", "bytes", "count")) > 0
    same = cctrace_output(
        "flamegraph", run, "--diff", run, "--weight", "blocked", "--format", "folded"
    )
    assert all(len(set(line.rsplit(" ", 2)[1:])) == 1 for line in same.splitlines())
    assert folded_totals(same, 2) == [totals["blocked"]] * 2


def test_stacks_of_a_real_trace_are_outermost_first(tmp_path: Path) -> None:
    path = SHARED / TRACES["ingero"]
    if not path.is_file():
        pytest.skip(f"{path} is not here: a trace recorded on a real GPU")
    link = tmp_path / path.name
    link.symlink_to(path)
    run, _ = imported(link, "ingero")
    with cctrace.open(run) as session:
        query = (
            "SELECT frames, sum(dur_ns) FROM cuda_api JOIN stacks USING (run, stack_id) "
            "WHERE depth = 0 AND class = 'sync' GROUP BY stack_id, frames"
        )
        rows = session.sql(query).fetchall()
    expected: dict[str, int] = {}
    for frames, dur_ns in rows:
        names = [f["function"] or "?" for f in reversed(frames)]
        expected[";".join(names)] = expected.get(";".join(names), 0) + int(dur_ns)
    text = cctrace_output(
        "flamegraph", run, "--weight", "blocked", "--format", "folded", "--group-by", "api,stack"
    )
    found: dict[str, int] = {}
    for folded_line in text.splitlines():
        stack, dur_ns = folded_line.rsplit(" ", 1)
        call_name, _, inner = stack.partition(";")
        if "Synchronize" in call_name or "Query" in call_name:
            line = ";".join(re.sub(r" \([^()]*\)$", "", name) for name in inner.split(";"))
            found[line] = found.get(line, 0) + int(dur_ns)
    assert sum(found.values()) == sum(expected.values()) > 0
    assert found == expected


def test_a_recording_adds_up(recorded: Path) -> None:
    totals = _check(recorded)
    assert min(totals.values()) > 0
    text = cctrace_output("flamegraph", recorded, "--format", "folded")
    assert folded_totals(text) == [totals["wall"]]


def test_flamegraph_pl_reads_folded_text(recorded: Path, tmp_path: Path) -> None:
    text = cctrace_output("flamegraph", recorded, "--format", "folded")
    assert _drawn(text, tmp_path) == folded_totals(text)[0]
    both = cctrace_output("flamegraph", recorded, "--diff", recorded, "--format", "folded")
    assert _drawn(both, tmp_path) == folded_totals(both, 2)[1]


def test_flamegraph_pl_reads_any_name(tmp_path: Path) -> None:
    names = list(NAMES.values())
    run = small_run(
        tmp_path,
        cuda_api=[call(10 * i, 7, "sync", f"{name} ", tid=i + 1) for i, name in enumerate(names)],
        threads=[{"tid": i + 1, "name": name} for i, name in enumerate(names)],
    )
    for levels in ("thread,api", "api,thread"):
        text = cctrace_output(
            "flamegraph", run, "--weight", "blocked", "--format", "folded", "--group-by", levels
        )
        assert _drawn(text, tmp_path) == folded_totals(text)[0] == 7 * len(names)


def _drawn(text: str, tmp_path: Path) -> int:
    """Total of what flamegraph.pl draws of folded text."""
    if not Path(FLAMEGRAPH).is_file():
        pytest.skip("no flamegraph.pl here: Debian has it in libdevel-nytprof-perl")
    path = tmp_path / "out.folded"
    path.write_text(text, "utf-8")
    done = subprocess.run(
        ["perl", FLAMEGRAPH, path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r">all \(([\d,]+) samples, 100%\)<", done.stdout)
    assert found, done.stdout[:500]
    return int(found[1].replace(",", ""))
