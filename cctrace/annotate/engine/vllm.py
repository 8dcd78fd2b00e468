"""vLLM v1: the engine's step, its parts, and what each step scheduled.

Hook points are those of vLLM 0.32; docs/engines.md says what older versions lack.
The phase rule is that of vLLM's own ``compute_iteration_details`` (a request is in
prefill until it has an output token), except that a request recomputing its context
after a preemption counts as prefill too.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module, util
from typing import TYPE_CHECKING, Any

from . import emit
from .patch import Hook, cover, ranged

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from .report import Report

# vLLM's own scopes: the variables that choose what they do (NVTX needs PyPI nvtx in
# vLLM's Python), the function that makes one, and where it keeps its choice.
_NVTX_SCOPES = "VLLM_NVTX_SCOPES_FOR_PROFILING"
_CUSTOM_SCOPES = "VLLM_CUSTOM_SCOPES_FOR_PROFILING"
_SCOPE = "record_function_or_nullcontext"
_SCOPE_MAKER = "_PROFILER_FUNC"

_SCHEDULED = emit.PhasedEvent("vllm.scheduled")
_EXECUTE = emit.PhasedEvent("vllm.execute_model")
_WAIT = emit.Event("vllm.wait_for_requests")


def phase_of(scheduled: Any) -> tuple[str, int, int]:
    """Tell phase, requests and tokens of a ``SchedulerOutput``.

    Args:
        scheduled: vLLM's ``SchedulerOutput``.

    Returns:
        Phase (``prefill``, ``decode`` or ``mixed``; empty where nothing is
        scheduled), number of requests, number of tokens scheduled.
    """
    counts = scheduled.num_scheduled_tokens
    requests = len(counts)
    tokens: int = scheduled.total_num_scheduled_tokens
    if not requests:
        return "", 0, tokens
    drafts = getattr(scheduled, "scheduled_spec_decode_tokens", None) or {}
    # Every request has at least one token that is no draft of speculative decoding,
    # and a decoding one has no other.
    all_single = tokens - sum(map(len, drafts.values())) == requests
    cached = scheduled.scheduled_cached_reqs
    outputs = getattr(cached, "num_output_tokens", None)
    if outputs is None:  # older versions do not say which of them have output
        if all_single:
            prefills = len(scheduled.scheduled_new_reqs)
        else:
            prefills = sum(n - len(drafts.get(r, ())) > 1 for r, n in counts.items())
    else:
        prefills = len(scheduled.scheduled_new_reqs) + outputs.count(0)
        if not all_single:
            for position, request in enumerate(cached.req_ids):
                if outputs[position] and counts[request] - len(drafts.get(request, ())) > 1:
                    prefills += 1
    if not prefills:
        return "decode", requests, tokens
    return ("prefill" if prefills >= requests else "mixed"), requests, tokens


def _schedule(original: Callable[..., Any]) -> Callable[..., Any]:
    within = ranged("vllm.schedule")(original)

    def call(*args: Any, **kwargs: Any) -> Any:
        scheduled = within(*args, **kwargs)
        try:
            # vLLM counts no step that schedules no token, so neither do we.
            if scheduled.total_num_scheduled_tokens > 0:
                _SCHEDULED.mark(*phase_of(scheduled))
        except Exception:  # noqa: BLE001, S110 - another version's output
            pass
        return scheduled

    return call


def _execute_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            phase = phase_of(args[1] if len(args) > 1 else kwargs["scheduler_output"])
        except Exception:  # noqa: BLE001 - another version's arguments
            phase = ("", 0, 0)
        _EXECUTE.push(*phase)
        try:
            return original(*args, **kwargs)
        finally:
            emit.pop()

    return call


def _has_no_work(engine: Any) -> bool:
    """Tell whether the busy loop of ``engine`` is about to wait for a request."""
    try:
        has_work = getattr(engine, "has_work", None)
        if has_work is not None:
            return not has_work()
        return not (
            getattr(engine, "engines_running", False)
            or engine.scheduler.has_requests()
            or getattr(engine, "batch_queue", None)
        )
    except Exception:  # noqa: BLE001 - another version's engine
        return False


def _is_paused(engine: Any) -> bool:
    """Tell whether nobody has a reason to call an engine in the caller's own process."""
    try:
        # What is finished but not yet forgotten is no reason, so not has_requests().
        return not (
            hasattr(engine, "_process_input_queue") or engine.scheduler.has_unfinished_requests()
        )
    except Exception:  # noqa: BLE001 - another version's engine
        return False


