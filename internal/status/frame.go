package status

import "time"

// Frame is one message of the stream at /api/stream: the Snapshot that
// /api/queues.json would have answered, and what the second before it was like.
// The page and `weir top` are drawn from frames alone.
type Frame struct {
	Snapshot *Snapshot `json:"snapshot"`
	// Point is nil in the first frame after the stream began, which has nothing
	// to be compared with.
	Point *Point `json:"point"`
}

// Point is what the charts draw of one interval between two snapshots, about a
// second. Rates are differences of counters over the measured interval, per
// second.
type Point struct {
	// Time is the end of the interval in Unix seconds.
	Time float64 `json:"t"`
	// Events, Messages and Bytes of messages that became durable.
	Events   float64 `json:"events"`
	Messages float64 `json:"messages"`
	Bytes    float64 `json:"bytes"`
	// Delivered is the events that all outputs together have delivered.
	Delivered float64 `json:"delivered"`
	// Connections counts accepted ones, with those that a limit refused.
	Connections float64 `json:"connections"`
	// Heartbeats of all transports.
	Heartbeats float64 `json:"heartbeats"`
	Acks       float64 `json:"acks"`
	// Dropped is items lost or refused at any queue.
	Dropped float64 `json:"dropped"`
	// Ack and Commit are the latencies of the interval, nil if nothing was
	// acked or committed in it.
	Ack    *Quantiles `json:"ack"`
	Commit *Quantiles `json:"commit"`
}

// Quantiles are estimated from a histogram, by linear interpolation within the
// bucket in which the quantile lies (as Prometheus' histogram_quantile), in
// seconds. What lies beyond the last bound is given as that bound.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
	// Count is how many observations there were.
	Count uint64 `json:"count"`
}

// newPoint compares two snapshots of one process. It is nil if no time has
// passed between them.
func newPoint(before, now *Snapshot) *Point {
	seconds := now.Now.Sub(before.Now).Seconds()
	if seconds <= 0 {
		return nil
	}
	rate := func(a, b uint64) float64 {
		if b < a { // counters do not fall; a reading between two updates may
			return 0
		}
		return float64(b-a) / seconds
	}
	a, b := &before.Traffic, &now.Traffic
	return &Point{
		Time:        unixSeconds(now.Now),
		Events:      rate(total(a.Events), total(b.Events)),
		Messages:    rate(total(a.Messages), total(b.Messages)),
		Bytes:       rate(total(a.Bytes), total(b.Bytes)),
		Delivered:   rate(delivered(before), delivered(now)),
		Connections: rate(connections(a), connections(b)),
		Heartbeats:  rate(total(a.Heartbeats), total(b.Heartbeats)),
		Acks:        rate(a.Acks, b.Acks),
		Dropped:     rate(spilled(before), spilled(now)),
		Ack:         quantiles(before.AckLatency, now.AckLatency),
		Commit:      quantiles(commits(before), commits(now)),
	}
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// connections are those that came; the other results are of some of these.
func connections(t *Traffic) uint64 { return t.Connections["accepted"] + t.Connections["refused"] }

func delivered(s *Snapshot) (n uint64) {
	for _, o := range s.Outputs {
		n += o.DeliveredEvents
	}
	return n
}

func spilled(s *Snapshot) (n uint64) {
	for _, q := range s.Queues {
		n += q.Dropped
	}
	return n
}

// commits adds up the buffers' histograms, which have the same bounds.
func commits(s *Snapshot) Histogram {
	var sum Histogram
	for _, h := range s.CommitLatency {
		if sum.Bounds == nil {
			sum.Bounds, sum.Counts = h.Bounds, make([]uint64, len(h.Counts))
		}
		for i := range min(len(sum.Counts), len(h.Counts)) {
			sum.Counts[i] += h.Counts[i]
		}
		sum.Count += h.Count
		sum.Sum += h.Sum
	}
	return sum
}

// quantiles are those of what b counts more than a; nil if that is nothing.
func quantiles(a, b Histogram) *Quantiles {
	if b.Count <= a.Count || len(b.Bounds) == 0 || len(b.Counts) != len(b.Bounds) {
		return nil
	}
	delta := make([]uint64, len(b.Counts))
	for i := range delta {
		delta[i] = b.Counts[i]
		if i < len(a.Counts) {
			delta[i] -= min(a.Counts[i], delta[i])
		}
	}
	n := b.Count - a.Count
	return &Quantiles{P50: quantile(b.Bounds, delta, n, 0.50), P95: quantile(b.Bounds, delta, n, 0.95), P99: quantile(b.Bounds, delta, n, 0.99), Count: n}
}

// quantile is the q-quantile of n observations in cumulative buckets.
func quantile(bounds []float64, counts []uint64, n uint64, q float64) float64 {
	rank := q * float64(n)
	lower, below := 0.0, uint64(0)
	for i, bound := range bounds {
		if float64(counts[i]) >= rank && counts[i] > below {
			return lower + (bound-lower)*(rank-float64(below))/float64(counts[i]-below)
		}
		lower, below = bound, counts[i]
	}
	return bounds[len(bounds)-1]
}
