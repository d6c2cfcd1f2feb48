package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"weir/buffer"
)

// The bounds of how often weir looks at itself: four times within health_grace.
const (
	healthOften  = 250 * time.Millisecond
	healthSeldom = time.Second
)

func healthPeriod(grace time.Duration) time.Duration {
	return min(max(grace/4, healthOften), healthSeldom)
}

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

// healthGrace is the shortest of the sources.
func (s *server) healthGrace() time.Duration {
	grace := s.config.Sources[0].HealthGrace
	for _, src := range s.sources {
		grace = min(grace, src.config.HealthGrace)
	}
	return grace
}

// lookAtHealth keeps the health true: it is bad while storing has failed, or a
// commit has taken, longer than grace, and good again by itself.
func (s *server) lookAtHealth(grace time.Duration) {
	var problems []string
	for _, m := range s.matches {
		if p := unhealthy(m.config.ID, m.buffer.Stats(), grace); p != "" {
			problems = append(problems, p)
		}
	}
	s.health.set(problems)
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
