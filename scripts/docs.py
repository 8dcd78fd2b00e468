"""Write the generated documents; with --check compare them instead.

docs/cli.md comes from the commands' own help, docs/queries.md from the headers of
the SQL library, and the marked parts of docs/run-format.md from the schema, the
manifest and the reasons for loss. So each is said once, beside the code.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from cctrace.cli import cli
from cctrace.schema import TABLES
from cctrace.store import losses, manifest
from cctrace.store.connection import relations
from cctrace.store.library import Item, load_library

DOCS = Path(__file__).resolve().parents[1] / "docs"
_WIDTH = 80
_CLI = """\
# Command line

Written by `make format` from the commands' own help; `make lint` checks that it is current.

stdout is data, stderr is talk. Exit statuses:

| status | meaning |
| --- | --- |
| 0 | all went well |
| 1 | it failed |
| 2 | wrong usage |
| 3 | a privilege, a kernel feature or a device is missing |
| 4 | the data are damaged, or of an unknown version |

`cctrace record` ends with the status of the command it ran: 128 + n where signal n ended it,
127 where it was not found, 126 where it could not be executed.
"""
_QUERIES = """\
# Views and named queries

Written by `make format` from the headers in `queries/`; `make lint` checks that it is current.

`cctrace query RUN SQL` and `cctrace.open(RUN).sql(SQL)` see one view for each table of
[the run format](run-format.md) and the views below. All have a column `run`, the label of the run,
since several runs can be asked at once. `cctrace query RUN --name NAME` runs a named query;
`--param name=value` sets its parameters.
"""


def render(name: str) -> str:
    """Text of the document ``name`` as it should be now."""
    if name == "cli.md":
        return _cli()
    if name == "queries.md":
        return _queries()
    return _run_format((DOCS / name).read_text(encoding="utf-8"))


def _cli() -> str:
    root = click.Context(cli, info_name="cctrace")
    sections = [_CLI, _command(cli, "cctrace")]
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        if command is None:
            raise LookupError(f"cctrace {name} is listed but cannot be loaded")
        sections.append(_command(command, f"cctrace {name}"))
    return "\n".join(sections)


def _command(command: click.Command, name: str) -> str:
    # Not a child context: its usage line would name the parent twice.
    context = click.Context(
        command, info_name=name, terminal_width=_WIDTH, help_option_names=["-h", "--help"]
    )
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    return "\n".join([f"## {name}", "", "```text", *lines, "```", ""])


def _queries() -> str:
    library = load_library(relations())
    views = sorted((v for v in library.views if not v.is_private), key=lambda view: view.name)
    sections = [_QUERIES, "## Views\n", *map(_item, views), "## Named queries\n"]
    return "\n".join([*sections, *(_item(library.reports[name]) for name in library.reports)])


def _item(item: Item) -> str:
    lines = [f"### {item.name}", "", f"{_sentence(item.description)} {_sentence(item.grain)}", ""]
    if item.params:
        lines += ["| parameter | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {p.name} | {p.type} | {_default(p.default)} | {_cell(p.doc)} |" for p in item.params
        ]
        lines += [""]
    lines += ["| column | type | meaning |", "| --- | --- | --- |"]
    lines += [f"| {c.name} | {c.type} | {_cell(c.doc)} |" for c in item.columns]
    lines += [""]
    if item.caveats and item.caveats != "none":
        lines += [_sentence(item.caveats), ""]
    return "\n".join(lines)


def _default(value: object) -> str:
    return "NULL" if value is None else str(value)


def _run_format(text: str) -> str:
    parts = {
        "tables": "\n".join(_table(name) for name in TABLES),
        "manifest": _attributes(manifest.Manifest),
        "source": _attributes(manifest.Source),
        "adapter": _attributes(manifest.HookReport),
        "losses": "\n".join(
            [
                "| reason | costs an event | what happened |",
                "| --- | --- | --- |",
                *(
                    f"| {name} | {'yes' if reason.loses_event else 'no'} | {_cell(reason.doc)} |"
                    for name, reason in losses.REASONS.items()
                ),
                "",
            ]
        ),
    }
    for name, part in parts.items():
        before, begin, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise LookupError(f"docs/run-format.md has no place for {name}")
        text = f"{before}{begin}\n{part}\n{end}{after}"
    return text


def _table(name: str) -> str:
    table = TABLES[name]
    lines = [f"### {name}", "", _sentence(f"one row: {table.doc}"), ""]
    lines += ["| column | type | NULL | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {c.name} | {_type(c.type)} | {'yes' if c.nullable else 'no'} | {_cell(c.doc)} |"
        for c in table.columns
    ]
    return "\n".join([*lines, ""])


def _type(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return "string"
    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        fields = ", ".join(f"{f.name} {f.type}" for f in kind.value_type)
        return f"list of struct ({fields})"
    if pa.types.is_list(kind):
        return f"list of {kind.value_type}"
    return "string" if pa.types.is_string(kind) else str(kind)


def _attributes(owner: type[Any]) -> str:
    """Fields of a dataclass, from the Attributes of its docstring."""
    doc = inspect.getdoc(owner) or ""
    entries: list[list[str]] = []
    for line in doc.partition("Attributes:\n")[2].splitlines():
        found = re.fullmatch(r" {4}(\w+): (.*)", line)
        if found:
            entries.append([found[1], found[2]])
        elif line.startswith(" " * 8) and entries:
            entries[-1][1] += " " + line.strip()
    rows = [f"| {name} | {_cell(_plain(text))} |" for name, text in entries]
    return "\n".join(["| field | meaning |", "| --- | --- |", *rows, ""])


def _plain(text: str) -> str:
    """A docstring's words as Markdown about JSON."""
    return re.sub(r"\bNone\b", "null", text.replace("``", "`"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def main() -> int:
    """Write the documents, or with --check return 1 where one is out of date."""
    stale = []
    for name in ("cli.md", "queries.md", "run-format.md"):
        path = DOCS / name
        text = render(name)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        print(f"out of date: docs/{', docs/'.join(stale)}: run `make format`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
