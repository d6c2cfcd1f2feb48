package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// cutter cuts the power after each operation of a workload that keeps storing
// entries until they are acked, and checks the promises on what is left.
type cutter struct {
	m      *memFS
	o      Options
	p      *promise
	rnd    *rand.Rand
	states int
	failed error
}

func newCutter(m *memFS, o Options, size func(int) int) *cutter {
	o.Dir, o.FS = "/b", m
	if o.Cursors == nil {
		o.Cursors = []string{"x"}
	}
	return &cutter{m: m, o: o, rnd: rand.New(rand.NewPCG(3, 4)),
		p: &promise{next: map[string]int{}, tried: map[string]int{}, size: size}}
}

// cut is memFS.after.
func (c *cutter) cut() {
	for how := range cuts {
		c.states++
		c.p.read(func() {
			if err := c.p.check(c.m.crash(how, c.rnd), c.o); err != nil && c.failed == nil {
				c.failed = fmt.Errorf("operation %d, cut %d: %w", c.m.ops, how, err)
			}
		})
	}
}

// store hands in the next entry until it is stored, at most tries times, and
// counts the refusals.
func (c *cutter) store(t *testing.T, b *Buffer, tries int, want error) (refused int) {
	t.Helper()
	n := 0
	c.p.read(func() { n = c.p.begun; c.p.begun++ })
	for range tries {
		err := try(t, b, n, c.p.size(n))
		if err == nil {
			c.p.read(func() { c.p.acked++ })
			return refused
		}
		if !errors.Is(err, want) {
			t.Fatalf("entry %d: %v, want %v", n, err, want)
		}
		refused++
	}
	t.Fatalf("entry %d is refused %d times: it does not recover", n, tries)
	return 0
}

// deliver commits a batch of the cursor.
func (c *cutter) deliver(t *testing.T, b *Buffer, name string, size int) {
	t.Helper()
	cur, err := b.Cursor(name)
	if err != nil {
		t.Fatal(err)
	}
	if cur.Remaining().Bytes == 0 {
		t.Fatalf("cursor %s has nothing to deliver: it would wait for ever", name)
	}
	batch, err := cur.Next(t.Context(), size)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	c.p.read(func() { c.p.tried[name] += len(batch.Entries); at = c.p.tried[name] })
	if err := cur.Commit(batch, []byte(strconv.Itoa(at))); err != nil {
		t.Fatal(err)
	}
	c.p.read(func() { c.p.next[name] = at })
}

func (m *memFS) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// TestShortWrites makes each write of a workload end early, after 0 bytes, within
// a sector, a block, or with all of them but an error: no promise is broken at any
// operation from there on.
func TestShortWrites(t *testing.T) {
	states, failures := 0, 0
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO} {
		for amount, short := range map[string]func(int) int{
			"nothing":          func(int) int { return 0 },
			"a byte":           func(int) int { return 1 },
			"sectors":          func(int) int { return 3 * sector },
			"a block":          func(int) int { return BlockSize },
			"all but one byte": func(n int) int { return n - 1 },
			"all":              func(n int) int { return n },
		} {
			for nth := 1; nth <= 9; nth += 4 {
				m := newMemFS()
				c := newCutter(m, Options{ChunkLimit: 5 * BlockSize}, func(n int) int { return n * 613 % 9000 })
				b := open(t, c.o)
				m.set(func() {
					m.after, m.short = c.cut, short
					m.fail = failNth("write", chunkPrefix, nth, 1+nth%2, cause)
				})
				for n := range 9 {
					failures += c.store(t, b, 5, cause)
					if n%3 == 2 {
						c.deliver(t, b, "x", 20_000)
					}
				}
				m.set(func() { m.after, m.fail = nil, nil })
				if b.Stats().Failing != nil {
					t.Errorf("still failing: %v", b.Stats().Failing)
				}
				requireBalance(t, b)
				closeBuffer(t, b)
				if states += c.states; c.failed != nil {
					t.Errorf("write %d ends after %s with %v: %v", nth, amount, cause, c.failed)
				}
			}
		}
	}
	if states < 1000 || failures < 20 {
		t.Errorf("only %d states, %d entries refused", states, failures)
	}
	t.Logf("%d states, %d entries refused", states, failures)
}

