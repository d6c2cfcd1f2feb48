// Package fluentdbuffer reads and writes the files of fluentd's file buffer.
//
// A chunk is PREFIX.bID.log while it is staged and PREFIX.qID.log once it is
// queued; ID is the unique id in hexadecimal. It holds events, [time, record],
// one after the other, or the same in gzip or zstd. Beside it lies
// PREFIX.bID.log.meta: c1 00, the size as 4 bytes (big-endian), and a msgpack
// map: timekey, tag, variables, seq, id, s (events), c and m (created and
// modified, Unix seconds). The v0.12 form has no such file, and the chunk's key,
// most often the tag, in its name: PREFIX.KEY.bID.log. The source is fluentd's
// lib/fluent/plugin/buffer/file_chunk.rb.
package fluentdbuffer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vmihailenco/msgpack/v5"

	"weir/forward"
)

const (
	metaSuffix = ".meta"
	// maxMeta bounds what is read of a meta file, in bytes.
	maxMeta = 32 << 10
	// maxChunk is the largest chunk in bytes that one entry of a buffer holds.
	maxChunk = 1<<32 - 1
)

// Errors of ReadChunk.
var (
	ErrEmpty  = errors.New("the chunk is empty")
	ErrMeta   = errors.New("the meta file is broken")
	ErrNoTag  = errors.New("the tag is known neither from a meta file nor from the name")
	ErrLarge  = errors.New("the chunk is larger than 4 GiB")
	errHeader = errors.New("no msgpack map")
)

// Meta is what fluentd knows of a chunk beside its events.
type Meta struct {
	// Raw is the msgpack map as it was read.
	Raw []byte
	// Tag is nil if the chunk is not keyed by tag.
	Tag []byte
	// ID is the unique id, 16 bytes.
	ID []byte
	// Events as the meta file counts them.
	Events int
	// Timekey is the begin of the time slice in Unix seconds, nil without one.
	Timekey *int64
	// Created and Modified in Unix seconds.
	Created, Modified int64
	// Variables is the raw msgpack map of the other keys, nil if there are none.
	Variables []byte
}

// Chunk is one chunk of a directory.
type Chunk struct {
	// Path is the file's, Queued its state.
	Path   string
	Queued bool
	Meta   Meta
	// Data is the events as they are in the file.
	Data []byte
}

// Naming tells what a name does not: which part is the tag.
type Naming struct {
	// Prefix is what comes before the tag in the names of the v0.12 form,
	// without the dot; empty for buffer.
	Prefix string
	// Tag is used where neither a meta file nor the name has one.
	Tag string
}

var nameForm = regexp.MustCompile(`^(.*)\.([bq])([0-9a-f]+)\.[^/]*$`)

// parseName splits a chunk's file name; ok is false for any other file.
func parseName(name string) (key string, queued bool, id []byte, ok bool) {
	m := nameForm.FindStringSubmatch(name)
	if m == nil || strings.HasSuffix(name, metaSuffix) || strings.HasSuffix(name, ImportedSuffix) || strings.HasSuffix(name, tmpSuffix) {
		return "", false, nil, false
	}
	id, err := hex.DecodeString(m[3])
	if err != nil { // an odd number of digits, as no fluentd writes
		id = []byte(m[3])
	}
	return m[1], m[2] == "q", id, true
}

// List names the chunks of a directory in the order of their names, without
// opening them.
func List(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, f := range files {
		if _, _, _, ok := parseName(f.Name()); ok && f.Type().IsRegular() {
			paths = append(paths, filepath.Join(dir, f.Name()))
		}
	}
	return paths, nil
}

// ReadChunk reads a chunk and what belongs to it. The error says what of it
// cannot be used.
func ReadChunk(path string, n Naming) (*Chunk, error) {
	key, queued, id, ok := parseName(filepath.Base(path))
	if !ok {
		return nil, fmt.Errorf("%s is not named like a chunk of fluentd", path)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case fi.Size() == 0:
		return nil, ErrEmpty
	case fi.Size() > maxChunk:
		return nil, ErrLarge
	}
	c := &Chunk{Path: path, Queued: queued}
	c.Meta, err = readMeta(path + metaSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		c.Meta = Meta{ID: id, Created: fi.ModTime().Unix(), Modified: fi.ModTime().Unix()}
		c.Queued = true // as fluentd takes it
		c.Meta.Tag, err = tagOfKey(key, n)
	}
	if err != nil {
		return nil, err
	}
	if c.Meta.Tag == nil {
		if n.Tag == "" {
			return nil, ErrNoTag
		}
		c.Meta.Tag = []byte(n.Tag)
	}
	if c.Data, err = os.ReadFile(path); err != nil {
		return nil, err
	}
	return c, nil
}

