package buffer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpu is the processor time that the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkCommit is entries of 4 KiB, 64 KiB and 1 MiB, each appender waiting
// for its own to be durable; and, beside it, one that appends the same bytes to
// a file and calls fdatasync for each.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("plain/%dKiB", size>>10), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "f"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			p := make([]byte, size)
			b.SetBytes(int64(size))
			before := cpu(b)
			for b.Loop() {
				if _, err := f.Write(p); err != nil {
					b.Fatal(err)
				}
				if err := unix.Fdatasync(int(f.Fd())); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
		for _, writers := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("weir/%dKiB/%d", size>>10, writers), func(b *testing.B) {
				buf, err := Open(context.Background(), Options{Dir: b.TempDir(), Cursors: []string{"c"}})
				if err != nil {
					b.Fatal(err)
				}
				defer buf.Close(context.Background())
				e := entry(1, size)
				e.ChunkID = nil // or all but the first are found to be stored already
				b.SetBytes(int64(size))
				before := cpu(b)
				b.ResetTimer()
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() {
						o := newOutcome()
						for range b.N/writers + min(1, b.N%writers/(w+1)) {
							if err := buf.Append(context.Background(), e, o); err != nil {
								b.Error(err)
								return
							}
							if err := <-o; err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
			})
		}
	}
}
