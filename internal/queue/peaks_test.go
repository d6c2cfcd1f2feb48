package queue

import (
	"testing"
	"time"
)

func TestPeaks(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	var p Peaks
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	q := func(depth, peak int64) Queue { return Queue{Name: Memory, Instance: "in", Depth: depth, Peak: peak} }
	p.Note(q(5, 5), at(0))
	p.Note(q(2, 900), at(1)) // a burst between two samples
	p.Note(q(7, 900), at(30))
	for _, c := range []struct {
		name         string
		now          int
		in           Queue
		peak, minute int64
	}{
		{"with the burst", 31, q(3, 900), 900, 900},
		{"a minute later", 62, q(3, 900), 900, 7},
		{"long after", 200, q(3, 900), 900, 3},
		{"no peak of its own", 31, q(3, 0), 900, 900},
		{"deeper now", 31, q(1000, 0), 1000, 1000},
		{"another queue", 31, Queue{Name: Memory, Instance: "other", Depth: 1}, 1, 1},
	} {
		p.Apply(&c.in, at(c.now))
		if c.in.Peak != c.peak || c.in.PeakMinute != c.minute {
			t.Errorf("%s: peak %d, of the minute %d; want %d and %d", c.name, c.in.Peak, c.in.PeakMinute, c.peak, c.minute)
		}
	}
}
