package main

import (
	"context"
	"slices"
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

// set keeps the findings and returns those that are new and those that are
// over, by check and subject.
func (f *findings) set(all []doctor.Finding) (begun, over []doctor.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	begun, over = without(all, f.all), without(f.all, all)
	f.all = all
	return begun, over
}

// without returns those of all that are not among known.
func without(all, known []doctor.Finding) (rest []doctor.Finding) {
	for _, f := range all {
		if !slices.ContainsFunc(known, func(k doctor.Finding) bool {
			return k.Check == f.Check && k.Subject == f.Subject && k.Severity == f.Severity
		}) {
			rest = append(rest, f)
		}
	}
	return rest
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
	begun, over := s.findings.set(all)
	for _, f := range begun {
		fields := []zap.Field{zap.String("check", f.Check), zap.String("subject", f.Subject), zap.String("found", f.Found), zap.String("why", f.Why), zap.String("mend", f.Mend)}
		if f.Severity == doctor.Note {
			s.log.Info("found on this machine", fields...)
		} else {
			s.log.Warn("found on this machine", fields...)
		}
	}
	for _, f := range over {
		s.log.Info("no longer found on this machine", zap.String("check", f.Check), zap.String("subject", f.Subject), zap.String("found", f.Found))
	}
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
