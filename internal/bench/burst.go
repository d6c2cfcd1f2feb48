package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"weir/internal/load"
)

// burstApart runs the burst in a network namespace, whose somaxconn it may
// change.
func (b *bench) burstApart(ctx context.Context) error {
	if os.Geteuid() != 0 {
		fmt.Println("burst of 6000: not run, it needs root for a network namespace")
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for range b.rounds {
		if err := b.begin(ctx); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, time.Now().Format(time.TimeOnly), "burst of 6000")
		cmd := exec.Command(self, "burst", b.weir, b.dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("burst: %w", err)
		}
	}
	return nil
}

func burst(ctx context.Context, weir, dir string) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err = errors.Join(err, os.WriteFile("/proc/sys/net/core/somaxconn", []byte("8192"), 0o644)); err != nil {
		return err
	}
	b := &bench{weir: weir, dir: dir}
	s, err := b.start(ctx, "weir")
	if err != nil {
		return err
	}
	defer s.stop()
	o := b.options("packed", 1)
	o.Address, o.PID, o.Burst, o.Duration = s.addr, s.cmd.Process.Pid, 6000, time.Minute
	r, err := load.Run(ctx, o)
	if err != nil {
		return err
	}
	var drops []string
	for _, name := range []string{"ListenOverflows", "ListenDrops", "TCPSynRetrans", "SyncookiesSent"} {
		drops = append(drops, fmt.Sprintf("%s +%d", name, r.Kernel[name]))
	}
	fmt.Printf("burst of 6000, backlog 8192: connect p50 %.1f ms, p99 %.1f ms, max %.1f ms; %.1f µs CPU a connection; %s\n",
		r.Connect.P50, r.Connect.P99, r.Connect.Max, r.Server.CPUMicrosConnection, strings.Join(drops, ", "))
	return nil
}
