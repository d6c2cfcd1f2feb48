package status

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxEvent bounds one event that ReadEvent takes, in bytes.
const maxEvent = 16 << 20

// Event is one server-sent event of /api/stream.
type Event struct {
	// Name is "history" (Data is an array of Points), "frame" (a Frame) or
	// "end" (the server stops).
	Name string
	Data []byte
}

// event encodes an event; JSON has no line breaks.
func event(name string, data []byte) []byte {
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, data)
}

// ReadEvent reads the next event of a stream, past comments. It returns io.EOF
// at the end of the stream and io.ErrUnexpectedEOF within an event.
func ReadEvent(r *bufio.Reader) (Event, error) {
	var e Event
	for {
		line, err := readLine(r)
		if err != nil {
			if errors.Is(err, io.EOF) && (len(line) > 0 || e.Name != "" || e.Data != nil) {
				err = io.ErrUnexpectedEOF
			}
			return Event{}, err
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) == 0:
			if e.Data != nil {
				return e, nil
			}
			e = Event{}
		case string(name) == "event":
			e.Name = string(value)
		case string(name) == "data":
			e.Data = append([]byte{}, value...)
		}
	}
}

// readLine reads a line of at most maxEvent bytes, without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxEvent {
			return nil, fmt.Errorf("an event of the stream is too long: more than %d bytes", maxEvent)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimSuffix(line, []byte("\n")), err
		}
	}
}
