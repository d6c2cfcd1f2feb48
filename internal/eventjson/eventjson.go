// Package eventjson writes msgpack as JSON, in one pass and without allocating.
//
// What becomes of each type:
//
//	nil, bool           null, true, false
//	integers            exact, all 64 bits of them
//	float 32, float 64  the shortest text that reads back the same; a whole
//	                    number keeps its .0, so that it stays a float
//	NaN, infinities     null: JSON has no word for them
//	str, bin            a string; each byte that is not part of valid UTF-8
//	                    becomes U+FFFD
//	array, map          as they are; keys keep their order, also equal ones
//	map keys            strings as they are; any other key becomes the string of
//	                    its JSON text
//	EventTime (ext 0)   a number of seconds with nine decimals
//	other ext           {"type": N, "data": "base64"}
//
// The output is always valid UTF-8 and valid JSON.
package eventjson

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// maxDepth bounds recursion; the receiver refuses what nests deeper long before.
const maxDepth = 10000

// Errors of AppendValue. They mean that the bytes are no msgpack.
var (
	ErrCut      = errors.New("msgpack: cut in the middle of an object")
	ErrReserved = errors.New("msgpack: byte 0xc1, which the format never uses")
	ErrDepth    = errors.New("msgpack: nested too deep")
)

// AppendValue appends the JSON text of the msgpack object at the start of src
// to dst and returns it with the object's length. After an error dst is as it
// was.
func AppendValue(dst, src []byte) (out []byte, n int, err error) {
	out, n, err = appendValue(dst, src, 0, maxDepth)
	if err != nil {
		return dst, 0, err
	}
	return out, n, nil
}

// appendValue writes the object at src[i:] and returns where it ends.
func appendValue(dst, src []byte, i, depth int) ([]byte, int, error) {
	if i >= len(src) {
		return dst, i, ErrCut
	}
	c := src[i]
	switch {
	case c <= 0x7f:
		return strconv.AppendUint(dst, uint64(c), 10), i + 1, nil
	case c <= 0x8f:
		return appendMap(dst, src, i+1, int(c&0x0f), depth)
	case c <= 0x9f:
		return appendArray(dst, src, i+1, int(c&0x0f), depth)
	case c <= 0xbf:
		return appendText(dst, src, i+1, int(c&0x1f))
	case c >= 0xe0:
		return strconv.AppendInt(dst, int64(int8(c)), 10), i + 1, nil
	}
	size := fixed[c-0xc0]
	if len(src)-i <= size {
		return dst, i, ErrCut
	}
	p := src[i+1 : i+1+size]
	i += 1 + size
	be := binary.BigEndian
	switch c {
	case 0xc0:
		return append(dst, "null"...), i, nil
	case 0xc2:
		return append(dst, "false"...), i, nil
	case 0xc3:
		return append(dst, "true"...), i, nil
	case 0xc4, 0xd9:
		return appendText(dst, src, i, int(p[0]))
	case 0xc5, 0xda:
		return appendText(dst, src, i, int(be.Uint16(p)))
	case 0xc6, 0xdb:
		return appendText(dst, src, i, int(be.Uint32(p)))
	case 0xc7:
		return appendExt(dst, src, i, int(p[0]), int8(p[1]))
	case 0xc8:
		return appendExt(dst, src, i, int(be.Uint16(p)), int8(p[2]))
	case 0xc9:
		return appendExt(dst, src, i, int(be.Uint32(p)), int8(p[4]))
	case 0xd4, 0xd5, 0xd6, 0xd7, 0xd8:
		return appendExt(dst, src, i, 1<<(c-0xd4), int8(p[0]))
	case 0xca:
		return appendFloat(dst, float64(math.Float32frombits(be.Uint32(p))), 32), i, nil
	case 0xcb:
		return appendFloat(dst, math.Float64frombits(be.Uint64(p)), 64), i, nil
	case 0xcc:
		return strconv.AppendUint(dst, uint64(p[0]), 10), i, nil
	case 0xcd:
		return strconv.AppendUint(dst, uint64(be.Uint16(p)), 10), i, nil
	case 0xce:
		return strconv.AppendUint(dst, uint64(be.Uint32(p)), 10), i, nil
	case 0xcf:
		return strconv.AppendUint(dst, be.Uint64(p), 10), i, nil
	case 0xd0:
		return strconv.AppendInt(dst, int64(int8(p[0])), 10), i, nil
	case 0xd1:
		return strconv.AppendInt(dst, int64(int16(be.Uint16(p))), 10), i, nil
	case 0xd2:
		return strconv.AppendInt(dst, int64(int32(be.Uint32(p))), 10), i, nil
	case 0xd3:
		return strconv.AppendInt(dst, int64(be.Uint64(p)), 10), i, nil
	case 0xdc:
		return appendArray(dst, src, i, int(be.Uint16(p)), depth)
	case 0xdd:
		return appendArray(dst, src, i, int(be.Uint32(p)), depth)
	case 0xde:
		return appendMap(dst, src, i, int(be.Uint16(p)), depth)
	case 0xdf:
		return appendMap(dst, src, i, int(be.Uint32(p)), depth)
	}
	return dst, i, ErrReserved
}

