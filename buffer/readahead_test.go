package buffer

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// behind opens a buffer whose commits do not stay in memory.
func behind(t *testing.T, o Options) *Buffer {
	t.Helper()
	b := open(t, o)
	b.mu.Lock()
	b.recents.limit = 0
	b.mu.Unlock()
	return b
}

// setFailRead makes reads of files ask fail.
func (m *memFS) setFailRead(fail func(name string) error) {
	m.set(func() {
		m.failRead = nil
		if fail != nil {
			m.failRead = func(op, name string) error {
				if op != "read" {
					return nil
				}
				return fail(name)
			}
		}
	})
}

// next takes a batch and checks its entries; it returns the number of the one
// behind them.
func next(t *testing.T, c *Cursor, first, size, maxBytes int) (*Batch, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	batch, err := c.Next(ctx, maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range batch.Entries {
		requireEntry(t, e, entry(first, size))
		first++
	}
	return batch, first
}

func commit(t *testing.T, c *Cursor, batch *Batch) {
	t.Helper()
	if err := c.Commit(batch, nil); err != nil {
		t.Fatal(err)
	}
}

// TestReadAhead: while a batch is out the next one is read, over the ends of
// chunks; entries of the one that is out stay as they are. Caught up, the memory is
// given back.
func TestReadAhead(t *testing.T) {
	const entries, size, maxBytes = 40, 3000, 4 * BlockSize
	m := newMemFS()
	b := behind(t, Options{Dir: "/b", FS: m, ChunkLimit: 10 * BlockSize, Cursors: []string{"out", "other"}})
	put(t, b, 0, entries, size)
	c, n, batches := b.cursors[0], 0, 0
	for n < entries-4 { // a last batch that is not full is not read ahead
		batch, end := next(t, c, n, size, maxBytes)
		if c.fetch == nil {
			t.Fatalf("entry %d: nothing reads ahead", end)
		}
		<-c.fetch.done
		if s := b.Stats(); s.ReadAheadBytes < BlockSize || s.ReadAheadBytes > maxBytes {
			t.Errorf("%d bytes of memory to read %d ahead", s.ReadAheadBytes, maxBytes)
		}
		for i, e := range batch.Entries { // not overwritten by the next one
			requireEntry(t, e, entry(n+i, size))
		}
		commit(t, c, batch)
		n, batches = end, batches+1
	}
	for n < entries {
		batch, end := next(t, c, n, size, maxBytes)
		commit(t, c, batch)
		n, batches = end, batches+1
	}
	s := b.Stats()
	if s.ReadAheads < uint64(batches)-2 || s.ReadAheadBytes != 0 {
		t.Errorf("%d of %d batches read ahead, %d bytes of memory in the end", s.ReadAheads, batches, s.ReadAheadBytes)
	}
	// The other cursor has not moved, and reads ahead for itself.
	take(t, b, "other", 0, entries, size, maxBytes)
	requireEmpty(t, b, "out")
	requireBalance(t, b)
}

// TestReadAheadOtherSize: a Next with another size gets what it asks for.
func TestReadAheadOtherSize(t *testing.T) {
	b := behind(t, Options{Dir: "/b", FS: newMemFS(), ChunkLimit: 10 * BlockSize})
	put(t, b, 0, 30, 3000)
	n := 0
	for i := 0; n < 30; i++ {
		maxBytes := []int{4, 4, 2, 1, 9, 4}[i%6] * BlockSize
		batch, end := next(t, b.cursors[0], n, 3000, maxBytes)
		if end-n > maxBytes/BlockSize {
			t.Fatalf("%d entries in a batch of at most %d", end-n, maxBytes/BlockSize)
		}
		commit(t, b.cursors[0], batch)
		n = end
	}
	requireBalance(t, b)
}

// TestReadAheadLongCommit: one that is longer than a batch is not read ahead, so
// that a cursor has the memory of one at most.
func TestReadAheadLongCommit(t *testing.T) {
	b := behind(t, Options{Dir: "/b", FS: newMemFS(), ChunkLimit: 1 << 20})
	const size, maxBytes = 100_000, 16 * BlockSize
	put(t, b, 0, 6, 1000)
	put(t, b, 6, 12, size)
	n, c := 0, b.cursors[0]
	for n < 6 {
		batch, end := next(t, c, n, 1000, 3*BlockSize)
		commit(t, c, batch)
		n = end
	}
	for n < 12 {
		batch, end := next(t, c, n, size, maxBytes)
		if s := b.Stats(); s.ReadAheadBytes > maxBytes {
			t.Errorf("%d bytes of memory to read %d ahead", s.ReadAheadBytes, maxBytes)
		}
		commit(t, c, batch)
		n = end
	}
	requireEmpty(t, b, "out")
}

// TestReadAheadFails: an error while reading ahead is nobody's; if it lasts, Next
// has it, and goes on when it is over. It is no damage.
func TestReadAheadFails(t *testing.T) {
	m := newMemFS()
	b := behind(t, Options{Dir: "/b", FS: m, ChunkLimit: 10 * BlockSize})
	put(t, b, 0, 30, 3000)
	c := b.cursors[0]
	fail := func(name string) error { return syscall.EIO }
	batch, n := next(t, c, 0, 3000, 4*BlockSize)
	commit(t, c, batch)
	for i := range 2 {
		<-c.fetch.done
		batch, n = next(t, c, n, 3000, 4*BlockSize) // read ahead
		<-c.fetch.done
		commit(t, c, batch)
		m.setFailRead(fail)
		batch, n = next(t, c, n, 3000, 4*BlockSize) // read before, the one after fails
		<-c.fetch.done
		commit(t, c, batch)
		if i == 1 {
			for range 3 {
				if got, err := c.Next(t.Context(), 4*BlockSize); !errors.Is(err, syscall.EIO) {
					t.Fatalf("Next = %v, %v, want EIO", got, err)
				}
			}
		}
		m.setFailRead(nil)
	}
	take(t, b, "out", n, 30-n, 3000, 4*BlockSize)
	requireEmpty(t, b, "out")
	requireBalance(t, b)
	if s := b.Stats(); s.DamagedChunks > 0 || len(s.Cursors[0].Dropped) > 0 {
		t.Errorf("%+v", s)
	}
}

// held makes reads of chunks wait until release is called; under is closed when
// the first one does.
func held(m *memFS) (under <-chan struct{}, release func()) {
	waits, hold := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	m.setFailRead(func(name string) error {
		if strings.HasPrefix(name, chunkPrefix) || strings.HasPrefix(name, sparePrefix) {
			if first.CompareAndSwap(false, true) {
				close(waits)
			}
			<-hold
		}
		return nil
	})
	return waits, func() { m.setFailRead(nil); close(hold) }
}

// TestDropWhileReadingAhead drops the chunk that is being read ahead and writes
// other entries over its file before the read goes on: none of it is delivered, all
// of it is counted as dropped, and nothing is taken for damage.
func TestDropWhileReadingAhead(t *testing.T) {
	const chunk = 8 * BlockSize
	for _, out := range []int{3, 7} { // within the chunk, and over its end
		m := newMemFS()
		b := behind(t, Options{Dir: "/b", FS: m, ChunkLimit: chunk, TotalLimit: 8 << 20, Overflow: OverflowDropOldest})
		b.mu.Lock()
		b.opt.TotalLimit = 30 * BlockSize // smaller than Open would take for that limit of a chunk
		b.mu.Unlock()
		put(t, b, 0, 28, 3000) // 7 in each chunk
		c := b.cursors[0]
		// The batch itself is read before reads are held.
		ready, hold := make(chan struct{}), make(chan struct{})
		var reads atomic.Int32
		m.setFailRead(func(name string) error {
			if strings.HasPrefix(name, chunkPrefix) && reads.Add(1) == 2 {
				close(ready)
				<-hold
			}
			return nil
		})
		batch, n := next(t, c, 0, 3000, out*BlockSize)
		if n != out {
			t.Fatalf("%d entries, want %d", n, out)
		}
		<-ready
		put(t, b, 28, 60, 3000) // drops, and uses the files again
		s := b.Stats()
		if s.DroppedChunks < 3 {
			t.Fatalf("%d chunks dropped", s.DroppedChunks)
		}
		for i, e := range batch.Entries {
			requireEntry(t, e, entry(i, 3000))
		}
		close(hold)
		commit(t, c, batch)
		requireBalance(t, b)
		s = b.Stats()
		first := 60 - int(s.Cursors[0].Remaining.Entries)
		take(t, b, "out", first, 60-first, 3000, out*BlockSize)
		requireEmpty(t, b, "out")
		requireBalance(t, b)
		want := uint64(0)
		for i := n; i < first; i++ {
			want += entryEvents(i)
		}
		if s := b.Stats(); s.Cursors[0].Dropped[CauseOverflow] != want || len(s.Cursors[0].Dropped) != 1 || s.DamagedChunks > 0 {
			t.Errorf("%+v, want %d events dropped", s.Cursors[0], want)
		}
	}
}

// TestReadAheadDamage reads ahead over damage: what is sound comes, once, what is
// lost is counted, once, and the chunk is set aside, also while the next one of
// them is read.
func TestReadAheadDamage(t *testing.T) {
	m := newMemFS()
	b := behind(t, Options{Dir: "/b", FS: m, ChunkLimit: 8 * BlockSize})
	put(t, b, 0, 28, 3000) // 7 in each chunk
	lost := uint64(0)
	m.set(func() {
		for _, n := range []int{4, 8, 9, 10, 11, 12, 13, 15} { // nothing but the first of the second chunk
			m.names[chunkName("/b", uint64(n/7+1))].data[(1+n%7)*BlockSize+200] ^= 1
			lost += entryEvents(n)
		}
	})
	if got := tags(t, b, "out", 20, 2*BlockSize); got != "0 1 2 3 5 6 7 14 16 17 18 19 20 21 22 23 24 25 26 27" {
		t.Errorf("delivered %s", got)
	}
	requireEmpty(t, b, "out")
	requireBalance(t, b)
	if s := b.Stats(); s.Cursors[0].Dropped[CauseDamaged] != lost || s.ReadAheads < 5 || s.DamagedChunks != 3 {
		t.Errorf("%+v, want %d events lost, 3 chunks kept", s, lost)
	}
}

// TestReadAheadDirectoryGone: the next chunk cannot be opened ahead, nor by Next,
// which says so.
func TestReadAheadDirectoryGone(t *testing.T) {
	m := newMemFS()
	b := behind(t, Options{Dir: "/b", FS: m, ChunkLimit: 8 * BlockSize})
	put(t, b, 0, 14, 3000)
	c := b.cursors[0]
	batch, n := next(t, c, 0, 3000, 4*BlockSize)
	<-c.fetch.done
	m.set(m.vanish)
	if err := c.Commit(batch, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Commit = %v", err)
	}
	m.set(func() { m.gone = false }) // made again, empty: the cursor's file is still open
	c.log.sync = false
	commit(t, c, batch)
	batch, n = next(t, c, n, 3000, 4*BlockSize) // was read ahead
	commit(t, c, batch)
	if batch, err := c.Next(t.Context(), 4*BlockSize); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Next = %v, %v at entry %d, want that the chunk is gone", batch, err, n)
	}
	requireBalance(t, b)
	_ = b.Close(context.Background())
}

