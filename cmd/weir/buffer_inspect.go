package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weir/buffer"
	"weir/forward"
	"weir/internal/config"
	"weir/internal/eventjson"
	"weir/internal/output"
)

const bufferArgs = `

The argument is the directory of a buffer, or the id of a <match> of the
configuration (-c); without one, all buffers of the configuration. Nothing is
changed, and a running weir is not disturbed.`

func newBufferLs(configPath *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls [DIR|ID]",
		Short: "List chunks, and how far each output has come",
		Long:  "List the chunks of a buffer, and how far each output has come." + bufferArgs,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := inspectAll(*configPath, args)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for i, in := range all {
				if i > 0 {
					fmt.Fprintln(w)
				}
				listBuffer(w, in)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// writeJSON prints v for scripts.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func inspectAll(configPath string, args []string) (all []*buffer.Inspection, err error) {
	arg := ""
	if len(args) > 0 {
		arg = args[0]
	}
	targets, err := bufferTargets(configPath, arg)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		in, err := buffer.Inspect(t.dir, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, in)
	}
	return all, nil
}

func listBuffer(w io.Writer, in *buffer.Inspection) {
	fmt.Fprintf(w, "buffer %s%s\n", in.Dir, heldBy(in))
	fmt.Fprintln(w, "CHUNK\tSTATE\tENTRIES\tEVENTS\tLOST\tBYTES\tBEGUN")
	for _, c := range in.Chunks {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", filepath.Base(c.File), chunkState(c), c.Entries, c.Events, c.LostEvents, c.Bytes, when(c.Begun))
	}
	fmt.Fprintln(w, "OUTPUT\tAT CHUNK\tOFFSET\tENTRIES LEFT\tEVENTS LEFT")
	for _, c := range in.Cursors {
		fmt.Fprintf(w, "%s\t%016x\t%d\t%d\t%d\n", text([]byte(c.Name)), c.Seq, c.Offset, c.Entries, c.Events)
	}
}

func heldBy(in *buffer.Inspection) string {
	if in.Holder == "" {
		return ""
	}
	return ", in use by process " + in.Holder
}

func chunkState(c buffer.ChunkInfo) string {
	switch {
	case c.Gone:
		return "delivered meanwhile"
	case len(c.Damage) > 0:
		return c.State + ", damaged"
	}
	return c.State
}

func when(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return t.Local().Format(time.DateTime)
}

