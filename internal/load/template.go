package load

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"weir/forward"
)

// An id is 32 hexadecimal digits: 8 of the run, 6 of the sender, 10 of the number
// of its chunk, 8 of the number of the event in it. A chunk id is the first 24.
// Sender and chunk are patched together, as one number of 64 bits.
const (
	idLen      = 32
	chunkIDLen = 24
	runLen     = 8
	chunkBits  = 40
	idKey      = "id"
	maxTags    = 100000
	tagDigits  = 5
)

// shape is one encoded message, with the places in it where ids, tags and times
// are. Shapes are made once for a run and only read by its senders.
type shape struct {
	msg     []byte
	ids     []int // of sender and chunk within the ids of events
	chunks  []int // the same, of the chunk id; none without acks
	times   []int // of 32-bit seconds, or of ten digits in JSON
	tag     int   // of the digits, 0 if there is one tag
	payload int   // bytes of events, uncompressed
	// of the modes that compress each chunk anew: msg is the stream of events then,
	// not yet a message, with ids and times in it
	compress *forward.Outgoing
}

// maker builds what the senders of one run send.
type maker struct {
	o       *Options
	run     uint32
	samples [][]field
	largest int     // chunk, in bytes of events
	shapes  []shape // chunks take turns among them
}

func newMaker(o *Options, run uint32) (*maker, error) {
	m := &maker{o: o, run: run, largest: maxChunk}
	n := 1
	if o.Sample != nil {
		var err error
		if m.samples, err = sampleRecords(o.Sample); err != nil {
			return nil, err
		}
		n = (len(m.samples) + o.Events - 1) / o.Events // so that each line is sent
	}
	for i := range n {
		s, err := m.shape(i)
		if err != nil {
			return nil, err
		}
		m.shapes = append(m.shapes, s)
	}
	return m, nil
}

// id of event i with sender and chunk 0.
func (m *maker) id(i int) string { return fmt.Sprintf("%08x%016x%08x", m.run, 0, i) }

// fields of event i of shape number n, without its id and filler.
func (m *maker) fields(n, i int) []field {
	if m.samples != nil {
		return m.samples[(n*m.o.Events+i)%len(m.samples)]
	}
	return generated(i)
}

// event encodes event i of a shape: its msgpack, and where id and time are in it.
func (m *maker) event(n, i int) (b []byte, id, at int, err error) {
	fields := m.fields(n, i)
	if b, id, err = m.encode(fields, i); err != nil {
		return nil, 0, 0, fmt.Errorf("event %d: %w", i+1, err)
	}
	if m.samples == nil && len(b) > m.o.Size { // too small for these
		b, id, err = m.encode(nil, i)
	}
	return b, id, 2, err
}

// encode encodes [time, {id, fields, message}]; message is what fills the event up
// to the size asked for, where there is no sample.
func (m *maker) encode(fields []field, i int) (b []byte, id int, err error) {
	b = append(b, 0x92, 0xce, 0, 0, 0, 0)
	n := len(fields) + 1
	if m.samples == nil {
		n++
	}
	switch {
	case n < 16:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xde), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdf), uint32(n))
	}
	b = append(b, 0xa0|byte(len(idKey)))
	b = append(b, idKey...)
	b = append(b, 0xd9, idLen)
	id = len(b) + runLen
	b = append(b, m.id(i)...)
	if b, err = appendFields(b, fields); err != nil {
		return nil, 0, err
	}
	if m.samples == nil {
		b = append(b, 0xa7)
		b = append(b, "message"...)
		n := max(0, m.o.Size-len(b)-5)
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
		b = append(b, filler(n, i)...)
	}
	return b, id, nil
}

// stream encodes the events of shape number n, one after the other.
func (m *maker) stream(n int) (s shape, err error) {
	for i := range m.o.Events {
		b, id, at, err := m.event(n, i)
		if err != nil {
			return s, err
		}
		s.ids = append(s.ids, len(s.msg)+id)
		s.times = append(s.times, len(s.msg)+at)
		if s.msg = append(s.msg, b...); len(s.msg) > m.largest {
			return s, fmt.Errorf("%d events of these are more than %s, the largest chunk; give fewer --events", m.o.Events, size(float64(m.largest)))
		}
	}
	s.payload = len(s.msg)
	return s, nil
}

// tag is that of all events, with room for digits if there are several.
func (m *maker) tag() string {
	if m.o.Tags > 1 {
		return m.o.Tag + "." + strings.Repeat("0", tagDigits)
	}
	return m.o.Tag
}

