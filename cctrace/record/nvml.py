"""Ask NVML for the GPUs and their confidential-computing state.

Two halves. Run as a script it is a child process that loads the library, asks
and writes one JSON object to stdout: a driver that hangs or crashes then takes
the child with it and not the recorder (a thread stuck in C cannot be ended).
Imported, :class:`NvmlProbe` starts that child and reads its answer when it
comes. The script half must use nothing but the standard library.

Source: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/ (nvml.h):
nvmlConfComputeSystemState_t, nvmlSystemConfComputeSettings_v1_t and _v2_t,
nvmlConfComputeSystemCaps_t, nvmlMemory_t, nvmlPciInfo_t, NVML_CC_SYSTEM_*;
NVML_STRUCT_VERSION is a struct's size with the version in the highest byte.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
import time
from ctypes import byref, c_char, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

LIBRARY = "libnvidia-ml.so.1"

_SUCCESS = 0
_NOT_SUPPORTED = 3
_ANSWER_BYTES = 1 << 20  # far above the answer for any number of GPUs
_STRING_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE, the longest one asked for
_MULTI_GPU_PROTECTED_PCIE = 1
_MULTI_GPU = {0: "none", _MULTI_GPU_PROTECTED_PCIE: "protected_pcie", 2: "nvle"}
_FEATURE = {0: "off", 1: "on", 2: "on (bare-metal secure AI)"}
_ENVIRONMENT = {0: "unavailable", 1: "simulation", 2: "production"}
_TDISP = {0: "disabled", 1: "not_ready", 2: "ready"}
_CPU_CAPABILITY = {
    0: "none",
    1: "sev",
    2: "tdx",
    3: "sev-snp",
    4: "sev-snp-vtom",
    5: "cca",
    6: "tdx-connect",
    7: "sev-tio",
}


class _State(ctypes.Structure):  # nvmlConfComputeSystemState_t
    _fields_ = (("environment", c_uint), ("feature", c_uint), ("devtools", c_uint))


class _Settings1(ctypes.Structure):  # nvmlSystemConfComputeSettings_v1_t
    _fields_ = (
        ("version", c_uint),
        ("environment", c_uint),
        ("feature", c_uint),
        ("devtools", c_uint),
        ("multi_gpu", c_uint),
    )


class _Settings2(ctypes.Structure):  # nvmlSystemConfComputeSettings_v2_t
    _fields_ = (*_Settings1._fields_, ("tdisp", c_uint))


class _Capabilities(ctypes.Structure):  # nvmlConfComputeSystemCaps_t
    _fields_ = (("cpu", c_uint), ("gpus", c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class _PciInfo(ctypes.Structure):
    _fields_ = (
        ("bus_id_legacy", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("pci_device_id", c_uint),
        ("pci_subsystem_id", c_uint),
        ("bus_id", c_char * 32),
    )


def unknown(reason: str) -> dict[str, Any]:
    """GPU facts of a machine whose NVML told nothing, and why."""
    return {
        "cc_state": "unknown",
        "cc_how": reason,
        "cc_environment": None,
        "multi_gpu_mode": None,
        "tdisp": None,
        "cpu_capability": None,
        "accepting_work": None,
        "driver_version": None,
        "devices": [],
    }


class _Nvml:
    """The library, with statuses for answers: a missing function is one more."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> str | None:
        """Call ``name``; None where it succeeded, else why it did not."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            return f"{name}: this driver's NVML has no such function"
        function.restype = c_int
        status = function(*arguments)
        if status == _SUCCESS:
            return None
        if status == _NOT_SUPPORTED:
            return f"{name}: not supported"
        return f"{name}: {self._error(status)}"

    def text(self, name: str, *arguments: Any) -> str | None:
        """A string NVML writes into a buffer; None where it does not."""
        buffer = ctypes.create_string_buffer(_STRING_BYTES)
        failed = self.call(name, *arguments, buffer, c_uint(_STRING_BYTES))
        return None if failed else buffer.value.decode("utf-8", "replace")

    def _error(self, status: int) -> str:
        try:
            describe = self._library.nvmlErrorString
        except AttributeError:
            return f"NVML status {status}"
        describe.restype = c_char_p
        text = describe(status)
        return text.decode("utf-8", "replace") if text else f"NVML status {status}"


def query(library_name: str) -> dict[str, Any]:
    """Load ``library_name`` and ask it. Call this in a child process only.

    Returns:
        ``cc_state`` (off, on, devtools, unknown) and ``cc_how``;
        ``cc_environment`` (unavailable, simulation, production);
        ``multi_gpu_mode`` (none, protected_pcie, nvle); ``tdisp`` (disabled,
        not_ready, ready: DMA straight into protected memory); ``cpu_capability``
        (the processor's side, such as tdx or sev-snp); ``accepting_work``;
        ``driver_version``; ``devices`` by index with name, memory in bytes and
        PCI bus id. None: this NVML does not tell.
    """
    try:
        library = ctypes.CDLL(library_name)
    except OSError as error:
        return unknown(f"NVML cannot be loaded: {error}")
    nvml = _Nvml(library)
    failed = nvml.call("nvmlInit_v2")
    if failed:
        return unknown(failed)
    try:
        return {
            **_conf_compute(nvml),
            "driver_version": nvml.text("nvmlSystemGetDriverVersion"),
            "devices": _devices(nvml),
        }
    finally:
        nvml.call("nvmlShutdown")


def _conf_compute(nvml: _Nvml) -> dict[str, Any]:
    facts = unknown("")
    capabilities, ready = _Capabilities(), c_uint()
    if nvml.call("nvmlSystemGetConfComputeCapabilities", byref(capabilities)) is None:
        facts["cpu_capability"] = _named(_CPU_CAPABILITY, capabilities.cpu)
    if nvml.call("nvmlSystemGetConfComputeGpusReadyState", byref(ready)) is None:
        facts["accepting_work"] = bool(ready.value)
    # Newest call first: older drivers lack the later ones.
    refusals = []
    for call, told in (
        ("nvmlSystemGetConfComputeSettings_v2", _Settings2()),
        ("nvmlSystemGetConfComputeSettings", _Settings1()),
        ("nvmlSystemGetConfComputeState", _State()),
    ):
        if not isinstance(told, _State):
            version = 2 if isinstance(told, _Settings2) else 1
            told.version = ctypes.sizeof(told) | version << 24
        refused = nvml.call(call, byref(told))
        if refused is None:
            return {**facts, **_cc_state(told, call)}
        refusals.append(refused)
    unsupported = refusals[-1].endswith("not supported")
    return {**facts, "cc_state": "off" if unsupported else "unknown", "cc_how": refusals[-1]}


def _cc_state(told: _State | _Settings1 | _Settings2, how: str) -> dict[str, Any]:
    multi_gpu = None if isinstance(told, _State) else int(told.multi_gpu)
    detail = f"feature {_named(_FEATURE, told.feature)}"
    if told.feature and told.devtools:
        state, detail = "devtools", f"{detail}, devtools mode on"
    elif told.feature:
        state = "on"
    elif multi_gpu == _MULTI_GPU_PROTECTED_PCIE:
        # The bridge is crossed encrypted although the feature itself reads off.
        state, detail = "on", f"{detail}, but protected PCIe on"
    else:
        state = "off"
    return {
        "cc_state": state,
        "cc_how": f"{how}: {detail}",
        "cc_environment": _named(_ENVIRONMENT, told.environment),
        "multi_gpu_mode": None if multi_gpu is None else _named(_MULTI_GPU, multi_gpu),
        "tdisp": _named(_TDISP, told.tdisp) if isinstance(told, _Settings2) else None,
    }


def _named(names: dict[int, str], value: int) -> str:
    """Name of ``value``; the number itself where a later NVML added it."""
    return names.get(int(value), str(int(value)))


def _devices(nvml: _Nvml) -> list[dict[str, Any]]:
    count = c_uint(0)
    if nvml.call("nvmlDeviceGetCount_v2", byref(count)):
        return []
    devices = []
    for index in range(count.value):
        device: dict[str, Any] = {
            "index": index,
            "name": None,
            "memory_bytes": None,
            "pci_bus_id": None,
        }
        handle = c_void_p()
        if not nvml.call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle)):
            device["name"] = nvml.text("nvmlDeviceGetName", handle)
            memory, pci = _Memory(), _PciInfo()
            if not nvml.call("nvmlDeviceGetMemoryInfo", handle, byref(memory)):
                device["memory_bytes"] = int(memory.total)
            if not nvml.call("nvmlDeviceGetPciInfo_v3", handle, byref(pci)):
                device["pci_bus_id"] = pci.bus_id.decode("ascii", "replace")
        devices.append(device)
    return devices


class NvmlProbe:
    """A child process that asks NVML, and its answer.

    A recorder that waits for any child (``waitpid(-1)``) may reap this one too:
    nothing here depends on its exit status.

    Args:
        library: Name or path of the library.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        self._answer = bytearray()
        self._result: dict[str, Any] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if not sys.executable:
            self._result = unknown("NVML was not asked: the path of this Python is unknown")
            return
        try:
            # -I and -S: nothing of the user's environment runs in the child. A
            # session of its own: Ctrl-C is for the recorder alone.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, library],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._result = unknown(f"NVML was not asked: {error}")

    def wait(self, timeout_s: float) -> bool:
        """Wait for the answer; return whether it has come."""
        deadline = time.monotonic() + timeout_s
        while self._result is None:
            remaining_s = max(0.0, deadline - time.monotonic())
            stdout = self._stdout()
            if not select.select([stdout], [], [], remaining_s)[0]:
                return False
            chunk = os.read(stdout, 65536)
            self._answer += chunk
            if not chunk or len(self._answer) > _ANSWER_BYTES:
                self._finish()
        return True

    def result(self) -> dict[str, Any]:
        """GPU facts; ``unknown`` with the reason while there is no answer."""
        if self.wait(0) and self._result is not None:
            return self._result
        return unknown("NVML has not answered")

    def close(self) -> None:
        """End the child if it still runs. A child stuck in the driver is left."""
        if self._process is None:
            return
        self.wait(0)
        process, self._process = self._process, None
        if self._result is None:
            self._result = unknown("NVML did not answer in time")
            process.kill()
        if process.stdout:
            process.stdout.close()
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            # An uninterruptible sleep in the driver: init gets the child in the end.
            process.returncode = -1

    def _stdout(self) -> int:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError("asked after close")
        return self._process.stdout.fileno()

    def _finish(self) -> None:
        try:
            result = json.loads(self._answer)
        except ValueError:
            result = None
        if isinstance(result, dict) and "cc_state" in result:
            self._result = result
        else:
            self._result = unknown("NVML ended the process that asked it")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(query(sys.argv[1] if len(sys.argv) > 1 else LIBRARY)))
