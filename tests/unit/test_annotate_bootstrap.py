"""The import hook: what it does to a Python that has an engine, and one that has none."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from annotate_harness import Outcome, Target

from cctrace import annotate
from cctrace.annotate.engine import transformers, vllm

ENGINE_DIR = Path(annotate.__file__).resolve().parent / "engine"
OTHER_PYTHONS = os.environ.get("CCTRACE_TEST_PYTHONS", "").split(os.pathsep)

# What a program can see of the start-up: with and without us it must be the same.
LOOK_AROUND = """
    import sys
    found = sys.modules.get("sitecustomize")
    print("module", getattr(found, "__file__", None))
    print("path", [entry for entry in sys.path])
    print("finders", len(sys.meta_path) - {extra})
    print("ours", [name for name in sys.modules if "_cctrace" in name and "editable" not in name])
    print("ctypes", "ctypes" in sys.modules, "inspect" in sys.modules)
"""
# A scheduler as vLLM's, small enough for these tests.
SCHEDULER = """
    class Scheduler:
        def schedule(self):
            return "scheduled"

        def update_from_output(self):
            return "updated"
"""
USE_SCHEDULER = """
    from vllm.v1.core.sched.scheduler import Scheduler
    print(Scheduler().schedule(), Scheduler().update_from_output())