// TestDirectoryVanishes removes the directory before each operation of a
// workload: what is handed in from then on is refused and not acked, Failing says
// why, and a directory that is made again is used.
func TestDirectoryVanishes(t *testing.T) {
	vanished := 0
	for at := 1; ; at++ {
		m := newMemFS()
		o := Options{Dir: "/b", FS: m, ChunkLimit: 3 * BlockSize, Cursors: []string{"out"}}
		b := open(t, o)
		m.set(func() {
			first := m.ops
			m.fail = func(op, name string) error {
				if m.ops == first+at {
					m.vanish()
					if op != "write" && op != "allocate" && op != "truncate" {
						return fs.ErrNotExist
					}
				}
				return nil
			}
		})
		gone := func() (g bool) {
			m.set(func() { g = m.gone })
			return g
		}
		for n := range 8 {
			before := gone()
			err := try(t, b, n, 500)
			switch {
			case before && !errors.Is(err, fs.ErrNotExist):
				t.Fatalf("vanished at operation %d: entry %d: %v", at, n, err)
			case err == nil && gone() && vanishedInCommit(m, b):
				t.Fatalf("vanished at operation %d, in the commit of entry %d, which is acked", at, n)
			}
			if before {
				if s := b.Stats(); !errors.Is(s.Failing, fs.ErrNotExist) {
					t.Errorf("vanished at operation %d: Failing is %v", at, s.Failing)
				}
			}
		}
		if !gone() {
			closeBuffer(t, b)
			break
		}
		vanished++
		m.set(func() { m.gone, m.fail = false, nil })
		for n := 100; n < 103; n++ {
			if err := try(t, b, n, 500); err != nil {
				t.Fatalf("vanished at operation %d, made again: %v", at, err)
			}
		}
		if s := b.Stats(); s.Failing != nil {
			t.Errorf("made again: still failing: %v", s.Failing)
		}
		// A power cut now keeps what was acked since.
		after := o
		m.set(func() { after.FS = m.crash(cutDrop, nil) })
		if err := b.Close(context.Background()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		b = open(t, after)
		if got := tags(t, b, "out", 3, 1<<20); got != "100 101 102" {
			t.Errorf("vanished at operation %d: delivered %s of what was stored since", at, got)
		}
		closeBuffer(t, b)
	}
	if vanished < 20 {
		t.Errorf("vanished at %d operations only", vanished)
	}
	t.Logf("vanished at %d operations", vanished)
}

// vanishedInCommit reports whether the newest chunk has no name, so that nothing
// of its last commit is left.
func vanishedInCommit(m *memFS, b *Buffer) (lost bool) {
	b.mu.Lock()
	name := chunkName(b.opt.Dir, b.lastSeq)
	b.mu.Unlock()
	m.set(func() { lost = m.names[name] == nil })
	return lost
}

// TestAdvance: what pwritev(2) has not written of its blocks comes next, whole and
// in order, wherever it ended.
func TestAdvance(t *testing.T) {
	blocks := [][]byte{[]byte("abcd"), []byte("efgh"), []byte("i"), []byte("jklm")}
	all := bytes.Join(blocks, nil)
	for n := range len(all) + 1 {
		if got := bytes.Join(advance(blocks, n), nil); !bytes.Equal(got, all[n:]) {
			t.Errorf("after %d bytes come %q, want %q", n, got, all[n:])
		}
		if !bytes.Equal(bytes.Join(blocks, nil), all) {
			t.Fatalf("advance(%d) has changed its argument", n)
		}
	}
}

// TestManyBlocks writes more blocks than one pwritev(2) takes.
func TestManyBlocks(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f, err := osFS{}.Create(name, Cached)
	if err != nil {
		t.Fatal(err)
	}
	var blocks [][]byte
	for i := range 2*maxIovecs + 3 {
		blocks = append(blocks, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, BlockSize/2))
	}
	if err := errors.Join(f.WriteBlocks(blocks, BlockSize), f.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got[:BlockSize], make([]byte, BlockSize)) || !bytes.Equal(got[BlockSize:], bytes.Join(blocks, nil)) {
		t.Errorf("%d bytes, not those that were written, %v", len(got), err)
	}
}

// TestCommitsAreShared: appenders that wait for their entry before they send the
// next one come into the same commit. Without that, each of them has one of its own
// on a disk as fast as this one. On a busy machine some come late.
func TestCommitsAreShared(t *testing.T) {
	const appenders, each = 8, 200
	best := 0.0
	for range 4 {
		b := open(t, Options{Dir: "/b", FS: newMemFS(), ChunkLimit: 8 << 20})
		var wg sync.WaitGroup
		for w := range appenders {
			wg.Go(func() {
				for n := range each {
					o := newOutcome()
					if err := b.Append(context.Background(), entry(w*each+n, 10), o); err != nil {
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
		s := b.Stats()
		if best = max(best, float64(s.Entries)/float64(s.Commits)); best > 2 {
			return
		}
	}
	t.Errorf("%.1f of %d appenders in a commit at best", best, appenders)
}
