"""Imports run one way, and only the command line prints or exits.

    cli -> record, analyze, exporters, importers, bench -> store -> schema

The part of annotate that runs inside the engine stands alone: the engine's Python
has neither cctrace nor what cctrace depends on.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "cctrace"
BASE = {"errors", "schema", "resources", "version"}
MAY_IMPORT: dict[str, set[str]] = {
    "cctrace": {"analyze", *BASE},  # cctrace.open: the package is in front of all layers
    "__main__": {"cli"},
    "cli": {"record", "analyze", "exporters", "importers", "bench", "store", *BASE},
    "record": {"annotate", "store", *BASE},
    "analyze": {"store", *BASE},
    "exporters": {"store", *BASE},
    "importers": {"store", *BASE},
    "bench": {"store", *BASE},
    "annotate": BASE,
    "store": BASE,
    "resources": {"errors"},
    "schema": set(),
    "errors": set(),
    "version": set(),
}
# Imported by the engine side only where the engine has them, or to chain to.
OF_THE_ENGINE = {"vllm", "transformers", "torch", "nvtx", "sitecustomize"}
ENGINE_SIDE = ("annotate/bootstrap", "annotate/engine")
# Children whose stdout is their answer to the process that started them.
ANSWER_ON_STDOUT = {"record/nvml.py", "record/selftest.py"}

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def _tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text("utf-8"), module)


def _layer(module: str) -> str:
    first = module.split("/", maxsplit=1)[0]
    return "cctrace" if module == "__init__.py" else first.removesuffix(".py")


def _imports(module: str) -> set[str]:
    """Every module that is imported anywhere in the file, by its full name."""
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["cctrace", *Path(module).parent.parts]
                base = ".".join([*package[: len(package) - node.level + 1], base]).rstrip(".")
            found.add(base)
            # `from cctrace import store` names a module as well.
            found |= {f"{base}.{alias.name}" for alias in node.names if base == "cctrace"}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    # GIVEN a module of some layer
    layer = _layer(module)
    # WHEN its imports of cctrace are listed
    imported = {
        name.split(".")[1]
        for name in _imports(module)
        if name.startswith("cctrace.") and name.split(".")[1] in MAY_IMPORT
    }
    # THEN they are its own or of a layer below
    assert imported <= MAY_IMPORT[layer] | {layer}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(ENGINE_SIDE)])
def test_engine_side_uses_the_standard_library_alone(module: str) -> None:
    # GIVEN a module that is loaded into the engine's process
    engine_side = {"cctrace.annotate.engine", "cctrace_engine"}
    # WHEN / THEN nothing but the standard library and its own package is imported
    # at load; the engine's own modules are imported where the engine is known to be
    at_load = {
        name
        for name in _imports(module)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(name.startswith(own) for own in engine_side)
    }
    assert {name.split(".")[0] for name in at_load} <= OF_THE_ENGINE


def _calls_and_raises(module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, (ast.Call, ast.Attribute, ast.Name)):
            text = ast.unparse(node.func if isinstance(node, ast.Call) else node)
            if isinstance(node, ast.Call) or text.startswith(("sys.std", "SystemExit")):
                found.add(text)
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("cli/")])
def test_only_the_command_line_prints_or_exits(module: str) -> None:
    # GIVEN a module outside cctrace/cli
    used = _calls_and_raises(module)
    # WHEN / THEN it neither prints nor ends the process
    talk = {"print", "sys.exit", "exit", "quit", "os._exit", "SystemExit", "click.echo"}
    assert not used & talk
    if module not in ANSWER_ON_STDOUT:
        assert not {name for name in used if name.startswith(("sys.stdout", "sys.stderr"))}


def test_every_layer_is_known() -> None:
    # GIVEN the folders and files of the package; WHEN / THEN each has its rule above
    assert {_layer(module) for module in MODULES} <= set(MAY_IMPORT)
