package buffer

import (
	"sync"
	"testing"
	"time"
)

// later appends entries that wait for Commit.
func later(t *testing.T, b *Buffer, first, last, size int) (all []outcome) {
	t.Helper()
	for n := first; n < last; n++ {
		o := newOutcome()
		if err := b.AppendLater(t.Context(), entry(n, size), o); err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

// requireTold fails unless all outcomes are there already, and nil.
func requireTold(t *testing.T, all []outcome) {
	t.Helper()
	for n, o := range all {
		select {
		case err := <-o:
			if err != nil {
				t.Errorf("entry %d: %v", n, err)
			}
		default:
			t.Errorf("entry %d has no outcome yet", n)
		}
	}
}

// rest waits until the committer has done with the last commit.
func rest(t *testing.T, b *Buffer) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for busy := true; busy; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		busy = b.committing || b.due
		b.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("the committer does not rest")
		}
	}
}

// holdWrite makes the next write wait for release; writing is closed once it does.
func holdWrite(m *memFS) (writing, release chan struct{}) {
	writing, release = make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.setFail(func(op, _ string) error {
		if op == "write" {
			once.Do(func() { close(writing); <-release })
		}
		return nil
	})
	return writing, release
}

// TestCommit: what was appended for later is committed by Commit itself, as one
// commit, and by nobody before.
func TestCommit(t *testing.T) {
	b := open(t, Options{Dir: "/b", FS: newMemFS()})
	b.Commit() // nothing
	all := later(t, b, 0, 5, 100)
	put(t, b, 5, 6, 100) // the committer takes the others along
	requireTold(t, all)
	rest(t, b)
	if s := b.Stats(); s.Commits != 1 || s.Entries != 6 {
		t.Fatalf("%d commits of %d entries, want one of 6", s.Commits, s.Entries)
	}
	all = later(t, b, 6, 11, 100)
	time.Sleep(20 * time.Millisecond) // for a committer that were to wake
	if s := b.Stats(); s.Commits != 1 {
		t.Fatal("committed before Commit")
	}
	b.Commit()
	requireTold(t, all)
	if s := b.Stats(); s.Commits != 2 || s.Entries != 11 {
		t.Errorf("%d commits of %d entries, want 2 of 11", s.Commits, s.Entries)
	}
	all = later(t, b, 11, 12, 100)
	b.CommitSoon()
	if err := all[0].wait(t); err != nil {
		t.Error(err)
	}
	take(t, b, "out", 0, 12, 100, 1<<20)
	requireBalance(t, b)
}

// TestCommitBesideCommitter: while a commit is under way Commit does not wait for
// it, and what was appended is in the next one.
func TestCommitBesideCommitter(t *testing.T) {
	m := newMemFS()
	b := open(t, Options{Dir: "/b", FS: m})
	put(t, b, 0, 1, 100)
	writing, release := holdWrite(m)
	first := newOutcome()
	if err := b.Append(t.Context(), entry(1, 100), first); err != nil {
		t.Fatal(err)
	}
	<-writing
	all := later(t, b, 2, 4, 100)
	b.Commit()
	if len(all[0]) > 0 {
		t.Error("committed beside a commit")
	}
	close(release)
	for _, o := range append(all, first) {
		if err := o.wait(t); err != nil {
			t.Error(err)
		}
	}
	take(t, b, "out", 0, 4, 100, 1<<20)
}

// TestSlowCommit: where commits are slow Commit does not make them.
func TestSlowCommit(t *testing.T) {
	m := newMemFS()
	b := open(t, Options{Dir: "/b", FS: m})
	b.mu.Lock()
	b.took = 2 * slowCommit
	b.mu.Unlock()
	writing, release := holdWrite(m)
	all := later(t, b, 0, 2, 100)
	b.Commit() // would wait for release
	<-writing
	close(release)
	for _, o := range all {
		if err := o.wait(t); err != nil {
			t.Error(err)
		}
	}
	n := 2
	for slow := true; slow; n++ { // until the mean says that they are fast
		put(t, b, n, n+1, 100)
		b.mu.Lock()
		slow = b.took > slowCommit
		b.mu.Unlock()
	}
	rest(t, b)
	all = later(t, b, n, n+1, 100)
	b.Commit()
	requireTold(t, all)
}

// TestLaterWithoutCommit: entries for which Commit is never called do not hold up
// those that wait for room, nor Close.
func TestLaterWithoutCommit(t *testing.T) {
	const size = maxPending / 3
	b := open(t, Options{Dir: "/b", FS: newMemFS(), ChunkLimit: 64 << 20})
	all := later(t, b, 0, 8, size) // the next commit has room for two or three
	closeBuffer(t, b)
	requireTold(t, all)
}

// TestCommitByMany: Append, AppendLater, Commit and Close at once.
func TestCommitByMany(t *testing.T) {
	const each = 200
	b := open(t, Options{Dir: "/b", FS: newMemFS(), ChunkLimit: 64 << 10})
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range each {
				o := newOutcome()
				var err error
				if e := entry(w*each+i, 10*w); w%2 == 0 {
					err = b.Append(t.Context(), e, o)
				} else if err = b.AppendLater(t.Context(), e, o); w > 1 || i%3 == 0 {
					b.Commit()
				} else {
					b.CommitSoon()
				}
				if err == nil {
					err = o.wait(t)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	s := b.Stats()
	if s.Entries != 6*each {
		t.Errorf("%d entries, want %d", s.Entries, 6*each)
	}
	requireBalance(t, b)
}
