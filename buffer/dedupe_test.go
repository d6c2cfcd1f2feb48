package buffer

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// TestIDTable checks the table against a plain list, over many turns of a small
// window.
func TestIDTable(t *testing.T) {
	table := idTable{window: 50, age: 100 * time.Second}
	var model []stamped
	now := uint32(1000)
	for n := range 20_000 {
		var x stamped
		// Few different slots, so that they collide.
		binary.LittleEndian.PutUint32(x.id[:], uint32(n*7919%37))
		binary.LittleEndian.PutUint32(x.id[8:], uint32(n*31%300))
		now += uint32(n % 3 / 2)
		x.at = now
		known := false
		for len(model) > 0 && model[0].at < now-100 {
			model = model[1:]
		}
		for _, m := range model {
			known = known || m.id == x.id
		}
		if got := table.has(x.id, time.Unix(int64(now), 0)); got != known {
			t.Fatalf("step %d: has = %v, want %v", n, got, known)
		}
		if known {
			continue
		}
		if len(model) == 50 {
			model = model[1:]
		}
		model = append(model, x)
		table.add(x)
		if table.count != len(model) {
			t.Fatalf("step %d: %d ids, want %d", n, table.count, len(model))
		}
	}
}

// TestIDMemory holds the memory of an id to what the documentation says: 29 bytes
// in a full default window, 36 in any full one, and twice that while it fills.
func TestIDMemory(t *testing.T) {
	var key idKey
	for _, window := range []int{DefaultDedupeWindow, 1<<18 + 1, 5000} {
		table := idTable{window: window, age: time.Hour}
		per := func() float64 {
			return float64(cap(table.ring)*int(unsafe.Sizeof(stamped{}))+cap(table.index)*4) / float64(table.count)
		}
		var n [8]byte
		for i := range window {
			binary.LittleEndian.PutUint64(n[:], uint64(i))
			table.add(stamped{key.id([]byte("tag"), n[:]), 1})
			if per() > 72 && table.count > minIDs {
				t.Fatalf("%d of %d ids take %.1f bytes each, want 72 at most", table.count, window, per())
			}
		}
		most := 36.0
		if window == DefaultDedupeWindow {
			most = 29
		}
		if table.count != window || per() > most {
			t.Errorf("%d ids take %.1f bytes each, want %v at most", table.count, per(), most)
		}
	}
}

// again appends entry n once more and returns its outcome.
func again(t *testing.T, b *Buffer, n int) error {
	t.Helper()
	return try(t, b, n, 100)
}

func requireDuplicates(t *testing.T, b *Buffer, first, last int) {
	t.Helper()
	for n := first; n < last; n++ {
		if err := again(t, b, n); !errors.Is(err, ErrDuplicate) {
			t.Fatalf("entry %d again: %v, want ErrDuplicate", n, err)
		}
	}
}

// TestDedupe: what was stored is known again while it waits, when it is
// delivered and its chunk used again, and after restarts.
func TestDedupe(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		o := Options{Dir: dir, ChunkLimit: 4 * BlockSize}
		if dir == "" {
			o.Dir, o.FS = "/b", newMemFS()
		}
		b := open(t, o)
		put(t, b, 0, 20, 100)
		requireDuplicates(t, b, 0, 20)
		if s := b.Stats(); s.Duplicates != 20 || s.Entries != 20 || s.IDs != 20 {
			t.Errorf("%+v, want 20 duplicates of 20 entries", s)
		}
		closeBuffer(t, b)
		b = open(t, o)
		requireDuplicates(t, b, 0, 20)
		take(t, b, "out", 0, 20, 100, 1<<20)
		requireDuplicates(t, b, 0, 20)
		put(t, b, 20, 40, 100)
		take(t, b, "out", 20, 20, 100, 1<<20)
		if s := b.Stats(); s.Spares != maxSpares {
			t.Errorf("%d spare files, want %d", s.Spares, maxSpares)
		}
		for range 3 {
			closeBuffer(t, b)
			b = open(t, o)
			requireDuplicates(t, b, 0, 40)
		}
		requireEmpty(t, b, "out")
		requireBalance(t, b)
		// The same id with another tag, and none at all, are other entries.
		e := entry(3, 100)
		e.Tag = []byte("other")
		plain := entry(3, 100)
		plain.ChunkID = nil
		for _, e := range []*Entry{e, plain, plain} {
			o := newOutcome()
			if err := b.Append(t.Context(), e, o); err != nil {
				t.Fatal(err)
			}
			if err := o.wait(t); err != nil {
				t.Fatal(err)
			}
		}
		closeBuffer(t, b)
	}
}

