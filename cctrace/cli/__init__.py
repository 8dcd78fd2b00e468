"""The command line: one file per command, loaded when it is called.

The only code of cctrace that prints or exits. stdout is data, stderr is talk.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from cctrace.cli.units import harmless
from cctrace.errors import EXIT_FAILED, CctraceError
from cctrace.version import VERSION

# Name, and the one line `cctrace --help` shows; kept here so that help costs no
# import of DuckDB or Arrow.
_COMMANDS: Final = {
    "record": "Run a command and record what it does.",
    "info": "Show what is in a run, how it ended and what was lost.",
    "query": "Ask a run with SQL or a named query.",
    "report": "Tell which call holds the loop up, and what gives the time back.",
    "flamegraph": "Show where time goes, by thread, NVTX range, call and stack.",
    "export": "Write a run in another tool's format.",
    "import": "Write what another tool recorded as a run.",
    "doctor": "Tell what can be traced on this machine.",
}
_MODULES: Final = {"import": "import_run"}  # where a module cannot have the command's name


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"cctrace.cli.{_MODULES.get(cmd_name, cmd_name)}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"cctrace.cli.{cmd_name}.command is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="cctrace")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def cli(debug: bool) -> None:  # noqa: FBT001 - click passes by keyword
    """Find which CPU-GPU crossing holds an LLM engine's decode loop up.

    cctrace watches from the CPU side, so it works where CUPTI may not: inside a
    confidential VM with the GPU in confidential-computing mode.

    \b
    Example:
      cctrace record -o run -- python serve.py
      cctrace query run --name steps
    """
    _ = debug  # read from sys.argv by main, so that it covers start-up too


def main() -> None:
    """Entry point of the ``cctrace`` script."""
    debug = "--debug" in sys.argv[1:2]
    try:
        code = cli(standalone_mode=False)
    except CctraceError as error:
        if debug:
            raise
        fail(error)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("cctrace: interrupted", err=True)
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:
        # The reader of our stdout has gone (`| head`): nothing more to say.
        sys.stderr.close()
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if debug:
            raise
        fail(
            CctraceError(
                f"internal error: {type(error).__name__}: {error}",
                "run `cctrace --debug ...` for the traceback and report it",
            )
        )
    sys.exit(code if isinstance(code, int) else 0)


def fail(error: CctraceError) -> None:
    """Print an error with its hint on stderr and end with its exit code."""
    # Messages quote what they failed on, which may be the target's own words.
    # DuckDB's point at a place on a second line; only ours start at the margin.
    lines = [harmless(line) for line in error.message.split("\n") if line.strip()]
    click.echo("\n  ".join([f"cctrace: {lines[0] if lines else ''}", *lines[1:]]), err=True)
    if error.hint:
        click.echo(f"hint: {harmless(error.hint)}", err=True)
    sys.exit(error.exit_code)
