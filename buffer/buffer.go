package buffer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Overflow says what happens to an entry for which TotalLimit leaves no room
// (fluentd's overflow_action).
type Overflow uint8

// The overflow actions.
const (
	// OverflowThrow refuses the entry with ErrFull.
	OverflowThrow Overflow = iota
	// OverflowBlock makes Append wait until outputs have made room.
	OverflowBlock
	// OverflowDropOldest deletes the oldest chunk; its undelivered events are
	// counted as dropped.
	OverflowDropOldest
)

// Durability says when an entry counts as durable.
type Durability uint8

// The durabilities.
const (
	// Fsync: after fdatasync(2) has returned.
	Fsync Durability = iota
	// NoSync: after the write; a power cut can lose what was reported durable.
	NoSync
)

// Defaults of Options and limits.
const (
	DefaultChunkLimit = 64 << 20
	DefaultTotalLimit = 64 << 30
	// minChunk is the smallest limit of a chunk that a small TotalLimit leads to.
	minChunk = 64 << 10
	// maxPending is how many bytes gather for the next commit before Append
	// waits; one larger entry makes a commit of its own.
	maxPending = 4 << 20
	// completionQueue is how many commits may wait for their waiters to be told.
	completionQueue = 4
)

// Errors of Append.
var (
	ErrClosed = errors.New("buffer: closed")
	ErrFull   = errors.New("buffer: total_limit_size is reached")
)

// Options configure Open. Dir must be set.
type Options struct {
	// Dir is the directory of the buffer; it is made if missing, and locked.
	Dir string
	// ChunkLimit is the size in bytes at which a chunk is closed and a new one
	// begun (chunk_limit_size); 0 for DefaultChunkLimit. A chunk takes at most an
	// eighth of TotalLimit, so that room comes back in steps.
	ChunkLimit int64
	// TotalLimit is the most undelivered bytes (total_limit_size); 0 for
	// DefaultTotalLimit.
	TotalLimit int64
	Overflow   Overflow
	Durability Durability
	// DedupeWindow is of how many of the newest entries with a chunk id the ids are
	// remembered, DedupeAge for how long: an entry with the tag and id of one of
	// them is not stored again. 0 for DefaultDedupeWindow and DefaultDedupeAge; a
	// negative window remembers none. An id takes 29 bytes of
	// memory when the default window is full, up to 36 with others, and up to twice
	// that while one fills.
	DedupeWindow int
	DedupeAge    time.Duration
	// Cursors names the readers; what all of them have passed is deleted. There
	// must be at least one.
	Cursors []string
	// Beside names what the caller keeps in Dir; other files that are not the
	// buffer's are left alone as well, but logged.
	Beside []string
	// Log gets what operators must know; nil for nothing.
	Log *zap.Logger
	// FS is the file system; nil for the operating system's.
	FS FS
}

// Waiter is told the outcome of an entry.
type Waiter interface {
	// Done is called once: with nil when the entry is durable, else with why it
	// is not stored. Calls come one after the other, in the order of the entries.
	// The next commit may wait for Done: it must not wait for the Buffer, as
	// Append may.
	Done(err error)
}

// Buffer is a log of entries on disk with named cursors.
type Buffer struct {
	opt        Options
	fs         FS
	log        *zap.Logger
	chunkLimit int64
	lock       io.Closer
	segments   segments
	groups     sync.Pool // of *group
	cursors    []*Cursor // in the order of Options.Cursors

	mu      sync.Mutex
	work    sync.Cond // the committer waits: due, rotate, committing, closed
	copied  sync.Cond // who commits waits: copies that end
	room    sync.Cond // Append waits: the next commit, total_limit_size
	next    *group    // gathers entries
	current *group    // is being committed
	due     bool      // next is to be committed
	// committing is held by who commits or seals: the committer, or Commit. What
	// is said to be the committer's own belongs to it.
	committing bool
	took       time.Duration // by a commit, a mean of the last ones
	company    uint64        // entries that were on their way when the last commit ended
	chunks     []*chunk      // ascending; the last one may be active
	total      tally         // what all chunks since Open have held
	lastSeq    uint64
	seed       uint32 // of the last group
	rotate     bool   // seal the active chunk, so that it can be dropped
	closed     bool
	backlog    int64 // undelivered bytes of the slowest cursor
	stats      counters

	// spares are names of files to use again; sparing counts those on the way.
	spares  []string
	sparing int
	direct  bool   // chunks are written and read with O_DIRECT
	zeros   []byte // of writeAhead

	recents    recents
	ids        idTable
	pendingIDs map[id]*group // where an id is before it is durable

	// lateIDs is the chunk up to which ids could not be saved; 0 if all are. Like
	// idLog it is the committer's own.
	lateIDs uint64
	idLog   idLog // the committer's own, but for its key
	// active is the open file of the last chunk; the committer's own.
	active File

	completions chan *group
	untold      int // groups in completions, or being told by completeLoop
	wait        sync.WaitGroup
}

