package queue

import "time"

// minute is how many seconds PeakMinute looks back.
const minute = 60

// Peaks keeps, for queues that are read once a second, the largest depth since
// start and of the last minute. The zero value is ready; it is for one goroutine.
type Peaks struct {
	of map[peakKey]*peak
}

type peakKey struct {
	name     Name
	instance string
}

type peak struct {
	ever, stage int64
	seconds     [minute]struct{ at, max int64 }
}

// Note takes a reading into account. Where the stage's own peak has grown since
// the last one, that happened in the last second, and no sample can have seen it.
func (p *Peaks) Note(q Queue, now time.Time) {
	k := peakKey{q.Name, q.Instance}
	if p.of == nil {
		p.of = map[peakKey]*peak{}
	}
	e := p.of[k]
	if e == nil {
		e = &peak{}
		p.of[k] = e
	}
	depth := q.Depth
	if q.Peak > e.stage {
		depth, e.stage = max(depth, q.Peak), q.Peak
	}
	e.ever = max(e.ever, depth)
	s := &e.seconds[now.Unix()%minute]
	if s.at != now.Unix() {
		s.at, s.max = now.Unix(), 0
	}
	s.max = max(s.max, depth)
}

// Apply raises q's peaks to what was noted.
func (p *Peaks) Apply(q *Queue, now time.Time) {
	q.Peak = max(q.Peak, q.Depth)
	q.PeakMinute = max(q.PeakMinute, q.Depth)
	e := p.of[peakKey{q.Name, q.Instance}]
	if e == nil {
		return
	}
	q.Peak = max(q.Peak, e.ever)
	for _, s := range e.seconds {
		if s.at > now.Unix()-minute {
			q.PeakMinute = max(q.PeakMinute, s.max)
		}
	}
}
