"""Copies to a device from many places of a Python program, which says where from.

Each copy has a size of its own. Just before it, on the same line, the program notes the
frames that it is in, by ``sys._getframe``. It prints sizes and frames as one line of
JSON. Runs on Python 3.10 and later.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

runtime = ctypes.CDLL("libcudart.so.13")
libc = ctypes.CDLL("libc.so.6")
device, host = ctypes.c_void_p(), ctypes.create_string_buffer(1 << 16)
noted: dict[int, list[list[str | int]]] = {}
sizes = iter(range(1009, 1 << 16))
DEEP = 131
FRAMES = 127  # that are kept


def note() -> ctypes.c_size_t:
    """Note the caller's frames; returns the size that tells its copy."""
    size = next(sizes)
    frame: FrameType | None = sys._getframe(1)
    frames: list[list[str | int]] = []
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        file = code.co_filename.encode("utf-8", "replace").decode()
        frames.append([name, file, frame.f_lineno])
        frame = frame.f_back
    noted[size] = frames
    return ctypes.c_size_t(size)


def copy() -> int:
    return int(runtime.cudaMemcpy(device, host, note(), 1))


def two_lines() -> None:
    assert runtime.cudaMemcpy(device, host, note(), 1) == 0
    sum(range(3))
    for _ in range(2):
        copy()
    assert runtime.cudaMemcpy(device, host, note(), 1) == 0


def recursion(depth: int) -> None:
    if depth:
        recursion(depth - 1)
    else:
        copy()


def generated(times: int) -> Iterator[None]:
    for _ in range(times):
        copy()
        yield


def delegated(times: int) -> Iterator[None]:
    yield from generated(times)


class Engine:
    def step(self) -> None:
        def inner() -> None:
            copy()

        inner()

    @classmethod
    def of_class(cls) -> None:
        through: Callable[[], int] = lambda: copy()  # noqa: E731, PLW0108 - a frame of a lambda is wanted
        through()

    @property
    def of_property(self) -> None:
        copy()

    def __enter__(self) -> Engine:  # noqa: PYI034 - typing.Self needs Python 3.11
        copy()
        return self

    def __exit__(self, *_: object) -> None:
        copy()


async def waits() -> None:
    await asyncio.sleep(0)
    copy()


async def gathers() -> None:
    await asyncio.gather(waits(), waits())


def comprehensions() -> None:
    [copy() for _ in range(2)]
    list(copy() for _ in range(2))  # noqa: C400 - a generator's frame is wanted
    {n: copy() for n in range(2)}


def callback(_a: object, _b: object) -> int:
    copy()
    return 0


def through_c() -> None:
    sorted([2, 1], key=lambda _: copy())
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    libc.qsort(ctypes.create_string_buffer(8), 2, 4, kind(callback))


def in_foreign_threads() -> None:
    """Threads that Python did not make have a thread state only while they are in it."""
    kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    start = kind(lambda _: copy())
    for _ in range(3):
        thread = ctypes.c_ulong()
        assert libc.pthread_create(ctypes.byref(thread), None, start, None) == 0
        assert libc.pthread_join(thread, None) == 0


def in_threads() -> None:
    def first() -> None:
        copy()

    def second() -> None:
        recursion(2)

    threads = [threading.Thread(target=t) for t in (first, second, copy, Engine().step)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def elsewhere() -> None:
    """Code of files with names of every width, and on lines far away."""
    for name in ("plain.py", "caf\xe9.py", "\u96ea.py", "\U0001f40d.py", "bad\udc80.py"):
        text = "\n" * 70_001 + "def f\xfcr(copy):\n\n\n    copy()\n" + "\n" * 300 + "f\xfcr(copy)\n"
        exec(compile(text, name, "exec"), {"copy": copy})


def in_a_fork() -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        # The device is not the child's, and says so.
        noted.clear()
        assert runtime.cudaMemcpy(device, host, note(), 1) != 0
        assert runtime.cudaMemcpy(device, host, note(), 1) != 0
        os.write(write_end, json.dumps(noted).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        noted.update({int(size): frames for size, frames in json.load(pipe).items()})
    # Sizes that the child has used are not used again.
    for _ in range(97):
        next(sizes)


def main() -> None:
    copy()
    two_lines()
    recursion(5)
    recursion(DEEP)
    for _ in generated(3):
        pass
    for _ in delegated(2):
        copy()
    Engine().step()
    Engine.of_class()
    assert Engine().of_property is None
    with Engine():
        copy()
    comprehensions()
    through_c()
    asyncio.run(gathers())
    elsewhere()
    in_threads()
    in_foreign_threads()
    in_a_fork()


assert runtime.cudaMalloc(ctypes.byref(device), ctypes.c_size_t(1 << 16)) == 0
main()
print(json.dumps(noted), flush=True)
