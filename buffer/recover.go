package buffer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

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
	var spares []string
	var ids []uint64
	for _, name := range names {
		seq, isChunk := chunkSeq(name)
		old, isOld := chunkSeq(strings.TrimSuffix(name, damagedSuffix))
		cursor, isCur := isCursor(name)
		number, isIDs := idFileNumber(name)
		switch {
		case isChunk:
			seqs = append(seqs, seq)
		case isOld: // its number is not used again, so that it is never replaced
			b.lastSeq = max(b.lastSeq, old)
		case isCur && strings.HasSuffix(name, cursorNew): // was being made
			if err := b.fs.Remove(filepath.Join(b.opt.Dir, name)); err != nil {
				return err
			}
		case isCur && !slices.Contains(b.opt.Cursors, cursor):
			b.log.Warn("cursor of an output that is no longer configured is removed", zap.String("cursor", cursor))
			if err := b.fs.Remove(filepath.Join(b.opt.Dir, name)); err != nil {
				return err
			}
		case isIDs:
			ids = append(ids, number)
		case isSpare(name):
			spares = append(spares, name)
		case isCur, name == lockName, slices.Contains(b.opt.Beside, name), strings.HasPrefix(name, "."): // programs' own notes
		case name == probeName:
			if err := b.fs.Remove(filepath.Join(b.opt.Dir, name)); err != nil {
				return err
			}
		default:
			b.log.Warn("file in the buffer directory is not weir's and left alone", zap.String("file", name))
		}
	}
	if err := b.recoverSpares(spares); err != nil {
		return err
	}
	slices.Sort(seqs)
	for i, seq := range seqs {
		if err := ctx.Err(); err != nil {
			return err
		}
		next := uint64(0)
		if i < len(seqs)-1 {
			next = seqs[i+1]
		}
		if err := b.recoverChunk(seq, next); err != nil {
			return err
		}
	}
	if len(seqs) > 0 {
		b.lastSeq = max(b.lastSeq, seqs[len(seqs)-1])
	}
	if err := b.recoverIDs(ids); err != nil {
		return err
	}
	for _, name := range b.opt.Cursors {
		if err := b.recoverCursor(name); err != nil {
			return err
		}
	}
	for _, c := range b.cursors {
		b.mu.Lock()
		r := b.remaining(c)
		b.mu.Unlock()
		c.recovered = r.Events
		if r.Bytes > 0 {
			c.oldest = b.begun(b.chunks[b.index(c.pos.seq)])
		}
	}
	b.mu.Lock()
	b.measure()
	b.mu.Unlock()
	b.removePassed()
	b.trimDamaged(DamagedLimit)
	return nil
}

// begun reads from a chunk's header when it was made; what cannot tell is taken
// for new.
func (b *Buffer) begun(c *chunk) time.Time {
	f, err := b.fs.Open(chunkName(b.opt.Dir, c.seq), Cached)
	if err != nil {
		return now()
	}
	defer f.Close()
	var p [frameHead]byte
	if _, err := f.ReadAt(p[:], 0); err != nil {
		return now()
	}
	head, err := decodeFrame(p[:], c.seq)
	if err != nil {
		return now()
	}
	return head.written
}

