"""Wrap the engine's methods where they are defined, subclasses' overrides included.

A wrapper is a plain function in the class (``functools.wraps``), so signatures,
pickling by name, ``super()`` calls and later subclasses work as before.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from threading import get_ident
from typing import TYPE_CHECKING, Any

from . import emit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import TypeAlias

    from .report import Report

    Wrap: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

_MARK = "__cctrace_hook__"


class Hook:
    """One method to wrap, by name, in a class and in all that derive from it.

    Args:
        method: Name of the method.
        wrap: Makes the wrapper from the original function. It need not copy the
            original's name and signature: that is done here.
        nested: A call inside a call on the same thread is an event of its own, not
            an override calling what it overrides.
    """

    def __init__(self, method: str, wrap: Wrap, *, nested: bool = False) -> None:
        self.method = method
        self._nested = nested
        self._wrap = wrap
        self._active: set[int] = set()  # threads inside it
        # A child forked inside a call goes on in a thread of the same ident.
        os.register_at_fork(after_in_child=self._active.clear)

    def apply(self, cls: type) -> str | None:
        """Wrap the method where ``cls`` itself defines it.

        Returns:
            None where it is wrapped, or was before; otherwise why not.
        """
        original = cls.__dict__.get(self.method)
        if original is None:
            return "not defined"
        if hasattr(original, _MARK):
            return None
        if not callable(original) or isinstance(original, (staticmethod, classmethod, type)):
            return "not a method"
        # Their call returns before they run, and an await would let other work in
        # between push and pop.
        if inspect.iscoroutinefunction(original) or inspect.isasyncgenfunction(original):
            return "asynchronous"
        if inspect.isgeneratorfunction(original):
            return "a generator"
        if not getattr(original, "__isabstractmethod__", False):
            setattr(cls, self.method, self._wrapper(original))
        return None

    def _wrapper(self, original: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = self._wrap(original)
        if not self._nested:
            wrapped = self._outermost(original, wrapped)
        functools.update_wrapper(wrapped, original)
        setattr(wrapped, _MARK, True)
        return wrapped

    def _outermost(
        self, original: Callable[..., Any], wrapped: Callable[..., Any]
    ) -> Callable[..., Any]:
        active = self._active

        def call(*args: Any, **kwargs: Any) -> Any:
            # An override that calls what it overrides is one event, not two.
            ident = get_ident()
            if ident in active:
                return original(*args, **kwargs)
            active.add(ident)
            try:
                return wrapped(*args, **kwargs)
            finally:
                active.discard(ident)

        return call


def cover(
    module: ModuleType, class_name: str, hooks: list[Hook], found: Report, *, quiet: bool = False
) -> None:
    """Wrap ``hooks`` in a class, in its present subclasses and in those to come.

    Args:
        module: The engine's module that defines the class.
        class_name: The class.
        hooks: Methods to wrap.
        found: Told what is hooked and what is missing; a method that the class only
            inherits counts as hooked where an ancestor's is.
        quiet: Report nothing.
    """
    cls = getattr(module, class_name, None)
    classes = [cls, *_descendants(cls)] if isinstance(cls, type) else []
    for hook in hooks:
        whys = [hook.apply(each) for each in classes]
        if quiet:
            continue
        point = f"{class_name}.{hook.method}"
        why = whys[0] if whys else "not defined"
        if why is None or hasattr(getattr(cls, hook.method, None), _MARK):
            found.hooked.append(point)
        else:
            found.missing.append(point if why == "not defined" else f"{point} ({why})")
    if classes:
        _watch_subclasses(classes[0], hooks)


def _descendants(cls: type) -> list[type]:
    found: list[type] = []
    children: list[type] = type.__subclasses__(cls)
    for subclass in children:
        found.append(subclass)
        found.extend(_descendants(subclass))
    return found


def _watch_subclasses(cls: Any, hooks: list[Hook]) -> None:
    own = cls.__dict__.get("__init_subclass__")
    if hasattr(getattr(own, "__func__", None), _MARK):
        return

    def init_subclass(subclass: Any, /, **kwargs: Any) -> None:
        if own is None:
            super(cls, subclass).__init_subclass__(**kwargs)
        else:
            own.__get__(None, subclass)(**kwargs)
        for hook in hooks:
            with contextlib.suppress(Exception):  # it stays as it is
                hook.apply(subclass)

    setattr(init_subclass, _MARK, True)
    cls.__init_subclass__ = classmethod(init_subclass)


def ranged(name: str) -> Wrap:
    """Wrapper maker: a push/pop range ``name`` around each call."""
    event = emit.Event(name)

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        push, pop = event.push, emit.pop

        def call(*args: Any, **kwargs: Any) -> Any:
            push()
            try:
                return original(*args, **kwargs)
            finally:
                pop()

        return call

    return wrap
