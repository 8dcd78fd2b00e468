"""Hugging Face transformers: generate, its forwards, input preparation, sampling.

``generate`` drives everything on one thread, so each call keeps a frame that knows
which part is open. A part ends where the next begins, and the frame closes what an
exception or an early exit left open.

The forward is told by module hooks that are on the model only while it generates.
They see the plain ``model(...)``; calls of compiled ones are wrapped from outside
instead, because nothing of ours may be traced into a compiled graph.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from . import emit
from .patch import Hook, cover

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from .patch import Wrap
    from .report import Report

_GENERATE = emit.Event("transformers.generate")
_DRAFT = emit.Event("transformers.draft")
_PREPARE = emit.Event("transformers.prepare_inputs")
_SAMPLE = emit.Event("transformers.sample")
_FORWARD = emit.PhasedEvent("transformers.forward")

# Where a forward finds the positions it works on, in this order.
_INPUTS = ("decoder_input_ids", "input_ids", "decoder_inputs_embeds", "inputs_embeds")


class _Frames(threading.local):
    """The thread's ``generate`` calls under way, innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Frame] = []


class _Frame:
    """One ``generate`` call: whose, what part is open, and whether it has sampled.

    Args:
        model: The generating model; None for one whose parts are not told.
    """

    __slots__ = ("_open", "in_compiled", "in_prefill", "model", "sampled")

    def __init__(self, model: Any) -> None:
        self.model = model
        self.in_compiled = False  # its call is seen from outside
        self.in_prefill = False  # between its chunks nothing is sampled
        self.sampled = False
        self._open = False

    def close(self) -> None:
        """End the part that is open, if any."""
        if self._open:
            self._open = False
            emit.pop()

    def begin(self, event: emit.Event) -> None:
        """End the part that is open and begin the next."""
        self.close()
        event.push()
        self._open = True

    def begin_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a forward whose arguments are these."""
        self.close()
        requests, tokens = _size_of(args, kwargs)
        _FORWARD.push("decode" if self.sampled else "prefill", requests, tokens)
        self._open = True

    def end_forward(self) -> None:
        """End the forward; what follows is sampling, unless in chunked prefill."""
        if self.in_prefill:
            self.close()
        else:
            self.begin(_SAMPLE)


_frames = _Frames()


def _current(model: Any) -> _Frame | None:
    """Frame of the innermost ``generate`` where it is ``model`` that generates."""
    stack = _frames.stack
    return stack[-1] if stack and stack[-1].model is model else None


def _size_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Rows and positions (padding included) that a forward with these works on."""
    candidates: list[Any] = [kwargs.get(name) for name in _INPUTS]
    for candidate in [*candidates, *args[:1]]:
        try:
            rows, positions = candidate.shape[:2]
            return int(rows), int(rows * positions)
        except Exception:  # noqa: BLE001, S112 - not a tensor of that kind
            continue
    return 0, 0


