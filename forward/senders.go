package forward

import (
	"cmp"
	"container/list"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// MaxSenders is how many addresses a Server remembers; the one that was not
// seen for longest makes room.
const MaxSenders = 10_000

// rateWindow is the span, in whole seconds, over which a sender's rates are
// means.
const rateWindow = 10

// SenderStats is what one address has done since it entered the table. Counters
// count since First.
type SenderStats struct {
	// Addr is the sender's address, that in the PROXY header if there is one;
	// the zero Addr stands for all senders of unix sockets.
	Addr netip.Addr
	// Open is connections open now, Accepted all that accept(2) gave, those that
	// a limit refused included.
	Open     int64
	Accepted uint64
	// ConnectionsPerSecond and HeartbeatsPerSecond are means of the last ten
	// whole seconds, or of as many as the sender is known.
	ConnectionsPerSecond, HeartbeatsPerSecond float64
	// ConnectBeats are connections without a word, NilBeats the protocol's nil
	// messages, UDPBeats packets.
	ConnectBeats, NilBeats, UDPBeats uint64
	// Messages, Events and Bytes of messages that became durable.
	Messages, Events, Bytes uint64
	Acks                    uint64
	// Resends counts messages whose chunk id had been stored before.
	Resends uint64
	// Invalid counts messages that broke the rules of the protocol or its limits
	// and were refused, or set aside in part.
	Invalid uint64
	// InvalidEvents counts events that were set aside, as far as they can be told
	// apart.
	InvalidEvents     uint64
	HandshakeFailures uint64
	First, Last       time.Time
	// Features are what of the protocol the sender has used, in the order of
	// featureNames.
	Features []string
}

// feature is a bit for something of the protocol that a sender uses.
type feature uint32

const (
	featureMessage feature = 1 << iota
	featureForward
	featurePacked
	featureGzip
	featureZstd
	featureJSON
	featureAck
	featureKeepalive
	featureTLS
	featureSharedKey
	featureUser
	featureProxy
)

var featureNames = [...]string{"message", "forward", "packed", "gzip", "zstd", "json", "ack", "keepalive", "tls", "shared_key", "user", "proxy"}

// names lists the features of f.
func (f feature) names() (all []string) {
	for i, name := range featureNames {
		if f&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	return all
}

// peer is one sender of the table. Sessions keep a pointer to theirs, so that a
// message costs a few atomic additions and no lock that others share.
type peer struct {
	addr  netip.Addr
	first time.Time
	place *list.Element // guarded by the table's mu; nil once it has left the table

	open                                       atomic.Int64
	accepted, connectBeats, nilBeats, udpBeats atomic.Uint64
	messages, events, bytes, acks              atomic.Uint64
	resends, invalid, handshakeFailures        atomic.Uint64
	invalidEvents                              atomic.Uint64
	features                                   atomic.Uint32
	last                                       atomic.Int64 // Unix nanoseconds
	connections, heartbeats                    rate
}

// uses notes a feature; that it is known already is the common case.
func (p *peer) uses(f feature) {
	if old := p.features.Load(); old&uint32(f) != uint32(f) {
		p.features.Or(uint32(f))
	}
}

// beat counts a heartbeat.
func (p *peer) beat(kind *atomic.Uint64, now time.Time) {
	kind.Add(1)
	p.heartbeats.add(now)
	p.last.Store(now.UnixNano())
}

// done counts the outcome of a message.
func (p *peer) done(m *Message, err error, now time.Time) {
	p.last.Store(now.UnixNano())
	if err != nil {
		return
	}
	if m.Duplicate {
		p.resends.Add(1)
	} else if m.Invalid != nil {
		p.invalid.Add(1)
		p.invalidEvents.Add(uint64(m.Invalid.Events))
	}
	if !m.Duplicate && (m.Events > 0 || m.Invalid == nil) {
		p.messages.Add(1)
		p.events.Add(uint64(m.Events))
		p.bytes.Add(uint64(m.Size))
	}
	f := [modes]feature{ModeMessage: featureMessage, ModeForward: featureForward, ModePacked: featurePacked, ModeCompressed: featurePacked}[m.Mode]
	switch m.Compression {
	case Gzip:
		f |= featureGzip
	case Zstd:
		f |= featureZstd
	}
	if m.wantAck {
		f |= featureAck
	}
	p.uses(f)
}

// read reads all but Features, whose names take memory.
func (p *peer) read(st *SenderStats, now time.Time) {
	*st = SenderStats{
		Addr: p.addr, Open: p.open.Load(), Accepted: p.accepted.Load(),
		ConnectionsPerSecond: p.connections.perSecond(p.first, now), HeartbeatsPerSecond: p.heartbeats.perSecond(p.first, now),
		ConnectBeats: p.connectBeats.Load(), NilBeats: p.nilBeats.Load(), UDPBeats: p.udpBeats.Load(),
		Messages: p.messages.Load(), Events: p.events.Load(), Bytes: p.bytes.Load(), Acks: p.acks.Load(),
		Resends: p.resends.Load(), Invalid: p.invalid.Load(), InvalidEvents: p.invalidEvents.Load(), HandshakeFailures: p.handshakeFailures.Load(),
		First: p.first, Last: time.Unix(0, p.last.Load()),
	}
}

// rate counts what happened in each of the last seconds.
type rate struct {
	mu      sync.Mutex
	seconds [rateWindow + 1]struct {
		at int64
		n  uint32
	}
}

func (r *rate) add(now time.Time) {
	sec := now.Unix()
	r.mu.Lock()
	s := &r.seconds[sec%int64(len(r.seconds))]
	if s.at != sec {
		s.at, s.n = sec, 0
	}
	s.n++
	r.mu.Unlock()
}

// perSecond is the mean over the last whole seconds since first; that of the
// present one while there is no whole one.
func (r *rate) perSecond(first, now time.Time) float64 {
	sec := now.Unix()
	span := min(sec-first.Unix(), rateWindow)
	r.mu.Lock()
	defer r.mu.Unlock()
	var n uint32
	for _, s := range r.seconds {
		if s.at == sec && span > 0 || s.at < sec-rateWindow || s.at == 0 {
			continue
		}
		n += s.n
	}
	return float64(n) / float64(max(span, 1))
}

// senderTable is the peers by address, bounded by MaxSenders.
type senderTable struct {
	mu     sync.Mutex
	limit  int // MaxSenders if 0
	byAddr map[netip.Addr]*peer
	order  list.List // of *peer, the one that was looked up last in front
}

// get finds the peer of an address, or makes it.
func (t *senderTable) get(a netip.Addr, now time.Time) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.byAddr[a]; p != nil {
		t.order.MoveToFront(p.place)
		return p
	}
	if t.byAddr == nil {
		t.byAddr = map[netip.Addr]*peer{}
	}
	limit := t.limit
	if limit == 0 {
		limit = MaxSenders
	}
	if len(t.byAddr) >= limit {
		t.evict()
	}
	p := &peer{addr: a, first: now}
	p.last.Store(now.UnixNano())
	p.place = t.order.PushFront(p)
	t.byAddr[a] = p
	return p
}

// secondChances bounds the search for somebody who may go.
const secondChances = 16

// evict removes the peer at the end of the order. Messages do not move their
// sender to the front, since that would take the lock: a peer that is connected
// gets another round instead, as long as there are others.
func (t *senderTable) evict() {
	for range secondChances {
		last := t.order.Back()
		if last.Value.(*peer).open.Load() == 0 {
			break
		}
		t.order.MoveToFront(last)
	}
	last := t.order.Back()
	delete(t.byAddr, last.Value.(*peer).addr)
	t.order.Remove(last)
}

// meet gives the visitor the peer of its sender and counts the connection.
func (v *visitor) meet(now time.Time) {
	p := v.srv.senders.get(clientOf(v.remote), now)
	v.peer = p
	p.open.Add(1)
	p.accepted.Add(1)
	p.connections.add(now)
	p.last.Store(now.UnixNano())
}

// broke counts a refusal that is the sender's doing.
func (v *visitor) broke(r *Refusal) {
	switch r.Reason {
	case ReasonMemory, ReasonConnections, ReasonHandler:
	default:
		v.known().invalid.Add(1)
	}
}

// leave ends what meet began.
func (v *visitor) leave(now time.Time) {
	if v.peer != nil {
		v.peer.open.Add(-1)
		v.peer.last.Store(now.UnixNano())
	}
}

// known is the visitor's peer; one that ends before its PROXY header came
// belongs to the balancer.
func (v *visitor) known() *peer {
	if v.peer == nil {
		v.meet(time.Now())
	}
	return v.peer
}

// SendersKnown is how many senders the table holds, at most MaxSenders.
func (s *Server) SendersKnown() int {
	s.senders.mu.Lock()
	defer s.senders.mu.Unlock()
	return len(s.senders.byAddr)
}

// Senders reads the table: the limit senders with the largest by, largest first
// and equal ones by address; all of them if limit is not positive. by sees no
// Features. Reading a full table takes a few milliseconds.
func (s *Server) Senders(limit int, by func(*SenderStats) float64) []SenderStats {
	type ranked struct {
		*peer
		value float64
	}
	s.senders.mu.Lock()
	all := make([]ranked, 0, len(s.senders.byAddr))
	for _, p := range s.senders.byAddr {
		all = append(all, ranked{peer: p})
	}
	s.senders.mu.Unlock()
	now := time.Now()
	var st SenderStats
	for i := range all {
		all[i].read(&st, now)
		all[i].value = by(&st)
	}
	slices.SortFunc(all, func(a, b ranked) int {
		if c := cmp.Compare(b.value, a.value); c != 0 {
			return c
		}
		return a.addr.Compare(b.addr)
	})
	if limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	stats := make([]SenderStats, len(all))
	for i, p := range all {
		p.read(&stats[i], now)
		stats[i].Features = feature(p.features.Load()).names()
	}
	return stats
}

// packetSender is the address of a UDP packet.
func packetSender(a net.Addr) netip.Addr {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
