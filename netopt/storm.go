package netopt

import (
	"math/bits"
	"time"
)

const (
	// stormPace is how often connections must come, on average over stormSample of
	// them, to be left in the accept queue for a moment. Of fewer only one or two
	// would come in that time, and a timer costs as much as to be woken by them.
	stormPace   = 1250 * time.Microsecond
	stormSample = 32
	// stormRound is how many a wait is to bring, if it does not take longer than
	// stormMost: what a first message may lose to it, a few milliseconds as commits
	// take.
	stormRound = 8
	stormMost  = 4 * time.Millisecond
	// stormSpeakers is how many of the last 64 may have sent something. A sender that
	// connects for each message and waits for its ack has a larger share, even beside
	// thousands of heartbeats a second, and shall not wait.
	stormSpeakers = 4
	// stormBacklog is the smallest backlog in which they are left: stormRound is a
	// sixteenth of it.
	stormBacklog = 128
	// A queue of more than an eighth of the backlog (stormShare), or of stormSlack and
	// stormGrowth times what was expected, is no storm as it was.
	stormShare  = 8
	stormSlack  = 16
	stormGrowth = 4
)

// storm knows whether connections come so often, and so seldom with something to
// say, that they are better left in the accept queue for a moment and taken
// together, as network cards moderate their interrupts.
type storm struct {
	slowest time.Duration // stormPace
	round   time.Duration // stormRound
	most    time.Duration // stormMost

	on       bool   // the listening socket wakes nobody
	outcomes uint64 // of the last 64 that did anything, the latest lowest: 1 has spoken
	count    int    // how many came since since
	since    time.Time
	pace     time.Duration // between two of the last sample, 0 if there is none
	backlog  int           // as of the last reading
	grown    bool          // others have filled the queue in this wait
}

func newStorm() storm {
	s := storm{slowest: stormPace, round: stormRound, most: stormMost}
	s.forget()
	return s
}

// came counts a connection.
func (s *storm) came(now time.Time) {
	if s.count++; s.count == stormSample {
		s.pace = max(now.Sub(s.since)/stormSample, 1)
		s.count, s.since = 0, now
	}
}

// did is told what a connection did first: speak, or end.
func (s *storm) did(speak bool) {
	s.outcomes <<= 1
	if speak {
		s.outcomes |= 1
	}
}

// forget is the state of a listener of which nothing is known.
func (s *storm) forget() { s.outcomes, s.pace = ^uint64(0), 0 }

// reading is told the first depth of the queue after a wait.
func (s *storm) reading(depth, backlog int) {
	s.backlog = backlog
	if s.on && s.pace > 0 && (depth > backlog/stormShare || depth > stormSlack+stormGrowth*s.expected()) {
		s.grown = true
	}
}

// wait is for how long connections are left in the queue.
func (s *storm) wait() time.Duration { return min(s.round*s.pace, s.most) }

// expected is how many come in a wait. The pace must be known.
func (s *storm) expected() int { return int(s.wait() / s.pace) }

// rages reports whether the next ones are to be left in the queue. If that has grown
// it is over at once, and begins anew only after as many as the first time.
func (s *storm) rages(now time.Time) bool {
	if s.grown {
		s.grown = false
		s.forget()
	}
	if now.Sub(s.since) > stormSample*s.slowest { // this sample cannot be dense any more
		s.count, s.since, s.pace = 0, now, 0
	}
	return s.pace > 0 && s.pace <= s.slowest && bits.OnesCount64(s.outcomes) <= stormSpeakers && s.backlog >= stormBacklog
}
