#!/bin/sh
# Make a virtual environment with transformers: examples/hf_generate/setup.sh VENV
#
# Done once: a stamp in the environment, which holds this file's checksum, says
# that all of it went well. HF_SETUP_TIMEOUT bounds the download (seconds).
set -eu

VENV=${1:?usage: setup.sh VENV}
PYTHON=${PYTHON:-python3}
LIMIT=${HF_SETUP_TIMEOUT:-1800}

TORCH=2.13.0
TRANSFORMERS=5.19.0

stamp=$VENV/.cctrace-hf-$(cksum <"$0" | cut -d' ' -f1)
if [ -e "$stamp" ]; then
	exit 0
fi
if [ ! -x "$VENV/bin/python" ]; then
	"$PYTHON" -m venv "$VENV"
fi
timeout "$LIMIT" "$VENV/bin/python" -m pip --disable-pip-version-check install --quiet \
	"torch==$TORCH" "transformers==$TRANSFORMERS" || {
	status=$?
	echo "setup.sh: pip failed with status $status (124: no end within $LIMIT s;" \
		"raise HF_SETUP_TIMEOUT)" >&2
	exit "$status"
}
"$VENV/bin/python" -c 'import torch, transformers'

rm -f "$VENV"/.cctrace-hf-*
: >"$stamp"
