package load

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/vmihailenco/msgpack/v5"

	"weir/forward"
)

// An id is 32 hexadecimal digits: the run, the sender, the number of its chunk
// and the number of the event in it, 8 each. A chunk id is the first 24.
const (
	idLen      = 32
	chunkIDLen = 24
	idKey      = "id"
	maxTags    = 100000
	tagDigits  = 5
)

// template is a number of equal messages, encoded, with the places in them
// where ids, tags and times are. All positions are relative to a message.
type template struct {
	buf     []byte
	size    int   // of one message
	ids     []int // of senders and chunks within the ids of events
	chunks  []int // the same, of the chunk id; none without acks
	times   []int // of 32-bit seconds
	tag     int   // of the digits, 0 if there is one tag
	tags    int
	events  int
	payload int // bytes of events in one message, uncompressed
	texts   bool
	rebuild func(sender, chunk uint32, second int64) ([]byte, error) // modes that must compress each
	o       *Options
}

// maker builds templates for one run.
type maker struct {
	o       *Options
	run     uint32
	records []map[string]any
}

func newMaker(o *Options, run uint32) (*maker, error) {
	m := &maker{o: o, run: run}
	if o.Sample == nil {
		return m, nil
	}
	for line := range strings.Lines(string(o.Sample)) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			continue
		}
		r := map[string]any{}
		if line[0] != '{' || json.Unmarshal([]byte(line), &r) != nil {
			r = map[string]any{"message": line}
		}
		delete(r, idKey)
		m.records = append(m.records, r)
	}
	if len(m.records) == 0 {
		return nil, errors.New("--sample: the file has no lines")
	}
	return m, nil
}

// record is that of event i, without its id.
func (m *maker) record(i int) map[string]any {
	if m.records != nil {
		return m.records[i%len(m.records)]
	}
	v := varied(i)
	r := map[string]any{
		"method": one(v, "GET", "GET", "GET", "POST", "PUT", "DELETE"), "path": fmt.Sprintf("/api/v1/items/%d", v.IntN(10_000)),
		"status": one(v, 200, 200, 200, 201, 304, 404, 500), "host": fmt.Sprintf("www%d.example.com", v.IntN(10)),
		"level": one(v, "info", "info", "info", "warn", "error"), "took": float64(v.IntN(1000)) / 1000,
	}
	if m.o.Size < 170 {
		r = map[string]any{}
	}
	return r
}

// id of event i with sender and chunk 0.
func (m *maker) id(i int) string { return fmt.Sprintf("%08x%08x%08x%08x", m.run, 0, 0, i) }

// event encodes event i: its msgpack, and where id and time are in it.
func (m *maker) event(i int) (b []byte, id, at int, err error) {
	r := m.record(i)
	b = append(b, 0x92, 0xce, 0, 0, 0, 0)
	at = 2
	fields := len(r) + 1
	if m.records == nil {
		fields++
	}
	if fields < 16 {
		b = append(b, 0x80|byte(fields))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 0xde), uint16(fields))
	}
	b = append(b, 0xa0|byte(len(idKey)))
	b = append(b, idKey...)
	b = append(b, 0xd9, idLen)
	id = len(b) + 8
	b = append(b, m.id(i)...)
	var rest bytes.Buffer
	enc := msgpack.NewEncoder(&rest)
	enc.UseCompactInts(true)
	enc.SetSortMapKeys(true)
	if len(r) > 0 {
		if err := enc.Encode(r); err != nil {
			return nil, 0, 0, err
		}
		head := 1
		if rest.Bytes()[0] == 0xde {
			head = 3
		}
		b = append(b, rest.Bytes()[head:]...)
	}
	if m.records == nil { // filled up to the size asked for
		b = append(b, 0xa7)
		b = append(b, "message"...)
		n := max(0, m.o.Size-len(b)-5)
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
		b = append(b, filler(n, i)...)
	}
	return b, id, at, nil
}

// varied is the same stream of numbers for event i each time.
func varied(i int) *rand.Rand { return rand.New(rand.NewPCG(uint64(i), 0)) }

