"""The SQL library: views and reports, each documented by its own header.

A file is one object of the same name. Its leading comment says what it is, what
it reads, what a row is and what every column means:

    -- steps: one sentence.
    -- requires: nvtx, _step_rules
    -- grain:    one row per step
    -- materialize: yes
    -- columns:
    --   run      VARCHAR  label of the run
    --   step_id  BIGINT   number of the step,
    --                     continued here
    -- params:
    --   engine  VARCHAR = NULL  only this engine
    -- caveats:  none

``params`` is for reports only, ``materialize`` for views only: such a view is computed
once a session, and kept as a table of the same name. It is for what costs a sort or a
join and is read more than once; a mere filter is better read through. Two spaces at
least part the fields of an entry. The header is the source of ``query --list``, of the
comments in DuckDB and of docs/queries.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from cctrace.errors import EXIT_USAGE, CctraceError
from cctrace.resources import resource_dir

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

ParamValue = str | int | float | bool | None

_SECTION = re.compile(r"(requires|grain|materialize|columns|params|caveats):\s*(.*)")
_ENTRY = re.compile(r" {2}(\S+)\s+(\S.*?)(?: {2,}(\S.*))?")
_CONTINUED = re.compile(r" {6,}(\S.*)")
_TRUE = frozenset({"true", "yes", "1"})
_FALSE = frozenset({"false", "no", "0"})


@dataclass(frozen=True)
class ColumnDoc:
    """A documented column: name, DuckDB type, meaning."""

    name: str
    type: str
    doc: str


@dataclass(frozen=True)
class Param:
    """A parameter of a report: name, DuckDB type, default and meaning."""

    name: str
    type: str
    default: ParamValue
    doc: str

    def parse(self, text: str) -> ParamValue:
        """Read a value typed by the user.

        Raises:
            CctraceError: Exit code 2; ``text`` is no value of this type.
        """
        try:
            return _parse(self.type, text)
        except ValueError:
            raise CctraceError(
                f"parameter {self.name} takes a {self.type}, not {text!r}", None, EXIT_USAGE
            ) from None


@dataclass(frozen=True)
class Item:
    """One view or report.

    Attributes:
        name: Its name and its file's.
        description: What it is.
        requires: Tables and views it reads.
        grain: What a row is.
        columns: Its columns in order.
        params: Parameters, of a report only.
        caveats: What to keep in mind; empty for nothing.
        sql: The statement without the header.
        materialize: Whether a session keeps the rows of this view in a table.
    """

    name: str
    description: str
    requires: tuple[str, ...]
    grain: str
    columns: tuple[ColumnDoc, ...]
    params: tuple[Param, ...]
    caveats: str
    sql: str
    materialize: bool = False

    @property
    def is_private(self) -> bool:
        """Whether it is a part of others, not for users."""
        return self.name.startswith("_")

    @property
    def select(self) -> str:
        """The query of a view."""
        return self.sql.removeprefix(f"CREATE VIEW {self.name} AS\n")


@dataclass(frozen=True)
class Library:
    """Views, each after those it requires, and reports by name."""

    views: tuple[Item, ...]
    reports: Mapping[str, Item]

    def report(self, name: str) -> Item:
        """Look a report up.

        Raises:
            CctraceError: Exit code 2; there is none of that name.
        """
        try:
            return self.reports[name]
        except KeyError:
            raise CctraceError(
                f"no report is named {name!r}",
                f"there are {', '.join(self.reports)}; see `cctrace query --list`",
                EXIT_USAGE,
            ) from None

    def closure(
        self, names: Iterable[str], given: Collection[str] = frozenset()
    ) -> tuple[Item, ...]:
        """Views among ``names`` and all they require, each after those it requires.

        Args:
            names: Names of views; of tables and anything else, which are left out.
            given: Views whose rows are there already: they and what only they require
                are left out.
        """
        needed: set[str] = set(names)
        for view in reversed(self.views):
            if view.name in needed and view.name not in given:
                needed.update(view.requires)
        return tuple(v for v in self.views if v.name in needed and v.name not in given)


def load_library(base: Iterable[str], root: Path | None = None) -> Library:
    """Read ``queries/views`` and ``queries/reports``.

    Args:
        base: Names of the relations that need no view: tables of the schema.
        root: The ``queries`` directory; the installed one unless given.

    Raises:
        CctraceError: A header is wrong, a required name unknown, or views require
            each other in a circle.
    """
    known = frozenset(base)
    return _load(known, root) if root else _load_installed(known)


@cache
def _load_installed(base: frozenset[str]) -> Library:
    return _load(base, resource_dir("queries"))


def _load(base: frozenset[str], root: Path) -> Library:
    views = {path.stem: parse_item(path) for path in sorted((root / "views").glob("*.sql"))}
    reports = {path.stem: parse_item(path) for path in sorted((root / "reports").glob("*.sql"))}
    for name, view in views.items():
        if name in base:
            raise CctraceError(f"view {name} has the name of a table")
        if view.params:
            raise CctraceError(f"view {name} has params, which only a report can have")
    for name, report in reports.items():
        if report.materialize:
            raise CctraceError(f"report {name} has materialize, which only a view can have")
    for item in [*views.values(), *reports.values()]:
        unknown = [r for r in item.requires if r not in base and r not in views]
        if unknown:
            raise CctraceError(f"{item.name} requires {', '.join(unknown)}, which is not there")
    sorter = TopologicalSorter(
        {name: [r for r in view.requires if r in views] for name, view in views.items()}
    )
    try:
        ordered = tuple(views[name] for name in sorter.static_order())
    except CycleError as error:
        raise CctraceError(f"views require each other: {' -> '.join(error.args[1])}") from error
    return Library(ordered, reports)


def parse_item(path: Path) -> Item:
    """Parse one SQL file.

    Raises:
        CctraceError: The header lacks a part, or names another object.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    header = [line[2:].rstrip() for line in lines[:end]]
    sql = "\n".join(lines[end:]).strip().removesuffix(";")
    title = re.fullmatch(r" (\w+): (.+)", header[0]) if header else None
    if title is None or title[1] != path.stem or not sql:
        raise CctraceError(f"{path} must start with `-- {path.stem}: what it is` and hold SQL")
    text: dict[str, list[str]] = {"description": [title[2]]}
    section = "description"
    for line in header[1:]:
        match = _SECTION.fullmatch(line.removeprefix(" "))
        if match:
            section = match[1]
            text[section] = [match[2]] if match[2] else []
        elif line.strip():
            text[section].append(line.removeprefix(" "))
    for needed in ("requires", "grain", "columns"):
        if needed not in text:
            raise CctraceError(f"{path} has no `-- {needed}:` in its header")
    return Item(
        name=path.stem,
        description=_joined(text["description"]),
        requires=tuple(n.strip() for n in _joined(text["requires"]).split(",") if n.strip()),
        grain=_joined(text["grain"]),
        columns=tuple(ColumnDoc(*entry) for entry in _entries(path, text["columns"])),
        params=tuple(_param(path, *entry) for entry in _entries(path, text.get("params", []))),
        caveats=_joined(text.get("caveats", [])),
        sql=sql,
        materialize=_flag(path, "materialize", _joined(text.get("materialize", ["no"]))),
    )


