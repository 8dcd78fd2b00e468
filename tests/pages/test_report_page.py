"""The HTML report in a browser: what is on it, that it works, and that nothing gets in or out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hostile import NAMES as UNSEEN
from page_runs import (
    NAMES,
    busy_run,
    document_of,
    evil_run,
    million_steps,
    page_of,
    rendered,
)
from report_runs import crossing_rows, step_rows
from runs import make_run

from cctrace.store.text import harmless

if TYPE_CHECKING:
    from pathlib import Path

    from pages.browser import Opened
    from pages.conftest import OpenPage

pytestmark = pytest.mark.pages

_DRAWN = "document.documentElement.dataset.drawn !== undefined"
# Labels of figures that reach beyond the figure's box.
_CLIPPED = """[...document.querySelectorAll('.figure-box text')].filter(text => {
  const a = text.getBoundingClientRect();
  const b = text.closest('.figure-box').getBoundingClientRect();
  return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1);
}).map(text => text.textContent)"""
_SECTIONS = ["parts", "points", "itl", "steps", "copies", "flamegraph", "unknown", "facts"]


def written(folder: Path, page: str) -> Path:
    path = folder / "report.html"
    path.write_text(page, "utf-8")
    return path


def shown(open_page: OpenPage, path: Path, **options: Any) -> Opened:
    """Open a page, and wait until it has drawn itself."""
    opened = open_page(path, **options)
    opened.page.wait_for_function(_DRAWN)
    return opened


def sections(opened: Opened) -> list[str]:
    found: list[str] = opened.page.evaluate(
        "[...document.querySelectorAll('section[data-nav]')].map(s => s.id)"
    )
    return found


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("busy")
    return written(folder, page_of(busy_run(folder, steps=61)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_verdict_is_the_first_thing_seen(open_page: OpenPage, busy: Path, scheme: str) -> None:
    opened = shown(open_page, busy, scheme=scheme)
    page = opened.page
    document = document_of(busy.read_text("utf-8"))
    # the sentence is in the window without scrolling, and says what the data says
    place = page.locator("#verdict .sentence").bounding_box()
    assert place is not None
    assert place["y"] + place["height"] < 450
    assert page.inner_text("#verdict .sentence") == document["verdict"]["sentence"]
    assert sections(opened) == _SECTIONS
    assert opened.overflow_px() == 0
    # text stands out from what is behind it, in both schemes
    ink, paper = (
        sum(page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)"))
        for name in ("color", "backgroundColor")
    )
    assert (ink < 120 and paper > 700) if scheme == "light" else (ink > 660 and paper < 90)


def test_what_is_in_the_sections(open_page: OpenPage, busy: Path) -> None:
    page = shown(open_page, busy).page
    assert "serve.py" in page.inner_text("#ran")
    assert "NVIDIA B300" in page.inner_text("#ran")
    assert "CC on" in page.inner_text("#ran")
    facts = page.inner_text("#facts")
    assert "580.1" in facts
    assert "this is no guest" in facts
    assert "run it in one" in facts
    assert "bpf_ring_full" in page.inner_text("#unknown")
    # parts by hand: 6 of 10 ms in the readback, 90 us in launches, the rest not known
    parts = page.inner_text("#parts table")
    assert "launch" in parts
    assert "90.0 us" in parts
    assert page.locator(".js-plotly-plot .main-svg").count() > 0
    assert page.locator("#points .point").count() > 0


def test_the_theme_can_be_changed_and_figures_follow(open_page: OpenPage, busy: Path) -> None:
    page = shown(open_page, busy).page
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('#itl .js-plotly-plot')._fullLayout.font.color"
    light = page.evaluate(paper), page.evaluate(ink)
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: light"
    assert (page.evaluate(paper), page.evaluate(ink)) == light
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: dark"
    assert page.evaluate(paper) != light[0]
    assert page.evaluate(ink) != light[1]


def _window(opened: Opened) -> list[float]:
    found: list[float] = opened.page.evaluate("timeline.window")
    return found


def test_a_step_is_zoomed_by_buttons_keys_and_mouse(open_page: OpenPage, busy: Path) -> None:
    opened = shown(open_page, busy)
    page = opened.page
    whole = [0, 10_000_000]
    assert _window(opened) == whole
    page.click("button[aria-label='Zoom in']")
    assert _window(opened) == [2_500_000, 7_500_000]
    box = page.locator(".timeline")
    box.focus()
    page.keyboard.press("ArrowRight")
    assert _window(opened) == [3_500_000, 8_500_000]
    page.keyboard.press("+")
    assert _window(opened) == [4_750_000, 7_250_000]
    page.keyboard.press("0")
    assert _window(opened) == whole
    # WHEN the middle is dragged over, THEN that is what is shown
    place = box.bounding_box()
    assert place is not None
    gutter, y = 168, place["y"] + 40
    wide = place["width"] - gutter
    page.mouse.move(place["x"] + gutter + wide * 0.25, y)
    page.mouse.down()
    page.mouse.move(place["x"] + gutter + wide * 0.75, y, steps=3)
    page.mouse.up()
    first, last = _window(opened)
    assert first == pytest.approx(2_500_000, abs=50_000)
    assert last == pytest.approx(7_500_000, abs=50_000)
    box.dblclick(position={"x": 500, "y": 5})
    assert _window(opened) == whole


def test_events_are_told_by_the_keyboard_alone(open_page: OpenPage, busy: Path) -> None:
    page = shown(open_page, busy).page
    page.locator(".timeline").focus()
    told = set()
    for _ in range(30):
        page.keyboard.press("n")
        told.add(page.inner_text("#timeline-told").split(" · ")[0])
    assert {"step", "cudaLaunchKernel", "cudaMemcpyAsync D2H 32 B"} <= told
    assert page.locator(".block.chosen").count() == 1


def test_another_step_is_chosen(open_page: OpenPage, busy: Path) -> None:
    page = shown(open_page, busy).page
    steps = document_of(busy.read_text("utf-8"))["timelines"]["steps"]
    listed = page.locator("#steps select")
    assert listed.locator("option").count() == len(steps)
    for at, step in enumerate(steps):
        listed.select_option(str(at))
        assert page.evaluate("timeline.step.step_id") == step["step_id"]
    # WHEN a point's example is asked for, THEN it is shown, and the keyboard is there
    page.locator("#points button").first.click()
    example = document_of(busy.read_text("utf-8"))["report"]["points"][0]["example_step_id"]
    assert page.evaluate("timeline.step.step_id") == example
    assert page.evaluate("document.activeElement.className") == "timeline"


def test_the_critical_path_is_drawn_along_the_rows(open_page: OpenPage, busy: Path) -> None:
    page = shown(open_page, busy).page
    assert page.locator(".chain").count() == 1
    lengths = page.evaluate(
        "[...document.querySelectorAll('.block.path-host, .block.path-device, .block.path-call,"
        ".block.path-latency, .block.path-wake')].map(b => Number(b.getAttribute('width')))"
    )
    wide = page.evaluate("document.querySelector('.timeline svg').clientWidth") - 168
    assert sum(lengths) == pytest.approx(wide, rel=0.02)
    assert "critical path" in page.inner_text("#steps .lead")


def test_latency_zooms(open_page: OpenPage, busy: Path) -> None:
    page = shown(open_page, busy).page
    extent = "document.querySelector('#itl .js-plotly-plot')._fullLayout.xaxis.range"
    first, last = page.evaluate(extent)
    page.locator("#itl .figure-box").first.focus()
    page.keyboard.press("+")
    page.wait_for_function(f"{extent}[0] > {first} + 0.001")
    near, far = page.evaluate(extent)
    assert far - near == pytest.approx((last - first) / 2)
    page.keyboard.press("0")


def test_everything_is_reached_by_the_keyboard(open_page: OpenPage, busy: Path) -> None:
    page = shown(open_page, busy).page
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button, select, summary, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility()).length"
    )
    reached: set[str] = set()
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(() => { const e = document.activeElement; e.dataset.seen ??= Math.random();"
                " return e.dataset.seen; })()"
            )
        )
    missed = page.evaluate(
        "[...document.querySelectorAll('a[href], button, select, summary, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility() && !e.dataset.seen).map(e => e.outerHTML.slice(0, 90))"
    )
    assert missed == []
    assert len(reached) >= wanted


def test_the_flamegraph_works_in_a_frame_that_sees_nothing(open_page: OpenPage, busy: Path) -> None:
    opened = shown(open_page, busy)
    opened.page.locator("#flamegraph iframe").scroll_into_view_if_needed()
    [_, frame] = opened.page.frames
    frame.wait_for_selector("[role=treeitem]")  # which its script has set
    assert frame.evaluate("window.origin") == "null"
    assert (
        frame.evaluate("(() => { try { return parent.document.title } catch { return 0 } })()") == 0
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_white_and_holds_everything(
    open_page: OpenPage, busy: Path, tmp_path: Path, scheme: str
) -> None:
    opened = shown(open_page, busy, scheme=scheme)
    opened.page.emulate_media(media="print")
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    assert not opened.page.is_visible(".top")
    # what is folded away is opened for the printer
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("details:not([open])").count() == 0
    opened.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.pdf(tmp_path / "report.pdf").stat().st_size > 20_000


@pytest.mark.parametrize("width", [320, 480, 1920])
def test_any_window_is_wide_enough(open_page: OpenPage, busy: Path, width: int) -> None:
    opened = shown(open_page, busy, width=width)
    assert opened.overflow_px() == 0
    clipped = opened.page.evaluate(_CLIPPED)
    assert clipped == []


# -- runs that say little, and much ----------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "left"),
    [
        ({}, ["unknown", "facts"]),
        ({"nvtx": step_rows(1)}, ["unknown", "facts"]),
        ({"nvtx": step_rows(13)}, ["parts", "itl", "steps", "flamegraph", "unknown", "facts"]),
        ({"cuda_api": crossing_rows(1)}, ["copies", "flamegraph", "unknown", "facts"]),
    ],
)
def test_there_are_no_empty_figures(
    open_page: OpenPage, tmp_path: Path, tables: dict[str, Any], left: list[str]
) -> None:
    opened = shown(open_page, written(tmp_path, page_of(make_run(tmp_path, **tables))))
    assert sections(opened) == left
    assert opened.page.inner_text("#verdict").strip()
    assert opened.page.evaluate(
        "[...document.querySelectorAll('section[data-nav]')].every(s => s.children.length > 1)"
    )
    names = opened.page.locator("#nav a").count()
    assert names == len(left)


def test_a_million_steps_are_readable(open_page: OpenPage, busy: Path, tmp_path: Path) -> None:
    document = million_steps(document_of(busy.read_text("utf-8")))
    opened = shown(open_page, written(tmp_path, rendered(document)))
    lead = opened.page.inner_text("#itl .lead")
    assert "1,000,003 steps of default decode in 2,000 points of up to 501 steps each" in lead
    drawn = opened.page.evaluate(
        "document.querySelector('#itl .js-plotly-plot').data.map(t => t.x.length)"
    )
    assert drawn == [2_000, 2_000, 2_000]
    took_ms = opened.page.evaluate("performance.getEntriesByType('navigation')[0].duration")
    assert took_ms < 10_000
    opened.page.click("text=Cut off the slowest 1%")
    top = opened.page.evaluate(
        "document.querySelector('#itl .js-plotly-plot')._fullLayout.yaxis.range[1]"
    )
    assert top == pytest.approx(15 * 1.02)


# -- what the target wrote -------------------------------------------------------------


def test_nothing_that_the_target_wrote_runs(open_page: OpenPage, tmp_path: Path) -> None:
    opened = shown(open_page, written(tmp_path, page_of(evil_run(tmp_path))))
    page = opened.page
    for at in range(page.locator("#steps option").count()):
        page.locator("#steps select").select_option(str(at))
    page.locator(".timeline").focus()
    for _ in range(60):
        page.keyboard.press("n")
    assert page.evaluate("window.injected") is None
    assert all(frame.evaluate("window.injected") is None for frame in page.frames)
    assert page.locator("img, a[href^='javascript'], main script").count() == 0
    # names are there, as text, with what is not to be seen written out
    text = page.inner_text("body")
    assert "<script>window.injected = 1</script>" in text
    assert "\\u202e" in text
    assert "\\x1b[31m" in text
    assert "\u202e" not in text
    assert opened.overflow_px() == 0


def test_the_page_writes_out_what_every_other_output_does(open_page: OpenPage, busy: Path) -> None:
    opened = shown(open_page, busy)
    texts = [*UNSEEN.values(), "\u2764\ufe0f \xa9\ufe0e a\ufe0f 1\ufe0f \U000e0041 \u3000 \u3164"]
    assert opened.page.evaluate("texts => texts.map(shown)", texts) == [
        harmless(text) for text in texts
    ]


def test_an_injected_script_is_refused(open_page: OpenPage, busy: Path, tmp_path: Path) -> None:
    """GIVEN a page that somebody else has put scripts into, THEN none of them runs."""
    page = busy.read_text("utf-8").replace(
        "<footer",
        "<script>window.injected = 1</script><img src=x onerror='window.injected=1'><footer",
    )
    opened = shown(open_page, written(tmp_path, page))
    assert opened.page.evaluate("window.injected") is None
    refused = [text for text in opened.console if "Content Security Policy" in text]
    assert refused
    opened.console.clear()
    opened.requests.clear()


def test_names_are_all_in_the_data(busy: Path) -> None:
    # what the test above is about
    assert json.loads(json.dumps(NAMES)) == list(NAMES)
    assert busy.stat().st_size < 15_000_000
