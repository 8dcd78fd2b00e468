"""What runs inside the engine: adapters that turn its steps into NVTX ranges.

``bootstrap/sitecustomize.py`` loads this folder as the package ``_cctrace_engine``
when a module that an adapter knows has been executed. Everything here must run on
CPython 3.8 and later with nothing but the standard library, must not import the
``cctrace`` package, and must never raise into the engine.

``emit`` calls NVTX, ``patch`` wraps methods, ``report`` tells the recorder what
was found, and there is one module per engine.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def adapt(adapter: str, module: ModuleType) -> None:
    """Let ``adapter`` hook the freshly executed engine ``module``, and report it.

    Args:
        adapter: Name of a module of this package: ``vllm`` or ``transformers``.
        module: The engine's module.
    """
    # Only here, so that what cannot be loaded is caught by the caller.
    report = import_module(".report", __name__)
    found = report.Report(adapter, module)
    try:
        import_module("." + adapter, __name__).adapt(module, found)
    except Exception as error:  # noqa: BLE001 - the engine comes first
        found.note(f"the adapter failed in {module.__name__}: {type(error).__name__}: {error}")
    found.send()