// Open locks the directory, recovers what is in it and returns a Buffer; Close
// must be called in the end.
func Open(ctx context.Context, opt Options) (*Buffer, error) {
	if opt.Dir == "" || len(opt.Cursors) == 0 {
		return nil, errors.New("buffer: Options need Dir and at least one cursor")
	}
	opt.Dir = filepath.Clean(opt.Dir)
	if opt.ChunkLimit == 0 {
		opt.ChunkLimit = DefaultChunkLimit
	}
	if opt.TotalLimit == 0 {
		opt.TotalLimit = DefaultTotalLimit
	}
	if opt.DedupeWindow == 0 {
		opt.DedupeWindow = DefaultDedupeWindow
	}
	if opt.DedupeAge == 0 {
		opt.DedupeAge = DefaultDedupeAge
	}
	if opt.Log == nil {
		opt.Log = zap.NewNop()
	}
	if opt.FS == nil {
		opt.FS = osFS{}
	}
	b := &Buffer{
		opt: opt, fs: opt.FS, log: opt.Log.With(zap.String("buffer", opt.Dir)),
		chunkLimit:  min(opt.ChunkLimit, max(opt.TotalLimit/8, minChunk)),
		completions: make(chan *group, completionQueue),
	}
	b.ids = idTable{window: opt.DedupeWindow, age: opt.DedupeAge}
	b.recents.limit = recentLimit
	b.pendingIDs = map[id]*group{}
	b.idLog.b = b
	b.work.L, b.copied.L, b.room.L = &b.mu, &b.mu, &b.mu
	b.seed = rand.Uint32()
	b.next = b.newGroup()
	if err := b.fs.MkdirAll(opt.Dir); err != nil {
		return nil, dirError(opt.Dir, err)
	}
	lock, err := b.fs.Lock(filepath.Join(opt.Dir, lockName))
	if err != nil {
		return nil, dirError(opt.Dir, err)
	}
	b.lock = lock
	b.chooseAccess()
	if err := b.recover(ctx); err != nil {
		b.closeFiles()
		return nil, dirError(opt.Dir, err)
	}
	b.wait.Go(b.commitLoop)
	b.wait.Go(b.completeLoop)
	return b, nil
}

// dirError adds to an error of a buffer directory what to do about it.
func dirError(dir string, err error) error {
	var locked *LockedError
	hint := ""
	switch {
	case errors.As(err, &locked):
		return err
	case errors.Is(err, fs.ErrPermission):
		hint = "; make it writable for the user that weir runs as, or choose another path in <buffer>"
	case errors.Is(err, syscall.EROFS):
		hint = "; the file system is mounted read-only: remount it, or choose another path in <buffer>"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "; the disk is full: free some space, or choose another path in <buffer>"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist):
		hint = "; the path is taken by something that is no directory: choose another path in <buffer>"
	}
	return fmt.Errorf("buffer directory %s: %w%s", dir, err, hint)
}

