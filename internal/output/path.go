package output

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// pathTemplate makes the path of an event's file from its tag and its time.
type pathTemplate struct {
	parts []pathPart
	timed bool   // the path depends on the event's time
	key   []byte // of the last path
	path  string
}

// pathPart is a literal, a time format, or ${tag} and its parts.
type pathPart struct {
	literal string
	time    *timeFormat
	tag     bool
	part    int // of ${tag[N]}
	whole   bool
}

var placeholder = regexp.MustCompile(`\$\{([^}]*)\}`)
var tagPart = regexp.MustCompile(`^tag\[(-?\d+)\]$`)

// newPathTemplate compiles a path such as /var/log/${tag[1]}/%Y%m%d.log.
func newPathTemplate(path string, loc *time.Location) (*pathTemplate, error) {
	if path == "" || strings.HasSuffix(path, "/") {
		return nil, fmt.Errorf("path %q does not name a file", path)
	}
	t := &pathTemplate{}
	for path != "" {
		at := placeholder.FindStringSubmatchIndex(path)
		literal := path
		if at != nil {
			literal = path[:at[0]]
		}
		if literal != "" {
			part := pathPart{literal: literal}
			if strings.Contains(literal, "%") {
				f, err := newTimeFormat(literal, loc)
				if err != nil {
					return nil, fmt.Errorf("path: %w", err)
				}
				part = pathPart{time: f}
				t.timed = true
			}
			t.parts = append(t.parts, part)
		}
		if at == nil {
			break
		}
		name := path[at[2]:at[3]]
		part := pathPart{tag: true, whole: name == "tag"}
		if m := tagPart.FindStringSubmatch(name); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				return nil, fmt.Errorf("path: ${%s}: %w", name, err)
			}
			part.part = n
		} else if !part.whole {
			return nil, fmt.Errorf("path: ${%s} is not known; ${tag} and ${tag[N]} are", name)
		}
		t.parts = append(t.parts, part)
		path = path[at[1]:]
	}
	return t, nil
}

// expand returns the path for a tag and a time. Paths of one second and tag are
// made once.
func (t *pathTemplate) expand(tag []byte, sec int64) string {
	if !t.timed {
		sec = 0
	}
	n := len(t.key)
	if n >= 8 && bytes.Equal(t.key[8:], tag) && t.sec() == sec && t.path != "" {
		return t.path
	}
	t.key = append(t.key[:0], make([]byte, 8)...)
	for i := range 8 {
		t.key[i] = byte(sec >> (8 * i))
	}
	t.key = append(t.key, tag...)
	var b []byte
	for _, p := range t.parts {
		switch {
		case p.time != nil:
			b = p.time.append(b, sec, 0)
		case p.tag && p.whole:
			b = append(b, safeName(tag)...)
		case p.tag:
			b = append(b, safeName(tagElement(tag, p.part))...)
		default:
			b = append(b, p.literal...)
		}
	}
	t.path = string(b)
	return t.path
}

func (t *pathTemplate) sec() (sec int64) {
	for i := range 8 {
		sec |= int64(t.key[i]) << (8 * i)
	}
	return sec
}

// tagElement is the n-th of the tag's parts between dots, from the end if n is
// negative, empty if there is none.
func tagElement(tag []byte, n int) []byte {
	parts := bytes.Split(tag, []byte("."))
	if n < 0 {
		n += len(parts)
	}
	if n < 0 || n >= len(parts) {
		return nil
	}
	return parts[n]
}

// maxName is how much of a tag goes into a file name; file systems take 255
// bytes for all of it.
const maxName = 180

// safeName makes a tag, which anybody on the network may have chosen, a harmless
// part of a file name: slashes, controls and NUL become _, so does a tag that is
// empty or consists of dots. A long tag is cut, with its checksum behind it so
// that different tags stay different.
func safeName(tag []byte) []byte {
	if len(bytes.Trim(tag, ".")) == 0 {
		return []byte("_")
	}
	b := make([]byte, 0, min(len(tag), maxName)+9)
	for _, c := range tag[:min(len(tag), maxName)] {
		if c == '/' || c < 0x20 || c == 0x7f {
			c = '_'
		}
		b = append(b, c)
	}
	if len(tag) > maxName {
		b = fmt.Appendf(b, "-%08x", crc32.ChecksumIEEE(tag))
	}
	return b
}

// FileConfig describes a file output, with the names of fluentd's out_file.
type FileConfig struct {
	// Path has ${tag}, ${tag[N]} and strftime(3) directives of the event's time.
	Path string
	// Timekey appends a time to a path without one: .%Y%m%d for a day or more,
	// .%Y%m%d%H for an hour or more, .%Y%m%d%H%M below; 0 appends none.
	Timekey time.Duration
	Zone    Zone
	// Append adds to a file that is there. Otherwise the name gets _N behind it,
	// with the first N whose file is not there yet.
	Append bool
	// Suffix is put behind the path, such as .log; empty for none.
	Suffix string
	// Gzip compresses: each delivery adds one member to the file.
	Gzip bool
	// DirMode and FileMode are the permissions of what is made.
	DirMode, FileMode uint32
	Format            FormatConfig
}

// fullPath is the template with what fluentd appends to it.
func (c *FileConfig) fullPath() (prefix, suffix string, err error) {
	prefix = c.Path
	if prefix == "" {
		return "", "", errors.New("path is empty")
	}
	format := ""
	switch {
	case c.Timekey >= 24*time.Hour:
		format = "%Y%m%d"
	case c.Timekey >= time.Hour:
		format = "%Y%m%d%H"
	case c.Timekey >= time.Minute:
		format = "%Y%m%d%H%M"
	case c.Timekey > 0:
		format = "%Y%m%d%H%M%S"
	}
	switch {
	case strings.Contains(prefix, "*"):
		if format == "" {
			return "", "", errors.New("path has a * for the time, and there is no timekey")
		}
		prefix = strings.ReplaceAll(prefix, "*", format)
	case format != "" && !strings.Contains(strings.ReplaceAll(prefix, "%%", ""), "%"):
		prefix += "." + format
	}
	suffix = c.Suffix
	if c.Gzip {
		suffix += ".gz"
	}
	return prefix, suffix, nil
}
