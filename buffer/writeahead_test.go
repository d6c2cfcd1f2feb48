package buffer

import (
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// notedFS notes what is written to chunks: at which offsets, and how long.
type notedFS struct {
	*memFS
	mu    sync.Mutex
	files map[string][]written // by the name under which a file was opened last
}

type written struct{ from, to int64 }

type notedFile struct {
	File
	fs   *notedFS
	name string
}

func (n *notedFS) note(f File, err error, name string) (File, error) {
	if err != nil || !strings.HasPrefix(filepath.Base(name), chunkPrefix) && !strings.HasPrefix(filepath.Base(name), sparePrefix) {
		return f, err
	}
	return &notedFile{f, n, name}, nil
}

func (n *notedFS) Create(name string, how Access) (File, error) {
	f, err := n.memFS.Create(name, how)
	return n.note(f, err, name)
}

func (n *notedFS) Open(name string, how Access) (File, error) {
	f, err := n.memFS.Open(name, how)
	return n.note(f, err, name)
}

func (f *notedFile) WriteBlocks(blocks [][]byte, off int64) error {
	end := off
	for _, p := range blocks {
		end += int64(len(p))
	}
	f.fs.mu.Lock()
	f.fs.files[f.name] = append(f.fs.files[f.name], written{off, end})
	f.fs.mu.Unlock()
	return f.File.WriteBlocks(blocks, off)
}

// lengths are those of the writes to a file, its header left out.
func (n *notedFS) lengths(t *testing.T, name string) []int64 {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []int64
	for _, s := range n.files[name] {
		if s.from > 0 {
			all = append(all, s.to-s.from)
		}
	}
	if len(all) == 0 {
		t.Fatalf("nothing was written to %s: %v", name, n.files)
	}
	return all
}

// TestWriteAhead: a small commit in a new file writes zeros behind itself, and those
// after it overwrite them; large ones do not, none does in a file that is used again,
// and none touches the footer's block.
func TestWriteAhead(t *testing.T) {
	const limit = 1 << 20
	fs := &notedFS{memFS: newMemFS(), files: map[string][]written{}}
	b := open(t, Options{Dir: "/b", FS: fs, ChunkLimit: limit})
	put(t, b, 0, 67, 100) // a block each
	first := chunkName("/b", 1)
	want := slices.Repeat([]int64{BlockSize}, 67)
	want[0] += zerosAhead
	want[1+zerosAhead/BlockSize] += zerosAhead
	if got := fs.lengths(t, first); !slices.Equal(got, want) {
		t.Errorf("writes of %v bytes, want %v", got, want)
	}
	take(t, b, "out", 0, 67, 100, 1<<20)

	put(t, b, 67, 68, zerosAhead+smallCommit) // past the zeros
	put(t, b, 68, 69, 100)
	got := fs.lengths(t, first)[67:]
	if got[0] != padded(zerosAhead+smallCommit+1) || got[1] != BlockSize+zerosAhead {
		t.Errorf("writes of %v bytes, want one of a large commit alone, and zeros behind the small one", got)
	}
	take(t, b, "out", 67, 1, zerosAhead+smallCommit, 1)
	take(t, b, "out", 68, 1, 100, 1<<20)

	reused := func() bool {
		for name := range fs.files {
			if strings.HasPrefix(filepath.Base(name), sparePrefix) {
				return true
			}
		}
		return false
	}
	n := 69
	for !reused() {
		put(t, b, n, n+1, 100)
		take(t, b, "out", n, 1, 100, 1<<20)
		if n++; n > 2000 {
			t.Fatalf("no file is used again: %v", fs.files)
		}
	}
	put(t, b, n, n+10, 100)
	for name, spans := range fs.files {
		if strings.HasPrefix(filepath.Base(name), sparePrefix) {
			if got := fs.lengths(t, name); !slices.Equal(got, slices.Repeat([]int64{BlockSize}, len(got))) {
				t.Errorf("writes of %v bytes to a file that is used again", got)
			}
			continue
		}
		for _, s := range spans {
			if s.to > b.fileSize()-BlockSize && s.from != b.fileSize()-BlockSize {
				t.Errorf("%s: a write from %d to %d reaches the footer's block", name, s.from, s.to)
			}
		}
	}
}
