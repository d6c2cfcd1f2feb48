package buffer

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Of gather: so often in a row others get a turn without anybody coming, and no
// further one when that has taken so long, as it does where all processors are
// busy. There is no waiting for company that saves little because the bytes cost
// more than the commit.
const (
	gatherTurns = 32
	gatherTime  = 100 * time.Microsecond
	gatherBytes = 1 << 20
)

// gather lets those join the next commit that have just been told of the last
// one and are about to send again: without it they take turns, half of them in
// each commit, and a small commit costs as much as a large one. It has no timer and
// does not sleep: it lets goroutines and other threads, as senders on the same
// machine, have the processor first (sched_yield(2)). Where nobody else wants it,
// that is over in microseconds, and who comes alone does not even do that. b.mu is
// held, and released meanwhile.
func (b *Buffer) gather() {
	var begin time.Time // of the turns that brought nobody
	for turns := 0; turns < gatherTurns; turns++ {
		had := b.next.entries
		if had >= b.company || b.next.size >= gatherBytes || b.closed || b.rotate || b.opt.Durability != Fsync {
			return
		}
		if turns == 0 {
			begin = time.Now()
		}
		b.mu.Unlock()
		runtime.Gosched()
		// It does not block, and cannot fail: the runtime need not be told.
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		b.mu.Lock()
		if b.next.entries > had {
			turns = -1
		} else if time.Since(begin) > gatherTime {
			return
		}
	}
}

// commitLoop makes one commit after the other: whatever gathered while the last
// one was written is the next, see also gather.
func (b *Buffer) commitLoop() {
	defer close(b.completions)
	for {
		b.mu.Lock()
		for b.committing || !b.due && !b.closed && !b.rotate {
			b.work.Wait()
		}
		b.committing = true
		switch {
		case b.rotate:
			b.rotate = false
			b.mu.Unlock()
			b.seal()
		case b.next.entries == 0 && b.closed:
			b.committing = false
			b.mu.Unlock()
			return
		case b.next.entries == 0: // Commit was faster
			b.due = false
			b.mu.Unlock()
		default:
			b.gather()
			b.commitNext()
		}
		b.mu.Lock()
		b.committing = false
		b.mu.Unlock()
	}
}

// slowCommit is how long commits may take, by their mean, for Commit to make them.
const slowCommit = 2 * time.Millisecond

// Commit commits what has been appended. It does so itself if nobody else is at
// it and commits are fast, which spares waking another goroutine, and thread, for
// each; then the waiters have been told when it returns. Else it only
// sees to it that it is done.
func (b *Buffer) Commit() {
	b.mu.Lock()
	if b.next.entries == 0 {
		b.mu.Unlock()
		return
	}
	if b.committing || b.rotate || b.closed || b.took > slowCommit {
		b.demand()
		b.mu.Unlock()
		return
	}
	b.committing = true
	b.commitNext()
	b.mu.Lock()
	b.committing = false
	if b.due || b.rotate || b.closed {
		b.work.Signal()
	}
	b.mu.Unlock()
}

// CommitSoon is Commit by another goroutine; it does not wait.
func (b *Buffer) CommitSoon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next.entries > 0 {
		b.demand()
	}
}

// commitNext makes a commit of what has gathered. b.mu is held, and released;
// b.committing belongs to the caller.
func (b *Buffer) commitNext() {
	g := b.next
	b.next = b.newGroup()
	b.due = false
	b.current = g
	b.room.Broadcast()
	for g.copying > 0 {
		b.copied.Wait()
	}
	b.mu.Unlock()

	g.err = b.commit(g)
	if g.err != nil {
		b.failed(g)
	}
	for _, s := range g.segments {
		b.segments.put(s)
	}
	b.complete(g)
}

// complete sees to it that the group's waiters are told: by the committer itself
// if nothing waits for the next commit, which spares waking another goroutine and
// gives those who are told time to send again, else by completeLoop. A group is
// told only after those before it.
func (b *Buffer) complete(g *group) {
	b.mu.Lock()
	inline := b.next.entries == 0 && b.untold == 0
	if !inline {
		b.untold++
	}
	b.mu.Unlock()
	if inline {
		b.tell(g)
		return
	}
	b.completions <- g
}

// completeLoop tells the waiters of commits that another one follows at once, so
// that acks do not delay it.
func (b *Buffer) completeLoop() {
	for g := range b.completions {
		b.tell(g)
		b.mu.Lock()
		b.untold--
		b.mu.Unlock()
	}
}

