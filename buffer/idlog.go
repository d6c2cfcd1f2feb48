package buffer

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// The ids of chunks that are closed, so that resends are known after a restart
// without reading what waits, and when their chunks are gone. The ids of the
// chunk being written are in it. Files ids.N are written in turn: when one holds a
// quarter of the window the next is begun, and those go that the window does not
// reach any more, by count or by age, so at most 1 1/4 windows of ids and one record
// are on disk. Behind its records the last file has room, durably, for those of all
// ids that are not saved yet: a commit takes that room before its ids are acked, so
// that a disk that is full later cannot keep them from being saved. It reads as
// zeros, which are no record, or as what is left of one that was torn.
// Integers are little-endian. A file begins with a head,
//
//	 0  u32  magic "WERI"
//	 4  u32  CRC-32C of bytes 8 to 31
//	 8  u32  version of the format
//	12  u32  0
//	16       key of the hashes, 16 bytes, the same in all files
//
// and goes on with records, each durable before the next:
//
//	 0  u32  CRC-32C of the rest of the record, begun with the head's CRC
//	 4  u32  number of ids
//	 8  u64  sequence number of a chunk: the ids of this one and all before it are
//	         in this record and those before it
//	16       ids, 20 bytes each: the first half of SHA-256 of the key, u16 length of
//	         the tag, the tag and the chunk id; then u32 when it became durable, Unix
//	         seconds
const (
	idPrefix     = "ids."
	magicIDs     = 0x49524557 // "WERI"
	idFileHead   = 32
	idRecordHead = 16
	idSize       = 20
)

// idStep is by how much room is taken at once, or an eighth of a small chunk, if
// the disk has it.
const idStep = 256 << 10

// idLog is the files of a directory.
type idLog struct {
	b        *Buffer
	key      idKey
	number   uint64   // the highest that was used
	files    []idFile // ascending; the last one is written to, if file is open
	file     File
	end      int64  // of the last record
	size     int64  // of the file, with the room behind it
	crc      uint32 // of the head, with which records begin
	covered  uint64 // chunks up to this one have their ids in it
	roomless bool   // room could not be taken for another reason than a full disk
}

type idFile struct {
	number uint64
	ids    int
	newest uint32 // when the last of them became durable
}

func idFileName(dir string, n uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%016x", idPrefix, n))
}

