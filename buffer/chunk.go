package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A chunk on disk is a row of frames, each beginning on a multiple of
// BlockSize; integers are little-endian. A frame:
//
//	 0  u32  magic: what it is
//	 4  u32  CRC-32C of bytes 8 to 63
//	 8  u64  sequence number of the chunk, so that what an earlier use of the
//	         file left behind is never taken for data
//	16  u64  number of the frame in its chunk
//	24  u64  length of the body; in a footer, where the chunk's commits end; in a
//	         header, where those of the chunk before it end, 0 if there is none
//	32  u64  events; in a header, the sequence number of the chunk before it
//	40  i64  written, nanoseconds since 1970 UTC
//	48  u32  entries
//	52  u32  salt: random, the same in all frames of the chunk
//	56  u32  seed of the checksums of the commit's entries
//	60  u32  version of the format
//	64       body, padded with zeros to a multiple of BlockSize
//
// The first frame is the chunk's header (magicHeader, no body), then come
// commits (magicCommit, the body is entries). A chunk that is written full has
// a footer (magicFooter, no body, entries and events of the whole chunk) in the
// last block of its file.
//
// A file is made at its full size, and used again when its chunk is delivered:
// it is renamed to a spare, and renamed to the next chunk when that one's header
// is durable in it. So between the commits of a chunk and its footer, or the end
// of the file, there may be zeros or frames of earlier chunks; those have other
// sequence numbers. A chunk that could not be made at its full size grows with
// its commits, and its footer comes right behind them.
//
// Behind damage, the next frame is looked for at each block. The salt is there
// so that no sender can forge one inside of a payload.
const (
	frameHead   = 64
	magicHeader = 0x48524557 // "WERH"
	magicCommit = 0x43524557 // "WERC"
	magicFooter = 0x46524557 // "WERF"
	version     = 1
	// maxBody is more than any commit has; it keeps sums of lengths far from
	// overflowing.
	maxBody = 1 << 40
)

// frame is a frame's head.
type frame struct {
	magic           uint32
	chunk, number   uint64
	body            int64
	entries, events uint64
	salt, seed      uint32
	written         time.Time
}

// length is the frame's padded length on disk.
func (f frame) length() int64 { return padded(frameHead + f.body) }

func (f frame) encode(h []byte) {
	le := binary.LittleEndian
	le.PutUint32(h, f.magic)
	le.PutUint64(h[8:], f.chunk)
	le.PutUint64(h[16:], f.number)
	le.PutUint64(h[24:], uint64(f.body))
	le.PutUint64(h[32:], f.events)
	le.PutUint64(h[40:], uint64(f.written.UnixNano()))
	le.PutUint32(h[48:], uint32(f.entries))
	le.PutUint32(h[52:], f.salt)
	le.PutUint32(h[56:], f.seed)
	le.PutUint32(h[60:], version)
	le.PutUint32(h[4:], crc32.Checksum(h[8:frameHead], castagnoli))
}

var errFrame = errors.New("no frame")

// decodeFrame reads the frame head at the start of p, which belongs to the
// chunk of that sequence number.
func decodeFrame(p []byte, chunk uint64) (f frame, err error) {
	if len(p) < frameHead {
		return f, errFrame
	}
	le := binary.LittleEndian
	f.magic = le.Uint32(p)
	if f.magic != magicHeader && f.magic != magicCommit && f.magic != magicFooter || crc32.Checksum(p[8:frameHead], castagnoli) != le.Uint32(p[4:]) {
		return f, errFrame
	}
	if v := le.Uint32(p[60:]); v != version {
		return f, fmt.Errorf("format version %d, this weir reads %d; use the weir that wrote it to empty the buffer", v, version)
	}
	f.chunk, f.number = le.Uint64(p[8:]), le.Uint64(p[16:])
	f.body = int64(le.Uint64(p[24:]))
	f.events, f.entries = le.Uint64(p[32:]), uint64(le.Uint32(p[48:]))
	f.written = time.Unix(0, int64(le.Uint64(p[40:])))
	f.salt, f.seed = le.Uint32(p[52:]), le.Uint32(p[56:])
	if f.chunk != chunk || f.body < 0 || f.body > maxBody {
		return f, errFrame
	}
	return f, nil
}

// chunk is one file of the buffer, as far as it is durable.
type chunk struct {
	seq     uint64
	salt    uint32
	end     int64  // length of its durable frames
	frames  uint64 // number of the next frame
	entries uint64
	events  uint64
	size    int64 // length of its file
	blank   int64 // of a new file that is not written to its end: where what was never written begins, else 0
	sealed  bool  // written full: has a footer, or never gets more
	damaged bool  // has lost data in its middle; kept when delivered
	written int64 // of one that was recovered: when it was closed or last written to, Unix nanoseconds; 0 if that is not known
	// before is what the chunks before it hold, counted since Open.
	before tally
}

// tally is an amount of commits.
type tally struct {
	bytes           int64 // with padding
	entries, events uint64
}

// held is what the chunk holds.
func (c *chunk) held() tally { return tally{c.end - BlockSize, c.entries, c.events} }

func (t tally) plus(u tally) tally {
	return tally{t.bytes + u.bytes, t.entries + u.entries, t.events + u.events}
}

const (
	chunkPrefix   = "chunk."
	sparePrefix   = "spare."
	chunkSuffix   = ".weir"
	damagedSuffix = ".damaged"
	lockName      = "lock"
	probeName     = "direct.probe"
)

func chunkName(dir string, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%016x%s", chunkPrefix, seq, chunkSuffix))
}

// spareName is the name of a file that held the chunk and waits to be used again.
func spareName(dir string, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%016x%s", sparePrefix, seq, chunkSuffix))
}

// isSpare reports whether a file is a spare one.
func isSpare(name string) bool {
	rest, ok := strings.CutPrefix(name, sparePrefix)
	_, valid := chunkSeq(chunkPrefix + rest)
	return ok && valid
}

// chunkSeq reads a chunk's sequence number from its file name.
func chunkSeq(name string) (seq uint64, ok bool) {
	hex, ok := strings.CutPrefix(name, chunkPrefix)
	if !ok {
		return 0, false
	}
	hex, ok = strings.CutSuffix(hex, chunkSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	seq, err := strconv.ParseUint(hex, 16, 64)
	return seq, err == nil
}