// recoverChunk finds what of a chunk is durable and adds it to b.chunks; next is
// the sequence number of the one behind it, 0 if there is none. The newest one
// becomes the active chunk if it can take more.
func (b *Buffer) recoverChunk(seq, next uint64) error {
	name, newest := chunkName(b.opt.Dir, seq), next == 0
	f, err := b.fs.Open(name, Cached)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	c := &chunk{seq: seq, end: BlockSize, frames: 1, size: size, sealed: !newest}
	sealed, footErr := readFooter(f, c, size)
	if sealed {
		b.add(c)
		return nil
	}
	if footErr != nil { // there may be one, so that nothing may be written before it
		b.log.Error("end of a chunk cannot be read: its commits are looked for from its beginning", zap.String("file", name), zap.Error(footErr))
	}
	stated := statedEnd(b.fs, b.opt.Dir, seq, next)
	w := walker{f: f, size: min(size, stated), chunk: c}
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
	c.damaged = w.damaged || !headerOK
	if c.damaged {
		b.log.Error("chunk is damaged: what is readable in it is delivered", zap.String("file", name), zap.Int64("offset", w.damage))
	}
	end := stated
	if stated == unstated {
		end = size
	}
	if c.end < end && !newest {
		// Another chunk was begun behind it, so its end was durable once.
		c.damaged = true
		b.log.Error("chunk is damaged at its end: what is readable in it is delivered", zap.String("file", name), zap.Int64("offset", c.end))
		if t := w.tail; t.magic == magicCommit {
			// Readers deliver what they can of it and count the rest.
			c.end += t.length()
			c.frames = t.number + 1
			c.entries += t.entries
			c.events += t.events
		}
	}
	if w.tail.magic == magicCommit && newest {
		b.log.Warn("unfinished commit left out of the newest chunk", zap.String("file", name), zap.Int64("offset", c.end))
	}
	resume := newest && footErr == nil && !c.damaged && headerOK && c.end < b.chunkLimit
	if c.end > size || c.end < size && newest && !resume {
		// The padding is missing, or the chunk ends here and has no footer.
		if err := errors.Join(f.Truncate(c.end), f.Datasync()); err != nil {
			return fmt.Errorf("mend the end of %s: %w", name, err)
		}
		c.size = c.end
	}
	if c.sealed = !resume; resume {
		if b.active, err = b.fs.Open(name, b.access()); err != nil {
			return err
		}
	}
	b.add(c)
	return nil
}

// unstated is the end of a chunk of which the next one tells nothing.
const unstated = math.MaxInt64

