package fluentdbuffer

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

const real = "../../testdata/fluentd-buffer"

// TestReadReal reads a directory that fluentd 1.16 has left behind, and writes
// every chunk of it back, equal to the byte.
func TestReadReal(t *testing.T) {
	paths, err := List(real)
	if err != nil || len(paths) != 8 {
		t.Fatalf("%d chunks, %v", len(paths), err)
	}
	dir := t.TempDir()
	for _, path := range paths {
		c, err := ReadChunk(path, Naming{})
		if err != nil {
			t.Fatal(err)
		}
		events, n, err := Readable(c.Data)
		if err != nil || n != len(c.Data) || events != c.Meta.Events {
			t.Errorf("%s: %d events of %d, %d bytes of %d, %v", path, events, c.Meta.Events, n, len(c.Data), err)
		}
		if c.Meta.Timekey == nil || c.Meta.Variables != nil || len(c.Meta.ID) != 16 || !bytes.HasPrefix(c.Meta.Tag, []byte("app.")) {
			t.Errorf("%s: %+v", path, c.Meta)
		}
		before := bytes.Clone(c.Meta.Raw)
		if err := c.Meta.Encode(); err != nil || !bytes.Equal(before, c.Meta.Raw) {
			t.Errorf("%s encodes as %x, was %x, %v", path, c.Meta.Raw, before, err)
		}
		written, err := Write(dir, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{"", metaSuffix} {
			want, err1 := os.ReadFile(path + suffix)
			got, err2 := os.ReadFile(written + suffix)
			if err := errors.Join(err1, err2); err != nil || !bytes.Equal(got, want) || filepath.Base(written) != filepath.Base(path) {
				t.Errorf("%s%s comes out as %s, another: %v", path, suffix, written, err)
			}
		}
	}
}

// TestVariables: the placeholders of other chunk keys, and a missing timekey,
// survive.
func TestVariables(t *testing.T) {
	m := Meta{Tag: []byte("a"), ID: bytes.Repeat([]byte{7}, 16), Events: 3, Created: 1, Modified: 2,
		Variables: []byte("\x81\xa4host\xa3web")}
	if err := m.Encode(); err != nil {
		t.Fatal(err)
	}
	got, err := DecodeMeta(m.Raw)
	if err != nil || !bytes.Equal(got.Variables, m.Variables) || got.Timekey != nil || got.Events != 3 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestNames: which part of a name is the tag.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		name, prefix, tag string
	}{
		{"buffer.app.web.b5143dd9ba1c97b50.log", "", "app.web"},
		{"buffer.app%2Fweb.q5143dd9ba1c97b50.log", "", "app/web"},
		{"td.fwd.app.b5143dd9ba1c97b50.buf", "td.fwd", "app"},
		{"buffer.b5143dd9ba1c97b50.log", "", ""},
		{"other.app.b5143dd9ba1c97b50.log", "", ""},
	} {
		key, _, _, ok := parseName(c.name)
		tag, err := tagOfKey(key, Naming{Prefix: c.prefix})
		if !ok || err != nil || string(tag) != c.tag {
			t.Errorf("%s: tag %q, %v, %v; want %q", c.name, tag, ok, err, c.tag)
		}
	}
	for _, name := range []string{"buffer.b12.log.meta", "buffer.b12.log.imported", "buffer.b12.log.tmp", "data.log", "buffer.x12.log"} {
		if _, _, _, ok := parseName(name); ok {
			t.Errorf("%s is taken for a chunk", name)
		}
	}
}

// FuzzMeta: whatever a meta file or a chunk holds is read or refused, and what
// is read survives being written.
func FuzzMeta(f *testing.F) {
	paths, err := filepath.Glob(filepath.Join(real, "*660fc6e*5*.log*"))
	if err != nil || len(paths) == 0 {
		f.Fatal(paths, err)
	}
	for _, path := range paths {
		p, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		events, n, err := Readable(p)
		if n > len(p) || events > n || err == nil && n != len(p) {
			t.Fatalf("%d events in %d of %d bytes, %v", events, n, len(p), err)
		}
		m, err := DecodeMeta(p)
		if err != nil {
			return
		}
		if err := m.Encode(); err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		again, err := DecodeMeta(m.Raw)
		if err != nil || !bytes.Equal(again.ID, m.ID) || !bytes.Equal(again.Tag, m.Tag) || !bytes.Equal(again.Variables, m.Variables) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}
