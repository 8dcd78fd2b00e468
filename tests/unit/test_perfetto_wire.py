"""What the encoder makes of columns is what protobuf's own classes read back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from cctrace.exporters.perfetto import wire

INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(
    st.tuples(INT64, st.booleans(), st.floats(allow_nan=False), st.integers(0, 2**64 - 1)),
    min_size=1,
    max_size=40,
)


def messages(pieces: Any) -> list[bytes]:
    found: list[bytes] = wire.join(pieces).to_pylist()
    return found


@settings(deadline=None)  # other work on the machine
@given(ROWS)
def test_fields_are_read_back(rows: list[tuple[int, bool, float, int]]) -> None:
    # GIVEN an argument with an integer, or a double where there is none, in an event
    # that has a flow where there is an integer
    ints = np.array([row[0] for row in rows], np.int64)
    present = np.array([row[1] for row in rows], np.bool_)
    doubles = np.array([row[2] for row in rows], np.float64)
    flows = np.array([row[3] for row in rows], np.uint64)
    inner = [wire.varint_field(4, ints, present), wire.fixed64_field(5, doubles, ~present)]
    event = [wire.varint_field(9, np.ones(len(rows), np.int64)),
             wire.fixed64_field(47, flows, present), *wire.message_field(4, inner)]  # fmt: skip
    # WHEN a message is made of each
    made = messages(event)
    # THEN protobuf reads what was given, and would have written the same
    for row, content in zip(rows, made, strict=True):
        read = protos.TrackEvent.FromString(content)
        expected = protos.TrackEvent(type=protos.TrackEvent.TYPE_SLICE_BEGIN)
        argument = expected.debug_annotations.add()
        if row[1]:
            argument.int_value = row[0]
            expected.flow_ids.append(row[3])
        else:
            argument.double_value = row[2]
        assert read == expected
        assert read.ByteSize() == len(content)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2**63 - 1, -1, -(2**63)])
def test_an_integer_takes_as_many_bytes_as_protobuf_gives_it(value: int) -> None:
    [content] = messages([wire.varint_field(30, np.array([value]))])
    assert content == protos.TrackEvent(counter_value=value).SerializeToString()


def test_a_message_is_left_out_where_it_is_not() -> None:
    # GIVEN nested messages in the first and the last of three
    present = np.array([True, False, True])
    inner = [wire.varint_field(1, np.array([3, 5, 700]), present)]
    # WHEN / THEN the one between is empty; lengths of 128 and more take two bytes
    assert messages(wire.message_field(4, inner, present)) == [b"\x22\x02\x08\x03", b"",
                                                               b"\x22\x03\x08\xbc\x05"]  # fmt: skip
    long = [wire.constant(b"\x00" * 130, 2)]
    assert messages(wire.message_field(1, long)) == [b"\x0a\x82\x01" + b"\x00" * 130] * 2
