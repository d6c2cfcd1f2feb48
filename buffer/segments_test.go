package buffer

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// TestSegments: segments are aligned, nobody else's as long as they are used, and all
// pages are let go with the last of theirs.
func TestSegments(t *testing.T) {
	const users, rounds, most = 4, 200, 3 * hugeSegments
	var s segments
	var wg sync.WaitGroup
	for n := range users {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(n), 1))
			var held [][]byte
			mark := func(b []byte, m byte) { b[0], b[segmentSize/2], b[segmentSize-1] = m, m, m }
			for range rounds {
				for len(held) < rnd.IntN(most) {
					b := s.get()
					if uintptr(unsafe.Pointer(&b[0]))%BlockSize != 0 || len(b) != segmentSize || cap(b) != segmentSize {
						t.Errorf("%p, length %d, capacity %d", &b[0], len(b), cap(b))
					}
					mark(b, byte(n)+1)
					held = append(held, b)
				}
				rnd.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
				for keep := rnd.IntN(most); len(held) > keep; held = held[1:] {
					b := held[0]
					if b[0] != byte(n)+1 || b[segmentSize/2] != b[0] || b[segmentSize-1] != b[0] {
						t.Errorf("user %d finds %d %d %d in its segment", n, b[0], b[segmentSize/2], b[segmentSize-1])
					}
					mark(b, 0)
					s.put(b)
				}
			}
			for _, b := range held {
				s.put(b)
			}
		})
	}
	wg.Wait()
	if s.out != 0 || len(s.pages) != 0 || len(s.open) != 0 {
		t.Errorf("all given back, but %d segments and %d pages, %d of them open, are in use", s.out, len(s.pages), len(s.open))
	}
}

// TestFewSegments: a buffer that does little takes no huge pages, and one that does
// much takes no more of them than it needs.
func TestFewSegments(t *testing.T) {
	var s segments
	var held [][]byte
	for want, n := range []int{fewSegments, 1, hugeSegments - 1, 1, hugeSegments - 1} {
		for range n {
			held = append(held, s.get())
		}
		if pages := (want + 1) / 2; len(s.pages) != pages {
			t.Errorf("%d pages for %d segments, want %d", len(s.pages), len(held), pages)
		}
	}
	// One segment of a page is enough to keep it, and is found again.
	for _, b := range slices.Backward(held[fewSegments+1:]) {
		s.put(b)
	}
	if len(s.pages) != 1 || len(s.open) != 1 {
		t.Errorf("%d pages, %d open, want one", len(s.pages), len(s.open))
	}
	if b := s.get(); pageOf(b) != pageOf(held[fewSegments]) {
		t.Error("another page is begun")
	}
}

// TestHugePagesGo: what nobody uses any more is unmapped, also of a buffer that is
// garbage with segments in use.
func TestHugePagesGo(t *testing.T) {
	const pages = 200
	mapped := func() int64 {
		statm, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		if _, err := fmt.Sscan(string(statm), &n); err != nil {
			t.Fatal(err)
		}
		return n * int64(os.Getpagesize())
	}
	gone := func(before int64) {
		t.Helper()
		for limit := time.Now().Add(20 * time.Second); mapped() > before-pages*hugePageSize*3/4; time.Sleep(time.Millisecond) {
			runtime.GC() // sync.Pool keeps what it has for one or two
			if time.Now().After(limit) {
				t.Fatalf("%d MiB mapped, %d before", mapped()>>20, before>>20)
			}
		}
	}
	take := func(s *segments) (held [][]byte) {
		for range fewSegments + pages*hugeSegments {
			held = append(held, s.get())
		}
		return held
	}
	var s segments
	held := take(&s)
	before := mapped()
	for _, b := range held {
		s.put(b)
	}
	gone(before)
	runtime.KeepAlive(&s)

	dropped := new(segments)
	take(dropped)
	before = mapped()
	runtime.KeepAlive(dropped)
	gone(before)
}