// TestDedupeWindow: no more than the window is remembered, in memory, on disk
// and after restarts; and no longer than the age.
func TestDedupeWindow(t *testing.T) {
	m := newMemFS()
	o := Options{Dir: "/b", FS: m, ChunkLimit: 2 * BlockSize, DedupeWindow: 10}
	b := open(t, o)
	for range 5 {
		first := int(b.lastSeq) * 1000
		put(t, b, first, first+50, 100)
		requireDuplicates(t, b, first+40, first+50)
		files := 0
		for name := range m.names {
			if strings.Contains(name, idPrefix) {
				files++
			}
		}
		if files > 7 {
			t.Errorf("%d files of ids for a window of 10", files)
		}
		closeBuffer(t, b)
		b = open(t, o)
		requireDuplicates(t, b, first+40, first+50)
		if err := again(t, b, first+30); err != nil {
			t.Fatalf("beyond the window: %v", err)
		}
	}
	closeBuffer(t, b)
	o.DedupeWindow, o.DedupeAge = 0, time.Nanosecond
	b = open(t, o)
	put(t, b, 1<<20, 1<<20+1, 10)
	time.Sleep(time.Until(time.Unix(time.Now().Unix()+1, 1e6))) // ages are in seconds
	put(t, b, 1<<20, 1<<20+1, 10)
	closeBuffer(t, b)
	o.DedupeWindow = -1
	b = open(t, o)
	put(t, b, 2, 3, 10)
	put(t, b, 2, 3, 10)
	for name := range m.names {
		if strings.Contains(name, idPrefix) {
			t.Errorf("%s is left although no ids are remembered", name)
		}
	}
}

