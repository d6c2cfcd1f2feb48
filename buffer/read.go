package buffer

import (
	"errors"
	"fmt"
)

// source is the chunk that a cursor reads from.
type source struct {
	file File // nil if none is open
	seq  uint64
}

// open makes the chunk's file the one that is open.
func (s *source) open(b *Buffer, seq uint64) error {
	if s.file != nil && s.seq == seq {
		return nil
	}
	if err := s.close(); err != nil {
		return err
	}
	f, err := b.fs.Open(chunkName(b.opt.Dir, seq), b.access())
	if err != nil {
		return fmt.Errorf("read the buffer: %w", err)
	}
	s.file, s.seq = f, seq
	return nil
}

// passed closes the file of a chunk before seq.
func (s *source) passed(seq uint64) error {
	if s.seq >= seq {
		return nil
	}
	return s.close()
}

func (s *source) close() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

// space is the memory of one batch, used again for another.
type space struct {
	arena    []byte    // what was read from the disk
	borrowed []*recent // or else the commits in memory
	pieces   [][]byte  // of the entries' payloads
	batch    Batch
}

// memory returns n bytes, aligned to BlockSize, of a batch of usual bytes at most.
func (m *space) memory(n, usual int64) []byte {
	if int64(cap(m.arena)) > max(4*n, arenaKept) {
		m.arena = nil // a large entry has passed
	}
	if int64(cap(m.arena)) < n {
		// Batches grow slowly when outputs fall behind.
		m.arena = alignedMemory(max(n, min(n+n/4&^(BlockSize-1), padded(usual))))
	}
	return m.arena[:n]
}

// arenaKept bytes and piecesKept entries are what a cursor keeps memory for
// between batches; what a larger batch took is let go of.
const (
	arenaKept  = 16 << 20
	piecesKept = 16 << 10
)

// errLongFrame says that the frame to be read is longer than a batch.
var errLongFrame = errors.New("a commit is longer than a batch")

// read reads whole frames from the beginning of the span into m, as many as
// maxBytes holds. A first frame that alone is longer is read if alone is true, else
// the error is errLongFrame.
func (c *Cursor) read(m *space, s span, maxBytes int, alone bool) (*Batch, error) {
	from := s.from
	if c.b.borrow(m, s, int64(maxBytes), alone) {
		return c.recall(m, s), nil
	}
	c.b.mu.Lock()
	c.b.stats.diskReads++
	c.b.mu.Unlock()
	if err := c.source.open(c.b, from.seq); err != nil {
		return nil, err
	}
	// Whole blocks, so that what comes after damage is found at the next one.
	want := min(s.end-from.off, max(int64(maxBytes)&^(BlockSize-1), BlockSize))
	for {
		p := m.memory(want, int64(maxBytes))
		if _, err := c.source.file.ReadAt(p, from.off); err != nil {
			return nil, fmt.Errorf("read %s at %d: %w", chunkName(c.b.opt.Dir, from.seq), from.off, err)
		}
		batch, more := c.parse(m, p, s)
		if more == 0 {
			batch.disk = true
			return batch, nil
		}
		if !alone {
			return nil, errLongFrame
		}
		want = more // the first frame alone is longer
	}
}

// parse takes whole frames off p, with which the span begins. If not even the
// first one is whole, more is its length.
func (c *Cursor) parse(m *space, p []byte, s span) (batch *Batch, more int64) {
	batch = m.begin(s)
	n := int64(0)
	for n < int64(len(p)) {
		f, err := s.frame(p[n:], n)
		if err != nil {
			c.foundDamage(s.from.seq, s.from.off+n, err)
			for n += BlockSize; n < int64(len(p)); n += BlockSize {
				if _, err := s.frame(p[n:], n); err == nil {
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
		c.entries(m, p[n+frameHead:n+frameHead+f.body], f, s.from.off+n)
		batch.passes(f)
		n += f.length()
	}
	batch.end.off += n
	batch.Bytes = n
	return batch, 0
}

// recall makes a batch of the commits that m has borrowed, with which the span
// begins. They never left the memory: their payloads are not checked.
func (c *Cursor) recall(m *space, s span) *Batch {
	batch := m.begin(s)
	for _, r := range m.borrowed {
		f, err := s.frame(r.blocks[0], batch.Bytes)
		if err == nil {
			err = m.recall(pieces{first: r.blocks[0], rest: r.blocks[1:]}, f)
			batch.passes(f)
		}
		if err != nil {
			c.foundDamage(s.from.seq, r.off, err)
		}
		batch.Bytes += r.length
	}
	batch.end.off += batch.Bytes
	return batch
}

// recall adds the entries of a commit in memory.
func (m *space) recall(v pieces, f frame) error {
	before := m.batch.Events
	v.skip(frameHead)
	for body := f.body; body > 0; {
		meta := v.peek(min(entryHead, body))
		if len(meta) == entryHead {
			meta = v.peek(min(entryMeta(meta), body))
		}
		e, size, err := decodeEntryHead(meta, f.seed)
		if err != nil || size > body {
			m.batch.damaged += f.events - min(f.events, uint64(m.batch.Events-before))
			return errEntryHead
		}
		v.skip(int64(len(meta)))
		n := len(m.pieces)
		m.pieces = v.take(m.pieces, size-int64(len(meta)))
		m.add(e, n)
		body -= size
	}
	return nil
}

// begin makes an empty batch that ends where the span begins.
func (m *space) begin(s span) *Batch {
	batch := &m.batch
	if n := cap(m.pieces); n > piecesKept && len(m.pieces) < n/8 { // many small entries have passed
		m.pieces, batch.Entries = nil, nil
	}
	clear(batch.Entries)
	clear(m.pieces)
	m.pieces = m.pieces[:0]
	*batch = Batch{Entries: batch.Entries[:0], end: s.from}
	return batch
}

// add adds an entry whose payload is the pieces from n on.
func (m *space) add(e Entry, n int) {
	e.Payload = m.pieces[n:len(m.pieces):len(m.pieces)]
	m.batch.Entries = append(m.batch.Entries, e)
	m.batch.Events += e.Events
}

// passes counts a commit as part of the batch, where reading it may have failed.
func (b *Batch) passes(f frame) {
	b.end.entries += f.entries
	b.end.events += f.events
	b.written = f.written
}

// frame decodes the head of the commit at the start of p, which is at byte n of the
// span.
func (s span) frame(p []byte, n int64) (frame, error) {
	f, err := decodeFrame(p, s.from.seq)
	if err == nil && (f.magic != magicCommit || f.salt != s.salt || f.length() > s.end-s.from.off-n) {
		err = errFrame
	}
	return f, err
}

// entries decodes the body of a commit at off; what cannot be read is counted.
func (c *Cursor) entries(m *space, body []byte, f frame, off int64) {
	batch, before := &m.batch, m.batch.Events
	for len(body) > 0 {
		e, payload, size, err := decodeEntry(body, f.seed)
		if err != nil {
			c.foundDamage(f.chunk, off, err)
			if errors.Is(err, errEntryHead) {
				break
			}
		} else {
			m.pieces = append(m.pieces, payload)
			m.add(e, len(m.pieces)-1)
		}
		body = body[size:]
	}
	batch.damaged += f.events - min(f.events, uint64(batch.Events-before))
}
