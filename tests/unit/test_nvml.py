"""NVML's answers, from a made-up library built against NVIDIA's own nvml.h."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cctrace.record.nvml import NvmlProbe

SOURCE = Path(__file__).parents[1] / "targets" / "fake_nvml.c"
ANSWER_WITHIN_S = 30  # a loaded machine; the child takes some 30 ms


def _nvml_include() -> Path:
    try:
        files = metadata.files("nvidia-nvml-dev") or []
    except metadata.PackageNotFoundError:
        pytest.skip("nvidia-nvml-dev, which has nvml.h, is not installed")
    header = next(file for file in files if file.name == "nvml.h")
    return Path(str(header.locate())).parent


def _build(directory: Path, *flags: str) -> str:
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(
        [
            compiler,
            "-shared",
            "-fPIC",
            *flags,
            "-I",
            str(_nvml_include()),
            "-o",
            str(library),
            str(SOURCE),
        ],
        check=True,
    )
    return str(library)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _build(tmp_path_factory.mktemp("nvml"))


def _ask(library: str) -> dict[str, Any]:
    probe = NvmlProbe(library)
    try:
        assert probe.wait(ANSWER_WITHIN_S)
        return probe.result()
    finally:
        probe.close()


@pytest.mark.parametrize(
    ("behaviour", "state", "how"),
    [
        ("off", "off", "nvmlSystemGetConfComputeSettings: feature off"),
        ("on", "on", "nvmlSystemGetConfComputeSettings: feature on"),
        (
            "devtools",
            "devtools",
            "nvmlSystemGetConfComputeSettings: feature on, devtools mode on",
        ),
        (
            "ppcie",
            "on",
            "nvmlSystemGetConfComputeSettings: feature off, but protected PCIe on",
        ),
        ("tdisp", "on", "nvmlSystemGetConfComputeSettings_v2: feature on"),
        ("old", "off", "nvmlSystemGetConfComputeState: not supported"),
        ("no_init", "unknown", "nvmlInit_v2: Driver Not Loaded"),
        ("crash", "unknown", "NVML ended the process that asked it"),
    ],
)
def test_cc_state_is_told_with_its_source(
    monkeypatch: pytest.MonkeyPatch, library: str, behaviour: str, state: str, how: str
) -> None:
    # GIVEN a driver in that state
    monkeypatch.setenv("FAKE_NVML", behaviour)
    # WHEN NVML is asked
    gpu = _ask(library)
    # THEN the state is told, and by which call
    assert (gpu["cc_state"], gpu["cc_how"]) == (state, how)


def test_whole_answer(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    # GIVEN three GPUs of which the second has fallen off the bus
    monkeypatch.setenv("FAKE_NVML", "tdisp")
    # WHEN NVML is asked
    gpu = _ask(library)
    # THEN every field is the header's, and the lost GPU is listed without facts
    assert gpu == {
        "cc_state": "on",
        "cc_how": "nvmlSystemGetConfComputeSettings_v2: feature on",
        "cc_environment": "production",
        "multi_gpu_mode": "nvle",
        "tdisp": "ready",
        "cpu_capability": "sev-snp-vtom",
        "accepting_work": True,
        "driver_version": "595.45.04",
        "devices": [
            {
                "index": 0,
                "name": "NVIDIA H200",
                "memory_bytes": 150754820107,
                "pci_bus_id": "00000000:00:00.0",
            },
            {"index": 1, "name": None, "memory_bytes": None, "pci_bus_id": None},
            {
                "index": 2,
                "name": "NVIDIA H202",
                "memory_bytes": 150754820107,
                "pci_bus_id": "00000000:02:00.0",
            },
        ],
    }


def test_driver_without_the_settings_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # GIVEN a library of the first drivers with CC mode
    library = _build(tmp_path, "-DFAKE_NVML_R535")
    monkeypatch.setenv("FAKE_NVML", "on")
    # WHEN it is asked
    gpu = _ask(library)
    # THEN the older call answers, and what it cannot tell is None
    assert (gpu["cc_state"], gpu["cc_how"]) == ("on", "nvmlSystemGetConfComputeState: feature on")
    assert (gpu["cc_environment"], gpu["multi_gpu_mode"], gpu["tdisp"]) == (
        "simulation",
        None,
        None,
    )


def test_hanging_driver_costs_no_more_than_the_wait(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    # GIVEN a driver that never returns from nvmlInit
    monkeypatch.setenv("FAKE_NVML", "hang")
    probe = NvmlProbe(library)
    process = probe._process
    # WHEN the wait is over and the probe is closed
    assert not probe.wait(0.1)
    assert probe.result()["cc_how"] == "NVML has not answered"
    probe.close()
    # THEN the facts say so and the child is gone
    assert probe.result()["cc_how"] == "NVML did not answer in time"
    assert process is not None
    assert process.returncode == -9


def test_missing_library_is_named(tmp_path: Path) -> None:
    # GIVEN no library
    missing = tmp_path / "libnvidia-ml.so.1"
    # WHEN it is asked
    gpu = _ask(str(missing))
    # THEN the loader's reason is kept
    assert gpu["cc_state"] == "unknown"
    assert gpu["cc_how"].startswith(f"NVML cannot be loaded: {missing}: cannot open")
