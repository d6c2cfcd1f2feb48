package buffer

import (
	"cmp"
	"slices"
)

const (
	// recentLimit is how much memory the newest commits are kept in, so that a
	// cursor that keeps up reads no disk.
	recentLimit = 16 << 20
	// smallGroup is the size up to which commits share a segment.
	smallGroup = 64 << 10
)

// recent is a commit that is still in memory, as it is on disk.
type recent struct {
	seq    uint64 // of its chunk
	off    int64
	length int64
	blocks [][]byte
	// frees is the segments that nobody needs when this one and those before it
	// are gone.
	frees [][]byte
	pins  int // cursors that copy it
}

// recents is the newest commits, oldest first, in at most limit bytes of
// segments. Small ones are copied together, so that they do not take a segment
// each.
type recents struct {
	limit int64 // recentLimit but for tests
	list  []*recent
	bytes int64  // of the segments held
	page  []byte // takes small commits
	used  int64  // of page
}

// remember keeps the group's segments, which is durable at off of the chunk. It
// takes them over: they go back to the pool when they are forgotten. b.mu is held.
func (b *Buffer) remember(g *group, seq uint64, off, length int64) {
	r := &b.recents
	item := &recent{seq: seq, off: off, length: length}
	if length <= smallGroup {
		if r.page == nil || r.used+length > int64(len(r.page)) {
			b.closePage()
			r.page, r.used = b.segments.get(), 0
			r.bytes += segmentSize
		}
		p := r.page[r.used:][:length:length]
		copy(p, g.pieces[0])
		item.blocks = [][]byte{p}
		r.used += length
	} else {
		b.closePage()
		item.blocks = slices.Clone(g.pieces)
		item.frees = slices.Clone(g.segments)
		g.segments = g.segments[:0]
		r.bytes += int64(len(item.frees)) * segmentSize
	}
	r.list = append(r.list, item)
	b.forgetRecent()
}

// closePage makes the page go with the last commit in it. b.mu is held.
func (b *Buffer) closePage() {
	r := &b.recents
	if r.page == nil {
		return
	}
	if n := len(r.list); n > 0 {
		last := r.list[n-1]
		last.frees = append(last.frees, r.page)
	} else {
		b.segments.put(r.page)
		r.bytes -= segmentSize
	}
	r.page = nil
}

// forgetRecent lets go of what every cursor has passed, and of the oldest while
// there is too much. b.mu is held.
func (b *Buffer) forgetRecent() {
	r := &b.recents
	n := 0
	for ; n < len(r.list); n++ {
		item := r.list[n]
		if r.bytes <= r.limit && !b.passed(item) {
			break
		}
		for _, s := range item.frees {
			if item.pins == 0 { // else the collector takes it
				b.segments.put(s)
			}
			r.bytes -= segmentSize
		}
		if len(item.frees) == 0 && item.pins > 0 && n+1 < len(r.list) {
			r.list[n+1].pins++ // shares the page; never given back to the pool
		}
	}
	clear(r.list[:n])
	r.list = r.list[n:]
	if len(r.list) == 0 {
		r.list = nil
	}
}

// passed reports whether no cursor will read the commit. b.mu is held.
func (b *Buffer) passed(item *recent) bool {
	for _, c := range b.cursors {
		p := c.ahead()
		if p.seq < item.seq || p.seq == item.seq && p.off < item.off+item.length {
			return false
		}
	}
	return true
}

// recall copies the commits at the span's beginning, as many as maxBytes holds,
// if they are still in memory; alone, also a first one that is longer.
func (b *Buffer) recall(to *space, s span, maxBytes int64, alone bool) ([]byte, bool) {
	b.mu.Lock()
	list := b.recents.list
	first, found := slices.BinarySearchFunc(list, s.from, func(r *recent, p position) int {
		return cmp.Or(cmp.Compare(r.seq, p.seq), cmp.Compare(r.off, p.off))
	})
	var items []*recent
	n := int64(0)
	if found {
		for _, r := range list[first:] {
			if r.seq != s.from.seq || r.off != s.from.off+n || s.from.off+n+r.length > s.end || (n > 0 || !alone) && n+r.length > maxBytes {
				break
			}
			r.pins++
			items = append(items, r)
			n += r.length
		}
	}
	b.mu.Unlock()
	if n == 0 {
		return nil, false
	}
	p := to.memory(n, maxBytes)[:0]
	for _, r := range items {
		for _, block := range r.blocks {
			p = append(p, block...)
		}
	}
	b.mu.Lock()
	for _, r := range items {
		r.pins--
	}
	b.mu.Unlock()
	return p, true
}
