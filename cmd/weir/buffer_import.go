package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"weir/buffer"
	"weir/forward"
	"weir/internal/config"
	"weir/internal/fluentdbuffer"
	"weir/internal/output"
	"weir/internal/quarantine"
)

// importedID begins the chunk id of an entry that was imported. A state, b or q,
// and the map of its meta file follow, so that an export gives the same chunk
// back, with all its placeholders.
const importedID = "fluentd:"

// chunkID is the id of a chunk of fluentd as an entry.
func chunkID(c *fluentdbuffer.Chunk) []byte {
	state := "b"
	if c.Queued {
		state = "q"
	}
	return append([]byte(importedID+state+":"), c.Meta.Raw...)
}

// importedChunk is the reverse of chunkID.
func importedChunk(id []byte) (queued bool, m fluentdbuffer.Meta, ok bool) {
	rest, ok := bytes.CutPrefix(id, []byte(importedID))
	if !ok || len(rest) < 2 || rest[1] != ':' {
		return false, m, false
	}
	m, err := fluentdbuffer.DecodeMeta(rest[2:])
	return rest[0] == 'q', m, err == nil
}

// importer moves chunks of fluentd into a buffer.
type importer struct {
	cmd      *cobra.Command
	naming   fluentdbuffer.Naming
	keep     bool
	to       *appender
	moves    *moves
	rejected *quarantine.Store
	events   output.Events

	chunks, known   int
	stored, setAway int // events
}

