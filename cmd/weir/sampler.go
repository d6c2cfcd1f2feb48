package main

import (
	"context"
	"maps"
	"net"
	"runtime"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weir/internal/alert"
	"weir/internal/certs"
	"weir/internal/config"
	"weir/internal/queue"
	"weir/internal/status"
	"weir/netopt"
)

const (
	// sampleEvery is the pace at which what cannot be exact is looked at.
	sampleEvery = time.Second
	// nearly is when a tick is taken for the next second's.
	nearly = sampleEvery - sampleEvery/10
	// The period of a walk over the kernel's connections, or over the senders, is
	// its cost times one of these. Connections that wait (half-open, CLOSE_WAIT) come
	// and go fast and cost a tenth of all, so that they get 0.033 % of a core, the
	// others 0.01 %, the few sysctls 0.001 %.
	waitingShare = 3000
	walkShare    = 10_000
	sysctlShare  = 100_000
	// These bound that on a slow machine. Half-open connections live for seconds:
	// looked at less often, a flood of them would not be seen.
	waitingPeriod = 8 * time.Second
	longestPeriod = 3 * time.Minute
	// topSenders is how many senders a Snapshot holds.
	topSenders = 20
)

// paced says when something that costs is due again.
type paced struct {
	share, longest time.Duration
	due            time.Time
}

// run calls f if it is due, and takes its cost into account.
func (p *paced) run(now time.Time, f func()) {
	if now.Before(p.due) {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime()
	f()
	p.due = now.Add(min(max((threadTime()-start)*p.share, nearly), p.longest))
}

// threadTime is the CPU time of the calling thread (clock_gettime(2)): what else
// runs on the machine is not the walk's cost.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// sampler holds what is read once in a while, and the alerts.
type sampler struct {
	alerts *alert.Evaluator
	log    *zap.Logger
	kernel *netopt.Kernel

	mu                  sync.Mutex
	ports               map[string]portSample // by listener
	peaks               queue.Peaks
	senders             []status.Sender
	known               int
	disks               map[string]disk // of the buffers, by path
	syncookies, maxSyn  int
	synDropped, cookies uint64 // since start
	err                 string // why something could not be sampled

	// What follows belongs to the sampling goroutine.
	walk, waiting, table, sysctls paced
	counters                      *netopt.Counters // of the last tick
}

// disk is the room of a file system, in bytes.
type disk struct{ free, size int64 }

type portSample struct {
	netopt.PortStates
	at time.Time // of CloseWait
}

// newSampler returns a sampler of the calling thread's network namespace.
func newSampler(log *zap.Logger) (*sampler, error) {
	k, err := netopt.OpenKernel()
	if err != nil {
		return nil, err
	}
	return &sampler{alerts: alert.New(log), log: log, kernel: k, ports: map[string]portSample{}, disks: map[string]disk{}, syncookies: -1, maxSyn: -1,
		walk: paced{share: walkShare, longest: longestPeriod}, waiting: paced{share: waitingShare, longest: waitingPeriod},
		table: paced{share: walkShare, longest: longestPeriod}, sysctls: paced{share: sysctlShare, longest: longestPeriod}}, nil
}

// watch looks at everything each second, first after one, and at the health as
// often as health_grace wants it, until ctx ends. One timer for both: what wakes an idle
// process costs more than what it then does.
func (s *server) watch(ctx context.Context) {
	grace := s.healthGrace()
	tick := time.NewTicker(healthPeriod(grace))
	defer tick.Stop()
	for due := time.Now().Add(nearly); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.lookAtHealth(grace)
			if !now.Before(due) {
				due = now.Add(nearly)
				s.sampleOnce(now)
			}
		}
	}
}

// sampleOnce looks; changes of counters are told from the second look on.
func (s *server) sampleOnce(now time.Time) {
	sm := s.sampler
	sm.sysctls.run(now, sm.readSysctls)
	sm.walk.run(now, func() {
		s.eachPort(func(name string, addr *net.TCPAddr) error {
			p, err := sm.kernel.States(addr)
			if err == nil {
				sm.setPort(name, portSample{p, now})
			}
			return err
		})
	})
	sm.waiting.run(now, func() {
		s.eachPort(func(name string, addr *net.TCPAddr) error {
			p, err := sm.kernel.Waiting(addr)
			if err == nil {
				sm.setWaiting(name, p, now)
			}
			return err
		})
	})
	sm.table.run(now, func() {
		top, known := s.topSenders(senderOrders["heartbeats"], topSenders)
		sm.mu.Lock()
		sm.senders, sm.known = top, known
		sm.mu.Unlock()
	})
	r := s.reading(now)
	sm.countSyns(r)
	sm.alerts.Look(r)
	snap := s.figures()
	sm.mu.Lock()
	defer sm.mu.Unlock()
	for _, q := range snap.Queues {
		sm.peaks.Note(q, now)
	}
}

