package forward

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// Invalid is what of a message can never be taken (Config.Quarantine). Its
// slices are valid only until Handle returns.
type Invalid struct {
	// Reason is one of the Reason constants, Err what exactly is wrong.
	Reason string
	Err    error
	// Kind says what Data is.
	Kind InvalidKind
	// Tag is the tag as the sender wrote it, nil if there is none to be read.
	Tag []byte
	// Data is what cannot be taken, byte for byte as it came.
	Data []byte
	// Events counts the events in Data, as far as they can be told apart; those
	// of a whole message cannot, and count as 0.
	Events int
}

// InvalidKind is the form of Invalid.Data.
type InvalidKind string

// The kinds.
const (
	// InvalidMessage is a whole msgpack message.
	InvalidMessage InvalidKind = "message"
	// InvalidEvents is a part of an event stream.
	InvalidEvents InvalidKind = "events"
	// InvalidJSON is a message in JSON.
	InvalidJSON InvalidKind = "json"
)

// canSetAside reports whether a message that was refused for this reason stays what
// it is however often it is sent again, and its end is known.
func (r *Refusal) canSetAside() bool {
	switch r.Reason {
	case ReasonBroken, ReasonType, ReasonDepth, ReasonSize, ReasonDecompress, ReasonInflated, ReasonRatio:
		return true
	}
	return false
}

// reject begins the search for the end of a message that cannot be taken, so
// that the rest of the stream can. It returns why if that is not wanted, or if
// the end cannot be found.
func (ps *parser) reject(why *Refusal) error {
	if why.Reason == ReasonBroken || !ps.limits.setAside && !errors.Is(why, errNilRecord) {
		return why
	}
	ps.invalid = why
	ps.pos, ps.objects, ps.skip = 0, 1, 0
	ps.step = inInvalid
	return nil
}

// findEnd reads on in p, which holds the message from its first byte, until the
// message is complete. It counts the objects that are still to come, which
// takes no memory, however deep they nest.
func (ps *parser) findEnd(p []byte) (done bool, err error) {
	for ps.objects > 0 {
		if ps.skip > 0 {
			n := min(ps.skip, uint64(len(p)-ps.pos))
			ps.pos += int(n)
			if ps.skip -= n; ps.skip > 0 {
				return false, nil
			}
			ps.objects--
			continue
		}
		if ps.pos == len(p) {
			return false, nil
		}
		head, count, body, err := objectHead(p[ps.pos:])
		if err != nil {
			return false, refuse(ReasonBroken, err)
		}
		if head == 0 {
			return false, nil
		}
		ps.pos += head
		ps.objects += count
		if left := uint64(ps.limits.message) - min(uint64(ps.pos), uint64(ps.limits.message)); ps.objects > left+1 || body > left {
			return false, ps.invalid // claims what can never come
		}
		if body > 0 {
			ps.skip = body
			continue
		}
		ps.objects--
	}
	return true, nil
}

// objectHead reads the header of the object at p[0]: its length, which is 0 if
// p is cut, how many objects it announces, and how many bytes follow it.
func objectHead(p []byte) (head int, count, body uint64, err error) {
	c := p[0]
	switch size := int(objectLen[c]); {
	case size == 1:
		return 1, 0, 0, nil
	case size > 1:
		return 1, 0, uint64(size - 1), nil
	case c <= 0x8f:
		return 1, uint64(c&0x0f) * 2, 0, nil
	case c <= 0x9f:
		return 1, uint64(c & 0x0f), 0, nil
	case c == 0xc1:
		return 0, 0, 0, errReserved
	}
	head = headerLen(c)
	if head > len(p) {
		return 0, 0, 0, nil
	}
	count, body = headerCounts(p[:head])
	return head, count, body, nil
}

// objectEnd is the length of the object at the start of p, however deep it
// nests.
func objectEnd(p []byte) (n int, err error) {
	for objects := uint64(1); objects > 0; objects-- {
		if n == len(p) {
			return 0, errCut
		}
		head, count, body, err := objectHead(p[n:])
		if err != nil {
			return 0, err
		}
		if head == 0 || body > uint64(len(p)-n-head) {
			return 0, errCut
		}
		n += head + int(body)
		objects += count
	}
	return n, nil
}

