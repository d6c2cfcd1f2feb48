package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"weir/internal/load"
)

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
		{directName, "direct", noAck(b.options("packed", 4))},
		{"limit: decompress once with the library, store nothing, gzip", "library", noAck(b.options("gzip", 4))},
		{"limit: decompress once as weir does, store nothing, gzip", "own", noAck(b.options("gzip", 4))},
		{packedName, "weir", b.options("packed", 4)},
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

// wanted says whether -only leaves the case in.
func (b *bench) wanted(name string) bool { return strings.Contains(name, b.only) }

// Names of the cases outside of lines.
const (
	directName = "limit: copy by O_DIRECT, packed"
	packedName = "weir packed"
	halfName   = "weir packed at half load"
)

// all runs all cases. A case that fails does not keep the others from running, but
// it fails the whole: a table that lacks a figure is none.
func (b *bench) all(ctx context.Context) error {
	lines := b.lines()
	half := line{halfName, "weir", b.options("packed", 4)}
	half.load.Window = 4
	after := []struct {
		name string
		run  func(context.Context) error
	}{{"receipt and output", b.output}, {"decompressing a gzip chunk once", b.decompression}, {"burst of 6000", b.burstApart}}
	known := false
	for _, l := range append(lines, half) {
		known = known || b.wanted(l.name)
	}
	for _, a := range after {
		known = known || b.wanted(a.name)
	}
	if !known {
		return fmt.Errorf("-only %q: no case has it in its name", b.only)
	}
	if slices.ContainsFunc(append(lines, half), func(l line) bool { return b.wanted(l.name) }) {
		b.table(ctx, lines, half)
	}
	for _, a := range after {
		if b.wanted(a.name) && ctx.Err() == nil {
			if err := a.run(ctx); err != nil {
				b.fail(a.name, err)
				fmt.Printf("%s: failed: %v\n", a.name, err)
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("interrupted: %w", err)
	}
	if len(b.failed) > 0 {
		return fmt.Errorf("%d cases failed: %s", len(b.failed), strings.Join(b.failed, "; "))
	}
	return nil
}

func (b *bench) fail(name string, err error) {
	first, _, _ := strings.Cut(err.Error(), "\n") // what a receiver has said is in the table
	b.failed = append(b.failed, name+": "+first)
}

// table prints the cases that are lines of it.
func (b *bench) table(ctx context.Context, lines []line, half line) {
	for _, p := range b.peers {
		if p.version != "" {
			fmt.Printf("%s: %s\n", p.name, p.version)
		}
	}
	fmt.Println("| case | CPU s/GB | × O_DIRECT copy | CPU µs/event | events/s | MB/s | ack p50 / p99 ms | peak RSS MiB |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	direct, packed := 0.0, 0.0
	compared, comparedErr := b.compared(ctx, lines)
	for _, c := range lines {
		// Half of what weir takes is not known without having measured it.
		if !b.wanted(c.name) && !(c.name == packedName && b.wanted(half.name)) {
			continue
		}
		var r *load.Report
		err := comparedErr
		switch all := compared[c.name]; {
		case len(all) > 0:
			r = median(all)
		case err == nil || !isCompared(c.name):
			r, err = b.measure(ctx, c)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			b.fail(c.name, err)
			fmt.Printf("| %s | failed: %v |\n", c.name, err)
			continue
		}
		switch c.name {
		case directName:
			direct = r.Server.CPUSecondsPerGB
		case packedName:
			packed = r.EventsPerSecond
		}
		b.row(c.name, r, direct)
	}
	if b.wanted(half.name) {
		half.load.Rate = packed / 2
		r, err := b.halfLoad(ctx, half)
		if err != nil {
			b.fail(half.name, err)
			fmt.Printf("| %s | failed: %v |\n", half.name, err)
		} else {
			b.row(half.name, r, direct)
		}
	}
	fmt.Println()
	spread(lines, compared)
}

// isCompared reports whether a case is one of those of which the ratio counts.
func isCompared(name string) bool { return name == directName || name == packedName }

// compared measures those cases in turn, if all of them are wanted.
func (b *bench) compared(ctx context.Context, lines []line) (map[string][]*load.Report, error) {
	var cases []line
	for _, c := range lines {
		if isCompared(c.name) {
			if !b.wanted(c.name) {
				return nil, nil
			}
			cases = append(cases, c)
		}
	}
	reports, err := b.measureInTurn(ctx, cases)
	if err != nil {
		return nil, err
	}
	all := map[string][]*load.Report{}
	for i, c := range cases {
		all[c.name] = reports[i]
	}
	return all, nil
}

// spread prints how far the rounds of the cases that are compared lie apart.
func spread(lines []line, compared map[string][]*load.Report) {
	for _, c := range lines {
		if all := compared[c.name]; len(all) > 0 {
			fmt.Printf("%s: %.2f to %.2f CPU s/GB in %d rounds, in turn\n", c.name,
				all[0].Server.CPUSecondsPerGB, all[len(all)-1].Server.CPUSecondsPerGB, len(all))
		}
	}
}

// halfLoad measures at a rate by the clock, and that it was kept. It is about the
// latency: the report is the one with the median p99, of as many rounds as those that
// are compared have, since what the disk and the machine do besides is most of it.
func (b *bench) halfLoad(ctx context.Context, half line) (*load.Report, error) {
	if half.load.Rate == 0 {
		return nil, fmt.Errorf("half of what is not known: %q failed", packedName)
	}
	reports, err := b.measureInTurn(ctx, []line{half})
	if err != nil {
		return nil, err
	}
	all := reports[0]
	p99 := func(r *load.Report) float64 {
		if r.Ack == nil { // nothing was acked in time
			return math.Inf(1)
		}
		return r.Ack.P99
	}
	slices.SortFunc(all, func(x, y *load.Report) int { return cmp.Compare(p99(x), p99(y)) })
	r := median(all)
	if float64(r.Overdue) > r.TargetRate*r.Seconds/10 {
		return nil, fmt.Errorf("%d events behind: %.0f/s instead of %.0f, this is no half load", r.Overdue, r.EventsPerSecond, r.TargetRate)
	}
	return r, nil
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
