package forward

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"

	"github.com/vmihailenco/msgpack/v5"
)

// jsonScanner finds the end of one JSON value in bytes that come in pieces. It
// only balances brackets outside of strings; encoding/json does the rest once
// the value is whole.
type jsonScanner struct {
	pos      int
	depth    int
	inString bool
	escaped  bool
}

// scan reads on in p, which holds the value from its first byte.
func (j *jsonScanner) scan(p []byte, maxDepth int) (done bool, err error) {
	for ; j.pos < len(p); j.pos++ {
		c := p[j.pos]
		switch {
		case j.escaped:
			j.escaped = false
		case j.inString:
			j.inString = c != '"'
			j.escaped = c == '\\'
		case c == '"':
			j.inString = true
		case c == '{' || c == '[':
			if j.depth++; j.depth > maxDepth {
				return false, refuse(ReasonDepth, fmt.Errorf("JSON: nested deeper than the limit of %d", maxDepth))
			}
		case c == '}' || c == ']':
			if j.depth--; j.depth <= 0 {
				j.pos++
				return true, nil
			}
		}
	}
	return false, nil
}

// nextJSON takes one JSON message off the buffer.
func (s *session) nextJSON(ctx context.Context, p []byte) (more bool, err error) {
	if s.text.pos == 0 {
		n := blanks(p)
		if n > 0 {
			s.consume(n)
			return s.r == s.w, nil
		}
		if p[0] != '{' && p[0] != '[' {
			return false, refuse(ReasonBroken, fmt.Errorf("JSON: a message begins with byte 0x%02x, not with [", p[0]))
		}
	}
	done, err := s.text.scan(p, s.srv.limits.depth)
	if err != nil {
		return false, err
	}
	if int64(s.text.pos) > s.srv.limits.message {
		return false, refuse(ReasonSize, fmt.Errorf("the message has more than %d bytes; raise chunk_size_limit", s.srv.limits.message))
	}
	if !done {
		return true, nil
	}
	p = p[:s.text.pos]
	m, err := s.convertJSON(ctx, p)
	if err != nil {
		return false, err
	}
	if err := s.hand(ctx, m); err != nil {
		return false, err
	}
	s.consume(len(p))
	s.text = jsonScanner{}
	return false, nil
}

// jsonCost is how many bytes it takes, at most and for a while, to convert a byte
// of JSON: copies of elements, their msgpack in a buffer that doubles ("1.5," are 9
// bytes then), and what is not valid.
const jsonCost = 10

// convertJSON makes a Message of the whole JSON value p, or of what can be taken
// of it, within the memory budget.
func (s *session) convertJSON(ctx context.Context, p []byte) (*Message, error) {
	cost := int64(len(p)) * jsonCost
	if cost > s.srv.memory.limit/2 {
		return nil, refuse(ReasonSize, fmt.Errorf("JSON: %d bytes of text are too much for the memory limit of %d; raise memory_limit, or send msgpack", len(p), s.srv.memory.limit))
	}
	if !s.srv.memory.acquire(ctx, cost, s.srv.config.MemoryWait) {
		return nil, s.noMemory(cost)
	}
	defer s.srv.memory.release(cost)
	parts, err := jsonElements(p)
	var m *Message
	if err == nil {
		m, err = s.messageOfJSON(parts)
	}
	var why *Refusal
	if errors.As(err, &why) && s.srv.config.Quarantine && why.canSetAside() {
		return s.invalidJSON(parts, p, why)
	}
	return m, err
}

// jsonElements splits a message into its elements. Of more than 5 it gives the
// first 4 and the last, which may be the option.
func jsonElements(p []byte) (parts []json.RawMessage, err error) {
	if p[0] != '[' {
		return nil, refuse(ReasonType, errors.New("JSON: a message is an array, not an object"))
	}
	dec := json.NewDecoder(bytes.NewReader(p))
	_, err = dec.Token()
	for err == nil && dec.More() {
		var part json.RawMessage
		if err = dec.Decode(&part); err == nil {
			parts = append(parts[:min(len(parts), 4)], part)
		}
	}
	if err == nil {
		_, err = dec.Token()
	}
	if err != nil {
		return nil, refuse(ReasonBroken, fmt.Errorf("JSON: %w", err))
	}
	return parts, nil
}

// onlyBlanks reports whether nothing but white space waits in the buffer, as
// after the last JSON message of a sender that ends lines.
func (s *session) onlyBlanks() bool {
	p := (*s.buf)[s.r:s.w]
	return s.isJSON && s.text.pos == 0 && blanks(p) == len(p)
}

func blanks(p []byte) int {
	return len(p) - len(bytes.TrimLeft(p, " \t\r\n"))
}

