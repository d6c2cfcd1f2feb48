// Package quarantine keeps messages, or parts of them, that can never be taken:
// one file each, durable before the sender's ack, bounded in size and number.
//
// A file is a line of JSON, the Item, and then the data as it came. Its name is
// the time of receipt, so that names sort by age.
package quarantine

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Item is what is known of a quarantined message beside its data.
type Item struct {
	// ID is the name of the file without its suffix; it is not in the file.
	ID string `json:"-"`
	// Size is the length of the data in bytes; it is not in the file either.
	Size int64 `json:"-"`

	// Kind is that of forward.Invalid: message, events or json.
	Kind string `json:"kind"`
	// Tag is the sender's tag, nil if there was none to be read.
	Tag []byte `json:"tag"`
	// Chunk is the message's chunk id, nil without one.
	Chunk  []byte `json:"chunk,omitempty"`
	Reason string `json:"reason"`
	Cause  string `json:"cause"`
	Sender string `json:"sender"`
	// Received is when the message was whole.
	Received time.Time `json:"received"`
	// Events counts the events in the data as far as they can be told apart,
	// Stored those of the same message that were valid and stored.
	Events int `json:"events"`
	Stored int `json:"stored"`
}

const (
	suffix    = ".rejected"
	tmpSuffix = ".tmp"
	// MaxItems is how many items a quarantine holds.
	MaxItems = 10_000
	// maxHead bounds the line of JSON.
	maxHead = 64 << 10
	// rescan is how old the figures of Stats may be, which other processes change.
	rescan = 10 * time.Second
)

// ErrTooLarge is the error for an item that is larger than the whole quarantine.
var ErrTooLarge = errors.New("larger than the quarantine")

// Store is the quarantine of one buffer.
type Store struct {
	dir   string
	limit int64
	log   *zap.Logger

	mu      sync.Mutex
	items   []entry // oldest first
	bytes   int64
	pending int64 // bytes being written
	dropped uint64
	scanned time.Time
	last    int64 // the latest name given
}

type entry struct {
	name string
	size int64
}

// Stats is one reading of a Store.
type Stats struct {
	Items        int
	Bytes, Limit int64
	// Dropped counts items that made room for newer ones since start.
	Dropped uint64
}

// Open returns the quarantine in dir, which is made with the first item. limit
// is in bytes.
func Open(dir string, limit int64, log *zap.Logger) (*Store, error) {
	s := &Store{dir: dir, limit: limit, log: log}
	tmp, err := filepath.Glob(filepath.Join(dir, "*"+tmpSuffix))
	if err != nil {
		return nil, err
	}
	for _, path := range tmp { // never whole, never acked
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("quarantine: %w", err)
		}
	}
	if err := s.scan(); err != nil {
		return nil, err
	}
	return s, nil
}

// scan reads the directory. s.mu is held, or nobody else has s.
func (s *Store) scan() error {
	items, err := list(s.dir)
	if err != nil {
		return err
	}
	s.items, s.bytes = items, 0
	for _, e := range items {
		s.bytes += e.size
	}
	s.scanned = time.Now()
	return nil
}

func list(dir string) (items []entry, err error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("quarantine: %w", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), suffix) {
			continue
		}
		fi, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("quarantine: %w", err)
		}
		items = append(items, entry{f.Name(), fi.Size()})
	}
	return items, nil
}

