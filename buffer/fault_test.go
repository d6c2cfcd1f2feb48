package buffer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// try appends entry n and returns its outcome.
func try(t *testing.T, b *Buffer, n, size int) error {
	t.Helper()
	o := newOutcome()
	if err := b.Append(t.Context(), entry(n, size), o); err != nil {
		return err
	}
	return o.wait(t)
}

// failNth fails the n-th operation op on a file whose name begins so, and the
// times-1 after it.
func failNth(op, prefix string, n, times int, err error) func(string, string) error {
	return func(o, name string) error {
		if o != op || !strings.HasPrefix(name, prefix) {
			return nil
		}
		n--
		if n <= 0 && n > -times {
			return err
		}
		return nil
	}
}

// TestFailures makes one operation fail at each place where a commit can: what
// was refused is not delivered, what was not is, also after a restart.
func TestFailures(t *testing.T) {
	for _, op := range []string{"create", "write", "datasync", "truncate", "syncdir", "remove"} {
		for nth := 1; nth <= 8; nth++ {
			for _, times := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s/%d/%d", op, nth, times), func(t *testing.T) {
					m := newMemFS()
					o := Options{Dir: "/b", FS: m, ChunkLimit: 3 * BlockSize, TotalLimit: 1 << 20, Cursors: []string{"out"}}
					b := open(t, o)
					m.mu.Lock()
					m.fail = failNth(op, "", nth, times, syscall.EIO)
					if op == "syncdir" || op == "truncate" {
						// A truncate happens only after something else failed.
						other := failNth("write", chunkPrefix, 2, 1, syscall.ENOSPC)
						first := m.fail
						m.fail = func(op, name string) error { return errors.Join(first(op, name), other(op, name)) }
					}
					m.mu.Unlock()
					acked := map[string]bool{}
					for n := range 12 {
						if err := try(t, b, n, 500); err == nil {
							acked[fmt.Sprintf("tag.%d", n)] = true
						}
					}
					if len(acked) < 5 {
						t.Fatalf("only %d entries were stored: it does not recover", len(acked))
					}
					requireBalance(t, b)
					m.mu.Lock()
					m.fail = nil
					m.mu.Unlock()
					if err := try(t, b, 12, 500); err != nil {
						t.Fatalf("it does not recover: %v", err)
					}
					if s := b.Stats(); s.Failing != nil || s.FailedEntries != uint64(12-len(acked)) {
						t.Errorf("failing %v, %d entries refused of %d", s.Failing, s.FailedEntries, 12-len(acked))
					}
					acked["tag.12"] = true
					closeBuffer(t, b)
					b = open(t, o)
					c := b.cursors[0]
					for len(acked) > 0 {
						ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
						batch, err := c.Next(ctx, 10_000)
						cancel()
						if err != nil {
							t.Fatalf("%v; not delivered: %v", err, acked)
						}
						for _, e := range batch.Entries {
							delete(acked, string(e.Tag))
						}
						if err := c.Commit(batch, nil); err != nil {
							t.Fatal(err)
						}
					}
					requireBalance(t, b)
				})
			}
		}
	}
}

// TestFailedDatasyncIsFinal: nothing more goes to the chunk, its last group is
// stored in another.
func TestFailedDatasyncIsFinal(t *testing.T) {
	m := newMemFS()
	b := open(t, Options{Dir: "/b", FS: m})
	put(t, b, 0, 2, 100)
	m.mu.Lock()
	m.fail = failNth("datasync", chunkPrefix, 1, 1, syscall.EIO)
	m.mu.Unlock()
	put(t, b, 2, 4, 100)
	m.mu.Lock()
	size := len(m.names[chunkName("/b", 1)].data)
	m.mu.Unlock()
	if size != 3*BlockSize {
		t.Errorf("the first chunk has %d bytes, want the header and 2 commits", size)
	}
	if s := b.Stats(); s.Chunks != 2 || s.FailedCommits != 0 {
		t.Errorf("%+v, want a second chunk", s)
	}
	take(t, b, "out", 0, 4, 100, 1<<20)
	requireEmpty(t, b, "out")
	requireBalance(t, b)
}

