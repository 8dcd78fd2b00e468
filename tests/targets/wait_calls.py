"""Sleeps at many places of a Python program, which says where it was, and when.

Prints one line of JSON: of each sleep its thread, the times just before and after it and
its frames, all taken on the line of the sleep itself. Waits off and on for the end of its
input before that, so that the recorder may come to know it.
"""

import json
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

LENGTH_S = 0.003
now = time.monotonic_ns
sleep: Callable[[float], object] = time.sleep
slept: list[list[object]] = []


def frames() -> list[list[object]]:
    frame: FrameType | None = sys._getframe(1)
    found: list[list[object]] = []
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        found.append([name, code.co_filename, frame.f_lineno])
        frame = frame.f_back
    return found


def note(*values: object) -> object:
    slept.append([threading.get_native_id(), *values])
    return None


def nap() -> None:
    note(frames(), now(), sleep(LENGTH_S), now())


def recursion(depth: int) -> None:
    if depth:
        recursion(depth - 1)
    nap()


def generated() -> Iterator[object]:
    for _ in range(2):
        yield note(frames(), now(), sleep(LENGTH_S), now())


while not select.select([sys.stdin], [], [], LENGTH_S)[0]:
    pass
recursion(2)
list(generated())
threads = [threading.Thread(target=recursion, args=(1,)) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(slept), flush=True)
