package buffer

import "context"

// fetch is a batch that is read and checked while the output delivers the one
// before it. It has its goroutine, the cursor's source and the space that is not out
// until done is closed.
type fetch struct {
	s        span
	maxBytes int
	done     chan struct{}
	batch    *Batch // nil if there is nothing of use; valid once done is closed
}

// readAhead begins to read what follows a batch that was just taken, if the cursor
// is behind: if the batch came from the disk, or was read ahead itself, and another
// one waits as Next would return it. Who reads a commit longer than a batch gets the
// next one when it asks. A cursor that has caught up gives the memory back.
func (c *Cursor) readAhead(batch *Batch, maxBytes int) {
	idle := &c.spaces[1-c.space]
	s, ok := span{}, false
	if (batch.disk || batch.ahead) && batch.Bytes <= int64(maxBytes) {
		s, ok = c.following(batch.end, int64(maxBytes))
	}
	if !ok {
		if idle.arena != nil {
			*idle = space{}
			c.b.mu.Lock()
			c.aheadBytes = 0
			c.b.mu.Unlock()
		}
		return
	}
	f := &fetch{s: s, maxBytes: maxBytes, done: make(chan struct{})}
	c.fetch = f
	go func() {
		defer close(f.done)
		// Of what cannot be read Next finds out by itself: whoever waits for it then
		// gets the error, and it may be over by then. One that is longer than a batch
		// is read when its turn comes, so that a cursor has one of them at most.
		batch, err := c.read(idle, s, maxBytes, false)
		c.b.mu.Lock()
		c.aheadBytes = int64(cap(idle.arena))
		if err == nil {
			batch.ahead = true
			f.batch = batch
			if !batch.disk { // lent
				c.aheadBytes += batch.Bytes
			}
		}
		c.b.mu.Unlock()
	}()
}

// following returns what Next would read behind that position, if it could not get
// more by waiting: a full batch, or the end of a chunk.
func (c *Cursor) following(pos position, maxBytes int64) (s span, ok bool) {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := b.find(pos.seq)
	if ch != nil && pos.off >= ch.end && ch.sealed {
		if ch = b.after(pos.seq); ch != nil {
			pos = position{seq: ch.seq, off: BlockSize}
		}
	}
	if ch == nil || b.closed || pos.off >= ch.end || !ch.sealed && ch.end-pos.off < maxBytes {
		return s, false
	}
	return span{from: pos, end: ch.end, salt: ch.salt}, true
}

// fetched waits until nothing reads ahead any more. The error is ctx's: then
// something may.
func (c *Cursor) fetched(ctx context.Context) error {
	if c.fetch == nil {
		return nil
	}
	select {
	case <-c.fetch.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// take returns the batch at the beginning of the span: the one that was read ahead
// if it is that, else it reads. Nothing reads ahead.
func (c *Cursor) take(s span, maxBytes int) (*Batch, error) {
	f := c.fetch
	c.fetch = nil
	if f != nil && f.batch != nil && f.s.from == s.from && f.maxBytes == maxBytes {
		c.b.mu.Lock()
		c.aheadBytes = int64(cap(c.spaces[c.space].arena))
		c.space = 1 - c.space
		c.b.stats.readAheads++
		c.b.mu.Unlock()
		return f.batch, nil
	}
	c.b.mu.Lock()
	c.b.giveBack(&c.spaces[1-c.space]) // it is of no use
	c.b.mu.Unlock()
	return c.read(&c.spaces[c.space], s, maxBytes, true)
}