func one[T any](v *rand.Rand, of ...T) T { return of[v.IntN(len(of))] }

// filler is text of event i that compresses about as well as log lines do: words,
// and here and there a number or an id.
func filler(n, i int) []byte {
	v := varied(i + 1<<32)
	b := make([]byte, 0, n+16)
	for len(b) < n {
		switch v.IntN(8) {
		case 0:
			b = strconv.AppendUint(b, v.Uint64N(100_000), 10)
		case 1:
			b = fmt.Appendf(b, "%08x", v.Uint32())
		default:
			b = append(b, one(v, "user", "session", "request", "upstream", "timeout", "connection", "accepted", "cache", "miss",
				"for", "item", "in", "region", "eu-west", "retry", "backend")...)
		}
		b = append(b, ' ')
	}
	return b[:n]
}

// template builds n equal messages.
func (m *maker) template(n int) (*template, error) {
	o := m.o
	t := &template{events: o.Events, tags: o.Tags, o: o}
	tag := o.Tag
	if o.Tags > 1 {
		tag += "." + strings.Repeat("0", tagDigits)
	}
	var stream []byte
	for i := range o.Events {
		b, id, at, err := m.event(i)
		if err != nil {
			return nil, err
		}
		t.ids = append(t.ids, len(stream)+id)
		t.times = append(t.times, len(stream)+at)
		stream = append(stream, b...)
	}
	t.payload = len(stream)
	out := forward.Outgoing{Tag: tag, Events: o.Events, Payload: stream}
	if o.Ack {
		out.Chunk = []byte(m.id(0)[:chunkIDLen])
	}
	switch o.Mode {
	case "json":
		return m.jsonTemplate(t, tag, n)
	case "message":
		out.Mode, out.Payload = forward.ModeMessage, stream[1:]
	case "forward":
		out.Mode = forward.ModeForward
	case "packed":
		out.Mode = forward.ModePacked
	case "gzip", "zstd":
		out.Mode, out.Compression = forward.ModeCompressed, forward.Gzip
		if o.Mode == "zstd" {
			out.Compression = forward.Zstd
		}
		if o.CompressEach {
			t.each(out, stream)
			return t, nil
		}
		packed, err := compress(stream, o.Mode)
		if err != nil {
			return nil, err
		}
		out.Payload = packed
		t.ids, t.times = nil, nil
	}
	t.finish(&out, n)
	return t, nil
}

// finish encodes the message around its payload and repeats it n times.
func (t *template) finish(out *forward.Outgoing, n int) {
	head := forward.AppendHead(nil, out)
	shift := len(head)
	if out.Mode == forward.ModeMessage {
		shift-- // its 0x92 is not sent
	}
	for i := range t.ids {
		t.ids[i] += shift
		t.times[i] += shift
	}
	one := append(head, out.Payload...)
	one = forward.AppendOption(one, out)
	t.place(one, out.Tag, n)
	if out.Chunk != nil {
		t.chunks = []int{t.size - chunkIDLen + 8} // the chunk id is the last thing
	}
}

func (t *template) place(one []byte, tag string, n int) {
	t.size = len(one)
	t.buf = bytes.Repeat(one, n)
	if t.tags > 1 {
		t.tag = bytes.Index(one, []byte(tag)) + len(tag) - tagDigits
	}
}

// each makes a template whose payload is compressed for every chunk.
func (t *template) each(out forward.Outgoing, stream []byte) {
	plain := template{buf: stream, size: len(stream), ids: t.ids, times: t.times, events: t.events, tags: 1}
	mode := t.o.Mode
	t.ids, t.times = nil, nil
	t.rebuild = func(sender, chunk uint32, second int64) ([]byte, error) {
		plain.patch(0, sender, chunk, second)
		p, err := compress(plain.buf, mode)
		if err != nil {
			return nil, err
		}
		out.Payload = p
		t.finish(&out, 1)
		t.patch(0, sender, chunk, second)
		return t.buf, nil
	}
}

