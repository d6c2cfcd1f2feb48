package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// outcome is a Waiter that can be waited for.
type outcome chan error

func (o outcome) Done(err error) { o <- err }

func (o outcome) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-o:
		return err
	case <-time.After(time.Minute):
		t.Fatal("no outcome")
		return nil
	}
}

func newOutcome() outcome { return make(outcome, 1) }

func open(t *testing.T, o Options) *Buffer {
	t.Helper()
	if o.Cursors == nil {
		o.Cursors = []string{"out"}
	}
	if _, ok := o.FS.(*memFS); ok && o.ChunkLimit == 0 {
		o.ChunkLimit = 1 << 20
	}
	if o.Log == nil {
		o.Log = zaptest.NewLogger(t)
	}
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.Background()) })
	return b
}

func closeBuffer(t *testing.T, b *Buffer) {
	t.Helper()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func entry(n, size int) *Entry {
	payload := bytes.Repeat([]byte{byte('a' + n%26)}, size)
	return &Entry{Tag: fmt.Appendf(nil, "tag.%d", n), ChunkID: fmt.Appendf(nil, "id-%d\n", n),
		Received: time.Unix(1700000000, int64(n)), Events: n%7 + 1, Flags: Flags(n % 3),
		Payload: [][]byte{payload[:size/3], payload[size/3:]}}
}

// put appends entries first to last-1, each durable before the next.
func put(t *testing.T, b *Buffer, first, last, size int) {
	t.Helper()
	for n := first; n < last; n++ {
		o := newOutcome()
		if err := b.Append(t.Context(), entry(n, size), o); err != nil {
			t.Fatal(err)
		}
		if err := o.wait(t); err != nil {
			t.Fatal(err)
		}
	}
}

// take reads batches until n entries came, commits each and checks that they
// are first, first+1, …
func take(t *testing.T, b *Buffer, cursor string, first, n, size, maxBytes int) {
	t.Helper()
	c, err := b.Cursor(cursor)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for got := 0; got < n; {
		batch, err := c.Next(ctx, maxBytes)
		if err != nil {
			t.Fatalf("entry %d: %v", first+got, err)
		}
		for _, e := range batch.Entries {
			requireEntry(t, e, entry(first+got, size))
			got++
		}
		if err := c.Commit(batch, fmt.Appendf(nil, "state %d", first+got)); err != nil {
			t.Fatal(err)
		}
	}
}

func requireEntry(t *testing.T, got Entry, want *Entry) {
	t.Helper()
	if !sameEntry(&got, want) {
		t.Fatalf("entry %q %q, want %q", got.Tag, got.ChunkID, want.Tag)
	}
}

func sameEntry(got, want *Entry) bool {
	return bytes.Equal(got.Tag, want.Tag) && bytes.Equal(got.ChunkID, want.ChunkID) && got.Received.Equal(want.Received) &&
		got.Events == want.Events && got.Flags == want.Flags && bytes.Equal(bytes.Join(got.Payload, nil), bytes.Join(want.Payload, nil))
}

// requireEmpty fails if the cursor has anything to read.
func requireEmpty(t *testing.T, b *Buffer, cursor string) {
	t.Helper()
	c, err := b.Cursor(cursor)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if batch, err := c.Next(ctx, 1<<20); !errors.Is(err, context.Canceled) {
		t.Fatalf("Next = %+v, %v, want nothing to read", batch, err)
	}
}

// requireBalance checks recovered + appended = delivered + remaining + dropped.
func requireBalance(t *testing.T, b *Buffer) {
	t.Helper()
	s := b.Stats()
	for _, c := range s.Cursors {
		var dropped uint64
		for _, n := range c.Dropped {
			dropped += n
		}
		if c.Recovered+s.Events != c.Delivered+c.Remaining.Events+dropped {
			t.Errorf("cursor %s: recovered %d + appended %d != delivered %d + remaining %d + dropped %v",
				c.Name, c.Recovered, s.Events, c.Delivered, c.Remaining.Events, c.Dropped)
		}
	}
}

func TestRoundTripAndRestart(t *testing.T) {
	for _, size := range []int{0, 1, 100, 4000, 4096, 100_000, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			o := Options{Dir: filepath.Join(t.TempDir(), "b"), ChunkLimit: 300_000, Cursors: []string{"x", "y"}}
			b := open(t, o)
			put(t, b, 0, 10, size)
			take(t, b, "x", 0, 4, size, 1)
			requireBalance(t, b)
			closeBuffer(t, b)

			b = open(t, o)
			x, err := b.Cursor("x")
			if err != nil {
				t.Fatal(err)
			}
			if got := string(x.State()); got != "state 4" {
				t.Errorf("state %q after the restart", got)
			}
			put(t, b, 10, 12, size)
			take(t, b, "x", 4, 8, size, 1<<20)
			take(t, b, "y", 0, 12, size, 1<<20)
			requireEmpty(t, b, "x")
			requireBalance(t, b)
			closeBuffer(t, b)

			b = open(t, o)
			requireEmpty(t, b, "x")
			requireEmpty(t, b, "y")
			if s := b.Stats(); s.Backlog != 0 || s.Chunks > 1 {
				t.Errorf("delivered chunks are left: %+v", s)
			}
		})
	}
}

