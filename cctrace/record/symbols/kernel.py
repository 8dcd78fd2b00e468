"""Functions of the kernel, from /proc/kallsyms.

Source: kallsyms_show_value and s_show in the kernel's kernel/kallsyms.c: address in 16
hexadecimal digits, type as nm(1) has it, name, and a tab with the module in brackets.
Addresses are 0 for a reader who may not know them (kernel.kptr_restrict).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.record.symbols.demangle import demangle
from cctrace.record.symbols.frame import Frame, decode

KALLSYMS: Final = Path("/proc/kallsyms")
KERNEL: Final = "[kernel]"
_DIGITS: Final = 16
_TYPE_AT: Final = _DIGITS + 1
_NAME_AT: Final = _DIGITS + 3
# No function is longer: beyond lies what has no symbol, as between two modules.
_MAX_FUNCTION_BYTES: Final = 1 << 20


class KernelSymbols:
    """The kernel's symbols at one moment; modules loaded later are not in it.

    Args:
        text: Content of /proc/kallsyms.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text
        raw = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(raw == ord("\n"))
        starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
        whole = ends - starts > _NAME_AT
        starts, ends = starts[whole], ends[whole]
        addresses = np.zeros(len(starts), np.uint64)
        for digit in range(_DIGITS):
            code = raw[starts + digit]
            value = (code & 15) + 9 * (code >> 6)  # 0-9 and a-f alike
            addresses = (addresses << np.uint64(4)) | value.astype(np.uint64)
        kinds = raw[starts + _TYPE_AT]
        # Of several names of one address: a global one, then one without underscores.
        worse = 2 * (kinds >= ord("a")) + (raw[starts + _NAME_AT] == ord("_"))
        order = np.lexsort((worse, addresses))
        ordered = addresses[order]
        first = np.ones(len(order), bool)
        first[1:] = ordered[1:] != ordered[:-1]
        chosen = order[first]
        self._addresses: npt.NDArray[np.uint64] = addresses[chosen]
        self._starts, self._ends = starts[chosen] + _NAME_AT, ends[chosen]
        self._is_code = np.isin(kinds[chosen], np.frombuffer(b"tTwW", np.uint8))

    @classmethod
    def read(cls, path: Path = KALLSYMS) -> KernelSymbols:
        """Those of the running kernel; none where they cannot be read."""
        try:
            return cls(path.read_bytes())
        except OSError:
            return cls(b"")

    @property
    def hidden(self) -> bool:
        """Whether the kernel does not tell us addresses."""
        return not len(self._addresses) or not self._addresses[-1]

    def frame(self, address: int, back: int) -> Frame | None:
        """The function that holds ``address - back``; None: none does.

        Args:
            address: Address in the kernel.
            back: 1 for a return address, else 0.
        """
        wanted = address - back
        if not 0 < wanted < 1 << 64 or self.hidden:
            return None
        at = int(np.searchsorted(self._addresses, np.uint64(wanted), "right")) - 1
        if at < 0 or not self._is_code[at]:
            return None
        if wanted - int(self._addresses[at]) >= _MAX_FUNCTION_BYTES:
            return None
        name, _, module = self._text[self._starts[at] : self._ends[at]].partition(b"\t")
        return Frame(demangle(decode(name)), decode(module) or KERNEL, None, None, "kernel")
