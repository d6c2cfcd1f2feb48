package alert

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"weir/netopt"
)

const listener = "0.0.0.0:24224"

// quietReading is a weir at rest.
func quietReading() *Reading {
	return &Reading{
		Syncookies: 1, MaxSynBacklog: 4096,
		Listeners: []Listener{{Name: listener, Asked: 1024, Granted: 1024, Queue: netopt.Queue{Capacity: 1024}}},
		Sources:   []Source{{Name: "in", Limit: 1000, MemoryLimit: 1 << 30}},
		Buffers:   []Buffer{{Name: "app.**", Path: "/b", Limit: 1000, DiskFree: 50 << 30, DiskSize: 100 << 30, ChunkLimit: 256 << 20}},
		Outputs:   []Output{{Name: "out", Dropped: map[string]uint64{}}},
		Dropped:   map[string]uint64{},
	}
}

// expiring is a certificate that is valid for that long after the reading.
func expiring(r *Reading, left time.Duration) []Certificate {
	return []Certificate{{Name: "/c.pem", Subject: "CN=logs", Expires: r.At.Add(left)}}
}

// TestRules: each cause has its alert, and no other.
func TestRules(t *testing.T) {
	short := func(r *Reading) {
		l := &r.Listeners[0]
		l.Asked, l.LimitedBy, l.Mend = 16384, "net.core.somaxconn", "sysctl -w net.core.somaxconn=16384"
	}
	for _, c := range []struct {
		title  string
		before func(r *Reading) // of both readings
		change func(r *Reading) // of the second
		want   string           // name, or names, of what is on
		what   string
		mend   string
	}{
		{title: "at rest"},
		{title: "strays alone", change: func(r *Reading) { r.Listeners[0].Queue.Drops = 50 }},
		{title: "another listener's overflow", change: func(r *Reading) { r.Kernel.ListenOverflows, r.Kernel.ListenDrops = 50, 50 }},
		{title: "strays beside another listener's overflow", change: func(r *Reading) {
			r.Kernel.ListenOverflows, r.Listeners[0].Queue.Drops = 50, 50
		}},
		{title: "dropped", want: "accept_queue_high connections_dropped", what: "12 in 1s; the accept queue was full, backlog 1024", mend: "backlog 4096",
			change: func(r *Reading) {
				r.Kernel.ListenOverflows, r.Listeners[0].Queue.Drops, r.Listeners[0].Queue.PeakRecent = 12, 14, 1025
			}},
		{title: "dropped with a short backlog", before: short, want: "accept_queue_high backlog_short connections_dropped",
			what: "12 in 1s; backlog 1024 of 16384 asked, limited by net.core.somaxconn", mend: "sysctl -w net.core.somaxconn=16384 && systemctl reload weir",
			change: func(r *Reading) {
				r.Kernel.ListenOverflows, r.Listeners[0].Queue.Drops, r.Listeners[0].Queue.PeakRecent = 12, 12, 1025
			}},
		{title: "80 %", change: func(r *Reading) { r.Listeners[0].Queue.PeakRecent = 819 }},
		{title: "over 80 %", want: AcceptQueueHigh, what: "820 connections", mend: "backlog 4096", change: func(r *Reading) { r.Listeners[0].Queue.PeakRecent = 820 }},
		{title: "no descriptors", want: AcceptStarved, what: "7 wait", mend: "LimitNOFILE", change: func(r *Reading) {
			r.Listeners[0].Queue.Starved, r.Listeners[0].Queue.Depth = 1, 7
		}},
		{title: "cookies", want: SynCookies, what: "9 in 1s: more half-open", mend: "backlog 4096", change: func(r *Reading) {
			r.Kernel.TCPReqQFullDoCookies, r.Kernel.SyncookiesSent = 9, 9
		}},
		{title: "cookies for everyone", before: func(r *Reading) { r.Syncookies = 2 }, want: SynCookies, mend: "tcp_syncookies=1",
			change: func(r *Reading) { r.Kernel.TCPReqQFullDoCookies, r.Kernel.SyncookiesSent = 9, 9 }},
		{title: "SYN dropped", want: SynDropped, what: "3 SYNs", mend: "tcp_syncookies=1", before: func(r *Reading) { r.Syncookies = 0 },
			change: func(r *Reading) { r.Kernel.TCPReqQFullDrop, r.Kernel.ListenDrops = 3, 3 }},
		{title: "SYN over three quarters", want: SynDropped, what: "(4096)", before: func(r *Reading) { r.Syncookies = 0 },
			change: func(r *Reading) { r.Kernel.ListenDrops = 3 }},
		{title: "other drops with cookies on", change: func(r *Reading) { r.Kernel.ListenDrops = 3 }},
		{title: "90 % of the connections", change: func(r *Reading) { r.Sources[0].Open = 900 }},
		{title: "more of them", want: ConnectionsHigh, what: "901 connections of max_connections 1000", change: func(r *Reading) { r.Sources[0].Open = 901 }},
		{title: "refused", want: ConnectionsRefused, what: "5 connections closed", change: func(r *Reading) { r.Sources[0].Refused = 5 }},
		{title: "memory", want: MemoryWaits, what: "2 connections wait", mend: "memory_limit", change: func(r *Reading) { r.Sources[0].MemoryWaiting = 2 }},
		{title: "heartbeats", want: HeartbeatsForgotten, what: "4 UDP", change: func(r *Reading) { r.Sources[0].Unanswered = 4 }},
		{title: "failing", want: CommitFailing, what: "no space left", mend: "df -h /b", change: func(r *Reading) { r.Buffers[0].Failing = "no space left" }},
		{title: "slow", want: CommitSlow, what: "1.5s", change: func(r *Reading) { r.Buffers[0].PendingAge = 1500 * time.Millisecond }},
		{title: "not slow", change: func(r *Reading) { r.Buffers[0].PendingAge = 999 * time.Millisecond }},
		{title: "buffer high", want: BufferHigh, what: "81% of total_limit_size 1000 B; beyond it the oldest events are dropped",
			before: func(r *Reading) { r.Buffers[0].Overflow = "drop_oldest_chunk" }, change: func(r *Reading) { r.Buffers[0].Backlog = 810 }},
		{title: "buffer refuses", want: BufferRefusing, what: "3 messages", change: func(r *Reading) { r.Buffers[0].Refused = 3 }},
		{title: "disk", want: DiskLow, what: "4.0 GiB free of 100.0 GiB", mend: "df -h /b", change: func(r *Reading) { r.Buffers[0].DiskFree = 4 << 30 }},
		{title: "retrying", want: OutputRetrying, what: "3 failures in a row: refused; next try in 8s", change: func(r *Reading) {
			r.Outputs[0].Step, r.Outputs[0].LastError, r.Outputs[0].NextRetry = 3, "refused", r.At.Add(8*time.Second)
		}},
		{title: "lost", want: EventsDropped, what: "7 events lost: overflow 3, retry_limit 4", change: func(r *Reading) {
			r.Outputs[0].Dropped = map[string]uint64{"overflow": 3, "retry_limit": 4}
		}},
		{title: "no match", want: EventsDropped, what: "no_match 2", change: func(r *Reading) { r.Dropped["no_match"] = 2 }},
		{title: "a certificate for long", change: func(r *Reading) { r.Certificates = expiring(r, 14*24*time.Hour) }},
		{title: "a certificate for two weeks", want: CertificateExpiring, what: "CN=logs expires in 13 days, on 1970-01-26", mend: "renew /c.pem",
			change: func(r *Reading) { r.Certificates = expiring(r, 14*24*time.Hour-time.Second) }},
		{title: "a certificate that is over", want: CertificateExpiring, what: "CN=logs expired on 1970-01-12",
			change: func(r *Reading) { r.Certificates = expiring(r, 0) }},
		{title: "not ready", want: NotReady, what: "the disk stalls", change: func(r *Reading) { r.Problems = []string{"the disk stalls"} }},
	} {
		t.Run(c.title, func(t *testing.T) {
			e := New(zap.NewNop())
			at := time.Unix(1_000_000, 0)
			was, now := quietReading(), quietReading()
			was.At, now.At = at, at.Add(time.Second)
			for _, r := range []*Reading{was, now} {
				if c.before != nil {
					c.before(r)
				}
			}
			if c.change != nil {
				c.change(now)
			}
			e.Look(was)
			e.Look(now)
			var names, whats, mends []string
			for _, a := range e.Alerts() {
				names, whats, mends = append(names, a.Name), append(whats, a.Message), append(mends, a.Mend)
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("alerts %q, want %q", got, c.want)
			}
			if what := strings.Join(whats, "\n"); !strings.Contains(what, c.what) {
				t.Errorf("messages lack %q:\n%s", c.what, what)
			}
			if mend := strings.Join(mends, "\n"); !strings.Contains(mend, c.mend) {
				t.Errorf("mends lack %q:\n%s", c.mend, mend)
			}
		})
	}
}

