package buffer

import (
	"fmt"
	"slices"
	"time"
)

// recoverIDs reads the log, and the chunks that it does not cover: the newest
// one, and what a crash kept from being saved.
func (b *Buffer) recoverIDs(numbers []uint64) error {
	if b.ids.window <= 0 {
		for _, n := range numbers {
			if err := b.fs.Remove(idFileName(b.opt.Dir, n)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := b.idLog.load(numbers); err != nil {
		return err
	}
	// From the newest back, until the log has the ids, or the window is full of them,
	// or they are too old: without a log, not all that waits is read.
	limit := time.Now().Add(-b.ids.age).UnixNano()
	var lists [][]stamped
	i, found := len(b.chunks), 0
	for i > 0 && found < b.ids.window {
		c, newest := b.chunks[i-1], i == len(b.chunks)
		// The newest may have been closed after a failure, lost that to a crash and
		// gone on, with ids in the log and others that are not.
		if !newest && (c.seq <= b.idLog.covered || c.written != 0 && c.written < limit) {
			break
		}
		list, err := b.readIDs(c)
		if err != nil {
			return err
		}
		lists = append(lists, list)
		found += len(list)
		i--
	}
	for n, list := range slices.Backward(lists) {
		for _, x := range list {
			b.ids.add(x)
		}
		if c := b.chunks[len(b.chunks)-1-n]; c.sealed {
			b.saveIDs(c.seq)
		}
	}
	b.ids.expire(time.Now())
	return nil
}

// readIDs returns the ids of the chunk's entries. It reads their heads; damage ends
// the commit that it is in.
func (b *Buffer) readIDs(c *chunk) (ids []stamped, err error) {
	name := chunkName(b.opt.Dir, c.seq)
	f, err := b.fs.Open(name, Cached)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := walker{f: f, size: c.end, chunk: &chunk{seq: c.seq, salt: c.salt}, salted: true}
	for off := int64(BlockSize); off < c.end; {
		head, ok, err := w.commitAt(off)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if !ok {
			off += BlockSize
			continue
		}
		end := min(off+frameHead+head.body, c.end)
		for at := off + frameHead; at < end; {
			e, n, err := w.entryHead(at, end, head.seed)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", name, err)
			}
			if n == 0 {
				break
			}
			if len(e.ChunkID) > 0 {
				ids = append(ids, stamped{b.idLog.key.id(e.Tag, e.ChunkID), uint32(head.written.Unix())})
			}
			at += n
		}
		off += head.length()
	}
	return ids, nil
}

// entryHead reads the head, tag and chunk id of the entry at off and its length;
// 0 if it is damaged.
func (w *walker) entryHead(off, end int64, seed uint32) (e Entry, n int64, err error) {
	p, err := w.read(off, min(entryHead, end-off))
	if err != nil || len(p) < entryHead {
		return e, 0, err
	}
	meta := entryMeta(p)
	if p, err = w.read(off, min(meta, end-off)); err != nil || int64(len(p)) < meta {
		return e, 0, err
	}
	e, n, err = decodeEntryHead(p, seed)
	if err != nil {
		return e, 0, nil
	}
	return e, n, nil
}
