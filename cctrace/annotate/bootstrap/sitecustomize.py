"""Hook the engine's modules as they are imported; runs in every traced Python.

The recorder puts this directory first on PYTHONPATH, so that ``site`` finds this
file as ``sitecustomize``. It steps aside at once: it leaves ``sys.path`` and
``sys.modules``, and imports the sitecustomize that would have been found without
it, so that one's module entry, output and errors are as before. What stays is one
entry of ``sys.meta_path``, which costs a dictionary lookup per import until a
module of ``ENGINE_MODULES`` is really executed; only then is anything else of
cctrace loaded.

It runs in the engine's interpreter, before everything else: CPython 3.8 or later,
standard library only, and nothing of the ``cctrace`` package.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False  # importing typing would cost more than all of this
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# What the adapters hook into, and which adapter it is; a test keeps the two equal.
ENGINE_MODULES = {
    "transformers.generation.utils": "transformers",
    "transformers.modeling_utils": "transformers",
    "vllm.v1.core.sched.interface": "vllm",
    "vllm.v1.core.sched.scheduler": "vllm",
    "vllm.v1.engine.core": "vllm",
    "vllm.v1.outputs": "vllm",
    "vllm.v1.utils": "vllm",
    "vllm.v1.worker.gpu.model_runner": "vllm",
    "vllm.v1.worker.gpu_model_runner": "vllm",
}

_HERE = os.path.dirname(__file__)
_PACKAGE = "_cctrace_engine"
_MARK = "_cctrace_hooked"


class _EngineFinder:
    """Find nothing itself; hook the loaders that others find for engine modules."""

    def __init__(self) -> None:
        self._searching: set[tuple[str, int]] = set()  # (name, thread) pairs under way

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that would be found without us, its loader hooked."""
        if fullname not in ENGINE_MODULES:
            return None
        search = (fullname, get_ident())
        if search in self._searching:  # another tool's finder asks around as we do
            return None
        self._searching.add(search)
        try:
            for finder in list(sys.meta_path):
                if finder is self or not hasattr(finder, "find_spec"):
                    continue
                spec: ModuleSpec | None = finder.find_spec(fullname, path, target)
                if spec is not None:
                    _hook(spec.loader)
                    return spec
        finally:
            self._searching.discard(search)
        return None


def _hook(loader: Any) -> None:
    # The instance's method is replaced, not the loader, so that its type and all
    # its other methods stay. One loader can serve several modules (zip files).
    try:
        if hasattr(loader, _MARK) or isinstance(loader, type):
            return  # a class that loads is Python's own, for built-in modules
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _adapt(module)

        loader.exec_module = exec_module
        setattr(loader, _MARK, True)
    except Exception:  # noqa: BLE001, S110 - an unhookable loader still loads
        pass


def _adapt(module: ModuleType) -> None:
    try:
        adapter = ENGINE_MODULES.get(module.__name__)
        if adapter is not None:
            _engine_package().adapt(adapter, module)
    except Exception:  # noqa: BLE001, S110 - the engine comes first
        pass


def _engine_package() -> Any:
    package: Any = sys.modules.get(_PACKAGE)
    if package is None:
        from importlib import util  # noqa: PLC0415 - not before an engine is there

        directory = os.path.join(os.path.dirname(_HERE), "engine")
        spec: Any = util.spec_from_file_location(
            _PACKAGE,
            os.path.join(directory, "__init__.py"),
            submodule_search_locations=[directory],
        )
        package = util.module_from_spec(spec)
        sys.modules[_PACKAGE] = package
        try:
            spec.loader.exec_module(package)
        except BaseException:
            sys.modules.pop(_PACKAGE, None)
            raise
    return package


if os.environ.get("CCTRACE_EMIT") and os.environ.get("CCTRACE_SOCKET"):
    sys.meta_path.insert(0, _EngineFinder())

# Step aside. `site` takes the ImportError of a sitecustomize that is not there as
# "none", which is what there would be without this file.
sys.path[:] = [entry for entry in sys.path if entry != _HERE]
sys.modules.pop("sitecustomize", None)
import sitecustomize  # type: ignore[import-not-found]  # noqa: E402, F401 - the next on the path
