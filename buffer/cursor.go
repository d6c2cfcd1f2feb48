package buffer

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// Cursor reads the entries in order for one output and remembers durably how
// far that has come. It is for one goroutine.
type Cursor struct {
	b     *Buffer
	name  string
	log   *cursorLog
	ready chan struct{} // something became durable, or a chunk was sealed

	// The reader's own, but for what fetch has while it is under way.
	source source
	spaces [2]space
	space  int    // which of spaces has the batch that is out; fetch has the other
	fetch  *fetch // reads ahead, or has; nil if nothing does
	batch  *Batch // out, not yet committed
	state  []byte

	// Guarded by Buffer.mu.
	pos       position
	out       *position // where the batch that is out ends
	oldest    time.Time // no undelivered entry is older; zero if there is none
	threshold int64     // wake the reader only when so many bytes wait
	// aheadBytes is the memory that reading ahead takes.
	aheadBytes int64
	recovered  uint64
	delivered  uint64
	dropped    map[string]uint64
}

// position is a place between two frames of a chunk, and how much of the chunk
// lies before it.
type position struct {
	seq             uint64
	off             int64
	entries, events uint64
}

// Batch is entries that belong together: they are delivered and committed as
// one. Its memory is the cursor's, or that of commits which are still in memory; it
// is used again after Commit or Drop.
type Batch struct {
	Entries []Entry
	// Bytes is the length of the entries on disk, with padding.
	Bytes int64
	// Events is the number of events in Entries.
	Events int
	// damaged is events that could not be read.
	damaged uint64
	end     position
	written time.Time // of the last commit in it
	disk    bool      // was not in memory any more
	ahead   bool      // was read while the one before it was delivered
}

// Name returns the cursor's name.
func (c *Cursor) Name() string { return c.name }

// State returns what the last Commit or SaveState stored, nil if nothing was.
func (c *Cursor) State() []byte { return c.state }

// wake tells the reader that something changed.
func (c *Cursor) wake() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// ahead is the position behind what was read. Buffer.mu is held.
func (c *Cursor) ahead() position {
	if c.out != nil {
		return *c.out
	}
	return c.pos
}

// countDropped adds to the dropped events. Buffer.mu is held.
func (c *Cursor) countDropped(cause string, events uint64) {
	if events > 0 {
		c.dropped[cause] += events
	}
}

