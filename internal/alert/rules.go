package alert

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"weir/internal/doctor"
	"weir/internal/queue"
	"weir/internal/status"
	"weir/netopt"
)

// Names of the alerts; each has its rule below.
const (
	AcceptQueueHigh     = "accept_queue_high"
	AcceptStarved       = "accept_starved"
	BacklogShort        = "backlog_short"
	BufferHigh          = "buffer_high"
	BufferRefusing      = "buffer_refusing"
	CertificateExpiring = "certificate_expiring"
	CloseWait           = "close_wait_growing"
	CommitFailing       = "commit_failing"
	CommitSlow          = "commit_slow"
	ConnectionsDropped  = "connections_dropped"
	ConnectionsHigh     = "connections_high"
	ConnectionsRefused  = "connections_refused"
	DiskLow             = "disk_low"
	EventsDropped       = "events_dropped"
	HeartbeatsForgotten = "heartbeats_unanswered"
	MemoryWaits         = "memory_waits"
	NotReady            = "not_ready"
	OutputRetrying      = "output_retrying"
	SynCookies          = "syn_cookies"
	SynDropped          = "syn_dropped"
)

// Thresholds.
const (
	queueHigh       = 0.8                 // of the accept queue, and of a buffer
	connectionsHigh = 0.9                 // of max_connections
	slowCommit      = time.Second         // a commit is slow from here on
	diskLowShare    = 0.05                // of the file system
	closeWaitMin    = 10                  // fewer connections in CLOSE_WAIT are no alert
	closeWaitRises  = 3                   // samples in a row
	netNamespace    = "network namespace" // subject of what the kernel counts for all listeners
)

// condition is a rule's finding: this is so now.
type condition struct {
	name, subject, what, mend string
	// count is how many of what is counted came with this reading.
	count uint64
	// told says that another log line of weir has the same content.
	told bool
	// remind is the pace of its log lines, 0 for the usual.
	remind time.Duration
}

// look applies every rule to two readings in a row.
func (e *Evaluator) look(was, now *Reading) (all []condition) {
	add := func(c ...condition) { all = append(all, c...) }
	if len(now.Problems) > 0 {
		add(condition{name: NotReady, subject: "weir", what: "/readyz fails and UDP heartbeats go unanswered: " + strings.Join(now.Problems, "; ")})
	}
	add(e.listeners(was, now)...)
	add(kernel(was, now)...)
	for _, s := range now.Sources {
		add(source(find(was.Sources, s.Name, func(s Source) string { return s.Name }), s)...)
	}
	for _, b := range now.Buffers {
		add(storage(find(was.Buffers, b.Name, func(b Buffer) string { return b.Name }), b)...)
	}
	for _, o := range now.Outputs {
		old := find(was.Outputs, o.Name, func(o Output) string { return o.Name })
		if o.Step > 0 {
			c := condition{name: OutputRetrying, subject: o.Name, what: fmt.Sprintf("%d failures in a row: %s", o.Step, o.LastError)}
			if wait := o.NextRetry.Sub(now.At); wait > 0 {
				c.what += fmt.Sprintf("; next try in %v", wait.Round(time.Second))
			}
			add(c)
		}
		if old != nil {
			add(lost(o.Name, old.Dropped, o.Dropped)...)
		}
	}
	add(lost("routes", was.Dropped, now.Dropped)...)
	for _, c := range now.Certificates {
		add(expiry(c, now.At)...)
	}
	return all
}

// find is the element of that name, nil if there is none.
func find[T any](all []T, name string, nameOf func(T) string) *T {
	for i := range all {
		if nameOf(all[i]) == name {
			return &all[i]
		}
	}
	return nil
}

// grown is by how much a counter grew, 0 if it began anew.
func grown(was, now uint64) uint64 {
	if now < was {
		return 0
	}
	return now - was
}