"""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path)


def both_ways(target: Target, flags: tuple[str, ...] = ()) -> tuple[Outcome, Outcome]:
    without = target.run(LOOK_AROUND.format(extra=0), annotated=False, flags=flags)
    extra = 0 if flags else 1
    return without, target.run(LOOK_AROUND.format(extra=extra), flags=flags)


def test_a_program_without_an_engine_sees_nothing_of_us(target: Target) -> None:
    without, with_us = both_ways(target)
    assert with_us.stdout == without.stdout
    # Debian's Python has a sitecustomize of its own; either way it is not ours.
    assert "bootstrap" not in with_us.stdout.splitlines()[0]
    assert (with_us.status, with_us.stderr) == (0, "")
    assert with_us.reports == []


def test_an_existing_sitecustomize_runs_as_if_alone(target: Target) -> None:
    # GIVEN a sitecustomize of the user's that looks at its own surroundings
    target.write(
        "sitecustomize.py",
        """
        import sys
        print("user's", __name__, __file__, sys.modules[__name__].__file__ == __file__)
        print("spec", __spec__.name, __spec__.origin)
        """,
    )
    without, with_us = both_ways(target)
    # THEN it ran once and is the module that later imports get
    assert with_us.stdout == without.stdout
    assert with_us.stdout.count("user's sitecustomize") == 1
    assert f"module {target.root}/sitecustomize.py" in with_us.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "raise RuntimeError('mine')",
        "import no_such_module",
        "raise ImportError('odd', name='sitecustomize')",
        "raise SystemExit(7)",
        "def broken(:",
    ],
)
def test_errors_of_an_existing_sitecustomize_are_as_before(target: Target, statement: str) -> None:
    target.write("sitecustomize.py", statement)
    without, with_us = both_ways(target)
    assert (with_us.status, with_us.stdout) == (without.status, without.stdout)
    if "SystemExit" not in statement:  # that one is a traceback through our import
        assert with_us.stderr == without.stderr


def test_usercustomize_still_runs(target: Target) -> None:
    # A virtual environment without the system's packages has no user site.
    target.write("usercustomize.py", "print('user customized')")
    without, with_us = both_ways(target)
    assert with_us.stdout == without.stdout


@pytest.mark.parametrize("flag", ["-S", "-I", "-E"])
def test_a_python_that_ignores_us_is_unchanged(target: Target, flag: str) -> None:
    # -I and -E ignore PYTHONPATH, -S does not run site: the engine goes unannotated.
    without, with_us = both_ways(target, (flag,))
    assert "ours []" in with_us.stdout
    assert with_us.status == 0
    if flag != "-S":
        assert with_us.stdout == without.stdout


def test_nothing_is_hooked_where_the_recorder_is_absent(target: Target) -> None:
    env = target.env(None)
    del env["CCTRACE_SOCKET"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; print(len(sys.meta_path), 'sitecustomize' in sys.modules)",
        ],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    plain = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; print(len(sys.meta_path), 'sitecustomize' in sys.modules)",
        ],
        env=target.env(None, annotated=False),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == plain.stdout


def test_an_engine_is_hooked_when_its_module_runs(target: Target) -> None:
    target.write("vllm/v1/core/sched/scheduler.py", SCHEDULER)
    outcome = target.run(USE_SCHEDULER)
    assert outcome.stdout == "scheduled updated\n"
    assert outcome.shape == "vllm.schedule( ) vllm.update_from_output( )"
    assert {event.domain for event in outcome.events} == {"cctrace"}
    assert outcome.reports == [
        {
            "adapter": "vllm",
            "engine_version": None,
            "hooked": ["Scheduler.schedule", "Scheduler.update_from_output"],
            "missing": [],
            "note": None,
        }
    ]


def test_asking_for_an_engine_is_not_importing_it(target: Target) -> None:
    target.write("vllm/v1/core/sched/scheduler.py", SCHEDULER)
    outcome = target.run(
        """
        import importlib.machinery, importlib.util, sys
        spec = importlib.util.find_spec("vllm.v1.core.sched.scheduler")
        print(type(spec.loader) is importlib.machinery.SourceFileLoader, spec.origin[-12:])
        print("vllm.v1.core.sched.scheduler" in sys.modules, "ctypes" in sys.modules)
        print(importlib.util.find_spec("vllm.v1.outputs"))
        """
    )
    assert outcome.stdout == "True scheduler.py\nFalse False\nNone\n"
    assert outcome.reports == []


def test_a_reloaded_and_a_lazily_loaded_module_are_hooked(target: Target) -> None:
    target.write("vllm/v1/core/sched/scheduler.py", SCHEDULER)
    outcome = target.run(
        """
        import importlib, importlib.util, sys
        name = "vllm.v1.core.sched.scheduler"
        spec = importlib.util.find_spec(name)
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        print(module.Scheduler().schedule())
        importlib.reload(module)
        print(module.Scheduler().schedule())
        """
    )
    assert outcome.stdout == "scheduled\nscheduled\n"
    assert outcome.shape == "vllm.schedule( ) vllm.schedule( )"


def test_an_engine_in_a_zip_file_is_hooked(target: Target) -> None:
    # All modules of a zip file have one loader.
    target.write("src/vllm/v1/core/sched/scheduler.py", SCHEDULER)
    target.write("src/vllm/v1/outputs.py", "class AsyncModelRunnerOutput: pass")
    with zipfile.ZipFile(target.root / "engine.zip", "w") as archive:
        for path in (target.root / "src").rglob("*.py"):
            archive.write(path, path.relative_to(target.root / "src"))
    target.environment["PYTHONPATH"] = str(target.root / "engine.zip")
    outcome = target.run(
        "import vllm.v1.outputs\n" + "\n".join(map(str.strip, USE_SCHEDULER.splitlines()))
    )
    assert outcome.stderr == ""
    assert outcome.shape == "vllm.schedule( ) vllm.update_from_output( )"
    assert [report["missing"] for report in outcome.reports] == [
        ["AsyncModelRunnerOutput.get_output"],
        [],
    ]


def test_a_namespace_package_and_another_hook_get_along(target: Target) -> None:
    # GIVEN an engine without __init__.py, and a finder that asks around as ours does
    target.write("vllm/v1/core/sched/scheduler.py", SCHEDULER)
    for init in (target.root / "vllm").rglob("__init__.py"):
        init.unlink()
    outcome = target.run(
        """
        import importlib.util, sys

        class Asking:
            busy = False
            def find_spec(self, name, path=None, target=None):
                if not name.startswith("vllm.") or self.busy:
                    return None
                self.busy = True
                try:
                    return importlib.util.find_spec(name)
                finally:
                    self.busy = False

        sys.meta_path.insert(0, Asking())
        from vllm.v1.core.sched.scheduler import Scheduler
        print(Scheduler().schedule())
        """
    )
    assert (outcome.stdout, outcome.stderr) == ("scheduled\n", "")
    assert outcome.shape == "vllm.schedule( )"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_are_annotated(target: Target, method: str) -> None:
    target.write("vllm/v1/core/sched/scheduler.py", SCHEDULER)
    outcome = target.run(
        f"""
        import multiprocessing

        def child():
            from vllm.v1.core.sched.scheduler import Scheduler
            Scheduler().schedule()

        if __name__ == "__main__":
            from vllm.v1.core.sched.scheduler import Scheduler
            Scheduler().schedule()
            process = multiprocessing.get_context("{method}").Process(target=child)
            process.start()
            process.join()
            print(process.exitcode, process.pid)
        """
    )
    exit_code, pid = map(int, outcome.stdout.split())
    assert exit_code == 0
    pushed = [event.pid for event in outcome.events if event.kind == "push"]
    assert len(pushed) == 2
    assert pushed[1] == pid != pushed[0]


def test_an_engine_that_fails_to_import_fails_as_before(target: Target) -> None:
    target.write("vllm/v1/core/sched/scheduler.py", "raise ValueError('not today')")
    outcome = target.run(USE_SCHEDULER)
    assert outcome.status == 1
    assert "ValueError: not today" in outcome.stderr
    assert outcome.reports == []


def test_a_layout_the_adapter_does_not_know_is_reported(target: Target) -> None:
    target.write("vllm/v1/core/sched/scheduler.py", "answer = 42")
    outcome = target.run("from vllm.v1.core.sched.scheduler import answer\nprint(answer)")
    assert (outcome.stdout, outcome.stderr) == ("42\n", "")
    assert outcome.reports[0]["hooked"] == []
    assert outcome.reports[0]["missing"] == ["Scheduler.schedule", "Scheduler.update_from_output"]


def test_an_adapter_that_fails_is_reported_and_harmless(target: Target) -> None:
    # A metaclass that lets nobody change its classes.
    target.write(
        "vllm/v1/core/sched/scheduler.py",
        """
        class Frozen(type):
            def __setattr__(cls, name, value):
                raise TypeError("frozen")

        class Scheduler(metaclass=Frozen):
            def schedule(self):
                return "scheduled"

            def update_from_output(self):
                return "updated"
        """,
    )
    outcome = target.run(USE_SCHEDULER)
    assert (outcome.stdout, outcome.stderr) == ("scheduled updated\n", "")
    assert outcome.reports[0]["note"] == (
        "the adapter failed in vllm.v1.core.sched.scheduler: TypeError: frozen"
    )


def test_a_dead_recorder_and_a_missing_library_cost_nothing_but_the_events(target: Target) -> None:
    target.write("vllm/v1/core/sched/scheduler.py", SCHEDULER)
    script = target.write("program.py", USE_SCHEDULER)
    env = target.env(None) | {"CCTRACE_EMIT": str(target.root / "no-such-library.so")}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "scheduled updated\n", "")


@pytest.mark.parametrize("python", OTHER_PYTHONS)
def test_other_pythons_are_annotated(target: Target, python: str) -> None:
    if not python:
        pytest.skip("CCTRACE_TEST_PYTHONS names no other interpreters (separated by colons)")
    target.write("vllm/v1/core/sched/scheduler.py", SCHEDULER)
    outcome = target.run(USE_SCHEDULER, python=python)
    assert (outcome.stdout, outcome.stderr) == ("scheduled updated\n", "")
    assert outcome.shape == "vllm.schedule( ) vllm.update_from_output( )"
    assert len(outcome.reports) == 1


@pytest.mark.parametrize(
    "path", [*ENGINE_DIR.glob("*.py"), annotate.bootstrap_dir() / "sitecustomize.py"], ids=str
)
def test_the_engine_side_is_old_python_and_imports_the_standard_library_only(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imported.add(node.module.split(".")[0])
    allowed = set(sys.stdlib_module_names) | {"sitecustomize"}
    if path.name == "transformers.py":
        allowed.add("torch")  # in a function, once the engine has imported it
    assert imported <= allowed


def test_the_bootstrap_watches_what_the_adapters_hook() -> None:
    # Read as text: importing it would chain to this Python's own sitecustomize.
    source = (annotate.bootstrap_dir() / "sitecustomize.py").read_text()
    tables = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ENGINE_MODULES"
    ]
    watched = ast.literal_eval(tables[0].value)
    known = dict.fromkeys(vllm.MODULES, "vllm")
    assert watched == known | dict.fromkeys(transformers.MODULES, "transformers")


def test_the_bootstrap_directory_holds_nothing_else() -> None:
    # It is on the path of every traced Python until ours has run.
    names = sorted(path.name for path in annotate.bootstrap_dir().glob("*.py"))
    assert names == ["sitecustomize.py"]
