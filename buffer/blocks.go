package buffer

import "unsafe"

// BlockSize is the unit of writing: commits begin on a multiple of it and are
// padded to one, so that no write touches a block that holds earlier data.
const BlockSize = 4096

// alignedMemory allocates n bytes that begin on a multiple of BlockSize.
func alignedMemory(n int64) []byte {
	b := make([]byte, n+BlockSize)
	off := int64(-uintptr(unsafe.Pointer(&b[0])) & (BlockSize - 1))
	return b[off : off+n : off+n]
}

// padded rounds n up to a multiple of BlockSize.
func padded(n int64) int64 { return (n + BlockSize - 1) &^ (BlockSize - 1) }
