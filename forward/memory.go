package forward

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// budget is the memory that all connections share (promise P7). Whoever finds
// it exhausted waits in line; nothing overtakes.
type budget struct {
	limit int64

	mu      sync.Mutex
	held    int64
	peak    int64
	waiting list.List // of *claim, first come first
}

type claim struct {
	n     int64
	ready chan struct{} // closed once granted
}

// try takes n bytes if they are there and nobody waits for them.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting.Len() > 0 || !b.fits(n) {
		return false
	}
	b.take(n)
	return true
}

// fits reports whether n bytes are free. A claim larger than the whole budget
// fits when nothing else is held, or no message of that size could ever come.
func (b *budget) fits(n int64) bool {
	return b.held+n <= b.limit || b.held == 0
}

func (b *budget) take(n int64) {
	b.held += n
	b.peak = max(b.peak, b.held)
}

// acquire waits for n bytes until ctx ends, or for at most limit if that is
// not 0. It reports whether the bytes are granted.
func (b *budget) acquire(ctx context.Context, n int64, limit time.Duration) bool {
	b.mu.Lock()
	if b.waiting.Len() == 0 && b.fits(n) {
		b.take(n)
		b.mu.Unlock()
		return true
	}
	c := &claim{n: n, ready: make(chan struct{})}
	e := b.waiting.PushBack(c)
	b.mu.Unlock()

	var timeout <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-c.ready:
		return true
	case <-ctx.Done():
	case <-timeout:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-c.ready: // granted at the last moment
		return true
	default:
	}
	b.waiting.Remove(e)
	b.grant() // who waited behind this claim may fit
	return false
}

// release gives n bytes back.
func (b *budget) release(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held -= n
	b.grant()
}

// grant serves those who wait, in order, as far as the memory goes.
func (b *budget) grant() {
	for e := b.waiting.Front(); e != nil; e = b.waiting.Front() {
		c := e.Value.(*claim)
		if !b.fits(c.n) {
			return
		}
		b.take(c.n)
		b.waiting.Remove(e)
		close(c.ready)
	}
}

// reading gives the bytes held, their peak, and how many sessions wait.
func (b *budget) reading() (held, peak int64, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held, b.peak, b.waiting.Len()
}

// Buffers come in classes of 4 KiB times powers of 2, so that few sizes serve
// all.
const (
	minBuffer  = 4 << 10
	bufferStep = 2
)

// buffers pools read buffers by class. Buffers above maxPooled go back to the
// garbage collector: they are rare, and one in the pool is memory that the
// budget does not see.
type buffers struct {
	pools [11]sync.Pool // 4 KiB to maxPooled
}

const maxPooled = 4 << 20

// class is the capacity of the smallest buffer that holds n bytes.
func class(n int64) int64 {
	c := int64(minBuffer)
	for c < n {
		c *= bufferStep
	}
	return c
}

func (p *buffers) index(size int64) int {
	i := 0
	for c := int64(minBuffer); c < size; c *= bufferStep {
		i++
	}
	return i
}

// get returns a buffer of size bytes, which must be a class.
func (p *buffers) get(size int64) *[]byte {
	if size <= maxPooled {
		if b, ok := p.pools[p.index(size)].Get().(*[]byte); ok {
			return b
		}
	}
	b := make([]byte, size)
	return &b
}

// put takes a buffer back.
func (p *buffers) put(b *[]byte) {
	if size := int64(len(*b)); size <= maxPooled {
		p.pools[p.index(size)].Put(b)
	}
}