// TestDedupeTwins: an entry whose twin is being committed shares its outcome.
func TestDedupeTwins(t *testing.T) {
	for _, failure := range []error{nil, syscall.EIO} {
		m := newMemFS()
		b := open(t, Options{Dir: "/b", FS: m})
		put(t, b, 100, 101, 10)
		under, hold := make(chan struct{}), make(chan struct{})
		once := true
		m.mu.Lock()
		m.fail = func(op, _ string) error {
			if op != "write" || !once {
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
		first, twin, third := newOutcome(), newOutcome(), newOutcome()
		for i, o := range []outcome{first, twin, third} {
			if err := b.Append(t.Context(), entry(1, 10), o); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				<-under
			}
		}
		select {
		case err := <-twin:
			t.Fatalf("the twin's outcome came before the first's commit: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		close(hold)
		want := error(ErrDuplicate)
		if failure != nil {
			want = failure
		}
		if err := first.wait(t); !errors.Is(err, failure) {
			t.Fatal(err)
		}
		for _, o := range []outcome{twin, third} {
			if err := o.wait(t); !errors.Is(err, want) {
				t.Fatalf("twin: %v, want %v", err, want)
			}
		}
		if err := again(t, b, 1); failure == nil != errors.Is(err, ErrDuplicate) {
			t.Fatalf("again: %v", err)
		}
		requireBalance(t, b)
	}
}

// TestDedupeLogDamage: what of the log is not readable costs ids and nothing
// else; one that cannot be written is written later.
func TestDedupeLogDamage(t *testing.T) {
	m := newMemFS()
	o := Options{Dir: "/b", FS: m, ChunkLimit: 3 * BlockSize}
	b := open(t, o)
	m.mu.Lock()
	m.fail = failNth("write", idPrefix, 1, 3, syscall.EIO)
	m.mu.Unlock()
	put(t, b, 0, 30, 100)
	take(t, b, "out", 0, 30, 100, 1<<20)
	closeBuffer(t, b)
	b = open(t, o)
	requireDuplicates(t, b, 0, 30)
	closeBuffer(t, b)
	for name, f := range m.names {
		if strings.Contains(name, idPrefix) {
			f.data = f.data[:len(f.data)-5]
		}
	}
	b = open(t, o)
	if n := b.Stats().IDs; n < 20 || n > 30 {
		t.Errorf("%d ids after the last record was damaged", n)
	}
	put(t, b, 30, 40, 100)
	take(t, b, "out", 30, 10, 100, 1<<20)
	closeBuffer(t, b)
	for name, f := range m.names {
		if strings.Contains(name, idPrefix) {
			clear(f.data[:10])
		}
	}
	b = open(t, o)
	put(t, b, 40, 50, 100)
	requireDuplicates(t, b, 40, 50)
}

// TestDedupeRestarts starts again and again: the log of ids does not grow by it,
// and nothing falls out of the window.
func TestDedupeRestarts(t *testing.T) {
	m := newMemFS()
	o := Options{Dir: "/b", FS: m, ChunkLimit: 8 * BlockSize, DedupeWindow: 40}
	b := open(t, o)
	put(t, b, 0, 39, 100)
	size := func() (n int) {
		for name, f := range m.names {
			if strings.Contains(name, idPrefix) {
				n += len(f.data)
			}
		}
		return n
	}
	want := size()
	for range 20 {
		closeBuffer(t, b)
		b = open(t, o)
		if n := size(); n != want {
			t.Fatalf("%d bytes of ids after a restart, %d before", n, want)
		}
	}
	requireDuplicates(t, b, 0, 39)
	closeBuffer(t, b)
	// The record that cannot be written again goes to a new file.
	m.fail = failNth("datasync", idPrefix, 1, 1, syscall.EIO)
	b = open(t, o)
	requireDuplicates(t, b, 0, 39)
	closeBuffer(t, b)
	if n := size(); n <= want {
		t.Errorf("%d bytes of ids, want more than %d", n, want)
	}
	o.DedupeWindow = 20 // of which those that were written twice take two places
	b = open(t, o)
	requireDuplicates(t, b, 30, 39)
}

// TestDedupeLogLost: without its log, ids are found in the chunks again, the newest
// first, and no chunk is read that the window does not reach by count or by age.
func TestDedupeLogLost(t *testing.T) {
	m := newMemFS()
	o := Options{Dir: "/b", FS: m, ChunkLimit: 5 * BlockSize} // 4 entries
	b := open(t, o)
	put(t, b, 0, 40, 100)
	closeBuffer(t, b)
	for name := range m.names {
		if strings.Contains(name, idPrefix) {
			delete(m.names, name)
		}
	}
	// read opens a copy and returns how many chunks were read as a whole.
	read := func(o Options, prepare func(m *memFS), known int) (chunks int) {
		t.Helper()
		o.FS = m.crash(cutKeep, nil)
		prepare(o.FS.(*memFS))
		b := open(t, o)
		defer closeBuffer(t, b)
		for name, f := range o.FS.(*memFS).names {
			if strings.Contains(name, chunkPrefix) && f.reads > 3*BlockSize {
				chunks++
			}
		}
		requireDuplicates(t, b, 40-known, 40)
		return chunks
	}
	none := func(*memFS) {}
	if n := read(o, none, 40); n != 10 {
		t.Errorf("%d chunks read, want all 10", n)
	}
	o.DedupeWindow = 9
	if n := read(o, none, 9); n != 3 {
		t.Errorf("%d chunks read for a window of 9, want 3", n)
	}
	o.DedupeWindow = 0
	old := func(m *memFS) {
		for seq := uint64(1); seq <= 6; seq++ {
			p := m.names[chunkName("/b", seq)].data
			foot, err := decodeFrame(p[len(p)-BlockSize:], seq)
			if err != nil {
				t.Fatal(err)
			}
			foot.written = now().Add(-2 * time.Hour)
			foot.encode(p[len(p)-BlockSize:])
		}
	}
	if n := read(o, old, 16); n != 4 {
		t.Errorf("%d chunks read, want the 4 that are not too old", n)
	}
}

// TestDedupeLogBadBlock: ids whose place in the log cannot be written go to
// another file at once, and a crash forgets none.
func TestDedupeLogBadBlock(t *testing.T) {
	for _, op := range []string{"write", "datasync"} {
		m := newMemFS()
		o := Options{Dir: "/b", FS: m, ChunkLimit: 5 * BlockSize}
		b := open(t, o)
		put(t, b, 0, 6, 100)
		bad := idFileName("", b.idLog.number)
		failed := 0
		m.setFail(func(o, name string) error {
			if o == op && name == bad {
				failed++
				return syscall.EIO
			}
			return nil
		})
		put(t, b, 6, 30, 100)
		take(t, b, "out", 0, 30, 100, 1<<20)
		if failed == 0 || b.lateIDs > 0 {
			t.Errorf("%d operations failed, ids up to chunk %d not saved", failed, b.lateIDs)
		}
		m.mu.Lock()
		o.FS = m.crash(cutDrop, nil)
		m.mu.Unlock()
		closeBuffer(t, b)
		b = open(t, o)
		requireDuplicates(t, b, 0, 30)
		requireEmpty(t, b, "out")
		closeBuffer(t, b)
	}
}

// BenchmarkOpenWithIDs opens a buffer that remembers a million ids.
func BenchmarkOpenWithIDs(b *testing.B) {
	o := Options{Dir: b.TempDir(), Cursors: []string{"c"}}
	buf, err := Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	var n [8]byte
	for i := range DefaultDedupeWindow {
		binary.LittleEndian.PutUint64(n[:], uint64(i))
		buf.ids.add(stamped{buf.idLog.key.id(nil, n[:]), uint32(time.Now().Unix())})
		if i%100_000 == 99_999 {
			if err := buf.idLog.save(uint64(i)); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := buf.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if buf, err = Open(b.Context(), o); err != nil {
			b.Fatal(err)
		}
		if n := buf.Stats().IDs; n != DefaultDedupeWindow {
			b.Fatalf("%d ids", n)
		}
		if err := buf.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenWithoutIDs opens a buffer with 1 GiB undelivered that has lost its log
// of ids, once for each run, since what was written by O_DIRECT is in the page
// cache from then on: entries of 300 bytes, and of 277 KB as 1000 events make them.
func BenchmarkOpenWithoutIDs(b *testing.B) {
	const total = 1 << 30
	for _, size := range []int{300, 277_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			var ids int
			for range b.N {
				b.StopTimer()
				o := Options{Dir: b.TempDir(), Cursors: []string{"c"}}
				buf, err := Open(b.Context(), o)
				if err != nil {
					b.Fatal(err)
				}
				outcomes := newOutcomes(total / size)
				e := entry(0, size)
				for n := range total / size {
					e.ChunkID = strconv.AppendInt(nil, int64(n), 10)
					if err := buf.Append(b.Context(), e, outcomes); err != nil {
						b.Fatal(err)
					}
				}
				if err := outcomes.wait(); err != nil {
					b.Fatal(err)
				}
				if err := buf.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
				names, err := osFS{}.ReadDir(o.Dir)
				for _, name := range names {
					if strings.HasPrefix(name, idPrefix) && err == nil {
						err = os.Remove(filepath.Join(o.Dir, name))
					}
				}
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if buf, err = Open(b.Context(), o); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				ids = buf.Stats().IDs
				if want := min(total/size, DefaultDedupeWindow); ids != want {
					b.Fatalf("%d ids, want %d", ids, want)
				}
				if err := buf.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(total)
			b.ReportMetric(float64(ids), "ids")
		})
	}
}

// outcomes counts those of n entries.
type outcomes struct {
	left atomic.Int64
	done chan error
}

func newOutcomes(n int) *outcomes {
	o := &outcomes{done: make(chan error, 1)}
	o.left.Store(int64(n))
	return o
}

func (o *outcomes) Done(err error) {
	if o.left.Add(-1) == 0 || err != nil {
		select {
		case o.done <- err:
		default:
		}
	}
}

func (o *outcomes) wait() error { return <-o.done }
