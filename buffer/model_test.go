package buffer

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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
	faulted bool
	// diskFull: others have taken all space that was left.
	diskFull bool
	// skipped is the events of acked entries that a cursor has not been given,
	// dropped those that earlier runs counted as dropped.
	skipped, dropped map[string]uint64
	// late: the last fault kept ids of chunks from being saved, so that a crash, or an
	// end while the disk is full, may forget them; forgotten is what one may have. No
	// other resend is stored again.
	late      atomic.Bool
	forgotten map[int]bool
	// small: commits do not stay in memory; unreadable: chunks cannot be read.
	small      bool
	unreadable atomic.Bool
	seen       *modelSeen
}

// modelSeen is what happened in all runs.
type modelSeen struct {
	spares, dropped, full, unblocked, late, resent int
	ahead                                          uint64
	unread, noSpace, fullCrash                     int
}

type modelEntry struct {
	n     int
	acked bool
	maybe bool // its outcome is not known yet
}

func (s *model) size(n int) int { return n * 1237 % 11_000 }

func (s *model) open(t *rapid.T) {
	s.o.FS, s.o.Log = s.m, zap.NewNop()
	b, err := Open(context.Background(), s.o)
	if err != nil {
		t.Fatal(err)
	}
	s.b = b
	if s.small {
		b.mu.Lock()
		b.recents.limit = 0
		b.mu.Unlock()
	}
}

// full reports whether total_limit_size leaves no room for the entry.
func (s *model) full(t *rapid.T, n int) bool {
	size, err := entry(n, s.size(n)).size()
	if err != nil {
		t.Fatal(err)
	}
	return s.b.Stats().Backlog+size > s.o.TotalLimit
}