// elements splits a whole message into its elements.
func elements(p []byte) (all [][]byte) {
	count, n, ok := arrayHeader(p)
	if !ok {
		return nil
	}
	for range count {
		size, err := objectEnd(p[n:])
		if err != nil {
			return all
		}
		all = append(all, p[n:n+size])
		n += size
	}
	return all
}

// invalid makes a Message of the whole bytes p of one that cannot be taken as
// it is: with its valid events, and with the rest as Invalid.
func (s *session) invalid(ctx context.Context, p []byte, why *Refusal) (*Message, error) {
	parts := elements(p)
	m := s.newMessage()
	if len(parts) > 0 {
		if size, head, ok := stringHeader(parts[0]); ok && size <= maxTag {
			m.Tag = parts[0][head:]
		}
	}
	o, optionErr := optionOf(parts)
	if tooLong := (*Refusal)(nil); errors.As(optionErr, &tooLong) && tooLong.Reason == ReasonSize {
		// There can be no ack: set aside, it would be sent and kept again and again.
		return nil, optionErr
	}
	if o.chunk != nil {
		m.setChunk(o)
	}
	if m.Tag != nil && optionErr == nil && len(parts) <= 3 {
		if events, c, ok := m.eventsOf(parts, o); ok {
			return m, s.salvage(ctx, m, events, c, why, p)
		}
	}
	if errors.Is(why, errNilRecord) { // [tag, time, nil]: nothing to keep
		s.srv.counters.nilRecords.Add(1)
		return m, nil
	}
	m.Invalid = &Invalid{Reason: why.Reason, Err: why.Err, Kind: InvalidMessage, Tag: m.Tag, Data: p}
	return m, nil
}

// optionOf reads the option of a message that cannot be taken, for the sake of
// its chunk id: its last element, unless that is the record.
func optionOf(parts [][]byte) (option, error) {
	if len(parts) < 3 {
		return option{}, nil
	}
	last := parts[len(parts)-1]
	if !isMap(last[0]) {
		return option{}, nil
	}
	if len(parts) == 3 {
		_, _, entries := arrayHeader(parts[1])
		_, _, packed := stringHeader(parts[1])
		if !entries && !packed {
			return option{}, nil
		}
	}
	return parseOption(last)
}

// eventsOf is the event stream of a message in Forward or PackedForward mode,
// which it sets.
func (m *Message) eventsOf(parts [][]byte, o option) (events []byte, c Compression, ok bool) {
	if len(parts) < 2 {
		return nil, 0, false
	}
	if _, head, ok := arrayHeader(parts[1]); ok && o.compression == Uncompressed {
		m.Mode = ModeForward
		return parts[1][head:], Uncompressed, true
	}
	if _, head, ok := stringHeader(parts[1]); ok {
		m.Mode = ModePacked
		if o.compression != Uncompressed {
			m.Mode = ModeCompressed
		}
		return parts[1][head:], o.compression, true
	}
	return nil, 0, false
}

// salvage sorts the events of a message that cannot be taken as it is: the valid
// ones become its payload. whole is the message as it came.
func (s *session) salvage(ctx context.Context, m *Message, events []byte, c Compression, why *Refusal, whole []byte) error {
	setAside := func() error {
		if !s.srv.config.Quarantine {
			return why
		}
		m.Invalid = &Invalid{Reason: why.Reason, Err: why.Err, Kind: InvalidMessage, Tag: m.Tag, Data: whole}
		return nil
	}
	size := int64(len(events))
	if c != Uncompressed {
		var err error
		if size, err = s.srv.inflater.size(events, c, s.srv.limits); err != nil {
			errors.As(err, &why)
			return setAside() // what comes out of it is not to be trusted
		}
	}
	// What was valid and what was not: each at most as long as all, and the
	// decompressed text beside them.
	if size*3 > s.srv.memory.limit/2 {
		return setAside()
	}
	if !s.srv.memory.acquire(ctx, size*3, s.srv.config.MemoryWait) {
		return s.noMemory(size * 3)
	}
	m.charged += size * 3
	if c != Uncompressed {
		text, err := s.srv.inflater.all(events, c, int(size))
		if err != nil {
			s.uncharge(m)
			return err
		}
		events = text
	}
	sorted := sortEvents(events, s.srv.limits.depth)
	if len(sorted.bad) > 0 && (!s.srv.config.Quarantine || s.srv.config.QuarantineWhole) {
		s.uncharge(m)
		why = sorted.why
		return setAside()
	}
	s.srv.counters.nilRecords.Add(uint64(sorted.nils))
	m.Events = sorted.valid
	m.pieces[0] = sorted.good
	m.Payload, m.Size = m.pieces[:1], len(sorted.good)
	if len(sorted.bad) == 0 {
		return nil // only nils were in the way
	}
	m.Invalid = &Invalid{Reason: sorted.why.Reason, Err: sorted.why.Err, Kind: InvalidEvents, Tag: m.Tag, Data: sorted.bad, Events: sorted.invalid}
	return nil
}