// tell tells the group's waiters.
func (b *Buffer) tell(g *group) {
	for _, w := range g.waiters {
		w.Done(g.err)
	}
	g.tellTwins()
	b.recycle(g)
}

// commit writes the group to the active chunk and makes it durable. A failed
// write is rolled back. A failed fdatasync is final for the chunk, since the
// kernel may have dropped the pages: the group is written once more, to a new
// chunk.
func (b *Buffer) commit(g *group) error {
	err := b.commitOnce(g)
	if noSpace(err) && b.dropSpares() {
		err = b.commitOnce(g)
	}
	if noSpace(err) && b.dropDelivered() {
		err = b.commitOnce(g)
	}
	var syncErr *syncError
	if errors.As(err, &syncErr) {
		b.log.Error("fdatasync failed: its chunk is closed, its entries are written again", zap.Error(err))
		err = b.commitOnce(g)
	}
	return err
}

// syncError is a failed fdatasync.
type syncError struct{ err error }

func (e *syncError) Error() string { return e.err.Error() }
func (e *syncError) Unwrap() error { return e.err }

func (b *Buffer) commitOnce(g *group) error {
	length := padded(g.size)
	// Before the chunk, which takes all the room that it gets, and for what the end of
	// the last one has used up.
	if err := b.idLog.reserve(len(g.ids)); err != nil {
		return err
	}
	c, err := b.chunkFor(length, g.entries)
	if err == nil {
		err = b.idLog.reserve(len(g.ids))
	}
	if err != nil {
		return err
	}
	start := time.Now()
	f := frame{magic: magicCommit, chunk: c.seq, number: c.frames, body: g.size - frameHead,
		entries: g.entries, events: g.events, salt: c.salt, seed: g.seed, written: now()}
	f.encode(g.segments[0])
	blocks, blank := b.writeAhead(c, g.blocks(length), length)
	if err := b.active.WriteBlocks(blocks, c.end); err != nil {
		b.rollBack(c)
		return fmt.Errorf("write %s: %w", chunkName(b.opt.Dir, c.seq), err)
	}
	if b.opt.Durability == Fsync {
		if err := b.active.Datasync(); err != nil {
			b.abandon(c)
			return &syncError{fmt.Errorf("make %s durable: %w", chunkName(b.opt.Dir, c.seq), err)}
		}
	}
	c.blank = blank
	b.committed(g, c, length, time.Since(start))
	if b.lateIDs > 0 {
		b.saveIDs(b.lateIDs)
	}
	return nil
}

// Of writeAhead.
const (
	zerosAhead  = 256 << 10
	zerosAtOnce = 64 << 10 // memory for them
	smallCommit = 32 << 10
)

// writeAhead adds zeros to a small commit that comes to where its file was never
// written, and returns where that is afterwards. The first write of a block changes
// the file's metadata, which fdatasync then waits for: so the next commits overwrite
// the zeros, as they do everywhere in a file that is used again. What was never
// written reads as zeros, too; nobody can tell the difference.
func (b *Buffer) writeAhead(c *chunk, blocks [][]byte, length int64) ([][]byte, int64) {
	end := c.end + length
	if c.blank == 0 || end <= c.blank {
		return blocks, c.blank
	}
	if length > smallCommit {
		return blocks, end
	}
	to := min(end+zerosAhead, c.size-BlockSize) // the footer's block
	for end < to {
		n := min(to-end, zerosAtOnce)
		blocks = append(blocks, b.zeros[:n])
		end += n
	}
	return blocks, end
}

// committed counts a group that is durable in c and lets readers and appenders
// know, all in one step, so that no reading of the figures sees half of it.
func (b *Buffer) committed(g *group, c *chunk, length int64, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, cur := range b.cursors {
		if b.remaining(cur).Bytes == 0 {
			cur.oldest = g.oldest
		}
	}
	c.end += length
	c.size = max(c.size, c.end)
	c.frames++
	c.entries += g.entries
	c.events += g.events
	b.total = b.total.plus(tally{length, g.entries, g.events})
	b.current = nil
	b.settle(g, true)
	b.company = g.entries + b.next.entries
	b.took += (took - b.took) / 8
	b.stats.observe(took)
	b.stats.commits++
	b.stats.bytes += uint64(length)
	b.stats.entries += g.entries
	b.stats.events += g.events
	b.measure()
	b.remember(g, c.seq, c.end-length, length)
	b.room.Broadcast() // what was pending may be dropped now
	for _, cur := range b.cursors {
		if cur.threshold == 0 || b.remaining(cur).Bytes >= cur.threshold {
			cur.wake()
		}
	}
	if b.stats.failing != nil {
		b.log.Info("storing works again", zap.Duration("after", time.Since(b.stats.failingSince)))
		b.stats.failing = nil
	}
}

