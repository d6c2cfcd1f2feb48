package netopt

import (
	"sync"
	"sync/atomic"
	"time"
)

// window is the span of a Queue's PeakMinute, in seconds.
const window = 60

// peaks keeps the largest depth since start and of the last minute.
type peaks struct {
	ever atomic.Int64
	// Most readings are no new maximum of their second and take no lock.
	second atomic.Int64
	max    atomic.Int64

	mu      sync.Mutex
	seconds [window]struct {
		at  int64
		max int64
	}
}

// note takes a reading into account.
func (p *peaks) note(depth int, now time.Time) {
	d, sec := int64(depth), now.Unix()
	for {
		old := p.ever.Load()
		if d <= old || p.ever.CompareAndSwap(old, d) {
			break
		}
	}
	if p.second.Load() == sec && d <= p.max.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.seconds[sec%window]
	if s.at != sec {
		s.at, s.max = sec, 0
	}
	s.max = max(s.max, d)
	p.max.Store(s.max)
	p.second.Store(sec)
}

// read returns the peak since start, that of the last minute, and that of this
// second and the one before.
func (p *peaks) read(now time.Time) (ever, minute, recent int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var m, r int64
	for _, s := range p.seconds {
		if s.at > now.Unix()-window {
			m = max(m, s.max)
		}
		if s.at >= now.Unix()-1 {
			r = max(r, s.max)
		}
	}
	return int(p.ever.Load()), int(m), int(r)
}
