#!/usr/bin/env bash
# Build the guest that tests/vm boots: Debian 12 with its kernel, the kernel's
# headers, BCC, Python and what cctrace depends on. cctrace itself is not in it:
# the source tree reaches the guest at each boot (tests/vm/guest.py).
#
# Usage: scripts/vm_image.sh      prints the directory of the image, which holds
#                                 root.ext4, vmlinuz and initrd
# Environment: VENV (default .venv), an environment that `make setup` has made.
#
# The image is kept under .cache/vm by a hash of all it is made from, and is built
# again only when that changes. Needs root, as debootstrap does. On Debian and
# Ubuntu the tools it needs are installed by apt.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
SUITE=bookworm
GUEST_PYTHON=3.11 # of that suite
DISK_SIZE=3G      # sparse: takes as much as is in it
PACKAGES=linux-image-cloud-amd64,linux-headers-cloud-amd64,python3,python3-bpfcc
PACKAGES+=,busybox-static,kmod,procps,make
MODULES="virtio_pci virtio_blk ext4"
CACHE=.cache/vm

say() { echo "vm_image: $*" >&2; }

die() {
	say "$1"
	say "hint: $2"
	exit 1
}

missing_packages() {
	command -v debootstrap >/dev/null || echo debootstrap
	command -v qemu-system-x86_64 >/dev/null || echo qemu-system-x86
	command -v mkfs.ext4 >/dev/null || echo e2fsprogs
	command -v cpio >/dev/null || echo cpio
}

install_packages() {
	local packages
	packages=$(missing_packages | tr '\n' ' ')
	[ -n "$packages" ] || return 0
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
}

# cctrace's own dependencies, one a line, as pyproject.toml has them.
dependencies() {
	sed -n '/^dependencies = \[/,/^\]/s/^ *"\(.*\)",.*/\1/p' pyproject.toml
}

fingerprint() {
	{
		dependencies
		cat scripts/vm_image.sh tests/vm/initrd_init tests/targets/kernel/*
	} | sha256sum | cut -c1-16
}

# Unpack and configure Debian into $1, its log in $2.
make_root() {
	say "installing Debian $SUITE: some 80 s"
	# INITRD=No: the kernel's own initrd would not be used.
	INITRD=No debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$1" >"$2" 2>&1 ||
		die "debootstrap failed: $(tail -n 1 "$2")" "its log is $PWD/$2"
	rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* \
		"$1"/usr/share/{doc,man,locale,info}
}

# An environment for cctrace at /usr/local/cctrace of root $1. pip runs out here, where the
# network and its settings are, and fetches wheels for the guest's Python.
make_environment() {
	local packages
	say "installing cctrace's dependencies: some 30 s"
	mapfile -t packages < <(dependencies)
	[ "${#packages[@]}" -gt 0 ] ||
		die "pyproject.toml names no dependencies" "see dependencies() in $0"
	chroot "$1" python3 -m venv --without-pip /usr/local/cctrace
	"$VENV/bin/python" -m pip install -q --disable-pip-version-check --no-compile \
		--target "$1/usr/local/cctrace/lib/python$GUEST_PYTHON/site-packages" \
		--python-version "$GUEST_PYTHON" --implementation cp --only-binary=:all: \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
		--platform manylinux2014_x86_64 --platform any "${packages[@]}"
	echo /src >"$1/usr/local/cctrace/lib/python$GUEST_PYTHON/site-packages/cctrace.pth"
	cat >"$1/usr/local/cctrace/bin/cctrace" <<'PROGRAM'
#!/usr/local/cctrace/bin/python
import sys

from cctrace.cli import main

sys.exit(main())
PROGRAM
	chmod +x "$1/usr/local/cctrace/bin/cctrace"
	# Emulated, compiling would take longer than all the tests.
	chroot "$1" python3 -m compileall -q -j 0 /usr/local/cctrace/lib /usr/lib/python3/dist-packages \
		/usr/lib/python$GUEST_PYTHON >/dev/null || true
}

# The test module for the kernel in root $1, into directory $2. Built by the root's own
# headers and compiler: those of this machine can be of another release.
make_module() {
	local root=$1 headers
	headers=$(basename "$root"/usr/src/linux-headers-*-cloud-amd64)
	mkdir -p "$2" "$root/tmp/module"
	cp tests/targets/kernel/* "$root/tmp/module/"
	chroot "$root" make -s -C /tmp/module build KERNEL="/usr/src/$headers" \
		OUT=/tmp/module >"$2.log" 2>&1 ||
		die "the test module does not compile: $(tail -n 1 "$2.log")" "see $PWD/$2.log"
	mv "$root"/tmp/module/*.ko "$2/"
	rm -rf "$root/tmp/module"
}

# An initrd at $2 that can mount the root disk, from the kernel's modules in root $1.
make_initrd() {
	local root=$1 staging=$1.initrd release module file
	release=$(basename "$root"/lib/modules/*)
	mkdir -p "$staging/bin" "$staging/modules"
	cp "$root/bin/busybox" "$staging/bin/busybox"
	install -m 755 tests/vm/initrd_init "$staging/init"
	for module in $MODULES; do
		chroot "$root" modprobe --set-version "$release" --show-depends "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$staging/paths"
	while read -r file; do
		cp "$root$file" "$staging/modules/"
		basename "$file"
	done <"$staging/paths" >"$staging/modules/order"
	rm "$staging/paths"
	(cd "$staging" && find . | cpio -o -H newc --quiet) | gzip -1 >"$2"
	rm -rf "$staging"
}

build() {
	local out=$1 work begun_s=$SECONDS
	[ "$(id -u)" = 0 ] || die "debootstrap needs root" "run this as root"
	[ -x "$VENV/bin/python" ] || die "$VENV is not there" "make setup"
	work=$CACHE/work
	rm -rf "$work"
	mkdir -p "$work"
	# On any way out: a half-built root is hundreds of megabytes.
	trap 'rm -rf "$PWD/$CACHE/work/root" "$PWD/$CACHE/work/root.initrd"' EXIT
	make_root "$work/root" "$work/debootstrap.log"
	make_environment "$work/root"
	make_module "$work/root" "$work/standin"
	say "writing the disk"
	cp "$work/root"/boot/vmlinuz-* "$work/vmlinuz"
	make_initrd "$work/root" "$work/initrd"
	rm -f "$work/root"/boot/vmlinuz-*
	truncate -s "$DISK_SIZE" "$work/root.ext4"
	mkfs.ext4 -q -F -m 0 -O ^has_journal -d "$work/root" "$work/root.ext4"
	rm -rf "$work/root"
	find "$CACHE" -mindepth 1 -maxdepth 1 -type d ! -name work -exec rm -rf {} +
	mv "$work" "$out"
	say "built in $((SECONDS - begun_s)) s: $out, $(du -sm "$out" | cut -f1) MB"
}

install_packages
mkdir -p "$CACHE"
exec 9>"$CACHE/lock"
flock 9
image=$CACHE/$(fingerprint)
[ -e "$image/root.ext4" ] || build "$image" 9>&-
echo "$PWD/$image"
