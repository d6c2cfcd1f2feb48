package load

import (
	"fmt"
	"time"
)

// counts are what progress lines are drawn from.
type counts struct {
	at                              time.Time
	events, connections, heartbeats uint64
}

func (r *run) counts(now time.Time) counts {
	return counts{now, r.sentEvents.Load(), r.connections.Load(), r.heartbeats.Load()}
}

// progress writes a line a second until the run has ended.
func (r *run) progress() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := r.counts(r.start)
	for {
		select {
		case <-r.stopped:
			if r.o.Width > 0 {
				fmt.Fprint(r.o.Progress, "\r\x1b[K")
			}
			return
		case now := <-tick.C:
			next := r.counts(now)
			line := r.line(last, next)
			last = next
			if r.o.Width > 0 {
				fmt.Fprintf(r.o.Progress, "\r%s\x1b[K", line[:min(len(line), r.o.Width-1)]) // one that wraps cannot be written over
			} else {
				fmt.Fprintln(r.o.Progress, line)
			}
		}
	}
}

// line is what happened between two moments, the most important first.
func (r *run) line(last, next counts) string {
	seconds := next.at.Sub(last.at).Seconds()
	line := fmt.Sprintf("%4.0fs", next.at.Sub(r.start).Seconds())
	if missing := r.missing.Load(); missing > 0 {
		return line + fmt.Sprintf("  verify: %d events not found yet", missing)
	}
	rate := func(n, before uint64) float64 { return float64(n-before) / seconds }
	errs := ""
	if n := r.connErrors.Load(); n > 0 {
		errs = fmt.Sprintf("  errors %d", n)
	}
	if r.o.Storm > 0 || r.o.Burst > 0 {
		line += fmt.Sprintf("  %.0f connections/s", rate(next.connections, last.connections)) + errs
		if p := r.connectLatency.percentiles(); p != nil {
			line += fmt.Sprintf("  connect p99 %.1f ms", p.P99)
		}
		return line
	}
	line += fmt.Sprintf("  %.0f events/s", rate(next.events, last.events)) + errs
	if r.o.Ack {
		line += fmt.Sprintf("  in flight %d", r.inFlight.Load())
		if p := r.ackLatency.percentiles(); p != nil {
			line += fmt.Sprintf("  ack p99 %.1f ms", p.P99)
		}
	}
	if next.heartbeats > 0 {
		line += fmt.Sprintf("  %.0f heartbeats/s, lost %d", rate(next.heartbeats, last.heartbeats), r.heartbeatsLost.Load())
	}
	return line
}
