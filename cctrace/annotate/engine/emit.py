"""NVTX for the adapters: libcctrace_emit.so through ctypes, domain ``cctrace``.

The path comes from ``CCTRACE_EMIT``; its functions are those of
``probes/agent/emit.h``. Without the library every call here does nothing.
"""

from __future__ import annotations

import ctypes
import os
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DOMAIN = "cctrace"
PHASES = {"prefill": 1, "decode": 2, "mixed": 3}  # NVTX categories; 0 is none

_MAX_U32 = 0xFFFFFFFF


def _nothing(*_args: object) -> int:
    return 0


class _Functions:
    """What of emit.h is used here.

    Args:
        path: The library; None for functions that do nothing.
    """

    def __init__(self, path: str | None) -> None:
        self.domain: Callable[..., int] = _nothing
        self.string: Callable[..., int] = _nothing
        self.category: Callable[..., object] = _nothing
        self.push: Callable[..., object] = _nothing
        self.pop: Callable[..., object] = _nothing
        self.mark: Callable[..., object] = _nothing
        if path is None:
            return
        # PyDLL keeps the GIL: no call blocks, and giving it up and taking it back
        # would cost more than the event and invite another thread in between.
        library = ctypes.PyDLL(path)
        for name, result in (
            ("domain", ctypes.c_uint64),
            ("string", ctypes.c_uint64),
            ("category", None),
            ("push", None),  # the depth it returns is of no use here
            ("pop", None),
            ("mark", None),
        ):
            function = getattr(library, "cct_emit_" + name)
            function.restype = result
            setattr(self, name, function)


# Arguments are converted once, here, and not by `argtypes` at each call, which
# would take about four times as long as the call itself.
_u64 = ctypes.c_uint64.from_param
_u32 = ctypes.c_uint32.from_param
_int = ctypes.c_int.from_param
_text = ctypes.c_char_p.from_param

_NO_PAYLOAD = (_u32(0), _int(0), _u64(0))
_HAS_PAYLOAD = _int(1)
_CATEGORIES = {name: _u32(number) for name, number in PHASES.items()}
_NO_CATEGORY = _u32(0)


def _load() -> _Functions:
    try:
        return _Functions(os.environ.get("CCTRACE_EMIT") or None)
    except (OSError, AttributeError):  # not there, or another version's
        return _Functions(None)


_functions = _load()
_domain = _u64(_functions.domain(_text(DOMAIN.encode())))
for _name, _category in _CATEGORIES.items():
    _functions.category(_domain, _category, _text(_name.encode()))

# Closes the calling thread's innermost range.
pop: Callable[[], object] = partial(_functions.pop, _domain)


class Event:
    """A range name.

    Args:
        name: The event's name.
    """

    def __init__(self, name: str) -> None:
        string = _u64(_functions.string(_domain, _text(name.encode())))
        # Opens a range on the calling thread.
        self.push: Callable[[], object] = partial(_functions.push, _domain, string, *_NO_PAYLOAD)


class PhasedEvent:
    """A range or mark name that carries phase, requests and tokens.

    Args:
        name: The event's name.
    """

    def __init__(self, name: str) -> None:
        string = _u64(_functions.string(_domain, _text(name.encode())))
        self._push = partial(_functions.push, _domain, string)
        self._mark = partial(_functions.mark, _domain, string)

    def push(self, phase: str, requests: int, tokens: int) -> None:
        """Open a range on the calling thread; an unknown phase is left out."""
        payload = _u64(pack(requests, tokens))
        self._push(_CATEGORIES.get(phase, _NO_CATEGORY), _HAS_PAYLOAD, payload)

    def mark(self, phase: str, requests: int, tokens: int) -> None:
        """Emit an instant; an unknown phase is left out."""
        payload = _u64(pack(requests, tokens))
        self._mark(_CATEGORIES.get(phase, _NO_CATEGORY), _HAS_PAYLOAD, payload)


def pack(requests: int, tokens: int) -> int:
    """Payload of a step: ``requests << 32 | tokens``, each cut to its 32 bits."""
    return min(requests, _MAX_U32) << 32 | min(tokens, _MAX_U32)
