package buffer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// recover brings the Buffer to the state of the directory: chunks, with the
// tail of the newest cut at its last whole commit, and cursors.
func (b *Buffer) recover(ctx context.Context) error {
	names, err := b.fs.ReadDir(b.opt.Dir)
	if err != nil {
		return err
	}
	var seqs []uint64
	for _, name := range names {
		seq, isChunk := chunkSeq(name)
		cursor, isCur := isCursor(name)
		switch {
		case isChunk:
			seqs = append(seqs, seq)
		case isCur && !slices.Contains(b.opt.Cursors, cursor):
			b.log.Warn("cursor of an output that is no longer configured is removed", zap.String("cursor", cursor))
			if err := b.fs.Remove(filepath.Join(b.opt.Dir, name)); err != nil {
				return err
			}
		case isCur, name == "lock", strings.HasSuffix(name, damagedSuffix):
		default:
			b.log.Warn("file in the buffer directory is not weir's and left alone", zap.String("file", name))
		}
	}
	slices.Sort(seqs)
	for i, seq := range seqs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.recoverChunk(seq, i == len(seqs)-1); err != nil {
			return err
		}
	}
	if len(seqs) > 0 {
		b.lastSeq = seqs[len(seqs)-1]
	}
	for _, name := range b.opt.Cursors {
		if err := b.recoverCursor(name); err != nil {
			return err
		}
	}
	b.mu.Lock()
	for _, c := range b.cursors {
		r := b.remaining(c)
		c.recovered = r.Events
		first := b.find(c.pos.seq)
		if first == nil {
			first = b.after(c.pos.seq)
		}
		if r.Bytes > 0 && first != nil {
			c.oldest = first.begun
		}
	}
	b.measure()
	b.mu.Unlock()
	b.removePassed()
	return nil
}

// recoverChunk finds what of a chunk is durable and adds it to b.chunks. The
// newest one becomes the active chunk if it can take more.
func (b *Buffer) recoverChunk(seq uint64, newest bool) error {
	name := chunkName(b.opt.Dir, seq)
	f, err := b.fs.Open(name)
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			f.Close()
		}
	}()
	size, err := f.Size()
	if err != nil {
		return err
	}
	c := &chunk{seq: seq, end: BlockSize, frames: 1, sealed: !newest}
	if b.readFooter(f, c, size) {
		b.chunks = append(b.chunks, c)
		return b.readBegun(f, c)
	}
	w := walker{f: f, size: size, chunk: c}
	headerOK, err := w.header()
	if err == nil {
		err = w.walk()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !headerOK && c.frames == 1 {
		// Made and not yet begun when power was lost, or overwritten as a whole.
		return b.setAside(name, size)
	}
	c.damaged = w.damaged
	if w.damaged {
		b.log.Error("chunk is damaged: what is readable in it is delivered", zap.String("file", name), zap.Int64("offset", w.damage))
	}
	switch {
	case c.end < size && !newest:
		// Another chunk was begun behind it, so its end was durable once.
		c.damaged = true
		b.log.Error("chunk is damaged at its end: what is readable in it is delivered", zap.String("file", name), zap.Int64("offset", c.end))
	case c.end < size:
		b.log.Warn("unfinished commit cut off the newest chunk", zap.String("file", name), zap.Int64("bytes", size-c.end))
		if err := errors.Join(f.Truncate(c.end), f.Datasync()); err != nil {
			return fmt.Errorf("cut the torn tail of %s: %w", name, err)
		}
	}
	b.chunks = append(b.chunks, c)
	if err := b.readBegun(f, c); err != nil {
		return err
	}
	if newest && !c.damaged && headerOK && c.end < b.chunkLimit {
		b.active, keep = f, true
	} else {
		c.sealed = true
	}
	return nil
}

// setAside deals with a chunk in which there is nothing to read.
func (b *Buffer) setAside(name string, size int64) error {
	if size <= BlockSize {
		b.log.Warn("empty chunk removed", zap.String("file", name))
		return b.fs.Remove(name)
	}
	b.log.Error("chunk has nothing readable in it and is moved aside", zap.String("file", name+damagedSuffix), zap.Int64("bytes", size))
	return b.fs.Rename(name, name+damagedSuffix)
}

// readFooter fills c from the footer, if the file ends with one.
func (b *Buffer) readFooter(f File, c *chunk, size int64) bool {
	if size < 2*BlockSize || size%BlockSize != 0 {
		return false
	}
	var p [frameHead]byte
	if _, err := f.ReadAt(p[:], size-BlockSize); err != nil {
		return false
	}
	foot, err := decodeFrame(p[:], c.seq)
	if err != nil || foot.magic != magicFooter {
		return false
	}
	c.end, c.frames = size-BlockSize, foot.number
	c.entries, c.events = foot.entries, foot.events
	c.sealed = true
	return true
}

// readBegun takes the chunk's age from its header.
func (b *Buffer) readBegun(f File, c *chunk) error {
	var p [frameHead]byte
	if _, err := f.ReadAt(p[:], 0); err != nil {
		return fmt.Errorf("read %s: %w", chunkName(b.opt.Dir, c.seq), err)
	}
	head, err := decodeFrame(p[:], c.seq)
	if err != nil {
		c.damaged = true // the header block: no data is lost with it
		c.begun = now()
		return nil
	}
	c.begun = head.written
	return nil
}

