#!/usr/bin/env bash
# Make .venv ready: cctrace itself (editable), the tools that check and test it,
# and with --torch also torch, which examples/decode_loop.py needs.
#
# Usage: scripts/setup.sh [--torch]
# Environment: PYTHON (an interpreter, 3.10 or later), VENV (default .venv).
#
# On Debian and Ubuntu, as root, what the machine lacks is installed by apt. What BPF
# needs (BCC, kernel headers) is installed where it may be used, and done without
# where it cannot be had. Run again it does only what has changed, and takes well
# under a second if nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
TORCH_VERSION=2.13.0
MIN_PYTHON="3, 10"
with_torch=0
for argument in "$@"; do
	case $argument in
	--torch) with_torch=1 ;;
	*)
		echo "setup: unknown argument: $argument" >&2
		exit 2
		;;
	esac
done

say() { echo "setup: $*" >&2; }

die() {
	say "$1"
	say "hint: $2"
	exit 1
}

# Whether $1 is a Python that is new enough and can make an environment with pip.
is_python() {
	"$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < ($MIN_PYTHON))" \
		2>/dev/null
}

find_python() {
	local candidate
	if [ -n "${PYTHON:-}" ]; then
		is_python "$PYTHON" && echo "$PYTHON"
		return
	fi
	for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
		if is_python "$candidate"; then
			echo "$candidate"
			return
		fi
	done
}

has_compiler() {
	echo '#include <stdio.h>' | cc -fsyntax-only -x c - 2>/dev/null
}

# Packages of Debian and Ubuntu that this machine lacks.
missing_packages() {
	[ -n "$(find_python)" ] || echo python3 python3-venv
	has_compiler || echo gcc libc6-dev
	[ -e /etc/ssl/certs/ca-certificates.crt ] || [ ! -e /etc/debian_version ] ||
		echo ca-certificates
}

install_packages() {
	local packages
	packages=$(missing_packages | tr '\n' ' ')
	[ -n "$packages" ] || return 0
	if [ -n "${PYTHON:-}" ] && ! is_python "$PYTHON"; then
		die "PYTHON=$PYTHON is not a Python 3.10 or later with venv and pip" \
			"name another one, or leave PYTHON out"
	fi
	if ! command -v apt-get >/dev/null; then
		die "this machine lacks what Debian calls: $packages" \
			"install them with the package manager and run this again"
	fi
	if [ "$(id -u)" != 0 ]; then
		die "this machine lacks: $packages" \
			"sudo apt-get update && sudo apt-get install -y $packages"
	fi
	say "installing by apt: $packages"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	# shellcheck disable=SC2086  # a list of words
	apt-get install -y -qq --no-install-recommends $packages >/dev/null
	[ -n "$(find_python)" ] ||
		die "this release's Python is older than 3.10" "PYTHON=/path/to/python make ..."
}

# What the files $@ hold, and which interpreter the environment has.
fingerprint() {
	{
		readlink -f "$VENV/bin/python" || true
		cat "$@"
	} 2>/dev/null | sha256sum | cut -c1-32
}

is_done() { [ "$(cat "$VENV/.setup-$1" 2>/dev/null)" = "$2" ]; }
mark_done() { echo "$2" >"$VENV/.setup-$1"; }

pip_install() {
	"$VENV/bin/python" -m pip install -q --disable-pip-version-check \
		--no-warn-script-location "$@"
}

make_venv() {
	local python
	if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
		if [ -z "${PYTHON:-}" ] ||
			[ "$("$PYTHON" -V)" = "$("$VENV/bin/python" -V)" ]; then
			return 0
		fi
	fi
	python=$(find_python)
	[ -n "$python" ] || die "no Python 3.10 or later with venv" "PYTHON=/path/to/python make ..."
	say "making $VENV with $("$python" -V)"
	"$python" -m venv --clear "$VENV"
	# --group came with pip 25.1.
	pip_install 'pip>=25.1'
}

