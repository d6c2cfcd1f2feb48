package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"weir/buffer"
	"weir/forward"
	"weir/internal/config"
	"weir/internal/output"
	"weir/internal/quarantine"
)

// match is a <match> at work: its buffer and what empties it.
type match struct {
	config   *config.Match
	buffer   *buffer.Buffer
	rejected *quarantine.Store // what of its messages can never be taken
	runners  []*output.Runner  // in the order of config.Outputs
	batched  atomic.Bool       // messages wait for Flush
	running  sync.WaitGroup    // of runners
	cancel   context.CancelFunc
}

// openMatch opens the buffer, which recovers what is in it, and the outputs.
func openMatch(ctx context.Context, c *config.Match, stdout io.Writer, log *zap.Logger) (*match, error) {
	o := buffer.Options{
		Dir: c.Buffer.Path, ChunkLimit: c.Buffer.ChunkLimit, TotalLimit: c.Buffer.TotalLimit,
		Beside: []string{filepath.Base(rejectedDir(c))}, Log: log,
	}
	switch c.Buffer.Overflow {
	case "block":
		o.Overflow = buffer.OverflowBlock
	case "drop_oldest_chunk":
		o.Overflow = buffer.OverflowDropOldest
	}
	o.DedupeWindow, o.DedupeAge = dedupe(c)
	if c.Buffer.NoSync {
		o.Durability = buffer.NoSync
	}
	for _, out := range c.Outputs {
		o.Cursors = append(o.Cursors, config.FileName(out.ID))
	}
	b, err := buffer.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := settleMoves(c.Buffer.Path); err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	rejected, err := quarantine.Open(rejectedDir(c), c.Buffer.RejectedLimit, log)
	if err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	m := &match{config: c, buffer: b, rejected: rejected}
	for i, out := range c.Outputs {
		r, err := newRunner(b, o.Cursors[i], out, stdout, log)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("output %s: %w", out.ID, err), b.Close(ctx))
		}
		m.runners = append(m.runners, r)
	}
	return m, nil
}

// dedupe is the window of chunk ids as the buffer takes it.
func dedupe(c *config.Match) (window int, age time.Duration) {
	if c.Buffer.DedupeWindow == 0 {
		return -1, c.Buffer.DedupeAge // none
	}
	return c.Buffer.DedupeWindow, c.Buffer.DedupeAge
}

// rejectedDir is the directory of the match's quarantine.
func rejectedDir(c *config.Match) string { return rejectedIn(c.Buffer.Path) }

func rejectedIn(buffer string) string { return filepath.Join(buffer, "rejected") }

func newRunner(b *buffer.Buffer, cursorName string, c *config.Output, stdout io.Writer, log *zap.Logger) (*output.Runner, error) {
	cursor, err := b.Cursor(cursorName)
	if err != nil {
		return nil, err
	}
	primary, err := newOutput(c, cursor, stdout, log)
	if err != nil {
		return nil, err
	}
	rc := output.Config{
		Name: c.ID, Cursor: cursor, Output: primary, FlushInterval: c.Flush, Log: log,
		Retry: output.Retry{
			Periodic: c.Retry.Periodic, Wait: c.Retry.Wait, Base: c.Retry.Base, MaxInterval: c.Retry.MaxInterval,
			Randomize: c.Retry.Randomize, Timeout: c.Retry.Timeout, MaxTimes: c.Retry.MaxTimes, Forever: c.Retry.Forever,
			SecondaryThreshold: c.Retry.SecondaryThreshold,
		},
	}
	if c.Secondary != nil {
		// The cursor's state is the primary's: the secondary has none.
		if rc.Secondary, err = newOutput(c.Secondary, stateless{}, stdout, log); err != nil {
			return nil, fmt.Errorf("secondary: %w", err)
		}
	}
	return output.NewRunner(rc), nil
}

// stateless is an output.StateSaver for an output that is not exactly once.
type stateless struct{}

func (stateless) State() []byte          { return nil }
func (stateless) SaveState([]byte) error { return nil }

func newOutput(c *config.Output, saver output.StateSaver, stdout io.Writer, log *zap.Logger) (output.Output, error) {
	format := output.FormatConfig{
		Type: c.Format.Type, TimeFormat: c.Format.TimeFormat, Zone: output.Zone(c.Format.Zone),
		OutputTime: c.Format.OutputTime, OutputTag: c.Format.OutputTag, Delimiter: c.Format.Delimiter,
		MessageKey: c.Format.MessageKey, Newline: c.Format.Newline,
	}
	if in := c.Inject; in != nil {
		format.Inject = &output.InjectConfig{TagKey: in.TagKey, TimeKey: in.TimeKey, HostnameKey: in.HostnameKey,
			Hostname: in.Hostname, TimeType: in.TimeType, TimeFormat: in.TimeFormat, Zone: output.Zone(in.Zone)}
	}
	switch c.Type {
	case "null":
		return output.Null{}, nil
	case "stdout":
		return output.NewStdout(format, stdout)
	case "file":
		f := c.File
		fc := output.FileConfig{Path: f.Path, Timekey: f.Timekey, Zone: output.Zone(f.Zone), Append: f.Append,
			Gzip: f.Gzip, DirMode: uint32(f.DirMode), FileMode: uint32(f.FileMode), Format: format}
		if f.AddSuffix {
			fc.Suffix = f.Suffix
		}
		return output.NewFile(fc, saver, log)
	}
	return nil, fmt.Errorf("@type %s has no output", c.Type)
}