func newBufferVerify(configPath *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [DIR|ID|CHUNK]",
		Short: "Check every checksum; exit code 1 if anything is damaged",
		Long: `Check the checksum of every commit and entry, also of chunks that were moved
aside, and tell what is sound and what is not. The exit code is 1 if anything is
damaged. One chunk's file may be given as well.` + bufferArgs,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var chunks []buffer.ChunkInfo
			if len(args) == 1 && isChunkFile(args[0]) {
				info, err := buffer.InspectChunk(args[0], nil)
				if err != nil {
					return err
				}
				chunks = append(chunks, info)
			} else {
				all, err := inspectAll(*configPath, args)
				if err != nil {
					return err
				}
				for _, in := range all {
					chunks = append(chunks, in.Chunks...)
				}
			}
			w := cmd.OutOrStdout()
			if asJSON {
				if err := writeJSON(w, chunks); err != nil {
					return err
				}
			}
			var bad int
			var lost uint64
			for _, c := range chunks {
				if !asJSON {
					writeVerdict(w, c)
				}
				if len(c.Damage) > 0 {
					bad++
					lost += c.LostEvents
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d chunks are damaged, %d events in them cannot be read; the rest of them can, and is delivered", bad, len(chunks), lost)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// isChunkFile tells a chunk's file from a directory or an id by its name.
func isChunkFile(arg string) bool {
	base := strings.TrimSuffix(filepath.Base(arg), ".damaged")
	return strings.HasPrefix(base, "chunk.") && strings.HasSuffix(base, ".weir")
}

func writeVerdict(w io.Writer, c buffer.ChunkInfo) {
	verdict := "sound"
	switch {
	case c.Gone:
		verdict = "delivered meanwhile"
	case len(c.Damage) > 0:
		verdict = "DAMAGED"
	}
	fmt.Fprintf(w, "%s: %s, %d entries with %d events can be read", c.File, verdict, c.Entries, c.Events)
	if c.LostEvents > 0 {
		fmt.Fprintf(w, ", %d events cannot", c.LostEvents)
	}
	fmt.Fprintln(w)
	for _, d := range c.Damage {
		fmt.Fprintf(w, "  at byte %d: %s\n", d.Offset, d.Cause)
	}
}

func newBufferCat(configPath *string) *cobra.Command {
	var tag, out string
	cmd := &cobra.Command{
		Use:   "cat [DIR|ID|CHUNK]",
		Short: "Write what is stored as lines of JSON: tag, time, record",
		Long: `Write the events of a buffer as lines of JSON with tag, time (seconds) and
record, oldest first, compressed payloads decompressed. Delivered chunks that are
still there are written too, unless --undelivered names an output. One chunk's
file may be given as well, also one that was moved aside. An entry that is stored
whole and cannot be decompressed, or decoded, is told on stderr with its place, all
others are written, and the exit code is 1.` + bufferArgs,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := bufio.NewWriter(cmd.OutOrStdout())
			c := &cat{w: w, errs: cmd.ErrOrStderr()}
			if tag != "" {
				only, err := config.NewRouter([]*config.Match{{Pattern: tag}})
				if err != nil {
					return fmt.Errorf("--tag %s: %w", tag, err)
				}
				c.only = only
			}
			if len(args) == 1 && isChunkFile(args[0]) {
				if out != "" {
					return errors.New("--undelivered is for a whole buffer, not for one chunk")
				}
				_, err := buffer.InspectChunk(args[0], c.entry)
				return errors.Join(err, w.Flush(), c.verdict())
			}
			arg := ""
			if len(args) == 1 {
				arg = args[0]
			}
			targets, err := bufferTargets(*configPath, arg)
			if err != nil {
				return err
			}
			for _, t := range targets {
				if c.from, err = undeliveredBy(t.dir, out); err != nil {
					return err
				}
				if _, err := buffer.Inspect(t.dir, c.entry); err != nil {
					return errors.Join(err, w.Flush(), c.verdict())
				}
			}
			return errors.Join(w.Flush(), c.verdict())
		},
	}
	cmd.Flags().StringVar(&tag, "tag", "", "only events whose tag matches this pattern, as in <match>")
	cmd.Flags().StringVar(&out, "undelivered", "", "only what the output of this id has still to deliver")
	return cmd
}

// undeliveredBy is the cursor of an output; of none if out is empty.
func undeliveredBy(dir, out string) (buffer.CursorInfo, error) {
	if out == "" {
		return buffer.CursorInfo{}, nil
	}
	names, err := buffer.Cursors(dir)
	if err != nil {
		return buffer.CursorInfo{}, err
	}
	for _, name := range names {
		if name == config.FileName(out) {
			return buffer.ReadCursor(dir, name)
		}
	}
	return buffer.CursorInfo{}, fmt.Errorf("the buffer %s has no output %q; it has %q", dir, out, names)
}

// cat writes entries as lines of JSON.
type cat struct {
	w      *bufio.Writer
	errs   io.Writer
	only   *config.Router // nil for all tags
	from   buffer.CursorInfo
	events output.Events
	line   []byte
	bad    int // entries with events that cannot be read
}

func (c *cat) entry(p buffer.Place, e *buffer.Entry) error {
	if p.Before(c.from) {
		return nil
	}
	if c.only != nil && c.only.Match(e.Tag) == nil {
		return nil
	}
	var writeErr error
	written := 0
	err := c.events.Each(e, func(ev forward.Event, record []byte) error {
		b := append(c.line[:0], `{"tag":`...)
		b = eventjson.AppendString(b, e.Tag)
		b = append(b, `,"time":`...)
		b = eventjson.AppendSeconds(b, ev.Sec, uint32(ev.Nsec))
		b = append(b, `,"record":`...)
		b, _, err := eventjson.AppendValue(b, record)
		if err != nil {
			return err
		}
		b = append(b, '}', '\n')
		c.line = b
		if _, writeErr = c.w.Write(b); writeErr == nil {
			written++
		}
		return writeErr
	})
	if err == nil || writeErr != nil {
		return writeErr
	}
	c.bad++
	_, err = fmt.Fprintf(c.errs, "entry of tag %.100q in chunk %016x at byte %d: only %d of its %d events can be read: %v\n", e.Tag, p.Seq, p.Offset, written, e.Events, err)
	return err
}

// verdict is the error if any entry could not be read.
func (c *cat) verdict() error {
	if c.bad == 0 {
		return nil
	}
	return fmt.Errorf("%d entries cannot be read, or not whole", c.bad)
}
