// Package top is the live terminal screen of `weir top`: the frames of a status
// endpoint's /api/stream, drawn as text.
package top

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"

	"weir/internal/status"
)

// Timing of the stream's reader: frames come each second.
const (
	silence  = 5 * time.Second // without an event: the stream is given up
	minPause = time.Second     // before the next attempt, doubled up to maxPause
	maxPause = 8 * time.Second
)

// Opener opens /api/stream of the endpoint that is watched.
type Opener func(context.Context) (io.ReadCloser, error)

// frameMsg is a frame and when it came.
type frameMsg struct {
	frame *status.Frame
	at    time.Time
}

// historyMsg is what was before a stream's first frame.
type historyMsg struct{ points []status.Point }

// lostMsg says that no frames come, and why.
type lostMsg struct{ err error }

// errEnded is why no frames come after a server has stopped.
var errEnded = errors.New("weir has stopped")

// Watch reads frames from first, and from streams that it opens itself after
// that one has ended, and hands each to send, until ctx ends.
func Watch(ctx context.Context, first io.ReadCloser, open Opener, send func(tea.Msg)) {
	pause := minPause
	for stream := first; ; stream = nil {
		err := error(nil)
		if stream == nil {
			stream, err = open(ctx)
		}
		if err == nil {
			var got int
			got, err = read(ctx, stream, send)
			if got > 0 {
				pause = minPause
			}
		}
		if ctx.Err() != nil {
			return
		}
		send(lostMsg{err})
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// read hands on the frames of one stream; it returns how many came and why it
// ended.
func read(ctx context.Context, stream io.ReadCloser, send func(tea.Msg)) (frames int, err error) {
	// Closing is what ends a read that waits.
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	silent := time.AfterFunc(silence, func() { stream.Close() })
	defer func() {
		if !silent.Stop() {
			err = fmt.Errorf("nothing came for %v", silence)
		}
		stream.Close()
	}()
	r := bufio.NewReader(stream)
	for {
		e, err := status.ReadEvent(r)
		if err != nil {
			return frames, err
		}
		silent.Reset(silence)
		switch e.Name {
		case "end":
			return frames, errEnded
		case "history":
			var points []status.Point
			if err := json.Unmarshal(e.Data, &points); err != nil {
				return frames, fmt.Errorf("what came is not a history of weir: %w", err)
			}
			send(historyMsg{points})
		case "frame":
			f := &status.Frame{}
			if err := json.Unmarshal(e.Data, f); err != nil || f.Snapshot == nil {
				return frames, fmt.Errorf("what came is not a frame of weir: %w", cmp.Or(err, errNoSnapshot))
			}
			frames++
			send(frameMsg{f, time.Now()})
		}
	}
}

var errNoSnapshot = errors.New("no snapshot in it")
