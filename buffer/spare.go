package buffer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"

	"go.uber.org/zap"
)

// maxSpares is how many delivered files wait to be used again, each of the size
// of a chunk: one is taken while outputs deliver the next. Overwriting blocks
// that were written before changes no metadata, which makes fdatasync cheap.
const maxSpares = 2

// access is the way in which chunks are written and read.
func (b *Buffer) access() Access {
	if b.direct {
		return Direct
	}
	return Cached
}

// chooseAccess finds out whether O_DIRECT works and says so if not. Without
// fdatasync the page cache is the faster way.
func (b *Buffer) chooseAccess() {
	if b.opt.Durability != Fsync {
		return
	}
	if err := b.fs.Direct(b.opt.Dir); err != nil {
		b.log.Warn("the file system refuses O_DIRECT: commits go through the page cache, which takes about twice the processor time", zap.Error(err))
		return
	}
	b.direct = true
	b.zeros = alignedMemory(zerosAtOnce)
}

// fileSize is the length of a chunk's file: room for its commits and the footer.
func (b *Buffer) fileSize() int64 { return padded(b.chunkLimit) + BlockSize }

// newChunk begins a chunk in a spare file, or in a new one.
func (b *Buffer) newChunk() (*chunk, error) {
	b.mu.Lock()
	// Not used again, whatever comes: a file that cannot be made properly may not
	// go away either.
	b.lastSeq++
	c := &chunk{seq: b.lastSeq, salt: rand.Uint32(), end: BlockSize, frames: 1}
	b.mu.Unlock()
	name := chunkName(b.opt.Dir, c.seq)
	f, err := b.reuse(c, name)
	if f == nil && err == nil {
		f, err = b.create(c, name)
	}
	if err != nil {
		return nil, fmt.Errorf("new chunk %s: %w", name, err)
	}
	b.active = f
	b.mu.Lock()
	b.add(c)
	b.mu.Unlock()
	return c, nil
}

// reuse makes a spare file the chunk's. The header is durable before the file
// has its new name, so that a chunk never begins with another one's bytes.
func (b *Buffer) reuse(c *chunk, name string) (File, error) {
	for {
		spare := b.takeSpare()
		if spare == "" {
			return nil, nil
		}
		f, err := b.fs.Open(spare, b.access())
		if err == nil {
			if err = b.begin(f, c); err == nil {
				err = b.fs.Rename(spare, name)
			}
			if err == nil {
				if err = b.syncDir(); err == nil {
					c.size = b.fileSize()
					return f, nil
				}
				spare = name
			}
			err = errors.Join(err, f.Close())
		}
		b.log.Warn("spare file cannot be used and is removed", zap.String("file", spare), zap.Error(err))
		if err := b.fs.Remove(spare); err != nil && spare == name {
			// It has the chunk's name and must not be made again under it.
			return nil, err
		}
	}
}

// create makes a file for the chunk, of its full size if the disk has the room
// and the file system a way to take it; otherwise it grows with its commits.
func (b *Buffer) create(c *chunk, name string) (File, error) {
	f, err := b.fs.Create(name, b.access())
	if err != nil {
		return nil, err
	}
	c.size = BlockSize
	if err = f.Allocate(b.fileSize()); err == nil {
		c.size = b.fileSize()
		if b.direct {
			c.blank = c.end
		}
	} else if noSpace(err) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		err = f.Truncate(0) // gives back what was taken before it failed
	}
	if err == nil {
		err = b.begin(f, c)
	}
	if err == nil {
		err = b.syncDir()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), b.fs.Remove(name))
	}
	return f, nil
}

// begin writes the chunk's header and makes it durable. It tells where the chunk
// before ends: a group that failed there and could not be cut off may be stored in
// this one, and must not be found there again.
func (b *Buffer) begin(f File, c *chunk) error {
	head := frame{magic: magicHeader, chunk: c.seq, salt: c.salt, written: now()}
	b.mu.Lock()
	if n := len(b.chunks); n > 0 {
		head.events, head.body = b.chunks[n-1].seq, b.chunks[n-1].end
	}
	b.mu.Unlock()
	err := b.writeHead(f, head, 0)
	if err == nil && b.opt.Durability == Fsync {
		err = f.Datasync()
	}
	return err
}

