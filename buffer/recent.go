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
	slab   *slab // which blocks are in
}

// slab is segments that are given back together: those of a large commit, or the
// page that small ones share.
type slab struct {
	segments [][]byte
	kept     int // commits in the list, and the page that takes more
	lent     int // batches with entries in it
}

// recents is the newest commits, oldest first, in at most limit bytes of
// segments. Small ones are copied together, so that they do not take a segment
// each. What is lent to a batch does not count: the batch's size bounds it.
type recents struct {
	limit int64 // recentLimit but for tests
	list  []*recent
	bytes int64 // of the segments kept
	page  *slab // takes small commits
	used  int64 // of page
}

// remember keeps the group's segments, which is durable at off of the chunk. It
// takes them over: they go back to the pool when they are forgotten. b.mu is held.
func (b *Buffer) remember(g *group, seq uint64, off, length int64) {
	r := &b.recents
	item := &recent{seq: seq, off: off, length: length}
	if length <= smallGroup {
		if r.page == nil || r.used+length > segmentSize {
			b.closePage()
			r.page, r.used = b.keep([][]byte{b.segments.get()}), 0
		}
		p := r.page.segments[0][r.used:][:length:length]
		copy(p, g.pieces[0])
		item.blocks, item.slab = [][]byte{p}, r.page
		r.page.kept++
		r.used += length
	} else {
		b.closePage()
		item.blocks, item.slab = slices.Clone(g.pieces), b.keep(slices.Clone(g.segments))
		g.segments = g.segments[:0]
	}
	r.list = append(r.list, item)
	b.forgetRecent()
}

// keep makes a slab that is kept once. b.mu is held.
func (b *Buffer) keep(segments [][]byte) *slab {
	b.recents.bytes += int64(len(segments)) * segmentSize
	return &slab{segments: segments, kept: 1}
}

// unkeep is the end of one keeping. b.mu is held.
func (b *Buffer) unkeep(s *slab) {
	if s.kept--; s.kept == 0 {
		b.recents.bytes -= int64(len(s.segments)) * segmentSize
		b.reclaim(s)
	}
}

// reclaim gives the segments back to the pool once nobody has them. b.mu is held.
func (b *Buffer) reclaim(s *slab) {
	if s.kept > 0 || s.lent > 0 {
		return
	}
	for _, segment := range s.segments {
		b.segments.put(segment)
	}
	s.segments = nil
}

// closePage lets the page go with the last commit in it. b.mu is held.
func (b *Buffer) closePage() {
	if page := b.recents.page; page != nil {
		b.recents.page = nil
		b.unkeep(page)
	}
}

// forgetRecent lets go of what every cursor has passed, and of the oldest while
// there is too much. b.mu is held.
func (b *Buffer) forgetRecent() {
	r := &b.recents
	n := 0
	for ; n < len(r.list) && (r.bytes > r.limit || b.passed(r.list[n])); n++ {
		b.unkeep(r.list[n].slab)
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

// borrow lends the commits at the span's beginning to m, as many as maxBytes holds,
// if they are still in memory; alone, also a first one that is longer. They stay as
// they are until giveBack.
func (b *Buffer) borrow(m *space, s span, maxBytes int64, alone bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.recents.list
	first, found := slices.BinarySearchFunc(list, s.from, func(r *recent, p position) int {
		return cmp.Or(cmp.Compare(r.seq, p.seq), cmp.Compare(r.off, p.off))
	})
	if !found {
		return false
	}
	n := int64(0)
	for _, r := range list[first:] {
		if r.seq != s.from.seq || r.off != s.from.off+n || s.from.off+n+r.length > s.end || (n > 0 || !alone) && n+r.length > maxBytes {
			break
		}
		r.slab.lent++
		m.borrowed = append(m.borrowed, r)
		n += r.length
	}
	return n > 0
}

// giveBack ends what borrow began. b.mu is held.
func (b *Buffer) giveBack(m *space) {
	for _, r := range m.borrowed {
		r.slab.lent--
		b.reclaim(r.slab)
	}
	clear(m.borrowed)
	m.borrowed = m.borrowed[:0]
}
