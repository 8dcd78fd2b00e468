"""Take the pictures of docs/images: a run's flamegraph and HTML report in headless Chromium.

    scripts/screenshots.py RUN NAME [--weight WEIGHT]

writes docs/images/NAME-flamegraph.png and docs/images/NAME-report.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
_WIDTH = 1200  # CSS pixels


def main() -> None:
    """Make both pages with the command line, and take a picture of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--weight", default="wall")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        svg, page = Path(folder) / "flamegraph.svg", Path(folder) / "report.html"
        _cctrace("flamegraph", wanted.run, "--weight", wanted.weight, "-o", svg)
        _cctrace("report", wanted.run, "--format", "html", "-o", page)
        IMAGES.mkdir(exist_ok=True)
        _shoot(svg, IMAGES / f"{wanted.name}-flamegraph.png", height=560)
        _shoot(page, IMAGES / f"{wanted.name}-report.png", height=1500)


def _cctrace(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "cctrace", *map(str, words)], check=True)


def _shoot(page: Path, picture: Path, *, height: int) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from pages.browser import find_chromium, launch_arguments, open_file  # noqa: PLC0415 - the tests' own
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - `make test-pages` installs it

    executable = find_chromium()
    if executable is None:
        sys.exit("screenshots: no chromium: scripts/pages_setup.sh installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_arguments(executable))
        opened = open_file(browser, page, width=_WIDTH, height=height)
        opened.screenshot(picture)
        browser.close()
    print(f"Wrote {picture.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
