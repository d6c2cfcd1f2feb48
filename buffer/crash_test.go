package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
)

// promise is what the users of a buffer have been told so far.
type promise struct {
	mu    sync.Mutex
	acked int            // entries 0 to acked-1 are durable
	begun int            // entries handed to Append
	next  map[string]int // cursor -> entries before this were committed
	tried map[string]int // cursor -> a commit up to this was begun
	size  func(n int) int
}

func (p *promise) read(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// check opens what a crash has left and reads it: all that was acked is there,
// once, whole and in order, from where the cursor's state says.
func (p *promise) check(m *memFS, o Options) error {
	o.FS, o.Log = m, zap.NewNop()
	b, err := Open(context.Background(), o)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer b.Close(context.Background())
	for _, c := range b.cursors {
		at := 0
		if s := string(c.State()); s != "" {
			if at, err = strconv.Atoi(s); err != nil {
				return err
			}
		}
		if at < p.next[c.name] || at > p.tried[c.name] {
			return fmt.Errorf("cursor %s at %d, want %d to %d", c.name, at, p.next[c.name], p.tried[c.name])
		}
		for c.Remaining().Bytes > 0 {
			batch, err := c.Next(context.Background(), 10_000)
			if err != nil {
				return fmt.Errorf("cursor %s: %w", c.name, err)
			}
			for _, e := range batch.Entries {
				want := entry(at, p.size(at))
				if !sameEntry(&e, want) {
					return fmt.Errorf("cursor %s: entry %q where %d should be", c.name, e.Tag, at)
				}
				at++
			}
			if err := c.Commit(batch, nil); err != nil {
				return err
			}
		}
		if at < p.acked || at > p.begun {
			return fmt.Errorf("cursor %s: entries up to %d, %d were acked, %d begun", c.name, at, p.acked, p.begun)
		}
	}
	// It goes on working, and takes nothing twice that was acked.
	store := func(n int) error {
		o := newOutcome()
		if err := b.Append(context.Background(), entry(n, 10), o); err != nil {
			return err
		}
		return <-o
	}
	for n := range p.acked {
		if err := store(n); !errors.Is(err, ErrDuplicate) {
			return fmt.Errorf("entry %d of %d that were acked, again: %v", n, p.acked, err)
		}
	}
	if err := store(fresh); err != nil {
		return err
	}
	for _, c := range b.Stats().Cursors {
		if c.Recovered+entryEvents(fresh) != c.Delivered+c.Remaining.Events || c.Remaining.Events != entryEvents(fresh) {
			return fmt.Errorf("balance: %+v", c)
		}
	}
	return nil
}

// fresh is the number of an entry that no workload has.
const fresh = 1 << 30

func entryEvents(n int) uint64 { return uint64(entry(n, 0).Events) }

// TestPowerCut cuts the power after each operation of random workloads, in
// several ways, and checks the promises on what is left. Chunks of a few blocks
// rotate all the time and their files are used again; entries are sent again.
func TestPowerCut(t *testing.T) {
	states, reused, resent := 0, 0, 0
	for seed := range uint64(12) {
		s, r, n := powerCut(t, seed)
		states, reused, resent = states+s, reused+r, resent+n
	}
	if states < 4000 || reused < 6 || resent < 20 {
		t.Errorf("only %d states, %d files used again, %d entries sent again", states, reused, resent)
	}
	t.Logf("%d states, %d files used again, %d entries sent again", states, reused, resent)
}

func powerCut(t *testing.T, seed uint64) (states, reused, resent int) {
	rnd, cutting := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
	p := &promise{next: map[string]int{}, tried: map[string]int{}, size: func(n int) int { return n * 613 % 9000 }}
	m := newMemFS()
	o := Options{Dir: "/b", FS: m, ChunkLimit: 5 * BlockSize, Cursors: []string{"x", "y"}}
	var failures []string
	m.after = func() {
		for how := range cuts {
			times := 1
			if how == cutTorn {
				times = 3
			}
			for range times {
				states++
				p.read(func() {
					if err := p.check(m.crash(how, cutting), o); err != nil && len(failures) < 10 {
						failures = append(failures, fmt.Sprintf("operation %d, cut %d: %v", m.ops, how, err))
					}
				})
			}
		}
	}
	m.fail = func(op, name string) error {
		if op == "rename" && strings.HasPrefix(name, sparePrefix) {
			reused++
		}
		return nil
	}
	commit := func(b *Buffer, name string, size int) {
		c, err := b.Cursor(name)
		if err != nil {
			t.Fatal(err)
		}
		batch, err := c.Next(t.Context(), size)
		if err != nil {
			t.Fatal(err)
		}
		var at int
		p.read(func() { p.tried[name] += len(batch.Entries); at = p.tried[name] })
		if err := c.Commit(batch, []byte(strconv.Itoa(at))); err != nil {
			t.Fatal(err)
		}
		p.read(func() { p.next[name] = at })
	}
	const runs, steps = 2, 12
	for range runs {
		b := open(t, o)
		for range steps {
			switch rnd.IntN(5) {
			case 0, 1: // several entries at once, so that torn commits have more than one
				var outcomes []outcome
				for range 1 + rnd.IntN(3) {
					var n int
					p.read(func() { n = p.begun; p.begun++ })
					out, store := newOutcome(), b.Append
					if seed%2 == 1 {
						store = b.AppendLater
					}
					if err := store(t.Context(), entry(n, p.size(n)), out); err != nil {
						t.Fatal(err)
					}
					outcomes = append(outcomes, out)
				}
				b.Commit()
				for _, out := range outcomes {
					if err := out.wait(t); err != nil {
						t.Fatal(err)
					}
					p.read(func() { p.acked++ })
				}
			case 2: // both outputs keep up: chunks go, and are used again
				for _, c := range b.cursors {
					for c.Remaining().Bytes > 0 {
						commit(b, c.name, 20_000)
					}
				}
			case 3: // one is behind
				if c := b.cursors[rnd.IntN(2)]; c.Remaining().Bytes > 0 {
					commit(b, c.name, 1+rnd.IntN(20_000))
				}
			case 4: // what was acked comes again
				if p.acked > 0 {
					n := rnd.IntN(p.acked)
					if err := try(t, b, n, p.size(n)); !errors.Is(err, ErrDuplicate) {
						t.Fatalf("entry %d again: %v", n, err)
					}
					resent++
				}
			}
		}
		closeBuffer(t, b)
	}
	if len(failures) > 0 {
		t.Errorf("seed %d, of %d states:\n%s", seed, states, strings.Join(failures, "\n"))
	}
	return states, reused, resent
}

// TestStaleBytes tears each commit over what the file held before, a chunk of
// the same number and lengths: no old entry comes back, no torn commit passes for
// damage.
func TestStaleBytes(t *testing.T) {
	// One entry begins with each block, but for the frame's head.
	const size = BlockSize - entryHead - len("tag.10") - len("id-10\n")
	name := chunkName("/b", 1)
	write := func(first int) []byte {
		m := newMemFS()
		b := open(t, Options{Dir: "/b", FS: m, ChunkLimit: 12 * BlockSize})
		put(t, b, first, first+1, 10)
		together(t, m, b, first+1, first+6, size)
		put(t, b, first+6, first+7, 10)
		closeBuffer(t, b)
		return m.names[name].data
	}
	old, fresh := write(10), write(20)
	if len(fresh) != len(old) {
		t.Fatalf("%d bytes, want %d", len(fresh), len(old))
	}
	for cut := 64; cut <= len(fresh); cut += 64 {
		m := newMemFS()
		m.names[name] = &inode{data: append(bytes.Clone(fresh[:cut]), old[cut:]...)}
		b, err := Open(t.Context(), Options{Dir: "/b", FS: m, ChunkLimit: 12 * BlockSize, Cursors: []string{"out"}})
		if err != nil {
			t.Fatal(err)
		}
		for c := b.cursors[0]; c.Remaining().Bytes > 0; {
			batch, err := c.Next(t.Context(), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range batch.Entries {
				if !strings.HasPrefix(string(e.Tag), "tag.2") {
					t.Fatalf("cut at %d: old entry %q", cut, e.Tag)
				}
			}
			if err := c.Commit(batch, nil); err != nil {
				t.Fatal(err)
			}
		}
		if s := b.Stats().Cursors[0]; len(s.Dropped) > 0 {
			t.Fatalf("cut at %d: %v", cut, s.Dropped)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