func (e *Evaluator) listeners(was, now *Reading) (all []condition) {
	overflows := grown(was.Kernel.ListenOverflows, now.Kernel.ListenOverflows)
	// The socket's counter is read before the namespace's, so that an overflow
	// between the two is matched by the drops of the next reading.
	confirmed := overflows + e.unmatched
	e.unmatched = overflows
	for _, l := range now.Listeners {
		if l.LimitedBy != "" {
			all = append(all, condition{name: BacklogShort, subject: l.Name, mend: reload(l.Mend), told: true,
				what: fmt.Sprintf("backlog %d of %d asked, limited by %s", l.Granted, l.Asked, l.LimitedBy)})
		}
		q := l.Queue
		if q.Capacity > 0 && float64(q.PeakRecent) > queueHigh*float64(q.Capacity) {
			all = append(all, condition{name: AcceptQueueHigh, subject: l.Name, mend: largerBacklog(l),
				what: fmt.Sprintf("%d connections waited for accept(2), over %d%% of the backlog of %d", q.PeakRecent, int(100*queueHigh), q.Capacity)})
		}
		old := find(was.Listeners, l.Name, func(l Listener) string { return l.Name })
		if old == nil {
			continue
		}
		if grown(old.Queue.Starved, q.Starved) > 0 {
			all = append(all, condition{name: AcceptStarved, subject: l.Name, mend: "systemctl edit weir, and there LimitNOFILE=; or a lower max_connections",
				what: fmt.Sprintf("no connection can be accepted: the process is out of file descriptors, or the system out of memory; %d wait in the accept queue", q.Depth)})
		}
		if n := droppedHere(*old, l, confirmed); n > 0 {
			confirmed -= n
			e.unmatched -= min(n, e.unmatched)
			what := fmt.Sprintf("%d in %v; the accept queue was full, backlog %d", n, span(was, now), q.Capacity)
			if l.LimitedBy != "" {
				what = fmt.Sprintf("%d in %v; backlog %d of %d asked, limited by %s", n, span(was, now), l.Granted, l.Asked, l.LimitedBy)
			}
			if l.Sharing > 1 {
				what += fmt.Sprintf("; it is one of %d listeners on the address, and the others may have had room", l.Sharing)
			}
			all = append(all, condition{name: ConnectionsDropped, subject: l.Name, what: what, mend: largerBacklog(l), count: n})
		}
		if c := e.closeWait(l); c.name != "" {
			all = append(all, c)
		}
	}
	return all
}

// droppedHere is how many of the namespace's overflows were this listener's.
// Its own counter alone proves nothing, since it also counts stray segments;
// the namespace's alone may be another listener's; and a queue that was not full
// cannot have overflowed.
func droppedHere(was, now Listener, overflows uint64) uint64 {
	if now.Queue.PeakRecent < min(was.Queue.Capacity, now.Queue.Capacity) {
		return 0
	}
	return min(grown(was.Queue.Drops, now.Queue.Drops), overflows)
}

// closeWait finds connections that weir does not close: their number grows from
// sample to sample.
func (e *Evaluator) closeWait(l Listener) condition {
	if l.SampledAt.IsZero() {
		return condition{}
	}
	s := e.waits[l.Name]
	if l.SampledAt.After(s.at) {
		switch n := l.States.CloseWait; {
		case n > s.n:
			s.rises++
		case n < s.n:
			s.rises = 0
		}
		s.n, s.at = l.States.CloseWait, l.SampledAt
		e.waits[l.Name] = s
	}
	if s.n < closeWaitMin || s.rises < closeWaitRises {
		return condition{}
	}
	why, mend := "waits for something else", "weir status shows which queue holds messages up: commit, buffer or memory"
	if l.Queue.Depth > s.n/2 {
		why, mend = fmt.Sprintf("has not accepted them: %d wait in the accept queue", l.Queue.Depth), "systemctl edit weir, and there LimitNOFILE=, if accept_starved is on too; else weir has no time: look at its CPU"
	}
	return condition{name: CloseWait, subject: l.Name, mend: mend,
		what: fmt.Sprintf("%d connections are in CLOSE_WAIT and more come: their senders have gone, and weir %s", s.n, why)}
}

