package buffer

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"pgregory.net/rapid"
)

// model is what a buffer must do: give every cursor each entry that was acked,
// once and in order, whatever happens to the disk and the power in between.
type model struct {
	m       *memFS
	o       Options
	b       *Buffer
	entries []modelEntry
	acked   []int          // numbers
	next    map[string]int // cursor -> of entries, the first that it has not passed
	crashed bool
}

type modelEntry struct {
	n     int
	acked bool
}

func (s *model) size(n int) int { return n * 1237 % 11_000 }

func (s *model) open(t *rapid.T) {
	s.o.FS, s.o.Log = s.m, zap.NewNop()
	b, err := Open(context.Background(), s.o)
	if err != nil {
		t.Fatal(err)
	}
	s.b = b
}

func (s *model) store(n int) error {
	o := newOutcome()
	if err := s.b.Append(context.Background(), entry(n, s.size(n)), o); err != nil {
		return err
	}
	return <-o
}

// add appends a new entry.
func (s *model) add(t *rapid.T) error {
	n := len(s.entries)
	err := s.store(n)
	s.entries = append(s.entries, modelEntry{n, err == nil})
	if err == nil {
		s.acked = append(s.acked, n)
	}
	return err
}

func (s *model) cursor(t *rapid.T) *Cursor {
	return rapid.SampledFrom(s.b.cursors).Draw(t, "cursor")
}

// read takes one batch, and commits it or leaves it.
func (s *model) read(t *rapid.T, c *Cursor, maxBytes int) {
	batch, err := c.Next(context.Background(), maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	at := s.next[c.name]
	for _, e := range batch.Entries {
		for at < len(s.entries) && !sameEntry(&e, entry(s.entries[at].n, s.size(s.entries[at].n))) {
			if s.entries[at].acked {
				t.Fatalf("cursor %s: entry %q where %d should be", c.name, e.Tag, at)
			}
			at++
		}
		if at == len(s.entries) {
			t.Fatalf("cursor %s: entry %q a second time, or altered", c.name, e.Tag)
		}
		if !s.entries[at].acked && !s.crashed {
			t.Fatalf("cursor %s: entry %q was refused", c.name, e.Tag)
		}
		at++
	}
	if err := c.Commit(batch, nil); err != nil {
		t.Fatal(err)
	}
	s.next[c.name] = at
}

// check is the conservation of events, and the bounds of files and descriptors.
func (s *model) check(t *rapid.T) {
	st := s.b.Stats()
	for _, c := range st.Cursors {
		if c.Recovered+st.Events != c.Delivered+c.Remaining.Events || len(c.Dropped) > 0 {
			t.Fatalf("balance: %+v, appended %d", c, st.Events)
		}
	}
	if st.Spares > maxSpares || st.Backlog > s.o.TotalLimit {
		t.Fatalf("%+v", st)
	}
}

// TestModel does random things to a buffer and compares with the model.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &model{m: newMemFS(), next: map[string]int{},
			o: Options{Dir: "/b", ChunkLimit: 6 * BlockSize, TotalLimit: 1 << 20, Cursors: []string{"x", "y"}}}
		if rapid.Bool().Draw(t, "no O_DIRECT") {
			s.m.noDirect = syscall.EINVAL
		}
		s.open(t)
		defer func() { s.b.Close(context.Background()) }()
		t.Repeat(map[string]func(*rapid.T){
			"": s.check,
			"append": func(t *rapid.T) {
				if err := s.add(t); err != nil && !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
			},
			"append again": func(t *rapid.T) {
				if len(s.acked) == 0 {
					t.Skip()
				}
				n := rapid.SampledFrom(s.acked).Draw(t, "n")
				if err := s.store(n); !errors.Is(err, ErrDuplicate) {
					t.Fatalf("entry %d again: %v", n, err)
				}
			},
			"append and fail": func(t *rapid.T) {
				op := rapid.SampledFrom([]string{"write", "datasync", "create", "rename", "allocate", "truncate"}).Draw(t, "op")
				cause := rapid.SampledFrom([]error{syscall.ENOSPC, syscall.EIO, syscall.EOPNOTSUPP}).Draw(t, "error")
				// The log of ids may be late, and a crash may forget then: see saveIDs.
				prefix := rapid.SampledFrom([]string{chunkPrefix, sparePrefix}).Draw(t, "file")
				fail := failNth(op, prefix, rapid.IntRange(1, 3).Draw(t, "nth"), rapid.IntRange(1, 3).Draw(t, "times"), cause)
				s.m.mu.Lock()
				s.m.fail = fail
				s.m.mu.Unlock()
				_ = s.add(t) // acked or not, as the model notes
				s.m.mu.Lock()
				s.m.fail = nil
				s.m.mu.Unlock()
			},
			"read": func(t *rapid.T) {
				c := s.cursor(t)
				if c.Remaining().Bytes == 0 {
					t.Skip()
				}
				s.read(t, c, rapid.IntRange(1, 10*BlockSize).Draw(t, "bytes"))
			},
			"drain": func(t *rapid.T) {
				c := s.cursor(t)
				for c.Remaining().Bytes > 0 {
					s.read(t, c, 1<<20)
				}
				for _, e := range s.entries[s.next[c.name]:] {
					if e.acked {
						t.Fatalf("cursor %s: entry %d was acked and is not there", c.name, e.n)
					}
				}
				s.next[c.name] = len(s.entries)
			},
			"restart": func(t *rapid.T) {
				if err := s.b.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
				s.open(t)
			},
			"crash": func(t *rapid.T) {
				how := cut(rapid.IntRange(0, int(cuts)-1).Draw(t, "cut"))
				seed := rapid.Uint64().Draw(t, "seed")
				s.m.mu.Lock()
				after := s.m.crash(how, rand.New(rand.NewPCG(seed, 0)))
				s.m.mu.Unlock()
				after.noDirect = s.m.noDirect
				if err := s.b.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
				s.m, s.crashed = after, true
				s.open(t)
			},
		})
	})
}
