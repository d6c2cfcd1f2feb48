package forward

import (
	"testing"
	"time"
)

// TestZstdAtOnce: the windows of zstd are bounded in number; who comes later
// waits, and a payload that is broken gives its place back.
func TestZstdAtOnce(t *testing.T) {
	f := newInflater()
	l := parserLimits{depth: 10, inflated: 1 << 20, ratio: 500}
	for range 2 * cap(f.slots) {
		if _, err := f.check([]byte("no zstd"), Zstd, l); err == nil {
			t.Fatal("broken bytes are zstd")
		}
	}
	payload := zstandard(stream(3))
	var open []*window
	for range cap(f.slots) {
		w, err := f.open(payload, Zstd)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, w)
	}
	done := make(chan int)
	go func() {
		n, err := f.check(payload, Zstd, l)
		if err != nil {
			t.Error(err)
		}
		done <- n
	}()
	eventually(t, "one more waits", func() bool { return f.waits.Load() == 1 })
	select {
	case <-done:
		t.Error("one more is decompressed at the same time")
	case <-time.After(50 * time.Millisecond):
	}
	if n, err := f.check(gzipped(stream(2)), Gzip, l); err != nil || n != 2 {
		t.Errorf("gzip does not pass by: %d, %v", n, err)
	}
	for _, w := range open {
		f.close(w, Zstd)
	}
	if n := <-done; n != 3 {
		t.Errorf("%d events", n)
	}
	if n := f.waits.Load(); n != 1 {
		t.Errorf("%d waits", n)
	}
}