// kernel is about SYNs, which the kernel counts for all listeners together.
func kernel(was, now *Reading) (all []condition) {
	k, o := now.Kernel, was.Kernel
	full := grown(o.TCPReqQFullDoCookies, k.TCPReqQFullDoCookies)
	sent := grown(o.SyncookiesSent, k.SyncookiesSent)
	fullest := fullestSyn(now)
	switch {
	case sent > 0 && now.Syncookies == 2: // the kernel counts these as of a full queue too
		all = append(all, condition{name: SynCookies, subject: netNamespace, count: sent, mend: "sysctl -w net.ipv4.tcp_syncookies=1",
			what: fmt.Sprintf("%d in %v: net.ipv4.tcp_syncookies is 2, every SYN gets a cookie", sent, span(was, now))})
	case full > 0:
		all = append(all, condition{name: SynCookies, subject: netNamespace, count: full, mend: largerBacklogOf(now),
			what: fmt.Sprintf("%d in %v: more half-open connections than a backlog holds%s; tcp_max_syn_backlog has no part in this", full, span(was, now), fullest)})
	}
	if n := SynDrops(o, k, now.Syncookies); n > 0 {
		mend := "sysctl -w net.ipv4.tcp_syncookies=1"
		why := "with net.ipv4.tcp_syncookies 0 a SYN queue holds the smaller of the backlog and 3/4 of net.ipv4.tcp_max_syn_backlog"
		if now.MaxSynBacklog > 0 {
			why += fmt.Sprintf(" (%d)", now.MaxSynBacklog)
		}
		all = append(all, condition{name: SynDropped, subject: netNamespace, count: n, mend: mend,
			what: fmt.Sprintf("%d SYNs in %v%s; %s", n, span(was, now), fullest, why)})
	}
	return all
}

// SynDrops is how many SYNs were dropped for lack of room in a SYN queue. Those
// over 3/4 of tcp_max_syn_backlog, which counts with cookies off only, have no
// counter of their own: they are what ListenDrops has beyond the others.
func SynDrops(was, now netopt.Counters, syncookies int) uint64 {
	n := grown(was.TCPReqQFullDrop, now.TCPReqQFullDrop)
	if syncookies == 0 {
		all := grown(was.ListenDrops, now.ListenDrops)
		known := grown(was.ListenOverflows, now.ListenOverflows)
		if all > known {
			n = max(n, all-known)
		}
	}
	return n
}

// fullestSyn names the listener of weir with the fullest SYN queue, if one is
// over half.
func fullestSyn(r *Reading) string {
	best, share := "", 0.5
	for _, l := range r.Listeners {
		room := l.Granted * max(l.Sharing, 1)
		if s := float64(l.States.SynRecv) / float64(max(room, 1)); s > share && room > 0 {
			best, share = fmt.Sprintf(" (%s: %d half-open, backlog %d)", l.Name, l.States.SynRecv, room), s
		}
	}
	return best
}

func source(was *Source, now Source) (all []condition) {
	raise := "a larger max_connections, with LimitNOFILE over it, then systemctl restart weir"
	if now.Limit > 0 && float64(now.Open) > connectionsHigh*float64(now.Limit) {
		all = append(all, condition{name: ConnectionsHigh, subject: now.Name, mend: raise,
			what: fmt.Sprintf("%d connections of max_connections %d are open", now.Open, now.Limit)})
	}
	if now.MemoryWaiting > 0 {
		all = append(all, condition{name: MemoryWaits, subject: now.Name, mend: "a larger memory_limit, then systemctl restart weir; or a faster disk, if commit_slow is on too",
			what: fmt.Sprintf("%d connections wait: %s of memory_limit %s are held by messages that are not stored yet", now.MemoryWaiting, size(now.MemoryHeld), size(now.MemoryLimit))})
	}
	if was == nil {
		return all
	}
	if n := grown(was.Refused, now.Refused); n > 0 {
		all = append(all, condition{name: ConnectionsRefused, subject: now.Name, count: n, mend: raise,
			what: fmt.Sprintf("%d connections closed at once: max_connections or max_connections_per_client is reached; %d of %d are open", n, now.Open, now.Limit)})
	}
	if n := grown(was.Unanswered, now.Unanswered); n > 0 {
		all = append(all, condition{name: HeartbeatsForgotten, subject: now.Name, count: n,
			what: fmt.Sprintf("%d UDP heartbeats unanswered, so that senders turn to another server: messages cannot be stored", n)})
	}
	return all
}

