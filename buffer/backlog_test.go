package buffer

import (
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// countingFS counts what is read and how many files are open.
type countingFS struct {
	FS
	read, open, peak atomic.Int64
}

type countingFile struct {
	File
	fs *countingFS
}

func (c *countingFS) count(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	c.peak.Store(max(c.peak.Load(), c.open.Add(1)))
	return countingFile{f, c}, nil
}

func (c *countingFS) Open(name string, how Access) (File, error) {
	return c.count(c.FS.Open(name, how))
}

func (c *countingFS) Create(name string, how Access) (File, error) {
	return c.count(c.FS.Create(name, how))
}

func (f countingFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.fs.read.Add(int64(n))
	return n, err
}

func (f countingFile) Close() error {
	f.fs.open.Add(-1)
	return f.File.Close()
}

// backlog fills dir with sealed chunks of the default size, of which only the
// header and the footer take space, and says that their ids are saved.
func backlog(tb testing.TB, dir string, chunks int) (bytes int64) {
	tb.Helper()
	const size = DefaultChunkLimit + BlockSize
	for seq := uint64(1); seq <= uint64(chunks); seq++ {
		f, err := os.Create(chunkName(dir, seq))
		if err != nil {
			tb.Fatal(err)
		}
		var head, foot [BlockSize]byte
		frame{magic: magicHeader, chunk: seq, salt: 7, written: now()}.encode(head[:])
		frame{magic: magicFooter, chunk: seq, number: 65, body: size - BlockSize, entries: 64, events: 6400, salt: 7, written: now()}.encode(foot[:])
		_, err = f.WriteAt(head[:], 0)
		if err == nil {
			_, err = f.WriteAt(foot[:], size-BlockSize)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			tb.Fatal(err)
		}
		bytes += size - 2*BlockSize
	}
	b, err := Open(tb.Context(), Options{Dir: filepath.Join(dir, "ids"), Cursors: []string{"c"}})
	if err != nil {
		tb.Fatal(err)
	}
	b.ids.add(stamped{id{1}, uint32(time.Now().Unix())})
	if err := b.idLog.save(uint64(chunks)); err != nil {
		tb.Fatal(err)
	}
	if err := b.Close(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(idFileName(filepath.Join(dir, "ids"), 1), idFileName(dir, 1)); err != nil {
		tb.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "ids")); err != nil {
		tb.Fatal(err)
	}
	return bytes
}

// TestLargeBacklog opens a buffer with 1 GB and one with 100 GB undelivered: the
// second costs no more descriptors, next to no memory, and a look at the ends of
// its files.
func TestLargeBacklog(t *testing.T) {
	cost := func(chunks int) (peak, read int64, heap int64) {
		dir := t.TempDir()
		want := backlog(t, dir, chunks)
		fs := &countingFS{FS: osFS{}}
		var before, after runtime.MemStats
		for range 3 { // what earlier tests have left in pools goes with the second
			runtime.GC()
		}
		runtime.ReadMemStats(&before)
		start := time.Now()
		b, err := Open(t.Context(), Options{Dir: dir, FS: fs, TotalLimit: 1 << 40, Cursors: []string{"x", "y"}})
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if s := b.Stats(); s.Backlog != want || s.Cursors[0].Recovered != uint64(chunks)*6400 {
			t.Errorf("%d bytes wait, want %d", s.Backlog, want)
		}
		heap = int64(after.HeapAlloc) - int64(before.HeapAlloc)
		peak, read = fs.peak.Load(), fs.read.Load()
		t.Logf("%.1f GB in %d chunks: open in %v, %d descriptors, %d bytes read, %d KiB of memory", float64(want)/1e9, chunks, took, peak, read, heap>>10)
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		return peak, read, heap
	}
	const small, large = 16, 1600
	peak, read, _ := cost(small)
	peakL, readL, heapL := cost(large)
	if peakL > peak {
		t.Errorf("%d descriptors, want %d as with the small one", peakL, peak)
	}
	if per := (readL - read) / (large - small); per > 2*frameHead {
		t.Errorf("%d bytes read of each chunk, want 2 frames at most", per)
	}
	if per := heapL / large; per > 1024 {
		t.Errorf("%d bytes of memory for each chunk", per)
	}
}

// BenchmarkOpenBacklog opens a buffer with 100 GB undelivered.
func BenchmarkOpenBacklog(b *testing.B) {
	dir := b.TempDir()
	backlog(b, dir, 1600)
	for b.Loop() {
		buf, err := Open(b.Context(), Options{Dir: dir, TotalLimit: 1 << 40, Cursors: []string{"c"}})
		if err != nil {
			b.Fatal(err)
		}
		if err := buf.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
