package fluentdbuffer

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// ImportedSuffix is behind the name of a chunk that weir has; fluentd does not
	// look at such a file.
	ImportedSuffix = ".imported"
	tmpSuffix      = ".tmp"
	fileMode       = 0o644 // fluentd's default
)

// Write stores a chunk in dir, durably, and returns its path. The chunk appears
// when its meta file is there. One of the same id is replaced.
func Write(dir string, c *Chunk) (string, error) {
	state := "b"
	if c.Queued {
		state = "q"
	}
	path := filepath.Join(dir, "buffer."+state+hex.EncodeToString(c.Meta.ID)+".log")
	meta := binary.BigEndian.AppendUint32([]byte{0xc1, 0}, uint32(len(c.Meta.Raw)))
	meta = append(meta, c.Meta.Raw...)
	if err := writeFile(path+metaSuffix, meta); err != nil {
		return "", err
	}
	if err := writeFile(path, c.Data); err != nil {
		return "", err
	}
	return path, SyncDir(dir)
}

// writeFile writes a file whole or not at all.
func writeFile(path string, p []byte) error {
	tmp := path + tmpSuffix
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MarkImported gives a chunk and its meta file names that fluentd passes over,
// durably, so that nobody delivers it a second time.
func MarkImported(path string) error {
	if err := os.Rename(path, path+ImportedSuffix); err != nil {
		return fmt.Errorf("mark as imported: %w", err)
	}
	if err := os.Rename(path+metaSuffix, path+metaSuffix+ImportedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mark as imported: %w", err)
	}
	return SyncDir(filepath.Dir(path))
}