// TestDropsAcrossReadings: the kernel may count an overflow for the namespace
// before one reading and for the socket before the next.
func TestDropsAcrossReadings(t *testing.T) {
	e := New(zap.NewNop())
	r := func(overflows, drops uint64) *Reading {
		x := quietReading()
		x.At = time.Unix(1_000_000+int64(overflows+drops), 0)
		x.Kernel.ListenOverflows, x.Listeners[0].Queue.Drops, x.Listeners[0].Queue.PeakRecent = overflows, drops, 1025
		return x
	}
	e.Look(r(0, 0))
	e.Look(r(5, 3))
	e.Look(r(5, 5))
	var total uint64
	for k, a := range e.active {
		if k.name == ConnectionsDropped {
			total = a.total
		}
	}
	if total != 5 {
		t.Errorf("%d dropped connections, want 5", total)
	}
}

// TestCloseWait: a number that grows from sample to sample is an alert, one that
// is only large, or only seen twice, is none.
func TestCloseWait(t *testing.T) {
	for _, c := range []struct {
		name    string
		samples []int
		want    bool
	}{
		{"grows", []int{0, 8, 12, 20}, true},
		{"is large", []int{50, 50, 50, 50, 50}, false},
		{"comes and goes", []int{0, 20, 5, 30, 4, 22, 3}, false},
		{"few", []int{1, 2, 3, 4, 5, 6}, false},
		{"is over", []int{0, 8, 12, 20, 3}, false},
	} {
		e := New(zap.NewNop())
		on := false
		for i, n := range c.samples {
			r := quietReading()
			r.At = time.Unix(int64(1_000_000+i), 0)
			r.Listeners[0].States.CloseWait, r.Listeners[0].SampledAt = n, r.At
			for range 3 { // readings between two samples tell nothing new
				on = len(e.look(r, r)) > 0
			}
		}
		if on != c.want {
			t.Errorf("%s: %v", c.name, on)
		}
	}
}

