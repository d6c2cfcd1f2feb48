package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"
)

// Flags describe an entry's payload.
type Flags uint16

// The flags.
const (
	// FlagGzip and FlagZstd: the payload is compressed.
	FlagGzip Flags = 1 << iota
	FlagZstd
)

// Entry is one message as stored.
type Entry struct {
	// Tag and ChunkID are opaque bytes of at most 65535 each.
	Tag, ChunkID []byte
	// Received is when the message came.
	Received time.Time
	// Events is how many events the payload holds.
	Events int
	Flags  Flags
	// Payload is the event stream in pieces, at most 4 GiB - 1 in all. Where they
	// are cut has no meaning: one may end in the middle of an event.
	Payload [][]byte
}

// An entry on disk; integers are little-endian:
//
//	 0  u32  CRC-32C of bytes 4 to 31, tag and chunk id, begun with the commit's
//	         seed
//	 4  u32  CRC-32C of the payload
//	 8  u32  length of the payload
//	12  u16  length of the tag
//	14  u16  length of the chunk id
//	16  u32  number of events
//	20  u16  flags
//	22  u16  0
//	24  i64  received, nanoseconds since 1970 UTC
//	32       tag, chunk id, payload
//
// The head has its own checksum, so that a damaged payload loses one entry and
// not those behind it. The seed binds it to its commit: what a file held before
// it was used again is not taken for an entry, even if it begins where one should.
const entryHead = 32

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errEntryHead    = errors.New("the head of an entry is damaged")
	errEntryPayload = errors.New("the payload of an entry is damaged")
)

// size is the entry's length on disk, or an error if it does not fit the format.
func (e *Entry) size() (int64, error) {
	payload := int64(0)
	for _, p := range e.Payload {
		payload += int64(len(p))
	}
	if payload > math.MaxUint32 || len(e.Tag) > math.MaxUint16 || len(e.ChunkID) > math.MaxUint16 || e.Events < 0 || e.Events > math.MaxUint32 {
		return 0, fmt.Errorf("buffer: entry too large: payload %d, tag %d, chunk id %d bytes, %d events", payload, len(e.Tag), len(e.ChunkID), e.Events)
	}
	return entryHead + int64(len(e.Tag)+len(e.ChunkID)) + payload, nil
}

// encode writes the entry through w, which has exactly its size.
func (e *Entry) encode(w *segmentWriter, seed uint32) {
	var head [entryHead]byte
	h := head[:]
	front := *w
	w.pos += entryHead
	w.write(e.Tag)
	w.write(e.ChunkID)
	payload, crc := 0, uint32(0)
	for _, p := range e.Payload {
		payload += len(p)
		for len(p) > 0 { // the copy finds in the cache what the checksum has read
			piece := p[:min(len(p), encodePiece)]
			crc = crc32.Update(crc, castagnoli, piece)
			w.write(piece)
			p = p[len(piece):]
		}
	}
	le := binary.LittleEndian
	le.PutUint32(h[4:], crc)
	le.PutUint32(h[8:], uint32(payload))
	le.PutUint16(h[12:], uint16(len(e.Tag)))
	le.PutUint16(h[14:], uint16(len(e.ChunkID)))
	le.PutUint32(h[16:], uint32(e.Events))
	le.PutUint16(h[20:], uint16(e.Flags))
	le.PutUint64(h[24:], uint64(e.Received.UnixNano()))
	crc = crc32.Update(seed, castagnoli, h[4:])
	crc = crc32.Update(crc, castagnoli, e.Tag)
	crc = crc32.Update(crc, castagnoli, e.ChunkID)
	le.PutUint32(h, crc)
	front.write(h)
}

// encodePiece is how much is summed and copied at a time: less than a core's
// caches hold.
const encodePiece = 8 << 10

// entryMeta is the length of an entry's head with tag and chunk id, by the first
// entryHead bytes of p.
func entryMeta(p []byte) int64 {
	le := binary.LittleEndian
	return entryHead + int64(le.Uint16(p[12:])) + int64(le.Uint16(p[14:]))
}

// decodeEntryHead reads the head, tag and chunk id at the start of p, which
// belong to a commit with that seed, without copying. n is the length of the whole
// entry.
func decodeEntryHead(p []byte, seed uint32) (e Entry, n int64, err error) {
	if len(p) < entryHead || entryMeta(p) > int64(len(p)) {
		return e, 0, errEntryHead
	}
	le := binary.LittleEndian
	tag := int(le.Uint16(p[12:]))
	meta := p[entryHead:entryMeta(p)]
	crc := crc32.Update(seed, castagnoli, p[4:entryHead])
	if crc32.Update(crc, castagnoli, meta) != le.Uint32(p) {
		return e, 0, errEntryHead
	}
	e.Tag, e.ChunkID = meta[:tag:tag], meta[tag:]
	e.Events = int(le.Uint32(p[16:]))
	e.Flags = Flags(le.Uint16(p[20:]))
	e.Received = time.Unix(0, int64(le.Uint64(p[24:])))
	return e, entryMeta(p) + int64(le.Uint32(p[8:])), nil
}

// decodeEntry reads the entry at the start of p, which belongs to a commit with
// that seed, and its payload, without copying. With errEntryPayload, n and the
// entry's head are valid all the same.
func decodeEntry(p []byte, seed uint32) (e Entry, body []byte, n int, err error) {
	e, size, err := decodeEntryHead(p, seed)
	if err != nil || size > int64(len(p)) {
		return e, nil, 0, errEntryHead
	}
	n = int(size)
	body = p[entryMeta(p):n:n]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(p[4:]) {
		return e, nil, n, errEntryPayload
	}
	return e, body, n, nil
}
