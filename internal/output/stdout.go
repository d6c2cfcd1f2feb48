package output

import (
	"context"
	"fmt"
	"io"

	"weir/buffer"
	"weir/forward"
)

// Stdout writes events as lines to a stream. What was written before a crash
// may be written again: a stream cannot be cut back.
type Stdout struct {
	w      io.Writer
	format *formatter
	events eventReader
	text   []byte
}

// NewStdout returns an output that writes to w.
func NewStdout(c FormatConfig, w io.Writer) (*Stdout, error) {
	f, err := newFormatter(c)
	if err != nil {
		return nil, err
	}
	return &Stdout{w: w, format: f}, nil
}

// Deliver writes the batch.
func (o *Stdout) Deliver(_ context.Context, batch *buffer.Batch) ([]byte, error) {
	o.text = o.text[:0]
	for i := range batch.Entries {
		e := &batch.Entries[i]
		err := o.events.each(e, func(ev forward.Event, p []byte) (n int, err error) {
			o.text, n, err = o.format.append(o.text, e.Tag, ev, p)
			if err == nil && len(o.text) >= stageBytes {
				err = o.flush()
			}
			return n, err
		})
		if err != nil {
			return nil, errorIn(e, err)
		}
	}
	return nil, o.flush()
}

func (o *Stdout) flush() error {
	if _, err := o.w.Write(o.text); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	o.text = o.text[:0]
	return nil
}

// Close does nothing.
func (o *Stdout) Close() error { return nil }
