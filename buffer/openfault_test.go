package buffer

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
)

// TestOpenFails makes one operation fail after the other while a buffer is opened
// that a power cut has left, in several shapes, and goes on with it: Open fails, or
// nothing of what was acked is lost, then and after the next power cut.
func TestOpenFails(t *testing.T) {
	states := 0
	for shape := range uint64(6) {
		failed := 0
		for nth := 1; ; nth++ {
			m := newMemFS()
			c := newCutter(m, Options{ChunkLimit: 12 * BlockSize, Cursors: []string{"x", "y"}}, func(n int) int { return n * 613 % 9000 })
			rnd := rand.New(rand.NewPCG(shape, 5))
			b := open(t, c.o)
			for n := range 7 { // leaves room for the next two
				c.store(t, b, 1, nil)
				if n == 3 { // spare files, and a cursor that is ahead
					c.deliver(t, b, "x", 20_000)
					c.deliver(t, b, "y", 10_000)
				}
			}
			if shape%2 == 0 { // the newest chunk has a footer although it is not full
				b.mu.Lock()
				b.rotate = true
				b.work.Signal()
				for !b.chunks[len(b.chunks)-1].sealed {
					b.room.Wait()
				}
				b.mu.Unlock()
			}
			m.mu.Lock()
			after := m.crash(cut(shape/2), rnd)
			m.mu.Unlock()
			closeBuffer(t, b)
			ops := 0
			broken := func(string, string) error {
				if ops++; ops == nth {
					return syscall.EIO
				}
				return nil
			}
			c.o.FS = after
			after.failRead, after.fail = broken, broken
			b, err := Open(t.Context(), c.o)
			after.set(func() { after.failRead, after.fail = nil, nil })
			done := ops < nth
			switch {
			case errors.Is(err, syscall.EIO):
				if failed++; !strings.Contains(err.Error(), "/b") {
					t.Errorf("shape %d, operation %d: %q names no file", shape, nth, err)
				}
			case err != nil:
				t.Fatal(err)
			default: // it goes on with what it has found
				for range 2 {
					c.store(t, b, 1, nil)
				}
			}
			for how := range cuts {
				states++
				after.mu.Lock()
				again := after.crash(how, rnd)
				after.mu.Unlock()
				if err := c.p.check(again, c.o); err != nil {
					t.Fatalf("shape %d, operation %d failed, cut %d: %v", shape, nth, how, err)
				}
			}
			if err == nil {
				if err := b.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			if done {
				break
			}
		}
		if failed == 0 {
			t.Errorf("shape %d: no operation made Open fail", shape)
		}
	}
	if states < 300 {
		t.Errorf("only %d states", states)
	}
	t.Logf("%d states", states)
}