// statedEnd is where the commits of a chunk end by the header of the next one.
func statedEnd(fs FS, dir string, seq, next uint64) int64 {
	if next == 0 {
		return unstated
	}
	f, err := fs.Open(chunkName(dir, next), Cached)
	if err != nil {
		return unstated // told when it is its turn
	}
	defer f.Close()
	var p [frameHead]byte
	if _, err := f.ReadAt(p[:], 0); err != nil {
		return unstated
	}
	head, err := decodeFrame(p[:], next)
	if err != nil || head.magic != magicHeader || head.events != seq || head.body < BlockSize {
		return unstated
	}
	return head.body
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

// readFooter fills c from the footer, if the file ends with one of this chunk. The
// error is that of reading it.
func readFooter(f File, c *chunk, size int64) (sealed bool, err error) {
	if size < 2*BlockSize || size%BlockSize != 0 {
		return false, nil
	}
	var p [frameHead]byte
	if _, err := f.ReadAt(p[:], size-BlockSize); err != nil {
		return false, err
	}
	foot, err := decodeFrame(p[:], c.seq)
	if err != nil || foot.magic != magicFooter || foot.body < BlockSize || foot.body > size-BlockSize || foot.body%BlockSize != 0 {
		return false, nil
	}
	c.end, c.frames = foot.body, foot.number
	c.entries, c.events, c.salt = foot.entries, foot.events, foot.salt
	c.sealed, c.written = true, foot.written.UnixNano()
	return true, nil
}

// A walk reads walkWindow at a time while it goes on where the last read ended,
// and walkJump behind a payload that it has skipped.
const (
	walkWindow = 1 << 20
	walkJump   = 16 << 10
)

// walker goes from frame to frame of a chunk without a footer. It reads the
// heads only, but for the last commit: those before it were durable before it
// was begun.
type walker struct {
	f       File
	size    int64
	chunk   *chunk
	damaged bool
	damage  int64 // offset
	salted  bool  // the chunk's salt is known
	tail    frame // of a commit that is not whole, at the chunk's end

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
	if err == nil && f.magic == magicHeader {
		w.chunk.salt, w.salted = f.salt, true
	}
	return w.salted, err
}

// read returns up to n bytes at off, fewer at the end of the file.
func (w *walker) read(off, n int64) ([]byte, error) {
	n = min(n, w.size-off)
	if n <= 0 {
		return nil, nil
	}
	if off < w.at || off+n > w.at+int64(len(w.window)) {
		step := int64(walkJump)
		if off < w.at+int64(len(w.window))+walkJump {
			step = walkWindow
		}
		length := min(max(n, step), w.size-off)
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
		if !ok {
			next, err := w.resync(off + BlockSize)
			if err != nil {
				return err
			}
			if next == 0 {
				return nil // nothing behind it: the torn tail
			}
			w.foundDamage(off)
			off = next
			continue
		}
		if ok, err = w.sound(off, f); err != nil {
			return err
		}
		if !ok {
			w.tail = f
			return nil
		}
		off += f.length()
		c.salt, w.salted = f.salt, true
		c.end = off
		c.frames = f.number + 1
		c.entries += f.entries
		c.events += f.events
		c.written = f.written.UnixNano()
	}
	return nil
}

func (w *walker) foundDamage(off int64) {
	if !w.damaged {
		w.damaged, w.damage = true, off
	}
}

// sound reports whether the commit at off was durable once. Each was before the
// next one was begun, so that only one with nothing behind it may be torn.
func (w *walker) sound(off int64, f frame) (bool, error) {
	end := off + f.length()
	p, err := w.read(end, frameHead)
	if err != nil {
		return false, err
	}
	next, err := decodeFrame(p, w.chunk.seq)
	if err == nil && next.magic != magicHeader && next.salt == f.salt && next.number == f.number+1 {
		return true, nil
	}
	ok, err := w.whole(off, f)
	if ok || err != nil {
		return ok, err
	}
	behind, err := w.resync(end)
	if behind > 0 {
		w.foundDamage(off)
	}
	return behind > 0, err
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
	return f, err == nil && f.magic == magicCommit && f.number >= w.chunk.frames && (!w.salted || f.salt == w.chunk.salt), nil
}

// whole checks every entry of the commit at off.
func (w *walker) whole(off int64, f frame) (bool, error) {
	if off+frameHead+f.body > w.size {
		return false, nil
	}
	p, err := w.read(off, frameHead+f.body)
	if err != nil {
		return false, err
	}
	p = p[frameHead:]
	for len(p) > 0 {
		_, _, n, err := decodeEntry(p, f.seed)
		if err != nil {
			return false, nil
		}
		p = p[n:]
	}
	return true, nil
}

// resync finds the first commit at off or behind it; 0 if there is none.
func (w *walker) resync(off int64) (int64, error) {
	for ; off < w.size; off += BlockSize {
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
	c := &Cursor{b: b, name: name, ready: make(chan struct{}, 1), dropped: map[string]uint64{}}
	log, last, err := openCursorLog(b, name)
	c.log = log
	b.cursors = append(b.cursors, c)
	if err != nil {
		return err
	}
	pos := last.pos
	c.state = last.state
	b.lastSeq = max(b.lastSeq, pos.seq)
	if last.serial == 0 && len(b.chunks) > 0 {
		pos = position{seq: b.chunks[0].seq, off: BlockSize}
	}
	if ch := b.find(pos.seq); ch != nil {
		if pos.off > ch.end {
			b.log.Error("cursor is behind the end of its chunk: what lay between is lost", zap.String("cursor", name), zap.Uint64("chunk", pos.seq))
			pos = position{seq: ch.seq, off: ch.end, entries: ch.entries, events: ch.events}
			// What comes next to that place is not what the cursor has passed.
			if err := log.save(pos, last.state); err != nil {
				return err
			}
		}
	}
	c.pos = pos
	return nil
}
