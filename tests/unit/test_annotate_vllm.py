"""The vLLM adapter on a small engine of vLLM's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from annotate_harness import Target

# One class of each kind the adapter hooks, with vLLM's names and call order.
FAKE_VLLM = {
    "vllm/__init__.py": "__version__ = '9.8.7'",
    "vllm/v1/utils.py": """
        import os

        _PROFILER_FUNC = None

        def record_function_or_nullcontext(name):
            if _PROFILER_FUNC is not None:
                return _PROFILER_FUNC(name)
            on = int(os.environ.get("VLLM_NVTX_SCOPES_FOR_PROFILING", "0"))
            return "nvtx of vLLM's" if on else "null"
    """,
    "vllm/v1/outputs.py": """
        from abc import ABC, abstractmethod

        class AsyncModelRunnerOutput(ABC):
            @abstractmethod
            def get_output(self):
                ...
    """,
    "vllm/v1/core/sched/interface.py": """
        from abc import ABC, abstractmethod

        class SchedulerInterface(ABC):
            @abstractmethod
            def schedule(self, throttle=False):
                ...

            @abstractmethod
            def update_from_output(self, scheduled, output):
                ...
    """,
    "vllm/v1/core/sched/scheduler.py": """
        from types import SimpleNamespace
        from vllm.v1.core.sched.interface import SchedulerInterface

        class Scheduler(SchedulerInterface):
            def __init__(self):
                self.left = {}

            def has_requests(self):
                return bool(self.left)

            def has_unfinished_requests(self):
                return any(n > 0 for n in self.left.values())

            def schedule(self, throttle=False):
                new = [r for r, n in self.left.items() if n == 3]
                old = [r for r, n in self.left.items() if 0 < n < 3]
                counts = {r: 5 for r in new} | {r: 1 for r in old}
                return SimpleNamespace(
                    num_scheduled_tokens=counts,
                    total_num_scheduled_tokens=sum(counts.values()),
                    scheduled_new_reqs=new,
                    scheduled_cached_reqs=SimpleNamespace(
                        req_ids=old, num_output_tokens=[3 - self.left[r] for r in old]
                    ),
                    scheduled_spec_decode_tokens={},
                )

            def update_from_output(self, scheduled, output):
                for request, count in list(self.left.items()):
                    self.left[request] = count - 1
                    if count == 0:  # finished a step ago: now it is forgotten
                        del self.left[request]
                return output
    """,
    "vllm/v1/engine/core.py": """
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.worker.gpu_model_runner import CPUModelRunner

        class EngineCore:
            def __init__(self, scheduler=None):
                self.scheduler = scheduler or Scheduler()
                self.runner = CPUModelRunner()
                self.batch_queue = None
                self.step_fn = self.step

            def add_request(self, request):
                self.scheduler.left[request] = 3

            def step(self):
                scheduled = self.scheduler.schedule()
                self.runner.execute_model(scheduled)
                output = self.runner.sample_tokens(None).get_output()
                done = self.scheduler.update_from_output(scheduled, output)
                return done, scheduled.total_num_scheduled_tokens > 0

            step_with_batch_queue = step

        class EngineCoreProc(EngineCore):
            def __init__(self, requests):
                super().__init__()
                self.requests = requests

            def has_work(self):
                return self.scheduler.has_requests()

            def _process_input_queue(self):
                while not self.has_work() and self.requests:
                    self.add_request(self.requests.pop())
    """,
    "vllm/v1/worker/gpu_model_runner.py": """
        from vllm.v1.utils import record_function_or_nullcontext
        from vllm.v1.outputs import AsyncModelRunnerOutput

        class Output(AsyncModelRunnerOutput):
            def get_output(self):
                return [11, 13]

        class GPUModelRunner:
            def execute_model(self, scheduler_output, intermediate_tensors=None):
                self._update_states(scheduler_output)
                self._prepare_inputs(scheduler_output)

            def _update_states(self, scheduler_output):
                pass

            def _prepare_inputs(self, scheduler_output):
                pass

            def sample_tokens(self, grammar_output):
                self._bookkeeping_sync()
                return Output()

            def _bookkeeping_sync(self):
                pass

            def load_model(self):
                return "loaded"

            def capture_model(self):
                return 7

        class CPUModelRunner(GPUModelRunner):
            def load_model(self):
                return super().load_model() + " on the CPU"
    """,
}
ONE_STEP = (
    "vllm.step( vllm.schedule( ) vllm.scheduled! vllm.execute_model( vllm.update_states( ) "
    "vllm.prepare_inputs( ) ) vllm.sample_tokens( vllm.bookkeeping_sync( ) ) vllm.get_output( ) "
    "vllm.update_from_output( ) )"
)
EMPTY_STEP = ONE_STEP.replace("vllm.scheduled! ", "")


@pytest.fixture
def target(tmp_path: Path) -> Target:
    # vLLM's scopes stay as they are, so that which are on does not depend on nvtx.
    target = Target(tmp_path, {"VLLM_NVTX_SCOPES_FOR_PROFILING": "0"})
    for name, text in FAKE_VLLM.items():
        target.write(name, text)
    return target


def test_a_step_is_told_with_its_parts_and_what_it_scheduled(target: Target) -> None:
    outcome = target.run(
        """
        from vllm.v1.engine.core import EngineCore
        core = EngineCore()
        core.add_request("a")
        core.add_request("b")
        for _ in range(4):
            print(core.step())
        """
    )
    assert outcome.stderr == ""
    # The fourth step only clears away what is finished: no mark, so no step.
    assert outcome.stdout == "([11, 13], True)\n" * 3 + "([11, 13], False)\n"
    assert outcome.shape == " ".join(["vllm.wait_for_requests( )", *[ONE_STEP] * 3, EMPTY_STEP])
    facts = [(e.category, e.payload) for e in outcome.named("vllm.scheduled")]
    assert facts == [("prefill", 2 << 32 | 10), ("decode", 2 << 32 | 2), ("decode", 2 << 32 | 2)]
    executed = [(e.category, e.payload) for e in outcome.named("vllm.execute_model")]
    assert executed == [*facts, (None, 0)]


def test_what_is_hooked_is_reported_by_module(target: Target) -> None:
    outcome = target.run("import vllm.v1.engine.core")
    hooked = {point for report in outcome.reports for point in report["hooked"]}
    assert hooked == {
        "AsyncModelRunnerOutput.get_output",
        "EngineCore.add_request",
        "EngineCore.step",
        "EngineCore.step_with_batch_queue",
        "EngineCoreProc._process_input_queue",
        "GPUModelRunner._bookkeeping_sync",
        "GPUModelRunner._prepare_inputs",
        "GPUModelRunner._update_states",
        "GPUModelRunner.capture_model",
        "GPUModelRunner.execute_model",
        "GPUModelRunner.load_model",
        "GPUModelRunner.sample_tokens",
        "Scheduler.schedule",
        "Scheduler.update_from_output",
    }
    assert {report["adapter"] for report in outcome.reports} == {"vllm"}
    assert {report["engine_version"] for report in outcome.reports} == {"9.8.7"}
    assert [report["missing"] for report in outcome.reports] == [[]] * len(outcome.reports)
    assert outcome.events == []


def test_only_an_idle_engine_waits(target: Target) -> None:
    outcome = target.run(
        """
        from vllm.v1.engine.core import EngineCoreProc
        core = EngineCoreProc(["b", "a"])
        while core.requests or core.has_work():
            core._process_input_queue()
            core.step_fn()
        """
    )
    # THEN each request is waited for once, and not between its steps
    names = [e.name for e in outcome.events if e.name in ("vllm.wait_for_requests", "vllm.step")]
    assert names == (["vllm.wait_for_requests"] + ["vllm.step"] * 4) * 2


def test_an_engine_in_the_programs_process_pauses_between_its_requests(target: Target) -> None:
    # GIVEN an engine called only while something is unfinished, as LLM.generate does
    outcome = target.run(
        """
        from vllm.v1.engine.core import EngineCore
        core = EngineCore()
        for request in "ab":
            core.add_request(request)
            while core.scheduler.has_unfinished_requests():
                core.step()
        """
    )
    names = [e.name for e in outcome.events if e.name in ("vllm.wait_for_requests", "vllm.step")]
    assert names == (["vllm.wait_for_requests"] + ["vllm.step"] * 3) * 2


def test_subclasses_are_hooked_where_they_override(target: Target) -> None:
    outcome = target.run(
        """
        import inspect, pickle
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.worker.gpu_model_runner import CPUModelRunner, GPUModelRunner

        class Ours(Scheduler):
            def schedule(self, throttle=False):
                '''Ours.'''
                return super().schedule(throttle)

        Ours().schedule(True)
        print(CPUModelRunner().load_model(), GPUModelRunner().capture_model())
        print(inspect.signature(Ours.schedule), Ours.schedule.__doc__, Ours.schedule.__name__)
        print(pickle.loads(pickle.dumps(GPUModelRunner.load_model)) is GPUModelRunner.load_model)
        """
    )
    assert outcome.stderr == ""
    assert outcome.stdout == ("loaded on the CPU 7\n(self, throttle=False) Ours. schedule\nTrue\n")
    # An override that calls what it overrides is one range.
    assert outcome.shape == "vllm.schedule( ) vllm.load_model( ) vllm.capture_model( )"


def test_an_error_in_a_step_closes_its_ranges(target: Target) -> None:
    outcome = target.run(
        """
        from vllm.v1.engine.core import EngineCore
        core = EngineCore()
        core.runner._prepare_inputs = lambda scheduled: 1 / 0
        for _ in range(2):
            try:
                core.step()
            except ZeroDivisionError as error:
                print(error)
        """
    )
    failing = "vllm.step( vllm.schedule( ) vllm.execute_model( vllm.update_states( ) ) )"
    assert outcome.stdout == "division by zero\n" * 2
    assert outcome.shape == f"{failing} {failing}"


def test_a_child_forked_inside_a_call_is_annotated(target: Target) -> None:
    outcome = target.run(
        """
        import os
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        class Forking(GPUModelRunner):
            def load_model(self):
                child = os.fork()
                if child == 0:
                    GPUModelRunner().load_model()
                    os._exit(0)
                os.waitpid(child, 0)

        Forking().load_model()
        """
    )
    assert outcome.shape == "vllm.load_model( vllm.load_model( ) )"
    assert len({event.pid for event in outcome.events}) == 2


def test_an_older_layout_runs_and_its_gaps_are_reported(target: Target) -> None:
    # GIVEN an engine without readback class, sample_tokens and batch queue
    target.write("vllm/v1/outputs.py", "class ModelRunnerOutput: pass")
    target.write(
        "vllm/v1/worker/gpu_model_runner.py",
        """
        class GPUModelRunner:
            def execute_model(self, scheduler_output):
                return [11, 13]

            async def load_model(self):
                return "later"
        """,
    )
    target.write(
        "vllm/v1/engine/core.py",
        """
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
        import vllm.v1.outputs

        class EngineCore:
            def step(self):
                scheduler = Scheduler()
                scheduler.left["a"] = 3
                scheduled = scheduler.schedule()
                return scheduler.update_from_output(
                    scheduled, GPUModelRunner().execute_model(scheduler_output=scheduled)
                )
        """,
    )
    outcome = target.run(
        """
        import asyncio
        from vllm.v1.engine.core import EngineCore, GPUModelRunner
        print(EngineCore().step(), asyncio.run(GPUModelRunner().load_model()))
        """
    )
    assert (outcome.stdout, outcome.stderr) == ("[11, 13] later\n", "")
    assert outcome.shape == (
        "vllm.step( vllm.schedule( ) vllm.scheduled! vllm.execute_model( ) "
        "vllm.update_from_output( ) )"
    )
    missing = {point for report in outcome.reports for point in report["missing"]}
    assert missing == {
        "AsyncModelRunnerOutput.get_output",
        "EngineCore.add_request",
        "EngineCore.step_with_batch_queue",
        "EngineCoreProc._process_input_queue",
        "GPUModelRunner._bookkeeping_sync",
        "GPUModelRunner._prepare_inputs",
        "GPUModelRunner._update_states",
        "GPUModelRunner.capture_model",
        "GPUModelRunner.load_model (asynchronous)",
        "GPUModelRunner.sample_tokens",
    }


def test_a_module_that_moved_away_is_missing(target: Target) -> None:
    (target.root / "vllm/v1/worker/gpu_model_runner.py").unlink()
    target.write("vllm/v1/engine/core.py", "class EngineCore:\n    def step(self): pass")
    outcome = target.run("import vllm.v1.engine.core")
    assert "vllm.v1.worker.gpu_model_runner" in outcome.reports[-1]["missing"]


class TestOwnScopes:
    """vLLM's own NVTX scopes, which need PyPI nvtx in its interpreter."""

    PROGRAM = """
        import os
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.utils import record_function_or_nullcontext
        print(record_function_or_nullcontext("forward"))
        core = EngineCore()
        core.add_request("a")
        core.step()
        print(os.environ.get("VLLM_NVTX_SCOPES_FOR_PROFILING"))
    """
    NVTX = "def annotate(name): return 'nvtx ' + name"

    def test_are_turned_on_where_nvtx_can_be_imported(self, target: Target) -> None:
        target.environment.clear()
        target.write("nvtx/__init__.py", self.NVTX)
        outcome = target.run(self.PROGRAM)
        # THEN no variable is set, since vLLM's compilation cache depends on them, and
        # what vLLM has a scope around is not wrapped a second time
        assert outcome.stdout == "nvtx forward\nNone\n"
        assert outcome.named("vllm.bookkeeping_sync") == []
        assert len(outcome.named("vllm.sample_tokens")) == 1
        assert [report["note"] for report in outcome.reports] == [None] * len(outcome.reports)

    @pytest.mark.parametrize("nvtx", ["raise ImportError('no')", "1 / 0", "other = 1"])
    def test_stay_off_where_it_cannot(self, target: Target, nvtx: str) -> None:
        target.environment.clear()
        target.write("nvtx/__init__.py", nvtx)
        outcome = target.run(self.PROGRAM)
        assert (outcome.status, outcome.stdout) == (0, "null\nNone\n")
        assert len(outcome.named("vllm.bookkeeping_sync")) == 1
        notes = [report["note"] for report in outcome.reports if report["note"]]
        assert len(notes) == 1
        assert notes[0].endswith("cannot import nvtx: pip install nvtx there")

    @pytest.mark.parametrize(
        ("choice", "scope", "wrapped"),
        [
            ({"VLLM_NVTX_SCOPES_FOR_PROFILING": "0"}, "null", 1),
            ({"VLLM_NVTX_SCOPES_FOR_PROFILING": "1"}, "nvtx of vLLM's", 0),
            ({"VLLM_CUSTOM_SCOPES_FOR_PROFILING": "1"}, "null", 1),
        ],
    )
    def test_are_the_users_choice(
        self, target: Target, choice: dict[str, str], scope: str, wrapped: int
    ) -> None:
        target.environment = choice
        target.write("nvtx/__init__.py", self.NVTX)
        outcome = target.run(self.PROGRAM)
        assert outcome.stdout.splitlines()[0] == scope
        assert len(outcome.named("vllm.bookkeeping_sync")) == wrapped
        assert [report["note"] for report in outcome.reports] == [None] * len(outcome.reports)

    def test_of_a_version_that_keeps_its_choice_elsewhere_are_left_off(
        self, target: Target
    ) -> None:
        target.environment.clear()
        target.write("nvtx/__init__.py", self.NVTX)
        target.write("vllm/v1/utils.py", "def record_function_or_nullcontext(name): return 'null'")
        outcome = target.run(self.PROGRAM)
        assert outcome.stdout == "null\nNone\n"
        assert len(outcome.named("vllm.bookkeeping_sync")) == 1
        assert [report["note"] for report in outcome.reports if report["note"]] == [
            "vLLM's own NVTX scopes are off: set VLLM_NVTX_SCOPES_FOR_PROFILING=1 to have them"
        ]
