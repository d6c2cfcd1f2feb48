package buffer

import (
	"context"
	"slices"
	"testing"
	"time"
)

// TestReadFromMemory: a cursor that keeps up reads no disk, for small commits and
// large ones; one that has fallen behind reads the same bytes from there.
func TestReadFromMemory(t *testing.T) {
	for _, size := range []int{10, 5000, 200_000, 2 << 20} {
		m := newMemFS()
		b := open(t, Options{Dir: "/b", FS: m, ChunkLimit: 8 << 20, Cursors: []string{"out", "slow"}})
		const rounds, each = 3, 5
		for round := range rounds {
			put(t, b, round*each, (round+1)*each, size)
			take(t, b, "out", round*each, each, size, 1<<20)
		}
		if s := b.Stats(); s.DiskReads != 0 {
			t.Errorf("entries of %d bytes: %d reads of the disk by a cursor that keeps up", size, s.DiskReads)
		}
		if b.recents.bytes > recentLimit {
			t.Errorf("%d bytes of recent commits", b.recents.bytes)
		}
		take(t, b, "slow", 0, rounds*each, size, 1<<20)
		requireEmpty(t, b, "out")
		requireEmpty(t, b, "slow")
		requireBalance(t, b)
		if n := len(b.recents.list); n != 0 {
			t.Errorf("%d commits are kept although all cursors have passed them", n)
		}
		if size > 1<<20 && b.Stats().DiskReads == 0 {
			t.Error("all was kept in memory")
		}
	}
}

// TestReadWhileForgetting reads, from memory and from disk, while commits are
// forgotten under the reader's hands: every entry comes, whole and in order.
func TestReadWhileForgetting(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	const entries = 400
	size := func(n int) int { return n * 7919 % 300_000 }
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for n := range entries {
			o := newOutcome()
			if err := b.Append(context.Background(), entry(n, size(n)), o); err != nil {
				failed <- err
				return
			}
			if n%3 == 0 {
				if err := <-o; err != nil {
					failed <- err
					return
				}
			}
		}
	}()
	c := b.cursors[0]
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for n := 0; n < entries; {
		batch, err := c.Next(ctx, 1<<20)
		if err != nil {
			t.Fatalf("entry %d: %v", n, err)
		}
		if n%5 == 0 {
			time.Sleep(5 * time.Millisecond) // falls behind
		}
		for _, e := range batch.Entries {
			requireEntry(t, e, entry(n, size(n)))
			n++
		}
		if err := c.Commit(batch, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	requireBalance(t, b)
}

// TestBorrowedStays: what a batch has of the commits in memory stays as it is until
// the batch is committed, also when they are let go of meanwhile and others come; then
// it is used again. Small commits share a page, large ones have pieces.
func TestBorrowedStays(t *testing.T) {
	for _, size := range []int{100, 10_000, 150_000, 700_000} {
		b := open(t, Options{Dir: "/b", FS: newMemFS(), Cursors: []string{"out"}})
		const each = 8
		b.recents.limit = each * (int64(size)/segmentSize + 1) * segmentSize
		c := b.cursors[0]
		put(t, b, 0, each, size)
		n := 0
		for round := 1; round < 4; round++ {
			batch, err := c.Next(t.Context(), 4<<20)
			if err != nil {
				t.Fatal(err)
			}
			lent := slices.Clone(c.spaces[c.space].borrowed)
			if round == 1 && len(lent) == 0 {
				t.Fatalf("entries of %d bytes: nothing was in memory", size)
			}
			put(t, b, round*each, (round+1)*each, size)
			for _, e := range batch.Entries {
				requireEntry(t, e, entry(n, size))
				n++
			}
			if err := c.Commit(batch, nil); err != nil {
				t.Fatal(err)
			}
			for _, r := range lent {
				if r.slab.lent != 0 {
					t.Errorf("entries of %d bytes: memory is lent after the batch is committed", size)
				}
			}
		}
		if kept := b.recents.bytes; kept > b.recents.limit {
			t.Errorf("entries of %d bytes: %d bytes kept, the limit is %d", size, kept, b.recents.limit)
		}
	}
}

// TestGather: it ends when so much waits, and not before.
func TestGather(t *testing.T) {
	b := open(t, Options{Dir: "/b", FS: newMemFS()})
	c := b.cursors[0]
	put(t, b, 0, 2, 10)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Gather(ctx, 5*BlockSize); err == nil {
		t.Fatal("Gather ended with 2 blocks")
	}
	done := make(chan error)
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() { done <- c.Gather(ctx, 5*BlockSize) }()
	put(t, b, 2, 5, 10)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	take(t, b, "out", 0, 5, 10, 1<<20)
}