install_tools() {
	local mark
	mark=$(fingerprint pyproject.toml scripts/setup.sh)
	is_done tools "$mark" && return 0
	say "installing dependencies and tools into $VENV"
	pip_install 'pip>=25.1'
	pip_install --group dev
	mark_done tools "$mark"
	rm -f "$VENV/.setup-build"
}

build() {
	local mark
	mark=$(fingerprint pyproject.toml CMakeLists.txt scripts/nvtx_include.py \
		$(find probes -type f -name '*.[ch]' -o -type f -name CMakeLists.txt | sort))
	is_done build "$mark" && return 0
	say "building the C parts and installing cctrace into $VENV"
	pip_install --no-build-isolation -e .
	mark_done build "$mark"
}

install_torch() {
	is_done torch "$TORCH_VERSION" && return 0
	say "installing torch $TORCH_VERSION into $VENV"
	pip_install "torch==$TORCH_VERSION"
	mark_done torch "$TORCH_VERSION"
}

has_bcc() {
	local place
	for place in /usr/lib/python3/dist-packages/bcc /usr/lib/python3.*/site-packages/bcc \
		/usr/local/lib/python3*/*-packages/bcc; do
		[ ! -e "$place/libbcc.py" ] || return 0
	done
	return 1
}

# Headers of any kernel serve; cctrace/record/bpf/headers.py chooses among them.
has_kernel_headers() {
	local place
	for place in /lib/modules/*/build /usr/src/linux-headers-* /usr/src/kernels/*; do
		[ ! -e "$place/include/generated/autoconf.h" ] || return 0
	done
	{ [ -e /sys/kernel/kheaders.tar.xz ] || [ -e /proc/kheaders.tar.xz ]; } &&
		command -v xz >/dev/null && command -v tar >/dev/null
}

# Whether BPF could be used: CAP_SYS_ADMIN is bit 21, include/uapi/linux/capability.h.
may_use_bpf() {
	local key value
	while read -r key value; do
		if [ "$key" = CapEff: ]; then
			((0x$value >> 21 & 1)) && return 0 || return 1
		fi
	done 2>/dev/null </proc/self/status
	return 1
}

# The packages $@ by apt; says nothing, and fails where one cannot be installed.
try_packages() {
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

# Names of packages with kernel headers, the best first.
header_packages() {
	local name
	for name in "linux-headers-$(uname -r)" linux-headers-cloud-amd64 linux-headers-amd64 \
		linux-headers-virtual linux-headers-generic; do
		[ -z "$(apt-cache --quiet=2 show "$name" 2>/dev/null)" ] || echo "$name"
	done
}

# What the BPF sources need. Tried once: without it all else is recorded as ever.
install_bpf() {
	local lacks="" name
	has_bcc || lacks="BCC"
	has_kernel_headers || lacks="${lacks:+$lacks and }kernel headers"
	[ -n "$lacks" ] || return 0
	is_done bpf "$lacks" && return 0
	if ! may_use_bpf; then
		say "no $lacks, nor the right to use them: no CUDA calls, no scheduler recorded"
	elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		say "no $lacks: no CUDA calls, no scheduler recorded (cctrace doctor says the fix)"
	else
		say "installing $lacks by apt"
		apt-get update -qq >/dev/null 2>&1 || true
		has_bcc || try_packages python3-bpfcc || true
		if ! has_kernel_headers; then
			for name in $(header_packages); do
				! try_packages "$name" || ! has_kernel_headers || break
			done
		fi
		has_bcc && has_kernel_headers && return 0
		say "apt has no $lacks: no CUDA calls, no scheduler recorded (see cctrace doctor)"
	fi
	mark_done bpf "$lacks"
}

if [ ! -x "$VENV/bin/python" ] || ! has_compiler; then
	install_packages
fi
mkdir -p .cache
exec 9>.cache/setup.lock
flock 9
make_venv
install_tools
build
install_bpf
[ "$with_torch" = 0 ] || install_torch