// Next waits for durable entries behind the cursor's position and returns as
// many whole commits of them as maxBytes holds, at least one. The batch must be
// committed or dropped before the next call. The error is ctx's, or that of
// reading the disk. While the batch is delivered, a cursor that is behind reads the
// next one, for a Next with the same maxBytes.
func (c *Cursor) Next(ctx context.Context, maxBytes int) (*Batch, error) {
	if c.batch != nil {
		return nil, errors.New("buffer: Next before the last batch is committed")
	}
	if err := c.fetched(ctx); err != nil {
		return nil, err
	}
	for {
		s, ok := c.readable()
		if !ok {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-c.ready:
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		batch, err := c.take(s, maxBytes)
		c.b.mu.Lock()
		if c.b.find(s.from.seq) == nil {
			// Dropped under the reader's hands, and all of it is counted as that.
			c.b.giveBack(&c.spaces[c.space])
			c.b.mu.Unlock()
			continue
		}
		if err != nil {
			c.b.mu.Unlock()
			return nil, err
		}
		if len(batch.Entries) == 0 { // nothing but damage
			c.pos = batch.end
			c.countDropped(CauseDamaged, batch.damaged)
			c.b.giveBack(&c.spaces[c.space])
			c.b.measure()
			c.b.mu.Unlock()
			continue
		}
		c.out = &batch.end
		c.b.mu.Unlock()
		c.batch = batch
		c.readAhead(batch, maxBytes)
		return batch, nil
	}
}

// span is a part of a chunk.
type span struct {
	from position
	end  int64
	salt uint32 // of the chunk
}

// readable moves the cursor over the ends of chunks and returns what is there
// to read.
func (c *Cursor) readable() (s span, ok bool) {
	b := c.b
	b.mu.Lock()
	moved := false
	defer func() {
		b.mu.Unlock()
		if moved {
			// An open file keeps its space when it is removed.
			if err := c.source.passed(c.pos.seq); err != nil {
				b.log.Warn("passed chunk not closed", zap.String("cursor", c.name), zap.Error(err))
			}
			b.removePassed()
		}
	}()
	for {
		ch := b.find(c.pos.seq)
		if ch != nil && c.pos.off < ch.end {
			return span{from: c.pos, end: ch.end, salt: ch.salt}, true
		}
		if ch != nil {
			if !ch.sealed {
				return span{}, false
			}
			if lost := ch.events - min(ch.events, c.pos.events); lost > 0 {
				c.countDropped(CauseDamaged, lost)
				c.pos.events = ch.events
			}
		}
		next := b.after(c.pos.seq)
		if next == nil {
			return span{}, false
		}
		c.pos = position{seq: next.seq, off: BlockSize}
		moved = true
	}
}

// foundDamage marks the chunk, so that it is kept, and logs the first find.
func (c *Cursor) foundDamage(seq uint64, off int64, cause error) {
	c.b.mu.Lock()
	ch := c.b.find(seq)
	known := ch == nil || ch.damaged
	if ch != nil {
		ch.damaged = true
		if !ch.sealed { // write no more to it
			c.b.rotate = true
			c.b.work.Signal()
		}
	}
	c.b.mu.Unlock()
	if !known {
		c.b.log.Error("chunk is damaged: what is readable in it is delivered", zap.String("file", chunkName(c.b.opt.Dir, seq)), zap.Int64("offset", off), zap.Error(cause))
	}
}

// Commit makes the position behind the batch and the output's state durable,
// both or neither, and counts the batch as delivered.
func (c *Cursor) Commit(batch *Batch, state []byte) error {
	return c.pass(batch, state, func() { c.delivered += uint64(batch.Events) })
}

// Drop is Commit for a batch that was given up: its events count as dropped by
// that cause.
func (c *Cursor) Drop(batch *Batch, cause string, state []byte) error {
	return c.pass(batch, state, func() { c.countDropped(cause, uint64(batch.Events)) })
}

func (c *Cursor) pass(batch *Batch, state []byte, count func()) error {
	if batch == nil || batch != c.batch {
		return errors.New("buffer: the batch is not the cursor's last one")
	}
	if err := c.log.save(batch.end, state); err != nil {
		return err
	}
	c.state = state
	c.batch = nil
	c.b.mu.Lock()
	c.b.giveBack(&c.spaces[c.space])
	c.out = nil
	c.pos = batch.end
	c.countDropped(CauseDamaged, batch.damaged)
	count()
	// What is behind the batch was written after it.
	if c.oldest = batch.written; c.b.remaining(c).Bytes == 0 {
		c.oldest = time.Time{}
	}
	c.b.measure()
	c.b.forgetRecent()
	c.b.mu.Unlock()
	c.b.removePassed()
	return nil
}

// Gather waits until that many bytes, as Remaining counts them, wait behind the
// cursor's position, or ctx ends: an output that takes batches from time to time
// then takes a full one when it is there. The error is ctx's.
func (c *Cursor) Gather(ctx context.Context, bytes int64) error {
	c.b.mu.Lock()
	c.threshold = bytes
	c.b.mu.Unlock()
	defer func() {
		c.b.mu.Lock()
		c.threshold = 0
		c.b.mu.Unlock()
	}()
	for c.Remaining().Bytes < bytes {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ready:
		}
	}
	return nil
}

// SaveState makes the output's state durable and leaves the position.
func (c *Cursor) SaveState(state []byte) error {
	c.b.mu.Lock()
	pos := c.pos
	c.b.mu.Unlock()
	if err := c.log.save(pos, state); err != nil {
		return err
	}
	c.state = state
	return nil
}

// close waits for what reads ahead.
func (c *Cursor) close() error {
	_ = c.fetched(context.Background())
	c.b.mu.Lock()
	for i := range c.spaces {
		c.b.giveBack(&c.spaces[i])
	}
	c.b.mu.Unlock()
	return errors.Join(c.source.close(), c.log.close())
}

// Remaining is what the cursor has not committed.
func (c *Cursor) Remaining() Remaining {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	return c.b.remaining(c)
}