// idFileNumber reads a file's number from its name.
func idFileNumber(name string) (n uint64, ok bool) {
	hex, ok := strings.CutPrefix(name, idPrefix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(hex, 16, 64)
	return n, err == nil
}

// load reads the files into the window and finds which chunks they cover. What
// is not readable is left out: a resend of its entries is stored again. It begins
// with the newest, and files that the window does not reach are not even read. Ids
// that were written twice, after a failure, take two places of the window.
func (l *idLog) load(numbers []uint64) error {
	slices.Sort(numbers)
	var kept []loadedIDs // newest first
	found, window := 0, l.b.ids.window
	for _, n := range slices.Backward(numbers) {
		l.number = max(l.number, n)
		name := idFileName(l.b.opt.Dir, n)
		var file loadedIDs
		if found < window {
			var err error
			if file, err = l.read(name, len(kept) > 0); err != nil {
				return err
			}
			if !file.sound {
				l.b.log.Warn("file of chunk ids has nothing readable in it and is removed", zap.String("file", name))
			}
		}
		// The newest is written to again, with or without ids in it.
		if file.ids > 0 || file.sound && len(kept) == 0 {
			found += file.ids
			file.number = n
			kept = append(kept, file)
			l.files = append(l.files, file.idFile)
			l.covered = max(l.covered, file.covered)
			continue
		}
		if err := l.b.fs.Remove(name); err != nil {
			return err
		}
	}
	slices.Reverse(l.files)
	if len(kept) == 0 {
		rand.Read(l.key[:]) // never fails
		return nil
	}
	l.b.ids.resize(found)
	skip := max(found-l.b.ids.window, 0)
	for _, file := range slices.Backward(kept) {
		for _, p := range file.records {
			if n := min(skip, len(p)/idSize); n > 0 {
				skip -= n
				p = p[n*idSize:]
			}
			l.b.ids.load(p)
		}
	}
	return l.resume(&kept[0])
}

// resume makes the file the one that is written to. It writes its last record
// once more, where it is: it may be one whose fdatasync failed, so that it is gone
// with the next power cut. Those before it were durable before it was begun. The
// same bytes in the same place make nothing grow, however often weir is started.
func (l *idLog) resume(file *loadedIDs) error {
	l.b.ids.unsaved = 0
	name := idFileName(l.b.opt.Dir, file.number)
	f, err := l.b.fs.Open(name, Cached)
	if err != nil {
		return err
	}
	if len(file.last) > 0 {
		_, err = f.WriteAt(file.last, file.at)
	}
	if err == nil && l.b.opt.Durability == Fsync {
		err = f.Datasync()
	}
	if err != nil {
		l.b.log.Warn("last chunk ids not written again, they go to a new file", zap.String("file", name), zap.Error(errors.Join(err, f.Close())))
		l.b.ids.unsaved = min(max(len(file.last)-idRecordHead, 0)/idSize, l.b.ids.count)
		l.b.saveIDs(l.covered)
		return nil
	}
	l.file, l.end, l.size, l.crc = f, file.at+int64(len(file.last)), file.size, file.crc
	return nil
}

// loadedIDs is a file that was read.
type loadedIDs struct {
	idFile
	sound   bool // has a head, with the key
	crc     uint32
	size    int64
	covered uint64
	records [][]byte // ids, as in the file
	last    []byte   // the whole last record
	at      int64    // its offset, or where the first one belongs
}

// read reads one file; keyed says that the key is known and the file's must be
// the same.
func (l *idLog) read(name string, keyed bool) (file loadedIDs, err error) {
	f, err := l.b.fs.Open(name, Cached)
	if err != nil {
		return file, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil || size < idFileHead {
		return file, err
	}
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil {
		return file, fmt.Errorf("read %s: %w", name, err)
	}
	le := binary.LittleEndian
	crc := le.Uint32(p[4:])
	if le.Uint32(p) != magicIDs || crc32.Checksum(p[8:idFileHead], castagnoli) != crc {
		return file, nil
	}
	if v := le.Uint32(p[8:]); v != version {
		return file, fmt.Errorf("%s: format version %d, this weir reads %d", name, v, version)
	}
	key := idKey(p[16:idFileHead])
	if keyed && key != l.key {
		return file, nil
	}
	l.key = key
	file.sound, file.crc, file.size, file.at = true, crc, size, idFileHead
	for off := int64(idFileHead); size-off >= idRecordHead; {
		n := int64(le.Uint32(p[off+4:]))
		end := off + idRecordHead + n*idSize
		if n == 0 || end > size || crc32.Update(crc, castagnoli, p[off+4:end]) != le.Uint32(p[off:]) {
			break // the room behind the last one
		}
		ids := p[off+idRecordHead : end]
		for q := ids; len(q) > 0; q = q[idSize:] {
			file.newest = max(file.newest, le.Uint32(q[16:]))
		}
		file.covered = max(file.covered, le.Uint64(p[off+8:]))
		file.ids += int(n)
		file.records = append(file.records, ids)
		file.last, file.at = p[off:end], off
		off = end
	}
	return file, nil
}

// save writes the ids that are not in the log yet, those of chunks up to seq.
// After an error they stay to be saved with the next ones.
func (l *idLog) save(seq uint64) error {
	b := l.b
	b.mu.Lock()
	list := b.ids.newest(nil, b.ids.unsaved)
	b.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	if l.file == nil || l.files[len(l.files)-1].ids >= max(b.ids.window/4, 1) {
		if err := l.next(len(list)); err != nil {
			if l.file == nil {
				return err
			}
			b.log.Warn("the last file of chunk ids is written on", zap.Error(err))
		}
	}
	le := binary.LittleEndian
	p := make([]byte, idRecordHead, idRecordHead+len(list)*idSize)
	le.PutUint32(p[4:], uint32(len(list)))
	le.PutUint64(p[8:], seq)
	for _, s := range list {
		p = le.AppendUint32(append(p, s.id[:]...), s.at)
	}
	err := l.put(p)
	if err != nil && l.next(len(list)) == nil { // it may be the file's blocks that are bad
		err = l.put(p)
	}
	if err != nil {
		return fmt.Errorf("save chunk ids: %w", err)
	}
	l.end += int64(len(p))
	l.size = max(l.size, l.end)
	last := &l.files[len(l.files)-1]
	last.ids += len(list)
	last.newest = list[len(list)-1].at
	l.covered = seq
	b.mu.Lock()
	// Only the committer adds ids, and it is here.
	b.ids.unsaved = 0
	b.mu.Unlock()
	return l.prune()
}

// put writes a record behind the last one and makes it durable. Its checksum
// depends on the file.
func (l *idLog) put(p []byte) error {
	binary.LittleEndian.PutUint32(p, crc32.Update(l.crc, castagnoli, p[4:]))
	if _, err := l.file.WriteAt(p, l.end); err != nil {
		return err
	}
	if l.b.opt.Durability != Fsync {
		return nil
	}
	return l.file.Datasync()
}

// reserve makes room for the record of the ids that are not saved and n more, and
// for the head of another record. If the disk is too full for it, no id may be
// acked that a crash could make weir forget: the error is the file system's. One that
// fails in another way is logged, and does not stop commits.
func (l *idLog) reserve(n int) error {
	b := l.b
	if n == 0 || b.ids.window <= 0 {
		return nil
	}
	b.mu.Lock()
	n = min(b.ids.unsaved+n, b.ids.window)
	b.mu.Unlock()
	var err error
	if need := l.end + l.record(n); l.file == nil {
		err = l.next(n)
	} else if need > l.size {
		l.size, err = l.grow(l.file, l.size, need)
	}
	switch {
	case noSpace(err):
		return fmt.Errorf("make room for chunk ids: %w", err)
	case err != nil && !l.roomless:
		b.log.Warn("no room made for chunk ids: after a crash on a full disk, a resend could be stored twice", zap.Error(err))
	}
	l.roomless = err != nil
	return nil
}

// record is the room for a record of n ids and the head of another one.
func (l *idLog) record(n int) int64 { return 2*idRecordHead + int64(n)*idSize }

// grow makes f, which has size bytes, at least need bytes long, durably, and
// returns how long it is then.
func (l *idLog) grow(f File, size, need int64) (int64, error) {
	step := min(idStep, padded(l.b.chunkLimit/8))
	to := (need + step - 1) / step * step
	err := f.Allocate(to)
	if noSpace(err) {
		to = padded(need)
		err = f.Allocate(to)
	}
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		to = padded(need)
		_, err = f.WriteAt(make([]byte, to-size), size)
	}
	if err == nil && l.b.opt.Durability == Fsync {
		err = f.Datasync()
	}
	if err != nil {
		return size, err
	}
	return to, nil
}

// next begins a file with room for n ids. If that fails, the one before it is
// still the one that is written to.
func (l *idLog) next(n int) error {
	l.number++ // not used again, whatever comes of it
	name := idFileName(l.b.opt.Dir, l.number)
	f, err := l.b.fs.Create(name, Cached)
	if err != nil {
		return fmt.Errorf("new file of chunk ids: %w", err)
	}
	var head [idFileHead]byte
	le := binary.LittleEndian
	le.PutUint32(head[:], magicIDs)
	le.PutUint32(head[8:], version)
	copy(head[16:], l.key[:])
	crc := crc32.Checksum(head[8:], castagnoli)
	le.PutUint32(head[4:], crc)
	_, err = f.WriteAt(head[:], 0)
	size := int64(idFileHead)
	if err == nil {
		size, err = l.grow(f, size, idFileHead+l.record(n))
	}
	if err == nil {
		err = l.b.syncDir()
	}
	if err != nil {
		err = errors.Join(err, f.Close(), l.b.fs.Remove(name))
		return fmt.Errorf("new file of chunk ids %s: %w", name, err)
	}
	if l.file != nil {
		if err := errors.Join(l.file.Truncate(l.end), l.close()); err != nil {
			l.b.log.Warn("room in the last file of chunk ids not given back", zap.Error(err))
		}
	}
	l.file, l.end, l.size, l.crc = f, idFileHead, size, crc
	l.files = append(l.files, idFile{number: l.number})
	return nil
}

// prune removes the files that the window does not reach, by count or by age.
func (l *idLog) prune() error {
	after, limit := 0, time.Now().Add(-l.b.ids.age).Unix()
	for i := len(l.files) - 1; i >= 0; i-- {
		if f := l.files[i]; i == len(l.files)-1 || after < l.b.ids.window && int64(f.newest) >= limit {
			after += f.ids
			continue
		}
		var errs []error
		for _, f := range l.files[:i+1] {
			errs = append(errs, l.b.fs.Remove(idFileName(l.b.opt.Dir, f.number)))
		}
		l.files = slices.Delete(l.files, 0, i+1)
		return errors.Join(errs...)
	}
	return nil
}

func (l *idLog) close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// saveIDs puts the ids of the chunks up to seq into the log. If that fails, which
// a full disk is no reason for, they are kept in memory and it is tried again with
// the next commit; chunks are delivered and go meanwhile, and a crash before it
// succeeds forgets the ids of those.
func (b *Buffer) saveIDs(seq uint64) {
	if b.ids.window <= 0 {
		return
	}
	err := b.idLog.save(seq)
	switch {
	case err != nil && b.lateIDs == 0:
		b.log.Warn("ids of stored chunks not saved, will be tried again: after a crash before that, a resend of them would be stored twice", zap.Error(err))
	case err == nil && b.lateIDs > 0:
		b.log.Info("ids of stored chunks are saved")
	}
	b.lateIDs = 0
	if err != nil {
		b.lateIDs = seq
	}
}
