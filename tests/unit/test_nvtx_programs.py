"""decode(encode(e)) = e for any program: its rows against a model that knows no encoding."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from fake_agent import NO_PAYLOAD, FakeThread, Payload
from fake_recording import Recording, Row, row
from hypothesis import given, settings

from cctrace.record import layout

FLOATS = st.floats(width=32, allow_nan=False)
PAYLOAD = st.one_of(
    st.just((layout.PAYLOAD_NONE, 0)),
    st.tuples(st.just(layout.PAYLOAD_U64), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(layout.PAYLOAD_I64), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(layout.PAYLOAD_U32), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(layout.PAYLOAD_I32), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(layout.PAYLOAD_F64), st.floats(allow_nan=False)),
    st.tuples(st.just(layout.PAYLOAD_F32), FLOATS),
)
# Name, domain (0: default), category (0: none), colour.
KEY = st.tuples(
    st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=9)),
    st.integers(0, 2),
    st.integers(0, 2),
    st.one_of(st.none(), st.integers(0, 2**32 - 1)),
)
THREAD = st.integers(0, 4)
OPERATION = st.one_of(
    st.tuples(st.just("push"), THREAD, st.integers(0, 6), PAYLOAD),
    st.tuples(st.just("pop"), THREAD),
    st.tuples(st.just("mark"), THREAD, st.integers(0, 6), PAYLOAD),
    st.tuples(st.just("start"), THREAD, st.integers(0, 6), PAYLOAD),
    st.tuples(st.just("end"), THREAD, st.integers(0, 9)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("exit"), THREAD),
)


class Program:
    """Runs operations against the agent and says by itself what rows they make."""

    def __init__(self, keys: list[Any]) -> None:
        self.recording = Recording()
        agent = self.recording.agent
        self.domains = [None, "first", "zweite"]
        for name in self.domains[1:]:
            assert name is not None
            agent.domain(name.encode())
        agent.name_category(1, b"one")
        agent.name_category(2, b"two", domain=1)
        categories = {(0, 1): "one", (1, 2): "two"}
        self.names: list[Row] = [{}]
        self.keys = [(0, 0)]  # key and its domain
        for name, domain, category, color in keys:
            encoded = None if name is None else name.encode()
            key = agent.key(encoded, domain=domain, category=category, color=color)
            self.keys.append((key, domain))
            named = categories.get((domain, category), str(category)) if category else None
            self.names.append(
                {
                    "name": name,
                    "domain": self.domains[domain],
                    "category": named,
                    "color": color,
                }
            )
        self.threads: dict[int, FakeThread] = {}
        self.tids: dict[int, int] = {}
        self.open: dict[int, list[tuple[int, Row]]] = {}
        self.left: list[Row] = []
        self.started: dict[int, Row] = {}
        self.next_id = 1
        self.clock = 0
        self.expected: list[Row] = []

    def run(self, operations: list[tuple[Any, ...]]) -> None:
        for name, *arguments in operations:
            self.clock += 1
            getattr(self, name)(*arguments)

    def thread(self, number: int) -> FakeThread:
        if number not in self.threads:
            self.tids[number] = self.tids.get(number, 1000 * number) + 1
            thread = self.recording.agent.thread(self.tids[number])
            if thread is None:
                self.recording.more()
                thread = self.recording.agent.live_thread(self.tids[number])
            self.threads[number] = thread
            self.open[number] = []
        return self.threads[number]

    def event(
        self, number: int, key: int, payload: tuple[int, float], kind: str, **values: Any
    ) -> Row:
        type_, value = payload
        if type_ in (layout.PAYLOAD_F32, layout.PAYLOAD_F64) or value >= 2**63:
            values["payload_double"] = float(value)
        elif type_ != layout.PAYLOAD_NONE:
            values["payload"] = value
        named = self.names[key % len(self.names)]
        return row(self.clock, self.tids[number], 0, kind) | named | values

    def at(self) -> int:
        return self.recording.base_ns + self.clock

    def key(self, key: int) -> tuple[int, int]:
        return self.keys[key % len(self.keys)]

    def push(self, number: int, key: int, payload: tuple[int, float]) -> None:
        thread = self.thread(number)
        used, domain = self.key(key)
        depth = sum(1 for d, _ in self.open[number] if d == domain)
        self.open[number].append(
            (domain, self.event(number, key, payload, "push_pop", depth=depth))
        )
        thread.push(self.at(), used, domain, packed(payload))

    def pop(self, number: int) -> None:
        self.thread(number).pop(self.at())
        if self.open[number]:
            _, begun = self.open[number].pop()
            self.expected.append(begun | {"dur_ns": self.clock - begun["ts_ns"]})

    def mark(self, number: int, key: int, payload: tuple[int, float]) -> None:
        self.thread(number).mark(self.at(), self.key(key)[0], packed(payload))
        self.expected.append(self.event(number, key, payload, "mark"))

    def start(self, number: int, key: int, payload: tuple[int, float]) -> None:
        self.thread(number).start(self.at(), self.next_id, self.key(key)[0], packed(payload))
        self.started[self.next_id] = self.event(number, key, payload, "start_end")
        self.next_id += 1

    def end(self, number: int, choice: int) -> None:
        if not self.started:
            return
        range_id = list(self.started)[choice % len(self.started)]
        self.thread(number).end(self.at(), range_id)
        begun = self.started.pop(range_id)
        self.expected.append(
            begun | {"dur_ns": self.clock - begun["ts_ns"], "end_tid": self.tids[number]}
        )

    def flush(self) -> None:
        self.recording.flush()

    def exit(self, number: int) -> None:
        if number in self.threads:
            self.threads.pop(number).exit()
            self.left += [begun for _, begun in self.open.pop(number)]
            self.flush()  # so that few threads can be many, one after the other

    def finish(self) -> list[Row]:
        opened = [begun for frames in self.open.values() for _, begun in frames]
        opened += [*self.started.values(), *self.left]
        self.expected += [begun | {"dur_ns": None} for begun in opened]
        return self.recording.end()


def packed(payload: tuple[int, float]) -> Payload:
    type_, value = payload
    return Payload.of(type_, value) if type_ else NO_PAYLOAD


def by_start(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: (r["ts_ns"], r["tid"]))


@settings(max_examples=211, deadline=None)
@given(st.lists(KEY, max_size=5), st.lists(OPERATION, max_size=61))
def test_any_program_is_decoded_exactly(keys: list[Any], operations: list[tuple[Any, ...]]) -> None:
    """Threads that come and go, domains, segments, flushes at any moment, open ends."""
    program = Program(keys)
    program.run(operations)
    found = program.finish()
    assert by_start(found) == by_start(program.expected)
    lost = {"unmatched_pop", "stack_overflow"}
    assert set(program.recording.ledger.by_reason()) <= lost
    assert "stack_overflow" not in program.recording.ledger.by_reason() or len(operations) > 16
