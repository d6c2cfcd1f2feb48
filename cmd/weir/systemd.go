package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// notify tells systemd of a change of state (sd_notify(3)); without systemd it
// does nothing.
func notify(log *zap.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd not notified", zap.String("state", state), zap.Error(err))
	}
}

// notifyReloading says that a reload begins; systemd wants the time of it.
func notifyReloading(log *zap.Logger) {
	notify(log, fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, monotonicMicros()))
}

// watchdog tells systemd that weir lives, as often as WatchdogSec= asks, for as
// long as alive answers: a deadlock ends the reports, and systemd restarts weir.
func watchdog(ctx context.Context, log *zap.Logger, alive func()) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd watchdog not usable", zap.Error(err))
		return
	}
	if interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		alive()
		notify(log, daemon.SdNotifyWatchdog)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// monotonicMicros is CLOCK_MONOTONIC in microseconds, as sd_notify(3) wants it.
func monotonicMicros() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1000
}