def _flag(path: Path, name: str, text: str) -> bool:
    if text not in {"yes", "no"}:
        raise CctraceError(f"{path}: {name} is yes or no, not {text!r}")
    return text == "yes"


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def _entries(path: Path, lines: list[str]) -> list[tuple[str, str, str]]:
    entries: list[tuple[str, str, str]] = []
    for line in lines:
        continued = _CONTINUED.fullmatch(line)
        match = _ENTRY.fullmatch(line)
        if continued and entries:
            name, kind, doc = entries[-1]
            entries[-1] = (name, kind, f"{doc} {continued[1]}")
        elif match and match[3]:
            entries.append((match[1], match[2], match[3]))
        else:
            raise CctraceError(f"{path}: expected `name  TYPE  meaning`, found {line.strip()!r}")
    return entries


def _param(path: Path, name: str, kind: str, doc: str) -> Param:
    type_name, equals, default = (part.strip() for part in kind.partition("="))
    if not equals:
        raise CctraceError(f"{path}: parameter {name} has no default: write `{kind} = VALUE`")
    try:
        return Param(name, type_name, _parse(type_name, default), doc)
    except ValueError:
        raise CctraceError(f"{path}: {default!r} is no {type_name}, default of {name}") from None


def _parse(kind: str, text: str) -> ParamValue:
    """Value of DuckDB type ``kind``; NULL stands for None.

    Raises:
        ValueError: ``text`` is no value of that type.
    """
    if text.upper() == "NULL":
        return None
    if kind == "BIGINT":
        value = int(text)
        if not -(2**63) <= value < 2**63:
            raise ValueError(text)
        return value
    if kind == "DOUBLE":
        return float(text)
    if kind == "BOOLEAN":
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError(text)
    if kind == "VARCHAR":
        return text
    raise CctraceError(f"a parameter cannot be of type {kind}")
