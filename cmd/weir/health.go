package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"weir/buffer"
)

// healthEvery is how often weir looks at itself.
const healthEvery = 250 * time.Millisecond

// health is whether messages can be stored. The zero health is good.
type health struct {
	bad atomic.Bool

	mu       sync.Mutex
	problems []string
}

func (h *health) healthy() bool { return !h.bad.Load() }

// reasons says why it is bad, a line each.
func (h *health) reasons() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.problems
}

func (h *health) set(problems []string) {
	h.mu.Lock()
	h.problems = problems
	h.mu.Unlock()
	h.bad.Store(len(problems) > 0)
}

// watchHealth keeps the health true: it is bad while storing has failed, or a
// commit has taken, longer than health_grace, and good again by itself.
func (s *server) watchHealth(ctx context.Context) {
	grace := s.config.Sources[0].HealthGrace
	for _, src := range s.sources {
		grace = min(grace, src.config.HealthGrace)
	}
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	var since time.Time
	starving := starvation{log: s.log}
	for {
		starving.look(s.sources)
		var problems []string
		for _, m := range s.matches {
			if p := unhealthy(m.config.ID, m.buffer.Stats(), grace); p != "" {
				problems = append(problems, p)
			}
		}
		switch was := s.health.healthy(); {
		case was && len(problems) > 0:
			since = time.Now()
			s.log.Error("not ready: /readyz fails and UDP heartbeats go unanswered until storing works", zap.Strings("problems", problems))
		case !was && len(problems) == 0:
			s.log.Info("ready again", zap.Duration("after", time.Since(since)))
		}
		s.health.set(problems)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// starvation logs when connections cannot be accepted for lack of file
// descriptors or memory: one line when it begins and one when it is over.
type starvation struct {
	log   *zap.Logger
	seen  uint64    // netopt.Queue.Starved of all listeners
	since time.Time // zero while all is well
	quiet time.Time // when it was last so
}

func (st *starvation) look(sources []*source) {
	var n uint64
	waiting := 0
	for _, src := range sources {
		for _, l := range src.listeners {
			if q, err := l.Queue(); err == nil {
				n += q.Starved
				waiting += q.Depth
			}
		}
	}
	now := time.Now()
	switch {
	case n > st.seen && st.since.IsZero():
		st.since = now
		st.log.Error("no connection can be accepted: the process is out of file descriptors, or the system out of memory; senders wait in the accept queue. Raise LimitNOFILE, or lower max_connections",
			zap.Int("waiting", waiting))
	case n == st.seen && !st.since.IsZero() && now.Sub(st.quiet) > time.Second:
		st.log.Info("connections are accepted again", zap.Duration("after", now.Sub(st.since)))
		st.since = time.Time{}
	}
	if n > st.seen {
		st.seen, st.quiet = n, now
	}
}

// unhealthy says what is wrong with a buffer for longer than grace.
func unhealthy(name string, st buffer.Stats, grace time.Duration) string {
	if st.Failing != nil {
		if d := time.Since(st.FailingSince); d >= grace {
			return fmt.Sprintf("buffer %s: storing has failed for %v: %v", name, d.Round(time.Second), st.Failing)
		}
	}
	if st.PendingAge > grace {
		return fmt.Sprintf("buffer %s: a commit has taken %v: the disk stalls", name, st.PendingAge.Round(time.Second))
	}
	return ""
}