// store appends the entry and checks what a full buffer does.
func (s *model) store(t *rapid.T, n int) error {
	full, limit := s.full(t, n), time.Minute
	if full && s.o.Overflow == OverflowBlock {
		limit = 2 * time.Millisecond // it would block until cursors move
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	o := newOutcome()
	var err error
	if rapid.Bool().Draw(t, "later") {
		if err = s.b.AppendLater(ctx, entry(n, s.size(n)), o); err == nil {
			s.b.Commit()
		}
	} else {
		err = s.b.Append(ctx, entry(n, s.size(n)), o)
	}
	if err == nil {
		return <-o
	}
	switch {
	case full && s.o.Overflow == OverflowThrow && errors.Is(err, ErrFull),
		full && s.o.Overflow == OverflowBlock && errors.Is(err, context.DeadlineExceeded):
		s.seen.full++
	default:
		t.Fatalf("overflow %d, full %v: %v", s.o.Overflow, full, err)
	}
	return errModelFull
}

var errModelFull = errors.New("full")

// add appends a new entry.
func (s *model) add(t *rapid.T) error {
	n := len(s.entries)
	err := s.store(t, n)
	s.note(n, err)
	return err
}

// mayRefuse fails unless the entry was stored, or refused as it had to be.
func (s *model) mayRefuse(t *rapid.T, err error) {
	switch {
	case err == nil, err == errModelFull:
	case noSpace(err) && s.diskFull:
		s.seen.noSpace++
	default:
		t.Fatal(err)
	}
}

func (s *model) note(n int, err error) {
	s.entries = append(s.entries, modelEntry{n: n, acked: err == nil})
	if err == nil {
		s.acked = append(s.acked, n)
		if s.m.failing() == nil && !s.diskFull {
			s.late.Store(false) // saved with this commit at the latest
		}
	}
}

// skip notes that the cursor was not given an entry; it must have been dropped.
func (s *model) skip(t *rapid.T, c *Cursor, e modelEntry) {
	if !e.acked {
		return
	}
	s.skipped[c.name] += entryEvents(e.n)
	if got, counted := s.skipped[c.name], s.dropped[c.name]+droppedEvents(s.b, c); got > counted {
		t.Fatalf("cursor %s: entry %d is not there, %d events skipped in all, %d counted as dropped", c.name, e.n, got, counted)
	}
}

func droppedEvents(b *Buffer, c *Cursor) uint64 {
	for _, s := range b.Stats().Cursors {
		if s.Name == c.name {
			return s.Dropped[CauseOverflow]
		}
	}
	return 0
}

// batchBytes is one of few sizes, so that it often is that of the read before.
func (s *model) batchBytes(t *rapid.T) int {
	return rapid.SampledFrom([]int{1, 2 * BlockSize, 4 * BlockSize, 6 * BlockSize, 10*BlockSize + 1}).Draw(t, "bytes")
}

func (s *model) cursor(t *rapid.T) *Cursor {
	return s.b.cursors[rapid.IntRange(0, len(s.b.cursors)-1).Draw(t, "cursor")]
}

// read takes one batch, and commits it after meanwhile, if that is not nil. While
// reads fail, Next does, or it returns what was read before.
func (s *model) read(t *rapid.T, c *Cursor, maxBytes int, meanwhile func()) {
	batch, err := c.Next(context.Background(), maxBytes)
	if errors.Is(err, syscall.EIO) && s.unreadable.Load() {
		s.seen.unread++
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	at := s.next[c.name]
	for _, e := range batch.Entries {
		for at < len(s.entries) && !sameEntry(&e, entry(s.entries[at].n, s.size(s.entries[at].n))) {
			s.skip(t, c, s.entries[at])
			at++
		}
		if at == len(s.entries) {
			t.Fatalf("cursor %s: entry %q a second time, or altered", c.name, e.Tag)
		}
		if x := s.entries[at]; !x.acked && !x.maybe && !s.crashed {
			t.Fatalf("cursor %s: entry %q was refused", c.name, e.Tag)
		}
		at++
	}
	if meanwhile != nil {
		meanwhile()
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
		dropped := uint64(0)
		for cause, n := range c.Dropped {
			if cause != CauseOverflow || s.o.Overflow != OverflowDropOldest {
				t.Fatalf("%d events dropped by %s", n, cause)
			}
			dropped += n
		}
		if c.Recovered+st.Events != c.Delivered+c.Remaining.Events+dropped {
			t.Fatalf("balance: %+v, appended %d", c, st.Events)
		}
		s.seen.dropped += int(min(dropped, 1))
	}
	s.seen.spares += st.Spares
	// The last commit's padding may go beyond it, and a crash can bring back a chunk
	// that was dropped or delivered.
	if st.Spares > maxSpares || st.Backlog > s.o.TotalLimit+2*BlockSize && !s.crashed {
		t.Fatalf("%+v", st)
	}
}

// forget is to be called where what is late is lost.
func (s *model) forget() {
	if s.late.Load() {
		s.seen.late++
		for _, n := range s.acked {
			s.forgotten[n] = true
		}
	}
}

// ends is to be called before the buffer is closed or crashes.
func (s *model) ends() {
	for _, c := range s.b.cursors {
		s.dropped[c.name] += droppedEvents(s.b, c)
	}
	s.seen.ahead += s.b.Stats().ReadAheads
}

// drain reads all that the cursor has before it.
func (s *model) drain(t *rapid.T, c *Cursor) {
	for c.Remaining().Bytes > 0 {
		s.read(t, c, 6*BlockSize, nil)
	}
	end := len(s.entries)
	for end > s.next[c.name] && !s.entries[end-1].acked {
		end-- // a crash may bring it back
	}
	for _, e := range s.entries[s.next[c.name]:end] {
		s.skip(t, c, e)
	}
	s.next[c.name] = end
	if got, want := s.skipped[c.name], s.dropped[c.name]+droppedEvents(s.b, c); got != want && !s.faulted && !s.crashed {
		t.Fatalf("cursor %s: %d events were not given, %d are counted as dropped", c.name, got, want)
	}
}

// fault makes an operation fail for the time of f.
func (s *model) fault(fail func(op, name string) error, f func()) {
	s.faulted = true
	s.m.setFail(func(op, name string) error {
		err := fail(op, name)
		// What a full disk refuses is not acked.
		space := noSpace(err) && (op == "create" || op == "allocate")
		if err != nil && (strings.HasPrefix(name, idPrefix) && !space || op == "syncdir") {
			s.late.Store(true)
		}
		return err
	})
	f()
	s.m.setFail(nil)
}

// TestModel does random things to a buffer and compares with the model.
func TestModel(t *testing.T) {
	seen := &modelSeen{}
	defer func() { t.Logf("%+v", *seen) }()
	rapid.Check(t, func(t *rapid.T) {
		s := &model{m: newMemFS(), next: map[string]int{}, skipped: map[string]uint64{}, dropped: map[string]uint64{},
			forgotten: map[int]bool{}, seen: seen,
			o: Options{Dir: "/b", ChunkLimit: 6 * BlockSize, TotalLimit: 16 * BlockSize, Cursors: []string{"x", "y"},
				Overflow: Overflow(rapid.IntRange(0, 2).Draw(t, "overflow"))}}
		if rapid.Bool().Draw(t, "no O_DIRECT") {
			s.m.noDirect = syscall.EINVAL
		}
		s.small = rapid.Bool().Draw(t, "nothing stays in memory")
		s.open(t)
		defer func() { s.b.Close(context.Background()) }()
		t.Repeat(map[string]func(*rapid.T){
			"": s.check,
			"append": func(t *rapid.T) {
				s.mayRefuse(t, s.add(t))
			},
			"append many": func(t *rapid.T) {
				for range rapid.IntRange(2, 12).Draw(t, "n") {
					s.mayRefuse(t, s.add(t))
				}
			},
			"fill the disk": func(t *rapid.T) {
				s.diskFull = true
				s.m.set(func() { s.m.space = 0 })
			},
			"free the disk": func(t *rapid.T) {
				s.diskFull = false
				s.m.set(func() { s.m.space = -1 })
			},
			"append again": func(t *rapid.T) {
				if len(s.acked) == 0 {
					t.Skip()
				}
				n := rapid.SampledFrom(s.acked).Draw(t, "n")
				switch err := s.store(t, n); {
				case errors.Is(err, ErrDuplicate):
				case s.forgotten[n] && (err == nil || err == errModelFull || noSpace(err) && s.diskFull):
					s.note(n, err)
					s.seen.resent++
					if err == nil {
						delete(s.forgotten, n)
					}
				default:
					t.Fatalf("entry %d again: %v", n, err)
				}
			},
			"blocked append": func(t *rapid.T) {
				n := len(s.entries)
				if s.o.Overflow != OverflowBlock || !s.full(t, n) || s.diskFull {
					t.Skip()
				}
				s.entries = append(s.entries, modelEntry{n: n, maybe: true})
				o := newOutcome()
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				appended := make(chan error, 1)
				go func() { appended <- s.b.Append(ctx, entry(n, s.size(n)), o) }()
				for _, c := range s.b.cursors {
					for c.Remaining().Bytes > 0 {
						s.read(t, c, 6*BlockSize, nil)
					}
				}
				err := <-appended
				if err == nil {
					err = <-o
				}
				if err != nil {
					t.Fatalf("blocked, then room was made: %v", err)
				}
				s.entries[n] = modelEntry{n: n, acked: true}
				s.acked = append(s.acked, n)
				s.late.Store(false)
				s.seen.unblocked++
			},
			"append and fail": func(t *rapid.T) {
				op := rapid.SampledFrom([]string{"write", "datasync", "create", "rename", "allocate", "truncate", "syncdir", "remove"}).Draw(t, "op")
				cause := rapid.SampledFrom([]error{syscall.ENOSPC, syscall.EIO, syscall.EOPNOTSUPP}).Draw(t, "error")
				prefix := rapid.SampledFrom([]string{chunkPrefix, sparePrefix, idPrefix}).Draw(t, "file")
				if op == "syncdir" {
					prefix = ""
				}
				fail := failNth(op, prefix, rapid.IntRange(1, 3).Draw(t, "nth"), rapid.IntRange(1, 3).Draw(t, "times"), cause)
				if rapid.Bool().Draw(t, "truncate as well") {
					first := fail
					fail = func(op, name string) error {
						if op == "truncate" {
							return cause
						}
						return first(op, name)
					}
				}
				s.fault(fail, func() { _ = s.add(t) }) // acked or not, as the model notes
			},
			"read": func(t *rapid.T) {
				c := s.cursor(t)
				if c.Remaining().Bytes == 0 {
					t.Skip()
				}
				s.read(t, c, s.batchBytes(t), nil)
			},
			"read while others append": func(t *rapid.T) {
				c := s.cursor(t)
				if c.Remaining().Bytes == 0 {
					t.Skip()
				}
				s.read(t, c, s.batchBytes(t), func() {
					for range rapid.IntRange(1, 6).Draw(t, "n") {
						s.mayRefuse(t, s.add(t))
					}
				})
			},
			"read and fail": func(t *rapid.T) {
				c := s.cursor(t)
				s.unreadable.Store(true)
				s.m.mu.Lock()
				s.m.failRead = func(_, name string) error {
					if strings.HasPrefix(name, chunkPrefix) && s.unreadable.Load() {
						return syscall.EIO
					}
					return nil
				}
				s.m.mu.Unlock()
				bytes := s.batchBytes(t)
				for range rapid.IntRange(1, 3).Draw(t, "n") {
					if c.Remaining().Bytes > 0 {
						s.read(t, c, bytes, nil)
					}
				}
				_ = c.fetched(context.Background()) // fails as well
				s.unreadable.Store(false)
			},
			"drain": func(t *rapid.T) {
				c := s.cursor(t)
				s.drain(t, c)
			},
			"drain all": func(t *rapid.T) {
				for _, c := range s.b.cursors {
					s.drain(t, c)
				}
			},
			"restart": func(t *rapid.T) {
				s.ends()
				s.crashed = s.crashed || s.faulted // what could not be cut off comes back
				if s.diskFull {
					s.forget()
				}
				s.late.Store(false)
				if err := s.b.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
				s.open(t)
			},
			"crash": func(t *rapid.T) {
				how := cut(rapid.IntRange(0, int(cuts)-1).Draw(t, "cut"))
				seed := rapid.Uint64().Draw(t, "seed")
				s.ends()
				s.forget()
				s.late.Store(false)
				if s.diskFull {
					s.seen.fullCrash++
				}
				s.m.mu.Lock()
				after := s.m.crash(how, rand.New(rand.NewPCG(seed, 0)))
				s.m.mu.Unlock()
				after.noDirect = s.m.noDirect
				if s.diskFull {
					after.space = 0
				}
				if err := s.b.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
				s.m, s.crashed = after, true
				s.open(t)
			},
		})
	})
}
