"""Strings and stacks of a batch of events, each written once and named by number.

Numbers hold for one batch: each begins by forgetting what was before, so that what has
to be kept in mind does not grow with the run.

Source: perfetto's protos/perfetto/trace/interned_data/interned_data.proto and
protos/perfetto/trace/profiling/profile_common.proto.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.compute as pc
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from cctrace.exporters.perfetto.tracks import packet

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_LARGEST_LINE: Final = 2**32 - 1


class Stacks:
    """The stacks of a run, kept as they were read.

    Args:
        rows: ``pyarrow.Table`` of ``stacks``, in order of the ids; of several of one id the
            first one counts.
    """

    def __init__(self, rows: Any) -> None:
        self._ids: npt.NDArray[np.int64] = rows["stack_id"].to_numpy()
        self._frames = rows["frames"]

    def frames(self, stack_id: int) -> list[dict[str, Any]]:
        """Frames of a stack, innermost first; none where the run does not have it."""
        at = int(np.searchsorted(self._ids, stack_id))
        if at == len(self._ids) or self._ids[at] != stack_id:
            return []
        frames: list[dict[str, Any]] | None = self._frames[at].as_py()
        return frames or []


class Interned:
    """What one batch of events names by number.

    Args:
        stacks: Stacks of the run.
    """

    def __init__(self, stacks: Stacks) -> None:
        self._stacks = stacks
        self._data = protos.InternedData()
        self._seen: dict[tuple[str, Any], int] = {}
        self._counts: dict[str, int] = {}

    def names(self, column: Any) -> npt.NDArray[np.int64]:
        """Numbers of event names; 0 for NULL."""
        return self._column("event_names", column)

    def categories(self, column: Any) -> npt.NDArray[np.int64]:
        """Numbers of categories; 0 for NULL."""
        return self._column("event_categories", column)

    def texts(self, column: Any) -> npt.NDArray[np.int64]:
        """Numbers of values of arguments; 0 for NULL."""
        return self._column("debug_annotation_string_values", column)

    def argument_names(self, names: Sequence[str]) -> list[int]:
        """Numbers of names of arguments."""
        first = len(self._data.debug_annotation_names) + 1
        for number, name in enumerate(names, first):
            self._data.debug_annotation_names.add(iid=number, name=name)
        return list(range(first, first + len(names)))

    def callstacks(self, column: Any) -> npt.NDArray[np.int64]:
        """Numbers of stacks; 0 for NULL, and where the run does not have that stack."""
        encoded = column.dictionary_encode()
        numbers = [self._callstack(stack) for stack in encoded.dictionary.to_pylist()]
        return _look_up(encoded, np.array([0, *numbers], np.int64))

    def packet(self) -> bytes:
        """The packet that has to come before the batch's events."""
        return packet(
            sequence_flags=protos.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED,
            trace_packet_defaults=protos.TracePacketDefaults(
                timestamp_clock_id=protos.BUILTIN_CLOCK_MONOTONIC
            ),
            interned_data=self._data,
        )

    def _column(self, table: str, column: Any) -> npt.NDArray[np.int64]:
        encoded = column.dictionary_encode()
        entries = getattr(self._data, table)
        first = len(entries) + 1
        for number, text in enumerate(encoded.dictionary.to_pylist(), first):
            if table == "debug_annotation_string_values":
                entries.add(iid=number, str=text.encode())
            else:
                entries.add(iid=number, name=text)
        return _look_up(encoded, np.arange(first - 1, first + len(encoded.dictionary)))

    def _callstack(self, stack_id: int) -> int:
        # Perfetto has the outermost first.
        ids = [self._frame(frame) for frame in reversed(self._stacks.frames(stack_id))]
        if not ids:
            return 0
        number, is_new = self._number("callstack", stack_id)
        if is_new:
            self._data.callstacks.add(iid=number, frame_ids=ids)
        return number

    def _frame(self, frame: dict[str, Any]) -> int:
        number, is_new = self._number("frame", tuple(frame.values()))
        if is_new:
            made = self._data.frames.add(iid=number)
            made.function_name_id = self._text("function_names", frame["function"] or "?")
            if frame["module"]:
                made.mapping_id = self._mapping(frame["module"])
                made.rel_pc = 0  # must be there beside a mapping; addresses are not kept
            if frame["file"]:
                made.source_path_iid = self._text("source_paths", frame["file"])
            if frame["line"] is not None and 0 < frame["line"] <= _LARGEST_LINE:
                made.line_number = frame["line"]
            kind = _KINDS.get(frame["kind"])
            if kind is not None:
                made.kind = kind
        return number

    def _mapping(self, module: str) -> int:
        number, is_new = self._number("mapping", module)
        if is_new:
            path = self._text("mapping_paths", module)
            self._data.mappings.add(iid=number, path_string_ids=[path])
        return number

    def _text(self, table: str, text: str) -> int:
        number, is_new = self._number(table, text)
        if is_new:
            getattr(self._data, table).add(iid=number, str=text.encode())
        return number

    def _number(self, kind: str, value: Any) -> tuple[int, bool]:
        """Number of a value among those of its kind, and whether it is new."""
        key = (kind, value)
        if key in self._seen:
            return self._seen[key], False
        self._counts[kind] = self._seen[key] = self._counts.get(kind, 0) + 1
        return self._seen[key], True


_KINDS: Final = {
    "native": protos.Frame.KIND_NATIVE,
    "kernel": protos.Frame.KIND_KERNEL,
    "python": protos.Frame.KIND_INTERPRETED,
}


def _look_up(encoded: Any, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number of each value: ``numbers`` has that of NULL first, then the dictionary's."""
    places: npt.NDArray[np.int64] = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)
    found: npt.NDArray[np.int64] = np.where(places < 0, 0, numbers[places + 1])
    return found
