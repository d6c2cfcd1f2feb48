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
	"time"

	"go.uber.org/zap"
)

// The ids of chunks that are closed, so that resends are known after a restart
// without reading what waits, and when their chunks are gone. The ids of the
// chunk being written are in it. Files ids.N are written in turn: when one holds a
// quarter of the window the next is begun, as it is with each start, and those go
// that the window does not reach any more, by count or by age, so at most 1 1/4 windows of ids and one record are on disk.
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

// idLog is the files of a directory.
type idLog struct {
	b       *Buffer
	key     idKey
	files   []idFile // ascending; the last one is written to
	file    File
	end     int64
	crc     uint32 // of the head, with which records begin
	covered uint64 // chunks up to this one have their ids in it
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
	found, keyed, window := 0, false, l.b.ids.window
	for _, n := range slices.Backward(numbers) {
		name := idFileName(l.b.opt.Dir, n)
		var file loadedIDs
		if found < window {
			var err error
			if file, err = l.read(name, keyed); err != nil {
				return err
			}
		}
		if file.ids > 0 {
			keyed = true
			found += file.ids
			file.number = n
			kept = append(kept, file)
			l.files = append(l.files, file.idFile)
			continue
		}
		if found < window {
			l.b.log.Warn("file of chunk ids has nothing readable in it and is removed", zap.String("file", name))
		}
		if err := l.b.fs.Remove(name); err != nil {
			return err
		}
		// The number of one that is removed is not used again either.
		l.files = append(l.files, idFile{number: n})
	}
	slices.Reverse(l.files)
	if !keyed {
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
	return l.rewriteLast(&kept[0])
}

// rewriteLast writes the last record once more, where it is: it may be one whose
// fdatasync failed, so that it is gone with the next power cut. Those before it
// were durable before it was begun. The same bytes in the same place make nothing
// grow, however often weir is started.
func (l *idLog) rewriteLast(file *loadedIDs) error {
	l.covered = file.covered
	l.b.ids.unsaved = 0
	name := idFileName(l.b.opt.Dir, file.number)
	f, err := l.b.fs.Open(name, Cached)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(file.last, file.at)
	if err == nil && l.b.opt.Durability == Fsync {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		l.b.log.Warn("last chunk ids not written again, they go to a new file", zap.String("file", name), zap.Error(err))
		l.b.ids.unsaved = min((len(file.last)-idRecordHead)/idSize, l.b.ids.count)
		l.b.saveIDs(file.covered)
	}
	return nil
}

// loadedIDs is a file that was read.
type loadedIDs struct {
	idFile
	covered uint64
	records [][]byte // ids, as in the file
	last    []byte   // the whole last record
	at      int64    // its offset
}

// read reads one file; keyed says that the key is known and the file's must be
// the same. One without anything of use has no ids.
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
	for off := int64(idFileHead); size-off >= idRecordHead; {
		n := int64(le.Uint32(p[off+4:]))
		end := off + idRecordHead + n*idSize
		if end > size || crc32.Update(crc, castagnoli, p[off+4:end]) != le.Uint32(p[off:]) {
			break // the last one, torn
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
		if err := l.next(); err != nil {
			return err
		}
	}
	le := binary.LittleEndian
	p := make([]byte, idRecordHead, idRecordHead+len(list)*idSize)
	le.PutUint32(p[4:], uint32(len(list)))
	le.PutUint64(p[8:], seq)
	for _, s := range list {
		p = le.AppendUint32(append(p, s.id[:]...), s.at)
	}
	le.PutUint32(p, crc32.Update(l.crc, castagnoli, p[4:]))
	if err := l.write(p, l.end); err != nil {
		return fmt.Errorf("save chunk ids: %w", err)
	}
	l.end += int64(len(p))
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

func (l *idLog) write(p []byte, off int64) error {
	if _, err := l.file.WriteAt(p, off); err != nil {
		return err
	}
	if l.b.opt.Durability != Fsync {
		return nil
	}
	return l.file.Datasync()
}

// next begins a file. Every run begins one of its own, so that none is written to
// behind a record that is torn.
func (l *idLog) next() error {
	number := uint64(1)
	if n := len(l.files); n > 0 {
		number = l.files[n-1].number + 1
	}
	name := idFileName(l.b.opt.Dir, number)
	f, err := l.b.fs.Create(name, Cached)
	if err != nil {
		return fmt.Errorf("new file of chunk ids: %w", err)
	}
	err = l.close()
	// It is the last one from here on, whatever comes of it.
	l.file, l.end = f, idFileHead
	l.files = append(l.files, idFile{number: number})
	var head [idFileHead]byte
	le := binary.LittleEndian
	le.PutUint32(head[:], magicIDs)
	le.PutUint32(head[8:], version)
	copy(head[16:], l.key[:])
	l.crc = crc32.Checksum(head[8:], castagnoli)
	le.PutUint32(head[4:], l.crc)
	if err == nil {
		err = l.write(head[:], 0)
	}
	if err == nil {
		err = l.b.syncDir()
	}
	if err != nil {
		err = errors.Join(err, l.close(), l.b.fs.Remove(name))
		return fmt.Errorf("new file of chunk ids %s: %w", name, err)
	}
	return nil
}

// prune removes the files that the window does not reach, by count or by age.
func (l *idLog) prune() error {
	after, limit := 0, time.Now().Add(-l.b.ids.age).Unix()
	for i := len(l.files) - 1; i >= 0; i-- {
		// One without ids is only a number that is not used again.
		if f := l.files[i]; f.ids == 0 || after < l.b.ids.window && (i == len(l.files)-1 || int64(f.newest) >= limit) {
			after += l.files[i].ids
			continue
		}
		var errs []error
		for _, f := range l.files[:i+1] {
			if f.ids > 0 {
				errs = append(errs, l.b.fs.Remove(idFileName(l.b.opt.Dir, f.number)))
			}
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

// saveIDs puts the ids of the chunks up to seq into the log. If that fails they
// are kept in memory and it is tried again with the next commit: a full disk must
// be freed first, and so their chunks may go meanwhile. A crash in between forgets
// the ids of those.
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

// recoverIDs reads the log, and the chunks that it does not cover: the newest
// one, and what a crash kept from being saved.
func (b *Buffer) recoverIDs(numbers []uint64) error {
	if b.ids.window <= 0 {
		for _, n := range numbers {
			if err := b.fs.Remove(idFileName(b.opt.Dir, n)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := b.idLog.load(numbers); err != nil {
		return err
	}
	covered := b.idLog.covered
	for i, c := range b.chunks {
		// The newest may have been closed after a failure, lost that to a crash and
		// gone on, with ids in the log and others that are not.
		if c.seq <= covered && i < len(b.chunks)-1 {
			continue
		}
		if err := b.readIDs(c); err != nil {
			return err
		}
		if c.sealed {
			b.saveIDs(c.seq)
		}
	}
	b.ids.expire(time.Now())
	return nil
}

// readIDs takes the ids of the chunk's entries into the window. It reads their
// heads; damage ends the commit that it is in.
func (b *Buffer) readIDs(c *chunk) error {
	name := chunkName(b.opt.Dir, c.seq)
	f, err := b.fs.Open(name, Cached)
	if err != nil {
		return err
	}
	defer f.Close()
	w := walker{f: f, size: c.end, chunk: &chunk{seq: c.seq, salt: c.salt}, salted: true}
	for off := int64(BlockSize); off < c.end; {
		head, ok, err := w.commitAt(off)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if !ok {
			off += BlockSize
			continue
		}
		end := min(off+frameHead+head.body, c.end)
		for at := off + frameHead; at < end; {
			e, n, err := w.entryHead(at, end, head.seed)
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			if n == 0 {
				break
			}
			if len(e.ChunkID) > 0 {
				b.ids.add(stamped{b.idLog.key.id(e.Tag, e.ChunkID), uint32(head.written.Unix())})
			}
			at += n
		}
		off += head.length()
	}
	return nil
}

// entryHead reads the head, tag and chunk id of the entry at off and its length;
// 0 if it is damaged.
func (w *walker) entryHead(off, end int64, seed uint32) (e Entry, n int64, err error) {
	p, err := w.read(off, min(entryHead, end-off))
	if err != nil || len(p) < entryHead {
		return e, 0, err
	}
	meta := entryMeta(p)
	if p, err = w.read(off, min(meta, end-off)); err != nil || int64(len(p)) < meta {
		return e, 0, err
	}
	e, n, err = decodeEntryHead(p, seed)
	if err != nil {
		return e, 0, nil
	}
	return e, n, nil
}
