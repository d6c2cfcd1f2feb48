// Command bench measures weir end to end, beside programs that only copy (the
// limit) and the peers it is given, all in one run on one machine, and prints
// Markdown. It is what `make bench` runs after the microbenchmarks.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"weir/internal/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
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
	failed    []string  // cases without a figure
}

// caseGrace is how long a round may take beside the time for which it sends.
const caseGrace = 20 * time.Second

var errTime = errors.New("not run, the time was up (-limit)")

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && args[0] == "limit":
		l, err := net.Listen("tcp", args[2])
		if err != nil {
			return err
		}
		return limit(args[1], l, args[3])
	case len(args) == 3 && args[0] == "burst":
		return burst(ctx, args[1], args[2])
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
	if b.rounds < 1 || b.duration <= 0 {
		return fmt.Errorf("-rounds %d, -duration %v: must be more than 0", b.rounds, b.duration)
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
	return b.all(ctx)
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

// begin says whether there is time for another round.
func (b *bench) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if time.Now().After(b.until) {
		return errTime
	}
	return nil
}

// measure runs a case against a fresh server, rounds times, and returns the
// report whose CPU time is the median.
func (b *bench) measure(ctx context.Context, c line) (*load.Report, error) {
	var all []*load.Report
	for round := range b.rounds {
		r, err := b.round(ctx, c, round, b.rounds)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	byCost(all)
	return median(all), nil
}

// measureInTurn runs turnRounds rounds of each case for one of measure, in turn: what
// the machine does meanwhile is then the same for all that are to be compared. It returns
// the reports of each, by CPU time.
func (b *bench) measureInTurn(ctx context.Context, cases []line) ([][]*load.Report, error) {
	all := make([][]*load.Report, len(cases))
	for round := range turnRounds * b.rounds {
		for i, c := range cases {
			r, err := b.round(ctx, c, round, turnRounds*b.rounds)
			if err != nil {
				return nil, err
			}
			all[i] = append(all[i], r)
		}
	}
	for _, reports := range all {
		byCost(reports)
	}
	return all, nil
}

// turnRounds is how many rounds of measureInTurn there are for each of measure.
const turnRounds = 3

// round runs a case once, against a fresh server.
func (b *bench) round(ctx context.Context, c line, round, of int) (*load.Report, error) {
	if err := b.begin(ctx); err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%s %s, round %d of %d\n", time.Now().Format(time.TimeOnly), c.name, round+1, of)
	s, err := b.start(ctx, c.kind)
	if err != nil {
		return nil, err
	}
	o := c.load
	o.Address, o.PID = s.addr, s.cmd.Process.Pid
	ctx, cancel := context.WithTimeout(ctx, o.Duration+caseGrace)
	r, err := load.Run(ctx, o)
	cancel()
	s.stop()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	if r.Server.CPUSeconds == 0 && o.Duration >= time.Second {
		return nil, fmt.Errorf("%s: the process that was started used no CPU; its command must become the receiver, by exec", c.name)
	}
	return r, nil
}

// median is the report in the middle of those that are sorted.
func median(all []*load.Report) *load.Report { return all[len(all)/2] }

// byCost sorts by CPU time.
func byCost(all []*load.Report) {
	slices.SortFunc(all, func(x, y *load.Report) int { return cmp.Compare(cost(x), cost(y)) })
}

// cost is CPU time by event, or connection: a case has one of them.
func cost(r *load.Report) float64 { return r.Server.CPUMicrosPerEvent + r.Server.CPUMicrosConnection }
