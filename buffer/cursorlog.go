package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/bits"
	"path/filepath"
	"strings"
)

// A cursor's file has two halves, each a row of records. The record with the
// highest serial number counts; the next one goes behind it, or, when its half
// is full, to the beginning of the other half, which holds only older ones. So a
// torn write can hurt none but the new record, and a save takes no space: a disk
// that is full can be emptied. Integers are little-endian:
//
//	 0  u32  CRC-32C of the rest of the record
//	 4  u32  length of the state
//	 8  u64  serial number, one more than that of the record before it
//	16  u64  sequence number of the chunk
//	24  u64  offset in it
//	32  u64  entries before that offset
//	40  u64  events before it
//	48       state
//
// A file is written with zeros when it is made, or when a record has outgrown
// it, under another name, and renamed when it is whole.
const (
	cursorHead   = 48
	cursorPrefix = "cursor."
	cursorNew    = ".new"
	cursorHalf   = 64 << 10 // the least size of a half
	// maxState is the most bytes that a state may have.
	maxState = 64 << 20
)

// cursorLog is one cursor's file.
type cursorLog struct {
	fs     FS
	name   string
	sync   bool
	file   File
	half   int64 // size of a half
	end    int64 // of the last record
	serial uint64
	buf    []byte
}

// cursorRecord is what was saved.
type cursorRecord struct {
	serial uint64
	pos    position
	state  []byte
}

func cursorName(dir, name string) string {
	return filepath.Join(dir, cursorPrefix+name)
}

// openCursorLog opens or makes the file and returns the last record; its serial
// number is 0 if there is none.
func openCursorLog(b *Buffer, name string) (*cursorLog, cursorRecord, error) {
	l := &cursorLog{fs: b.fs, name: cursorName(b.opt.Dir, name), sync: b.opt.Durability == Fsync}
	var last cursorRecord
	var size int64
	f, err := l.fs.Open(l.name, Cached)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return l, last, err
	default:
		l.file = f
		if size, err = f.Size(); err != nil {
			return l, last, err
		}
	}
	if l.half = size / 2; l.half > 0 {
		p := make([]byte, 2*l.half)
		if _, err := f.ReadAt(p, 0); err != nil {
			return l, last, fmt.Errorf("read %s: %w", l.name, err)
		}
		last = l.scan(p)
	}
	if l.half >= cursorHalf {
		return l, last, nil
	}
	// New, or not as it was made.
	return l, last, l.renew(cursorHalf, last)
}

// scan finds the last record in p, which is both halves.
func (l *cursorLog) scan(p []byte) (last cursorRecord) {
	for begin := int64(0); begin < 2*l.half; begin += l.half {
		row := p[begin : begin+l.half]
		before := uint64(0)
		for off := int64(0); ; {
			r, n := decodeCursor(row[off:])
			if n == 0 || off > 0 && r.serial != before+1 {
				break
			}
			off += n
			before = r.serial
			if r.serial > last.serial {
				last = r
				l.end, l.serial = begin+off, r.serial
			}
		}
	}
	last.state = append([]byte(nil), last.state...)
	return last
}

// decodeCursor reads the record at the start of p; n is 0 if there is no whole
// one.
func decodeCursor(p []byte) (r cursorRecord, n int64) {
	if len(p) < cursorHead {
		return r, 0
	}
	le := binary.LittleEndian
	n = cursorHead + int64(le.Uint32(p[4:]))
	if n > int64(len(p)) || crc32.Checksum(p[4:n], castagnoli) != le.Uint32(p) {
		return r, 0
	}
	r.serial = le.Uint64(p[8:])
	r.pos = position{seq: le.Uint64(p[16:]), off: int64(le.Uint64(p[24:])), entries: le.Uint64(p[32:]), events: le.Uint64(p[40:])}
	r.state = p[cursorHead:n]
	return r, n
}

// encode returns the record's bytes, valid until the next call.
func (l *cursorLog) encode(r cursorRecord) []byte {
	n := cursorHead + len(r.state)
	if cap(l.buf) < n {
		l.buf = make([]byte, n)
	}
	p := l.buf[:n]
	le := binary.LittleEndian
	le.PutUint32(p[4:], uint32(len(r.state)))
	le.PutUint64(p[8:], r.serial)
	le.PutUint64(p[16:], r.pos.seq)
	le.PutUint64(p[24:], uint64(r.pos.off))
	le.PutUint64(p[32:], r.pos.entries)
	le.PutUint64(p[40:], r.pos.events)
	copy(p[cursorHead:], r.state)
	le.PutUint32(p, crc32.Checksum(p[4:], castagnoli))
	return p
}

// save writes a record and makes it durable. After an error the last record that
// was saved still counts, or this one.
func (l *cursorLog) save(pos position, state []byte) error {
	if len(state) > maxState {
		return fmt.Errorf("buffer: the state of cursor %s has %d bytes, at most %d can be stored", l.name, len(state), maxState)
	}
	r := cursorRecord{serial: l.serial + 1, pos: pos, state: state}
	p := l.encode(r)
	n := int64(len(p))
	if n > l.half {
		return l.renew(int64(1)<<bits.Len64(uint64(2*n)), r)
	}
	at := l.end
	switch { // a record does not cross the border
	case at <= l.half && at+n > l.half:
		at = l.half
	case at+n > 2*l.half:
		at = 0
	}
	if err := l.write(l.file, p, at); err != nil {
		return fmt.Errorf("save cursor %s: %w", l.name, err)
	}
	l.end, l.serial = at+n, r.serial
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

// renew replaces the file by one with halves of that size and that record, if it
// is one.
func (l *cursorLog) renew(half int64, r cursorRecord) error {
	name := l.name + cursorNew
	f, err := l.fs.Create(name, Cached)
	if errors.Is(err, fs.ErrExist) { // left behind by a failure
		if err = l.fs.Remove(name); err == nil {
			f, err = l.fs.Create(name, Cached)
		}
	}
	if err != nil {
		return fmt.Errorf("renew cursor %s: %w", l.name, err)
	}
	p := make([]byte, 2*half)
	end := int64(0)
	if r.serial > 0 {
		end = int64(copy(p, l.encode(r)))
	}
	err = l.write(f, p, 0)
	if err == nil {
		err = l.fs.Rename(name, l.name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("renew cursor %s: %w", l.name, err), f.Close(), l.fs.Remove(name))
	}
	old := l.file
	l.file, l.half, l.end, l.serial = f, half, end, r.serial
	if l.sync {
		err = l.fs.SyncDir(filepath.Dir(l.name))
	}
	if old != nil {
		err = errors.Join(err, old.Close())
	}
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
