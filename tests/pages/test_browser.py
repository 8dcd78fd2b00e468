"""The browser fixture itself: what it notes, and that nothing gets out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from pages.conftest import OpenPage

pytestmark = pytest.mark.pages

_PAGE = """<!doctype html><meta charset="utf-8"><title>t</title>
<style>body { background: white; width: 900px } @media (prefers-color-scheme: dark)
{ body { background: black } }</style><h1>hello</h1><script>%s</script>"""


def _written(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "page.html"
    path.write_text(_PAGE % script, "utf-8")
    return path


def test_a_quiet_page_has_no_noise(open_page: OpenPage, tmp_path: Path) -> None:
    opened = open_page(_written(tmp_path, "console.log('not an error')"))

    assert opened.page.inner_text("h1") == "hello"
    assert opened.noise() == []


def test_noise_is_noted(open_page: OpenPage, tmp_path: Path) -> None:
    """GIVEN a page that complains, throws and asks for a file, THEN each is noted."""
    path = _written(
        tmp_path,
        "console.error('c'); fetch('http://192.0.2.1/x').catch(() => { window.refused = 1 });"
        "throw Error('e')",
    )
    opened = open_page(path)
    opened.page.wait_for_function("window.refused")

    assert "c" in opened.console
    assert opened.errors == ["e"]
    assert opened.requests == ["http://192.0.2.1/x"]
    for noted in (opened.console, opened.errors, opened.requests):
        noted.clear()


@pytest.mark.parametrize(("scheme", "colour"), [("light", "255"), ("dark", "0")])
def test_window_and_scheme_are_as_asked(
    open_page: OpenPage, tmp_path: Path, scheme: str, colour: str
) -> None:
    opened = open_page(_written(tmp_path, ""), width=480, height=701, scheme=scheme)

    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == f"rgb({colour}, {colour}, {colour})"
    assert opened.page.evaluate("[innerWidth, innerHeight]") == [480, 701]
    assert opened.overflow_px() > 0
    picture = opened.screenshot(tmp_path / "picture.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert opened.pdf(tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