func newBufferImport(configPath *string) *cobra.Command {
	var to string
	im := &importer{}
	cmd := &cobra.Command{
		Use:   "import FLUENTD_DIR",
		Short: "Take over the chunks of fluentd's file buffer",
		Long: `Take over the chunks of a fluentd's file buffer (v1, and the v0.12 form without
meta files) into the buffer of a match, durably. Stop fluentd, and weir, before.

A chunk that weir has gets .imported behind its name, so that no fluentd delivers
it again; rename it back to undo. An import that was interrupted, or killed, is
simply started again, also after weir has delivered meanwhile: no chunk is
imported twice. What cannot be read of a chunk goes to weir buffer rejected first;
a chunk of which nothing can be read, or whose rest finds no place, stays where it
is, and the exit code is 1.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := importTarget(*configPath, to)
			if err != nil {
				return err
			}
			im.cmd = cmd
			return im.run(t, args[0])
		},
	}
	cmd.Flags().StringVar(&to, "buffer", "", "directory, or id of the match, to import into (default: the only one of the configuration)")
	cmd.Flags().StringVar(&im.naming.Prefix, "prefix", "", "v0.12 form: what comes before the tag in the names (default: buffer)")
	cmd.Flags().StringVar(&im.naming.Tag, "tag", "", "tag for chunks that have none")
	cmd.Flags().BoolVar(&im.keep, "keep", false, "leave the names of fluentd's files as they are")
	return cmd
}

// importTarget is the buffer to import into, which need not exist yet.
func importTarget(configPath, to string) (bufferTarget, error) {
	if configPath == "" {
		if to == "" {
			return bufferTarget{}, errors.New("where to? give the configuration with -c, or a directory with --buffer")
		}
		return bufferTarget{dir: to}, nil
	}
	c, err := loadConfig(configPath)
	if err != nil {
		return bufferTarget{}, err
	}
	all := allMatches(c)
	if to == "" && len(all) == 1 {
		return bufferTarget{all[0].Buffer.Path, all[0]}, nil
	}
	for _, m := range all {
		if m.ID == to || m.Buffer.Path == to {
			return bufferTarget{m.Buffer.Path, m}, nil
		}
	}
	return bufferTarget{}, fmt.Errorf("the configuration has %d matches and none is meant by --buffer %q; give the id of one of them", len(all), to)
}

// rejectedLimit is that of a buffer without a configuration.
const rejectedLimit = 256 << 20

func (im *importer) run(t bufferTarget, from string) (err error) {
	paths, err := fluentdbuffer.List(from)
	if err != nil {
		return fmt.Errorf("fluentd's buffer: %w", err)
	}
	if len(paths) == 0 {
		if done, err := filepath.Glob(filepath.Join(from, "*.log"+fluentdbuffer.ImportedSuffix)); err == nil && len(done) > 0 {
			_, err := fmt.Fprintf(im.cmd.OutOrStdout(), "all %d chunks of %s are imported already\n", len(done), from)
			return err
		}
		return fmt.Errorf("%s holds no chunk of fluentd (PREFIX.bID.log or PREFIX.qID.log)", from)
	}
	b, err := t.openForAppend(im.cmd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close(im.cmd.Context())) }()
	im.to = newAppender(b)
	limit := int64(rejectedLimit)
	if t.match != nil {
		limit = t.match.Buffer.RejectedLimit
	}
	if im.rejected, err = quarantine.Open(rejectedIn(t.dir), limit, zap.NewNop()); err != nil {
		return err
	}
	if im.moves, err = beginMoves(t.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, im.moves.end()) }()
	bad := 0
	for _, path := range paths {
		if err := im.chunk(t, path); err != nil {
			bad++
			fmt.Fprintf(im.cmd.ErrOrStderr(), "%s: not imported: %v\n", path, err)
			if errors.Is(err, buffer.ErrFull) || im.cmd.Context().Err() != nil {
				break
			}
		}
	}
	fmt.Fprintf(im.cmd.OutOrStdout(), "%d chunks with %d events imported into %s\n", im.chunks, im.stored, t.dir)
	if im.known > 0 {
		fmt.Fprintf(im.cmd.OutOrStdout(), "%d chunks were in it already\n", im.known)
	}
	if im.setAway > 0 {
		fmt.Fprintf(im.cmd.OutOrStdout(), "%d chunks had a part that cannot be read: see weir buffer rejected\n", im.setAway)
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d chunks are not imported and stay where they are", bad, len(paths))
	}
	return nil
}

// chunk imports one chunk, marks it, and says so if a part of it is rejected.
func (im *importer) chunk(t bufferTarget, path string) error {
	c, err := fluentdbuffer.ReadChunk(path, im.naming)
	switch {
	case errors.Is(err, fluentdbuffer.ErrNoTag):
		return fmt.Errorf("%w; give --tag, or --prefix for the v0.12 form", err)
	case err != nil:
		return err
	}
	if t.match != nil {
		r, err := config.NewRouter([]*config.Match{t.match})
		if err != nil {
			return err
		}
		if r.Match(c.Meta.Tag) == nil {
			return fmt.Errorf("its tag %q does not match <match %s>; give another --buffer", c.Meta.Tag, t.match.Pattern)
		}
	}
	id := importID(c.Meta.ID)
	if im.moves.have[id] {
		im.known++
		return im.mark(path, id)
	}
	e := buffer.Entry{Tag: c.Meta.Tag, Received: time.Unix(c.Meta.Created, 0)}
	rest, err := im.measure(c, &e)
	if err != nil {
		return err
	}
	if c.Meta.Raw == nil || rest != nil {
		c.Meta.Events = e.Events
		if err := c.Meta.Encode(); err != nil {
			return err
		}
	}
	e.ChunkID = chunkID(c)
	// Before its events: with them in the buffer, the chunk is done.
	if rest != nil {
		if err := im.setAside(t, c, rest); err != nil {
			return fmt.Errorf("what cannot be read of it finds no place in quarantine: %w", err)
		}
	}
	switch err := im.to.append(im.cmd, &e); {
	case errors.Is(err, buffer.ErrDuplicate): // and delivered since
		im.known++
	case err != nil:
		return err
	default:
		im.chunks++
		im.stored += e.Events
	}
	return im.mark(path, id)
}

// mark puts the file of what is in the buffer out of the way.
func (im *importer) mark(path, id string) error {
	im.moves.add(id)
	if im.keep {
		return nil
	}
	if err := fluentdbuffer.MarkImported(path); err != nil {
		return fmt.Errorf("its events are in the buffer, but: %w", err)
	}
	im.moves.done(id)
	return nil
}

// unreadable is the part of a chunk that holds no events.
type unreadable struct {
	data  []byte
	cause error
}

// measure fills what of the chunk can be read into the entry.
func (im *importer) measure(c *fluentdbuffer.Chunk, e *buffer.Entry) (rest *unreadable, err error) {
	e.Payload = [][]byte{c.Data}
	gzip, zstd := c.Compression()
	if gzip || zstd {
		e.Flags = buffer.FlagZstd
		if gzip {
			e.Flags = buffer.FlagGzip
		}
		events := 0
		if err := im.events.Each(e, func(forward.Event, []byte) error { events++; return nil }); err != nil {
			return nil, fmt.Errorf("compressed, and damaged behind %d events: %w", events, err)
		}
		e.Events = events
		return nil, nil
	}
	events, n, err := fluentdbuffer.Readable(c.Data)
	if events == 0 {
		return nil, fmt.Errorf("no events in it, perhaps the text that a <format> of the output has made: %w", err)
	}
	e.Events = events
	if err == nil {
		return nil, nil
	}
	e.Payload[0] = c.Data[:n]
	return &unreadable{c.Data[n:], err}, nil
}

// setAside puts the rest of a chunk into quarantine, unless an import that was
// interrupted has.
func (im *importer) setAside(t bufferTarget, c *fluentdbuffer.Chunk, rest *unreadable) error {
	it := quarantine.Item{
		Kind: string(forward.InvalidEvents), Tag: c.Meta.Tag, Chunk: []byte(hex.EncodeToString(c.Meta.ID)), Reason: "import",
		Cause: rest.cause.Error(), Sender: c.Path, Received: time.Now().UTC(),
	}
	im.setAway++
	there, err := quarantine.List(rejectedIn(t.dir))
	if err != nil {
		return err
	}
	if slices.ContainsFunc(there, func(o quarantine.Item) bool {
		return o.Reason == it.Reason && bytes.Equal(o.Chunk, it.Chunk) && o.Size == int64(len(rest.data))
	}) {
		return nil
	}
	_, err = im.rejected.Put(it, rest.data)
	return err
}