// fixed is how many bytes of header or number follow the first byte, for 0xc0
// to 0xdf.
var fixed = [32]int{
	0, 0, 0, 0, // nil, reserved, bool
	1, 2, 4, // bin
	2, 3, 5, // ext: length and type
	4, 8, // float
	1, 2, 4, 8, 1, 2, 4, 8, // uint, int
	1, 1, 1, 1, 1, // fixext: type
	1, 2, 4, // str
	2, 4, 2, 4, // array, map
}

func appendArray(dst, src []byte, i, n, depth int) ([]byte, int, error) {
	if depth == 0 {
		return dst, i, ErrDepth
	}
	var err error
	dst = append(dst, '[')
	for k := range n {
		if k > 0 {
			dst = append(dst, ',')
		}
		if dst, i, err = appendValue(dst, src, i, depth-1); err != nil {
			return dst, i, err
		}
	}
	return append(dst, ']'), i, nil
}

func appendMap(dst, src []byte, i, n, depth int) ([]byte, int, error) {
	if depth == 0 {
		return dst, i, ErrDepth
	}
	var err error
	dst = append(dst, '{')
	for k := range n {
		if k > 0 {
			dst = append(dst, ',')
		}
		if dst, i, err = appendKey(dst, src, i, depth-1); err != nil {
			return dst, i, err
		}
		dst = append(dst, ':')
		if from, end := shortText(src, i); end <= len(src) {
			dst, i = AppendString(dst, src[from:end]), end
		} else if dst, i, err = appendValue(dst, src, i, depth-1); err != nil {
			return dst, i, err
		}
	}
	return append(dst, '}'), i, nil
}

// shortText is where the text of the fixstr or str 8 at src[i] is; for all else end is
// beyond src.
func shortText(src []byte, i int) (from, end int) {
	if i+1 < len(src) {
		if c := src[i]; c&0xe0 == 0xa0 {
			return i + 1, i + 1 + int(c&0x1f)
		} else if c == 0xd9 {
			return i + 2, i + 2 + int(src[i+1])
		}
	}
	return 0, len(src) + 1
}

// appendKey writes a map's key, which JSON wants to be a string.
func appendKey(dst, src []byte, i, depth int) ([]byte, int, error) {
	if i >= len(src) {
		return dst, i, ErrCut
	}
	if from, end := shortText(src, i); end <= len(src) {
		return AppendString(dst, src[from:end]), end, nil
	}
	if c := src[i]; c&0xe0 == 0xa0 || c >= 0xd9 && c <= 0xdb || c >= 0xc4 && c <= 0xc6 {
		return appendValue(dst, src, i, depth)
	}
	start := len(dst)
	dst, i, err := appendValue(dst, src, i, depth)
	if err != nil {
		return dst, i, err
	}
	text := append([]byte(nil), dst[start:]...) // rare: no sender writes such keys
	return AppendString(dst[:start], text), i, nil
}

func appendText(dst, src []byte, i, n int) ([]byte, int, error) {
	if n > len(src)-i {
		return dst, i, ErrCut
	}
	return AppendString(dst, src[i:i+n]), i + n, nil
}