// TestFailedGroupDoesNotComeBack: a group whose fdatasync failed and that could not
// be cut off either, stored in another chunk, at once or when it is sent again, is
// there once after a restart and after a power cut that kept all of its bytes.
func TestFailedGroupDoesNotComeBack(t *testing.T) {
	for _, times := range []int{1, 2} { // at the second, the sender is refused
		for _, crash := range []bool{false, true} {
			m := newMemFS()
			o := Options{Dir: "/b", FS: m}
			b := open(t, o)
			put(t, b, 0, 2, 100)
			sync := failNth("datasync", chunkPrefix, 1, 1, syscall.EIO)
			if times == 2 {
				// Between them is the datasync of the second chunk's header.
				second := failNth("datasync", chunkPrefix, 3, 1, syscall.EIO)
				first := sync
				sync = func(op, name string) error { return errors.Join(first(op, name), second(op, name)) }
			}
			m.mu.Lock()
			m.fail = func(op, name string) error {
				if op == "truncate" {
					return syscall.EIO
				}
				return sync(op, name)
			}
			m.mu.Unlock()
			if err := try(t, b, 2, 100); (err != nil) != (times == 2) {
				t.Fatal(err)
			}
			m.mu.Lock()
			m.fail = nil
			m.mu.Unlock()
			put(t, b, 4-times, 5, 100)
			if crash {
				m.mu.Lock()
				after := m.crash(cutKeep, nil)
				m.mu.Unlock()
				closeBuffer(t, b)
				o.FS = after
			} else {
				closeBuffer(t, b)
			}
			b = open(t, o)
			take(t, b, "out", 0, 5, 100, 1<<20)
			requireEmpty(t, b, "out")
			requireBalance(t, b)
			if n := b.Stats().DamagedChunks; n > 0 {
				t.Errorf("%d chunks kept as damaged", n)
			}
			closeBuffer(t, b)
		}
	}
}

// TestDiskFull fills the disk: refusals, no lost entry, and the outputs free
// space without any to begin with.
func TestDiskFull(t *testing.T) {
	m := newMemFS()
	m.space = 4 << 20
	o := Options{Dir: "/b", FS: m, ChunkLimit: 256 << 10}
	b := open(t, o)
	stored := 0
	for {
		err := try(t, b, stored, 50_000)
		if err == nil {
			stored++
			continue
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		break
	}
	s := b.Stats()
	if s.FailedCommits != 1 || s.FailedEntries != 1 || !errors.Is(s.Failing, syscall.ENOSPC) || stored < 20 {
		t.Errorf("%d stored, %+v", stored, s)
	}
	requireBalance(t, b)
	// Others take what is left.
	m.mu.Lock()
	m.space = 0
	m.mu.Unlock()
	for n := range 3 {
		if err := try(t, b, fresh+n, 50_000); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("stored on a full disk: %v", err)
		}
	}
	take(t, b, "out", 0, stored, 50_000, 1)
	put(t, b, stored, stored+3, 50_000)
	if b.Stats().Failing != nil {
		t.Error("still failing")
	}
	requireBalance(t, b)
	closeBuffer(t, b)
	b = open(t, o)
	take(t, b, "out", stored, 3, 50_000, 1<<20)
	requireEmpty(t, b, "out")
}

// TestFailedCommitLetsWaitersGo: an Append that waits for room which a commit
// under way takes must go on when that one fails, and when it succeeds.
func TestFailedCommitLetsWaitersGo(t *testing.T) {
	for _, overflow := range []Overflow{OverflowBlock, OverflowDropOldest} {
		for _, failure := range []error{nil, syscall.EIO} {
			t.Run(fmt.Sprintf("%d/%v", overflow, failure), func(t *testing.T) {
				m := newMemFS()
				b := open(t, Options{Dir: "/b", FS: m, TotalLimit: 8 * BlockSize, Overflow: overflow})
				put(t, b, 0, 1, 10)
				take(t, b, "out", 0, 1, 10, 1<<20)
				under, hold := make(chan struct{}), make(chan struct{})
				once := true
				m.mu.Lock()
				m.fail = func(op, name string) error {
					if op != "write" || !strings.HasPrefix(name, chunkPrefix) || !once {
						return nil
					}
					once = false
					m.mu.Unlock()
					close(under)
					<-hold
					m.mu.Lock()
					return failure
				}
				m.mu.Unlock()
				first, second := newOutcome(), newOutcome()
				if err := b.Append(t.Context(), entry(1, 7*BlockSize), first); err != nil {
					t.Fatal(err)
				}
				<-under
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				appended := make(chan error)
				go func() { appended <- b.Append(ctx, entry(2, 3*BlockSize), second) }()
				// It waits now, or will: both must end well.
				time.Sleep(20 * time.Millisecond)
				close(hold)
				if err := first.wait(t); !errors.Is(err, failure) {
					t.Fatal(err)
				}
				if overflow == OverflowBlock && failure == nil {
					take(t, b, "out", 1, 1, 7*BlockSize, 1<<20)
				}
				if err := <-appended; err != nil {
					t.Fatalf("Append = %v", err)
				}
				if err := second.wait(t); err != nil {
					t.Fatal(err)
				}
				requireBalance(t, b)
			})
		}
	}
}

