package buffer

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

// cursorState opens the log in dir and returns its last record.
func cursorState(t *testing.T, m *memFS, name string) (*cursorLog, cursorRecord) {
	t.Helper()
	l, last, err := openCursorLog(&Buffer{fs: m, opt: Options{Dir: "/b"}}, name)
	if err != nil {
		t.Fatal(err)
	}
	return l, last
}

// TestCursorLogTorn tears the write of each record at each sector, over many
// turns through both halves: the record counts or the one before it.
func TestCursorLogTorn(t *testing.T) {
	for _, size := range []int{0, 100, 5000, 20_000, cursorHalf / 2, cursorHalf - cursorHead} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			m := newMemFS()
			l, _ := cursorState(t, m, "c")
			state := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, size-n%3*min(size/10, 1)) }
			rounds := min(50, 8*cursorHalf/(cursorHead+size+1))
			skip := 0
			if size == 0 {
				skip = cursorHalf/cursorHead - 20 // turn to the other half in the rounds
			}
			n := 0
			for ; n < skip; n++ {
				if err := l.save(position{seq: uint64(n)}, state(n)); err != nil {
					t.Fatal(err)
				}
			}
			for ; n < skip+rounds; n++ {
				f := m.names["/b/cursor.c"]
				before := bytes.Clone(f.data)
				if err := l.save(position{seq: uint64(n)}, state(n)); err != nil {
					t.Fatal(err)
				}
				whole := f.data
				var changed []int // sectors
				for off := 0; off < len(whole); off += sector {
					if !bytes.Equal(before[off:off+sector], whole[off:off+sector]) {
						changed = append(changed, off)
					}
				}
				step := max(1, len(changed)/8)
				for k := 0; k <= len(changed); k += step {
					mixed := bytes.Clone(before)
					for _, off := range changed[:k] {
						copy(mixed[off:off+sector], whole[off:])
					}
					f.data = mixed
					again, last := cursorState(t, m, "c")
					again.close()
					want := n - 1
					if k == len(changed) {
						want = n
					}
					if want >= 0 && (last.pos.seq != uint64(want) || !bytes.Equal(last.state, state(want))) {
						t.Fatalf("record %d, %d of %d sectors written: found %d with %d bytes", n, k, len(changed), last.pos.seq, len(last.state))
					}
				}
				f.data = whole
			}
			if len(m.names["/b/cursor.c"].data) != 2*cursorHalf {
				t.Error("the file has grown")
			}
		})
	}
}

// TestCursorLogTakesNoSpace saves on a disk without any.
func TestCursorLogTakesNoSpace(t *testing.T) {
	m := newMemFS()
	m.space = 2 * cursorHalf
	l, _ := cursorState(t, m, "c")
	for n := range 3 * cursorHalf / 1000 {
		if err := l.save(position{seq: uint64(n)}, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCursorLogGrows for a state larger than a half, and tells when it cannot.
func TestCursorLogGrows(t *testing.T) {
	m := newMemFS()
	l, _ := cursorState(t, m, "c")
	for n, size := range []int{10, 2 << 20, 10, 5 << 20, 5 << 20} {
		state := bytes.Repeat([]byte{byte(n)}, size)
		if err := l.save(position{seq: uint64(n)}, state); err != nil {
			t.Fatal(err)
		}
		after := m.crash(cutDrop, nil)
		again, last := cursorState(t, after, "c")
		again.close()
		if last.pos.seq != uint64(n) || !bytes.Equal(last.state, state) {
			t.Fatalf("found record %d with %d bytes, want %d with %d", last.pos.seq, len(last.state), n, size)
		}
	}
	if err := l.save(position{}, make([]byte, maxState+1)); err == nil {
		t.Error("a state beyond the limit is saved")
	}
	m.space = 0
	if err := l.save(position{seq: 9}, make([]byte, 30<<20)); err == nil {
		t.Error("grown without space")
	}
	if err := l.save(position{seq: 10}, nil); err != nil {
		t.Error(err)
	}
	if _, last := cursorState(t, m, "c"); last.pos.seq != 10 {
		t.Errorf("found record %d, want 10", last.pos.seq)
	}
}

// TestDamagedCursorFile replaces it by all kinds of rubbish: the cursor begins at
// the oldest chunk.
func TestDamagedCursorFile(t *testing.T) {
	for name, p := range map[string][]byte{
		"empty": nil, "short": make([]byte, 100), "odd": make([]byte, 12345),
		"zeros": make([]byte, 2*cursorHalf), "rubbish": bytes.Repeat([]byte{0xa5}, 2*cursorHalf),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := open(t, Options{Dir: dir})
			put(t, b, 0, 3, 10)
			take(t, b, "out", 0, 3, 10, 1)
			closeBuffer(t, b)
			if err := os.WriteFile(cursorName(dir, "out"), p, 0o600); err != nil {
				t.Fatal(err)
			}
			b = open(t, Options{Dir: dir})
			take(t, b, "out", 0, 3, 10, 1)
			requireEmpty(t, b, "out")
			closeBuffer(t, b)
			b = open(t, Options{Dir: dir})
			requireEmpty(t, b, "out")
		})
	}
}