def _wait(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _has_no_work(args[0]):
            return original(*args, **kwargs)
        _WAIT.push()
        try:
            return original(*args, **kwargs)
        finally:
            emit.pop()

    return call


def _add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    # An engine in the caller's own process does not wait: it is not called. Its
    # first request after a pause ends the pause, so that the time in between is
    # not taken for a step.
    def call(*args: Any, **kwargs: Any) -> Any:
        if _is_paused(args[0]):
            _WAIT.push()
            emit.pop()
        return original(*args, **kwargs)

    return call


_SCHEDULER = [
    Hook("schedule", _schedule),
    Hook("update_from_output", ranged("vllm.update_from_output")),
]
_STEP = ranged("vllm.step")
_CORE = [
    Hook("step", _STEP),
    Hook("step_with_batch_queue", _STEP),
    Hook("add_request", _add_request),
]
_CORE_PROC = [Hook("_process_input_queue", _wait)]
_READBACK = [Hook("get_output", ranged("vllm.get_output"))]
_RUNNER_COMMON = [
    Hook("execute_model", _execute_model),
    Hook("sample_tokens", ranged("vllm.sample_tokens")),
    Hook("load_model", ranged("vllm.load_model")),
    Hook("capture_model", ranged("vllm.capture_model")),
]
_RUNNER = [
    Hook("_prepare_inputs", ranged("vllm.prepare_inputs")),
    Hook("_update_states", ranged("vllm.update_states")),
]
_BOOKKEEPING = [Hook("_bookkeeping_sync", ranged("vllm.bookkeeping_sync"))]
_RUNNER_V2 = [
    Hook("prepare_inputs", ranged("vllm.prepare_inputs")),
    Hook("update_requests", ranged("vllm.update_states")),
]


def _turn_scopes_on(utils: ModuleType, found: Report) -> None:
    """Have vLLM emit its own NVTX scopes, unless the user decided about them.

    The variable would do it too, but vLLM makes its variables part of the key of its
    compilation cache: a recorded run would compile everything anew.
    """
    if _NVTX_SCOPES in os.environ or _CUSTOM_SCOPES in os.environ:
        return
    if not hasattr(utils, _SCOPE):
        return  # a version without scopes
    try:
        annotate = import_module("nvtx").annotate
    except Exception:  # noqa: BLE001 - absent, not for this interpreter, or broken
        found.note(
            "vLLM's own NVTX scopes (forward, preprocess, postprocess, ...) are off, because "
            "its interpreter cannot import nvtx: pip install nvtx there"
        )
        return
    if vars(utils).get(_SCOPE_MAKER, utils) is not None:
        found.note(f"vLLM's own NVTX scopes are off: set {_NVTX_SCOPES}=1 to have them")
        return
    setattr(utils, _SCOPE_MAKER, annotate)
    found.hooked.append(_SCOPE)


def _scopes_are_on(runner: ModuleType) -> bool:
    if not hasattr(runner, _SCOPE):
        return False
    if getattr(sys.modules.get("vllm.v1.utils"), _SCOPE_MAKER, None) is not None:
        return True  # by us; by itself vLLM does it at the first scope
    try:
        on = bool(int(os.environ.get(_NVTX_SCOPES, "0")))
        custom = bool(int(os.environ.get(_CUSTOM_SCOPES, "0")))
    except ValueError:
        return False
    return on and not custom


def _adapt_core(module: ModuleType, found: Report) -> None:
    cover(module, "EngineCore", _CORE, found)
    cover(module, "EngineCoreProc", _CORE_PROC, found)
    # What this version may have moved away would never be imported, nor missed.
    for name in ("vllm.v1.core.sched.scheduler", "vllm.v1.worker.gpu_model_runner"):
        try:
            there = name in sys.modules or util.find_spec(name) is not None
        except (ImportError, ValueError, AttributeError):
            there = False
        if not there:
            found.missing.append(name)


def _adapt_scheduler(module: ModuleType, found: Report) -> None:
    cover(module, "Scheduler", _SCHEDULER, found)


def _adapt_scheduler_interface(module: ModuleType, found: Report) -> None:
    cover(module, "SchedulerInterface", _SCHEDULER, found, quiet=True)


def _adapt_outputs(module: ModuleType, found: Report) -> None:
    cover(module, "AsyncModelRunnerOutput", _READBACK, found)


def _adapt_runner(module: ModuleType, found: Report) -> None:
    # vLLM's own scope "gpu_model_runner: bookkeep" is around that very call.
    extra = [] if _scopes_are_on(module) else _BOOKKEEPING
    cover(module, "GPUModelRunner", _RUNNER_COMMON + _RUNNER + extra, found)


def _adapt_runner_v2(module: ModuleType, found: Report) -> None:
    cover(module, "GPUModelRunner", _RUNNER_COMMON + _RUNNER_V2, found)


_ADAPT: dict[str, Callable[[ModuleType, Report], None]] = {
    "vllm.v1.core.sched.interface": _adapt_scheduler_interface,
    "vllm.v1.core.sched.scheduler": _adapt_scheduler,
    "vllm.v1.engine.core": _adapt_core,
    "vllm.v1.outputs": _adapt_outputs,
    "vllm.v1.utils": _turn_scopes_on,
    "vllm.v1.worker.gpu.model_runner": _adapt_runner_v2,
    "vllm.v1.worker.gpu_model_runner": _adapt_runner,
}
MODULES = tuple(_ADAPT)


def adapt(module: ModuleType, found: Report) -> None:
    """Hook one freshly executed module of vLLM.

    Args:
        module: One of ``MODULES``.
        found: Told what was hooked and what is missing.
    """
    _ADAPT[module.__name__](module, found)