func appendExt(dst, src []byte, i, n int, kind int8) ([]byte, int, error) {
	if n > len(src)-i {
		return dst, i, ErrCut
	}
	p := src[i : i+n]
	if kind == 0 && n == 8 {
		return AppendSeconds(dst, int64(binary.BigEndian.Uint32(p)), binary.BigEndian.Uint32(p[4:])), i + n, nil
	}
	dst = append(dst, `{"type":`...)
	dst = strconv.AppendInt(dst, int64(kind), 10)
	dst = append(dst, `,"data":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, p)
	return append(dst, `"}`...), i + n, nil
}

// AppendSeconds appends a time as seconds with nine decimals. Nanoseconds
// beyond a second, which only a broken sender writes, count as they are.
func AppendSeconds(dst []byte, sec int64, nsec uint32) []byte {
	sec += int64(nsec / 1e9)
	nsec %= 1e9
	if sec < 0 && nsec > 0 { // -1.5 is -2 s and 500000000 ns
		sec++
		nsec = 1e9 - nsec
		if sec == 0 {
			dst = append(dst, '-')
		}
	}
	dst = strconv.AppendInt(dst, sec, 10)
	dst = append(dst, '.')
	for d := uint32(1e8); d > 0; d /= 10 {
		dst = append(dst, byte('0'+nsec/d%10))
	}
	return dst
}

func appendFloat(dst []byte, f float64, bits int) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(dst, "null"...)
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, format, -1, bits)
	for _, c := range dst[start:] {
		if c == '.' || c == 'e' {
			return dst
		}
	}
	return append(dst, ".0"...)
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// plain reports whether the 8 bytes of w are all ASCII that JSON takes as it
// is: not a control, quote or backslash.
func plain(w uint64) bool {
	quote := w ^ ones*'"'
	slash := w ^ ones*'\\'
	// Each term has the high bit of a byte set if that byte is below 0x20, a
	// quote, a backslash, or not ASCII; exact as long as none is, which is all
	// that is asked.
	return (w|(w-ones*0x20)|(quote-ones)|(slash-ones))&highs == 0
}

// AppendString appends p as a JSON string.
func AppendString(dst, p []byte) []byte {
	// Nearly all text is plain: it is looked at and copied in one go, the end of it
	// twice rather than byte by byte, for the processor cannot guess its length.
	n := len(p)
	dst = slices.Grow(dst, n+2)
	out := dst[len(dst) : len(dst)+n+2]
	to := out[1 : n+1]
	le := binary.LittleEndian
	switch {
	case n >= 8:
		for i := 0; i+8 < n; i += 8 {
			w := le.Uint64(p[i:])
			if !plain(w) {
				return appendEscaped(dst, p)
			}
			le.PutUint64(to[i:], w)
		}
		w := le.Uint64(p[n-8:])
		if !plain(w) {
			return appendEscaped(dst, p)
		}
		le.PutUint64(to[n-8:], w)
	case n >= 4:
		first, last := le.Uint32(p), le.Uint32(p[n-4:])
		if !plain(uint64(first) | uint64(last)<<32) {
			return appendEscaped(dst, p)
		}
		le.PutUint32(to, first)
		le.PutUint32(to[n-4:], last)
	case n > 0:
		first, mid, last := p[0], p[n/2], p[n-1]
		if !plain(ones*'.'&^0xffffff | uint64(first) | uint64(mid)<<8 | uint64(last)<<16) {
			return appendEscaped(dst, p)
		}
		to[0], to[n/2], to[n-1] = first, mid, last
	}
	out[0], out[n+1] = '"', '"'
	return dst[:len(dst)+n+2]
}

// appendEscaped is AppendString for text that needs a closer look.
func appendEscaped(dst, p []byte) []byte {
	dst = append(dst, '"')
	from, i := 0, 0 // p[from:i] needs no escape and is not yet written
	for i < len(p) {
		if len(p)-i >= 8 && plain(binary.LittleEndian.Uint64(p[i:])) {
			i += 8
			continue
		}
		c := p[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(p[i:])
			if r == utf8.RuneError && size == 1 {
				dst = append(dst, p[from:i]...)
				dst = append(dst, "\ufffd"...)
				from = i + 1
			}
			i += size
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, p[from:i]...)
		dst = appendEscape(dst, c)
		i++
		from = i
	}
	dst = append(dst, p[from:]...)
	return append(dst, '"')
}

func appendEscape(dst []byte, c byte) []byte {
	const hex = "0123456789abcdef"
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	case '\b':
		return append(dst, '\\', 'b')
	case '\f':
		return append(dst, '\\', 'f')
	}
	return append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
}
