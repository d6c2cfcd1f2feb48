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

// cost is what an operation took: time, and that of the processor.
type cost struct{ wall, cpu float64 }

// measure runs f, which does b.N operations of size bytes, and returns their cost.
func measure(b *testing.B, size int, f func()) cost {
	b.Helper()
	b.SetBytes(int64(size))
	before, start := cpu(b), time.Now()
	b.ResetTimer()
	f()
	b.StopTimer()
	c := cost{float64(time.Since(start).Nanoseconds()) / 1e3 / float64(b.N), float64((cpu(b) - before).Nanoseconds()) / 1e3 / float64(b.N)}
	b.ReportMetric(c.cpu, "cpu-µs/op")
	return c
}

// BenchmarkCommit is entries of 4 KiB, 64 KiB and 1 MiB, each of 1, 16 or 256
// appenders waiting for its own to be durable, while a cursor empties the buffer.
// Beside it, one writer that makes each write durable before the next: plain
// appends to a file through the page cache, direct overwrites a file by O_DIRECT,
// which is the least that storing can take. x-plain and x-direct are the processor
// time of an entry over theirs.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		var plain, direct cost
		b.Run(fmt.Sprintf("plain/%dKiB", size>>10), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "f"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			p := make([]byte, size)
			plain = measure(b, size, func() {
				for range b.N {
					if _, err := f.Write(p); err != nil {
						b.Fatal(err)
					}
					if err := unix.Fdatasync(int(f.Fd())); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
		b.Run(fmt.Sprintf("direct/%dKiB", size>>10), func(b *testing.B) {
			const length = 64 << 20
			name := filepath.Join(b.TempDir(), "f")
			if err := os.WriteFile(name, make([]byte, length), 0o600); err != nil {
				b.Fatal(err)
			}
			f, err := osFS{}.Open(name, Direct)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			if err := f.Datasync(); err != nil {
				b.Fatal(err)
			}
			p := [][]byte{alignedMemory(int64(size))}
			direct = measure(b, size, func() {
				for n := range b.N {
					if err := f.WriteBlocks(p, int64(n)*int64(size)%length); err != nil {
						b.Fatal(err)
					}
					if err := f.Datasync(); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
		for _, writers := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("weir/%dKiB/%d", size>>10, writers), func(b *testing.B) {
				c := benchmarkBuffer(b, size, writers)
				b.ReportMetric(c.cpu/plain.cpu, "x-plain")
				b.ReportMetric(c.cpu/direct.cpu, "x-direct")
			})
		}
	}
}

func benchmarkBuffer(b *testing.B, size, writers int) cost {
	buf, err := Open(context.Background(), Options{Dir: b.TempDir(), Cursors: []string{"c"}})
	if err != nil {
		b.Fatal(err)
	}
	defer buf.Close(context.Background())
	ctx, cancel := context.WithCancel(context.Background())
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	reader.Go(func() {
		c := buf.cursors[0]
		for {
			_ = c.Gather(ctx, 4<<20)
			batch, err := c.Next(ctx, 8<<20)
			if err != nil {
				return
			}
			if err := c.Commit(batch, nil); err != nil {
				b.Error(err)
				return
			}
		}
	})
	e := entry(1, size)
	e.ChunkID = nil
	return measure(b, size, func() {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				o := newOutcome()
				each := b.N / writers
				if w < b.N%writers {
					each++
				}
				for range each {
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
	})
}