// eachPort calls f once for each address of TCP listeners.
func (s *server) eachPort(f func(name string, addr *net.TCPAddr) error) {
	var failed string
	for _, src := range s.sources {
		for _, l := range src.listeners {
			tcp, first := l.tcp()
			if tcp == nil || !first {
				continue
			}
			if err := f(l.Addr().String(), tcp); err != nil {
				failed = err.Error()
			}
		}
	}
	s.sampler.mu.Lock()
	s.sampler.err = failed
	s.sampler.mu.Unlock()
}

func (sm *sampler) setPort(name string, p portSample) {
	sm.mu.Lock()
	defer sm.mu.Unlock()
	sm.ports[name] = p
}

func (sm *sampler) setWaiting(name string, states netopt.PortStates, now time.Time) {
	sm.mu.Lock()
	defer sm.mu.Unlock()
	p := sm.ports[name]
	p.SynRecv, p.CloseWait, p.at = states.SynRecv, states.CloseWait, now
	sm.ports[name] = p
}

// port is the latest sample of the connections of a TCP listener's address; it is
// given for the first listener of several alone.
func (sm *sampler) port(l *listener) (portSample, bool) {
	sm.mu.Lock()
	defer sm.mu.Unlock()
	tcp, first := l.tcp()
	return sm.ports[l.name()], tcp != nil && first
}

func (sm *sampler) readSysctls() {
	read := func(name string) int {
		n, err := netopt.Sysctl(name)
		if err != nil {
			return -1
		}
		return n
	}
	cookies, maxSyn := read("net.ipv4.tcp_syncookies"), read("net.ipv4.tcp_max_syn_backlog")
	sm.mu.Lock()
	defer sm.mu.Unlock()
	sm.syncookies, sm.maxSyn = cookies, maxSyn
}

// readDisk reads the room of the file system that holds path; it is zero where that
// cannot be told.
func (sm *sampler) readDisk(path string) (d disk) {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) == nil {
		d = disk{int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize}
	}
	sm.mu.Lock()
	defer sm.mu.Unlock()
	sm.disks[path] = d
	return d
}

// countSyns adds up what the SYN queues could not take.
func (sm *sampler) countSyns(r *alert.Reading) {
	if was := sm.counters; was != nil {
		sm.mu.Lock()
		sm.synDropped += alert.SynDrops(*was, r.Kernel, r.Syncookies)
		sm.cookies += r.Kernel.SyncookiesSent - min(was.SyncookiesSent, r.Kernel.SyncookiesSent)
		sm.mu.Unlock()
	}
	sm.counters = &r.Kernel
}

// syn is what limits a SYN queue on this kernel, and what it could not take. The
// kernel counts that for all listeners of the network namespace together.
func (sm *sampler) syn(backlog int) (capacity int64, droppedBy map[string]uint64, note string) {
	sm.mu.Lock()
	defer sm.mu.Unlock()
	droppedBy = map[string]uint64{"dropped": sm.synDropped, "cookies_sent": sm.cookies}
	capacity = int64(backlog)
	switch {
	case sm.syncookies == 2:
		note = "tcp_syncookies is 2: every SYN gets a cookie"
	case sm.syncookies == 0 && sm.maxSyn > 0 && sm.maxSyn*3/4 < backlog:
		capacity, note = int64(sm.maxSyn*3/4), "limited by 3/4 of tcp_max_syn_backlog, since tcp_syncookies is 0"
	}
	return capacity, droppedBy, note
}

