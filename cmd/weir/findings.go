package main

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"weir/internal/config"
	"weir/internal/doctor"
)

// examineEvery is how often a running weir looks at its machine.
const examineEvery = 5 * time.Minute

// findings are what the doctor found last and is not as it should be.
type findings struct {
	mu  sync.Mutex
	all []doctor.Finding
}

func (f *findings) set(all []doctor.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = all
}

func (f *findings) get() []doctor.Finding {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all
}

// watchMachine makes the doctor's cheap checks at start, every few minutes and
// after a reload.
func (s *server) watchMachine(ctx context.Context) {
	tick := time.NewTicker(examineEvery)
	defer tick.Stop()
	started := time.Now()
	for {
		s.examine(ctx, started)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.reloaded:
		}
	}
}

// examine makes the checks once. started is when weir began to watch the clock.
func (s *server) examine(ctx context.Context, started time.Time) {
	begin := time.Now()
	m := doctor.Host()
	read := m.Clock
	m.Clock = func() (doctor.Clock, error) {
		c, err := read()
		// The monotonic clock is slewed and never set: what the other one is off
		// by, somebody has set.
		c.Stepped, c.Since = begin.Round(0).Sub(started.Round(0))-begin.Sub(started), started
		return c, err
	}
	all := doctor.RunCheap(ctx, m, doctor.Target{Config: s.currentConfig(), Running: runningOf(s.snapshot())})
	s.findings.set(all)
	s.log.Debug("machine checked", zap.Int("findings", len(all)), zap.Duration("took", time.Since(begin)))
}

// currentConfig is a copy, since a reload changes the configuration in place.
func (s *server) currentConfig() *config.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.config
	return &c
}

// examineSoon asks watchMachine to look again.
func (s *server) examineSoon() {
	select {
	case s.reloaded <- struct{}{}:
	default: // it will anyway
	}
}