// shape encodes message number n of those that differ.
func (m *maker) shape(n int) (shape, error) {
	if m.o.Mode == "json" {
		return m.jsonShape(n)
	}
	s, err := m.stream(n)
	if err != nil {
		return s, err
	}
	out := forward.Outgoing{Tag: m.tag(), Events: m.o.Events, Payload: s.msg}
	if m.o.Ack {
		out.Chunk = []byte(m.id(0)[:chunkIDLen])
	}
	switch m.o.Mode {
	case "message":
		out.Mode, out.Payload = forward.ModeMessage, s.msg[1:]
	case "forward":
		out.Mode = forward.ModeForward
	case "packed":
		out.Mode = forward.ModePacked
	case "gzip", "zstd":
		out.Mode, out.Compression = forward.ModeCompressed, forward.Gzip
		if m.o.Mode == "zstd" {
			out.Compression = forward.Zstd
		}
		if m.o.CompressEach {
			s.compress = &out
			return s, nil
		}
		if out.Payload, err = compress(s.msg, m.o.Mode); err != nil {
			return s, err
		}
		s.ids, s.times = nil, nil
	}
	s.finish(&out, m.o.Tags)
	return s, nil
}

// finish encodes the message around its payload.
func (s *shape) finish(out *forward.Outgoing, tags int) {
	head := forward.AppendHead(nil, out)
	shift := len(head)
	if out.Mode == forward.ModeMessage {
		shift-- // its 0x92 is not sent
	}
	for i := range s.ids {
		s.ids[i] += shift
		s.times[i] += shift
	}
	s.msg = forward.AppendOption(append(head, out.Payload...), out)
	if out.Chunk != nil {
		s.chunks = []int{len(s.msg) - chunkIDLen + runLen} // the chunk id is the last thing
	}
	if tags > 1 {
		s.tag = bytes.Index(s.msg, []byte(out.Tag)) + len(out.Tag) - tagDigits
	}
}

// compressor compresses one chunk after the other with the same memory.
type compressor struct {
	out  bytes.Buffer
	gzip *gzip.Writer
	zstd *zstd.Encoder
}

// compress returns p compressed, valid until the next call.
func (c *compressor) compress(p []byte, mode string) (_ []byte, err error) {
	if mode == "zstd" {
		if c.zstd == nil {
			// Only EncodeAll is used, which leaves nothing to close.
			if c.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest)); err != nil {
				return nil, err
			}
		}
		return c.zstd.EncodeAll(p, nil), nil
	}
	c.out.Reset()
	if c.gzip == nil {
		c.gzip = gzip.NewWriter(&c.out)
	}
	c.gzip.Reset(&c.out)
	if _, err := c.gzip.Write(p); err != nil {
		return nil, err
	}
	if err := c.gzip.Close(); err != nil {
		return nil, err
	}
	return c.out.Bytes(), nil
}

func compress(p []byte, mode string) ([]byte, error) { return new(compressor).compress(p, mode) }

// jsonShape is Message mode in JSON: [tag, time, record, option]. Its event is
// "time,record".
func (m *maker) jsonShape(n int) (shape, error) {
	const ten = "1000000000" // seconds, patched as text
	fields := m.fields(n, 0)
	record, err := m.jsonRecord(fields, len(ten)+1)
	if err == nil && m.samples == nil && len(ten)+1+len(record) > m.o.Size {
		record, err = m.jsonRecord(nil, len(ten)+1)
	}
	if err != nil {
		return shape{}, err
	}
	name, err := json.Marshal(m.tag())
	if err != nil {
		return shape{}, err
	}
	s := shape{msg: fmt.Appendf(nil, "[%s,%s,%s", name, ten, record), times: []int{len(name) + 2}, payload: len(ten) + 1 + len(record)}
	s.ids = []int{bytes.Index(s.msg, []byte(m.id(0))) + runLen}
	if m.o.Ack {
		s.msg = fmt.Appendf(s.msg, `,{"chunk":"%s"}]`, m.id(0)[:chunkIDLen])
		s.chunks = []int{len(s.msg) - 3 - chunkIDLen + runLen}
	} else {
		s.msg = append(s.msg, ']')
	}
	if m.o.Tags > 1 {
		s.tag = len(name) - tagDigits // behind "[", before its quote
	}
	return s, nil
}

// jsonRecord is the record in JSON, filled up so that the event has its size; beside
// is how much of that is not record.
func (m *maker) jsonRecord(fields []field, beside int) ([]byte, error) {
	b := fmt.Appendf(nil, `{"%s":"%s"`, idKey, m.id(0))
	for _, f := range fields {
		key, err := json.Marshal(f.key)
		if err != nil {
			return nil, err
		}
		value := f.value
		if text, ok := value.([]byte); ok {
			value = string(text)
		}
		v, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(append(b, ','), key...), ':'), v...)
	}
	if m.samples == nil {
		b = append(b, `,"message":"`...)
		b = append(b, filler(max(0, m.o.Size-beside-len(b)-2), 0)...)
		b = append(b, '"')
	}
	return append(b, '}'), nil
}

// template is what one sender writes from: the shapes of its run and memory of its
// own for the messages of one write.
type template struct {
	m    *maker
	buf  []byte
	have int // equal messages that stand in buf, if there is one shape
	pack compressor
}

func (m *maker) template() *template { return &template{m: m} }

