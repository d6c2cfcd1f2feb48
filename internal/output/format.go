package output

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"weir/forward"
	"weir/internal/eventjson"
)

// FormatConfig is fluentd's <format> section.
type FormatConfig struct {
	// Type is out_file (time, tag, JSON), json, msgpack (the records one after
	// the other), single_value (one field as text) or stdout.
	Type string
	// TimeFormat is a strftime(3) format; empty for ISO 8601, or for what
	// fluentd's out_stdout writes.
	TimeFormat string
	Zone       Zone
	// OutputTime and OutputTag leave out columns of out_file when false.
	OutputTime, OutputTag bool
	// Delimiter of out_file: TAB, SPACE, COMMA or SOH.
	Delimiter string
	// MessageKey and Newline are of single_value.
	MessageKey string
	Newline    bool
	// Inject adds fields to the record; nil for none.
	Inject *InjectConfig
}

// InjectConfig is fluentd's <inject> section; an empty key adds nothing.
type InjectConfig struct {
	TagKey, TimeKey, HostnameKey string
	Hostname                     string
	// TimeType is float, unixtime, unixtime_millis, unixtime_micros,
	// unixtime_nanos or string.
	TimeType, TimeFormat string
	Zone                 Zone
}

// formatter writes events, for one goroutine.
type formatter struct {
	c         FormatConfig
	scanner   forward.Scanner // of skip
	time      *timeFormat
	delimiter byte
	inject    *injector
}

const (
	isoFormat    = "%Y-%m-%dT%H:%M:%S%:z"
	isoFormatUTC = "%Y-%m-%dT%H:%M:%SZ"
	stdoutFormat = "%Y-%m-%d %H:%M:%S.%N %z"
)

func newFormatter(c FormatConfig) (*formatter, error) {
	f := &formatter{c: c}
	loc, err := c.Zone.location()
	if err != nil {
		return nil, err
	}
	if f.time, err = newTimeFormat(c.layout(), loc); err != nil {
		return nil, err
	}
	switch c.Delimiter {
	case "TAB", "":
		f.delimiter = '\t'
	case "SPACE":
		f.delimiter = ' '
	case "COMMA":
		f.delimiter = ','
	case "SOH":
		f.delimiter = 1
	default:
		return nil, fmt.Errorf("delimiter %q is none of TAB, SPACE, COMMA, SOH", c.Delimiter)
	}
	switch c.Type {
	case "out_file", "json", "msgpack", "single_value", "stdout":
	default:
		return nil, fmt.Errorf("format %q is none of out_file, json, msgpack, single_value, stdout", c.Type)
	}
	if c.Inject != nil {
		f.inject, err = newInjector(c.Inject)
	}
	return f, err
}

func (c *FormatConfig) layout() string {
	switch {
	case c.TimeFormat != "":
		return c.TimeFormat
	case c.Type == "stdout":
		return stdoutFormat
	case c.Zone.UTC && c.Zone.Name == "":
		return isoFormatUTC
	}
	return isoFormat
}

// append writes one event, whose record begins at p[0], and returns the
// record's length.
func (f *formatter) append(dst, tag []byte, ev forward.Event, p []byte) (out []byte, n int, err error) {
	switch f.c.Type {
	case "msgpack":
		if n, err = f.skip(p); err != nil {
			return dst, 0, err
		}
		if f.inject == nil {
			return append(dst, p[:n]...), n, nil
		}
		return f.inject.appendMsgpack(dst, tag, ev, p[:n]), n, nil
	case "single_value":
		return f.appendValue(dst, p)
	case "out_file":
		if f.c.OutputTime {
			dst = append(f.time.append(dst, ev.Sec, ev.Nsec), f.delimiter)
		}
		if f.c.OutputTag {
			dst = append(appendClean(dst, tag), f.delimiter)
		}
	case "stdout":
		dst = append(f.time.append(dst, ev.Sec, ev.Nsec), ' ')
		dst = append(appendClean(dst, tag), ": "...)
	}
	dst, n, err = eventjson.AppendValue(dst, p)
	if err != nil {
		return dst, 0, err
	}
	if f.inject != nil {
		dst = f.inject.appendJSON(dst, tag, ev, n == 1)
	}
	return append(dst, '\n'), n, nil
}

// maxDepth is how deep a record may nest, more than any source lets through.
const maxDepth = 10_000

// skip returns the length of the record that p begins with, as forward.Skip does
// with a scanner for each.
func (f *formatter) skip(p []byte) (n int, err error) {
	f.scanner.Reset(1, maxDepth)
	n, done, err := f.scanner.Scan(p)
	if err == nil && !done {
		err = errors.New("msgpack: the record is cut")
	}
	return n, err
}