func storage(was *Buffer, now Buffer) (all []condition) {
	if now.Failing != "" {
		all = append(all, condition{name: CommitFailing, subject: now.Name, mend: "df -h " + now.Path, what: "nothing can be stored, senders get no acks: " + now.Failing})
	}
	if now.PendingAge >= slowCommit {
		all = append(all, condition{name: CommitSlow, subject: now.Name, mend: "iostat -x 1 shows what keeps the disk of " + now.Path + " busy",
			what: fmt.Sprintf("a message has waited %v for fdatasync", now.PendingAge.Round(100*time.Millisecond))})
	}
	if now.Limit > 0 && float64(now.Backlog) > queueHigh*float64(now.Limit) {
		then := map[string]string{"block": "reading stops", "drop_oldest_chunk": "the oldest events are dropped"}[now.Overflow]
		if then == "" {
			then = "messages are refused and senders keep them"
		}
		all = append(all, condition{name: BufferHigh, subject: now.Name, mend: "a larger total_limit_size, or a faster output",
			what: fmt.Sprintf("%d%% of total_limit_size %s; beyond it %s", int(100*float64(now.Backlog)/float64(now.Limit)), size(now.Limit), then)})
	}
	if was != nil {
		if n := grown(was.Refused, now.Refused); n > 0 {
			all = append(all, condition{name: BufferRefusing, subject: now.Name, count: n, mend: "a larger total_limit_size, or a faster output",
				what: fmt.Sprintf("%d messages refused: the buffer is full, senders keep them", n)})
		}
	}
	if low := max(int64(diskLowShare*float64(now.DiskSize)), 2*now.ChunkLimit); now.DiskSize > 0 && now.DiskFree < min(low, now.DiskSize/2) {
		all = append(all, condition{name: DiskLow, subject: now.Name, mend: "df -h " + now.Path,
			what: fmt.Sprintf("%s free of %s in the file system of %s", size(now.DiskFree), size(now.DiskSize), now.Path)})
	}
	return all
}

// lost is an alert if events were dropped, with the cause of most of them.
func lost(subject string, was, now map[string]uint64) []condition {
	var n uint64
	var causes []string
	for cause, v := range now {
		if d := grown(was[cause], v); d > 0 {
			n += d
			causes = append(causes, fmt.Sprintf("%s %d", cause, d))
		}
	}
	if n == 0 {
		return nil
	}
	slices.Sort(causes)
	return []condition{{name: EventsDropped, subject: subject, count: n, what: fmt.Sprintf("%d events lost: %s", n, strings.Join(causes, ", "))}}
}

// expiry is an alert for as long as the doctor warns of the certificate.
func expiry(c Certificate, at time.Time) []condition {
	left := c.Expires.Sub(at)
	if left >= doctor.ExpiresSoon {
		return nil
	}
	on := c.Expires.UTC().Format(time.DateOnly)
	what := fmt.Sprintf("%s expires in %d days, on %s; then senders that check certificates do not connect", c.Subject, int(left/(24*time.Hour)), on)
	if left <= 0 {
		what = fmt.Sprintf("%s expired on %s: senders that check certificates do not connect", c.Subject, on)
	}
	return []condition{{name: CertificateExpiring, subject: c.Name, what: what, remind: 24 * time.Hour,
		mend: "renew " + c.Name + "; weir takes new files at the next handshake, without a restart"}}
}

func size(bytes int64) string { return status.Amount(bytes, queue.UnitBytes) }

func span(was, now *Reading) time.Duration {
	if was.At.IsZero() {
		return time.Second
	}
	return max(now.At.Sub(was.At).Round(time.Second), time.Second)
}

// largerBacklog is how a listener gets a larger backlog than it has.
func largerBacklog(l Listener) string {
	if l.LimitedBy != "" {
		return reload(l.Mend)
	}
	want := 1 << bits.Len(uint(2*l.Granted))
	return fmt.Sprintf("backlog %d in the <source>, then sysctl -w net.core.somaxconn=%d && systemctl reload weir", want, want)
}

func largerBacklogOf(r *Reading) string {
	if len(r.Listeners) == 0 {
		return ""
	}
	return largerBacklog(slices.MaxFunc(r.Listeners, func(a, b Listener) int { return cmp.Compare(a.States.SynRecv, b.States.SynRecv) }))
}

func reload(first string) string { return first + " && systemctl reload weir" }