class _ForwardHooks:
    """The hooks on each generating model, however many threads generate with it.

    Args:
        before: Forward pre-hook, taking keyword arguments.
        after: Forward hook.
    """

    def __init__(self, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._before = before
        self._after = after
        self._attached: dict[int, tuple[int, list[Callable[[], None]]]] = {}
        self._make_lock()
        os.register_at_fork(after_in_child=self._make_lock)

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    def attach(self, model: Any) -> None:
        """Put the hooks on ``model``, or count one more user of them."""
        with self._lock:
            users, undo = self._attached.get(id(model), (0, []))
            self._attached[id(model)] = (users + 1, undo)
            if users:
                return
            undo.append(model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            undo.append(model.register_forward_hook(self._after).remove)
            own = vars(model)
            compiled = own.get("_compiled_call_impl")  # of model.compile()
            if compiled is not None:
                own["_compiled_call_impl"] = _around_compiled(model, compiled)
                undo.append(lambda: own.__setitem__("_compiled_call_impl", compiled))

    def detach(self, model: Any) -> None:
        """Take the hooks off where their last user is gone."""
        with self._lock:
            users, undo = self._attached.pop(id(model), (0, []))
            if users > 1:
                self._attached[id(model)] = (users - 1, undo)
                return
            for action in undo:
                action()


def _make_forward_hooks() -> _ForwardHooks:
    import torch  # noqa: PLC0415 - the engine has imported it

    # Constant to torch.compile, which drops what follows it in the hooks.
    is_compiling = torch.compiler.is_compiling

    def before(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_compiling():
            return
        frame = _current(model)
        if frame is not None and not frame.in_compiled:
            frame.begin_forward(args, kwargs)

    def after(model: Any, _args: tuple[Any, ...], _output: Any) -> None:
        if is_compiling():
            return
        frame = _current(model)
        if frame is not None and not frame.in_compiled:
            frame.end_forward()

    return _ForwardHooks(before, after)


def _around_compiled(model: Any, compiled: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        frame = _current(model)
        if frame is None:
            return compiled(*args, **kwargs)
        frame.begin_forward(args, kwargs)
        frame.in_compiled = True
        try:
            return compiled(*args, **kwargs)
        finally:
            frame.in_compiled = False
            frame.end_forward()

    return call


def _generate(hooks: _ForwardHooks) -> Wrap:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            model = args[0]
            stack = _frames.stack
            if stack and stack[-1].model is not model:
                return draft(*args, **kwargs)
            frame = _Frame(model)
            with contextlib.suppress(Exception):  # its forwards go unseen
                hooks.attach(model)
            _GENERATE.push()
            stack.append(frame)
            try:
                return original(*args, **kwargs)
            finally:
                stack.pop()
                frame.close()
                emit.pop()
                with contextlib.suppress(Exception):
                    hooks.detach(model)

        def draft(*args: Any, **kwargs: Any) -> Any:
            # An assistant model's forwards are no steps of the one that generates.
            stack = _frames.stack
            stack[-1].close()
            _DRAFT.push()
            stack.append(_Frame(None))
            try:
                return original(*args, **kwargs)
            finally:
                stack.pop()
                emit.pop()

        return call

    return wrap


def _prepare_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        frame = _current(args[0])
        if frame is None:
            return original(*args, **kwargs)
        frame.begin(_PREPARE)
        try:
            return original(*args, **kwargs)
        finally:
            frame.close()

    return call


def _prefill(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        frame = _current(args[0])
        if frame is None:
            return original(*args, **kwargs)
        frame.in_prefill = True
        try:
            output = original(*args, **kwargs)
        finally:
            frame.in_prefill = False
        frame.begin(_SAMPLE)
        return output

    return call


def _stopping_criteria(original: Callable[..., Any]) -> Callable[..., Any]:
    # Asked once the next token is chosen: that is where sampling ends.
    def call(*args: Any, **kwargs: Any) -> Any:
        stack = _frames.stack
        if stack:
            stack[-1].sampled = True
            stack[-1].close()
        return original(*args, **kwargs)

    return call


def _compiled_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        compiled = original(*args, **kwargs)
        model = args[0]
        # It may be the plain call, which the hooks see.
        if _current(model) is None or compiled == model.__call__:
            return compiled
        return _around_compiled(model, compiled)

    return call


_STOPPING = [Hook("__call__", _stopping_criteria)]
_COMPILED = [Hook("get_compiled_call", _compiled_call)]


def _adapt_generation(module: ModuleType, found: Report) -> None:
    # A model's own generate may call the inherited one several times.
    generate = Hook("generate", _generate(_make_forward_hooks()), nested=True)
    prepare = Hook("prepare_inputs_for_generation", _prepare_inputs)
    cover(module, "GenerationMixin", [generate, prepare, Hook("_prefill", _prefill)], found)
    cover(module, "StoppingCriteriaList", _STOPPING, found)


def _adapt_modeling(module: ModuleType, found: Report) -> None:
    cover(module, "PreTrainedModel", _COMPILED, found)


_ADAPT: dict[str, Callable[[ModuleType, Report], None]] = {
    "transformers.generation.utils": _adapt_generation,
    "transformers.modeling_utils": _adapt_modeling,
}
MODULES = tuple(_ADAPT)


def adapt(module: ModuleType, found: Report) -> None:
    """Hook one freshly executed module of transformers.

    Args:
        module: One of ``MODULES``.
        found: Told what was hooked and what is missing.
    """
    _ADAPT[module.__name__](module, found)