// Put stores an item and returns its id; it is durable then. Where it does not
// fit, the oldest items are dropped.
func (s *Store) Put(it Item, data []byte) (id string, err error) {
	head, err := json.Marshal(it)
	if err != nil {
		return "", fmt.Errorf("quarantine: %w", err)
	}
	head = append(head, '\n')
	size := int64(len(head) + len(data))
	if size > s.limit {
		return "", fmt.Errorf("quarantine: %d bytes: %w (rejected_limit_size %d)", size, ErrTooLarge, s.limit)
	}
	name := s.makeRoom(it.Received, size)
	err = s.write(name, head, data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending -= size
	if err != nil {
		return "", fmt.Errorf("quarantine: %w", err)
	}
	s.items = append(s.items, entry{name, size})
	s.bytes += size
	return strings.TrimSuffix(name, suffix), nil
}

// makeRoom drops the oldest items until size more bytes fit, and names the new
// one.
func (s *Store) makeRoom(received time.Time, size int64) (name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.items) > 0 && (s.bytes+s.pending+size > s.limit || len(s.items) >= MaxItems) {
		oldest := s.items[0]
		s.items = s.items[1:]
		s.bytes -= oldest.size
		err := os.Remove(filepath.Join(s.dir, oldest.name))
		if errors.Is(err, fs.ErrNotExist) { // somebody has taken it out
			continue
		}
		s.dropped++
		s.log.Warn("quarantine full: the oldest message in it is dropped; look at weir buffer rejected, or raise rejected_limit_size",
			zap.String("quarantine", s.dir), zap.String("dropped", oldest.name), zap.Error(err))
	}
	s.pending += size
	s.last = max(s.last+1, received.UnixNano())
	return fmt.Sprintf("%019d%s", s.last, suffix)
}

// write makes a file durable, whole or not at all.
func (s *Store) write(name string, head, data []byte) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(s.dir, name)
	tmp := path + tmpSuffix
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(head)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	// The names: of the file in the quarantine, of the quarantine in the buffer.
	return errors.Join(syncDir(s.dir), syncDir(filepath.Dir(s.dir)))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Stats reads the figures.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == 0 && time.Since(s.scanned) > rescan {
		if err := s.scan(); err != nil {
			s.log.Warn("quarantine cannot be read", zap.String("quarantine", s.dir), zap.Error(err))
		}
	}
	return Stats{Items: len(s.items), Bytes: s.bytes, Limit: s.limit, Dropped: s.dropped}
}

// List gives the items in dir, oldest first; none if there is no such directory.
// A file that cannot be read is an item whose Cause says why.
func List(dir string) ([]Item, error) {
	entries, err := list(dir)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	var items []Item
	for _, e := range entries {
		id := strings.TrimSuffix(e.name, suffix)
		it, f, err := open(dir, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			items = append(items, Item{ID: id, Size: e.size, Kind: "unreadable", Reason: "unreadable", Cause: err.Error()})
			continue
		}
		f.Close()
		items = append(items, it)
	}
	return items, nil
}

// Read gives an item and its data.
func Read(dir, id string) (Item, []byte, error) {
	it, f, err := open(dir, id)
	if err != nil {
		return it, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return it, nil, fmt.Errorf("quarantine: %w", err)
	}
	return it, data, nil
}

// open reads an item's head; what follows in the reader is its data.
func open(dir, id string) (Item, io.ReadCloser, error) {
	if id != filepath.Base(id) {
		return Item{}, nil, fmt.Errorf("quarantine: %q is no id", id)
	}
	f, err := os.Open(filepath.Join(dir, id+suffix))
	if err != nil {
		return Item{}, nil, fmt.Errorf("quarantine: %w", err)
	}
	r := bufio.NewReaderSize(f, maxHead)
	head, err := r.ReadSlice('\n')
	it := Item{}
	if err == nil {
		err = json.Unmarshal(head, &it)
	}
	var fi os.FileInfo
	if err == nil {
		fi, err = f.Stat()
	}
	if err != nil {
		return it, nil, errors.Join(fmt.Errorf("quarantine: %s does not begin with a line of JSON: %w", f.Name(), err), f.Close())
	}
	it.ID, it.Size = id, fi.Size()-int64(len(head))
	return it, struct {
		io.Reader
		io.Closer
	}{r, f}, nil
}

// Remove forgets an item.
func Remove(dir, id string) error {
	if id != filepath.Base(id) {
		return fmt.Errorf("quarantine: %q is no id", id)
	}
	if err := os.Remove(filepath.Join(dir, id+suffix)); err != nil {
		return fmt.Errorf("quarantine: %w", err)
	}
	return syncDir(dir)
}

// Printable is the tag as text.
func (it Item) Printable() string {
	return string(bytes.ToValidUTF8(it.Tag, []byte("\uFFFD")))
}
