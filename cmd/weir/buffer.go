package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"weir/buffer"
	"weir/internal/config"
)

func newBufferCommand(configPath *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "buffer",
		Short: "Look into the buffers on disk, move them from and to fluentd",
	}
	cmd.AddCommand(newBufferLs(configPath), newBufferCat(configPath), newBufferVerify(configPath), newBufferReplay(configPath),
		newBufferImport(configPath), newBufferExport(configPath), newRejectedCommand(configPath))
	return cmd
}

// bufferTarget is one buffer that a command works on.
type bufferTarget struct {
	dir   string
	match *config.Match // nil for a directory that is given by its path
}

// bufferTargets finds the buffers that an argument means: a directory, the id of
// a match, or all of the configuration without one.
func bufferTargets(configPath, arg string) ([]bufferTarget, error) {
	if fi, err := os.Stat(arg); arg != "" && err == nil && fi.IsDir() {
		return []bufferTarget{{dir: arg, match: matchOf(configPath, arg)}}, nil
	}
	c, err := loadConfig(configPath)
	if err != nil {
		return nil, err
	}
	var found []bufferTarget
	for _, m := range allMatches(c) {
		if _, err := os.Stat(m.Buffer.Path); arg == m.ID || arg == "" && err == nil {
			found = append(found, bufferTarget{m.Buffer.Path, m})
		}
	}
	switch {
	case len(found) == 0 && arg == "":
		return nil, fmt.Errorf("none of the buffers of the configuration exists yet; give the configuration with -c, or a directory")
	case len(found) == 0:
		return nil, fmt.Errorf("%q is neither a directory nor the id of a <match>; weir check -c FILE shows the paths", arg)
	}
	return found, nil
}

// matchOf is the match of the configuration whose buffer is in dir, nil if there
// is no configuration or none is.
func matchOf(configPath, dir string) *config.Match {
	if configPath == "" {
		return nil
	}
	c, err := loadConfig(configPath)
	if err != nil {
		return nil
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil
	}
	for _, m := range allMatches(c) {
		if p, err := filepath.Abs(m.Buffer.Path); err == nil && p == path {
			return m
		}
	}
	return nil
}

// oneTarget is bufferTargets for a command that needs exactly one.
func oneTarget(configPath, arg string) (bufferTarget, error) {
	found, err := bufferTargets(configPath, arg)
	if err != nil {
		return bufferTarget{}, err
	}
	if len(found) > 1 {
		return bufferTarget{}, fmt.Errorf("the configuration has %d buffers; say which with --buffer and the id of its match, or a directory", len(found))
	}
	return found[0], nil
}

// openForAppend opens the buffer as weir would, with the cursors that it has.
func (t bufferTarget) openForAppend(cmd *cobra.Command) (*buffer.Buffer, error) {
	o := buffer.Options{Dir: t.dir}
	if t.match != nil {
		o.ChunkLimit, o.TotalLimit = t.match.Buffer.ChunkLimit, t.match.Buffer.TotalLimit
		o.DedupeWindow, o.DedupeAge = dedupe(t.match)
		for _, out := range t.match.Outputs {
			o.Cursors = append(o.Cursors, config.FileName(out.ID))
		}
	} else if _, err := os.Stat(t.dir); err == nil {
		in, err := buffer.Cursors(t.dir)
		if err != nil {
			return nil, err
		}
		o.Cursors = in
	}
	if len(o.Cursors) == 0 {
		// Nothing is passed by it, and weir's outputs begin at the oldest chunk.
		o.Cursors = []string{"import"}
	}
	return buffer.Open(cmd.Context(), o)
}

// appender appends entries and waits for each commit.
type appender struct {
	b    *buffer.Buffer
	done chan error
}

func newAppender(b *buffer.Buffer) *appender { return &appender{b: b, done: make(chan error, 1)} }

// Done implements buffer.Waiter.
func (a *appender) Done(err error) { a.done <- err }

func (a *appender) append(cmd *cobra.Command, e *buffer.Entry) error {
	if err := a.b.Append(cmd.Context(), e, a); err != nil {
		return err
	}
	return <-a.done
}
