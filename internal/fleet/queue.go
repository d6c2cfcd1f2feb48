package fleet

import (
	"container/heap"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"
)

// Queue is what a simulated accept queue went through.
type Queue struct {
	// Peak is the most connections that waited for accept(2) at once.
	Peak int `json:"peak"`
	// Drops counts SYNs that were dropped because the queue was full, each retry
	// again; Delayed connections of which at least one SYN was; GaveUp those that
	// were not in after the last retry.
	Drops   int `json:"drops"`
	Delayed int `json:"delayed"`
	GaveUp  int `json:"gave_up"`
	// Slowest is the longest time from a first SYN to accept(2).
	Slowest time.Duration `json:"slowest_ns"`
}

// retries are when a SYN without an answer is sent again, after the first:
// Linux 6.5 and later, tcp_syn_retries 6, tcp_syn_linear_timeouts 4. Measured;
// older kernels double from the beginning: 1, 3, 7, 15 s.
var retries = [...]time.Duration{1 * time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second, 5 * time.Second, 7 * time.Second, 11 * time.Second}

// trials is how many sets of random phases are simulated; the worst counts.
const trials = 5

// queues simulates the accept queue.
func (r *Result) queues(c Costs) {
	f := r.Fleet
	worst := func(into *Queue, q Queue) {
		if q.Peak > into.Peak || q.Slowest > into.Slowest {
			into.Peak, into.Slowest = max(into.Peak, q.Peak), max(into.Slowest, q.Slowest)
		}
		into.Drops, into.Delayed, into.GaveUp = max(into.Drops, q.Drops), max(into.Delayed, q.Delayed), max(into.GaveUp, q.GaveUp)
	}
	if r.Server.Backlog > 0 {
		r.StalledHere, r.StormHere = new(Queue), new(Queue)
	}
	n := trials
	if f.connectionRate()*f.Stall.Seconds() > maxArrivals/trials { // phases no longer matter
		n = 1
	}
	for seed := range n {
		rng := rand.New(rand.NewPCG(uint64(seed), 24224))
		from, to := stallBegins, stallBegins+f.Stall
		steady := f.steady(rng, to+stallBegins)
		worst(&r.Steady, accept(steady, 0, 0, c.Accept, 0))
		worst(&r.Stalled, accept(steady, from, to, c.Accept, 0))
		storm := f.storm(rng)
		worst(&r.Storm, accept(storm, 0, f.Stall, c.Accept, 0))
		if r.Server.Backlog > 0 {
			worst(r.StalledHere, accept(steady, from, to, c.Accept, r.Server.Backlog))
			worst(r.StormHere, accept(storm, 0, f.Stall, c.Accept, r.Server.Backlog))
		}
	}
	r.Backlog = backlogFor(max(r.Steady.Peak, r.Stalled.Peak, r.Storm.Peak))
}

// backlogFor is what to ask for where so many wait at the peak.
func backlogFor(peak int) int { return powerOfTwo(int(math.Ceil(float64(peak) * margin))) }

// stallBegins leaves time for a queue that is there without a stall.
const stallBegins = time.Second

// minBacklog is never undercut: what a smaller one saves is nothing.
const minBacklog = 128

func powerOfTwo(n int) int {
	if n <= minBacklog {
		return minBacklog
	}
	return 1 << bits.Len(uint(n-1))
}

// steady makes the moments at which connections begin, in order, until end:
// each sender has phases of its own.
func (f Fleet) steady(rng *rand.Rand, end time.Duration) []time.Duration {
	var at []time.Duration
	every := func(interval time.Duration) {
		for range f.Senders {
			for t := time.Duration(rng.Float64() * float64(interval)); t < end; t += interval {
				at = append(at, t)
			}
		}
	}
	if f.Heartbeat == TCP {
		every(f.HeartbeatEvery)
	}
	if !f.Keepalive {
		every(f.FlushEvery)
	}
	slices.Sort(at)
	return at
}

// storm makes the moments at which all senders come back: each with a
// connection for data and one for its heartbeat.
func (f Fleet) storm(rng *rand.Rand) []time.Duration {
	each := 1
	if f.Heartbeat == TCP {
		each = 2
	}
	at := make([]time.Duration, 0, each*f.Senders)
	for range each * f.Senders {
		at = append(at, time.Duration(rng.Float64()*float64(reconnectWithin)))
	}
	slices.Sort(at)
	return at
}

// accept runs one accept loop, which takes a connection every service and none
// in [from, to), over connections that begin at the moments at. backlog 0 is
// without limit. As the kernel has it, backlog + 1 connections are held and the
// next SYN is dropped in silence.
func accept(at []time.Duration, from, to, service time.Duration, backlog int) Queue {
	var (
		q     Queue
		held  fifo          // first SYNs of those that wait
		again retryHeap     // SYNs that were dropped
		next  time.Duration // when the loop can take the next one
		stall = func() {    // moves next out of the stall
			if next >= from && next < to {
				next = to
			}
		}
	)
	stall()
	take := func() {
		q.Slowest = max(q.Slowest, next-held.pop())
		next += service
		stall()
	}
	for len(at) > 0 || len(again) > 0 {
		var syn attempt
		if len(again) == 0 || len(at) > 0 && at[0] <= again[0].at {
			syn = attempt{at: at[0], first: at[0]}
			at = at[1:]
		} else {
			syn = heap.Pop(&again).(attempt)
		}
		for held.len() > 0 && next < syn.at {
			take()
		}
		if held.len() == 0 && next < syn.at {
			next = syn.at
			stall()
		}
		if backlog > 0 && held.len() > backlog {
			q.Drops++
			if syn.tries == 0 {
				q.Delayed++
			}
			if syn.tries == len(retries) {
				q.GaveUp++
				continue
			}
			syn.at = syn.first + retries[syn.tries]
			syn.tries++
			heap.Push(&again, syn)
			continue
		}
		held.push(syn.first)
		q.Peak = max(q.Peak, held.len())
	}
	for held.len() > 0 {
		take()
	}
	return q
}

// attempt is a SYN.
type attempt struct {
	at, first time.Duration
	tries     int // retries before it
}

type retryHeap []attempt

func (h retryHeap) Len() int           { return len(h) }
func (h retryHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h retryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *retryHeap) Push(x any)        { *h = append(*h, x.(attempt)) }
func (h *retryHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// fifo is a queue that lets go of what it has given out.
type fifo struct {
	items []time.Duration
	head  int
}

func (f *fifo) len() int             { return len(f.items) - f.head }
func (f *fifo) push(d time.Duration) { f.items = append(f.items, d) }
func (f *fifo) pop() time.Duration {
	d := f.items[f.head]
	f.head++
	if f.head > 4096 && f.head > len(f.items)/2 {
		f.items = append(f.items[:0], f.items[f.head:]...)
		f.head = 0
	}
	return d
}
