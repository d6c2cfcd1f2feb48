package main

import (
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
buffer again, durably, and remove them. Stop weir before.

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

// replayChunk appends the entries of one chunk. Their ids go: they have been
// stored once, and would count as duplicates.
func replayChunk(cmd *cobra.Command, configPath, file string, keep bool) (err error) {
	dir := filepath.Dir(file)
	b, err := (bufferTarget{dir, matchOf(configPath, dir)}).openForAppend(cmd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close(cmd.Context())) }()
	a := newAppender(b)
	info, err := buffer.InspectChunk(file, func(_ buffer.Place, e *buffer.Entry) error {
		again := *e
		again.ChunkID = nil
		return a.append(cmd, &again)
	})
	if err != nil {
		return fmt.Errorf("replayed up to entry %d: %w", info.Entries, err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %d events in %d entries put into the buffer again, %d events cannot be read\n", file, info.Events, info.Entries, info.LostEvents)
	if keep {
		return nil
	}
	return os.Remove(file)
}
