#!/usr/bin/env bash
# What `make test-pages` needs: Chromium, playwright to drive it, and the published JSON
# schema of speedscope's files in .cache/pages/speedscope/.
#
# Environment: VENV (default .venv), made by `make setup`. What cannot be had is said, and the
# tests that need it are skipped with that reason. Run again it does only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
SPEEDSCOPE_VERSION=1.25.0
SCHEMA=.cache/pages/speedscope/file-format-schema.json

say() { echo "pages: $*" >&2; }

has_chromium() {
	command -v chromium || command -v chromium-browser || command -v google-chrome
} >/dev/null

install_chromium() {
	! has_chromium || return 0
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		say "no chromium: sudo apt-get install -y --no-install-recommends chromium"
		return 0
	fi
	say "installing chromium by apt"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq >/dev/null 2>&1 || true
	apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1 ||
		say "apt has no chromium: pages are not tested"
}

install_playwright() {
	"$VENV/bin/python" -c 'import playwright' 2>/dev/null && return 0
	say "installing playwright into $VENV"
	"$VENV/bin/python" -m pip install -q --disable-pip-version-check --group pages
}

# The schema is in the package that its authors publish. Debian's npm is some 400 packages, so
# it is used where it is and not installed for one file.
fetch_schema() {
	[ ! -s "$SCHEMA" ] || return 0
	if ! command -v npm >/dev/null; then
		say "no npm: speedscope's schema is not fetched, its test is skipped"
		return 0
	fi
	local folder
	folder=$(mktemp -d)
	if (cd "$folder" && npm pack --silent "speedscope@$SPEEDSCOPE_VERSION" >/dev/null 2>&1) &&
		tar -xzf "$folder"/speedscope-*.tgz -C "$folder" &&
		[ -s "$folder/package/dist/release/file-format-schema.json" ]; then
		mkdir -p "$(dirname "$SCHEMA")"
		mv "$folder/package/dist/release/file-format-schema.json" "$SCHEMA"
	else
		say "speedscope's schema could not be fetched: its test is skipped"
	fi
	rm -rf "$folder"
}

install_chromium
install_playwright
fetch_schema
