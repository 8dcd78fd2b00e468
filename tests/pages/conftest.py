"""The browser that all tests of pages share, and ``open_page``, which opens a file in it.

    def test_it_says_hello(open_page, tmp_path):
        opened = open_page(written(tmp_path), scheme="dark", width=480)
        assert opened.page.inner_text("h1") == "hello"

Every page must have been quiet by the end of its test: no error on the console, no exception,
no request. A test that provokes one empties the list it lands in. Each file of tests here says
``pytestmark = pytest.mark.pages``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pages.browser import Opened, find_chromium, launch_arguments, open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    OpenPage = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, one for all tests."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: make test-pages does it"
    )
    executable = find_chromium()
    if executable is None:
        pytest.skip("no chromium here: make test-pages installs Debian's")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(**launch_arguments(executable))
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open a file; takes what ``browser.open_file`` takes after the browser."""
    all_opened: list[Opened] = []

    def opener(path: Path, **options: Any) -> Opened:
        all_opened.append(open_file(browser, path, **options))
        return all_opened[-1]

    yield opener
    for opened in all_opened:
        opened.page.context.close()
    assert [opened.noise() for opened in all_opened] == [[] for _ in all_opened]
