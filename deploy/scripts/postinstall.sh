#!/bin/sh
# weir is not started at the first installation: its configuration is the
# operator's. A running one is restarted with the new binary.
set -e
if [ -d "$DPKG_ROOT/run/systemd/system" ]; then
	systemctl daemon-reload
	if systemctl is-active --quiet weir.service; then
		systemctl try-restart weir.service
	fi
fi