// route hands messages of one label to their buffers.
type route struct {
	router  *config.Router
	matches map[*config.Match]*match
	first   *config.Match // takes what is rejected and has no tag
	log     *zap.Logger
	noMatch atomic.Uint64 // events that no match took
	warned  atomic.Int64  // Unix second of the last warning about them
}

// Handle implements forward.Handler.
func (r *route) Handle(ctx context.Context, m *forward.Message) {
	c := r.router.Match(m.Tag)
	if c == nil && m.Invalid != nil && m.Tag == nil {
		c = r.first
	}
	if c == nil {
		// As fluentd does: no match takes it, so it is dropped, but counted. What
		// is not valid of it is no exception: there is no quarantine for it.
		if m.Invalid != nil {
			m.Events += m.Invalid.Events
			m.Invalid = nil
		}
		r.noMatch.Add(uint64(m.Events))
		if now := time.Now().Unix(); r.warned.Swap(now) != now {
			r.log.Warn("events dropped: no <match> takes their tag", zap.ByteString("tag", m.Tag), zap.Stringer("sender", m.Remote))
		}
		m.Done(nil)
		return
	}
	var waiter buffer.Waiter = storing{m}
	if m.Invalid != nil {
		part, err := r.matches[c].reject(m)
		if err != nil || m.Events == 0 && len(m.Chunk) == 0 {
			m.Done(refusal(err))
			return
		}
		// Without any events as well, so that its id is known when it comes again.
		waiter = part
	}
	e := buffer.Entry{Tag: m.Tag, ChunkID: m.Chunk, Received: m.Received, Events: m.Events, Payload: m.Payload}
	switch m.Compression {
	case forward.Gzip:
		e.Flags = buffer.FlagGzip
	case forward.Zstd:
		e.Flags = buffer.FlagZstd
	}
	to := r.matches[c]
	var err error
	if m.Batched {
		to.batched.Store(true)
		err = to.buffer.AppendLater(ctx, &e, waiter)
	} else {
		err = to.buffer.Append(ctx, &e, waiter)
	}
	if err != nil {
		waiter.Done(err)
	}
}

// Flush implements forward.Flusher. The commits of several buffers are made side by
// side.
func (r *route) Flush() {
	var last *match
	for _, m := range r.matches {
		if m.batched.Load() && m.batched.Swap(false) {
			if last != nil {
				last.buffer.CommitSoon()
			}
			last = m
		}
	}
	if last != nil {
		last.buffer.Commit()
	}
}

// reject stores what of the message can never be taken; it is durable then.
func (m *match) reject(msg *forward.Message) (storingRest, error) {
	in := msg.Invalid
	id, err := m.rejected.Put(quarantine.Item{
		Kind: string(in.Kind), Tag: in.Tag, Chunk: msg.Chunk, Reason: in.Reason, Cause: in.Err.Error(),
		Sender: msg.Remote.String(), Received: msg.Received.UTC(), Events: in.Events, Stored: msg.Events,
	}, in.Data)
	return storingRest{msg, rejectedDir(m.config), id}, err
}

// stored tells the message's session the buffer's outcome.
func stored(m *forward.Message, err error) {
	if errors.Is(err, buffer.ErrDuplicate) {
		m.Duplicate = true
		err = nil
	}
	m.Done(refusal(err))
}

// storingRest is storing for a message of which a part is in the quarantine
// already.
type storingRest struct {
	m       *forward.Message
	dir, id string
}

// Done implements buffer.Waiter. What is not stored comes again as a whole, and
// what is stored already has come before: its part in the quarantine would be
// there twice.
func (s storingRest) Done(err error) {
	if err == nil {
		s.m.Done(nil)
		return
	}
	if failed := quarantine.Remove(s.dir, s.id); failed != nil && !errors.Is(err, buffer.ErrDuplicate) {
		err = errors.Join(err, failed)
	}
	stored(s.m, err)
}

// storing passes the buffer's outcome on with a reason to count it under.
type storing struct{ m *forward.Message }

// Done implements buffer.Waiter.
func (s storing) Done(err error) { stored(s.m, err) }

// Reasons for which weir refuses to store a message.
const (
	reasonFull    = "buffer_full"
	reasonStopped = "stopping"
	reasonStorage = "storage"
)

func refusal(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, buffer.ErrFull):
		return &forward.Refusal{Reason: reasonFull, Err: err}
	case errors.Is(err, buffer.ErrClosed), errors.Is(err, context.Canceled):
		return &forward.Refusal{Reason: reasonStopped, Err: err}
	}
	return &forward.Refusal{Reason: reasonStorage, Err: err}
}

// lingering sets SO_LINGER on accepted connections, for sources that ask for it.
type lingering struct {
	net.Listener
	seconds int
}

// Accept implements net.Listener.
func (l lingering) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		setLinger(c, l.seconds)
	}
	return c, err
}

// SetDeadline lets the server empty the queue when it shuts down.
func (l lingering) SetDeadline(t time.Time) error {
	if d, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		return d.SetDeadline(t)
	}
	return os.ErrNoDeadline
}

// allMatches lists the matches of all labels in a fixed order.
func allMatches(c *config.Config) []*config.Match {
	var labels []string
	for label := range c.Routes {
		labels = append(labels, label)
	}
	slices.Sort(labels)
	var all []*config.Match
	for _, label := range labels {
		all = append(all, c.Routes[label]...)
	}
	return all
}
