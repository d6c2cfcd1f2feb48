#!/bin/sh
# Called with "remove" (dpkg) or 0 (rpm) when the package goes, otherwise for an
# upgrade, during which weir goes on.
set -e
case "$1" in
remove | 0)
	if [ -d "$DPKG_ROOT/run/systemd/system" ]; then
		systemctl disable --now weir.socket weir.service || true
	fi
	;;
esac
