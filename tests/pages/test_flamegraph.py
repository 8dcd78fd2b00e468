"""The SVG flamegraph in a browser: zoom, search and keyboard work, and nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flame_rows import flame, small_run
from hostile import NAMES
from part_rows import call

from cctrace.exporters.flame.graph import combine
from cctrace.exporters.flame.svg import Heading, svg

if TYPE_CHECKING:
    from pathlib import Path

    from pages.browser import Opened
    from pages.conftest import OpenPage
    from playwright.sync_api import Locator

pytestmark = pytest.mark.pages


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flame")
    path = folder / "flame.svg"
    run = small_run(folder)
    path.write_text(svg(flame(run), Heading("Wall time", "all", ("run",))), "utf-8")
    return path


def _shown(opened: Opened) -> dict[str, float]:
    """Widths of the frames that are to be seen, by name, px."""
    found: dict[str, float] = opened.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("svg.f:not([display])")].map(
            (f) => [f.querySelector("title").textContent.split("\\n")[0],
                    Number(f.getAttribute("width"))]))"""
    )
    return found


def _frame(opened: Opened, name: str) -> Locator:
    """Rectangle of the first frame of that name."""
    index = opened.page.evaluate(
        """(name) => [...document.querySelectorAll("svg.f")].findIndex(
            (f) => f.querySelector("title").textContent.split("\\n")[0] === name)""",
        name,
    )
    return opened.page.locator("svg.f").nth(index).locator("rect")


def test_it_fills_the_window_and_its_sums_hold(open_page: OpenPage, drawn: Path) -> None:
    opened = open_page(drawn, width=1020)
    shown = _shown(opened)
    assert shown["all"] == pytest.approx(1000)  # less the margins
    assert shown["forward"] == pytest.approx(150)  # 300 of 2000 ns
    opened.page.set_viewport_size({"width": 520, "height": 600})
    opened.page.wait_for_function("document.querySelector('svg.f').getAttribute('width') < 600")
    assert _shown(opened)["forward"] == pytest.approx(75)


def test_a_click_zooms_and_escape_goes_back(open_page: OpenPage, drawn: Path) -> None:
    opened = open_page(drawn, width=1020)
    button = opened.page.get_by_role("button", name="Reset zoom")
    assert button.is_disabled()
    _frame(opened, "forward").click()
    shown = _shown(opened)
    assert shown["forward"] == shown["step"] == shown["all"] == pytest.approx(1000)
    assert "lock_wait" not in shown
    assert opened.page.locator("svg.f.around").count() == 4
    opened.page.keyboard.press("Escape")
    assert _shown(opened)["forward"] == pytest.approx(150)
    _frame(opened, "forward").click()
    button.click()
    assert _shown(opened)["forward"] == pytest.approx(150)


def test_a_frame_tells_its_figures(open_page: OpenPage, drawn: Path) -> None:
    opened = open_page(drawn, width=1020)
    _frame(opened, "forward").hover()
    details = opened.page.locator(".detail")
    assert details.nth(0).text_content() == "forward"
    assert details.nth(1).text_content() == "300 ns, 15.00%"


def test_search_counts_what_is_inside_a_match_once(open_page: OpenPage, drawn: Path) -> None:
    opened = open_page(drawn)
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("CUDAMEM")
    assert opened.page.locator("output").text_content() == "35.00% (3)"  # 700 of 2000 ns
    assert opened.page.locator("svg.f.hit").count() == 3
    opened.page.get_by_role("searchbox").fill("step")
    # The calls of the step's range are inside it: 1,700 of 2,000 ns.
    assert opened.page.locator("output").text_content() == "85.00% (1)"
    opened.page.keyboard.press("Escape")
    assert opened.page.locator("svg.f.hit").count() == 0
    opened.page.keyboard.press("Control+f")
    opened.page.keyboard.type(".*[")  # text, not a pattern
    assert opened.page.locator("output").text_content() == "0.00% (0)"


def test_the_keyboard_alone_will_do(open_page: OpenPage, drawn: Path) -> None:
    opened = open_page(drawn, width=1020)
    page = opened.page
    focused = "document.activeElement.querySelector('title').textContent.split('\\n')[0]"
    page.locator("svg.f[tabindex='0']").focus()
    walked = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowUp", "Home"):
        page.keyboard.press(key)
        walked.append(page.evaluate(focused))
    assert walked == ["python3 (100)", "main (100)", "step", "host_compute", "main (100)", "all"]
    assert page.locator("svg.f[tabindex='0']").count() == 1
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert _shown(opened)["step"] == pytest.approx(1000)