// number is sender and chunk as they stand in ids.
func number(sender uint32, chunk uint64) uint64 {
	return uint64(sender)<<chunkBits | chunk&(1<<chunkBits-1)
}

// shape is that of a chunk.
func (t *template) shape(sender uint32, chunk uint64) *shape {
	if len(t.m.shapes) == 1 {
		return &t.m.shapes[0]
	}
	return &t.m.shapes[(uint64(sender)+chunk)%uint64(len(t.m.shapes))]
}

// message returns the encoded chunks [chunk, chunk+n) of the sender, one after the
// other. It is valid until the next call.
func (t *template) message(sender uint32, chunk uint64, n int, second int64) ([]byte, error) {
	if s := t.shape(sender, chunk); s.compress != nil {
		return t.compressed(s, sender, chunk, second)
	}
	if s := &t.m.shapes[0]; len(t.m.shapes) == 1 {
		size := len(s.msg)
		for ; t.have < n; t.have++ {
			t.buf = append(slices.Grow(t.buf, (n-t.have)*size), s.msg...)
		}
		for i := range n {
			t.m.patch(t.buf[i*size:(i+1)*size], s, sender, chunk+uint64(i), second)
		}
		return t.buf[:n*size], nil
	}
	t.buf = t.buf[:0]
	for i := range n {
		at, s := len(t.buf), t.shape(sender, chunk+uint64(i))
		t.buf = append(t.buf, s.msg...)
		t.m.patch(t.buf[at:], s, sender, chunk+uint64(i), second)
	}
	return t.buf, nil
}

// compressed makes a message of a shape that is compressed for every chunk.
func (t *template) compressed(s *shape, sender uint32, chunk uint64, second int64) ([]byte, error) {
	t.buf = append(t.buf[:0], s.msg...)
	t.m.patch(t.buf, s, sender, chunk, second)
	packed, err := t.pack.compress(t.buf, t.m.o.Mode)
	if err != nil {
		return nil, err
	}
	out := *s.compress
	out.Payload = packed
	var whole shape
	whole.finish(&out, t.m.o.Tags)
	t.m.patch(whole.msg, &whole, sender, chunk, second)
	return whole.msg, nil
}

// written tells how many of n messages are whole within the first size bytes of
// what message returned, and how many bytes of events those hold. Of a message that
// was compressed for its chunk nothing is known unless all is written.
func (t *template) written(sender uint32, chunk uint64, n, size int) (whole, payload int) {
	for whole < n {
		s := t.shape(sender, chunk+uint64(whole))
		if s.compress != nil && size != all {
			break
		}
		if size -= len(s.msg); size < 0 {
			break
		}
		payload += s.payload
		whole++
	}
	return whole, payload
}

// payload is the bytes of events in n messages.
func (t *template) payload(sender uint32, chunk uint64, n int) int {
	_, payload := t.written(sender, chunk, n, all)
	return payload
}

// all is the size of a write that did not fail.
const all = math.MaxInt

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

// patch makes p, a copy of the shape, the given chunk of the sender.
func (m *maker) patch(p []byte, s *shape, sender uint32, chunk uint64, second int64) {
	n := number(sender, chunk)
	high, low := hexOf(uint32(n>>32)), hexOf(uint32(n))
	for _, i := range s.ids {
		binary.NativeEndian.PutUint64(p[i:], high)
		binary.NativeEndian.PutUint64(p[i+8:], low)
	}
	for _, i := range s.chunks {
		binary.NativeEndian.PutUint64(p[i:], high)
		binary.NativeEndian.PutUint64(p[i+8:], low)
	}
	for _, i := range s.times {
		if m.o.Mode == "json" {
			copy(p[i:i+10], fmt.Sprintf("%010d", second))
		} else {
			binary.BigEndian.PutUint32(p[i:], uint32(second))
		}
	}
	if s.tag > 0 {
		v := (uint64(sender) + chunk) % uint64(m.o.Tags)
		for i := tagDigits - 1; i >= 0; i-- {
			p[s.tag+i] = '0' + byte(v%10)
			v /= 10
		}
	}
}

// parseNumber reads sender and chunk out of the 16 digits of an id.
func parseNumber(p []byte) (sender uint32, chunk uint64, ok bool) {
	high, ok1 := hexNumber(p)
	low, ok2 := hexNumber(p[8:])
	n := uint64(high)<<32 | uint64(low)
	return uint32(n >> chunkBits), n & (1<<chunkBits - 1), ok1 && ok2
}

// chunkNumber reads the number out of the chunk id of an ack.
func chunkNumber(id []byte) (uint64, bool) {
	if len(id) != chunkIDLen {
		return 0, false
	}
	_, chunk, ok := parseNumber(id[runLen:])
	return chunk, ok
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
	s, err := (&maker{o: &o, largest: maxChunk}).stream(0)
	if err != nil || (o.Mode != "gzip" && o.Mode != "zstd") {
		return s.msg, s.msg, err
	}
	sent, err = compress(s.msg, o.Mode)
	return s.msg, sent, err
}
