package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"weir/buffer"
)

func newBufferReplay(configPath *string) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "replay CHUNK.damaged...",
		Short: "Deliver what can be read of chunks that were moved aside once more",
		Long: `Put what can be read of chunks that were moved aside as damaged into their
buffer again, durably, and remove them. Stop weir before. A replay that was
interrupted, or killed, is simply started again, also after weir has delivered
meanwhile: no entry is replayed twice.

Outputs have delivered the readable part once already, before the chunk was moved
aside: replay it where that delivery was lost, or after the file was mended.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, file := range args {
				if !strings.HasSuffix(file, ".damaged") {
					return fmt.Errorf("%s is no chunk that was moved aside (.damaged); weir delivers all others by itself", file)
				}
				if err := replayChunk(cmd, *configPath, file, keep); err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the files where they are")
	return cmd
}

// replayedID begins the chunk id of an entry that was replayed. Its own id has
// been stored once, and would count as a duplicate. The new one is the same
// whenever the file is replayed.
const replayedID = "replay:"

// replayer puts the entries of one file into its buffer again.
type replayer struct {
	cmd    *cobra.Command
	to     *appender
	moves  *moves
	commit buffer.Place
	equal  map[[sha256.Size]byte]int // entries of this commit by what they hold
	ids    []string
	known  int // entries that a replay before has put there
	events int
}

func replayChunk(cmd *cobra.Command, configPath, file string, keep bool) (err error) {
	dir := filepath.Dir(file)
	b, err := (bufferTarget{dir, matchOf(configPath, dir)}).openForAppend(cmd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close(cmd.Context())) }()
	r := &replayer{cmd: cmd, to: newAppender(b), equal: map[[sha256.Size]byte]int{}}
	if r.moves, err = beginMoves(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.moves.end()) }()
	info, err := buffer.InspectChunk(file, r.entry)
	if err != nil {
		return fmt.Errorf("replayed up to entry %d, replay it again to go on: %w", len(r.ids), err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %d events in %d entries put into the buffer again, %d events cannot be read\n", file, r.events, len(r.ids)-r.known, info.LostEvents)
	if r.known > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %d entries were in it already\n", file, r.known)
	}
	if keep {
		return nil
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	for _, id := range r.ids {
		r.moves.done(id)
	}
	return nil
}

func (r *replayer) entry(p buffer.Place, e *buffer.Entry) error {
	id := r.id(p, e)
	again := *e
	again.ChunkID = []byte(id)
	err := buffer.ErrDuplicate
	if !r.moves.have[id] {
		err = r.to.append(r.cmd, &again)
	}
	switch {
	case errors.Is(err, buffer.ErrDuplicate):
		r.known++
	case err != nil:
		return err
	default:
		r.events += e.Events
	}
	r.moves.add(id)
	r.ids = append(r.ids, id)
	return nil
}

// id is made of the place of the commit and what the entry holds, not of its
// number: that changes when a damaged entry before it is mended.
func (r *replayer) id(p buffer.Place, e *buffer.Entry) string {
	if p != r.commit {
		clear(r.equal)
		r.commit = p
	}
	h := sha256.New()
	fmt.Fprintf(h, "%x %x %x ", e.Tag, e.ChunkID, e.Received.UnixNano())
	for _, part := range e.Payload {
		h.Write(part) // never fails
	}
	sum := [sha256.Size]byte(h.Sum(nil))
	r.equal[sum]++
	return fmt.Sprintf("%s%x:%x:%x:%x", replayedID, p.Seq, p.Offset, sum[:8], r.equal[sum])
}
