package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"weir/buffer"
)

// moves knows what import and replay have put into a buffer from files that may
// still be there, so that none of it goes in twice, whenever they were killed.
//
// While they work, nothing is delivered, so that the entries in the buffer tell
// what is done, and movingName says that they work. Whoever finds that name later,
// weir before it delivers or the next import, notes the ids of these entries in
// movedName: the note outlives them, and the window of chunk ids.
type moves struct {
	dir  string
	have map[string]bool // in the buffer, or noted
	note map[string]bool // what is to be noted: its file is not out of the way
}

const (
	// The names begin with a dot, which the buffer passes over.
	movingName = ".moving"
	movedName  = ".moved"
	movesMode  = 0o640
	// maxReplayedID is longer than any in bytes; a sender's own may begin like one.
	maxReplayedID = 100
)

// moveID is the id of what import or replay has put into an entry with this chunk
// id; ok is false for any other entry.
func moveID(chunkID []byte) (id string, ok bool) {
	if bytes.HasPrefix(chunkID, []byte(replayedID)) && len(chunkID) <= maxReplayedID && !bytes.ContainsRune(chunkID, '\n') {
		return string(chunkID), true
	}
	if _, m, ok := importedChunk(chunkID); ok {
		return importID(m.ID), true
	}
	return "", false
}

func importID(id []byte) string { return importedID + hex.EncodeToString(id) }

// beginMoves reads what was moved so far, and says that more is about to be. The
// buffer is open, so that nobody else is here.
func beginMoves(dir string) (*moves, error) {
	m := &moves{dir: dir, have: map[string]bool{}, note: map[string]bool{}}
	noted, err := os.ReadFile(filepath.Join(dir, movedName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("what was moved into the buffer: %w", err)
	}
	for id := range strings.Lines(string(noted)) {
		m.add(strings.TrimSuffix(id, "\n"))
	}
	killed, err := exists(filepath.Join(dir, movingName))
	if err != nil {
		return nil, err
	}
	if _, err := buffer.Inspect(dir, func(_ buffer.Place, e *buffer.Entry) error {
		if id, ok := moveID(e.ChunkID); ok {
			m.have[id] = true
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if killed {
		maps.Copy(m.note, m.have)
		return m, nil
	}
	return m, m.write(movingName, "")
}

// add says that the buffer has id.
func (m *moves) add(id string) { m.have[id], m.note[id] = true, true }

// done says that the file which id comes from is out of the way.
func (m *moves) done(id string) { delete(m.note, id) }

// end notes what is not out of the way.
func (m *moves) end() error {
	moved := filepath.Join(m.dir, movedName)
	if len(m.note) > 0 {
		if err := m.write(movedName, strings.Join(slices.Sorted(maps.Keys(m.note)), "\n")+"\n"); err != nil {
			return err
		}
	} else if err := os.Remove(moved); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(filepath.Join(m.dir, movingName)); err != nil {
		return err
	}
	return syncDir(m.dir)
}

// settleMoves notes what an import or a replay that was killed has put into the
// buffer. It comes before anything is delivered.
func settleMoves(dir string) error {
	if killed, err := exists(filepath.Join(dir, movingName)); err != nil || !killed {
		return err
	}
	m, err := beginMoves(dir)
	if err != nil {
		return err
	}
	return m.end()
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// write makes a file durable, whole or not at all.
func (m *moves) write(name, text string) error {
	path := filepath.Join(m.dir, name)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, movesMode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("note what is moved into the buffer: %w", err)
	}
	return syncDir(m.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
