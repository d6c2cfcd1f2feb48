package load

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Report is the outcome of a run. Its JSON is what `weir load --json` prints.
type Report struct {
	Run             string            `json:"run"` // 8 hexadecimal digits that begin all its ids
	Seconds         float64           `json:"seconds"`
	Events          uint64            `json:"events"` // sent, each counted once
	Bytes           uint64            `json:"bytes"`  // of events, uncompressed
	Chunks          uint64            `json:"chunks"`
	AckedEvents     uint64            `json:"acked_events"`
	AckedChunks     uint64            `json:"acked_chunks"`
	UnackedChunks   int64             `json:"unacked_chunks"`
	ResentChunks    uint64            `json:"resent_chunks"`
	EventsPerSecond float64           `json:"events_per_second"`
	BytesPerSecond  float64           `json:"bytes_per_second"`
	TargetRate      float64           `json:"target_per_second,omitempty"` // of Rate or Storm
	Overdue         uint64            `json:"overdue"`                     // events, or connections of a storm, that were due and never sent
	Connections     uint64            `json:"connections"`
	Errors          uint64            `json:"errors"`
	LastError       string            `json:"last_error,omitempty"`
	Heartbeats      uint64            `json:"heartbeats"`
	HeartbeatsLost  uint64            `json:"heartbeats_lost"`
	Ack             *Percentiles      `json:"ack_ms,omitempty"`
	Connect         *Percentiles      `json:"connect_ms,omitempty"`
	Heartbeat       *Percentiles      `json:"heartbeat_ms,omitempty"`
	Kernel          map[string]uint64 `json:"kernel"` // what the counters grew by
	Server          *Server           `json:"server,omitempty"`
	OwnCPU          float64           `json:"own_cpu_seconds"`
	Verify          *Verification     `json:"verify,omitempty"`

	acks bool // were asked for
}

// Percentiles are latencies in milliseconds.
type Percentiles struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

// Server is what the load cost the process of --pid.
type Server struct {
	PID                 int     `json:"pid"`
	CPUSeconds          float64 `json:"cpu_seconds"`
	CPUSecondsPerGB     float64 `json:"cpu_seconds_per_gb,omitempty"`
	CPUMicrosPerEvent   float64 `json:"cpu_microseconds_per_event,omitempty"`
	CPUMicrosConnection float64 `json:"cpu_microseconds_per_connection,omitempty"`
	RSS                 int64   `json:"rss_bytes"`
	PeakRSS             int64   `json:"peak_rss_bytes"`
}

func (l *latency) percentiles() *Percentiles {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.h.TotalCount() == 0 {
		return nil
	}
	at := func(p float64) float64 { return float64(l.h.ValueAtQuantile(p)) / 1000 }
	return &Percentiles{l.h.TotalCount(), at(50), at(90), at(99), at(99.9), float64(l.h.Max()) / 1000}
}

func (r *run) report(id uint32, took time.Duration, before, after measured) *Report {
	rep := &Report{Run: fmt.Sprintf("%08x", id), Seconds: took.Seconds(), Events: r.sentEvents.Load(), Bytes: r.sentBytes.Load(),
		Chunks: r.sentChunks.Load(), AckedEvents: r.ackedEvents.Load(), AckedChunks: r.ackedChunks.Load(),
		UnackedChunks: r.inFlight.Load(), ResentChunks: r.resent.Load(), Connections: r.connections.Load(), Errors: r.connErrors.Load(),
		Heartbeats: r.heartbeats.Load(), HeartbeatsLost: r.heartbeatsLost.Load(), Ack: r.ackLatency.percentiles(),
		Connect: r.connectLatency.percentiles(), Heartbeat: r.beatWaited.percentiles(), Kernel: map[string]uint64{}, OwnCPU: after.own - before.own}
	rep.TargetRate, rep.Overdue = max(r.o.Rate, r.o.Storm), r.overdue.Load()
	if r.o.Rate > 0 {
		rep.Overdue *= uint64(r.o.Events)
	}
	rep.EventsPerSecond, rep.BytesPerSecond = float64(rep.Events)/rep.Seconds, float64(rep.Bytes)/rep.Seconds
	rep.acks = r.o.Ack
	if r.lastErr != nil {
		rep.LastError = r.lastErr.Error()
	}
	for _, name := range kernelCounters {
		if v, ok := after.kernel[name]; ok {
			rep.Kernel[name] = v - before.kernel[name]
		}
	}
	if r.o.PID != 0 {
		s := &Server{PID: r.o.PID, CPUSeconds: after.cpu - before.cpu, RSS: after.rss, PeakRSS: after.hwm}
		if rep.Events > 0 {
			s.CPUSecondsPerGB = s.CPUSeconds / float64(rep.Bytes) * 1e9
			s.CPUMicrosPerEvent = s.CPUSeconds / float64(rep.Events) * 1e6
		} else if rep.Connections > 0 {
			s.CPUMicrosConnection = s.CPUSeconds / float64(rep.Connections) * 1e6
		}
		rep.Server = s
	}
	return rep
}

