package buffer

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"
)

// ErrDuplicate is the outcome of an entry whose tag and chunk id are those of one
// that is durable and within Options.DedupeWindow and DedupeAge: it is not stored
// again, and may be acked.
var ErrDuplicate = errors.New("buffer: an entry with this tag and chunk id is stored already")

// Defaults of Options for dedupe.
const (
	DefaultDedupeWindow = 1_000_000
	DefaultDedupeAge    = time.Hour
)

// id is a keyed hash of a tag and a chunk id. The key is the directory's own
// secret, so that no sender can choose ids that meet.
type id [16]byte

// idKey is the key of ids.
type idKey [16]byte

// id returns the entry's. The tag is part of it: a resend has the same one, and
// equal ids of senders that count from 1 are kept apart a little better.
func (k *idKey) id(tag, chunkID []byte) id {
	var space [256]byte
	p := append(space[:0], k[:]...)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(tag)))
	p = append(append(p, tag...), chunkID...)
	sum := sha256.Sum256(p)
	return id(sum[:16])
}

// stamped is an id and when it became durable.
type stamped struct {
	id id
	at uint32 // Unix seconds
}

// idTable is the ids of the window: a ring in the order of their commits, and an
// open-addressed index into it with linear probing, at most half full. For each id
// of the window that is 20 bytes and, rounded to a power of two, 8 to 16 of
// index: 29 at the default of a million. Before the window is full it has room for
// at most twice as many ids as there are.
type idTable struct {
	window int
	age    time.Duration
	ring   []stamped
	first  int // of the ring: the oldest
	count  int
	index  []uint32 // 1 + place in the ring; 0 is free
	// unsaved is how many of the newest are not in the id log yet.
	unsaved int
	touched uint32 // of no meaning: keeps reads ahead from being left out
}

const minIDs = 1024 // a table begins with room for so many

func (t *idTable) slot(x id) int { return int(binary.LittleEndian.Uint32(x[:])) & (len(t.index) - 1) }

// find returns the place in index where x is, or the free one where it belongs.
func (t *idTable) find(x id) (at int, found bool) {
	for at = t.slot(x); ; at = (at + 1) & (len(t.index) - 1) {
		i := t.index[at]
		if i == 0 {
			return at, false
		}
		if t.ring[i-1].id == x {
			return at, true
		}
	}
}

// has reports whether x is in the window at that time.
func (t *idTable) has(x id, now time.Time) bool {
	t.expire(now)
	if t.count == 0 {
		return false
	}
	_, found := t.find(x)
	return found
}

// expire forgets what is older than age.
func (t *idTable) expire(now time.Time) {
	limit := now.Add(-t.age).Unix()
	for t.count > 0 && int64(t.ring[t.first].at) < limit {
		t.dropOldest()
	}
}

// add puts x in as the newest, unless it is there.
func (t *idTable) add(x stamped) {
	if t.window <= 0 {
		return
	}
	if t.count > 0 {
		if _, found := t.find(x.id); found {
			return
		}
	}
	if t.count == t.window {
		t.dropOldest()
	}
	if t.count == len(t.ring) {
		t.resize(max(2*len(t.ring), minIDs))
	}
	at, _ := t.find(x.id)
	i := t.first + t.count
	if i >= len(t.ring) {
		i -= len(t.ring)
	}
	t.ring[i] = x
	t.index[at] = uint32(i) + 1
	t.count++
	t.unsaved++
}

// load adds ids as they are in the log, oldest first, for which there is room. It
// touches the places of the next ids in the index before it needs them, so that
// the memory is waited for once for many of them.
func (t *idTable) load(p []byte) {
	const ahead = 64
	le := binary.LittleEndian
	touched := uint32(0)
	for len(p) > 0 {
		part := p[:min(len(p), ahead*idSize)]
		p = p[len(part):]
		for q := part; len(q) > 0; q = q[idSize:] {
			touched |= t.index[int(le.Uint32(q))&(len(t.index)-1)]
		}
		for q := part; len(q) > 0; q = q[idSize:] {
			t.add(stamped{id(q[:16]), le.Uint32(q[16:])})
		}
	}
	t.touched = touched
}

// resize makes room for size ids, but no more than the window has.
func (t *idTable) resize(size int) {
	if size = min(size, t.window); size <= len(t.ring) {
		return
	}
	ring := make([]stamped, size)
	n := copy(ring, t.ring[t.first:])
	copy(ring[n:], t.ring[:t.first])
	t.ring, t.first = ring, 0
	slots := 2
	for slots < 2*size {
		slots *= 2
	}
	t.index = make([]uint32, slots)
	for i := range t.count {
		at, _ := t.find(ring[i].id)
		t.index[at] = uint32(i) + 1
	}
}

// dropOldest forgets the oldest id and closes its gap in the index.
func (t *idTable) dropOldest() {
	gap, _ := t.find(t.ring[t.first].id)
	if t.first++; t.first == len(t.ring) {
		t.first = 0
	}
	t.count--
	t.unsaved = min(t.unsaved, t.count)
	mask := len(t.index) - 1
	t.index[gap] = 0
	for at := (gap + 1) & mask; t.index[at] != 0; at = (at + 1) & mask {
		home := t.slot(t.ring[t.index[at]-1].id)
		// It may move back if its home is not behind the gap.
		if (at-home)&mask >= (at-gap)&mask {
			t.index[gap], t.index[at] = t.index[at], 0
			gap = at
		}
	}
}

// newest appends the n newest ids to p, oldest first.
func (t *idTable) newest(p []stamped, n int) []stamped {
	for i := t.count - n; i < t.count; i++ {
		p = append(p, t.ring[(t.first+i)%len(t.ring)])
	}
	return p
}

// pendingID is an id that a group is about to make durable, and who came with it
// meanwhile.
type pendingID struct {
	id    id
	twins []Waiter
}

// duplicate reports whether the entry need not be stored: its id is durable, and
// then w is told by the caller, or being committed, and then w is told with that
// commit. b.mu is held.
func (b *Buffer) duplicate(x id, w Waiter) (durable, pending bool) {
	if b.ids.has(x, time.Now()) {
		b.stats.duplicates++
		return true, false
	}
	if g := b.pendingIDs[x]; g != nil {
		for i := range g.ids {
			if g.ids[i].id == x {
				g.ids[i].twins = append(g.ids[i].twins, w)
				return false, true
			}
		}
	}
	return false, false
}

// settle takes the group's ids off the pending ones, into the window if they are
// durable. b.mu is held.
func (b *Buffer) settle(g *group, durable bool) {
	at := uint32(time.Now().Unix())
	for i := range g.ids {
		p := &g.ids[i]
		delete(b.pendingIDs, p.id)
		if durable {
			b.ids.add(stamped{p.id, at})
			b.stats.duplicates += uint64(len(p.twins))
		}
	}
}

// tellTwins tells those whose entry was being committed when they came.
func (g *group) tellTwins() {
	err := g.err
	if err == nil {
		err = ErrDuplicate
	}
	for _, p := range g.ids {
		for _, w := range p.twins {
			w.Done(err)
		}
	}
}
