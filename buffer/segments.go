package buffer

import (
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// segmentSize is the size of the memory segments that a commit is gathered in.
	segmentSize = 256 << 10
	// hugePageSize is that of x86-64 and of arm64 with pages of 4 KiB. Where it is
	// another one, the memory is as good as any.
	hugePageSize = 2 << 20
	hugeSegments = hugePageSize / segmentSize
	allFree      = 1<<hugeSegments - 1
	// fewSegments is how many a buffer that does little uses at a time. They are no
	// huge ones, each of which takes its memory as a whole.
	fewSegments = 4
)

// segments pools memory that is aligned to BlockSize, as O_DIRECT wants it
// (open(2)). Those of a buffer that does much are cut from huge pages
// (madvise(2), MADV_HUGEPAGE): a write by O_DIRECT then pins and maps one page
// instead of 64 for each segment, and the copy into it misses the TLB less often.
// Memory that is not used goes back with garbage collections.
type segments struct {
	few sync.Pool // *[segmentSize]byte, ordinary

	mu    sync.Mutex
	out   int                   // segments in use
	pages map[uintptr]*hugePage // with segments in use, by address
	open  []*hugePage           // those of them that have free segments
	free  sync.Pool             // *hugePage, none of whose segments is used
}

// hugePage is memory that segments are cut from. It lies outside of Go's heap, where
// nothing of it is wasted for its alignment, and is unmapped when the hugePage is
// garbage: segments keeps it while one of its segments is used.
type hugePage struct {
	memory *[hugePageSize]byte
	free   uint // bit i: segment i is
}

// newHugePage returns a page all of whose segments are free, nil if the kernel has no
// memory for it.
func newHugePage() *hugePage {
	const length = 2 * hugePageSize
	all, err := unix.MmapPtr(-1, 0, nil, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil
	}
	before := -uintptr(all) & (hugePageSize - 1)
	memory := unsafe.Add(all, before)
	// These fail where the mappings of the process are at their limit, or the kernel has
	// no such pages: the rest stays mapped, and the pages are small ones.
	if before > 0 {
		_ = unix.MunmapPtr(all, before)
	}
	_ = unix.MunmapPtr(unsafe.Add(memory, hugePageSize), length-hugePageSize-before)
	p := &hugePage{(*[hugePageSize]byte)(memory), allFree}
	_ = unix.Madvise(p.memory[:], unix.MADV_HUGEPAGE)
	runtime.AddCleanup(p, func(memory *[hugePageSize]byte) {
		_ = unix.MunmapPtr(unsafe.Pointer(memory), hugePageSize)
	}, p.memory)
	return p
}

func (s *segments) get() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out++
	if len(s.open) == 0 && !s.openPage() {
		if b, ok := s.few.Get().(*[segmentSize]byte); ok {
			return b[:]
		}
		return alignedMemory(segmentSize)
	}
	last := len(s.open) - 1
	p := s.open[last]
	i := bits.TrailingZeros(p.free)
	if p.free &^= 1 << i; p.free == 0 {
		s.open[last] = nil
		s.open = s.open[:last]
	}
	return p.memory[i*segmentSize:][:segmentSize:segmentSize]
}

// openPage opens a page whose segments are all free: one that is there, or a new one
// if it is worth that. s.mu is held.
func (s *segments) openPage() bool {
	p, ok := s.free.Get().(*hugePage)
	if !ok {
		if s.out <= fewSegments {
			return false
		}
		if p = newHugePage(); p == nil {
			return false
		}
	}
	if s.pages == nil {
		s.pages = map[uintptr]*hugePage{}
	}
	s.pages[pageOf(p.memory[:])] = p
	s.open = append(s.open, p)
	return true
}

// pageOf is the address of the huge page that b begins in.
func pageOf(b []byte) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b))) &^ (hugePageSize - 1)
}

func (s *segments) put(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out--
	at := pageOf(b)
	p := s.pages[at]
	if p == nil {
		s.few.Put((*[segmentSize]byte)(b))
		return
	}
	if p.free == 0 {
		s.open = append(s.open, p)
	}
	i := (uintptr(unsafe.Pointer(unsafe.SliceData(b))) - at) / segmentSize
	if p.free |= 1 << i; p.free != allFree {
		return
	}
	delete(s.pages, at)
	n := slices.Index(s.open, p)
	s.open = slices.Delete(s.open, n, n+1)
	s.free.Put(p)
}
