"""The CUDA runtime and NCCL from Python, through ctypes: calls made ready once, then counted.

A loop that makes thousands of calls a second cannot afford to convert arguments each
time, so :meth:`Calls.prepare` converts them once and returns a function without
arguments. Each of those counts itself, for the program to print what it did. ctypes
lets go of the interpreter lock during a call, so other threads run while one blocks.

Works with any library of this ABI. The libraries are loaded by path; the runtime finds
``libcuda.so.1`` by itself, so the loader must have been told where that is.

Sources: signatures and constants from CUDA 13's ``cuda_runtime_api.h`` and
``driver_types.h`` (wheel ``nvidia-cuda-runtime``), and NCCL 2's ``nccl.h``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import (
    POINTER,
    c_char,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_uint64,
    c_ulonglong,
    c_void_p,
)
from pathlib import Path
from typing import Any

RUNTIME = "libcudart.so.13"
DRIVER = "libcuda.so.1"
COLLECTIVES = "libnccl.so.2"

HOST_TO_DEVICE = 1  # enum cudaMemcpyKind
DEVICE_TO_HOST = 2
DIRECTIONS = {HOST_TO_DEVICE: "h2d", DEVICE_TO_HOST: "d2h"}

STREAM_NON_BLOCKING = 1  # cudaStreamNonBlocking
EVENT_DISABLE_TIMING = 2  # cudaEventDisableTiming
CAPTURE_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal

NCCL_UNIQUE_ID_BYTES = 128
NCCL_BFLOAT16 = 9  # ncclDataType_t
NCCL_SUM = 0  # ncclRedOp_t

# What each call is to the bridge; calls that are none of it are left out.
CLASSES = {
    "cudaMemcpy": "copy",
    "cudaMemcpyAsync": "copy",
    "cudaLaunchKernel": "launch",
    "cudaGraphLaunch": "graph",
    "cudaStreamSynchronize": "sync",
    "cudaEventSynchronize": "sync",
    "cudaDeviceSynchronize": "sync",
    "cudaEventRecord": "event",
    "cudaStreamWaitEvent": "event",
    "cudaMalloc": "alloc",
    "cudaHostAlloc": "alloc",
    "cudaFree": "free",
    "cudaFreeHost": "free",
    "ncclAllReduce": "collective",
}

# The classes that move data, a command or a signal over the bridge.
CROSSINGS = frozenset({"copy", "launch", "graph", "sync", "alloc", "collective"})


class Dim3(ctypes.Structure):
    """A grid or block size; passed by value."""

    _fields_ = (("x", c_uint), ("y", c_uint), ("z", c_uint))


class UniqueId(ctypes.Structure):
    """What the ranks of a communicator agree on; passed by value."""

    _fields_ = (("internal", c_char * NCCL_UNIQUE_ID_BYTES),)


_RUNTIME_ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaSetDevice": (c_int,),
    "cudaDeviceSynchronize": (),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpy": (c_void_p, c_void_p, c_size_t, c_int),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaLaunchKernel": (c_void_p, Dim3, Dim3, c_void_p, c_size_t, c_void_p),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaEventCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaEventDestroy": (c_void_p,),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaGraphInstantiate": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
}

_COLLECTIVE_ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "ncclGetUniqueId": (POINTER(UniqueId),),
    "ncclCommInitRank": (POINTER(c_void_p), c_int, UniqueId, c_int),
    "ncclCommDestroy": (c_void_p,),
    "ncclAllReduce": (c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
}


class CudaError(RuntimeError):
    """A call that returned an error: its name, the number and the library's own words."""