func (b *Buffer) syncDir() error {
	if b.opt.Durability != Fsync {
		return nil
	}
	return b.fs.SyncDir(b.opt.Dir)
}

func noSpace(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func (b *Buffer) takeSpare() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.spares)
	if n == 0 {
		return ""
	}
	spare := b.spares[n-1]
	b.spares = b.spares[:n-1]
	return spare
}

// dropSpares gives the space of spare files back; it reports whether there were
// any.
func (b *Buffer) dropSpares() (any bool) {
	for spare := b.takeSpare(); spare != ""; spare = b.takeSpare() {
		any = true
		if err := b.fs.Remove(spare); err != nil {
			b.log.Error("spare file not removed", zap.String("file", spare), zap.Error(err))
		}
	}
	return any
}

// dropDelivered gives back the space of the last chunk as well, once everything
// is delivered: no other chunk can be begun on a full disk for it to be passed.
// It reports whether there was anything.
func (b *Buffer) dropDelivered() bool {
	b.mu.Lock()
	var held uint64
	for _, c := range b.chunks {
		held += c.entries
	}
	if b.backlog > 0 || held == 0 {
		b.mu.Unlock()
		return false
	}
	passed := slices.Clone(b.chunks)
	b.forget(len(passed))
	b.mu.Unlock()
	if b.active != nil {
		if err := b.active.Close(); err != nil {
			b.log.Warn("chunk not closed", zap.String("file", chunkName(b.opt.Dir, passed[len(passed)-1].seq)), zap.Error(err))
		}
		b.active = nil
	}
	b.saveIDs(passed[len(passed)-1].seq)
	for _, c := range passed {
		if c.damaged {
			continue // kept as a whole
		}
		// A reader has the last one open still, which would keep its space.
		f, err := b.fs.Open(chunkName(b.opt.Dir, c.seq), Cached)
		if err == nil {
			err = errors.Join(f.Truncate(0), f.Close())
			c.size = 0
		}
		if err != nil {
			b.log.Error("delivered chunk not cut", zap.String("file", chunkName(b.opt.Dir, c.seq)), zap.Error(err))
		}
	}
	b.discard(passed)
	return true
}

// release removes the file of a delivered chunk, or keeps it as a spare.
func (b *Buffer) release(c *chunk) error {
	name := chunkName(b.opt.Dir, c.seq)
	b.mu.Lock()
	keep := c.size == b.fileSize() && len(b.spares)+b.sparing < maxSpares && b.stats.failing == nil && !b.closed
	if keep {
		b.sparing++
	}
	b.mu.Unlock()
	if !keep {
		return b.fs.Remove(name)
	}
	spare := spareName(b.opt.Dir, c.seq)
	err := b.fs.Rename(name, spare)
	if err == nil {
		// Before it is written to: its old name must not come back with new bytes.
		err = b.syncDir()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sparing--
	if err == nil {
		b.spares = append(b.spares, spare)
	}
	return err
}

// recoverSpares takes over the spare files of the last run, as far as they fit.
func (b *Buffer) recoverSpares(names []string) error {
	for _, name := range names {
		name = filepath.Join(b.opt.Dir, name)
		fits, err := b.fits(name)
		if err != nil {
			return err
		}
		if fits && len(b.spares) < maxSpares {
			b.spares = append(b.spares, name)
			continue
		}
		if err := b.fs.Remove(name); err != nil {
			return err
		}
	}
	// A name that came back must be gone for good before its file is used.
	if len(b.spares) > 0 {
		return b.syncDir()
	}
	return nil
}

func (b *Buffer) fits(name string) (bool, error) {
	f, err := b.fs.Open(name, Cached)
	if err != nil {
		return false, err
	}
	size, err := f.Size()
	return size == b.fileSize(), errors.Join(err, f.Close())
}
