#!/usr/bin/env bash
# Installs by name what the tests use beside Go: a C compiler for the race
# detector, Python's and Node's Forward senders, a browser, tmux, systemd's tools, small disks that fail. As root
# it installs what is missing; otherwise it says what to install. It fetches Go's
# modules as well, and builds STATICCHECK and NFPM, so that no test waits for a
# network or for a compiler. What a network can fail at is tried again.
set -euo pipefail
cd "$(dirname "$0")"

retry() { # retry COMMAND...
	local pause
	for pause in 5 15 30; do
		"$@" && return
		echo "tried again in $pause s: $*" >&2
		sleep "$pause"
	done
	"$@"
}

missing=()
need() { # need COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need gcc gcc
need node nodejs
need npm npm
need systemd-analyze systemd
need systemd-socket-activate systemd
need strace strace
need mkfs.ext4 e2fsprogs
need losetup mount
need rpm rpm
need chromium chromium
need tmux tmux
/usr/bin/python3 -c 'import fluent.sender' 2>/dev/null || missing+=(python3-fluent-logger)

if [ ${#missing[@]} -gt 0 ] && { [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; }; then
	echo "The tests need these Debian packages: ${missing[*]}" >&2
	echo "Install them, for example: sudo apt-get install ${missing[*]}" >&2
	exit 1
fi

# As make packages runs it, which needs no C compiler: beside the rest.
retry env CGO_ENABLED=0 "${GO:-go}" run -trimpath "$NFPM" --version >/dev/null &
nfpm=$!

if [ ${#missing[@]} -gt 0 ]; then
	export DEBIAN_FRONTEND=noninteractive
	apt=(apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)
	install() { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null; }
	retry install
fi

# The versions are in package-lock.json.
if [ ! -d testdata/node/node_modules/@fluent-org/logger ] ||
	[ testdata/node/package-lock.json -nt testdata/node/node_modules ]; then
	retry npm ci --prefix testdata/node --no-audit --no-fund --loglevel=error
	touch testdata/node/node_modules
fi

retry "${GO:-go}" list -deps -test ../../... >/dev/null
retry "${GO:-go}" run "$STATICCHECK" --version >/dev/null
wait "$nfpm"