// messageOfJSON converts [tag, time, record(, option)] or
// [tag, [[time, record], …](, option)] to msgpack. The record keeps the order
// of its keys.
func (s *session) messageOfJSON(parts []json.RawMessage) (*Message, error) {
	if len(parts) < 2 || len(parts) > 4 {
		return nil, refuse(ReasonType, errors.New("JSON: a message is an array of 2 to 4 elements"))
	}
	var tag string
	if err := json.Unmarshal(parts[0], &tag); err != nil {
		return nil, refuse(ReasonType, errors.New("JSON: the tag is not a string"))
	}
	if len(tag) > maxTag {
		return nil, refuse(ReasonSize, fmt.Errorf("the tag has %d bytes, the limit is %d", len(tag), maxTag))
	}
	m := s.newMessage()
	m.Tag = []byte(tag)
	var stream bytes.Buffer
	enc := msgpack.NewEncoder(&stream)
	enc.UseCompactInts(true)
	rest := parts[2:]
	if parts[1][0] == '[' {
		m.Mode = ModeForward
		if err := s.encodeEntries(m, enc, &stream, parts[0], parts[1]); err != nil {
			return nil, err
		}
	} else {
		m.Mode = ModeMessage
		if len(parts) < 3 {
			return nil, refuse(ReasonType, errors.New("JSON: a message is [tag, time, record] or [tag, entries]"))
		}
		must(enc.EncodeArrayLen(2))
		for _, e := range parts[1:3] {
			if err := encodeJSON(enc, &stream, e); err != nil {
				return nil, err
			}
		}
		rest = parts[3:]
	}
	if len(rest) > 1 {
		return nil, refuse(ReasonType, errors.New("JSON: more than an option follows the events"))
	}
	if len(rest) == 1 {
		if err := m.setJSONOption(rest[0]); err != nil {
			return nil, err
		}
	}
	if m.Mode == ModeMessage {
		switch err := checkEvent(stream.Bytes(), s.srv.limits.depth); {
		case err == nil:
			m.Events = 1
		case errors.Is(err, errNilRecord):
			s.srv.counters.nilRecords.Add(1)
			return m, nil
		default:
			return nil, streamRefusal(err)
		}
	}
	m.pieces[0] = stream.Bytes()
	m.Payload = m.pieces[:1]
	m.Size = len(m.pieces[0])
	return m, nil
}

// encodeEntries writes the entries that are valid to the stream. Without a
// quarantine, the first that is not is the error.
func (s *session) encodeEntries(m *Message, enc *msgpack.Encoder, stream *bytes.Buffer, tag, entries json.RawMessage) error {
	var bad bytes.Buffer
	var why *Refusal
	invalid := 0
	dec := json.NewDecoder(bytes.NewReader(entries))
	_, err := dec.Token() // the [, looked at before
	var e json.RawMessage
	for err == nil && dec.More() {
		if err = dec.Decode(&e); err != nil {
			break
		}
		start := stream.Len()
		notValid := encodeJSON(enc, stream, e)
		if notValid == nil {
			notValid = checkEvent(stream.Bytes()[start:], s.srv.limits.depth)
		}
		if notValid == nil {
			m.Events++
			continue
		}
		stream.Truncate(start)
		if errors.Is(notValid, errNilRecord) {
			s.srv.counters.nilRecords.Add(1)
			continue
		}
		if why == nil && !errors.As(notValid, &why) {
			why = streamRefusal(notValid)
		}
		if !s.srv.config.Quarantine || s.srv.config.QuarantineWhole {
			return why
		}
		invalid++
		bad.WriteByte(',')
		bad.Write(e)
	}
	if err != nil {
		return refuse(ReasonBroken, fmt.Errorf("JSON: %w", err))
	}
	if invalid == 0 {
		return nil
	}
	rest := slices.Concat([]byte("["), tag, []byte(",["), bad.Bytes()[1:], []byte("]]"))
	m.Invalid = &Invalid{Reason: why.Reason, Err: why.Err, Kind: InvalidJSON, Tag: m.Tag, Data: rest, Events: invalid}
	return nil
}

// checkEvent says what is wrong with the one event that p should be.
func checkEvent(p []byte, depth int) error {
	var st streamScanner
	st.reset(depth)
	n, err := st.scanEvents(p, noLimit)
	if err == nil && (n < len(p) || st.events != 1 || !st.atBoundary()) {
		return errPair
	}
	return err
}