// TestReadAheadEnds: a Next whose context ends does not wait for a disk that
// stalls, and Close does: nothing is left behind that reads.
func TestReadAheadEnds(t *testing.T) {
	m := newMemFS()
	b := behind(t, Options{Dir: "/b", FS: m, ChunkLimit: 10 * BlockSize})
	put(t, b, 0, 30, 3000)
	c := b.cursors[0]
	batch, n := next(t, c, 0, 3000, 4*BlockSize)
	commit(t, c, batch)
	<-c.fetch.done
	under, release := held(m)
	batch, _ = next(t, c, n, 3000, 4*BlockSize)
	commit(t, c, batch)
	<-under
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got, err := c.Next(ctx, 4*BlockSize); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Next = %v, %v while the disk stalls", got, err)
	}
	closed := make(chan error, 1)
	go func() { closed <- b.Close(context.Background()) }()
	select {
	case err := <-closed:
		t.Fatalf("Close = %v while something reads", err)
	case <-time.After(20 * time.Millisecond):
	}
	release()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if m.opens != 0 {
		t.Errorf("%d files are open", m.opens)
	}
}

// TestReadAheadDescriptors: a cursor has one chunk open, also while it reads ahead
// over the end of one.
func TestReadAheadDescriptors(t *testing.T) {
	m := newMemFS()
	b := behind(t, Options{Dir: "/b", FS: m, ChunkLimit: 4 * BlockSize})
	put(t, b, 0, 60, 3000)
	m.set(func() { m.peak = m.opens })
	before := m.peak
	take(t, b, "out", 0, 60, 3000, 2*BlockSize)
	if m.peak > before+2 { // the chunk that is read, and the cursor's
		t.Errorf("%d files open, %d before", m.peak, before)
	}
	if s := b.Stats(); s.ReadAheads < 15 {
		t.Errorf("%d batches read ahead", s.ReadAheads)
	}
}