// uncharge gives back the memory of a message that is not handed on.
func (s *session) uncharge(m *Message) {
	s.srv.memory.release(m.charged)
	m.charged = 0
}

// sorted is a stream of events, sorted by whether they can be taken.
type sorted struct {
	good, bad      []byte
	valid, invalid int
	nils           int      // events without a record, which are nowhere
	why            *Refusal // of the first that is not valid
}

// sortEvents copies each event of the stream p to where it belongs. What comes
// after broken bytes, or is cut short, cannot be told apart: it is bad as a whole.
func sortEvents(p []byte, depth int) (s sorted) {
	var st streamScanner
	for len(p) > 0 {
		st.reset(depth)
		n, err := st.scanEvents(p, 1)
		if err == nil && st.events == 1 {
			s.good = append(s.good, p[:n]...)
			s.valid++
			p = p[n:]
			continue
		}
		if n, endErr := objectEnd(p); endErr != nil {
			s.isBad(p, endErr)
			return s
		} else if errors.Is(err, errNilRecord) {
			s.nils++
			p = p[n:]
		} else {
			s.isBad(p[:n], err)
			p = p[n:]
		}
	}
	return s
}

func (s *sorted) isBad(p []byte, why error) {
	s.bad = append(s.bad, p...)
	s.invalid++
	if s.why == nil {
		s.why = streamRefusal(why)
	}
}

// Replayable makes of Data a message that can be sent again, with the chunk id,
// so that its ack tells when it may be forgotten. It fails for data that is no
// message at all.
func (in *Invalid) Replayable(chunk string) ([]byte, error) {
	switch in.Kind {
	case InvalidEvents:
		b := append([]byte{0x93}, appendStr(nil, string(in.Tag))...)
		b = binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(len(in.Data)))
		return append(append(b, in.Data...), chunkOption(chunk, nil)...), nil
	case InvalidMessage:
		parts := elements(in.Data)
		o, err := optionOf(parts)
		if err != nil || len(parts) < 2 || len(parts) > 4 {
			return nil, fmt.Errorf("forward: %d elements and no readable option: no message that a chunk id could be put into", len(parts))
		}
		_, _, entries := arrayHeader(parts[1])
		_, _, packed := stringHeader(parts[1])
		n := 3 // without the option
		if entries || packed {
			n = 2
		}
		if len(parts) < n {
			return nil, fmt.Errorf("forward: %d elements are no message that a chunk id could be put into", len(parts))
		}
		b := []byte{0x90 | byte(n+1)}
		for _, part := range parts[:n] {
			b = append(b, part...)
		}
		var more []byte
		if o.compression != Uncompressed {
			more = appendStr(appendStr(nil, "compressed"), o.compression.String())
		}
		return append(b, chunkOption(chunk, more)...), nil
	case InvalidJSON:
		var parts []json.RawMessage
		if err := json.Unmarshal(in.Data, &parts); err != nil || len(parts) < 2 || len(parts) > 4 {
			return nil, errors.New("forward: no JSON message that a chunk id could be put into")
		}
		n := 3
		if parts[1][0] == '[' {
			n = 2
		}
		option, err := json.Marshal(map[string]string{"chunk": chunk})
		if err != nil || len(parts) < n {
			return nil, errors.New("forward: no JSON message that a chunk id could be put into")
		}
		return json.Marshal(append(parts[:n:n], option))
	}
	return nil, fmt.Errorf("forward: data of kind %s cannot be sent again", in.Kind)
}

// chunkOption is the option map of a replayed message.
func chunkOption(chunk string, more []byte) []byte {
	b := []byte{0x81}
	if more != nil {
		b[0] = 0x82
	}
	return append(appendStr(appendStr(b, "chunk"), chunk), more...)
}
