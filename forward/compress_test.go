package forward

import (
	"testing"
	"time"
)

// TestInflatedAtOnce: the windows are bounded in number; who comes later waits, other
// compressions do not, and a payload that is broken gives its place back.
func TestInflatedAtOnce(t *testing.T) {
	gz, zs := gzipped(stream(3)), zstandard(stream(3))
	l := parserLimits{depth: 10, inflated: 1 << 20, ratio: 500}
	for _, c := range []struct {
		Compression
		payload, broken []byte
		other           Compression
		passes          []byte
	}{
		{Gzip, gz, gz[:len(gz)-1], Zstd, zs},
		{Zstd, zs, []byte("no zstd"), Gzip, gz},
	} {
		t.Run(c.String(), func(t *testing.T) {
			f := newInflater()
			of := f.of(c.Compression)
			for range 2 * cap(of.slots) {
				if _, err := f.check(c.broken, c.Compression, l); err == nil {
					t.Fatal("broken bytes are taken")
				}
			}
			var open []*window
			for range cap(of.slots) {
				w, err := f.open(c.payload, c.Compression)
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, w)
			}
			done := make(chan int)
			go func() {
				n, err := f.check(c.payload, c.Compression, l)
				if err != nil {
					t.Error(err)
				}
				done <- n
			}()
			eventually(t, "one more waits", func() bool { return of.waits.Load() == 1 })
			select {
			case <-done:
				t.Error("one more is decompressed at the same time")
			case <-time.After(50 * time.Millisecond):
			}
			if n, err := f.check(c.passes, c.other, l); err != nil || n != 3 {
				t.Errorf("%v does not pass by: %d, %v", c.other, n, err)
			}
			for _, w := range open {
				f.close(w, c.Compression)
			}
			if n := <-done; n != 3 {
				t.Errorf("%d events", n)
			}
			if n := of.waits.Load(); n != 1 {
				t.Errorf("%d waits", n)
			}
		})
	}
}
