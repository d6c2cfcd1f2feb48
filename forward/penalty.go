package forward

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// Senders whose handshakes fail wait longer and longer for the next one.
const (
	penaltyFirst  = 100 * time.Millisecond
	penaltyMax    = 5 * time.Second
	penaltyMemory = time.Minute // after the last failure all is forgotten
	maxPenalties  = 4096        // addresses
)

// penalties remembers failed handshakes by address, so that guessing a key
// takes time. The zero value is ready.
type penalties struct {
	mu     sync.Mutex
	failed map[netip.Addr]failures
}

type failures struct {
	n    int
	last time.Time
}

// delay is how long the address waits before its next handshake begins.
func (p *penalties) delay(a netip.Addr, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failed[a]
	if f.n == 0 || now.Sub(f.last) > penaltyMemory {
		return 0
	}
	return min(penaltyFirst<<min(f.n-1, 10), penaltyMax)
}

// fail notes a failed handshake. Where there is no room, what is forgotten soonest
// goes first.
func (p *penalties) fail(a netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, known := p.failed[a]
	if !known && len(p.failed) >= maxPenalties {
		var oldest netip.Addr
		first := now
		for other, f := range p.failed {
			if f.last.Before(first) || !oldest.IsValid() {
				oldest, first = other, f.last
			}
		}
		delete(p.failed, oldest)
	}
	if p.failed == nil {
		p.failed = map[netip.Addr]failures{}
	}
	if now.Sub(f.last) > penaltyMemory {
		f.n = 0
	}
	p.failed[a] = failures{f.n + 1, now}
}

// pass forgets the failures of an address.
func (p *penalties) pass(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.failed, a)
}

// servePenalty waits as long as the sender's failed handshakes ask for.
func (s *session) servePenalty(ctx context.Context) error {
	d := s.srv.penalties.delay(clientOf(s.remote), time.Now())
	if d == 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.srv.stopping:
		return errDrained
	case <-ctx.Done():
		return ctx.Err()
	}
}