// TestCloseWaitCause: the alert tells connections that are not accepted from those
// that are and are not ended.
func TestCloseWaitCause(t *testing.T) {
	for depth, want := range map[int]string{0: "waits for something else", 14: "has not accepted them: 14 wait"} {
		e := New(zap.NewNop())
		for i, n := range []int{0, 8, 12, 20} {
			r := quietReading()
			r.At = time.Unix(int64(1_000_000+i), 0)
			l := &r.Listeners[0]
			l.States.CloseWait, l.SampledAt, l.Queue.Depth = n, r.At, depth
			e.Look(r)
		}
		if all := e.Alerts(); len(all) != 1 || !strings.Contains(all[0].Message, want) || all[0].Mend == "" {
			t.Errorf("%+v, want %q", all, want)
		}
	}
}

// TestLines: one line when an alert begins, one when it is over, and few of one
// that comes and goes.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		e := New(zap.New(core))
		look := func(seconds int, bad func(i int) bool) {
			for i := range seconds {
				r := quietReading()
				r.At = time.Now()
				if bad(i) {
					r.Buffers[0].Failing = "no space left on device"
				}
				e.Look(r)
				time.Sleep(time.Second)
			}
		}
		lines := func() (s []string) {
			for _, l := range logs.TakeAll() {
				s = append(s, l.Message)
			}
			return s
		}
		look(5, func(int) bool { return true })
		if got := strings.Join(lines(), ", "); got != "alert" {
			t.Errorf("at the beginning: %s", got)
		}
		look(4, func(int) bool { return false })
		if got := lines(); len(got) > 0 {
			t.Errorf("too soon: %s", got)
		}
		look(2, func(int) bool { return false })
		if got := strings.Join(lines(), ", "); got != "alert over" {
			t.Errorf("at the end: %s", got)
		}
		all := e.Alerts()
		if len(all) != 1 || all[0].Until == nil || all[0].Until.Sub(all[0].Since) != 4*time.Second {
			t.Errorf("the list: %+v", all)
		}
		// On for a second in ten, for ten minutes.
		look(600, func(i int) bool { return i%10 == 0 })
		if got := lines(); len(got) > 2 {
			t.Errorf("%d lines of one that flutters: %s", len(got), got)
		}
		look(60, func(int) bool { return false })
		if got := strings.Join(lines(), ", "); got != "alert over" {
			t.Errorf("at last: %s", got)
		}
		look(700, func(int) bool { return false })
		if all := e.Alerts(); len(all) != 0 {
			t.Errorf("still listed: %+v", all)
		}
		look(1300, func(int) bool { return true })
		if got := strings.Join(lines(), ", "); got != "alert, alert, alert" {
			t.Errorf("of one that lasts 21 minutes: %s", got)
		}
	})
}