// invalidJSON makes a Message of a JSON value p that cannot be taken; parts are
// its elements, as far as they are known.
func (s *session) invalidJSON(parts []json.RawMessage, p []byte, why *Refusal) (*Message, error) {
	m := s.newMessage()
	m.Invalid = &Invalid{Reason: why.Reason, Err: why.Err, Kind: InvalidJSON, Data: p}
	if len(parts) == 0 {
		return m, nil
	}
	var tag string
	if json.Unmarshal(parts[0], &tag) == nil && len(tag) <= maxTag {
		m.Tag = []byte(tag)
		m.Invalid.Tag = m.Tag
	}
	if len(parts) > 3 || len(parts) == 3 && parts[1][0] == '[' {
		// Without a chunk id to be read there is no ack; with one that is too long
		// for an ack, it would be sent and kept again and again.
		var tooLong *Refusal
		if err := m.setJSONOption(parts[len(parts)-1]); errors.As(err, &tooLong) && tooLong.Reason == ReasonSize {
			return nil, err
		}
	}
	return m, nil
}

// setJSONOption reads {"chunk": id}. The ack will carry the id's own text.
func (m *Message) setJSONOption(p json.RawMessage) error {
	var option struct {
		Chunk json.RawMessage `json:"chunk"`
	}
	if err := json.Unmarshal(p, &option); err != nil {
		return refuse(ReasonType, errors.New("JSON: the option is not an object"))
	}
	if len(option.Chunk) == 0 || string(option.Chunk) == "null" {
		return nil
	}
	var id string
	if err := json.Unmarshal(option.Chunk, &id); err != nil {
		return refuse(ReasonType, errors.New("JSON: the chunk id is neither a string nor null"))
	}
	if n := len(option.Chunk); n > maxChunk { // with its escapes, as the ack repeats it
		return refuse(ReasonSize, fmt.Errorf("the chunk id has %d bytes, the limit is %d", n, maxChunk))
	}
	m.Chunk, m.wantAck = []byte(id), true
	m.ack = append(m.ack[:0], option.Chunk...)
	return nil
}

// encodeJSON writes the JSON value p as msgpack. Integers stay integers as far
// as 64 bits go; other numbers become floats.
func encodeJSON(enc *msgpack.Encoder, out *bytes.Buffer, p []byte) error {
	dec := json.NewDecoder(bytes.NewReader(p))
	dec.UseNumber()
	if err := encodeTokens(enc, out, dec); err != nil {
		var r *Refusal
		if errors.As(err, &r) {
			return err
		}
		return refuse(ReasonBroken, fmt.Errorf("JSON: %w", err))
	}
	return nil
}

// encodeTokens writes the next value of dec. The depth is bounded: the scanner
// has counted it.
func encodeTokens(enc *msgpack.Encoder, out *bytes.Buffer, dec *json.Decoder) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	switch v := t.(type) {
	case json.Delim:
		return encodeContainer(enc, out, dec, v == '{')
	case json.Number:
		return encodeNumber(enc, v)
	case string:
		return enc.EncodeString(v)
	case bool:
		return enc.EncodeBool(v)
	default:
		return enc.EncodeNil()
	}
}

// encodeContainer writes an array or a map. Its count comes first in msgpack
// and last in JSON, so that room for the longest header is kept and filled in.
func encodeContainer(enc *msgpack.Encoder, out *bytes.Buffer, dec *json.Decoder, isMap bool) error {
	const head = 5
	start := out.Len()
	out.Write(make([]byte, head))
	n := 0
	for dec.More() {
		if isMap {
			if err := encodeTokens(enc, out, dec); err != nil { // the key
				return err
			}
		}
		if err := encodeTokens(enc, out, dec); err != nil {
			return err
		}
		n++
	}
	if _, err := dec.Token(); err != nil {
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	if n > math.MaxUint32 {
		return refuse(ReasonSize, errors.New("JSON: too many elements"))
	}
	b := out.Bytes()[start:]
	h := containerHeader(n, isMap)
	copy(b[copy(b, h):], b[head:])
	out.Truncate(start + len(h) + len(b) - head)
	return nil
}

// containerHeader is the shortest header of an array or map of n.
func containerHeader(n int, isMap bool) []byte {
	fix, c16, c32 := byte(0x90), byte(0xdc), byte(0xdd)
	if isMap {
		fix, c16, c32 = 0x80, 0xde, 0xdf
	}
	switch {
	case n < 16:
		return []byte{fix | byte(n)}
	case n <= math.MaxUint16:
		return []byte{c16, byte(n >> 8), byte(n)}
	default:
		return []byte{c32, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	}
}

func encodeNumber(enc *msgpack.Encoder, v json.Number) error {
	if i, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
		return enc.EncodeInt(i)
	}
	if u, err := strconv.ParseUint(v.String(), 10, 64); err == nil {
		return enc.EncodeUint(u)
	}
	f, err := v.Float64()
	if err != nil {
		return err
	}
	return enc.EncodeFloat64(f)
}
