package buffer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"go.uber.org/zap"
)

// TestFullDiskPowerCut fills the disk again and again, and cuts the power at each
// operation: while entries are refused, while two outputs deliver at different
// places, and while the chunks that both have delivered are dropped to make room.
// Nothing that was acked is lost or stored twice, also when weir is started on the
// full disk, delivers all, drops what it can and loses power once more.
func TestFullDiskPowerCut(t *testing.T) {
	states, dropped, refused := 0, 0, 0
	for seed := range uint64(3) {
		s, d, r := fullDisk(t, seed)
		states, dropped, refused = states+s, dropped+d, refused+r
	}
	if states < 1500 || dropped < 5 || refused < 15 {
		t.Errorf("only %d states, everything dropped %d times, %d entries refused", states, dropped, refused)
	}
	t.Logf("%d states, everything dropped %d times, %d entries refused", states, dropped, refused)
}

func fullDisk(t *testing.T, seed uint64) (states, dropped, refused int) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	m := newMemFS()
	c := newCutter(m, Options{ChunkLimit: int64(4+rnd.IntN(6)) * BlockSize, Cursors: []string{"x", "y"}},
		func(n int) int { return n * 613 % 9000 })
	b := open(t, c.o)
	m.set(func() {
		// Room for some blocks in one chunk, or for a few chunks.
		m.space = int64(8+rnd.IntN(20)) * BlockSize
		m.after = func() {
			c.cut()
			how := cut(c.rnd.IntN(int(cuts)))
			c.states++
			c.p.read(func() {
				if err := c.p.checkFull(m.crash(how, c.rnd), c.o, c.rnd); err != nil && c.failed == nil {
					c.failed = fmt.Errorf("operation %d, cut %d, started on the full disk: %w", m.ops, how, err)
				}
			})
		}
	})
	// deliver takes some of what a cursor has before it, or all.
	deliver := func(name string, all bool) {
		cur, err := b.Cursor(name)
		if err != nil {
			t.Fatal(err)
		}
		for cur.Remaining().Bytes > 0 {
			c.deliver(t, b, name, 1+rnd.IntN(12_000))
			if !all && rnd.IntN(2) == 0 {
				return
			}
		}
	}
	const entries = 24
	for n := range entries {
		c.p.read(func() { c.p.begun++ })
		for try1 := 0; ; try1++ {
			before := b.Stats()
			err := try(t, b, n, c.p.size(n))
			if err == nil {
				c.p.read(func() { c.p.acked++ })
				if s := b.Stats(); before.Backlog == 0 && before.Failing != nil && s.Chunks == 1 {
					dropped++
				}
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("seed %d, entry %d: %v", seed, n, err)
			}
			refused++
			switch try1 {
			case 0: // one output is ahead of the other
				deliver("x", rnd.IntN(2) == 0)
			case 1:
				deliver("y", false)
				deliver("x", true)
			case 2:
				deliver("y", true)
			default:
				t.Fatalf("seed %d, entry %d is refused although all is delivered", seed, n)
			}
		}
	}
	m.set(func() { m.after = nil })
	deliver("x", true)
	deliver("y", true)
	requireEmpty(t, b, "x")
	requireEmpty(t, b, "y")
	requireBalance(t, b)
	for n := range entries {
		if err := try(t, b, n, c.p.size(n)); !errors.Is(err, ErrDuplicate) {
			t.Errorf("seed %d, entry %d again: %v", seed, n, err)
		}
	}
	closeBuffer(t, b)
	if c.failed != nil {
		t.Errorf("seed %d: %v", seed, c.failed)
	}
	return c.states, dropped, refused
}

// checkFull is check on a disk that has no room, and after another power cut.
func (p *promise) checkFull(m *memFS, o Options, rnd *rand.Rand) error {
	m.space = 0
	o.FS, o.Log = m, zap.NewNop()
	b, err := Open(context.Background(), o)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	store := func(b *Buffer, n int) error {
		out := newOutcome()
		if err := b.Append(context.Background(), entry(n, p.size(n)), out); err != nil {
			return err
		}
		return <-out
	}
	known := func(b *Buffer) error {
		for n := range p.acked {
			if err := store(b, n); !errors.Is(err, ErrDuplicate) {
				return fmt.Errorf("entry %d of %d that were acked, again: %v", n, p.acked, err)
			}
		}
		return nil
	}
	for _, c := range b.cursors {
		for c.Remaining().Bytes > 0 {
			batch, err := c.Next(context.Background(), 10_000)
			if err == nil {
				err = c.Commit(batch, nil)
			}
			if err != nil {
				return errors.Join(err, b.Close(context.Background()))
			}
		}
	}
	err = known(b)
	// All that was delivered may go to make room for it.
	stored := store(b, fresh)
	if err == nil && stored != nil && !noSpace(stored) {
		err = stored
	}
	m.mu.Lock()
	after := m.crash(cut(rnd.IntN(int(cuts))), rnd)
	m.mu.Unlock()
	if err := errors.Join(err, b.Close(context.Background())); err != nil {
		return err
	}
	o.FS = after
	if b, err = Open(context.Background(), o); err != nil {
		return fmt.Errorf("open once more: %w", err)
	}
	err = known(b)
	if stored == nil && err == nil {
		if err = store(b, fresh); !errors.Is(err, ErrDuplicate) {
			return errors.Join(fmt.Errorf("the last entry again: %w", err), b.Close(context.Background()))
		}
		err = nil
	}
	return errors.Join(err, b.Close(context.Background()))
}
