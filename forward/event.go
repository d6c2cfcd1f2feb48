package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// maxTrustedDepth bounds the nesting of streams that a Server has let through;
// no Config.MaxDepth may be larger.
const maxTrustedDepth = 10000

// Times beyond the years 1 to 9999 are refused: no output could write them.
const (
	minSec = -62135596800
	maxSec = 253402300799
)

var (
	errCut       = errors.New("cut in the middle of an object")
	errPair      = errors.New("an entry is not an array of two: [time, record]")
	errTime      = errors.New("the time of an event is neither an integer nor an EventTime")
	errTimeRange = errors.New("the time of an event is not within the years 1 to 9999")
	errRecord    = errors.New("the record of an event is not a map")
	errNilRecord = errors.New("the record of an event is nil")
	errMetadata  = errors.New("the metadata of an event is not a map")
)

// Event is one event of a stream. Its slices point into the stream.
type Event struct {
	// Sec and Nsec are the event's time since 1970 UTC. Both are 0 where the
	// sender gave no time; the time of receipt stands for it then.
	Sec  int64
	Nsec int32
	// Meta is the raw msgpack map of Fluent Bit's [[time, metadata], record],
	// nil for the plain form.
	Meta []byte
	// Record is the raw msgpack map.
	Record []byte
}

// ParseEventHead reads the event at the start of p up to its record, which
// begins at offset record. p must hold the whole head.
func ParseEventHead(p []byte) (ev Event, record int, err error) {
	n, ok := pairHeader(p)
	if !ok {
		return ev, 0, errPair
	}
	if n >= len(p) {
		return ev, 0, errCut
	}
	inner, withMeta := pairHeader(p[n:])
	if withMeta {
		n += inner
	}
	size, err := timeLen(p[n:])
	if err != nil {
		return ev, 0, err
	}
	if size == 0 {
		return ev, 0, errCut
	}
	if ev.Sec, ev.Nsec, err = parseTime(p[n : n+size]); err != nil {
		return ev, 0, err
	}
	n += size
	if withMeta {
		size, err := Skip(p[n:])
		if err != nil {
			return ev, 0, err
		}
		ev.Meta = p[n : n+size]
		n += size
	}
	if n >= len(p) {
		return ev, 0, errCut
	}
	if !isMap(p[n]) {
		return ev, 0, errRecord
	}
	return ev, n, nil
}

// NextEvent splits the first event off the stream p and returns its length.
func NextEvent(p []byte) (ev Event, n int, err error) {
	ev, record, err := ParseEventHead(p)
	if err != nil {
		return ev, 0, err
	}
	size, err := Skip(p[record:])
	if err != nil {
		return ev, 0, err
	}
	ev.Record = p[record : record+size]
	return ev, record + size, nil
}

// pairHeader returns the length of the header of an array of two at p[0].
func pairHeader(p []byte) (n int, ok bool) {
	switch {
	case len(p) > 0 && p[0] == 0x92:
		return 1, true
	case len(p) > 2 && p[0] == 0xdc && p[1] == 0 && p[2] == 2:
		return 3, true
	case len(p) > 4 && p[0] == 0xdd && p[1] == 0 && p[2] == 0 && p[3] == 0 && p[4] == 2:
		return 5, true
	}
	return 0, false
}

func isMap(c byte) bool { return c&0xf0 == 0x80 || c == 0xde || c == 0xdf }

// timeLen is the length of the time at p[0]: an integer, an EventTime (fixext 8
// or ext 8 of type 0, "EventTime Ext Format" of the protocol), a float as JSON
// senders give, or nil. It is 0 if p is too short to tell.
func timeLen(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c := p[0]
	n := 0
	switch {
	case c <= 0x7f || c >= 0xe0 || c == 0xc0:
		return 1, nil
	case c >= 0xca && c <= 0xd3:
		n = int(objectLen[c])
	case c == 0xd7:
		if len(p) > 1 && p[1] != 0 {
			return 0, errTime
		}
		n = 10
	case c == 0xc7:
		if len(p) > 1 && p[1] != 8 || len(p) > 2 && p[2] != 0 {
			return 0, errTime
		}
		n = 11
	default:
		return 0, errTime
	}
	if n > len(p) {
		return 0, nil
	}
	return n, nil
}

// parseTime reads a whole time as timeLen measured it.
func parseTime(p []byte) (sec int64, nsec int32, err error) {
	switch c := p[0]; {
	case c <= 0x7f:
		return int64(c), 0, nil
	case c >= 0xe0:
		return int64(int8(c)), 0, nil
	case c == 0xc0: // nil: the sender gave none
		return 0, 0, nil
	case c == 0xd7 || c == 0xc7:
		b := p[len(p)-8:]
		ns := binary.BigEndian.Uint32(b[4:])
		if ns >= 1e9 {
			return 0, 0, fmt.Errorf("%w: %d nanoseconds", errTimeRange, ns)
		}
		return int64(binary.BigEndian.Uint32(b)), int32(ns), nil
	case c == 0xca:
		return floatTime(float64(math.Float32frombits(binary.BigEndian.Uint32(p[1:]))))
	case c == 0xcb:
		return floatTime(math.Float64frombits(binary.BigEndian.Uint64(p[1:])))
	case c == 0xcc:
		sec = int64(p[1])
	case c == 0xcd:
		sec = int64(binary.BigEndian.Uint16(p[1:]))
	case c == 0xce:
		sec = int64(binary.BigEndian.Uint32(p[1:]))
	case c == 0xcf:
		u := binary.BigEndian.Uint64(p[1:])
		if u > maxSec {
			return 0, 0, errTimeRange
		}
		sec = int64(u)
	case c == 0xd0:
		sec = int64(int8(p[1]))
	case c == 0xd1:
		sec = int64(int16(binary.BigEndian.Uint16(p[1:])))
	case c == 0xd2:
		sec = int64(int32(binary.BigEndian.Uint32(p[1:])))
	default: // 0xd3
		sec = int64(binary.BigEndian.Uint64(p[1:]))
	}
	if sec < minSec || sec > maxSec {
		return 0, 0, errTimeRange
	}
	return sec, 0, nil
}

// floatTime splits seconds with a fraction.
func floatTime(f float64) (sec int64, nsec int32, err error) {
	if !(f >= minSec && f <= maxSec) { // also NaN
		return 0, 0, errTimeRange
	}
	whole := math.Floor(f)
	return int64(whole), int32((f - whole) * 1e9), nil
}