// tagOfKey reads the tag from a name of the v0.12 form, where all but letters,
// digits, dots, - and _ is written as %XX.
func tagOfKey(name string, n Naming) ([]byte, error) {
	prefix := n.Prefix
	if prefix == "" {
		prefix = "buffer"
	}
	key, ok := strings.CutPrefix(name, prefix+".")
	if !ok || key == "" {
		return nil, nil
	}
	tag, err := url.PathUnescape(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTag, err)
	}
	return []byte(tag), nil
}

func readMeta(path string) (Meta, error) {
	f, err := os.Open(path)
	if err != nil {
		return Meta{}, err
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, maxMeta))
	if err != nil {
		return Meta{}, err
	}
	m, err := DecodeMeta(p)
	if err != nil {
		return m, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	return m, nil
}

// DecodeMeta reads the content of a meta file, also of the form before fluentd
// 1.10, which is the map alone. What follows the map is left over from a longer
// one.
func DecodeMeta(p []byte) (m Meta, err error) {
	if len(p) >= 6 && p[0] == 0xc1 && p[1] == 0 {
		size := int64(binary.BigEndian.Uint32(p[2:]))
		if size > int64(len(p)-6) {
			return m, fmt.Errorf("%d bytes of %d", len(p)-6, size)
		}
		p = p[6 : 6+size]
	}
	// Nothing is decoded before its bounds are known.
	n, err := forward.Skip(p)
	if err != nil {
		return m, err
	}
	if c := p[0]; c&0xf0 != 0x80 && c != 0xde && c != 0xdf {
		return m, errHeader
	}
	m.Raw = bytes.Clone(p[:n])
	d := msgpack.NewDecoder(bytes.NewReader(m.Raw))
	pairs, err := d.DecodeMapLen()
	if err != nil {
		return m, err
	}
	for range pairs {
		key, err := d.DecodeInterface()
		if err != nil {
			return m, err
		}
		name, _ := key.(string)
		if err := m.field(d, name); err != nil {
			return m, fmt.Errorf("%q: %w", name, err)
		}
	}
	if len(m.ID) == 0 || m.Created <= 0 || m.Modified <= 0 {
		return m, errors.New("id, c or m is missing")
	}
	return m, nil
}

func (m *Meta) field(d *msgpack.Decoder, name string) (err error) {
	raw, err := d.DecodeRaw()
	if err != nil || len(raw) == 0 || raw[0] == 0xc0 {
		return err
	}
	v := msgpack.NewDecoder(bytes.NewReader(raw))
	switch name {
	case "tag":
		m.Tag, err = v.DecodeBytes()
	case "id":
		m.ID, err = v.DecodeBytes()
	case "variables":
		m.Variables = bytes.Clone(raw)
	case "s":
		m.Events, err = v.DecodeInt()
	case "c":
		m.Created, err = v.DecodeInt64()
	case "m":
		m.Modified, err = v.DecodeInt64()
	case "timekey":
		var t int64
		if t, err = v.DecodeInt64(); err == nil {
			m.Timekey = &t
		}
	}
	return err
}

// Encode makes the map as fluentd writes it, and keeps it in Raw.
func (m *Meta) Encode() error {
	var b bytes.Buffer
	e := msgpack.NewEncoder(&b)
	e.UseCompactInts(true)
	optional := func(p []byte) error {
		if p == nil {
			return e.EncodeNil()
		}
		return e.EncodeString(string(p))
	}
	errs := []error{e.EncodeMapLen(8), e.EncodeString("timekey")}
	if m.Timekey == nil {
		errs = append(errs, e.EncodeNil())
	} else {
		errs = append(errs, e.EncodeInt(*m.Timekey))
	}
	errs = append(errs, e.EncodeString("tag"), optional(m.Tag), e.EncodeString("variables"))
	if m.Variables == nil {
		errs = append(errs, e.EncodeNil())
	} else {
		errs = append(errs, e.Encode(msgpack.RawMessage(m.Variables)))
	}
	errs = append(errs, e.EncodeString("seq"), e.EncodeInt(0), e.EncodeString("id"), e.EncodeBytes(m.ID),
		e.EncodeString("s"), e.EncodeInt(int64(m.Events)), e.EncodeString("c"), e.EncodeInt(m.Created), e.EncodeString("m"), e.EncodeInt(m.Modified))
	m.Raw = b.Bytes()
	return errors.Join(errs...)
}

// Readable counts the events at the start of an uncompressed stream and their
// length; err tells why what follows is none, nil if nothing does.
func Readable(p []byte) (events, n int, err error) {
	for n < len(p) {
		_, size, err := forward.NextEvent(p[n:])
		if err != nil {
			return events, n, fmt.Errorf("event %d at byte %d: %w", events+1, n, err)
		}
		events++
		n += size
	}
	return events, n, nil
}

// Compression tells from the first bytes whether a chunk is compressed: events
// begin with an array.
func (c *Chunk) Compression() (gzip, zstd bool) {
	return bytes.HasPrefix(c.Data, []byte{0x1f, 0x8b}), bytes.HasPrefix(c.Data, []byte{0x28, 0xb5, 0x2f, 0xfd})
}
