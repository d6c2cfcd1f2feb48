package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"unsafe"
)

// memFS is a file system in memory that can fail and lose power. It keeps what
// programs see apart from what a power cut leaves: a file's bytes are stable
// after Datasync, a directory's entries after SyncDir.
type memFS struct {
	mu     sync.Mutex
	names  map[string]*inode // as programs see them
	stable map[string]*inode // as a power cut leaves them
	locked map[string]bool
	// noDirect is why there is no O_DIRECT; nil if there is.
	noDirect error
	space    int64 // bytes that may still be written; negative for no limit
	ops      int   // changing operations so far
	// fail is asked before each changing operation; an error makes it fail. A
	// write that fails has written half of its bytes, or as many as short says.
	fail  func(op, name string) error
	short func(n int) int
	// failRead is asked before each operation that changes nothing, without mu.
	failRead func(op, name string) error
	// gone: the directory was removed, with all that was in it.
	gone bool
	// after is told of each changing operation that has succeeded; mu is held.
	after func()
	// opens counts the files that are open, peak the most at once.
	opens, peak int
}

// inode is a file: its bytes, and for each block that was written since the
// last Datasync what may be on the medium instead.
type inode struct {
	data, stable []byte
	dirty        []extent // written since the last Datasync
	reads        int64
	opens        int
	removed      bool // its space is given back when nobody has it open any more
}

// extent is bytes from to to-1.
type extent struct{ from, to int }

func newMemFS() *memFS {
	return &memFS{names: map[string]*inode{}, stable: map[string]*inode{}, locked: map[string]bool{}, space: -1}
}

// vanish removes the directory. mu is held.
func (m *memFS) vanish() {
	for _, i := range m.names {
		m.unlink(i)
	}
	clear(m.names)
	m.stable = map[string]*inode{}
	m.gone = true
}

// unlink says that an inode has no name any more. mu is held.
func (m *memFS) unlink(i *inode) {
	i.removed = true
	if i.opens == 0 {
		m.give(int64(len(i.data)))
	}
}