// appendClean appends a tag; controls in it must not break lines and columns.
func appendClean(dst, tag []byte) []byte {
	for _, c := range tag {
		if c < 0x20 || c == 0x7f {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// appendValue writes the field MessageKey: a string as it is, nothing where it
// is missing or nil, anything else as JSON.
func (f *formatter) appendValue(dst, p []byte) (out []byte, n int, err error) {
	pairs, at, err := mapHead(p)
	if err != nil {
		return dst, 0, err
	}
	out = dst
	for range pairs {
		key, size, err := text(p[at:])
		if err != nil {
			return dst, 0, err
		}
		at += size
		if size, err = forward.Skip(p[at:]); err != nil {
			return dst, 0, err
		}
		if string(key) == f.c.MessageKey && len(key) == len(f.c.MessageKey) {
			value, _, err := text(p[at : at+size])
			switch {
			case err != nil:
				return dst, 0, err
			case value != nil:
				out = append(dst, value...)
			case p[at] != 0xc0:
				if out, _, err = eventjson.AppendValue(dst, p[at:]); err != nil {
					return dst, 0, err
				}
			}
		}
		at += size
	}
	if f.c.Newline {
		out = append(out, '\n')
	}
	return out, at, nil
}

// mapHead reads a map's header: its pairs and its length.
func mapHead(p []byte) (pairs, n int, err error) {
	switch {
	case len(p) > 0 && p[0]&0xf0 == 0x80:
		return int(p[0] & 0x0f), 1, nil
	case len(p) > 2 && p[0] == 0xde:
		return int(binary.BigEndian.Uint16(p[1:])), 3, nil
	case len(p) > 4 && p[0] == 0xdf:
		return int(binary.BigEndian.Uint32(p[1:])), 5, nil
	}
	return 0, 0, errors.New("the record is not a map")
}

// text is the content of the str or bin at the start of p, nil for any other
// type, and the object's length.
func text(p []byte) (s []byte, n int, err error) {
	if n, err = forward.Skip(p); err != nil {
		return nil, 0, err
	}
	switch c := p[0]; {
	case c&0xe0 == 0xa0:
		return p[1:n:n], n, nil
	case c == 0xd9 || c == 0xc4:
		return p[2:n:n], n, nil
	case c == 0xda || c == 0xc5:
		return p[3:n:n], n, nil
	case c == 0xdb || c == 0xc6:
		return p[5:n:n], n, nil
	}
	return nil, n, nil
}

// injector adds fields to records.
type injector struct {
	c    InjectConfig
	time *timeFormat // of TimeType string
}

func newInjector(c *InjectConfig) (*injector, error) {
	in := &injector{c: *c}
	if c.TimeKey == "" || c.TimeType != "string" {
		return in, nil
	}
	layout := c.TimeFormat
	if layout == "" {
		layout = isoFormat
	}
	loc, err := c.Zone.location()
	if err == nil {
		in.time, err = newTimeFormat(layout, loc)
	}
	return in, err
}

// appendJSON puts the fields before the closing brace of the object at the end
// of dst.
func (in *injector) appendJSON(dst, tag []byte, ev forward.Event, empty bool) []byte {
	dst = dst[:len(dst)-1]
	field := func(key string) {
		if !empty {
			dst = append(dst, ',')
		}
		empty = false
		dst = append(eventjson.AppendString(dst, []byte(key)), ':')
	}
	if in.c.HostnameKey != "" {
		field(in.c.HostnameKey)
		dst = eventjson.AppendString(dst, []byte(in.c.Hostname))
	}
	if in.c.TagKey != "" {
		field(in.c.TagKey)
		dst = eventjson.AppendString(dst, tag)
	}
	if in.c.TimeKey != "" {
		field(in.c.TimeKey)
		dst = in.appendTime(dst, ev)
	}
	return append(dst, '}')
}

func (in *injector) appendTime(dst []byte, ev forward.Event) []byte {
	switch in.c.TimeType {
	case "string":
		return eventjson.AppendString(dst, in.time.append(nil, ev.Sec, ev.Nsec))
	case "unixtime":
		return strconv.AppendInt(dst, ev.Sec, 10)
	case "unixtime_millis":
		return strconv.AppendInt(dst, ev.Sec*1e3+int64(ev.Nsec/1e6), 10)
	case "unixtime_micros":
		return strconv.AppendInt(dst, ev.Sec*1e6+int64(ev.Nsec/1e3), 10)
	case "unixtime_nanos":
		return strconv.AppendInt(dst, ev.Sec*1e9+int64(ev.Nsec), 10)
	}
	return eventjson.AppendSeconds(dst, ev.Sec, uint32(ev.Nsec))
}

// appendMsgpack writes the record, a map, with the fields behind its own.
func (in *injector) appendMsgpack(dst, tag []byte, ev forward.Event, record []byte) []byte {
	pairs, n, err := mapHead(record)
	if err != nil { // the receiver has let maps through only
		return append(dst, record...)
	}
	for _, key := range []string{in.c.HostnameKey, in.c.TagKey, in.c.TimeKey} {
		if key != "" {
			pairs++
		}
	}
	dst = append(dst, 0xdf)
	dst = binary.BigEndian.AppendUint32(dst, uint32(pairs))
	dst = append(dst, record[n:]...)
	if in.c.HostnameKey != "" {
		dst = appendStr(appendStr(dst, in.c.HostnameKey), in.c.Hostname)
	}
	if in.c.TagKey != "" {
		dst = appendStr(appendStr(dst, in.c.TagKey), string(tag))
	}
	if in.c.TimeKey != "" {
		dst = appendStr(dst, in.c.TimeKey)
		dst = in.appendMsgpackTime(dst, ev)
	}
	return dst
}

func (in *injector) appendMsgpackTime(dst []byte, ev forward.Event) []byte {
	var v int64
	switch in.c.TimeType {
	case "string":
		return appendStr(dst, string(in.time.append(nil, ev.Sec, ev.Nsec)))
	case "unixtime":
		v = ev.Sec
	case "unixtime_millis":
		v = ev.Sec*1e3 + int64(ev.Nsec/1e6)
	case "unixtime_micros":
		v = ev.Sec*1e6 + int64(ev.Nsec/1e3)
	case "unixtime_nanos":
		v = ev.Sec*1e9 + int64(ev.Nsec)
	default: // float
		return binary.BigEndian.AppendUint64(append(dst, 0xcb), math.Float64bits(float64(ev.Sec)+float64(ev.Nsec)/1e9))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0xd3), uint64(v))
}

// appendStr appends a str 32.
func appendStr(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, 0xdb), uint32(len(s)))
	return append(dst, s...)
}