// TestGroupCommit appends from many goroutines: all become durable, each
// appender's entries in its order, in fewer commits than entries.
func TestGroupCommit(t *testing.T) {
	const writers, each = 64, 50
	b := open(t, Options{Dir: t.TempDir()})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				o := newOutcome()
				e := entry(i, 200)
				e.Tag = fmt.Appendf(nil, "%d", w)
				if err := b.Append(t.Context(), e, o); err != nil {
					t.Error(err)
					return
				}
				if err := <-o; err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c, err := b.Cursor("out")
	if err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	for got := 0; got < writers*each; {
		batch, err := c.Next(t.Context(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch.Entries {
			if want := fmt.Sprintf("id-%d\n", next[string(e.Tag)]); string(e.ChunkID) != want {
				t.Fatalf("writer %s: %q, want %q", e.Tag, e.ChunkID, want)
			}
			next[string(e.Tag)]++
			got++
		}
		if err := c.Commit(batch, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := b.Stats()
	if s.Commits >= writers*each {
		t.Errorf("%d commits for %d entries: none was shared", s.Commits, writers*each)
	}
	requireBalance(t, b)
}

// TestTornTail cuts the newest chunk at every length within its last commit, and
// fills the rest with rubbish or zeros: the earlier entries are all there, the
// last one is there or not.
func TestTornTail(t *testing.T) {
	base := t.TempDir()
	b := open(t, Options{Dir: base})
	put(t, b, 0, 3, 500)
	whole := b.chunks[0].end
	closeBuffer(t, b)
	file := chunkName(base, 1)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(good)) != b.fileSize() {
		t.Fatalf("chunk has %d bytes, want %d", len(good), b.fileSize())
	}
	good = good[:whole]
	last := len(good) - BlockSize
	for cut := last; cut <= len(good); cut += 37 {
		for _, rest := range []string{"missing", "zero", "rubbish"} {
			dir := t.TempDir()
			p := bytes.Clone(good)
			switch rest {
			case "missing":
				p = p[:cut]
			case "zero": // as in a file that was made at its full size
				p = append(p, make([]byte, 3*BlockSize)...)
				clear(p[cut:])
			case "rubbish":
				for i := cut; i < len(p); i++ {
					p[i] = 0xa5
				}
			}
			if err := os.WriteFile(chunkName(dir, 1), p, 0o600); err != nil {
				t.Fatal(err)
			}
			b := open(t, Options{Dir: dir})
			put(t, b, 100, 101, 10) // appending goes on
			c := b.cursors[0]
			var got []string
			for len(got) == 0 || got[len(got)-1] != "tag.100" {
				batch, err := c.Next(t.Context(), 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range batch.Entries {
					got = append(got, string(e.Tag))
				}
				if err := c.Commit(batch, nil); err != nil {
					t.Fatal(err)
				}
			}
			seen := strings.Join(got, " ")
			if seen != "tag.0 tag.1 tag.100" && seen != "tag.0 tag.1 tag.2 tag.100" {
				t.Fatalf("cut at %d, rest %s: %s", cut, rest, seen)
			}
			closeBuffer(t, b)
		}
	}
}

// TestDamageInTheMiddle flips each part of a middle commit: the others are
// delivered, the loss is counted, the file is kept.
func TestDamageInTheMiddle(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		for _, where := range []int64{0, 70, frameHead + 2, frameHead + entryHead + 200} {
			t.Run(fmt.Sprintf("sealed=%v offset=%d", sealed, where), func(t *testing.T) {
				dir := t.TempDir()
				o := Options{Dir: dir, ChunkLimit: 4 * BlockSize}
				if !sealed {
					o.ChunkLimit = 0
				}
				b := open(t, o)
				put(t, b, 0, 5, 500)
				closeBuffer(t, b)
				file := chunkName(dir, 1)
				p, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				p[2*BlockSize+where] ^= 0xff // within the second commit
				if err := os.WriteFile(file, p, 0o600); err != nil {
					t.Fatal(err)
				}
				b = open(t, o)
				c := b.cursors[0]
				var got []string
				for len(got) < 4 {
					batch, err := c.Next(t.Context(), 1<<20)
					if err != nil {
						t.Fatal(err)
					}
					for _, e := range batch.Entries {
						got = append(got, string(e.Tag))
					}
					if err := c.Commit(batch, nil); err != nil {
						t.Fatal(err)
					}
				}
				if s := strings.Join(got, " "); s != "tag.0 tag.2 tag.3 tag.4" {
					t.Errorf("delivered %s", s)
				}
				// A new chunk makes the damaged one passed.
				put(t, b, 5, 6, 500)
				take(t, b, "out", 5, 1, 500, 1<<20)
				requireEmpty(t, b, "out")
				requireBalance(t, b)
				if sealed && b.Stats().Cursors[0].Dropped[CauseDamaged] != 2 {
					t.Errorf("dropped %v, want 2 events damaged", b.Stats().Cursors[0].Dropped)
				}
				if _, err := os.Stat(file + damagedSuffix); err != nil {
					t.Errorf("the damaged chunk is not kept: %v", err)
				}
			})
		}
	}
}

// TestOldestAge: the age is that of what waits, not of what was delivered.
func TestOldestAge(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	append1 := func(received time.Time) {
		o := newOutcome()
		e := entry(1, 10)
		e.ChunkID = nil
		e.Received = received
		if err := b.Append(t.Context(), e, o); err != nil {
			t.Fatal(err)
		}
		if err := o.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	append1(time.Now().Add(-time.Hour))
	append1(time.Now())
	if age := b.Stats().OldestAge; age < time.Hour {
		t.Errorf("age %v, want an hour", age)
	}
	c := b.cursors[0]
	batch, err := c.Next(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(batch, nil); err != nil {
		t.Fatal(err)
	}
	if age := b.Stats().OldestAge; age <= 0 || age > time.Minute {
		t.Errorf("age %v with the young entry left", age)
	}
	if batch, err = c.Next(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(batch, nil); err != nil {
		t.Fatal(err)
	}
	if age := b.Stats().OldestAge; age != 0 {
		t.Errorf("age %v of nothing", age)
	}
	append1(time.Now())
	if age := b.Stats().OldestAge; age <= 0 || age > time.Minute {
		t.Errorf("age %v after a pause", age)
	}
}

func TestOverflowThrow(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir(), TotalLimit: 5 * BlockSize})
	put(t, b, 0, 5, 100)
	if err := b.Append(t.Context(), entry(5, 100), newOutcome()); !errors.Is(err, ErrFull) {
		t.Fatalf("Append = %v, want ErrFull", err)
	}
	take(t, b, "out", 0, 5, 100, 1<<20)
	put(t, b, 5, 6, 100)
	take(t, b, "out", 5, 1, 100, 1<<20)
	requireBalance(t, b)
}

func TestOverflowBlock(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir(), TotalLimit: 5 * BlockSize, Overflow: OverflowBlock})
	put(t, b, 0, 5, 100)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := b.Append(ctx, entry(5, 100), newOutcome()); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Append = %v, want it to wait", err)
	}
	o := newOutcome()
	appended := make(chan error, 1)
	go func() { appended <- b.Append(t.Context(), entry(5, 100), o) }()
	take(t, b, "out", 0, 5, 100, 1<<20)
	if err := <-appended; err != nil {
		t.Fatal(err)
	}
	if err := o.wait(t); err != nil {
		t.Fatal(err)
	}
	take(t, b, "out", 5, 1, 100, 1<<20)
	requireBalance(t, b)
}

func TestOverflowDropOldest(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir(), TotalLimit: 10 * BlockSize, Overflow: OverflowDropOldest, Cursors: []string{"out", "slow"}})
	put(t, b, 0, 4, 100)
	take(t, b, "out", 0, 2, 100, 1)
	put(t, b, 4, 100, 100)
	s := b.Stats()
	if s.Backlog > 10*BlockSize {
		t.Errorf("backlog %d over the limit", s.Backlog)
	}
	if s.Cursors[0].Dropped[CauseOverflow] == 0 || s.DroppedChunks == 0 {
		t.Errorf("nothing counted as dropped: %+v", s)
	}
	requireBalance(t, b)
	// What is left is the newest.
	c := b.cursors[0]
	var lastTag string
	for lastTag != "tag.99" {
		batch, err := c.Next(t.Context(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		lastTag = string(batch.Entries[len(batch.Entries)-1].Tag)
		if err := c.Commit(batch, nil); err != nil {
			t.Fatal(err)
		}
	}
	requireBalance(t, b)
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	open(t, Options{Dir: dir})
	_, err := Open(t.Context(), Options{Dir: dir, Cursors: []string{"out"}})
	var locked *LockedError
	if !errors.As(err, &locked) || locked.PID != fmt.Sprint(os.Getpid()) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("Open = %v, want a LockedError with this process", err)
	}
}

