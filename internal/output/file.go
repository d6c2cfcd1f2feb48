package output

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/klauspost/compress/gzip"
	"github.com/valyala/bytebufferpool"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weir/buffer"
	"weir/forward"
)

const (
	// maxOpen is how many files stay open between deliveries.
	maxOpen = 256
	// stageBytes is how much formatted text gathers before it is written.
	stageBytes = 16 << 20
)

// StateSaver makes an output's state durable before it acts on it; a
// *buffer.Cursor is one.
type StateSaver interface {
	State() []byte
	SaveState(state []byte) error
}

// File writes events to files, each event exactly once (promise P4): the state
// committed with the cursor holds the length of every file that the next
// delivery may touch, and what lies beyond it is cut off before that delivery
// is made again.
type File struct {
	c      FileConfig
	path   *pathTemplate
	suffix string
	format *formatter
	events eventReader
	saver  StateSaver
	log    *zap.Logger

	known map[string]int64     // committed lengths by path
	open  map[string]*openFile // by path
	names map[string]string    // expanded template -> path, where _N is appended
	turn  uint64
	zip   *gzip.Writer

	bounce bounce // made with the first large write
}

// openFile is one file and what waits to be written to it.
type openFile struct {
	f       *os.File
	direct  *os.File // the same with O_DIRECT, once a write was large enough
	path    string
	length  int64 // written
	pending *bytebufferpool.ByteBuffer
	dirty   bool   // written since the last fdatasync
	turn    uint64 // of its last use

	noDirect bool // the file system refuses O_DIRECT
}

// fileState is the state as it is stored.
type fileState struct {
	Files map[string]int64  `json:"files,omitempty"`
	Names map[string]string `json:"names,omitempty"`
}

// NewFile returns a file output. It brings the files back to the lengths in the
// saver's state.
func NewFile(c FileConfig, saver StateSaver, log *zap.Logger) (*File, error) {
	loc, err := c.Zone.location()
	if err != nil {
		return nil, err
	}
	o := &File{c: c, saver: saver, log: log, known: map[string]int64{}, open: map[string]*openFile{}, names: map[string]string{}}
	prefix, suffix, err := c.fullPath()
	if err != nil {
		return nil, err
	}
	o.suffix = suffix
	if o.path, err = newPathTemplate(prefix, loc); err != nil {
		return nil, err
	}
	if o.format, err = newFormatter(c.Format); err != nil {
		return nil, err
	}
	return o, o.recover()
}

// recover cuts each file back to its committed length.
func (o *File) recover() error {
	p := o.saver.State()
	if len(p) == 0 {
		return nil
	}
	var s fileState
	if err := json.Unmarshal(p, &s); err != nil {
		return fmt.Errorf("state of the file output: %w", err)
	}
	for path, length := range s.Files {
		fi, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && length == 0:
			continue
		case errors.Is(err, fs.ErrNotExist):
			o.log.Warn("output file is gone since the last run", zap.String("file", path))
			continue
		case err != nil:
			return fmt.Errorf("output file: %w", err)
		case fi.Size() < length:
			o.log.Warn("output file is shorter than weir has written", zap.String("file", path), zap.Int64("length", fi.Size()), zap.Int64("written", length))
			length = fi.Size()
		case fi.Size() > length:
			o.log.Info("unfinished delivery cut off the output file", zap.String("file", path), zap.Int64("bytes", fi.Size()-length))
			if err := os.Truncate(path, length); err != nil {
				return fmt.Errorf("cut back an unfinished delivery: %w", err)
			}
		}
		o.known[path] = length
	}
	for name, path := range s.Names {
		o.names[name] = path
	}
	return nil
}

// Deliver writes the batch and makes it durable.
func (o *File) Deliver(_ context.Context, batch *buffer.Batch) ([]byte, error) {
	o.turn++
	o.notice()
	err := o.write(batch)
	if err == nil {
		err = o.sync()
	}
	if err != nil {
		o.rollBack()
		return nil, err
	}
	o.closeIdle()
	clear(o.known)
	for path, f := range o.open {
		o.known[path] = f.length
	}
	return o.state(), nil
}

// state is what must be durable before files are written beyond it.
func (o *File) state() []byte {
	s := fileState{Files: o.known, Names: map[string]string{}}
	for name, path := range o.names {
		if _, ok := o.known[path]; ok {
			s.Names[name] = path
		} else {
			delete(o.names, name)
		}
	}
	p, err := json.Marshal(s)
	if err != nil { // maps of strings and numbers
		panic(err)
	}
	return p
}

// notice looks for files that somebody has moved, removed or cut meanwhile, as
// log rotation does: they are opened anew.
func (o *File) notice() {
	for path, f := range o.open {
		now, err := os.Stat(path)
		if err == nil {
			if opened, err := f.f.Stat(); err == nil && os.SameFile(now, opened) {
				if now.Size() < f.length {
					o.log.Info("output file was cut by somebody else", zap.String("file", path))
					f.length = now.Size()
					o.known[path] = f.length
				}
				continue
			}
		}
		o.log.Info("output file was moved or removed by somebody else, a new one is begun", zap.String("file", path))
		o.forget(f)
		delete(o.known, path)
	}
}

