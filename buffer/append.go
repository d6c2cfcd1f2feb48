package buffer

import (
	"context"
	"fmt"
	"time"
)

// group is the entries that one commit makes durable, gathered in the form in
// which they are written.
type group struct {
	segments [][]byte
	size     int64  // of the frame head and the entries
	seed     uint32 // of the entries' checksums
	entries  uint64
	events   uint64
	waiters  []Waiter
	copying  int // appenders that still copy their entry
	oldest   time.Time
	err      error
	pieces   [][]byte // memory of blocks
	ids      []pendingID
}

// maxWaiters is how many waiters' memory a group that is used again keeps.
const maxWaiters = 64 << 10

// newGroup returns an empty group with a seed of its own. b.mu is held.
func (b *Buffer) newGroup() *group {
	g, ok := b.groups.Get().(*group)
	if !ok {
		g = &group{}
	}
	b.seed++
	g.size, g.seed = frameHead, b.seed
	return g
}

// recycle makes the group's memory available to another one.
func (b *Buffer) recycle(g *group) {
	if cap(g.waiters) > maxWaiters {
		return
	}
	clear(g.waiters)
	clear(g.pieces)
	clear(g.ids)
	*g = group{segments: g.segments[:0], waiters: g.waiters[:0], pieces: g.pieces[:0], ids: g.ids[:0]}
	b.groups.Put(g)
}

// segmentWriter copies bytes into a range of a group's segments.
type segmentWriter struct {
	segments [][]byte
	pos      int64
}

func (w *segmentWriter) write(p []byte) {
	for len(p) > 0 {
		n := copy(w.segments[w.pos/segmentSize][w.pos%segmentSize:], p)
		w.pos += int64(n)
		p = p[n:]
	}
}

// Append copies the entry into the next commit and returns; w is told the
// outcome later. An entry whose tag and chunk id are stored already is not stored
// again: w is told ErrDuplicate, at once, or with the commit that it is in; one
// without a chunk id is always stored. Append waits while the next commit is full, or, with
// OverflowBlock, while the buffer is. If Append returns an error (ErrFull,
// ErrClosed, ctx's, or that of an entry beyond the format's limits), w is not
// told anything.
func (b *Buffer) Append(ctx context.Context, e *Entry, w Waiter) error {
	return b.append(ctx, e, w, false)
}

// AppendLater is Append for who calls Commit as soon as it has nothing else to
// append, and no later: until then, or until another one calls Append, the entry
// need not be committed.
func (b *Buffer) AppendLater(ctx context.Context, e *Entry, w Waiter) error {
	return b.append(ctx, e, w, true)
}

func (b *Buffer) append(ctx context.Context, e *Entry, w Waiter, later bool) error {
	size, err := e.size()
	if err != nil {
		return err
	}
	keyed := b.ids.window > 0 && len(e.ChunkID) > 0
	var x id
	if keyed {
		x = b.idLog.key.id(e.Tag, e.ChunkID)
	}
	b.mu.Lock()
	for waited := false; ; waited = true {
		if keyed {
			if durable, pending := b.duplicate(x, w); durable || pending {
				b.mu.Unlock()
				if durable {
					w.Done(ErrDuplicate)
				}
				return nil
			}
		}
		if waited { // there is room, and no twin came while it was made
			break
		}
		if err := b.makeRoom(ctx, size); err != nil {
			b.mu.Unlock()
			return err
		}
	}
	g := b.next
	if keyed {
		g.ids = append(g.ids, pendingID{id: x})
		b.pendingIDs[x] = g
	}
	at := g.size
	g.size += size
	for int64(len(g.segments))*segmentSize < g.size {
		g.segments = append(g.segments, b.segments.get())
	}
	if g.entries == 0 {
		g.oldest = e.Received
	}
	g.entries++
	g.events += uint64(e.Events)
	g.waiters = append(g.waiters, w)
	g.copying++
	to := segmentWriter{segments: g.segments, pos: at}
	b.stats.peakPending = max(b.stats.peakPending, b.pendingEntries())
	b.mu.Unlock()

	// Outside of the lock, so that appenders copy side by side.
	e.encode(&to, g.seed)

	b.mu.Lock()
	g.copying--
	if g.copying == 0 && g != b.next { // it is to be committed
		b.copied.Broadcast()
	}
	if !later {
		b.demand()
	}
	b.mu.Unlock()
	return nil
}

// demand sees to it that the next commit is made. b.mu is held.
func (b *Buffer) demand() {
	if !b.due {
		b.due = true
		b.work.Signal()
	}
}

// makeRoom waits or acts until an entry of size bytes may be appended. b.mu is
// held, and released meanwhile.
func (b *Buffer) makeRoom(ctx context.Context, size int64) error {
	var stop func() bool
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	wait := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if stop == nil {
			stop = context.AfterFunc(ctx, func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.room.Broadcast()
			})
		}
		b.demand() // nobody else may
		b.room.Wait()
		return ctx.Err()
	}
	for {
		if b.closed {
			return ErrClosed
		}
		var err error
		switch {
		case b.backlog+b.pending()+size > b.opt.TotalLimit:
			err = b.overflow(size, wait)
		case b.next.entries > 0 && b.next.size+size > maxPending:
			err = wait()
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// pending is the bytes that are not durable yet. b.mu is held.
func (b *Buffer) pending() int64 {
	n := int64(0)
	for _, g := range []*group{b.next, b.current} {
		if g != nil && g.entries > 0 {
			n += padded(g.size)
		}
	}
	return n
}

// pendingEntries counts the entries that are not durable yet. b.mu is held.
func (b *Buffer) pendingEntries() uint64 {
	n := b.next.entries
	if b.current != nil {
		n += b.current.entries
	}
	return n
}

// overflow does what Options.Overflow says. b.mu is held.
func (b *Buffer) overflow(size int64, wait func() error) error {
	switch {
	case size > b.opt.TotalLimit:
		return fmt.Errorf("%w: the entry alone has %d bytes, the limit is %d", ErrFull, size, b.opt.TotalLimit)
	case b.opt.Overflow == OverflowBlock:
		return wait()
	case b.opt.Overflow == OverflowDropOldest && len(b.chunks) > 0 && b.backlog > 0:
		oldest := b.chunks[0]
		if oldest.sealed {
			b.dropOldest()
			b.mu.Unlock()
			b.discard([]*chunk{oldest}) // may take a while
			b.mu.Lock()
			return nil
		}
		// The only chunk is being written to: close it first.
		b.rotate = true
		b.work.Signal()
		return wait()
	case b.opt.Overflow == OverflowDropOldest && b.pending() > 0:
		return wait() // what is to be dropped is not even written
	}
	return ErrFull
}

// dropOldest forgets the oldest chunk and counts for each cursor what it had
// not read of it; a batch that is out counts as read. b.mu is held.
func (b *Buffer) dropOldest() {
	c := b.chunks[0]
	for _, cur := range b.cursors {
		if cur.pos.seq > c.seq {
			continue
		}
		seen := uint64(0)
		if p := cur.ahead(); p.seq == c.seq {
			seen = p.events
		}
		cur.countDropped(CauseOverflow, c.events-seen)
	}
	b.forget(1)
	b.stats.droppedChunks++
	b.measure()
}
