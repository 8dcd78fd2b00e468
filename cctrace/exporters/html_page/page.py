"""Data, style and scripts into one HTML file.

The scripts are named by their hashes in the page's Content-Security-Policy (W3C, Content
Security Policy Level 3, section 2.3.1): nothing else in the page can run, whatever names
are in the data. ``default-src 'none'`` keeps it from asking for anything. Style may be
inline, which plotly needs.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cctrace.errors import CctraceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SCRIPTS: Final = ("words.js", "page.js", "timeline.js")  # before the figures' own
_FIGURES: Final = "figures.js"
_SLOT: Final = re.compile(r"\{\{(\w+)\}\}")
# In an SVG a script's text may be a CDATA section, whose marks are none of it.
_SCRIPT: Final = re.compile(
    r"<script(?:\s[^>]*)?>(?:<!\[CDATA\[(.*?)\]\]>|(.*?))</script>", re.DOTALL | re.IGNORECASE
)


@cache
def _asset(name: str) -> str:
    return (resources.files(__package__ or "") / name).read_text("utf-8")


@cache
def _plotly() -> str:
    """Plotly's script, as its Python package ships it.

    Raises:
        CctraceError: It is not there.
    """
    spec = find_spec("plotly")  # importing it would take longer than all else here
    places = [] if spec is None else spec.submodule_search_locations or []
    for place in places:
        file = Path(place) / "package_data" / "plotly.min.js"
        if file.is_file():
            return file.read_text("utf-8")
    raise CctraceError(
        "plotly's script is missing, which draws the page's figures",
        "pip install --force-reinstall plotly",
    )


def as_json(document: Any) -> str:
    """JSON that can stand in a ``<script>``: ASCII, with no character HTML looks at."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _policy(scripts: Iterable[str]) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def render(document: Mapping[str, Any], flamegraph: str | None = None) -> bytes:
    """Make the page.

    Args:
        document: What the page shows: ``report`` (as docs/report.schema.json has it),
            ``verdict``, ``lengths``, ``copies``, ``copies_sampled``, ``timelines``,
            ``flamegraph_weight``, ``flamegraph_sampled``.
        flamegraph: An SVG file's text, shown in a frame of its own; None: no such section.

    Returns:
        The file, UTF-8. The same for the same arguments.

    Raises:
        CctraceError: Plotly's script is missing.
    """
    first = "\n".join(_asset(name) for name in _SCRIPTS)
    scripts = {"scripts": first, "plotly": _plotly(), "figures": _asset(_FIGURES)}
    # A frame without an address of its own is under the page's policy.
    inner = [match[1] or match[2] or "" for match in _SCRIPT.finditer(flamegraph or "")]
    slots = {
        **scripts,
        "policy": html.escape(_policy([*scripts.values(), *inner])),
        "title": html.escape(_title(document["report"]["run"])),
        "style": _asset("page.css"),
        "data": as_json(document),
        "flamegraph": as_json(flamegraph),
    }
    filled = _SLOT.sub(lambda match: slots[match[1]], _asset("page.html"))
    return filled.encode("utf-8", "backslashreplace")


def _title(run: Mapping[str, Any]) -> str:
    name = str(run["path"]).rstrip("/").rpartition("/")[2]
    return f"{name} - cctrace report"
