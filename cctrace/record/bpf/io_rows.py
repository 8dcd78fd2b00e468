"""Records of the kind ``cct_event.io`` as columns, for all families that have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.record.bpf import layout

HAS_DURATION: Final = 1  # cct_event.flags

IoEvents = npt.NDArray[np.void]
_DICT: Final = pa.dictionary(pa.int32(), pa.string())


def io_events(events: npt.NDArray[np.void]) -> IoEvents:
    """View records as ``layout.IO_EVENT``."""
    return events.view(layout.IO_EVENT)


def head(records: IoEvents) -> list[pa.Array]:
    """Columns ``ts_ns``, ``pid``, ``tid``, ``dur_ns`` (NULL where not known)."""
    unknown = records["flags"] & HAS_DURATION == 0
    return [
        pa.array(records["ts_ns"].astype(np.int64)),
        pa.array(records["pid"].astype(np.int32)),
        pa.array(records["tid"].astype(np.int32)),
        pa.array(records["dur_ns"].astype(np.int64), mask=unknown),
    ]


def sizes(records: IoEvents) -> pa.Array:
    """Column ``size_bytes`` (or ``pages``)."""
    return pa.array(records["size_bytes"].astype(np.int64))


def devices(records: IoEvents) -> pa.Array:
    """Column ``device``: names as the kernel has them; NULL where none was learned."""
    names, indices = np.unique(records["device"], return_inverse=True)
    texts = [name.decode("utf-8", "replace") for name in names.tolist()]
    return pa.DictionaryArray.from_arrays(
        pa.array(indices.astype(np.int32), mask=records["device"] == b""),
        pa.array(texts, pa.string()),
    )


def named(values: npt.NDArray[np.integer], names: Mapping[int, str]) -> pa.Array:
    """A column of names by number; NULL where a number has none.

    Args:
        values: One small number per record, >= 0.
        names: What numbers mean.
    """
    numbers = np.array(sorted(names), np.int64)
    place = np.searchsorted(numbers, values)
    known = numbers[np.minimum(place, len(numbers) - 1)] == values
    return pa.DictionaryArray.from_arrays(
        pa.array(place.astype(np.int32), mask=~known),
        pa.array([names[number] for number in numbers.tolist()], pa.string()),
    )
