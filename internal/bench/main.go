// Command bench measures weir end to end, beside programs that only copy (the
// limit) and the peers it is given, all in one run on one machine, and prints
// Markdown. It is what `make bench` runs after the microbenchmarks.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"weir/internal/load"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	weir, dir string
	peers     []peer
	only      string
	duration  time.Duration
	rounds    int
	until     time.Time // nothing is begun after it
}

// caseGrace is how long a round may take beside the time for which it sends.
const caseGrace = 20 * time.Second

var errTime = errors.New("not run, the time was up (-limit)")

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "limit":
		l, err := net.Listen("tcp", args[2])
		if err != nil {
			return err
		}
		return limit(args[1], l, args[3])
	case len(args) == 3 && args[0] == "burst":
		return burst(args[1], args[2])
	}
	var b bench
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&b.weir, "weir", "bin/weir", "binary of weir")
	otel := fs.String("otel", "", "binary of the OpenTelemetry peer")
	fluentd := fs.String("fluentd", "", "command that starts fluentd, words between blanks; it must become fluentd, by exec")
	fluentBit := fs.String("fluentbit", "", "command that starts Fluent Bit, likewise")
	fs.StringVar(&b.dir, "dir", "", "directory on the disk to measure (default: a temporary one)")
	fs.DurationVar(&b.duration, "duration", 3*time.Second, "of each case")
	fs.IntVar(&b.rounds, "rounds", 3, "how often each case is run; the median counts")
	fs.StringVar(&b.only, "only", "", "run only cases whose name has this in it")
	limit := fs.Duration("limit", 8*time.Minute, "nothing is begun after it")
	if err := fs.Parse(args); err != nil {
		return err
	}
	b.until = time.Now().Add(*limit)
	var err error
	if b.dir, err = os.MkdirTemp(b.dir, "weir-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.weir, err = filepath.Abs(b.weir); err != nil {
		return err
	}
	if b.peers, err = findPeers(*otel, *fluentd, *fluentBit); err != nil {
		return err
	}
	return b.table()
}

// options are those that the cases change.
func (b *bench) options(mode string, connections int) load.Options {
	o := load.Options{Mode: mode, Events: 1000, Size: 277, Tag: "load", Tags: 1, Ack: true, AckTimeout: 30 * time.Second,
		Connections: connections, KeepAlive: true, Window: 1, Heartbeat: "none", Flush: time.Second, Duration: b.duration}
	if mode == "message" || mode == "json" {
		o.Events = 1
	}
	return o
}

// line is one line of the table: what load a receiver of which kind gets.
type line struct {
	name, kind string
	load       load.Options
}

// measure runs a case against a fresh server, rounds times, and returns the
// report whose CPU time is the median.
func (b *bench) measure(c line) (*load.Report, error) {
	var all []*load.Report
	for round := range b.rounds {
		if time.Now().After(b.until) {
			return nil, errTime
		}
		fmt.Fprintf(os.Stderr, "%s %s, round %d of %d\n", time.Now().Format(time.TimeOnly), c.name, round+1, b.rounds)
		s, err := b.start(c.kind)
		if err != nil {
			return nil, err
		}
		o := c.load
		o.Address, o.PID = s.addr, s.cmd.Process.Pid
		ctx, cancel := context.WithTimeout(context.Background(), o.Duration+caseGrace)
		rep, err := load.Run(ctx, o)
		cancel()
		s.stop()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		if rep.Server.CPUSeconds == 0 && o.Duration >= time.Second {
			return nil, fmt.Errorf("%s: the process that was started used no CPU; its command must become the receiver, by exec", c.name)
		}
		all = append(all, rep)
	}
	cost := func(r *load.Report) float64 { return r.Server.CPUMicrosPerEvent + r.Server.CPUMicrosConnection }
	slices.SortFunc(all, func(x, y *load.Report) int {
		switch {
		case cost(x) < cost(y):
			return -1
		case cost(x) > cost(y):
			return 1
		}
		return 0
	})
	return all[len(all)/2], nil
}

// storms are the cases that only connect and close: by the clock, and as fast as
// one sender can, which is slower than the clock of the second.
func (b *bench) storms(name, kind string) []line {
	paced, saturated := b.options("packed", 1), b.options("packed", 1)
	paced.Storm, saturated.Storm = 2000, 1e6
	return []line{
		{name + " 2000 connections/s that only close", kind, paced},
		{name + " connections that only close, as many as one sender can", kind, saturated},
	}
}

// lines are the cases of the table, but for the one at half load, whose rate
// comes from another.
func (b *bench) lines() []line {
	noAck := func(o load.Options) load.Options { o.Ack = false; return o }
	tags := b.options("packed", 4)
	tags.Tags = 10000
	idle := b.options("packed", 1)
	idle.Idle, idle.Rate = 10000, 10000
	all := []line{
		{"limit: copy to the page cache, packed", "cache", noAck(b.options("packed", 4))},
		{"limit: copy by O_DIRECT, packed", "direct", noAck(b.options("packed", 4))},
		{"limit: decompress once with the library, store nothing, gzip", "library", noAck(b.options("gzip", 4))},
		{"limit: decompress once as weir does, store nothing, gzip", "own", noAck(b.options("gzip", 4))},
		{"weir packed", "weir", b.options("packed", 4)},
		{"weir packed, 10,000 tags", "weir", tags},
		{"weir forward", "weir", b.options("forward", 4)},
		{"weir gzip", "weir", b.options("gzip", 4)},
		{"weir zstd", "weir", b.options("zstd", 4)},
		{"weir message, 4 connections", "weir", b.options("message", 4)},
		{"weir message, 64 connections", "weir", b.options("message", 64)},
		{"weir message, no ack", "weir", noAck(b.options("message", 4))},
		{"weir json, 4 connections", "weir", b.options("json", 4)},
	}
	all = append(all, b.storms("weir", "weir")...)
	all = append(all, line{"weir packed beside 10,000 idle connections", "weir", idle})
	for _, p := range b.peers {
		for _, mode := range []string{"packed", "forward", "gzip", "message"} {
			all = append(all, line{p.name + " " + mode, p.kind, b.options(mode, 4)})
		}
		all = append(all, b.storms(p.name, p.kind)...)
	}
	return all
}