// change begins a changing operation. mu is held.
func (m *memFS) change(op, name string) error {
	m.ops++
	if m.gone && op != "write" && op != "allocate" && op != "truncate" {
		// Open files without a name are written to as ever.
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	if m.fail != nil {
		if err := m.fail(op, filepath.Base(name)); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil
}

func (m *memFS) setFail(fail func(op, name string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = fail
}

func (m *memFS) failing() func(op, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fail
}

func (m *memFS) changed() {
	if m.after != nil {
		m.after()
	}
}

func (m *memFS) MkdirAll(string) error { return nil }

// asks begins an operation that changes nothing.
func (m *memFS) asks(op, name string) error {
	m.mu.Lock()
	fail := m.failRead
	m.mu.Unlock()
	if fail != nil {
		if err := fail(op, filepath.Base(name)); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil
}

func (m *memFS) ReadDir(dir string) ([]string, error) {
	if err := m.asks("readdir", dir); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, n := range slices.Sorted(maps.Keys(m.names)) {
		if filepath.Dir(n) == dir {
			names = append(names, filepath.Base(n))
		}
	}
	return names, nil
}

func (m *memFS) Direct(string) error { return m.noDirect }

func (m *memFS) Create(name string, how Access) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.change("create", name); err != nil {
		return nil, err
	}
	if m.names[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	m.names[name] = &inode{}
	m.changed()
	return m.open(name, how), nil
}

func (m *memFS) Open(name string, how Access) (File, error) {
	if err := m.asks("open", name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return m.open(name, how), nil
}

func (m *memFS) open(name string, how Access) File {
	m.opens++
	m.peak = max(m.peak, m.opens)
	m.names[name].opens++
	return &memFile{fs: m, name: name, inode: m.names[name], direct: how == Direct}
}

func (m *memFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.change("rename", from); err != nil {
		return err
	}
	if old := m.names[to]; old != nil {
		m.unlink(old)
	}
	m.names[to] = m.names[from]
	delete(m.names, from)
	m.changed()
	return nil
}

func (m *memFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if err := m.change("remove", name); err != nil {
		return err
	}
	m.unlink(m.names[name])
	delete(m.names, name)
	m.changed()
	return nil
}

func (m *memFS) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.change("syncdir", dir); err != nil {
		return err
	}
	m.stable = maps.Clone(m.names)
	m.changed()
	return nil
}

func (m *memFS) Lock(name string) (io.Closer, error) {
	if err := m.asks("lock", name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locked[name] {
		return nil, &LockedError{Dir: filepath.Dir(name)}
	}
	m.locked[name] = true
	return memLock{m, name}, nil
}

type memLock struct {
	fs   *memFS
	name string
}

func (l memLock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locked, l.name)
	return nil
}

// take takes n bytes of the space that is left, or as many as there are. mu is
// held.
func (m *memFS) take(n int64) int64 {
	if m.space < 0 || n <= 0 {
		return max(n, 0)
	}
	n = min(n, m.space)
	m.space -= n
	return n
}

func (m *memFS) give(n int64) {
	if m.space >= 0 {
		m.space += n
	}
}

// cut says what a power cut does to what was not made durable.
type cut int

const (
	cutDrop cut = iota // nothing of it is there
	cutKeep            // all of it is there
	cutTorn            // some sectors are there, others not; sizes vary
	cuts
)

const sector = 512

// crash returns the file system as it is found after a power cut now. mu is held
// or nothing else runs.
func (m *memFS) crash(how cut, rnd *rand.Rand) *memFS {
	names := m.stable
	switch how {
	case cutKeep:
		names = m.names
	case cutTorn:
		// Each entry of the directory by itself: as it was, or as it is.
		names = maps.Clone(m.stable)
		for _, n := range slices.Sorted(maps.Keys(m.names)) {
			if rnd.IntN(2) == 0 {
				names[n] = m.names[n]
			}
		}
		for _, n := range slices.Sorted(maps.Keys(m.stable)) {
			if m.names[n] == nil && rnd.IntN(2) == 0 {
				delete(names, n)
			}
		}
	}
	after := newMemFS()
	for _, n := range slices.Sorted(maps.Keys(names)) {
		f := names[n]
		data := f.stable
		switch how {
		case cutKeep:
			data = f.data
		case cutTorn:
			data = torn(f, rnd)
		}
		i := &inode{data: bytes.Clone(data), stable: bytes.Clone(data)}
		after.names[n], after.stable[n] = i, i
	}
	return after
}

// torn mixes sectors that are stable with those that were written since.
func torn(f *inode, rnd *rand.Rand) []byte {
	size := len(f.stable)
	if d := len(f.data) - size; d > 0 {
		size += rnd.IntN(d + 1)
	} else if rnd.IntN(2) == 0 {
		size = len(f.data)
	}
	data := make([]byte, size)
	copy(data, f.stable)
	for off := 0; off < size && off < len(f.data); off += sector {
		if rnd.IntN(2) == 0 {
			copy(data[off:min(off+sector, size)], f.data[off:])
		}
	}
	return data
}

// memFile is an open file of a memFS.
type memFile struct {
	fs     *memFS
	name   string
	inode  *inode
	direct bool
	closed bool
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.asks("read", f.name); err != nil {
		return 0, err
	}
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	if err := f.aligned(p, off); err != nil {
		return 0, err
	}
	if off >= int64(len(f.inode.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.inode.data[off:])
	f.inode.reads += int64(n)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.write(p, off)
}

// aligned is what O_DIRECT asks for.
func (f *memFile) aligned(p []byte, off int64) error {
	if f.direct && (off%BlockSize != 0 || len(p)%BlockSize != 0 || uintptr(unsafe.Pointer(unsafe.SliceData(p)))%BlockSize != 0) {
		return &fs.PathError{Op: "direct", Path: f.name, Err: syscall.EINVAL}
	}
	return nil
}

func (f *memFile) WriteBlocks(blocks [][]byte, off int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	for _, p := range blocks {
		if err := f.aligned(p, off); err != nil {
			return err
		}
	}
	p := bytes.Join(blocks, nil)
	if off%BlockSize != 0 || len(p)%BlockSize != 0 {
		return fmt.Errorf("write of %d bytes at %d is not aligned", len(p), off)
	}
	_, err := f.write(p, off)
	return err
}

func (f *memFile) write(p []byte, off int64) (int, error) {
	if f.closed {
		return 0, fs.ErrClosed
	}
	if err := f.fs.change("write", f.name); err != nil {
		n := len(p) / 2
		if f.fs.short != nil {
			n = min(f.fs.short(len(p)), len(p))
		}
		return f.put(p[:n], off), err
	}
	n := f.put(p, off)
	if n < len(p) {
		return n, &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	f.fs.changed()
	return n, nil
}

// put writes as much as there is space for.
func (f *memFile) put(p []byte, off int64) int {
	i := f.inode
	grow := off + int64(len(p)) - int64(len(i.data))
	if got := f.fs.take(grow); got < grow {
		p = p[:max(0, int64(len(p))-(grow-got))]
	}
	was := len(i.data)
	if end := off + int64(len(p)); end > int64(len(i.data)) {
		i.data = append(i.data, make([]byte, end-int64(len(i.data)))...)
	}
	i.dirty = append(i.dirty, extent{was, int(off)}, extent{int(off), int(off) + len(p)})
	return copy(i.data[off:], p)
}

func (f *memFile) Allocate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.change("allocate", f.name); err != nil {
		return err
	}
	i := f.inode
	grow := size - int64(len(i.data))
	if got := f.fs.take(grow); got < grow {
		f.fs.give(got)
		return &fs.PathError{Op: "allocate", Path: f.name, Err: syscall.ENOSPC}
	}
	if grow > 0 {
		data := make([]byte, size)
		copy(data, i.data)
		i.data = data
	}
	f.fs.changed()
	return nil
}

func (f *memFile) Datasync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	if err := f.fs.change("datasync", f.name); err != nil {
		return err
	}
	i := f.inode
	if i.removed { // as osFS looks at the number of links
		return &fs.PathError{Op: "datasync", Path: f.name, Err: fs.ErrNotExist}
	}
	if len(i.stable) != len(i.data) {
		stable := make([]byte, len(i.data))
		copy(stable, i.stable)
		i.stable = stable
	}
	for _, e := range i.dirty {
		if e.to = min(e.to, len(i.data)); e.from < e.to {
			copy(i.stable[e.from:e.to], i.data[e.from:e.to])
		}
	}
	i.dirty = i.dirty[:0]
	f.fs.changed()
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.change("truncate", f.name); err != nil {
		return err
	}
	i := f.inode
	if size <= int64(len(i.data)) {
		f.fs.give(int64(len(i.data)) - size)
		i.dirty = append(i.dirty, extent{int(size), len(i.data)})
		i.data = i.data[:size:size]
	} else {
		i.dirty = append(i.dirty, extent{len(i.data), int(size)})
		i.data = append(i.data, make([]byte, size-int64(len(i.data)))...)
	}
	f.fs.changed()
	return nil
}

func (f *memFile) Size() (int64, error) {
	if err := f.fs.asks("size", f.name); err != nil {
		return 0, err
	}
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.inode.data)), nil
}

func (f *memFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return errors.New("closed twice")
	}
	f.closed = true
	f.fs.opens--
	if f.inode.opens--; f.inode.removed && f.inode.opens == 0 {
		f.fs.give(int64(len(f.inode.data)))
	}
	return nil
}
