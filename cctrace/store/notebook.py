"""Rows as HTML, for objects that a notebook shows.

Everything that is shown may have been written by the traced program: all of it goes
through :func:`text`.

Source: https://ipython.readthedocs.io/en/stable/config/integrating.html (`_repr_html_`).
"""

from __future__ import annotations

import html
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from cctrace.store.text import harmless

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LONGEST: Final = 300  # characters of a value
_NUMBERS: Final = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER"}
    | {"UBIGINT", "UHUGEINT", "FLOAT", "DOUBLE"}
)


class Html(str):
    """HTML of our own, which is not escaped again."""

    __slots__ = ()


def text(value: Any) -> Html:
    """A value as text to look at: escaped, control characters written out, cut if long."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html('<span class="null">NULL</span>')
    shown = value if isinstance(value, str) else str(value)
    left = len(shown) - _LONGEST
    more = f'<span class="note"> and {left:,} more characters</span>' if left > 0 else ""
    return Html(html.escape(harmless(shown[:_LONGEST])) + more)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    types: Sequence[str] = (),
    caption: str = "",
) -> Html:
    """Rows as a table.

    Args:
        columns: Names of the columns.
        rows: Values; numbers stand to the right.
        types: DuckDB types of the columns, which are shown under their names; empty: not.
        caption: What the table is.
    """
    known = types or [""] * len(columns)
    sides = ["number" if _is_number(kind) else "" for kind in known]
    parts = ["<table>", f"<caption>{text(caption)}</caption>" if caption else "", "<thead><tr>"]
    for name, kind, side in zip(columns, known, sides, strict=True):
        under = f'<br><span class="type">{text(kind)}</span>' if kind else ""
        parts.append(f"<th{_class(side)}>{text(name)}{under}</th>")
    parts.append("</tr></thead><tbody>")
    for row in rows:
        parts.append("<tr>")
        for value, side in zip(row, sides, strict=True):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            parts.append(f"<td{_class(side or ('number' if is_number else ''))}>{text(value)}</td>")
        parts.append("</tr>")
    parts.append("</tbody></table>")
    return Html("".join(parts))


def note(content: str) -> Html:
    """A remark under a table."""
    return Html(f'<p class="note">{text(content)}</p>')


def output(*parts: str) -> str:
    """What a notebook shows: the parts, one under the other, and their style."""
    style = resources.files("cctrace.store").joinpath("notebook.css").read_text("utf-8")
    return f'<div class="cctrace"><style>\n{style}</style>\n' + "\n".join(parts) + "\n</div>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _is_number(kind: str) -> bool:
    return kind in _NUMBERS or kind.startswith("DECIMAL")
