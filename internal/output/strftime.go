package output

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Zone says in which time zone times are written.
type Zone struct {
	UTC bool
	// Name is a zone such as Asia/Tokyo or +09:00; empty for local time or UTC.
	Name string
}

// location finds the zone.
func (z Zone) location() (*time.Location, error) {
	switch {
	case z.Name != "":
		if t, err := time.Parse("-07:00", z.Name); err == nil {
			_, off := t.Zone()
			return time.FixedZone(z.Name, off), nil
		}
		loc, err := time.LoadLocation(z.Name)
		if err != nil {
			return nil, fmt.Errorf("timezone %q is neither an offset such as +09:00 nor a known zone: %w", z.Name, err)
		}
		return loc, nil
	case z.UTC:
		return time.UTC, nil
	}
	return time.Local, nil
}

// timeFormat is a compiled strftime(3) format, with Ruby's %L, %N, %3N and %:z.
type timeFormat struct {
	loc   *time.Location
	parts []timePart
	fine  bool // has parts finer than a second

	// The last text, for the many events of one second.
	sec  int64
	text []byte
	have bool
}

// timePart is a literal, or a directive with its digits for %N.
type timePart struct {
	literal   string
	directive byte
	digits    int
}

// goLayouts are directives that Go's own layouts can write.
var goLayouts = map[byte]string{
	'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'y': "06", 'b': "Jan", 'h': "Jan", 'B': "January",
	'a': "Mon", 'A': "Monday", 'I': "03", 'p': "PM", 'z': "-0700", 'Z': "MST", 'e': "_2", 'j': "002",
	'F': "2006-01-02", 'T': "15:04:05", 'D': "01/02/06", 'R': "15:04",
	':': "-07:00", // %:z
}

// newTimeFormat compiles format.
func newTimeFormat(format string, loc *time.Location) (*timeFormat, error) {
	f := &timeFormat{loc: loc}
	for format != "" {
		literal, rest, found := strings.Cut(format, "%")
		if literal != "" {
			f.parts = append(f.parts, timePart{literal: literal})
		}
		if !found {
			break
		}
		digits := 9
		switch {
		case strings.HasPrefix(rest, ":z"):
			f.parts = append(f.parts, timePart{directive: ':'})
			format = rest[2:]
			continue
		case len(rest) > 1 && rest[0] >= '1' && rest[0] <= '9' && rest[1] == 'N':
			digits = int(rest[0] - '0')
			rest = rest[1:]
		}
		if rest == "" {
			return nil, fmt.Errorf("time format ends with a single %%; write %%%% for a percent sign")
		}
		c := rest[0]
		format = rest[1:]
		switch {
		case c == '%':
			f.parts = append(f.parts, timePart{literal: "%"})
		case c == 'N':
			f.parts = append(f.parts, timePart{directive: 'N', digits: digits})
			f.fine = true
		case c == 'L':
			f.parts = append(f.parts, timePart{directive: 'N', digits: 3})
			f.fine = true
		case c == 's' || goLayouts[c] != "" && c != ':':
			f.parts = append(f.parts, timePart{directive: c})
		default:
			return nil, fmt.Errorf("time format has %%%c, which weir does not know", c)
		}
	}
	return f, nil
}

// append appends the time.
func (f *timeFormat) append(dst []byte, sec int64, nsec int32) []byte {
	if !f.fine && f.have && f.sec == sec {
		return append(dst, f.text...)
	}
	start := len(dst)
	t := time.Unix(sec, int64(nsec)).In(f.loc)
	for _, p := range f.parts {
		switch p.directive {
		case 0:
			dst = append(dst, p.literal...)
		case 's':
			dst = strconv.AppendInt(dst, sec, 10)
		case 'N':
			for i, d := 0, int32(1e8); i < p.digits; i, d = i+1, d/10 {
				if d == 0 {
					dst = append(dst, '0')
					continue
				}
				dst = append(dst, byte('0'+nsec/d%10))
			}
		default:
			dst = t.AppendFormat(dst, goLayouts[p.directive])
		}
	}
	if !f.fine {
		f.sec, f.have = sec, true
		f.text = append(f.text[:0], dst[start:]...)
	}
	return dst
}
