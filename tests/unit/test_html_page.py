"""The HTML page: the document in it, exact on small runs, and nothing of the target's runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from flame_rows import fold, svg_frames
from page_runs import (
    NAMES,
    busy_run,
    document_of,
    evil_run,
    page_of,
    policy_of,
    rendered,
)
from part_rows import copy
from report_runs import MS, STEP_NS, crossing_rows, step_rows
from runs import START, make_run

from cctrace.analyze import pipeline
from cctrace.cli import report_page
from cctrace.errors import CctraceError
from cctrace.exporters.html_page import page as page_module
from cctrace.exporters.html_page import timelines
from cctrace.exporters.html_page.timelines import EVENTS, _coarse, _work

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Golden

    Json = dict[str, Any]


@pytest.fixture(scope="module")
def busy_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(busy_run(tmp_path_factory.mktemp("busy")))


@pytest.fixture(scope="module")
def busy(busy_page: str) -> Json:
    return document_of(busy_page)


def test_lengths_of_steps(busy: Json) -> None:
    [lengths] = busy["lengths"]
    over_time = lengths["over_time"]
    # thirty steps of 10 ms whose length is known, each a bin of its own
    assert (lengths["engine"], lengths["phase"], lengths["steps"]) == ("default", "decode", 30)
    assert over_time["bin"] == list(range(30))
    assert over_time["ts_ns"] == [i * STEP_NS - START.monotonic_ns for i in range(30)]
    assert set(over_time["p50_ns"]) == {STEP_NS}
    assert lengths["histogram"] == {
        "from_ns": [STEP_NS],
        "until_ns": [STEP_NS + 1],
        "steps": [30],
    }


def test_the_events_of_a_step(busy: Json) -> None:
    words = busy["timelines"]["words"]
    step = next(s for s in busy["timelines"]["steps"] if "first 2" in s["reasons"])
    events = step["events"]
    shown = [
        (words[kind], words[name], start, length)
        for kind, name, start, length in zip(
            events["kind"], events["name"], events["ts_ns"], events["dur_ns"], strict=True
        )
    ]
    assert (step["step_id"], step["period_ns"], step["left_out"]) == (2, STEP_NS, 0)
    assert shown == [
        ("range", "step", 0, STEP_NS - 100_000),
        ("call", "cudaLaunchKernel", 1 * MS, 30_000),
        ("call", "cudaLaunchKernel", 2 * MS, 30_000),
        ("call", "cudaLaunchKernel", 3 * MS, 30_000),
        ("call", "cudaMemcpyAsync", 3_100_000, 6 * MS),
    ]
    assert step["tracks"] == [
        {"kind": "thread", "pid": 100, "tid": 100, "device": None, "stream": None,
         "name": "engine", "role": "driver"}
    ]  # fmt: skip
    assert sum(step["parts"].values()) == STEP_NS


def test_the_critical_path_fills_the_step(busy: Json) -> None:
    for step in busy["timelines"]["steps"]:
        path = step["path"]
        ends = [a + b for a, b in zip(path["ts_ns"], path["dur_ns"], strict=True)]
        assert path["ts_ns"] == [0, *ends[:-1]]
        assert ends[-1] == step["replayed_ns"]
        assert abs(step["replayed_ns"] - step["period_ns"]) <= STEP_NS // 100


def test_every_point_has_its_example(busy: Json) -> None:
    examples = [p["example_step_id"] for p in busy["report"]["points"]]
    assert examples
    reasons = {s["step_id"]: s["reasons"] for s in busy["timelines"]["steps"]}
    for rank, step_id in enumerate(examples, 1):
        assert f"point {rank}" in reasons[step_id]


def test_the_document_is_as_before(tmp_path: Path, golden: Golden) -> None:
    document = document_of(page_of(busy_run(tmp_path, steps=7)))
    document["report"]["run"]["path"] = "run"
    document["report"]["run"]["size_bytes"] = 0  # of compressed files
    golden("page.json", json.dumps(document, indent=1) + "\n")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = busy_run(tmp_path, steps=11)
    assert page_of(run) == page_of(run)


@pytest.mark.parametrize(
    ("tables", "kind"),
    [
        ({}, "silent"),
        ({"nvtx": step_rows(5, "work")}, "silent"),
        ({"nvtx": step_rows(1)}, "silent"),
        ({"nvtx": step_rows(13)}, "silent"),
        ({"cuda_api": crossing_rows(1)}, "silent"),
        ({"nvtx": step_rows(1), "cuda_api": crossing_rows(1)}, "silent"),
    ],
)
def test_a_run_that_can_say_little_has_a_page(tmp_path: Path, tables: Json, kind: str) -> None:
    document = document_of(page_of(make_run(tmp_path, **tables)))
    assert document["verdict"]["kind"] == kind
    assert document["report"]["cannot_say"]


# -- nothing of the target's runs ------------------------------------------------------


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(evil_run(tmp_path_factory.mktemp("evil")))


def test_names_come_through_as_they_are(evil_page: str) -> None:
    document = document_of(evil_page)
    words = document["timelines"]["words"]
    for name in filter(None, NAMES):
        cut = name if len(name) <= 300 else name[:299] + "…"
        assert cut in words, name
    assert document["report"]["run"]["command"] == list(NAMES)


def test_names_are_nowhere_but_in_the_data(evil_page: str) -> None:
    rest = evil_page.replace(page_module._plotly(), "")
    for name in ("data", "flamegraph-svg"):
        start = evil_page.index(f'id="{name}">') + len(f'id="{name}">')
        data = evil_page[start : evil_page.index("</script>", start)]
        assert data.isascii()
        assert not re.search("[<>&]", data)
        rest = rest.replace(data, "")
    assert "injected" not in rest
    assert len(re.findall(r"<script\b", rest)) == 5  # the page's own, two of them data


def test_only_the_pages_own_scripts_may_run(evil_page: str) -> None:
    policy = policy_of(evil_page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert "connect-src" not in policy  # so default-src holds
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = re.findall(r"<script>(.*?)</script>", evil_page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    assert len(hashes) == 3
    # and that of the flamegraph, which is in a frame
    framed = evil_page[evil_page.index('id="flamegraph-svg">') + len('id="flamegraph-svg">') :]
    svg = json.loads(framed[: framed.index("</script>")])
    own = svg[svg.index("<script><![CDATA[") + len("<script><![CDATA[") : svg.index("]]></script>")]
    hashes.add(base64.b64encode(hashlib.sha256(own.encode()).digest()).decode())
    assert hashes == allowed


@pytest.mark.parametrize("text", ["let a = 1 < 2;", "<![CDATA[let a = 1 < 2;]]>"])
def test_a_flamegraphs_script_may_run_too(busy: Json, text: str) -> None:
    svg = f'<svg height="99"><script type="text/ecmascript">{text}</script></svg>'
    page = rendered(busy, svg)
    digest = base64.b64encode(hashlib.sha256(b"let a = 1 < 2;").digest()).decode()
    assert f"'sha256-{digest}'" in policy_of(page)
    assert svg not in page  # it is data until it is in its frame


def test_a_plotly_without_its_script_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "find_spec", lambda _: None)
    with pytest.raises(CctraceError, match="plotly's script is missing") as raised:
        page_module._plotly.__wrapped__()
    assert raised.value.hint == "pip install --force-reinstall plotly"


def test_slots_in_the_data_are_not_filled(busy: Json) -> None:
    page = rendered({**busy, "copies": ["{{plotly}}"]})
    assert document_of(page)["copies"] == ["{{plotly}}"]


# -- much ------------------------------------------------------------------------------


def _piece(start_ns: int, dur_ns: int) -> Json:
    return {"kind": "host", "start_ns": start_ns, "dur_ns": dur_ns, "pid": 1, "tid": 1,
            "stream": None, "call": None, "count": 1}  # fmt: skip


def test_a_long_path_is_joined_where_it_is_fine() -> None:
    # GIVEN more pieces than are shown, every 17th long
    lengths = [1_000 if i % 17 == 0 else 3 for i in range(10_007)]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    coarse = _coarse([_piece(a, b) for a, b in zip(starts, lengths, strict=True)])
    # THEN they still lie end to end, and the long ones are all there
    assert len(coarse) <= EVENTS + 1
    ends = [piece["start_ns"] + piece["dur_ns"] for piece in coarse]
    assert [piece["start_ns"] for piece in coarse] == [0, *ends[:-1]]
    assert ends[-1] == sum(lengths)
    assert sum(piece["dur_ns"] == 1_000 for piece in coarse) == lengths.count(1_000)
    assert sum(piece["count"] for piece in coarse) == len(lengths)


def _on_stream(stream: int, start_ns: float, dur_ns: float) -> Json:
    return {**_piece(0, 0), "kind": "device", "stream": stream, "start_ns": start_ns,
            "dur_ns": dur_ns, "call": {"api": "cudaLaunchKernel"}}  # fmt: skip


def test_work_back_to_back_on_a_stream_is_joined() -> None:
    # GIVEN two streams without a gap, their pieces in turn, every 17th of one long
    lengths = [1_000.5 if i % 17 == 0 else 3.25 for i in range(5_003)]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    pieces = [_on_stream(s, a, b) for a, b in zip(starts, lengths, strict=True) for s in (7, 13)]
    work, left_out = _work(pieces)
    # THEN none is lost, and each stream still is busy to its end
    assert (len(work) <= EVENTS, left_out) == (True, 0)
    assert sum(piece["count"] for piece in work) == 2 * 5_003
    for stream in (7, 13):
        own = [piece for piece in work if piece["stream"] == stream]
        ends = [piece["start_ns"] + piece["dur_ns"] for piece in own]
        assert [piece["start_ns"] for piece in own] == pytest.approx([0, *ends[:-1]])
        assert ends[-1] == pytest.approx(sum(lengths))
        assert sum(piece["dur_ns"] == 1_000.5 for piece in own) == lengths.count(1_000.5)
    # AND what is of several calls is called after none
    assert all((piece["call"] is None) == (piece["count"] > 1) for piece in work)


def test_of_work_with_gaps_the_longest_is_kept_and_the_rest_counted() -> None:
    # GIVEN more pieces than are shown, none beside another, the last ones the longest
    pieces = [_on_stream(7, 100 * i, 5 if i < 2_000 else 50) for i in range(2_011)]
    work, left_out = _work(pieces)
    assert (len(work), left_out) == (EVENTS, 511)
    assert work[-11:] == pieces[-11:]
    # AND of as long ones those are kept that lie over all of the step
    kept = [piece["start_ns"] // 100 for piece in work if piece["dur_ns"] == 5]
    assert sum(at >= 1_000 for at in kept) == pytest.approx(len(kept) / 2, rel=0.05)
    assert kept == sorted(kept)


def test_few_pieces_of_work_are_as_they_were() -> None:
    pieces = [_on_stream(7, 3 * i, 3) for i in range(EVENTS)]
    assert _work(pieces) == (pieces, 0)


def test_inferred_work_that_is_left_out_is_told_only_where_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is a range and four calls, which the device works for; two of each are shown."""
    monkeypatch.setattr(timelines, "EVENTS", 2)
    monkeypatch.setattr(timelines, "_TOUCHING_NS", -STEP_NS)  # nothing is joined
    kernel = {"dur_ns": 9 * MS, "class": "kernel", "name": "k", "device": 0, "stream": 7}
    recorded = [{**kernel, "ts_ns": i * STEP_NS + MS // 2} for i in range(7)]
    left_out = {}
    for name, activity in (("inferred", []), ("recorded", recorded)):
        run = busy_run(tmp_path / name, steps=7, gpu_activity=activity)
        steps = document_of(page_of(run))["timelines"]["steps"]
        step = next(step for step in steps if "first 2" in step["reasons"])
        assert len(step["device"]["ts_ns"]) == 2
        left_out[name] = step["left_out"]
    assert left_out == {"inferred": (5 - 2) + (4 - 2), "recorded": 6 - 2}


def test_a_thread_has_its_last_name_as_in_the_flamegraph(tmp_path: Path) -> None:
    told = [
        {"ts_ns": 5, "name": "engine"},
        {"ts_ns": 0, "name": "python"},
        {"ts_ns": 7, "name": None},
    ]
    run = busy_run(tmp_path, steps=7, threads=told)
    steps = document_of(page_of(run))["timelines"]["steps"]
    assert {track["name"] for step in steps for track in step["tracks"]} == {"engine"}
    assert fold(run).startswith("true (100);engine (100);")


@pytest.mark.parametrize("steps", [0, 31])
@pytest.mark.parametrize("is_short", [True, False])
def test_a_long_run_has_the_flamegraph_of_a_sample_with_steps_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, *, is_short: bool
) -> None:
    """31 readbacks of 7 ns, a step apart; a run of more than 10 events is called long."""
    limits = pipeline.Limits() if is_short else pipeline.Limits(replay_events=12)
    monkeypatch.setattr(pipeline, "limits_for", lambda _: limits)
    monkeypatch.setattr(report_page, "_MANY_EVENTS", 10)
    calls = [copy(i * STEP_NS + 5, 7, 64) for i in range(31)]
    page = page_of(make_run(tmp_path, nvtx=step_rows(steps), cuda_api=calls))
    found = re.search(r'id="flamegraph-svg">(.*?)</script>', page)
    assert found is not None
    svg = json.loads(found[1])
    assert document_of(page)["flamegraph_sampled"] == (not is_short)
    assert ("a sample of the run" in svg, "the whole run" in svg) == (not is_short, is_short)
    if not steps:
        shown_ns = int(svg_frames(svg)[0].attrib["data-w"])
        assert shown_ns == 31 * 7 if is_short else 0 < shown_ns < 31 * 7


def test_a_million_steps_are_no_more_in_the_page_than_two_thousand(busy_page: str) -> None:
    assert len(busy_page) < 5_200_000
    assert len(json.dumps(document_of(busy_page))) < 100_000