// failed counts a group that could not be stored and remembers why.
func (b *Buffer) failed(g *group) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = nil
	b.settle(g, false)
	b.room.Broadcast()
	b.stats.failedCommits++
	b.stats.failedEntries += g.entries
	if b.stats.failing == nil {
		b.stats.failingSince = time.Now()
		b.log.Error("storing fails: entries are refused until it works again", zap.Error(g.err))
	}
	b.stats.failing = g.err
}

// blocks is the group's memory, padded with zeros to length bytes.
func (g *group) blocks(length int64) [][]byte {
	n := int((length + segmentSize - 1) / segmentSize)
	last := n - 1
	for i := g.size; i < length; {
		s := g.segments[i/segmentSize]
		from := i % segmentSize
		to := min(segmentSize, from+length-i)
		clear(s[from:to])
		i += to - from
	}
	blocks := append(g.pieces[:0], g.segments[:n]...)
	g.pieces = blocks
	blocks[last] = blocks[last][:length-int64(last)*segmentSize]
	return blocks
}

// chunkFor returns the active chunk if it takes length bytes and that many
// entries more, else a new one.
func (b *Buffer) chunkFor(length int64, entries uint64) (*chunk, error) {
	b.mu.Lock()
	var c *chunk
	if b.active != nil {
		c = b.chunks[len(b.chunks)-1]
	}
	b.mu.Unlock()
	if c != nil {
		if c.entries == 0 || c.end+length <= b.chunkLimit && c.entries+entries <= math.MaxUint32 {
			return c, nil
		}
		b.seal()
	}
	return b.newChunk()
}

// writeHead writes a frame without a body.
func (b *Buffer) writeHead(f File, head frame, off int64) error {
	s := b.segments.get()
	defer b.segments.put(s)
	block := s[:BlockSize]
	clear(block)
	head.encode(block)
	return f.WriteBlocks([][]byte{block}, off)
}

// seal closes the active chunk with a footer, which spares recovery the walk
// through it; a chunk without one is only slower to recover.
func (b *Buffer) seal() {
	if b.active == nil {
		return
	}
	b.mu.Lock()
	c := b.chunks[len(b.chunks)-1]
	b.mu.Unlock()
	at := max(c.end, c.size-BlockSize)
	foot := frame{magic: magicFooter, chunk: c.seq, number: c.frames, body: c.end, entries: c.entries, events: c.events, salt: c.salt, written: now()}
	err := b.writeHead(b.active, foot, at)
	c.size = at + BlockSize
	if err == nil && b.opt.Durability == Fsync {
		err = b.active.Datasync()
	}
	if err != nil {
		err = errors.Join(err, b.cut(c))
		b.log.Warn("chunk closed without a footer", zap.String("file", chunkName(b.opt.Dir, c.seq)), zap.Error(err))
	}
	b.closeActive(c)
}

// cut ends the active chunk's file with its last durable byte, so that nothing
// behind it is taken for a commit.
func (b *Buffer) cut(c *chunk) error {
	if err := b.active.Truncate(c.end); err != nil {
		return err
	}
	c.size, c.blank = c.end, 0
	return nil
}

// rollBack cuts off what a failed write may have left, so that the chunk can go
// on once there is space again.
func (b *Buffer) rollBack(c *chunk) {
	if err := b.cut(c); err != nil {
		b.log.Error("failed write not rolled back: its chunk is closed", zap.String("file", chunkName(b.opt.Dir, c.seq)), zap.Error(err))
		b.closeActive(c)
	}
}

// abandon closes a chunk whose fdatasync failed at its last durable byte.
func (b *Buffer) abandon(c *chunk) {
	if err := b.cut(c); err != nil {
		b.log.Warn("chunk not cut after a failed fdatasync", zap.String("file", chunkName(b.opt.Dir, c.seq)), zap.Error(err))
	}
	b.closeActive(c)
}

func (b *Buffer) closeActive(c *chunk) {
	if err := b.active.Close(); err != nil {
		b.log.Warn("chunk not closed", zap.String("file", chunkName(b.opt.Dir, c.seq)), zap.Error(err))
	}
	b.active = nil
	b.saveIDs(c.seq) // before the chunk can be delivered and go
	b.mu.Lock()
	defer b.mu.Unlock()
	c.sealed = true
	b.room.Broadcast() // who wants to drop it may go on
	for _, cur := range b.cursors {
		cur.wake()
	}
}
