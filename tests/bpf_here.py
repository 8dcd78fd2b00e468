"""Whether BPF can be used where the tests run."""

from __future__ import annotations

from functools import cache

import pytest

from cctrace.errors import CctraceError
from cctrace.record.bpf import frontend, probes
from cctrace.record.bpf.headers import find_headers


@cache
def _why_no_compiler() -> str | None:
    try:
        frontend.load_bcc()
        find_headers().close()
    except CctraceError as error:
        return f"{error.message}; {error.hint}"
    return None


def require_compiler() -> None:
    """Skip the test where BPF programs cannot be compiled."""
    why = _why_no_compiler()
    if why is not None:
        pytest.skip(why)


def require_bpf() -> None:
    """Skip the test where BPF programs cannot be attached."""
    try:
        probes.require_bpf()
    except CctraceError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    require_compiler()
