"""Runs in the guest: CUDA runtime calls by prime numbers, on the simulated device.

    cuda_calls.py COPIES_IN COPIES_OUT LAUNCHES

The library is found through LD_LIBRARY_PATH, by its own name, as an engine finds it.
"""

from __future__ import annotations

import ctypes
import sys

IN_BYTES = 4099
OUT_BYTES = 8209
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # enum cudaMemcpyKind, driver_types.h


class Dim3(ctypes.Structure):
    """``dim3`` of vector_types.h."""

    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


def main(copies_in: int, copies_out: int, launches: int) -> None:
    """Copy in, launch, and read back, each read waited for."""
    cuda = ctypes.CDLL("libcudart.so.13")

    def call(name: str, *arguments: object) -> None:
        status = getattr(cuda, name)(*arguments)
        if status != 0:
            sys.exit(f"{name}: CUDA error {status}")

    device, stream = ctypes.c_void_p(), ctypes.c_void_p()
    host = ctypes.create_string_buffer(max(IN_BYTES, OUT_BYTES))
    call("cudaMalloc", ctypes.byref(device), ctypes.c_size_t(len(host)))
    call("cudaStreamCreate", ctypes.byref(stream))
    for _ in range(copies_in):
        call("cudaMemcpy", device, host, ctypes.c_size_t(IN_BYTES), HOST_TO_DEVICE)
    one = Dim3(1, 1, 1)
    kernel = ctypes.c_void_p(0x1000)  # any address is a kernel to the simulated device
    for _ in range(launches):
        call("cudaLaunchKernel", kernel, one, one, None, ctypes.c_size_t(0), stream)
    for _ in range(copies_out):
        size = ctypes.c_size_t(OUT_BYTES)
        call("cudaMemcpyAsync", host, device, size, DEVICE_TO_HOST, stream)
        call("cudaStreamSynchronize", stream)
    call("cudaStreamDestroy", stream)
    call("cudaFree", device)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