// write formats the batch and writes it in stages, so that memory stays bounded
// also for payloads that decompress to much more.
func (o *File) write(batch *buffer.Batch) error {
	waiting := 0
	for i := range batch.Entries {
		e := &batch.Entries[i]
		var f *openFile // of the event before, whose second is sec
		sec := int64(0)
		err := o.events.each(e, func(ev forward.Event, p []byte) (int, error) {
			if f == nil || ev.Sec != sec && o.path.timed {
				f, sec = o.fileOf(e.Tag, ev.Sec), ev.Sec
			}
			before := len(f.pending.B)
			out, n, err := o.format.append(f.pending.B, e.Tag, ev, p)
			if err != nil {
				return 0, err
			}
			f.pending.B = out
			waiting += len(out) - before
			if waiting >= stageBytes {
				waiting = 0
				return n, o.stage()
			}
			return n, nil
		})
		if err != nil {
			return errorIn(e, err)
		}
	}
	return o.stage()
}

// fileOf finds the file of an event; it is not opened yet if it is new.
func (o *File) fileOf(tag []byte, sec int64) *openFile {
	name := o.path.expand(tag, sec)
	path := name + o.suffix
	if !o.c.Append {
		path = o.indexed(name)
	}
	f := o.open[path]
	if f == nil {
		f = &openFile{path: path}
		o.open[path] = f
	}
	if f.pending == nil {
		f.pending = bytebufferpool.Get()
	}
	f.turn = o.turn
	return f
}

// indexed is the path with _N for a name: weir's own file, or one that is not
// there yet.
func (o *File) indexed(name string) string {
	if path, ok := o.names[name]; ok {
		return path
	}
	for n := 0; ; n++ {
		path := name + "_" + strconv.Itoa(n) + o.suffix
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) || err != nil && n > 1<<20 {
			o.names[name] = path
			return path
		}
	}
}

// stage writes what waits. Files that the durable state does not know yet go
// into it first, with their present lengths.
func (o *File) stage() error {
	unknown := false
	for path, f := range o.open {
		if f.pending == nil || len(f.pending.B) == 0 {
			continue
		}
		if f.f == nil {
			if err := o.openFile(f); err != nil {
				return err
			}
		}
		if _, ok := o.known[path]; !ok {
			o.known[path] = f.length
			unknown = true
		}
	}
	if unknown {
		if err := o.saver.SaveState(o.state()); err != nil {
			return err
		}
	}
	for _, f := range o.open {
		if f.pending == nil || len(f.pending.B) == 0 {
			continue
		}
		if err := o.writeFile(f); err != nil {
			return err
		}
	}
	return nil
}

// openFile opens or makes the file and its directory, and makes the names
// durable.
func (o *File) openFile(f *openFile) error {
	dir := filepath.Dir(f.path)
	if err := os.MkdirAll(dir, os.FileMode(o.c.DirMode)); err != nil {
		return fmt.Errorf("directory of the output file: %w", err)
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE, os.FileMode(o.c.FileMode))
	if err != nil {
		return fmt.Errorf("output file: %w", err)
	}
	fi, err := file.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no plain file", f.path)
	}
	if err == nil && fi.Size() == 0 {
		err = syncDir(dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("output file: %w", err), file.Close())
	}
	f.f, f.length = file, fi.Size()
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeFile writes what waits for one file at its end.
func (o *File) writeFile(f *openFile) error {
	p := f.pending.B
	if o.c.Gzip {
		member := bytebufferpool.Get()
		defer bytebufferpool.Put(member)
		if o.zip == nil {
			o.zip = gzip.NewWriter(member)
		} else {
			o.zip.Reset(member)
		}
		_, err := o.zip.Write(p)
		if err = errors.Join(err, o.zip.Close()); err != nil {
			return fmt.Errorf("compress for %s: %w", f.path, err)
		}
		p = member.B
	}
	if o.bounce == nil && len(p) >= directBytes {
		o.bounce = newBounce()
	}
	if err := f.append(p, o.bounce); err != nil {
		return err
	}
	f.pending.Reset()
	return nil
}

// sync makes what was written durable.
func (o *File) sync() error {
	for _, f := range o.open {
		if f.pending != nil {
			bytebufferpool.Put(f.pending)
			f.pending = nil
		}
		if !f.dirty {
			continue
		}
		if err := unix.Fdatasync(int(f.f.Fd())); err != nil {
			return fmt.Errorf("make %s durable: %w", f.path, err)
		}
		f.dirty = false
	}
	return nil
}

// rollBack cuts every file back to its committed length.
func (o *File) rollBack() {
	for path, f := range o.open {
		if f.pending != nil {
			bytebufferpool.Put(f.pending)
			f.pending = nil
		}
		length, ok := o.known[path]
		if f.f == nil || !ok {
			o.forget(f)
			continue
		}
		if f.dirty {
			if err := f.f.Truncate(length); err != nil {
				// The next delivery writes over it from the same place.
				o.log.Error("unfinished delivery not cut off the output file", zap.String("file", path), zap.Error(err))
			}
		}
		f.length = length
	}
}

// closeIdle closes the files that were not used for longest, beyond maxOpen.
func (o *File) closeIdle() {
	for len(o.open) > maxOpen {
		var oldest *openFile
		for _, f := range o.open {
			if oldest == nil || f.turn < oldest.turn {
				oldest = f
			}
		}
		o.forget(oldest)
	}
}

// forget closes a file.
func (o *File) forget(f *openFile) {
	delete(o.open, f.path)
	if f.f == nil {
		return
	}
	err := f.f.Close()
	if f.direct != nil {
		err = errors.Join(err, f.direct.Close())
	}
	if err != nil {
		o.log.Warn("output file not closed", zap.String("file", f.path), zap.Error(err))
	}
}

// Close closes all files.
func (o *File) Close() error {
	for _, f := range o.open {
		o.forget(f)
	}
	return nil
}
