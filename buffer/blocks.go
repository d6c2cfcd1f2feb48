package buffer

import (
	"sync"
	"unsafe"
)

// BlockSize is the unit of writing: commits begin on a multiple of it and are
// padded to one, so that no write touches a block that holds earlier data.
const BlockSize = 4096

// segmentSize is the size of the memory segments that a commit is gathered in.
const segmentSize = 256 << 10

// segments pools memory that is aligned to BlockSize, as O_DIRECT wants it
// (open(2)).
type segments struct{ pool sync.Pool }

func (s *segments) get() []byte {
	if b, ok := s.pool.Get().(*[segmentSize]byte); ok {
		return b[:]
	}
	return aligned()[:]
}

func (s *segments) put(b []byte) { s.pool.Put((*[segmentSize]byte)(b)) }

// aligned allocates one segment that begins on a multiple of BlockSize.
func aligned() *[segmentSize]byte { return (*[segmentSize]byte)(alignedMemory(segmentSize)) }

// alignedMemory allocates n bytes that begin on a multiple of BlockSize.
func alignedMemory(n int64) []byte {
	b := make([]byte, n+BlockSize)
	off := int64(-uintptr(unsafe.Pointer(&b[0])) & (BlockSize - 1))
	return b[off : off+n : off+n]
}

// padded rounds n up to a multiple of BlockSize.
func padded(n int64) int64 { return (n + BlockSize - 1) &^ (BlockSize - 1) }
