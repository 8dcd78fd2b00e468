"""Runs, results and attributions as a notebook shows them."""

from __future__ import annotations

import html.parser
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report_runs import MS, POINT, REPLAY, attribution, crossing_rows, step_rows
from runs import make_run

import cctrace
from cctrace.analyze.attribution import Attribution
from cctrace.store import notebook
from cctrace.store.manifest import Source

if TYPE_CHECKING:
    from conftest import Golden

EVIL = "<script>alert(1)</script>\"'&\x1b[31m\x00\u202eevil"
HARMLESS = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;\\x1b[31m\\x00\\u202eevil"
TAGS = {"div", "style", "table", "caption", "thead", "tbody", "tr", "th", "td", "br", "span", "p",
        "ul", "li"}  # fmt: skip


class Checker(html.parser.HTMLParser):
    """Fails on tags that are not ours, do not nest, or do more than look."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"class", "style"}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def shown(thing: Any) -> str:
    """Its HTML, checked, less the style."""
    method = getattr(thing, "_repr_html_", None)
    text: str = method() if method else thing._repr_mimebundle_()["text/html"]
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", text)
    return re.sub("<style>.*?</style>\n", "", text, flags=re.DOTALL)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(
        tmp_path,
        manifest={
            "host": {"tee": {"kind": "tdx"}, "gpu": {"cc_state": "on"}},
            "sources": [Source("nvtx", "attached"), Source("sched", "refused", "no", "ask")],
            "command": ["python", "<b>"],
        },
        nvtx=[{"ts_ns": i, "dur_ns": 7, "name": f"r{i}"} for i in range(1_009)],
        losses=[{"count": 3}],
    )


def test_a_result_shows_its_first_rows_and_how_many_more_there_are(run: Path) -> None:
    with cctrace.open(run) as session:
        result = session.sql(
            "SELECT 'a<b' AS name, 7 AS n, 0.5 AS ratio, NULL::INTEGER AS nothing, [1, 2] AS list"
        )
        assert shown(result) == (
            '<div class="cctrace"><table><thead><tr>'
            '<th>name<br><span class="type">VARCHAR</span></th>'
            '<th class="number">n<br><span class="type">INTEGER</span></th>'
            '<th class="number">ratio<br><span class="type">DECIMAL(2,1)</span></th>'
            '<th class="number">nothing<br><span class="type">INTEGER</span></th>'
            '<th>list<br><span class="type">INTEGER[]</span></th></tr></thead>'
            '<tbody><tr><td>a&lt;b</td><td class="number">7</td><td class="number">0.5</td>'
            '<td class="number"><span class="null">NULL</span></td><td>[1, 2]</td></tr>'
            "</tbody></table>\n</div>"
        )
        few, some, many = (
            shown(session.sql(f"SELECT name FROM nvtx ORDER BY ts_ns LIMIT {rows}"))
            for rows in (20, 31, 5_000)
        )
    assert few.count("<td>") == some.count("<td>") == many.count("<td>") == 20
    assert "more rows" not in few
    assert "and 11 more rows" in some
    assert "and at least 981 more rows" in many
    assert "<td>r19</td>" in many


def test_a_result_of_hostile_names(tmp_path: Path) -> None:
    names = [EVIL, "x" * 10_000, "\n\t", "", "\u200f\u2066"]
    run = make_run(tmp_path, nvtx=[{"ts_ns": i, "name": name} for i, name in enumerate(names)])
    column = EVIL.replace("\x00", "").replace('"', '""')  # SQL has no NUL in a name
    with cctrace.open(run) as session:
        found = shown(session.sql(f'SELECT name AS "{column}" FROM nvtx ORDER BY ts_ns'))
    cells = re.findall("<td>(.*?)</td>", found)
    assert cells == [
        HARMLESS,
        "x" * 300 + '<span class="note"> and 9,700 more characters</span>',
        "\\n\\t",
        "",
        "\\u200f\\u2066",
    ]
    assert HARMLESS.replace("\\x00", "") in found.split("</thead>")[0]


def test_opened_runs_show_facts_rows_and_losses(run: Path, tmp_path: Path) -> None:
    killed = make_run(tmp_path, "other", manifest={"stop": None, "ended": "recording"})
    with cctrace.open(run, killed) as session:
        found = shown(session)
        # No query was run for it.
        assert session._kept == set()
    rows = dict(re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", found))
    cells = {name: re.findall("<td[^>]*>(.*?)</td>", row) for name, row in rows.items()}
    null = '<span class="null">NULL</span>'
    assert cells["command"] == ["python &#x27;&lt;b&gt;&#x27;", "python serve.py"]
    assert cells["length"] == ["2.50 s", null]
    assert cells["ended"] == ["clean", "recorder_killed"]
    assert cells["events"] == ["1,009", "0"]
    assert cells["events lost"] == ["3", "0"]
    assert cells["TEE"] == ["tdx", null]
    assert cells["GPU CC"] == ["on", null]
    assert cells["sources"] == ["nvtx", null]
    assert cells["nvtx"] == ["1009", "0"]
    assert cells["run"][:2] == ["ring_full", "3"]
    assert "sched" not in cells  # a table without rows


def test_an_attribution_shows_its_verdict_parts_and_points(tmp_path: Path, golden: Golden) -> None:
    run = make_run(
        tmp_path,
        manifest={"sources": [Source("nvtx", "attached"), Source("cuda", "attached")]},
        nvtx=step_rows(31),
        cuda_api=crossing_rows(31),
    )
    made = attribution(run)
    golden("attribution.html", shown(made) + "\n")
    # What it says are the figures of the attribution, and of the rows above.
    found = shown(made)
    parts = re.findall(r"<td>(\w+)</td><td>.*?width:([\d.]+)%.*?<td>([\d.]+%)</td>", found)
    told = {part.part: part.share for part in made.parts if part.share >= 0.0005}
    assert {name: (float(width), share) for name, width, share in parts} == {
        name: (round(100 * share, 2), f"{share:.1%}") for name, share in told.items()
    }
    assert made._repr_mimebundle_()["text/plain"].count("\n") == 0


def test_an_attribution_of_hostile_names(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=step_rows(31), cuda_api=crossing_rows(31))
    made = attribution(run)
    part = replace(made.parts[0], engine=EVIL, phase=EVIL)
    assert POINT.remedy is not None
    point = replace(POINT, sentence=EVIL, remedy=replace(POINT.remedy, switch=EVIL))
    evil = replace(made, parts=(part,), points=(point,) * 7, replay=REPLAY)
    found = shown(evil)
    assert "<script" not in found
    assert found.count(HARMLESS) >= 3
    assert "and 2 more: .points" in found
    text = evil._repr_mimebundle_()["text/plain"]
    assert not re.search("[\x00-\x1f\u202e]", text)
    # A figure's labels are HTML of a kind.
    [bar] = evil.figure().data
    assert bar.y[0] == f"{HARMLESS} {HARMLESS}"


def test_the_figure_draws_the_parts(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=step_rows(31), cuda_api=crossing_rows(31))
    made = attribution(run)
    drawn = {bar.name: (bar.x[0], bar.y[0]) for bar in made.figure().data}
    assert drawn == {
        part.part: (part.mean_ns / 1e6, "default decode") for part in made.parts if part.total_ns
    }
    # Stacked, they are as long as a step.
    assert sum(x for x, _ in drawn.values()) == pytest.approx(10 * MS / 1e6)


def test_a_run_that_can_say_nothing(tmp_path: Path) -> None:
    made = attribution(make_run(tmp_path))
    assert "This run cannot say what holds its loop up." in shown(made)
    assert list(made.figure().data) == []


def test_html_of_ours_is_not_escaped_again() -> None:
    assert notebook.text(notebook.Html("<p>")) == "<p>"
    assert notebook.text("<p>") == "&lt;p&gt;"


def test_in_ipython(run: Path) -> None:
    formatters = pytest.importorskip(
        "IPython.core.formatters", reason="IPython is not installed: what a notebook asks for"
    )
    formatter = formatters.DisplayFormatter()
    with cctrace.open(run) as session:
        for thing in (session, session.sql("SELECT 1")):
            assert set(formatter.format(thing)[0]) == {"text/plain", "text/html"}
        made: Attribution = session.attribution()
        assert formatter.format(made)[0] == made._repr_mimebundle_()