@pytest.mark.parametrize("key", ["Enter", "Escape"])
def test_the_focus_comes_back_from_a_button_that_disables_itself(
    open_page: OpenPage, drawn: Path, key: str
) -> None:
    opened = open_page(drawn, width=1020)
    page = opened.page
    focused = "document.activeElement.querySelector('title')?.textContent.split('\\n')[0]"
    page.locator("svg.f[tabindex='0']").focus()
    for pressed in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(pressed)
    assert page.evaluate(focused) == "main (100)"
    page.locator("button").focus()
    page.keyboard.press(key)
    # THEN all is shown, and the arrows go on from the frame that was chosen for it
    assert page.locator("button").is_disabled()
    assert page.evaluate(focused) == "all"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "python3 (100)"


def test_dark_mode_has_colours_of_its_own(open_page: OpenPage, drawn: Path) -> None:
    fill = "getComputedStyle(document.querySelector('.page')).fill"
    light, dark = (open_page(drawn, scheme=scheme) for scheme in ("light", "dark"))
    assert light.page.evaluate(fill) == "rgb(255, 255, 255)"
    assert dark.page.evaluate(fill) == "rgb(22, 25, 29)"


def test_large_letters_get_rows_that_hold_them(open_page: OpenPage, tmp_path: Path) -> None:
    # GIVEN a reader who has set letters of 24 px
    run = small_run(tmp_path)
    text = svg(flame(run), Heading("Wall time", "all", ("run",))).replace(
        "font: 12px", "font: 24px"
    )
    path = tmp_path / "large.svg"
    path.write_text(text, "utf-8")
    opened = open_page(path)
    height = opened.page.evaluate("Number(document.querySelector('svg.f').getAttribute('height'))")
    letters = opened.page.evaluate("document.querySelector('svg.f text').getBBox().height")
    assert height >= letters > 24


@pytest.mark.parametrize("how", ["alone", "in_a_page"])
def test_names_do_nothing(open_page: OpenPage, tmp_path: Path, how: str) -> None:
    # GIVEN names that would run a script if any of them became markup
    names = list(NAMES.values())
    run = small_run(
        tmp_path,
        cuda_api=[call(10 * i, 7, "sync", f"{name} ", tid=i + 1) for i, name in enumerate(names)],
        threads=[{"tid": i + 1, "name": name} for i, name in enumerate(names)],
    )
    text = svg(flame(run, weight="blocked"), Heading(NAMES["markup"], NAMES["markup"], ("r",)))
    path = tmp_path / ("flame.svg" if how == "alone" else "page.html")
    inside = f"<!doctype html><meta charset=utf-8>{text[text.index('<svg') :]}"
    path.write_text(text if how == "alone" else inside, "utf-8")
    opened = open_page(path)
    # WHEN each is looked at, zoomed in and searched for
    for index in range(3):
        opened.page.locator("svg.f rect").nth(index + 1).hover()
        opened.page.locator("svg.f rect").nth(index + 1).click()
    opened.page.get_by_role("searchbox").fill("<script>")
    assert opened.page.locator("svg.f.hit").count() > 0
    # THEN no script of theirs has run, and they are text
    assert opened.page.evaluate("window.hit === undefined")
    assert opened.page.evaluate("document.querySelectorAll('script').length") == 1
    assert opened.page.evaluate("document.querySelectorAll('b').length") == 0


def test_a_comparison(open_page: OpenPage, tmp_path: Path) -> None:
    one, two = small_run(tmp_path, "one"), small_run(tmp_path, "two", sched=[])
    both = combine(flame(one, by_name=True), flame(two, by_name=True))
    path = tmp_path / "diff.svg"
    path.write_text(svg(both, Heading("Wall time, one to two", "all", ("one", "two"))), "utf-8")
    opened = open_page(path)
    colours = opened.page.evaluate(
        """() => ["lock_wait", "all"].map((name) => getComputedStyle([...document
            .querySelectorAll("svg.f")].find((f) => f.textContent.startsWith(name))
            .querySelector("rect")).fill)"""
    )
    assert colours == ["rgb(59, 125, 216)", "rgb(228, 230, 233)"]  # gone: blue; the same: grey