// Cursor returns the cursor of that name.
func (b *Buffer) Cursor(name string) (*Cursor, error) {
	for _, c := range b.cursors {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("buffer %s: no cursor %q", b.opt.Dir, name)
}

// Close commits what Append has taken, tells all waiters, and lets go of the
// directory. Cursors must not be used any more. When ctx ends first, Close still
// waits for the commit under way: its outcome must be known.
func (b *Buffer) Close(ctx context.Context) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.work.Broadcast()
	b.room.Broadcast()
	b.mu.Unlock()
	b.wait.Wait()
	if b.lateIDs > 0 { // their chunks may be gone
		b.saveIDs(b.lateIDs)
	}
	return errors.Join(b.closeFiles(), ctx.Err())
}

func (b *Buffer) closeFiles() error {
	var errs []error
	if b.active != nil {
		errs = append(errs, b.active.Close())
		b.active = nil
	}
	errs = append(errs, b.idLog.close())
	for _, c := range b.cursors {
		errs = append(errs, c.close())
	}
	if b.lock != nil {
		errs = append(errs, b.lock.Close())
	}
	return errors.Join(errs...)
}

// find returns the chunk with that sequence number, or nil. b.mu is held.
func (b *Buffer) find(seq uint64) *chunk {
	i := b.index(seq)
	if i == len(b.chunks) || b.chunks[i].seq != seq {
		return nil
	}
	return b.chunks[i]
}

// index is that of the first chunk with at least that sequence number. b.mu is
// held.
func (b *Buffer) index(seq uint64) int {
	i, _ := slices.BinarySearchFunc(b.chunks, seq, func(c *chunk, seq uint64) int { return cmp.Compare(c.seq, seq) })
	return i
}

// add makes c, which may hold something, the newest chunk. b.mu is held.
func (b *Buffer) add(c *chunk) {
	c.before = b.total
	b.total = b.total.plus(c.held())
	b.chunks = append(b.chunks, c)
}

// forget takes the n oldest chunks off the list. b.mu is held.
func (b *Buffer) forget(n int) {
	clear(b.chunks[:n])
	b.chunks = b.chunks[n:]
}

// after returns the first chunk with a larger sequence number, or nil. b.mu is
// held.
func (b *Buffer) after(seq uint64) *chunk {
	if i := b.index(seq + 1); i < len(b.chunks) {
		return b.chunks[i]
	}
	return nil
}

// measure brings backlog up to date after chunks or cursors changed. b.mu is
// held.
func (b *Buffer) measure() {
	var backlog int64
	for _, c := range b.cursors {
		r := b.remaining(c)
		backlog = max(backlog, r.Bytes)
	}
	if backlog < b.backlog {
		b.room.Broadcast()
	}
	b.backlog = backlog
	b.stats.peakBacklog = max(b.stats.peakBacklog, backlog)
}

// removePassed deletes the chunks that every cursor has passed. The files go
// after b.mu is released: a chunk that a crash leaves behind is found passed
// again.
func (b *Buffer) removePassed() {
	b.mu.Lock()
	oldest := uint64(1<<64 - 1)
	for _, c := range b.cursors {
		oldest = min(oldest, c.pos.seq)
	}
	n := 0
	for n < len(b.chunks) && b.chunks[n].seq < oldest {
		n++
	}
	passed := slices.Clone(b.chunks[:n])
	b.forget(n)
	b.measure()
	b.mu.Unlock()
	b.discard(passed)
}

// discard removes the files of chunks that are no longer in b.chunks; those with
// damage are kept for inspection.
func (b *Buffer) discard(passed []*chunk) {
	damaged := false
	for _, c := range passed {
		name := chunkName(b.opt.Dir, c.seq)
		var err error
		if c.damaged {
			damaged = true
			err = b.fs.Rename(name, name+damagedSuffix)
			b.log.Error("chunk with damage is delivered as far as it is readable and kept", zap.String("file", name+damagedSuffix))
		} else {
			err = b.release(c)
		}
		if err != nil {
			b.log.Error("delivered chunk not removed", zap.String("file", name), zap.Error(err))
		}
	}
	if damaged {
		b.trimDamaged(DamagedLimit)
	}
}

// now is the time of records on disk.
func now() time.Time { return time.Now() }