func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ dir, want string }{
		{file, "no directory"},
		{filepath.Join(file, "below"), "no directory"},
		{"/proc/weir", "/proc/weir"},
	} {
		_, err := Open(t.Context(), Options{Dir: c.dir, Cursors: []string{"out"}})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Open(%s) = %v, want one line with %q", c.dir, err, c.want)
		}
	}
}

// TestVanishedAndForeignFiles: an output that is gone, a file that is not
// weir's, a chunk that was made and not begun.
func TestVanishedAndForeignFiles(t *testing.T) {
	dir := t.TempDir()
	b := open(t, Options{Dir: dir, Cursors: []string{"out", "gone"}})
	put(t, b, 0, 2, 10)
	take(t, b, "out", 0, 2, 10, 1<<20)
	closeBuffer(t, b)
	foreign := filepath.Join(dir, "notes.txt")
	for _, f := range []string{foreign, chunkName(dir, 7)} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b = open(t, Options{Dir: dir, Cursors: []string{"out"}})
	requireEmpty(t, b, "out")
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("the foreign file is touched: %v", err)
	}
	if _, err := os.Stat(cursorName(dir, "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cursor of the vanished output is left: %v", err)
	}
	put(t, b, 2, 3, 10)
	take(t, b, "out", 2, 1, 10, 1<<20)
	requireBalance(t, b)
}
