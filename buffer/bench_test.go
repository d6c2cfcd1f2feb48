package buffer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
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

// latencies are how long operations took.
type latencies []time.Duration

func (l *latencies) since(start time.Time) { *l = append(*l, time.Since(start)) }

// report reports the median and the 99th percentile.
func (l latencies) report(b *testing.B) {
	slices.Sort(l)
	for _, q := range []int{50, 99} {
		b.ReportMetric(float64(l[(len(l)-1)*q/100].Nanoseconds())/1e3, fmt.Sprintf("p%d-µs", q))
	}
}

// BenchmarkCommit is entries of 4 KiB, 64 KiB and 1 MiB, each of 1, 16 or 256
// appenders waiting for its own to be durable, while a cursor empties the buffer:
// ns/op is for all of them together, p50-µs and p99-µs what one of them waits.
// Beside it, one writer that makes each write durable before the next: plain
// appends to a file through the page cache; allocated writes by O_DIRECT to files
// that fallocate(2) has made, each block once; direct overwrites a file that was
// written before, which is the least that storing can take. x-plain and x-direct are the processor
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
			var took latencies
			plain = measure(b, size, func() {
				for range b.N {
					start := time.Now()
					if _, err := f.Write(p); err != nil {
						b.Fatal(err)
					}
					if err := unix.Fdatasync(int(f.Fd())); err != nil {
						b.Fatal(err)
					}
					took.since(start)
				}
			})
			took.report(b)
		})
		// The same writes into a file whose blocks are only allocated, and into one that
		// was written before, as a chunk's is from its second use on.
		allocated := func(f File, length int64) error { return f.Allocate(length) }
		written := func(f File, length int64) error {
			p := [][]byte{alignedMemory(1 << 20)}
			for off := int64(0); off < length; off += 1 << 20 {
				if err := f.WriteBlocks(p, off); err != nil {
					return err
				}
			}
			return f.Datasync()
		}
		b.Run(fmt.Sprintf("allocated/%dKiB", size>>10), func(b *testing.B) { benchmarkDirect(b, size, allocated) })
		b.Run(fmt.Sprintf("direct/%dKiB", size>>10), func(b *testing.B) { direct = benchmarkDirect(b, size, written) })
		for _, writers := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("weir/%dKiB/%d", size>>10, writers), func(b *testing.B) {
				c := benchmarkBuffer(b, size, writers)
				b.ReportMetric(c.cpu/plain.cpu, "x-plain")
				b.ReportMetric(c.cpu/direct.cpu, "x-direct")
			})
		}
	}
}

// benchmarkDirect writes through files of the length of a chunk that prepare has
// made, and makes each write durable.
func benchmarkDirect(b *testing.B, size int, prepare func(f File, length int64) error) cost {
	const length = DefaultChunkLimit
	dir := b.TempDir()
	var files []File
	defer func() {
		for _, f := range files {
			if err := f.Close(); err != nil {
				b.Error(err)
			}
		}
	}()
	for n := 0; n == 0 || int64(n)*length < int64(b.N)*int64(size); n++ {
		f, err := osFS{}.Create(filepath.Join(dir, strconv.Itoa(n)), Direct)
		if err != nil {
			b.Fatal(err)
		}
		files = append(files, f)
		if err := prepare(f, length); err != nil {
			b.Fatal(err)
		}
	}
	p := [][]byte{alignedMemory(int64(size))}
	var took latencies
	defer func() { took.report(b) }()
	return measure(b, size, func() {
		for n := range b.N {
			start := time.Now()
			off := int64(n) * int64(size)
			f := files[off/length]
			if err := f.WriteBlocks(p, off%length); err != nil {
				b.Fatal(err)
			}
			if err := f.Datasync(); err != nil {
				b.Fatal(err)
			}
			took.since(start)
		}
	})
}

// BenchmarkStarvation is the latency of entries of 200 bytes while one appender
// sends entries of 64 MiB as fast as they become durable. alone is without that.
func BenchmarkStarvation(b *testing.B) {
	for _, writers := range []int{1, 5000} {
		for _, huge := range []int{0, 64 << 20} {
			name := fmt.Sprintf("alone/%d", writers)
			if huge > 0 {
				name = fmt.Sprintf("huge/%d", writers)
			}
			b.Run(name, func(b *testing.B) { benchmarkStarvation(b, writers, huge) })
		}
	}
}

