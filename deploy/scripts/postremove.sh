#!/bin/sh
# What is in /var/lib/weir and /var/log/weir is the operator's data and stays.
set -e
if [ -d "$DPKG_ROOT/run/systemd/system" ]; then
	systemctl daemon-reload
fi
