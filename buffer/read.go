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
	arena  []byte
	pieces [][]byte // of the entries' payloads
	batch  Batch
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
	if p, ok := c.b.recall(m, s, int64(maxBytes), alone); ok {
		s.trusted = true
		batch, _ := c.parse(m, p, s)
		return batch, nil
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
	batch = &m.batch
	if n := cap(m.pieces); n > piecesKept && len(m.pieces) < n/8 { // many small entries have passed
		m.pieces, batch.Entries = nil, nil
	}
	clear(batch.Entries)
	clear(m.pieces)
	m.pieces = m.pieces[:0]
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
		c.entries(m, p[n+frameHead:n+frameHead+f.body], f, s.from.off+n, s.trusted)
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
func (c *Cursor) entries(m *space, body []byte, f frame, off int64, trusted bool) {
	batch, read := &m.batch, uint64(0)
	for len(body) > 0 {
		e, payload, size, err := decodeEntry(body, f.seed, trusted)
		if err != nil {
			c.foundDamage(f.chunk, off, err)
			if errors.Is(err, errEntryHead) {
				break
			}
		} else {
			n := len(m.pieces)
			m.pieces = append(m.pieces, payload)
			e.Payload = m.pieces[n : n+1 : n+1]
			batch.Entries = append(batch.Entries, e)
			batch.Events += e.Events
			read += uint64(e.Events)
		}
		body = body[size:]
	}
	batch.damaged += f.events - min(f.events, read)
}