// table runs all cases.
func (b *bench) table() error {
	for _, p := range b.peers {
		if p.version != "" {
			fmt.Printf("%s: %s\n", p.name, p.version)
		}
	}
	fmt.Println("| case | CPU s/GB | × O_DIRECT copy | CPU µs/event | events/s | MB/s | ack p50 / p99 ms | peak RSS MiB |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	direct, packed := 0.0, 0.0
	for _, c := range b.lines() {
		if !strings.Contains(c.name, b.only) {
			continue
		}
		r, err := b.measure(c)
		if err != nil {
			fmt.Printf("| %s | failed: %v |\n", c.name, err)
			continue
		}
		switch c.name {
		case "limit: copy by O_DIRECT, packed":
			direct = r.Server.CPUSecondsPerGB
		case "weir packed":
			packed = r.EventsPerSecond
		}
		b.row(c.name, r, direct)
	}
	if b.only != "" {
		if strings.Contains("output", b.only) {
			return b.output()
		}
		return nil
	}
	half := line{"weir packed at half load", "weir", b.options("packed", 4)}
	half.load.Rate, half.load.Window = packed/2, 4
	if r, err := b.measure(half); err != nil {
		fmt.Printf("| %s | failed: %v |\n", half.name, err)
	} else {
		b.row(half.name, r, direct)
	}
	fmt.Println()
	if err := b.output(); err != nil {
		return err
	}
	if err := b.decompression(); err != nil {
		return err
	}
	return b.burstApart()
}

func (b *bench) row(name string, r *load.Report, direct float64) {
	cell := func(format string, a ...any) string {
		for _, v := range a {
			if f, ok := v.(float64); ok && f == 0 {
				return "–"
			}
		}
		return fmt.Sprintf(format, a...)
	}
	ack := "–"
	if r.Ack != nil {
		ack = fmt.Sprintf("%.2f / %.2f", r.Ack.P50, r.Ack.P99)
	}
	ratio, micros, rate := 0.0, cell("%.2f", r.Server.CPUMicrosPerEvent), cell("%.0f", r.EventsPerSecond)
	if direct > 0 {
		ratio = r.Server.CPUSecondsPerGB / direct
	}
	if r.Events == 0 {
		micros = cell("%.1f a connection", r.Server.CPUMicrosConnection)
		rate = fmt.Sprintf("%.0f connections", float64(r.Connections)/r.Seconds)
		if n := r.Kernel["TCPSynRetrans"]; n > 0 {
			rate += fmt.Sprintf(", %d SYNs sent again", n)
		}
	}
	fmt.Printf("| %s | %s | %s | %s | %s | %s | %s | %.0f |\n", name, cell("%.2f", r.Server.CPUSecondsPerGB), cell("%.2f", ratio), micros,
		rate, cell("%.0f", r.BytesPerSecond/1e6), ack, float64(r.Server.PeakRSS)/(1<<20))
}

// decompression is the same limit without a sender beside it, which has its share
// of caches and memory.
func (b *bench) decompression() error {
	chunk, packed, err := load.Payload(b.options("gzip", 1))
	if err != nil {
		return err
	}
	for _, way := range []string{"library", "own"} {
		decompress := decompressors[way]()
		before, n := cpu(), 0
		for start := time.Now(); time.Since(start) < b.duration; n++ {
			if err := decompress(packed); err != nil {
				return err
			}
		}
		fmt.Printf("decompressing a gzip chunk once, %s: %.2f CPU s/GB of events\n", way, (cpu()-before).Seconds()/float64(n*len(chunk))*1e9)
	}
	return nil
}

// cpu is what this process has used.
func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// burstApart runs the burst in a network namespace, whose somaxconn it may
// change.
func (b *bench) burstApart() error {
	if os.Geteuid() != 0 {
		fmt.Println("burst of 6000: not run, it needs root for a network namespace")
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for range b.rounds {
		if time.Now().After(b.until) {
			return errTime
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

func burst(weir, dir string) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err = errors.Join(err, os.WriteFile("/proc/sys/net/core/somaxconn", []byte("8192"), 0o644)); err != nil {
		return err
	}
	b := &bench{weir: weir, dir: dir}
	s, err := b.start("weir")
	if err != nil {
		return err
	}
	defer s.stop()
	o := b.options("packed", 1)
	o.Address, o.PID, o.Burst, o.Duration = s.addr, s.cmd.Process.Pid, 6000, time.Minute
	r, err := load.Run(context.Background(), o)
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