// problem is the error that the outcome is, nil if all went well.
func (rep *Report) problem() error {
	v := rep.Verify
	switch {
	case v != nil && v.Files == 0 && v.Expected > 0:
		return fmt.Errorf("%d events lost, %d repeated: no file matches --verify", v.Lost, v.Repeated)
	case v != nil && (v.Lost > 0 || v.Repeated > 0):
		return fmt.Errorf("%d events lost, %d repeated", v.Lost, v.Repeated)
	case rep.UnackedChunks > 0:
		return fmt.Errorf("%d chunks were not acked, the last error: %s", rep.UnackedChunks, cmp.Or(rep.LastError, "no ack came in time"))
	case rep.HeartbeatsLost > 0:
		return fmt.Errorf("%d of %d heartbeats lost, the last error: %s", rep.HeartbeatsLost, rep.Heartbeats, rep.LastError)
	case rep.Errors > 0 && rep.Events == 0:
		return fmt.Errorf("%d connections failed, the last: %s", rep.Errors, rep.LastError)
	case rep.Errors > 0 && !rep.acks:
		return fmt.Errorf("%d connections broke, and what was under way without acks may be lost; the last: %s", rep.Errors, rep.LastError)
	}
	return nil
}

// WriteText writes the report as a table.
func (rep *Report) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, a ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, a...)) }
	row("run", "%s, %.2f s", rep.Run, rep.Seconds)
	if rep.Events > 0 {
		row("sent", "%d events in %d chunks, %s", rep.Events, rep.Chunks, size(float64(rep.Bytes)))
		row("rate", "%.0f events/s, %s/s", rep.EventsPerSecond, size(rep.BytesPerSecond))
	} else if rep.Seconds > 0 && rep.TargetRate > 0 {
		row("rate", "%.0f connections/s", float64(rep.Connections)/rep.Seconds)
	}
	if rep.Overdue > 0 {
		row("behind", "%d that were due were not sent: %.0f/s were asked for", rep.Overdue, rep.TargetRate)
	}
	if rep.Ack != nil || rep.UnackedChunks > 0 {
		row("acked", "%d events in %d chunks; %d chunks not acked, %d sent again", rep.AckedEvents, rep.AckedChunks, rep.UnackedChunks, rep.ResentChunks)
	}
	row("connections", "%d; errors: %d", rep.Connections, rep.Errors)
	if rep.LastError != "" {
		row("last error", "%s", rep.LastError)
	}
	if rep.Heartbeats > 0 {
		row("heartbeats", "%d, lost: %d", rep.Heartbeats, rep.HeartbeatsLost)
	}
	for _, l := range []struct {
		name string
		p    *Percentiles
	}{{"ack", rep.Ack}, {"connect", rep.Connect}, {"heartbeat", rep.Heartbeat}} {
		if p := l.p; p != nil {
			row(l.name+" latency", "p50 %.2f ms, p90 %.2f, p99 %.2f, p99.9 %.2f, max %.2f", p.P50, p.P90, p.P99, p.P999, p.Max)
		}
	}
	if s := rep.Server; s != nil {
		row("server", "pid %d, %.2f s CPU, RSS %s, peak %s", s.PID, s.CPUSeconds, size(float64(s.RSS)), size(float64(s.PeakRSS)))
		switch {
		case s.CPUMicrosPerEvent > 0:
			row("server cost", "%.2f s CPU per GB, %.2f µs per event", s.CPUSecondsPerGB, s.CPUMicrosPerEvent)
		case s.CPUMicrosConnection > 0:
			row("server cost", "%.1f µs CPU per connection", s.CPUMicrosConnection)
		}
	}
	row("own CPU", "%.2f s", rep.OwnCPU)
	for _, name := range kernelCounters {
		if v, ok := rep.Kernel[name]; ok {
			row("kernel "+name, "+%d", v)
		}
	}
	if v := rep.Verify; v != nil {
		row("verified", "%d events expected, %d found in %d files: %d lost, %d repeated", v.Expected, v.Found, v.Files, v.Lost, v.Repeated)
		for _, l := range []struct {
			name string
			ids  []string
			of   uint64
		}{{"lost", v.LostIDs, v.Lost}, {"repeated", v.RepeatedIDs, v.Repeated}} {
			for i, id := range l.ids {
				row(l.name, "%s", id)
				if more := l.of - uint64(i) - 1; i == len(l.ids)-1 && more > 0 {
					row("", "and %d more", more)
				}
			}
		}
	}
	return t.Flush()
}

func size(n float64) string {
	for _, u := range []string{"B", "kB", "MB", "GB"} {
		if n < 1000 || u == "GB" {
			return fmt.Sprintf("%.1f %s", n, u)
		}
		n /= 1000
	}
	return ""
}
