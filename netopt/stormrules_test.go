package netopt

import (
	"testing"
	"time"
)

// TestStormRules: what is a storm, and for how long connections wait in it.
func TestStormRules(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	for name, c := range map[string]struct {
		every   time.Duration // between connections, of which there are 200
		speaks  int           // one in so many, 0: none
		undone  int           // so many of the last ones have done nothing yet
		backlog int           // 4096 if 0
		after   time.Duration // since the last one
		depth   int           // read after a wait
		wait    time.Duration // 0: no storm
	}{
		"the mean is slow":               {every: 1251 * us},
		"just dense":                     {every: 1250 * us, wait: 4 * ms},
		"dense":                          {every: 500 * us, wait: 4 * ms},
		"denser":                         {every: 200 * us, wait: 1600 * us},
		"as fast as can be":              {every: 20 * us, wait: 160 * us},
		"no outcome yet":                 {every: 500 * us, undone: 141},
		"enough outcomes":                {every: 500 * us, undone: 140, wait: 4 * ms},
		"few speak":                      {every: 500 * us, speaks: 16, wait: 4 * ms},
		"some speak":                     {every: 500 * us, speaks: 13},
		"all speak":                      {every: 500 * us, speaks: 1},
		"small backlog":                  {every: 500 * us, backlog: 127},
		"least backlog":                  {every: 500 * us, backlog: 128, wait: 4 * ms},
		"just over":                      {every: 500 * us, after: 41 * ms},
		"over for long":                  {every: 500 * us, after: time.Hour},
		"not yet over":                   {every: 500 * us, after: 30 * ms, wait: 4 * ms},
		"the queue is as expected":       {every: 500 * us, depth: 8, wait: 4 * ms},
		"the queue after a late wake-up": {every: 500 * us, depth: 48, wait: 4 * ms},
		"the queue grows":                {every: 500 * us, depth: 49},
		"the queue grows, denser":        {every: 100 * us, depth: 49},
		"the queue grows, small backlog": {every: 500 * us, backlog: 128, depth: 17},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStorm()
			backlog := c.backlog
			if backlog == 0 {
				backlog = 4096
			}
			now := time.Unix(1_000_000, 0)
			s.rages(now)
			for i := range 200 {
				now = now.Add(c.every)
				s.reading(1, backlog)
				s.came(now)
				if i < 200-c.undone {
					s.did(c.speaks > 0 && i%c.speaks == 0)
				}
			}
			s.on = s.rages(now)
			now = now.Add(c.after)
			s.reading(c.depth, backlog)
			if s.on = s.rages(now); s.on != (c.wait > 0) {
				t.Fatalf("storm: %v", s.on)
			}
			if s.on && s.wait() != c.wait {
				t.Errorf("wait of %v, want %v", s.wait(), c.wait)
			}
			if c.wait == 0 || c.depth > 0 {
				return
			}
			// One that has grown begins anew only when as many have left as the first time.
			s.reading(backlog, backlog)
			for i := range 64 {
				if s.rages(now) != (i >= 64-stormSpeakers) {
					t.Fatalf("after %d more: %v", i, s.rages(now))
				}
				for range stormSample {
					now = now.Add(c.every)
					s.came(now)
				}
				s.did(false)
			}
		})
	}
}
