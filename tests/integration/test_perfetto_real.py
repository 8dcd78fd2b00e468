"""Traces of real GPUs, imported and exported for Perfetto: nothing is lost or made up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from import_files import imported
from perfetto_trace import parse

import cctrace
from cctrace.exporters.perfetto import write_perfetto
from cctrace.store.run import Run

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TABLES = ("nvtx", "cuda_api", "gpu_activity", "sched", "swiotlb", "page_conversion", "uvm_crypto",
          "user_crypto", "cuda_launches", "losses", "processes", "steps", "bubbles")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("nsys", "nsys_h100_2gpu_1s.sqlite"),
        ("kineto", "kineto_rank0.pt.trace.json.gz"),
        ("ingero", "ingero_vllm_rtx4090.db"),
    ],
)
def test_a_real_trace(kind: str, name: str, tmp_path: Path) -> None:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: a trace recorded on a real GPU")
    (tmp_path / name).symlink_to(path)
    run, _ = imported(tmp_path / name, kind)
    output = tmp_path / "out.pftrace"
    # WHEN the imported run is exported, THEN what must hold of any trace holds of this one
    with output.open("wb") as stream:
        write_perfetto(Run(run), stream)
    trace = parse(output)
    # AND every row of every table is there with its start, its length and its name
    found = Counter((s.category, s.ts_ns, s.dur_ns, s.name) for s in trace.slices)
    with cctrace.open(run) as session:
        counts = {t: session.sql(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in TABLES}
        rows = session.sql(
            "SELECT 'nvtx', ts_ns, dur_ns, name FROM nvtx UNION ALL "
            "SELECT 'cuda_api', ts_ns, dur_ns, api FROM cuda_api UNION ALL "
            "SELECT 'gpu_activity', ts_ns, dur_ns, name FROM gpu_activity UNION ALL "
            "SELECT 'sched', ts_ns, dur_ns, state FROM sched"
        ).fetchall()
        values = session.sql("SELECT count(*) FROM counters").fetchall()[0][0]
        pairs = session.sql(
            "SELECT count(DISTINCT (pid, correlation_id)) FROM gpu_activity SEMI JOIN cuda_api "
            "USING (pid, correlation_id)"
        ).fetchall()[0][0]
    made = Counter(s.category for s in trace.slices)
    assert {table: made[table] for table in TABLES} == counts
    wanted = Counter(rows)
    assert {key: n for key, n in found.items() if key in wanted} == dict(wanted)
    derived = ("queue depth", "device idle")
    taken = (v for track, v in trace.values.items() if not any(d in track for d in derived))
    assert sum(map(len, taken)) == values
    # AND each call whose work was seen leads to it
    flows = [slices for flow, slices in trace.flow_pairs().items() if flow % 2 == 0]
    assert len(flows) == pairs
    for slices in flows:
        assert {s.category for s in slices} == {"cuda_api", "gpu_activity"}
        assert len({s.args["correlation_id"] for s in slices}) == 1
