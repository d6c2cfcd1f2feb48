package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Errors of the scanner. They say what is wrong with the bytes; where they came
// from is added by whoever logs them.
var (
	errReserved = errors.New("msgpack: byte 0xc1, which the format never uses")
	errTooDeep  = errors.New("msgpack: nested deeper than the limit")
)

// objectLen is the whole length in bytes of an object whose first byte is the
// index, if that byte alone tells it: integers, floats, nil, booleans, fixstr
// and fixext. It is 0 for everything else.
var objectLen = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c <= 0x7f || c >= 0xe0: // fixint
			t[c] = 1
		case c >= 0xa0 && c <= 0xbf: // fixstr
			t[c] = uint8(1 + c&0x1f)
		}
	}
	for c, n := range map[int]uint8{
		0xc0: 1, 0xc2: 1, 0xc3: 1, // nil, false, true
		0xca: 5, 0xcb: 9, // float
		0xcc: 2, 0xcd: 3, 0xce: 5, 0xcf: 9, // uint
		0xd0: 2, 0xd1: 3, 0xd2: 5, 0xd3: 9, // int
		0xd4: 3, 0xd5: 4, 0xd6: 6, 0xd7: 10, 0xd8: 18, // fixext: type and data
	} {
		t[c] = n
	}
	return t
}()

// Scanner finds the end of one msgpack object (or of several in a row) in bytes
// that come in pieces. It allocates nothing unless the object nests deeper than
// 16, keeps its place between calls, and looks at no byte twice but those of a
// header, or of an object of up to 32 bytes, that a piece cut in two. It
// believes no length: a header that claims 4 GB costs nothing.
//
// The zero Scanner is not usable; see Reset. The format is
// https://github.com/msgpack/msgpack/blob/master/spec.md.
type Scanner struct {
	left     uint64 // objects still to come in the innermost open container
	skip     uint64 // bytes still to come of a str, bin or ext
	depth    int    // open containers
	maxDepth int
	stack    []uint64 // left of the outer containers
	inline   [16]uint64
}

// Reset prepares the scanner for count objects in a row, nested at most
// maxDepth deep.
func (s *Scanner) Reset(count uint64, maxDepth int) {
	s.left, s.skip, s.depth, s.maxDepth = count, 0, 0, maxDepth
	if s.stack == nil {
		s.stack = s.inline[:]
	}
}

// Scan reads on in p, which must begin with the bytes that the last call did
// not consume. It returns how many bytes it consumed and whether the objects
// are complete; n < len(p) with done false means that p ends within a header.
// After an error the scanner must be Reset.
func (s *Scanner) Scan(p []byte) (n int, done bool, err error) {
	if s.skip > 0 {
		if s.skip > uint64(len(p)) {
			s.skip -= uint64(len(p))
			return len(p), false, nil
		}
		n = int(s.skip)
		s.skip = 0
	}
	left := s.left
	for {
		for left == 0 {
			if s.depth == 0 {
				s.left = 0
				return n, true, nil
			}
			s.depth--
			left = s.stack[s.depth]
		}
		if n >= len(p) {
			s.left = left
			return n, false, nil
		}
		// What is frequent first, told apart by branches: the processor guesses
		// them and reads on, where a table would make it wait for each length.
		c := p[n]
		size := 0
		switch {
		case c-0xa0 < 0x20: // fixstr
			size = 1 + int(c&0x1f)
		case c == 0xd9: // str 8; its header is consumed where the body is not whole
			if n+1 < len(p) && 2+int(p[n+1]) <= len(p)-n {
				size = 2 + int(p[n+1])
			}
		case c <= 0x7f || c >= 0xe0: // fixint
			size = 1
		default:
			size = int(objectLen[c])
		}
		if size != 0 {
			if size > len(p)-n {
				s.left = left
				return n, false, nil
			}
			n += size
			left--
			continue
		}
		var count, body uint64 // objects or bytes that follow the header
		head := 1
		switch {
		case c <= 0x8f: // fixmap
			count = uint64(c&0x0f) * 2
		case c <= 0x9f: // fixarray
			count = uint64(c & 0x0f)
		case c == 0xc1:
			return n, false, errReserved
		default:
			head = headerLen(c)
			if head > len(p)-n {
				s.left = left
				return n, false, nil
			}
			count, body = headerCounts(p[n : n+head])
		}
		n += head
		left--
		if count > 0 {
			if s.depth+1 >= s.maxDepth {
				return n, false, fmt.Errorf("%w of %d", errTooDeep, s.maxDepth)
			}
			if s.depth == len(s.stack) {
				s.stack = append(s.stack, 0)
			}
			s.stack[s.depth] = left
			s.depth++
			left = count
		}
		if body > 0 {
			if rest := uint64(len(p) - n); body > rest {
				s.skip = body - rest
				s.left = left
				return len(p), false, nil
			}
			n += int(body)
		}
	}
}

// headerLen is the length of the header that begins with c, one of bin, ext,
// str 8 to 32, array and map 16 and 32; ext's type byte counts as header.
func headerLen(c byte) int {
	switch c {
	case 0xc4, 0xd9: // bin 8, str 8
		return 2
	case 0xc5, 0xda, 0xdc, 0xde: // bin 16, str 16, array 16, map 16
		return 3
	case 0xc6, 0xdb, 0xdd, 0xdf: // bin 32, str 32, array 32, map 32
		return 5
	case 0xc7: // ext 8
		return 3
	case 0xc8: // ext 16
		return 4
	default: // 0xc9, ext 32
		return 6
	}
}

// headerCounts reads a whole header as headerLen measured it: how many objects
// or how many bytes follow.
func headerCounts(h []byte) (count, body uint64) {
	switch h[0] {
	case 0xc4, 0xd9, 0xc7:
		return 0, uint64(h[1])
	case 0xc5, 0xda, 0xc8:
		return 0, uint64(binary.BigEndian.Uint16(h[1:]))
	case 0xc6, 0xdb, 0xc9:
		return 0, uint64(binary.BigEndian.Uint32(h[1:]))
	case 0xdc:
		return uint64(binary.BigEndian.Uint16(h[1:])), 0
	case 0xdd:
		return uint64(binary.BigEndian.Uint32(h[1:])), 0
	case 0xde:
		return 2 * uint64(binary.BigEndian.Uint16(h[1:])), 0
	default: // 0xdf
		return 2 * uint64(binary.BigEndian.Uint32(h[1:])), 0
	}
}

// Skip returns the length in bytes of the msgpack object at the start of p. The
// object must be whole.
func Skip(p []byte) (n int, err error) {
	// What the first bytes tell needs no Scanner, which is memory of its own.
	if len(p) > 1 {
		c := p[0]
		n := int(objectLen[c])
		if c == 0xd9 || c == 0xc4 {
			n = 2 + int(p[1])
		}
		if n > 0 && n <= len(p) {
			return n, nil
		}
	}
	return skipScanning(p)
}

func skipScanning(p []byte) (n int, err error) {
	var s Scanner
	s.Reset(1, maxTrustedDepth)
	n, done, err := s.Scan(p)
	if err != nil {
		return 0, err
	}
	if !done {
		return 0, errCut
	}
	return n, nil
}
