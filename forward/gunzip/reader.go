// Package gunzip decompresses gzip (RFC 1952, RFC 1951) that is whole in memory,
// for readers that look at the text and throw it away. A Reader has one window in
// which the text stands behind what its matches refer to, and lends it: nothing is
// copied out, nothing is allocated, and it takes the same memory whatever it reads.
package gunzip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// MaxPiece is how many bytes Next returns at most, beside those that are kept.
const MaxPiece = 64 << 10

const (
	history = 32 << 10                  // how far back a match reaches at most
	turn    = 8 + 258                   // bytes that one turn of the decoder makes at most: literals and a match
	full    = history + MaxPiece - turn // decoding stops behind it, until the window is moved
	slack   = turn + 32                 // bytes that one turn may write behind it; a match is copied in steps
)

var (
	// ErrHeader says that the bytes, or those behind a member, do not begin as gzip does.
	ErrHeader = errors.New("invalid gzip header")
	// ErrChecksum says that the text is not the one that was compressed.
	ErrChecksum = errors.New("invalid gzip checksum or length")
)

// Reader decompresses one payload after the other, each of which begins with Reset. It
// is for one goroutine.
type Reader struct {
	in   []byte
	pos  int    // of the byte that follows those in bits
	bits uint64 // read and not used, the next one lowest
	have uint   // how many

	step   step
	final  bool // the block is the member's last
	fixed  bool // the tables are those of the fixed code
	stored int  // bytes left of a stored block
	coded  int  // pos where the last block with codes of its own began

	start  int // of the member in the window; no match reaches before it
	out    int // end of the text in the window
	summed int // end of what is in digest and size
	digest uint32
	size   uint32
	rest   []byte // of the text for Read
	err    error

	lit    [litSize]uint32
	dist   [distSize]uint32
	window [full + 1 + slack]byte
}

// Reset begins with a payload, which the Reader looks at until it is Reset again.
func (r *Reader) Reset(payload []byte) {
	r.in, r.pos, r.bits, r.have = payload, 0, 0, 0
	r.step, r.coded, r.out, r.rest, r.err = inHeader, 0, history, nil, nil
}

// Next decompresses more and returns it, behind the last keep bytes of what it
// returned before, at most 32 KiB of them. That is valid until the next call. The
// error is io.EOF at the end; any other tells in which byte of the payload the
// trouble is. io.ErrUnexpectedEOF is that the payload ends before the text does.
// Several members in a row are one text (RFC 1952, 2.2).
func (r *Reader) Next(keep int) ([]byte, error) {
	if r.out > full {
		n := copy(r.window[:], r.window[r.out-history:r.out])
		r.start = max(0, r.start-(r.out-n))
		r.out = n
	}
	from := r.out
	r.summed = from
	for r.err == nil && r.out <= full {
		r.err = r.more()
	}
	if r.out == from && r.err != nil {
		return r.window[from-keep : from], r.err
	}
	return r.window[from-keep : r.out], nil
}

// Read implements io.Reader, for those who want the text elsewhere. It goes on from
// what Next returned last.
func (r *Reader) Read(p []byte) (n int, err error) {
	for len(r.rest) == 0 {
		if r.rest, err = r.Next(0); err != nil {
			return 0, err
		}
	}
	n = copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// more goes on to the end of the window or of a member.
func (r *Reader) more() error {
	if r.step == inHeader {
		if len(r.in) == r.pos && r.pos > 0 {
			return io.EOF
		}
		n, err := header(r.in[r.pos:])
		if err != nil {
			return r.wrong(err)
		}
		r.pos += n
		r.step, r.final = inBlocks, false
		r.start, r.summed, r.digest, r.size = r.out, r.out, 0, 0
	}
	err := r.inflate()
	r.digest = crc32.Update(r.digest, crc32.IEEETable, r.window[r.summed:r.out])
	r.size += uint32(r.out - r.summed)
	r.summed = r.out
	if err == nil && r.step == inHeader {
		err = r.trailer()
	}
	return r.wrong(err)
}

// wrong adds where it is.
func (r *Reader) wrong(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("at byte %d of %d: %w", r.pos-int(r.have>>3), len(r.in), err)
}

// trailer compares what stands behind a member.
func (r *Reader) trailer() error {
	r.take(r.have & 7)
	r.unread()
	p := r.in[r.pos:]
	if len(p) < 8 {
		return io.ErrUnexpectedEOF
	}
	if binary.LittleEndian.Uint32(p) != r.digest || binary.LittleEndian.Uint32(p[4:]) != r.size {
		return ErrChecksum
	}
	r.pos += 8
	return nil
}

// Flags of a header; the first says that the text is ASCII and changes nothing.
const (
	flagCRC     = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4
	reserved    = 0xe0
	// maxString is how long a name or a comment may be, its 0 included.
	maxString = 512
)

// header returns the length of the header at the start of p.
func header(p []byte) (n int, err error) {
	if n = 10; len(p) < n {
		return 0, io.ErrUnexpectedEOF
	}
	flags := p[3]
	if p[0] != 0x1f || p[1] != 0x8b || p[2] != 8 || flags&reserved != 0 {
		return 0, ErrHeader
	}
	if flags&flagExtra != 0 {
		if len(p) < n+2 {
			return 0, io.ErrUnexpectedEOF
		}
		n += 2 + int(binary.LittleEndian.Uint16(p[n:]))
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag == 0 {
			continue
		}
		for from := n; ; {
			if n >= len(p) {
				return 0, io.ErrUnexpectedEOF
			}
			if n-from >= maxString {
				return 0, ErrHeader
			}
			if n++; p[n-1] == 0 {
				break
			}
		}
	}
	if flags&flagCRC != 0 {
		if len(p) < n+2 {
			return 0, io.ErrUnexpectedEOF
		}
		if uint16(crc32.ChecksumIEEE(p[:n])) != binary.LittleEndian.Uint16(p[n:]) {
			return 0, ErrHeader
		}
		n += 2
	}
	if n > len(p) {
		return 0, io.ErrUnexpectedEOF
	}
	return n, nil
}
