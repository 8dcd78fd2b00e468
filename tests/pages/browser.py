"""Open a file in headless Chromium, and note everything it says, breaks or asks for.

Debian's chromium, driven through playwright: ``make test-pages`` installs both. The browser
is offline, and a page that a test opens is a file, so the only request there may be is for
that file.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

Scheme = Literal["light", "dark"]

# Debian's is a script around /usr/lib/chromium/chromium; others call it otherwise.
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# --no-sandbox: its sandbox does not start for root, as whom a container's tests run.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# No request that leaves the page.
_INTERNAL = ("data:", "blob:", "about:")


def find_chromium() -> str | None:
    """Path of an installed Chromium; None: there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@dataclass
class Opened:
    """A page in a context of its own, and what it did so far.

    Attributes:
        page: The page, for whatever else a test does with it.
        url: Its address, a ``file:`` one.
        console: Errors and warnings it wrote to the console; a violated
            Content-Security-Policy is one.
        errors: Exceptions that nothing in it caught.
        requests: Addresses it asked for, other than its own.
    """

    page: Page
    url: str
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def noise(self) -> list[str]:
        """What a good page has none of, in one list."""
        return [
            *(f"console: {text}" for text in self.console),
            *(f"error: {text}" for text in self.errors),
            *(f"request: {text}" for text in self.requests),
        ]

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Write a PNG of what is seen, or of the ``whole`` page."""
        self.page.screenshot(path=path, full_page=whole)
        return path

    def pdf(self, path: Path) -> Path:
        """Print the page to ``path``, A4, its background printed too."""
        self.page.pdf(path=path, format="A4", print_background=True)
        return path

    def overflow_px(self) -> int:
        """By how many pixels the page is wider than its window; 0: no sideways scrolling."""
        width: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return width

    def note_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.console.append(message.text)

    def note_request(self, request: Request) -> None:
        if request.url != self.url and not request.url.startswith(_INTERNAL):
            self.requests.append(request.url[:200])


def open_file(
    browser: Browser,
    path: Path,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Scheme = "light",
) -> Opened:
    """Open a file in a fresh context, and wait until it has loaded.

    Args:
        browser: The browser.
        path: An HTML or SVG file.
        width: Of the window, CSS pixels.
        height: Of the window, CSS pixels.
        scheme: What ``prefers-color-scheme`` says.

    Returns:
        The page. Closing ``.page.context`` closes it.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        offline=True,
        locale="en-US",
        timezone_id="UTC",
    )
    url = path.resolve().as_uri()
    opened = Opened(context.new_page(), url)
    opened.page.set_default_timeout(20_000)
    opened.page.on("console", opened.note_console)
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    context.on("request", opened.note_request)
    opened.page.goto(url, wait_until="load")
    return opened


def launch_arguments(executable: str) -> dict[str, object]:
    """Arguments of ``playwright.chromium.launch`` for that program."""
    return {"executable_path": executable, "headless": True, "args": list(_ARGUMENTS)}
