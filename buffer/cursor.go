package buffer

import (
	"context"
	"errors"
	"fmt"
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

	// The reader's own.
	file    File
	fileSeq uint64
	arena   []byte
	pieces  [][]byte // of the entries' payloads
	last    Batch    // its memory is used again
	batch   *Batch   // out, not yet committed
	state   []byte

	// Guarded by Buffer.mu.
	pos       position
	out       *position // where the batch that is out ends
	oldest    time.Time // no undelivered entry is older; zero if there is none
	threshold int64     // wake the reader only when so many bytes wait
	recovered uint64
	delivered uint64
	dropped   map[string]uint64
}

// position is a place between two frames of a chunk, and how much of the chunk
// lies before it.
type position struct {
	seq             uint64
	off             int64
	entries, events uint64
}

// Batch is entries that belong together: they are delivered and committed as
// one. Its memory belongs to the cursor and is used again by the next Next.
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
// reading the disk.
func (c *Cursor) Next(ctx context.Context, maxBytes int) (*Batch, error) {
	if c.batch != nil {
		return nil, errors.New("buffer: Next before the last batch is committed")
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
		batch, err := c.read(s, maxBytes)
		c.b.mu.Lock()
		if c.b.find(s.from.seq) == nil {
			// Dropped under the reader's hands, and all of it is counted as that.
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
			c.b.measure()
			c.b.mu.Unlock()
			continue
		}
		c.out = &batch.end
		c.b.mu.Unlock()
		c.batch = batch
		return batch, nil
	}
}

// span is a part of a chunk.
type span struct {
	from position
	end  int64
	salt uint32 // of the chunk
	// trusted bytes never left the memory: their checksums are not checked.
	trusted bool
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
			if err := c.closeFile(); err != nil {
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

// read reads whole frames from the beginning of the span, as many as maxBytes
// holds.
func (c *Cursor) read(s span, maxBytes int) (*Batch, error) {
	from := s.from
	if p, ok := c.recall(s, int64(maxBytes)); ok {
		s.trusted = true
		batch, _ := c.parse(p, s)
		return batch, nil
	}
	c.b.mu.Lock()
	c.b.stats.diskReads++
	c.b.mu.Unlock()
	if c.file == nil || c.fileSeq != from.seq {
		if err := c.closeFile(); err != nil {
			return nil, err
		}
		f, err := c.b.fs.Open(chunkName(c.b.opt.Dir, from.seq), c.b.access())
		if err != nil {
			return nil, fmt.Errorf("read the buffer: %w", err)
		}
		c.file, c.fileSeq = f, from.seq
	}
	// Whole blocks, so that what comes after damage is found at the next one.
	want := min(s.end-from.off, max(int64(maxBytes)&^(BlockSize-1), BlockSize))
	for {
		p := c.memory(want)
		if _, err := c.file.ReadAt(p, from.off); err != nil {
			return nil, fmt.Errorf("read %s at %d: %w", chunkName(c.b.opt.Dir, from.seq), from.off, err)
		}
		batch, more := c.parse(p, s)
		if more == 0 {
			return batch, nil
		}
		want = more // the first frame alone is longer
	}
}

// memory returns n bytes of the cursor's own, aligned to BlockSize.
func (c *Cursor) memory(n int64) []byte {
	if int64(cap(c.arena)) > max(4*n, arenaKept) {
		c.arena = nil // a large entry has passed
	}
	if int64(cap(c.arena)) < n {
		// Batches grow slowly when outputs fall behind.
		c.arena = alignedMemory(n + n/4&^(BlockSize-1))
	}
	return c.arena[:n]
}

// arenaKept bytes and piecesKept entries are what a cursor keeps memory for
// between batches; what a larger batch took is let go of.
const (
	arenaKept  = 16 << 20
	piecesKept = 16 << 10
)

// parse takes whole frames off p, with which the span begins. If not even the
// first one is whole, more is its length.
func (c *Cursor) parse(p []byte, s span) (batch *Batch, more int64) {
	batch = &c.last
	if n := cap(c.pieces); n > piecesKept && len(c.pieces) < n/8 { // many small entries have passed
		c.pieces, batch.Entries = nil, nil
	}
	clear(batch.Entries)
	clear(c.pieces)
	c.pieces = c.pieces[:0]
	*batch = Batch{Entries: batch.Entries[:0], end: s.from}
	n := int64(0)
	for n < int64(len(p)) {
		f, err := s.frame(p, n)
		if err != nil {
			c.foundDamage(s.from.seq, s.from.off+n, err)
			for n += BlockSize; n < int64(len(p)); n += BlockSize {
				if _, err := s.frame(p, n); err == nil {
					break
				}
			}
			continue
		}
		if n+f.length() > int64(len(p)) {
			if n == 0 {
				return nil, f.length()
			}
			break
		}
		c.entries(batch, p[n+frameHead:n+frameHead+f.body], f, s.from.off+n, s.trusted)
		n += f.length()
		batch.end.entries += f.entries
		batch.end.events += f.events
		batch.written = f.written
	}
	batch.end.off += n
	batch.Bytes = n
	return batch, 0
}

// frame decodes the head of the commit at p[n], where p begins with the span.
func (s span) frame(p []byte, n int64) (frame, error) {
	f, err := decodeFrame(p[n:], s.from.seq)
	if err == nil && (f.magic != magicCommit || f.salt != s.salt || f.length() > s.end-s.from.off-n) {
		err = errFrame
	}
	return f, err
}

// entries decodes the body of a commit at off; what cannot be read is counted.
func (c *Cursor) entries(batch *Batch, body []byte, f frame, off int64, trusted bool) {
	read := uint64(0)
	for len(body) > 0 {
		e, payload, size, err := decodeEntry(body, f.seed, trusted)
		if err != nil {
			c.foundDamage(f.chunk, off, err)
			if errors.Is(err, errEntryHead) {
				break
			}
		} else {
			n := len(c.pieces)
			c.pieces = append(c.pieces, payload)
			e.Payload = c.pieces[n : n+1 : n+1]
			batch.Entries = append(batch.Entries, e)
			batch.Events += e.Events
			read += uint64(e.Events)
		}
		body = body[size:]
	}
	batch.damaged += f.events - min(f.events, read)
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

func (c *Cursor) closeFile() error {
	if c.file == nil {
		return nil
	}
	err := c.file.Close()
	c.file = nil
	return err
}

func (c *Cursor) close() error { return errors.Join(c.closeFile(), c.log.close()) }

// Remaining is what the cursor has not committed.
func (c *Cursor) Remaining() Remaining {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	return c.b.remaining(c)
}
