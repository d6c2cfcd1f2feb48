package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// A cursor's file is a row of records, of which the last whole one counts.
// Appending costs one fdatasync and can only tear the new record; the file is
// written anew when it has grown. Integers are little-endian:
//
//	 0  u32  CRC-32C of the rest of the record
//	 4  u32  length of the state
//	 8  u64  sequence number of the chunk
//	16  u64  offset in it
//	24  u64  entries before that offset
//	32  u64  events before it
//	40       state
const (
	cursorHead   = 40
	cursorPrefix = "cursor."
	cursorNew    = ".new"
	// cursorMax is the length at which the file is written anew, unless one
	// record alone is a good part of it.
	cursorMax = 1 << 20
)

// cursorLog is one cursor's file.
type cursorLog struct {
	fs   FS
	name string
	sync bool
	file File
	size int64
	buf  []byte
}

func cursorName(dir, name string) string {
	return filepath.Join(dir, cursorPrefix+name)
}

// openCursorLog opens or makes the file; found is false if it holds no record.
func openCursorLog(b *Buffer, name string) (l *cursorLog, pos position, state []byte, found bool, err error) {
	l = &cursorLog{fs: b.fs, name: cursorName(b.opt.Dir, name), sync: b.opt.Durability == Fsync}
	l.file, err = l.fs.Open(l.name)
	if errors.Is(err, fs.ErrNotExist) {
		l.file, err = l.fs.Create(l.name)
		if err == nil {
			err = l.fs.SyncDir(b.opt.Dir)
		}
	}
	if err != nil {
		return nil, pos, nil, false, err
	}
	size, err := l.file.Size()
	if err != nil {
		return l, pos, nil, false, err
	}
	p := make([]byte, size)
	if size > 0 {
		if _, err := l.file.ReadAt(p, 0); err != nil {
			return l, pos, nil, false, fmt.Errorf("read %s: %w", l.name, err)
		}
	}
	for {
		rec, n := decodeCursor(p[l.size:])
		if n == 0 {
			return l, pos, state, found, nil
		}
		pos, found = rec, true
		state = append([]byte(nil), p[l.size+cursorHead:l.size+n]...)
		l.size += n
	}
}

// decodeCursor reads the record at the start of p; n is 0 if there is no whole
// one.
func decodeCursor(p []byte) (pos position, n int64) {
	if len(p) < cursorHead {
		return pos, 0
	}
	le := binary.LittleEndian
	n = cursorHead + int64(le.Uint32(p[4:]))
	if n > int64(len(p)) || crc32.Checksum(p[4:n], castagnoli) != le.Uint32(p) {
		return pos, 0
	}
	return position{seq: le.Uint64(p[8:]), off: int64(le.Uint64(p[16:])), entries: le.Uint64(p[24:]), events: le.Uint64(p[32:])}, n
}

// save appends a record and makes it durable. After an error the last record
// that was saved still counts.
func (l *cursorLog) save(pos position, state []byte) error {
	if len(state) > math.MaxUint32 {
		return fmt.Errorf("buffer: the state of a cursor has %d bytes", len(state))
	}
	n := cursorHead + len(state)
	if cap(l.buf) < n {
		l.buf = make([]byte, n)
	}
	p := l.buf[:n]
	le := binary.LittleEndian
	le.PutUint32(p[4:], uint32(len(state)))
	le.PutUint64(p[8:], pos.seq)
	le.PutUint64(p[16:], uint64(pos.off))
	le.PutUint64(p[24:], pos.entries)
	le.PutUint64(p[32:], pos.events)
	copy(p[cursorHead:], state)
	le.PutUint32(p, crc32.Checksum(p[4:], castagnoli))
	if l.size+int64(n) > max(cursorMax, 8*int64(n)) {
		return l.renew(p)
	}
	if err := l.write(l.file, p, l.size); err != nil {
		return fmt.Errorf("save cursor %s: %w", l.name, err)
	}
	l.size += int64(n)
	return nil
}

func (l *cursorLog) write(f File, p []byte, off int64) error {
	if _, err := f.WriteAt(p, off); err != nil {
		return err
	}
	if !l.sync {
		return nil
	}
	return f.Datasync()
}

// renew replaces the file by one with that record alone.
func (l *cursorLog) renew(p []byte) error {
	name := l.name + cursorNew
	err := l.fs.Remove(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("renew cursor %s: %w", l.name, err)
	}
	f, err := l.fs.Create(name)
	if err != nil {
		return fmt.Errorf("renew cursor %s: %w", l.name, err)
	}
	err = l.write(f, p, 0)
	if err == nil {
		err = l.fs.Rename(name, l.name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("renew cursor %s: %w", l.name, err), f.Close(), l.fs.Remove(name))
	}
	if l.sync {
		err = l.fs.SyncDir(filepath.Dir(l.name))
	}
	err = errors.Join(err, l.file.Close())
	l.file, l.size = f, int64(len(p))
	if err != nil {
		return fmt.Errorf("renew cursor %s: %w", l.name, err)
	}
	return nil
}

func (l *cursorLog) close() error {
	if l == nil || l.file == nil {
		return nil
	}
	return l.file.Close()
}

// isCursor reports whether a file belongs to a cursor, and to which.
func isCursor(file string) (name string, ok bool) { return strings.CutPrefix(file, cursorPrefix) }