// apply puts into a snapshot what was sampled.
func (sm *sampler) apply(snap *status.Snapshot) {
	snap.Alerts = sm.alerts.Alerts()
	sm.mu.Lock()
	defer sm.mu.Unlock()
	for i := range snap.Queues {
		sm.peaks.Apply(&snap.Queues[i], snap.Now)
	}
	for i := range snap.Buffers {
		d := sm.disks[snap.Buffers[i].Path]
		snap.Buffers[i].DiskFree, snap.Buffers[i].DiskSize = d.free, d.size
	}
	snap.Senders, snap.SendersKnown = sm.senders, sm.known
	if sm.err != "" {
		snap.Warnings = append(snap.Warnings, sm.err)
	}
}

// reading is what alerts are made of.
func (s *server) reading(now time.Time) *alert.Reading {
	r := &alert.Reading{At: now, Problems: s.health.reasons(), Dropped: map[string]uint64{}}
	s.sampler.mu.Lock()
	r.Syncookies, r.MaxSynBacklog = s.sampler.syncookies, s.sampler.maxSyn
	s.sampler.mu.Unlock()
	full := map[string]uint64{}
	for _, src := range s.sources {
		for _, l := range src.listeners {
			r.Listeners = append(r.Listeners, s.listenerReading(l))
		}
		st := src.server.Stats()
		r.Sources = append(r.Sources, alert.Source{Name: src.config.ID, Open: st.Open, Limit: st.Limit, Refused: st.Refused,
			MemoryWaiting: st.MemoryWaiting, MemoryHeld: st.MemoryHeld, MemoryLimit: st.MemoryLimit,
			MemoryRefused: st.RefusedMessages["memory"], Unanswered: st.Unanswered})
		full[src.config.Label] += st.RefusedMessages[reasonFull]
	}
	if k, err := s.sampler.kernel.Counters(); err == nil {
		r.Kernel = k
	} else if s.sampler.counters != nil { // 0 would look like a counter's whole value at the next look
		r.Kernel = *s.sampler.counters
	}
	for _, m := range s.matches {
		st := m.buffer.Stats()
		b := alert.Buffer{Name: m.config.ID, Path: m.config.Buffer.Path, Backlog: st.Backlog, Limit: st.Limit, Overflow: m.config.Buffer.Overflow,
			PendingAge: st.PendingAge, ChunkLimit: m.config.Buffer.ChunkLimit}
		if st.Backlog*2 > st.Limit { // a source's refusals are of one of its buffers
			b.Refused = full[m.config.Label]
		}
		if st.Failing != nil {
			b.Failing = st.Failing.Error()
		}
		d := s.sampler.readDisk(b.Path)
		b.DiskFree, b.DiskSize = d.free, d.size
		r.Buffers = append(r.Buffers, b)
		for i, run := range m.runners {
			o := run.Stats()
			r.Outputs = append(r.Outputs, alert.Output{Name: m.config.Outputs[i].ID, Step: o.Step, NextRetry: o.NextRetry,
				LastError: o.LastError, Dropped: maps.Clone(st.Cursors[i].Dropped)})
		}
	}
	for _, route := range s.routes {
		r.Dropped["no_match"] += route.noMatch.Load()
	}
	for _, src := range s.sources {
		r.Certificates = append(r.Certificates, certificateReading(src.certs, src.config.TLS, src.config.ID)...)
	}
	s.mu.Lock()
	monitor := s.config.Monitor
	s.mu.Unlock()
	r.Certificates = append(r.Certificates, certificateReading(s.statusCerts, monitor.TLS, monitor.ID)...)
	return r
}

// certificateReading is of the certificates in use, none without TLS.
func certificateReading(store *certs.Store, c *config.TLS, id string) []alert.Certificate {
	if store == nil {
		return nil
	}
	name := id
	if c != nil && c.CertPath != "" {
		name = c.CertPath
	} else if c != nil && c.CACertPath != "" {
		name = c.CACertPath
	}
	subject, at := store.Expires()
	return []alert.Certificate{{Name: name, Subject: subject, Expires: at}}
}

func (s *server) listenerReading(l *listener) alert.Listener {
	a := alert.Listener{Name: l.name(), Sharing: l.of}
	a.Asked, a.Granted = l.Backlog()
	if m := l.Mismatch(); m != nil {
		a.LimitedBy, a.Mend = m.Sysctl, m.Mend()
	}
	if q, err := l.Queue(); err == nil {
		a.Queue = q
	}
	if p, ok := s.sampler.port(l); ok {
		a.States, a.SampledAt = p.PortStates, p.at
	}
	return a
}
