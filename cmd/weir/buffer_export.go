package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"weir/buffer"
	"weir/forward"
	"weir/internal/fluentdbuffer"
	"weir/internal/output"
)

// exportChunk is how large the chunks are that an export makes, in bytes:
// fluentd's default of chunk_limit_size in memory, which every output takes.
const exportChunk = 8 << 20

// maxExportSlots bounds the chunks that are gathered at a time.
const maxExportSlots = 256

// exporter writes entries as chunks of fluentd.
type exporter struct {
	dir     string
	from    buffer.CursorInfo
	timekey time.Duration
	events  output.Events
	slots   map[slot]*fluentdbuffer.Chunk

	chunks, written int
	seen            int // events
}

// slot is what all events of a chunk have in common.
type slot struct {
	tag     string
	timekey int64
}

func newBufferExport(configPath *string) *cobra.Command {
	var from, out string
	ex := &exporter{}
	cmd := &cobra.Command{
		Use:   "export FLUENTD_DIR",
		Short: "Write what is not delivered as a buffer directory of fluentd",
		Long: `Write what is not delivered as chunks of fluentd's file buffer (v1), for a
<buffer> whose path is that directory. Stop weir before, and remove its buffer
once fluentd has the chunks: the export changes nothing in it. Exporting twice
gives the same files.

What was imported comes out as it went in. Everything else is grouped by tag,
with the metadata of <buffer tag>; with --timekey by time as well, as
<buffer tag,time> has it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			t, err := oneTarget(*configPath, from)
			if err != nil {
				return err
			}
			lock, err := buffer.Lock(t.dir)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, lock.Close()) }()
			if ex.from, err = slowest(t.dir, out); err != nil {
				return err
			}
			ex.dir = args[0]
			if err := os.MkdirAll(ex.dir, 0o755); err != nil {
				return err
			}
			ex.slots = map[slot]*fluentdbuffer.Chunk{}
			in, err := buffer.Inspect(t.dir, ex.entry)
			if err == nil {
				err = ex.flush()
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d events in %d chunks exported to %s\n", ex.written, ex.chunks, ex.dir)
			lost := uint64(0)
			for _, c := range in.Chunks {
				lost += c.LostEvents
			}
			if lost > 0 {
				return fmt.Errorf("%d events cannot be read and are not exported; weir buffer verify says where", lost)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "buffer", "", "directory, or id of the match, to export (default: the only one of the configuration)")
	cmd.Flags().StringVar(&out, "undelivered", "", "what this output has not delivered (default: what any has not)")
	cmd.Flags().DurationVar(&ex.timekey, "timekey", 0, "group by time slices of this length, such as 24h or 1h")
	return cmd
}

// slowest is the cursor that has come least far, or that of one output.
func slowest(dir, out string) (c buffer.CursorInfo, err error) {
	if out != "" {
		return undeliveredBy(dir, out)
	}
	names, err := buffer.Cursors(dir)
	if err != nil {
		return c, err
	}
	for i, name := range names {
		next, err := buffer.ReadCursor(dir, name)
		if err != nil {
			return c, err
		}
		if i == 0 || (buffer.Place{Seq: next.Seq, Offset: next.Offset}).Before(c) {
			c = next
		}
	}
	return c, nil
}

func (x *exporter) entry(p buffer.Place, e *buffer.Entry) error {
	if p.Before(x.from) {
		return nil
	}
	if queued, m, ok := importedChunk(e.ChunkID); ok {
		return x.write(&fluentdbuffer.Chunk{Queued: queued, Meta: m, Data: e.Payload[0]}, e.Events)
	}
	err := x.events.Each(e, func(ev forward.Event, record []byte) error {
		x.seen++
		s := slot{tag: string(e.Tag)}
		if slice := int64(x.timekey / time.Second); slice > 0 {
			s.timekey = ev.Sec - ev.Sec%slice
		}
		c := x.slots[s]
		if c == nil {
			if len(x.slots) >= maxExportSlots {
				if err := x.flush(); err != nil {
					return err
				}
			}
			c = x.begin(s, p, e)
		}
		c.Data = appendEvent(c.Data, ev, record)
		c.Meta.Events++
		if len(c.Data) < exportChunk {
			return nil
		}
		return x.finish(s)
	})
	if err != nil {
		return fmt.Errorf("entry of tag %.100q in chunk %016x at byte %d: %w", e.Tag, p.Seq, p.Offset, err)
	}
	return nil
}

// begin makes a chunk whose id follows from its first event, so that exporting
// again replaces the files.
func (x *exporter) begin(s slot, p buffer.Place, e *buffer.Entry) *fluentdbuffer.Chunk {
	h := sha256.New()
	fmt.Fprintf(h, "%x %x %d %s %d %x", p.Seq, p.Offset, s.timekey, s.tag, x.seen, e.ChunkID)
	c := &fluentdbuffer.Chunk{Queued: true, Meta: fluentdbuffer.Meta{
		Tag: []byte(s.tag), ID: h.Sum(nil)[:16], Created: e.Received.Unix(), Modified: e.Received.Unix()}}
	if x.timekey > 0 {
		c.Meta.Timekey = &s.timekey
	}
	x.slots[s] = c
	return c
}

// appendEvent writes an event in the one form that fluentd takes: without
// metadata, with an EventTime (or an integer where that has no room).
func appendEvent(dst []byte, ev forward.Event, record []byte) []byte {
	dst = append(dst, 0x92)
	if ev.Sec >= 0 && ev.Sec <= 1<<32-1 {
		dst = append(dst, 0xd7, 0)
		dst = binary.BigEndian.AppendUint32(dst, uint32(ev.Sec))
		dst = binary.BigEndian.AppendUint32(dst, uint32(ev.Nsec))
	} else {
		dst = append(dst, 0xd3)
		dst = binary.BigEndian.AppendUint64(dst, uint64(ev.Sec))
	}
	return append(dst, record...)
}

// flush writes all chunks that are begun.
func (x *exporter) flush() error {
	for s := range x.slots {
		if err := x.finish(s); err != nil {
			return err
		}
	}
	return nil
}

func (x *exporter) finish(s slot) error {
	c := x.slots[s]
	delete(x.slots, s)
	if err := c.Meta.Encode(); err != nil {
		return err
	}
	return x.write(c, c.Meta.Events)
}

func (x *exporter) write(c *fluentdbuffer.Chunk, events int) error {
	if _, err := fluentdbuffer.Write(x.dir, c); err != nil {
		return err
	}
	x.chunks++
	x.written += events
	return nil
}