class Runtime:
    """The libraries of one folder, loaded, with the signatures of what is used here.

    Args:
        directory: The folder that holds ``libcudart.so.13`` and ``libnccl.so.2``.

    Raises:
        OSError: A library is missing or cannot be loaded.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        runtime = ctypes.CDLL(str(directory / RUNTIME))
        self._error_text = runtime.cudaGetErrorString
        self._error_text.argtypes = (c_int,)
        self._error_text.restype = c_char_p
        self._functions = _typed(runtime, _RUNTIME_ARGUMENTS)

    def load_collectives(self) -> None:
        """Load NCCL as well; a program of one process has no use for it."""
        library = ctypes.CDLL(str(self._directory / COLLECTIVES))
        self._functions.update(_typed(library, _COLLECTIVE_ARGUMENTS))

    def function(self, name: str) -> Any:
        """Return the ctypes function called ``name``."""
        return self._functions[name]

    def failure(self, name: str, status: int) -> CudaError:
        """Return the error for a call of ``name`` that returned ``status``."""
        if name.startswith("nccl"):
            return CudaError(f"{name} returned ncclResult_t {status}")
        text = self._error_text(status)
        return CudaError(f"{name} returned {status}: {text.decode() if text else 'no text'}")

    def set_kernel_ns(self, function: int, dur_ns: int) -> None:
        """Tell the simulated device how long the kernel ``function`` runs (ns).

        Args:
            function: The address that launches name.
            dur_ns: Device time of one launch.

        Raises:
            OSError: The driver library of this folder is no simulation.
        """
        driver = ctypes.CDLL(str(self._directory / DRIVER))
        try:
            set_kernel_ns = driver.simcuda_set_kernel_ns
        except AttributeError as error:
            raise OSError(f"{self._directory / DRIVER} is not the simulated driver") from error
        set_kernel_ns.argtypes = (c_void_p, c_uint64)
        set_kernel_ns.restype = None
        set_kernel_ns(function, dur_ns)


def _typed(library: ctypes.CDLL, signatures: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    functions = {}
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int
        functions[name] = function
    return functions


class Calls:
    """The calls of one thread, counted by name. Not shared: no lock is taken."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        # name and direction of copies -> [calls, bytes]
        self._counts: dict[tuple[str, str], list[int]] = {}

    def prepare(
        self, name: str, *arguments: Any, direction: str = "", size_bytes: int = 0
    ) -> Callable[[], None]:
        """Return a function that makes one call, counts it and checks what it returned.

        Args:
            name: A function of the runtime or of NCCL.
            *arguments: Its arguments; ctypes objects are the fastest.
            direction: ``h2d`` or ``d2h`` for a copy.
            size_bytes: What one call moves.

        Returns:
            The call; it raises :class:`CudaError` where the library returns an error.
        """
        function = self.runtime.function(name)
        failure = self.runtime.failure
        count = self._counts.setdefault((name, direction), [0, 0])

        def call() -> None:
            status = function(*arguments)
            count[0] += 1
            count[1] += size_bytes
            if status:
                raise failure(name, status)

        return call

    def make(self, name: str, *arguments: Any) -> None:
        """Make one call now: for setting up, where a microsecond does not matter."""
        self.prepare(name, *arguments)()

    def prepare_copy(
        self, target: int, source: int, size_bytes: int, kind: int, stream: c_void_p
    ) -> Callable[[], None]:
        """Return a function that enqueues one ``cudaMemcpyAsync`` on ``stream``."""
        return self.prepare(
            "cudaMemcpyAsync",
            c_void_p(target),
            c_void_p(source),
            c_size_t(size_bytes),
            c_int(kind),
            stream,
            direction=DIRECTIONS[kind],
            size_bytes=size_bytes,
        )

    def prepare_launch(self, function: int, stream: c_void_p) -> Callable[[], None]:
        """Return a function that launches one block of the kernel ``function``."""
        one = Dim3(1, 1, 1)
        nothing = c_void_p(None)
        return self.prepare(
            "cudaLaunchKernel", c_void_p(function), one, one, nothing, c_size_t(0), stream
        )

    def counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return (calls, bytes) so far by (name, direction); no entry without a call."""
        return {key: (made, moved) for key, (made, moved) in self._counts.items() if made}
