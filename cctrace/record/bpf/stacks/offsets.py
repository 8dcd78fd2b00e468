"""Where CPython keeps what a walk of its frames needs, by version.

From 3.13 on the interpreter tells itself: ``_PyRuntime`` begins with a
``_Py_DebugOffsets`` (Include/internal/pycore_debug_offsets.h; in 3.13 pycore_runtime.h).
What earlier ones have is in a table here. Its numbers are ``offsetof`` of the headers
of 3.10.13, 3.11.7 and 3.12.1 (Include/cpython/{pystate,code,unicodeobject}.h,
Include/internal/pycore_{frame,interp,runtime}.h), built for x86-64; a minor version
keeps them. They are checked against the process before they are used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cctrace.record.bpf.layout import Python

COOKIE: Final = b"xdebugpy"
DEBUG_BYTES: Final = 8 * 96  # more than any version's
# _PyInterpreterFrame of 3.13 and 3.14 as the kernel's walk has it.
_FRAME: Final = {"executable": 0, "previous": 8, "instr_ptr": 56}

# Members of _Py_DebugOffsets after cookie, version and free_threaded, 64 bits each.
_HEAD: Final = {
    "runtime_state": ("size", "finalizing", "interpreters_head"),
    "interpreter_state": ("size", "id", "next", "threads_head", "gc", "imports_modules", "sysdict",
        "builtins", "ceval_gil", "gil_runtime_state", "gil_runtime_state_enabled",
        "gil_runtime_state_locked", "gil_runtime_state_holder"),
    "thread_state": ("size", "prev", "next", "interp", "current_frame", "thread_id",
        "native_thread_id", "datastack_chunk", "status"),
    "interpreter_frame": ("size", "previous", "executable", "instr_ptr", "localsplus", "owner"),
    "code_object": ("size", "filename", "name", "qualname", "linetable", "firstlineno", "argcount",
        "localsplusnames", "localspluskinds", "co_code_adaptive"),
    "pyobject": ("size", "ob_type"),
    "type_object": ("size", "tp_name", "tp_repr", "tp_flags"),
    "tuple_object": ("size", "ob_item", "ob_size"),
    "list_object": ("size", "ob_item", "ob_size"),
    "dict_object": ("size", "ma_keys", "ma_values"),
    "float_object": ("size", "ob_fval"),
    "long_object": ("size", "lv_tag", "ob_digit"),
    "bytes_object": ("size", "ob_size", "ob_sval"),
    "unicode_object": ("size", "state", "length", "asciiobject_size"),
}  # fmt: skip
# What 3.14 has besides: after which member of which group.
_SINCE_3_14: Final = {
    ("interpreter_state", "threads_head"): ("threads_main",),
    ("interpreter_state", "gil_runtime_state_holder"): (
        "code_object_generation",
        "tlbc_generation",
    ),
    ("interpreter_frame", "owner"): ("stackpointer", "tlbc_index"),
    ("code_object", "co_code_adaptive"): ("co_tlbc",),
    ("list_object", "ob_size"): ("set_size", "set_used", "set_table", "set_mask"),
}


@dataclass(frozen=True)
class CodeOffsets:
    """Offsets in code objects and what they refer to, bytes.

    Attributes:
        type: Of the type, in every object.
        filename: In a code object, as all up to ``linetable``.
        name: Of the name.
        qualname: Of the qualified name; None: it has none (3.10).
        first_line: Of the line it begins at.
        linetable: Of its table of lines, a bytes object.
        code: Of its first instruction; of no meaning in 3.10.
        bytes_size: Of the length in a bytes object.
        bytes_value: Of its content.
        text_length: Of the length in a str.
        text_state: Of its state.
        text_ascii: Of its content where it is ASCII.
        text_other: Of its content where it is not.
        kind_shift: Where in the state the kind begins, bits.
    """

    type: int
    filename: int
    name: int
    qualname: int | None
    first_line: int
    linetable: int
    code: int
    bytes_size: int = 16
    bytes_value: int = 32
    text_length: int = 16
    text_state: int = 32
    text_ascii: int = 40
    text_other: int = 56
    kind_shift: int = 2

    @property
    def shown_name(self) -> int:
        """Of the name that is shown."""
        return self.name if self.qualname is None else self.qualname

    @property
    def text_hash(self) -> int:
        """Of the hash in a str, which follows its length."""
        return self.text_length + 8

    @property
    def last(self) -> int:
        """Of the last of those in a code object that are read."""
        return max(self.filename, self.shown_name, self.first_line, self.linetable)


@dataclass(frozen=True)
class Offsets:
    """What one version of CPython keeps where, bytes.

    Attributes:
        version: (3, 11).
        layout: How frames look.
        interpreters: In ``_PyRuntime``: the address of the newest interpreter.
        threads: In an interpreter: the address of its newest thread state.
        thread: In a thread state: the kernel's number of the thread; in 3.10 the address
            of its pthread.
        frame: In a thread state: the innermost frame, or (3.11, 3.12) the _PyCFrame.
        cframe: In that: the innermost frame.
        code: In code objects.
        next_interpreter: In an interpreter: the one made before it.
        prev: In a thread state: the newer one.
        next: In a thread state: the older one.
        interpreter: In a thread state: whose it is.
        is_free_threaded: Built without a GIL.
    """

    version: tuple[int, int]
    layout: Python
    interpreters: int
    threads: int
    thread: int
    frame: int
    cframe: int
    code: CodeOffsets
    next_interpreter: int = 0
    prev: int = 0
    next: int = 8
    interpreter: int = 16
    is_free_threaded: bool = False


TABLE: Final = {
    offsets.version: offsets
    for offsets in (
        Offsets((3, 10), Python.V_3_10, interpreters=32, threads=8, thread=176, frame=24, cframe=0,
            code=CodeOffsets(type=8, filename=104, name=112, qualname=None, first_line=40,
                linetable=120, code=0, text_ascii=48, text_other=72)),
        Offsets((3, 11), Python.V_3_11, interpreters=40, threads=16, thread=160, frame=56, cframe=8,
            code=CodeOffsets(type=8, filename=112, name=120, qualname=128, first_line=72,
                linetable=136, code=184, text_ascii=48, text_other=72)),
        Offsets((3, 12), Python.V_3_12, interpreters=40, threads=72, thread=144, frame=56, cframe=0,
            code=CodeOffsets(type=8, filename=112, name=120, qualname=128, first_line=68,
                linetable=136, code=192)),
    )
}  # fmt: skip
NEWEST: Final = (3, 14)


def debug_offsets(raw: bytes) -> Offsets | None:
    """What a runtime says of itself.

    Args:
        raw: The first ``DEBUG_BYTES`` of ``_PyRuntime``.

    Returns:
        Its offsets; None: it says nothing, or what no walk of ours is made for.
    """
    if raw[:8] != COOKIE or len(raw) < DEBUG_BYTES:
        return None
    version_hex, free_threaded = struct.unpack_from("<QQ", raw, 8)
    version = (version_hex >> 24 & 0xFF, version_hex >> 16 & 0xFF)
    if not (3, 13) <= version <= NEWEST:
        return None
    found = _members(raw, version)
    if any(found["interpreter_frame", name] != at for name, at in _FRAME.items()):
        return None
    if max(found.values()) >= 1 << 20:
        return None
    state, code = "thread_state", "code_object"
    ascii_bytes = found["unicode_object", "asciiobject_size"]
    return Offsets(
        version,
        Python.V_3_13,
        interpreters=found["runtime_state", "interpreters_head"],
        next_interpreter=found["interpreter_state", "next"],
        threads=found["interpreter_state", "threads_head"],
        prev=found[state, "prev"],
        next=found[state, "next"],
        interpreter=found[state, "interp"],
        thread=found[state, "native_thread_id"],
        frame=found[state, "current_frame"],
        cframe=0,
        code=CodeOffsets(
            type=found["pyobject", "ob_type"],
            filename=found[code, "filename"],
            name=found[code, "name"],
            qualname=found[code, "qualname"],
            first_line=found[code, "firstlineno"],
            linetable=found[code, "linetable"],
            code=found[code, "co_code_adaptive"],
            bytes_size=found["bytes_object", "ob_size"],
            bytes_value=found["bytes_object", "ob_sval"],
            text_length=found["unicode_object", "length"],
            text_state=found["unicode_object", "state"],
            text_ascii=ascii_bytes,
            text_other=ascii_bytes + 16,  # PyCompactUnicodeObject adds two words
            # Without a GIL the state of interning is a byte of its own.
            kind_shift=8 if free_threaded else 2,
        ),
        is_free_threaded=bool(free_threaded),
    )


def _members(raw: bytes, version: tuple[int, int]) -> dict[tuple[str, str], int]:
    found = {}
    at = 24
    for group, names in _HEAD.items():
        for name in names:
            later = _SINCE_3_14.get((group, name), ()) if version >= (3, 14) else ()
            for member in (name, *later):
                found[group, member] = struct.unpack_from("<Q", raw, at)[0]
                at += 8
    return found
