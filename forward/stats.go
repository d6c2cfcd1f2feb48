package forward

import (
	"sync"
	"sync/atomic"
	"time"
)

// ackBounds are the upper bounds of the ack latency's buckets.
var ackBounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// Stats is one reading of a Server's figures. Counters count since start.
type Stats struct {
	// Open, Peak and Limit are connections; Limit is 0 if there is none.
	Open, Peak, Limit int
	// Accepted, and of these: Refused by the limit, HandshakeFailed.
	Accepted, Refused, HandshakeFailed uint64
	// HalfClosed counts connections that the sender closed while its messages
	// waited for long, and that were ended before their acks could be sent.
	HalfClosed uint64
	// Idle and Aged count connections closed by IdleTimeout and MaxConnectionAge,
	// AcksUnread those of senders that read no acks for too long.
	Idle, Aged, AcksUnread uint64
	// Waits counts by limit how often a connection was read no further for a
	// while: in_flight, unread_acks, gzip, zstd; and under poller how often all those that
	// had nothing under way waited for a quarter of a second and more, because a
	// Handler blocked.
	Waits map[string]uint64
	// MemoryHeld, MemoryPeak and MemoryLimit are bytes read and not yet durable,
	// with the buffers they lie in. MemoryWaiting counts sessions that wait.
	MemoryHeld, MemoryPeak, MemoryLimit int64
	MemoryWaiting                       int
	// Messages, Events and Bytes of messages that became durable, by mode.
	Messages, Events, Bytes map[string]uint64
	// InFlight counts messages handed to the handler and not Done.
	InFlight int64
	Acks     uint64
	// Duplicates counts messages that were stored before and came again.
	Duplicates uint64
	// Heartbeats by transport: connect, nil, udp.
	Heartbeats map[string]uint64
	// Unanswered counts UDP heartbeats that came while messages could not be
	// stored, or while the server shut down.
	Unanswered uint64
	// RefusedMessages by reason.
	RefusedMessages map[string]uint64
	// RefusedEvents counts events of whole messages that the handler refused;
	// those of broken messages cannot be counted.
	RefusedEvents uint64
	// InvalidMessages counts messages, by reason, that were not valid as a whole
	// and of which the handler took what was and kept the rest; InvalidEvents the
	// events of that rest as far as they can be told apart.
	InvalidMessages map[string]uint64
	InvalidEvents   uint64
	// NilRecords counts events without a record, which are skipped.
	NilRecords uint64
	// AckLatency is the time from a whole message read to its outcome.
	AckLatency Latency
}

// Latency is a histogram: Counts[i] observations took at most Bounds[i].
type Latency struct {
	Bounds []time.Duration
	Counts []uint64 // cumulative
	Count  uint64
	Sum    time.Duration
}

// counters are what sessions count into.
type counters struct {
	accepted, refused, handshakeFailed atomic.Uint64
	halfClosed, idle, aged, acksUnread atomic.Uint64
	waitsInFlight, waitsUnread         atomic.Uint64
	waitsPoller                        atomic.Uint64
	messages, events, bytes            [modes]atomic.Uint64
	inFlight                           atomic.Int64
	acks, duplicates                   atomic.Uint64
	connectBeats, nilBeats, udpBeats   atomic.Uint64
	unanswered                         atomic.Uint64 // UDP heartbeats
	refusedEvents                      atomic.Uint64
	invalidEvents, nilRecords          atomic.Uint64

	latency    [len(ackBounds) + 1]atomic.Uint64
	latencySum atomic.Int64

	mu       sync.Mutex
	reasons  map[string]uint64 // of refused messages
	setAside map[string]uint64 // messages by reason
}

func (c *counters) refusedMessage(reason string) { c.count(&c.reasons, reason) }

func (c *counters) invalidMessage(reason string) { c.count(&c.setAside, reason) }

func (c *counters) count(m *map[string]uint64, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *m == nil {
		*m = map[string]uint64{}
	}
	(*m)[reason]++
}

func (c *counters) observe(d time.Duration) {
	i := 0
	for i < len(ackBounds) && d > ackBounds[i] {
		i++
	}
	c.latency[i].Add(1)
	c.latencySum.Add(int64(d))
}

// Stats reads the server's figures. It is cheap and may be called at any time.
func (s *Server) Stats() Stats {
	c := &s.counters
	st := Stats{
		Limit:           s.config.MaxConnections,
		Accepted:        c.accepted.Load(),
		Refused:         c.refused.Load(),
		HandshakeFailed: c.handshakeFailed.Load(),
		HalfClosed:      c.halfClosed.Load(),
		Idle:            c.idle.Load(),
		Aged:            c.aged.Load(),
		AcksUnread:      c.acksUnread.Load(),
		Waits: map[string]uint64{
			"in_flight": c.waitsInFlight.Load(), "unread_acks": c.waitsUnread.Load(), "gzip": s.inflater.gzip.waits.Load(), "zstd": s.inflater.zstd.waits.Load(),
			"poller": c.waitsPoller.Load(),
		},
		MemoryLimit: s.memory.limit,
		Messages:    map[string]uint64{},
		Events:      map[string]uint64{},
		Bytes:       map[string]uint64{},
		InFlight:    c.inFlight.Load(),
		Acks:        c.acks.Load(),
		Duplicates:  c.duplicates.Load(),
		Heartbeats: map[string]uint64{
			"connect": c.connectBeats.Load(), "nil": c.nilBeats.Load(), "udp": c.udpBeats.Load(),
		},
		Unanswered:      c.unanswered.Load(),
		RefusedMessages: map[string]uint64{},
		RefusedEvents:   c.refusedEvents.Load(),
		InvalidMessages: map[string]uint64{},
		InvalidEvents:   c.invalidEvents.Load(),
		NilRecords:      c.nilRecords.Load(),
	}
	st.MemoryHeld, st.MemoryPeak, st.MemoryWaiting = s.memory.reading()
	for m := range modes {
		name := m.String()
		st.Messages[name] = c.messages[m].Load()
		st.Events[name] = c.events[m].Load()
		st.Bytes[name] = c.bytes[m].Load()
	}
	l := &st.AckLatency
	for i, b := range ackBounds {
		l.Count += c.latency[i].Load()
		l.Bounds = append(l.Bounds, b)
		l.Counts = append(l.Counts, l.Count)
	}
	l.Count += c.latency[len(ackBounds)].Load()
	l.Sum = time.Duration(c.latencySum.Load())
	c.mu.Lock()
	for reason, n := range c.reasons {
		st.RefusedMessages[reason] = n
	}
	for reason, n := range c.setAside {
		st.InvalidMessages[reason] = n
	}
	c.mu.Unlock()
	s.mu.Lock()
	st.Open, st.Peak = s.open, s.peak
	s.mu.Unlock()
	return st
}