func compress(p []byte, mode string) ([]byte, error) {
	if mode == "zstd" {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			return nil, err
		}
		defer w.Close()
		return w.EncodeAll(p, nil), nil
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(p); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// jsonTemplate is Message mode in JSON: [tag, time, record, option].
func (m *maker) jsonTemplate(t *template, tag string, n int) (*template, error) {
	const ten = "1000000000" // seconds, patched as text
	r := map[string]any{idKey: m.id(0)}
	for k, v := range m.record(0) {
		r[k] = v
	}
	if m.records == nil {
		r["message"] = string(filler(max(0, m.o.Size-150), 0))
	}
	record, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	name, err := json.Marshal(tag)
	if err != nil {
		return nil, err
	}
	one := fmt.Appendf(nil, "[%s,%s,%s", name, ten, record)
	t.times = []int{len(name) + 2}
	t.ids = []int{bytes.Index(one, []byte(m.id(0))) + 8}
	t.texts = true
	if t.o.Ack {
		one = fmt.Appendf(one, `,{"chunk":"%s"}]`, m.id(0)[:chunkIDLen])
		t.chunks = []int{len(one) - 3 - chunkIDLen + 8}
	} else {
		one = append(one, ']')
	}
	t.payload = len(record)
	t.place(one, tag, n)
	return t, nil
}

// hexOf is v in hexadecimal, as the bytes that go into an id.
func hexOf(v uint32) uint64 {
	const digits = "0123456789abcdef"
	var b [8]byte
	for i := 7; i >= 0; i-- {
		b[i] = digits[v&15]
		v >>= 4
	}
	return binary.NativeEndian.Uint64(b[:])
}

// patch makes message number at of the buffer the given chunk of the sender.
func (t *template) patch(at int, sender, chunk uint32, second int64) {
	p := t.buf[at*t.size : (at+1)*t.size]
	s, c := hexOf(sender), hexOf(chunk)
	for _, i := range t.ids {
		binary.NativeEndian.PutUint64(p[i:], s)
		binary.NativeEndian.PutUint64(p[i+8:], c)
	}
	for _, i := range t.chunks {
		binary.NativeEndian.PutUint64(p[i:], s)
		binary.NativeEndian.PutUint64(p[i+8:], c)
	}
	for _, i := range t.times {
		if t.texts {
			copy(p[i:i+10], fmt.Sprintf("%010d", second))
		} else {
			binary.BigEndian.PutUint32(p[i:], uint32(second))
		}
	}
	if t.tag > 0 {
		v := (int(sender) + int(chunk)) % t.tags
		for i := tagDigits - 1; i >= 0; i-- {
			p[t.tag+i] = '0' + byte(v%10)
			v /= 10
		}
	}
}

// message returns the encoded chunks [chunk, chunk+n) of the sender; n is at
// most what the template was built for. It is valid until the next call.
func (t *template) message(sender, chunk uint32, n int, second int64) ([]byte, error) {
	if t.rebuild != nil {
		return t.rebuild(sender, chunk, second)
	}
	for i := range n {
		t.patch(i, sender, chunk+uint32(i), second)
	}
	return t.buf[:n*t.size], nil
}

// chunkNumber reads the number out of the chunk id of an ack.
func chunkNumber(id []byte) (uint32, bool) {
	if len(id) != chunkIDLen {
		return 0, false
	}
	return hexNumber(id[chunkIDLen-8:])
}

func hexNumber(p []byte) (v uint32, ok bool) {
	for _, c := range p[:8] {
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | uint32(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uint32(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

// Payload is the event stream of one chunk, for measuring what handling it costs
// elsewhere, and sent is what goes out of it: the same, or in the modes gzip and zstd
// compressed.
func Payload(o Options) (stream, sent []byte, err error) {
	m, err := newMaker(&o, 0)
	if err != nil {
		return nil, nil, err
	}
	for i := range o.Events {
		b, _, _, err := m.event(i)
		if err != nil {
			return nil, nil, err
		}
		stream = append(stream, b...)
	}
	if o.Mode != "gzip" && o.Mode != "zstd" {
		return stream, stream, nil
	}
	sent, err = compress(stream, o.Mode)
	return stream, sent, err
}