// walkWindow is how much a walk reads at a time.
const walkWindow = 256 << 10

// walker goes from frame to frame of a chunk without a footer. It reads the
// heads only, but for the last commit: those before it were durable before it
// was begun.
type walker struct {
	f       File
	size    int64
	chunk   *chunk
	damaged bool
	damage  int64 // offset

	window []byte
	at     int64 // offset of window
}

// header checks the first frame.
func (w *walker) header() (ok bool, err error) {
	p, err := w.read(0, frameHead)
	if err != nil {
		return false, err
	}
	f, err := decodeFrame(p, w.chunk.seq)
	if errors.Is(err, errFrame) {
		return false, nil
	}
	return err == nil && f.magic == magicHeader, err
}

// read returns up to n bytes at off, fewer at the end of the file.
func (w *walker) read(off, n int64) ([]byte, error) {
	n = min(n, w.size-off)
	if n <= 0 {
		return nil, nil
	}
	if off < w.at || off+n > w.at+int64(len(w.window)) {
		length := min(max(n, walkWindow), w.size-off)
		if int64(cap(w.window)) < length {
			w.window = make([]byte, length)
		}
		w.window = w.window[:length]
		if _, err := w.f.ReadAt(w.window, off); err != nil {
			return nil, err
		}
		w.at = off
	}
	return w.window[off-w.at:][:n], nil
}

// walk finds the end of the last whole commit.
func (w *walker) walk() error {
	c := w.chunk
	off := int64(BlockSize)
	for off < w.size {
		f, ok, err := w.commitAt(off)
		if err != nil {
			return err
		}
		if ok && off+f.length() >= w.size || !ok {
			// It may be the torn one: look at all of it.
			if ok, err = w.whole(off, f, ok); err != nil {
				return err
			}
		}
		if !ok {
			next, err := w.resync(off)
			if err != nil {
				return err
			}
			if next == 0 {
				return nil // nothing behind it: the torn tail
			}
			if !w.damaged {
				w.damaged, w.damage = true, off
			}
			off = next
			continue
		}
		off += f.length()
		c.end = off
		c.frames = f.number + 1
		c.entries += f.entries
		c.events += f.events
	}
	return nil
}

// commitAt reads the head of the commit at off.
func (w *walker) commitAt(off int64) (f frame, ok bool, err error) {
	p, err := w.read(off, frameHead)
	if err != nil {
		return f, false, err
	}
	f, err = decodeFrame(p, w.chunk.seq)
	if err != nil && !errors.Is(err, errFrame) {
		return f, false, err
	}
	return f, err == nil && f.magic == magicCommit && f.number >= w.chunk.frames && off+frameHead+f.body <= w.size, nil
}

// whole checks every entry of the commit at off.
func (w *walker) whole(off int64, f frame, head bool) (bool, error) {
	if !head {
		return false, nil
	}
	p, err := w.read(off, frameHead+f.body)
	if err != nil {
		return false, err
	}
	p = p[frameHead:]
	for len(p) > 0 {
		_, n, err := decodeEntry(p)
		if err != nil {
			return false, nil
		}
		p = p[n:]
	}
	return true, nil
}

// resync finds a commit behind damage at off; 0 if there is none.
func (w *walker) resync(off int64) (int64, error) {
	for off += BlockSize; off < w.size; off += BlockSize {
		_, ok, err := w.commitAt(off)
		if err != nil {
			return 0, err
		}
		if ok {
			return off, nil
		}
	}
	return 0, nil
}

// recoverCursor opens the cursor's file. One without a record begins at the
// oldest chunk, so that a new output gets what is still there.
func (b *Buffer) recoverCursor(name string) error {
	if name == "" || strings.ContainsAny(name, "/\x00") || strings.HasSuffix(name, cursorNew) {
		return fmt.Errorf("buffer: %q cannot be the name of a cursor", name)
	}
	if err := b.fs.Remove(cursorName(b.opt.Dir, name) + cursorNew); err == nil {
		b.log.Info("unfinished renewal of a cursor removed", zap.String("cursor", name))
	}
	c := &Cursor{b: b, name: name, ready: make(chan struct{}, 1), dropped: map[string]uint64{}}
	log, pos, state, found, err := openCursorLog(b, name)
	c.log = log
	if err != nil {
		return err
	}
	c.state = state
	b.lastSeq = max(b.lastSeq, pos.seq)
	if !found && len(b.chunks) > 0 {
		pos = position{seq: b.chunks[0].seq, off: BlockSize}
	}
	if ch := b.find(pos.seq); ch != nil {
		if pos.off > ch.end {
			b.log.Error("cursor is behind the end of its chunk: what lay between is lost", zap.String("cursor", name), zap.Uint64("chunk", pos.seq))
			pos = position{seq: ch.seq, off: ch.end, entries: ch.entries, events: ch.events}
		}
	}
	c.pos = pos
	b.cursors = append(b.cursors, c)
	return nil
}