func benchmarkStarvation(b *testing.B, writers, huge int) {
	buf, err := Open(context.Background(), Options{Dir: b.TempDir(), Cursors: []string{"c"}})
	if err != nil {
		b.Fatal(err)
	}
	defer buf.Close(context.Background())
	ctx, cancel := context.WithCancel(context.Background())
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	others.Go(func() { empty(ctx, b, buf.cursors[0]) })
	store := func(e *Entry, o outcome) bool {
		err := buf.Append(context.Background(), e, o)
		if err == nil {
			err = <-o
		}
		if err != nil {
			b.Error(err)
		}
		return err == nil
	}
	stored := 0
	if huge > 0 {
		e := entry(1, huge)
		e.ChunkID = nil
		others.Go(func() {
			for o := newOutcome(); ctx.Err() == nil && store(e, o); stored++ {
			}
		})
	}
	e := entry(1, 200)
	e.ChunkID = nil
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	measure(b, 200, func() {
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for o := newOutcome(); ; {
					n := next.Add(1) - 1
					if n >= int64(b.N) {
						return
					}
					start := time.Now()
					if !store(e, o) {
						return
					}
					took[n] = time.Since(start)
				}
			})
		}
		wg.Wait()
	})
	cancel()
	others.Wait()
	slices.Sort(took)
	for _, q := range []int{50, 99} {
		b.ReportMetric(float64(took[(len(took)-1)*q/100].Microseconds())/1e3, fmt.Sprintf("p%d-ms", q))
	}
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1e3, "max-ms")
	b.ReportMetric(float64(stored), "huge")
}

// empty reads all that comes until ctx ends.
func empty(ctx context.Context, b *testing.B, c *Cursor) {
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
	reader.Go(func() { empty(ctx, b, buf.cursors[0]) })
	e := entry(1, size)
	e.ChunkID = nil
	var mu sync.Mutex
	var all latencies
	defer func() { all.report(b) }()
	return measure(b, size, func() {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				var took latencies
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					all = append(all, took...)
				}()
				o := newOutcome()
				each := b.N / writers
				if w < b.N%writers {
					each++
				}
				for range each {
					start := time.Now()
					if err := buf.Append(context.Background(), e, o); err != nil {
						b.Error(err)
						return
					}
					if err := <-o; err != nil {
						b.Error(err)
						return
					}
					took.since(start)
				}
			})
		}
		wg.Wait()
	})
}

// BenchmarkBehind reads what no longer is in memory, 8 MiB at a time, and commits
// it. read is that alone: next-ms is what a batch waits for the disk and its
// checksums. waits delivers each batch to one who answers after 10 ms, computes to
// one who works on it for as long: x-serial is the time of a batch over that of
// reading it and of delivering it one after the other, in this run.
func BenchmarkBehind(b *testing.B) {
	const delivery = 10 * time.Millisecond
	var read float64
	b.Run("read", func(b *testing.B) { read = benchmarkBehind(b, nil) })
	for _, consumer := range []struct {
		name    string
		deliver func()
	}{
		{"waits", func() { time.Sleep(delivery) }},
		{"computes", func() {
			for begin := time.Now(); time.Since(begin) < delivery; {
			}
		}},
	} {
		b.Run(consumer.name, func(b *testing.B) {
			per := benchmarkBehind(b, consumer.deliver)
			b.ReportMetric(per/(read+delivery.Seconds()), "x-serial")
		})
	}
}

// benchmarkBehind returns the seconds of a batch.
func benchmarkBehind(b *testing.B, deliver func()) float64 {
	const batch, size = 8 << 20, 1 << 20
	buf, err := Open(context.Background(), Options{Dir: b.TempDir(), Cursors: []string{"c"}})
	if err != nil {
		b.Fatal(err)
	}
	defer buf.Close(context.Background())
	e := entry(1, size)
	e.ChunkID = nil
	o := newOutcome()
	fill := func() {
		for range 512 {
			if err := buf.Append(context.Background(), e, o); err != nil {
				b.Fatal(err)
			}
			if err := <-o; err != nil {
				b.Fatal(err)
			}
		}
	}
	c := buf.cursors[0]
	var next, commit, all time.Duration
	for range b.N {
		if c.Remaining().Bytes < 32<<20 { // the newest is in memory
			b.StopTimer()
			fill()
			_ = c.fetched(context.Background())
			b.StartTimer()
		}
		start := time.Now()
		got, err := c.Next(context.Background(), batch)
		if err != nil {
			b.Fatal(err)
		}
		next += time.Since(start)
		if deliver != nil {
			deliver()
		}
		done := time.Now()
		if err := c.Commit(got, nil); err != nil {
			b.Fatal(err)
		}
		commit += time.Since(done)
		all += time.Since(start)
	}
	b.SetBytes(batch)
	b.ReportMetric(float64(next.Microseconds())/1e3/float64(b.N), "next-ms")
	b.ReportMetric(float64(commit.Microseconds())/1e3/float64(b.N), "commit-ms")
	b.ReportMetric(float64(buf.Stats().ReadAheads)/float64(b.N), "ahead")
	return all.Seconds() / float64(b.N)
}
