"""Runs and documents for tests of the HTML page."""

from __future__ import annotations

import html
import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from report_runs import crossing_rows, step_rows
from runs import make_run

from cctrace.analyze.opened import open_session
from cctrace.cli.report_page import as_html
from cctrace.exporters import html_page
from cctrace.store.manifest import Source

if TYPE_CHECKING:
    from pathlib import Path

    Json = dict[str, Any]

# What the target may call things: each must come through as text and do nothing.
NAMES = (
    "<script>window.injected = 1</script>",
    "</script><script>window.injected = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.injected = 1'>",
    '<a href="javascript:window.injected = 1">click</a>',
    "\"'`;{}&amp;&lt;\\u003c",
    "semi;colon;new\nline\ttab\r",
    "\x00\x01\x1b[31m\x7f\x9b",
    "right \u202eto\u202c left \u200f\u2066 marks \u2028\u2029",
    "\ufffd\ufffe invalid \U0001f600",
    "long " + "x" * 10_000,
    "{{data}} ${1} %s",
    "",
)


def busy_run(path: Path, steps: int = 31, **tables: Any) -> Path:
    """A loop of launches and a readback that waits, some of it lost, on a machine told of."""
    rows = {
        "nvtx": step_rows(steps),
        "cuda_api": crossing_rows(steps),
        "losses": [{"source": "cuda", "reason": "bpf_ring_full", "count": 13}],
        "processes": [{"ts_ns": 0}],
        "threads": [{"ts_ns": 0, "name": "engine"}],
    }
    host = {
        "kernel": "6.8.0",
        "tee": {"kind": "tdx"},
        "gpu": {
            "cc_state": "on",
            "driver_version": "580.1",
            "devices": [{"name": "NVIDIA B300"}],
        },
    }
    refused = Source("tdx", "refused", "this is no guest", "run it in one")
    sources = [Source("nvtx", "attached"), Source("cuda", "attached"), refused]
    manifest = tables.pop("manifest", {})
    return make_run(
        path, manifest={"host": host, "sources": sources, **manifest}, **{**rows, **tables}
    )


def evil_run(path: Path) -> Path:
    """A run whose ranges, threads, command and processes are named after ``NAMES``."""
    run = step_rows(31)
    for number, row in enumerate(list(run)):
        name = NAMES[number % len(NAMES)]
        inside = {"ts_ns": row["ts_ns"] + 1, "dur_ns": row["dur_ns"] - 2, "depth": 1}
        run.append({**inside, "name": name, "category": name})
    calls = crossing_rows(31)
    for number, call in enumerate(calls):
        if call["class"] == "launch":
            call["api"] = NAMES[number % len(NAMES)] or "cudaLaunchKernel"
    refused = Source("sched", "refused", NAMES[0], NAMES[3])
    return busy_run(
        path,
        nvtx=run,
        cuda_api=calls,
        threads=[{"ts_ns": 0, "name": NAMES[1]}],
        losses=[{"source": "cuda", "reason": NAMES[3], "count": 13}],
        manifest={"command": list(NAMES), "sources": [Source("nvtx", "attached"), refused]},
    )


def page_of(run: Path) -> str:
    """The page of a run, as the command makes it."""
    with open_session(run) as session:
        return as_html(session).decode()


def document_of(page: str) -> Json:
    """The data in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    document: Json = json.loads(found[1])
    return document


def policy_of(page: str) -> str:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    return html.unescape(found[1])


def rendered(document: Json, flamegraph: str | None = None) -> str:
    return html_page.render(document, flamegraph).decode()


def million_steps(document: Json) -> Json:
    """The same document as if the run had a million steps: the columns a run of that has."""
    count, bins = 1_000_003, html_page.BINS
    edges = [count * i // bins for i in range(bins + 1)]
    sizes = [b - a for a, b in pairwise(edges)]
    jitter = [(i * 7_919) % 101 for i in range(bins)]
    lengths = {
        "engine": "default",
        "phase": "decode",
        "steps": count,
        "over_time": {
            "bin": list(range(bins)),
            "from_step_id": [a + 1 for a in edges[:-1]],
            "ts_ns": [a * 10_000_000 for a in edges[:-1]],
            "until_ns": [b * 10_000_000 for b in edges[1:]],
            "steps": sizes,
            "min_ns": [9_000_000 + 1_000 * j for j in jitter],
            "p50_ns": [10_000_000 + 2_000 * j for j in jitter],
            "max_ns": [14_000_000 + 90_000 * j for j in jitter],
        },
        "histogram": document["lengths"][0]["histogram"],
    }
    report = json.loads(json.dumps(document["report"]))
    for step in report["steps"]:
        step.update(steps=count, periods=count, p99_ns=15_000_000, max_ns=23_000_000)
    return {**document, "report": report, "lengths": [lengths]}