// TestEntryBeyondTotalLimit is refused at once and costs nobody else anything.
func TestEntryBeyondTotalLimit(t *testing.T) {
	for _, overflow := range []Overflow{OverflowThrow, OverflowBlock, OverflowDropOldest} {
		b := open(t, Options{Dir: t.TempDir(), TotalLimit: 10 * BlockSize, Overflow: overflow})
		put(t, b, 0, 3, 10)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.Append(ctx, entry(3, 11*BlockSize), newOutcome()); !errors.Is(err, ErrFull) {
			t.Fatalf("overflow %d: Append = %v, want ErrFull", overflow, err)
		}
		take(t, b, "out", 0, 3, 10, 1<<20)
		requireBalance(t, b)
	}
}

// TestMissingPadding cuts the chunk in the padding behind its last entry, which
// is whole: it must be delivered, and reading must not end there.
func TestMissingPadding(t *testing.T) {
	for _, newest := range []bool{true, false} {
		dir := t.TempDir()
		b := open(t, Options{Dir: dir})
		put(t, b, 0, 3, 500)
		closeBuffer(t, b)
		if err := os.Truncate(chunkName(dir, 1), 4*BlockSize-1000); err != nil {
			t.Fatal(err)
		}
		o := Options{Dir: dir}
		if !newest {
			p := make([]byte, BlockSize)
			frame{magic: magicHeader, chunk: 2, written: now()}.encode(p)
			if err := os.WriteFile(chunkName(dir, 2), p, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b = open(t, o)
		take(t, b, "out", 0, 3, 500, 1<<20)
		put(t, b, 3, 4, 500)
		take(t, b, "out", 3, 1, 500, 1<<20)
		requireEmpty(t, b, "out")
		requireBalance(t, b)
		closeBuffer(t, b)
	}
}

// TestTruncatedInTheMiddle cuts a chunk that others follow within a commit of
// several entries: the whole ones are delivered, the others counted.
func TestTruncatedInTheMiddle(t *testing.T) {
	m := newMemFS()
	o := Options{Dir: "/b", FS: m, ChunkLimit: 64 << 10}
	b := open(t, o)
	put(t, b, 0, 1, 10)
	together(t, m, b, 1, 6, 3000)
	put(t, b, 6, 7, 60_000)
	closeBuffer(t, b)
	f := m.names[chunkName("/b", 1)]
	f.data = f.data[:2*BlockSize+9000] // 2 of the 5 entries
	b = open(t, o)
	lost := 0
	for n := 3; n < 6; n++ {
		lost += entry(n, 0).Events
	}
	if got := tags(t, b, "out", 4, 1<<20); got != "0 1 2 6" {
		t.Errorf("delivered %s", got)
	}
	requireEmpty(t, b, "out")
	requireBalance(t, b)
	if got := b.Stats().Cursors[0].Dropped[CauseDamaged]; got != uint64(lost) {
		t.Errorf("%d events counted as damaged, want %d", got, lost)
	}
	if m.names[chunkName("/b", 1)+damagedSuffix] == nil {
		t.Error("the damaged chunk is not kept")
	}
}

// tags reads and commits batches until n entries came and returns the numbers in
// their tags.
func tags(t *testing.T, b *Buffer, cursor string, n, maxBytes int) string {
	t.Helper()
	c, err := b.Cursor(cursor)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var got []string
	for len(got) < n {
		batch, err := c.Next(ctx, maxBytes)
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		for _, e := range batch.Entries {
			got = append(got, strings.TrimPrefix(string(e.Tag), "tag."))
		}
		if err := c.Commit(batch, nil); err != nil {
			t.Fatal(err)
		}
	}
	return strings.Join(got, " ")
}

// together appends the entries so that one commit takes all of them.
func together(t *testing.T, m *memFS, b *Buffer, first, last, size int) {
	t.Helper()
	under, hold := make(chan struct{}), make(chan struct{})
	once := true
	m.mu.Lock()
	m.fail = func(op, name string) error {
		if op == "write" && once {
			once = false
			m.mu.Unlock()
			close(under)
			<-hold
			m.mu.Lock()
		}
		return nil
	}
	m.mu.Unlock()
	var outcomes []outcome
	add := func(e *Entry) {
		o := newOutcome()
		if err := b.Append(t.Context(), e, o); err != nil {
			t.Fatal(err)
		}
		outcomes = append(outcomes, o)
	}
	add(entry(first, size))
	<-under
	for n := first + 1; n < last; n++ {
		add(entry(n, size))
	}
	// The first is in the commit under way, the others wait for the next.
	if s, want := b.Stats(), uint64(last-first); s.PendingEntries != want || s.PeakPendingEntries < want || s.Pending < int64(want)*int64(size) {
		t.Errorf("%d entries pending, peak %d, %d bytes; want %d", s.PendingEntries, s.PeakPendingEntries, s.Pending, want)
	}
	close(hold)
	for _, o := range outcomes {
		if err := o.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	m.mu.Lock()
	m.fail = nil
	m.mu.Unlock()
}

// TestReadUnaligned reads with a batch size that is no multiple of the block
// over a damaged frame head: the frames behind it are all delivered.
func TestReadUnaligned(t *testing.T) {
	for _, maxBytes := range []int{1, 5000, 9000, 10_000, 1 << 20} {
		dir := t.TempDir()
		o := Options{Dir: dir, ChunkLimit: 11 * BlockSize}
		b := open(t, o)
		put(t, b, 0, 11, 500) // the last one goes to a second chunk
		closeBuffer(t, b)
		file := chunkName(dir, 1)
		p, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{2, 5} {
			p[(n+1)*BlockSize] ^= 1
		}
		if err := os.WriteFile(file, p, 0o600); err != nil {
			t.Fatal(err)
		}
		b = open(t, o)
		if got := tags(t, b, "out", 9, maxBytes); got != "0 1 3 4 6 7 8 9 10" {
			t.Errorf("%d bytes at a time: delivered %s", maxBytes, got)
		}
		requireEmpty(t, b, "out")
		requireBalance(t, b)
		if _, err := os.Stat(file + damagedSuffix); err != nil {
			t.Error(err)
		}
		closeBuffer(t, b)
	}
}

// TestDropWhileReading drops chunks under a reader's hands: no error, and each
// event is either delivered or counted.
func TestDropWhileReading(t *testing.T) {
	b := open(t, Options{Dir: filepath.Join(t.TempDir(), "b"), TotalLimit: 40 * BlockSize, ChunkLimit: 4 * BlockSize, Overflow: OverflowDropOldest})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		c := b.cursors[0]
		for {
			batch, err := c.Next(ctx, 2*BlockSize)
			if errors.Is(err, context.Canceled) {
				done <- nil
				return
			}
			if err == nil {
				err = c.Commit(batch, nil)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	// Who is ahead is for the scheduler to say: both must have happened.
	for n, both := 0, false; n < 3000 || !both && n < 300_000; {
		var outcomes []outcome
		for range 3000 {
			o := newOutcome()
			if err := b.Append(t.Context(), entry(n, 3000), o); err != nil {
				t.Fatal(err)
			}
			outcomes = append(outcomes, o)
			n++
		}
		for _, o := range outcomes {
			if err := o.wait(t); err != nil {
				t.Fatal(err)
			}
		}
		s := b.Stats()
		both = s.DroppedChunks > 0 && s.Cursors[0].Delivered > 0
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	requireBalance(t, b)
	if s := b.Stats(); s.DroppedChunks == 0 || s.Cursors[0].Delivered == 0 {
		t.Errorf("%+v: nothing was dropped, or nothing delivered", s)
	}
}

// TestForeignFiles: what the caller keeps in the directory is not logged, other
// files are, and both are left alone.
func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"rejected", "other", ".notes"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	core, logs := observer.New(zap.WarnLevel)
	closeBuffer(t, open(t, Options{Dir: dir, Beside: []string{"rejected"}, Log: zap.New(core)}))
	found := logs.FilterMessageSnippet("not weir's").All()
	if len(found) != 1 || found[0].ContextMap()["file"] != "other" {
		t.Errorf("%v, want one line about the other file", found)
	}
	for _, name := range []string{"rejected", "other", ".notes"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
