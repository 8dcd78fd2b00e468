"""Write docs/cli.md from the commands' own help; with --check compare it instead."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cctrace.cli import cli

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
_WIDTH = 80
_INTRODUCTION = """\
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


def render() -> str:
    """Text of docs/cli.md for the commands as they are now."""
    root = click.Context(cli, info_name="cctrace")
    sections = [_INTRODUCTION, _command(cli, "cctrace")]
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


def main() -> int:
    """Write the document, or with --check return 1 where it is out of date."""
    text = render()
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(f"docs/{DOCUMENT.name} is out of date: make format", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
