package output

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"

	"weir/buffer"
	"weir/forward"
	"weir/forward/gunzip"
)

// windowSize is how much of a compressed payload is decompressed at a time; it
// grows for an event that is larger.
const windowSize = 256 << 10

// joinedKept is how much memory is kept for payloads that come in pieces.
const joinedKept = 4 << 20

// maxWindow is the largest event that is decompressed.
const maxWindow = 1 << 30

// eventReader goes through the events of entries, decompressing as it goes. It
// is for one goroutine; its memory is used again.
type eventReader struct {
	src    bytes.Reader
	gzip   *gunzip.Reader
	zstd   *zstd.Decoder
	window []byte
	joined []byte // a payload that came in pieces
}

// eventFunc takes one event: p begins with its record, at most the rest of the
// window follows. It returns the record's length.
type eventFunc func(ev forward.Event, p []byte) (n int, err error)

// each calls f for every event of the entry in order. An event without a time
// has that of the message's receipt.
func (r *eventReader) each(e *buffer.Entry, f eventFunc) error {
	payload := r.join(e.Payload)
	if e.Flags&(buffer.FlagGzip|buffer.FlagZstd) == 0 {
		_, err := walk(payload, e.Received, true, f)
		return err
	}
	in, err := r.open(payload, e.Flags)
	if err != nil {
		return err
	}
	if r.window == nil {
		r.window = make([]byte, windowSize)
	}
	have, eof := 0, false
	for {
		for have < len(r.window) && !eof {
			n, err := in.Read(r.window[have:])
			have += n
			if err == io.EOF {
				eof = true
			} else if err != nil {
				return err
			}
		}
		used, err := walk(r.window[:have], e.Received, eof, f)
		if err != nil {
			return err
		}
		if eof {
			return nil
		}
		if used == 0 {
			if len(r.window) >= maxWindow {
				return fmt.Errorf("one event takes more than %d bytes when it is decompressed", maxWindow)
			}
			r.window = append(r.window, make([]byte, len(r.window))...)
			continue
		}
		have = copy(r.window, r.window[used:have])
	}
}

// join returns the payload in one piece.
func (r *eventReader) join(payload [][]byte) []byte {
	if len(payload) == 1 {
		return payload[0]
	}
	if cap(r.joined) > joinedKept {
		r.joined = nil // a large entry has passed
	}
	r.joined = r.joined[:0]
	for _, p := range payload {
		r.joined = append(r.joined, p...)
	}
	return r.joined
}

// open returns the decompressed payload.
func (r *eventReader) open(payload []byte, flags buffer.Flags) (io.Reader, error) {
	if flags&buffer.FlagZstd == 0 {
		if r.gzip == nil {
			r.gzip = &gunzip.Reader{}
		}
		r.gzip.Reset(payload)
		return r.gzip, nil
	}
	r.src.Reset(payload)
	var err error
	if r.zstd == nil {
		r.zstd, err = zstd.NewReader(&r.src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	} else {
		err = r.zstd.Reset(&r.src)
	}
	return r.zstd, err
}

// walk calls f for the events of p and returns how many bytes they take. Unless
// last, p may end in the middle of one, which is left.
func walk(p []byte, received time.Time, last bool, f eventFunc) (used int, err error) {
	for used < len(p) {
		q := p[used:]
		if !last {
			// f must not see half an event.
			if _, _, err := forward.NextEvent(q); err != nil {
				return used, nil
			}
		}
		ev, record, err := forward.ParseEventHead(q)
		if err != nil {
			return used, err
		}
		if ev.Sec == 0 && ev.Nsec == 0 {
			ev.Sec, ev.Nsec = received.Unix(), int32(received.Nanosecond())
		}
		n, err := f(ev, q[record:])
		if err != nil {
			return used, fmt.Errorf("event at byte %d: %w", used, err)
		}
		used += record + n
	}
	return used, nil
}

// Events goes through the events of stored entries outside of an output. It is
// for one goroutine; the zero value works.
type Events struct{ r eventReader }

// Each calls f for every event of the entry in order, decompressing as it goes;
// record is the raw msgpack map, f's only during the call. An event without a
// time has that of the message's receipt. The error is f's, or tells why the
// payload cannot be read.
func (v *Events) Each(e *buffer.Entry, f func(ev forward.Event, record []byte) error) error {
	return v.r.each(e, func(ev forward.Event, p []byte) (int, error) {
		n, err := forward.Skip(p)
		if err != nil {
			return 0, err
		}
		return n, f(ev, p[:n])
	})
}
