package output

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// directBlock is what O_DIRECT wants offsets, lengths and memory to be a
	// multiple of (open(2)); no file system in use wants more.
	directBlock = 4096
	// directBytes is the least that is written past the page cache: copying into
	// new pages of the cache costs several times the CPU of the write itself.
	directBytes = 256 << 10
	// bounceBytes is the memory that such writes go through.
	bounceBytes = 1 << 20
)

// bounce is aligned memory for writes with O_DIRECT.
type bounce []byte

func newBounce() bounce {
	b := make([]byte, bounceBytes+directBlock)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & (directBlock - 1))
	return b[off : off+bounceBytes]
}

// append writes p at the end of the file: its whole blocks past the page cache
// where that is possible, the ends, which share blocks with what is before and
// behind them, through it.
func (f *openFile) append(p []byte, memory bounce) error {
	if len(p) < directBytes || f.noDirect {
		return f.writeAt(f.f, p)
	}
	if f.direct == nil {
		direct, err := os.OpenFile(f.path, os.O_WRONLY|unix.O_DIRECT, 0)
		switch {
		case errors.Is(err, syscall.EINVAL): // tmpfs, for one
			f.noDirect = true
			return f.writeAt(f.f, p)
		case err != nil:
			return fmt.Errorf("output file: %w", err)
		}
		// By its name, which may be another file's by now.
		mine, err1 := f.f.Stat()
		its, err2 := direct.Stat()
		if err := errors.Join(err1, err2); err != nil || !os.SameFile(mine, its) {
			f.noDirect = true
			return errors.Join(direct.Close(), err, f.writeAt(f.f, p))
		}
		f.direct = direct
	}
	if head := int(-f.length & (directBlock - 1)); head > 0 {
		if err := f.writeAt(f.f, p[:head]); err != nil {
			return err
		}
		p = p[head:]
	}
	for len(p) >= directBlock {
		n := copy(memory, p) &^ (directBlock - 1)
		err := f.writeAt(f.direct, memory[:n])
		if errors.Is(err, syscall.EINVAL) {
			f.noDirect = true
			return f.writeAt(f.f, p)
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return f.writeAt(f.f, p)
}

// writeAt writes p at the end of the file through the given descriptor.
func (f *openFile) writeAt(to *os.File, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	f.dirty = true
	if _, err := to.WriteAt(p, f.length); err != nil {
		return fmt.Errorf("output file: %w", err)
	}
	f.length += int64(len(p))
	return nil
}
