package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Limits of what a message may carry beside its events.
const (
	maxTag    = 1024            // bytes of a tag
	maxChunk  = 1<<16 - 1       // bytes of a chunk id
	maxOption = maxChunk + 4096 // bytes of the option map
)

// parser finds the end of one message in a buffer that grows while the message
// arrives, and what is where in it. It keeps its place, so that each byte is
// looked at once. All positions are relative to the message's first byte.
type parser struct {
	limits parserLimits

	step     parserStep
	pos      int // consumed so far
	elements int // of the message's array
	mode     Mode
	tag      span
	payload  span // of the events, without headers
	bodyEnd  uint64
	option   span
	entries  uint32
	heart    bool // the message is a nil, a heartbeat
	stream   streamScanner
	scan     Scanner
	rest     int // elements still to come after the events

	invalid *Refusal // why the message cannot be taken, in and after inInvalid
	objects uint64   // still to come of an invalid message
	skip    uint64   // bytes still to come of its present object
}

// parserLimits are the limits of one server.
type parserLimits struct {
	depth    int
	message  int64 // bytes
	inflated int64 // bytes that a compressed payload may decompress to
	ratio    int64 // of decompressed to compressed bytes
	setAside bool  // look for the end of messages that cannot be taken
}

// span is a part of the message.
type span struct{ from, to int }

func (s span) of(p []byte) []byte { return p[s.from:s.to] }

type parserStep uint8

const (
	atMessage parserStep = iota
	atTag
	atBody
	inEntries // Forward: the entries of the array
	inBody    // PackedForward: a str or bin
	inEvent   // Message: time and record
	atOption
	inOption
	inInvalid // looking for the end of a message that cannot be taken
	complete
)

func (ps *parser) reset(l parserLimits) {
	ps.limits = l
	ps.step, ps.pos = atMessage, 0
	ps.heart = false
	ps.option = span{}
	ps.invalid = nil
}

// bodyNeed is the length of the message up to the end of its packed payload, as
// its header claims, while that payload is awaited; else 0.
func (ps *parser) bodyNeed() uint64 {
	if ps.step == inBody {
		return ps.bodyEnd
	}
	return 0
}

// parse reads on in p, which holds the message from its first byte. It reports
// whether the message is complete; its length is pos then.
func (ps *parser) parse(p []byte) (done bool, err error) {
	for {
		switch ps.step {
		case atMessage:
			if len(p) == 0 {
				return false, nil
			}
			if p[0] == 0xc0 {
				ps.heart = true
				ps.pos = 1
				ps.step = complete
				continue
			}
			n, head, ok := arrayHeader(p)
			if !ok {
				return false, refuse(ReasonNotForward, fmt.Errorf("a message begins with byte 0x%02x, which is neither an array nor JSON", p[0]))
			}
			if head == 0 {
				return false, nil
			}
			if n < 2 || n > 4 {
				why := refuse(ReasonType, fmt.Errorf("a message is an array of 2 to 4, not of %d", n))
				if head > 1 {
					return false, why
				}
				if err := ps.reject(why); err != nil {
					return false, err
				}
				continue
			}
			ps.elements, ps.pos, ps.step = int(n), head, atTag
		case atTag:
			body, n, ok := stringHeader(p[ps.pos:])
			if !ok {
				if err := ps.reject(refuse(ReasonType, errors.New("the tag is not a string"))); err != nil {
					return false, err
				}
				continue
			}
			if n == 0 {
				return false, nil
			}
			if body > maxTag {
				if err := ps.reject(refuse(ReasonSize, fmt.Errorf("the tag has %d bytes, the limit is %d", body, maxTag))); err != nil {
					return false, err
				}
				continue
			}
			end := ps.pos + n + int(body)
			if end > len(p) {
				return false, nil
			}
			ps.tag = span{ps.pos + n, end}
			ps.pos, ps.step = end, atBody
		case atBody:
			if err := ps.body(p); err != nil {
				if err := ps.rejected(err); err != nil {
					return false, err
				}
			} else if ps.step == atBody {
				return false, nil
			}
		case inEntries:
			n, err := ps.stream.scanEvents(p[ps.pos:], int(ps.entries))
			ps.pos += n
			if err != nil {
				if err := ps.reject(streamRefusal(err)); err != nil {
					return false, err
				}
				continue
			}
			if ps.stream.events < int(ps.entries) {
				return false, ps.tooLong(uint64(ps.pos))
			}
			ps.payload.to = ps.pos
			ps.step = atOption
		case inBody:
			if uint64(len(p)) < ps.bodyEnd {
				return false, nil
			}
			ps.pos = int(ps.bodyEnd)
			ps.payload.to = ps.pos
			ps.step = atOption
		case inEvent:
			n, err := ps.stream.scanEvents(p[ps.pos:], 1)
			ps.pos += n
			if err != nil {
				if err := ps.reject(streamRefusal(err)); err != nil {
					return false, err
				}
				continue
			}
			if ps.stream.events < 1 {
				return false, ps.tooLong(uint64(ps.pos))
			}
			ps.payload.to = ps.pos
			ps.step = atOption
		case atOption:
			if ps.rest == 0 {
				ps.step = complete
				continue
			}
			ps.option.from = ps.pos
			ps.scan.Reset(1, ps.limits.depth)
			ps.step = inOption
		case inOption:
			n, done, err := ps.scan.Scan(p[ps.pos:])
			ps.pos += n
			if err != nil {
				if err := ps.reject(streamRefusal(err)); err != nil {
					return false, err
				}
				continue
			}
			if ps.pos-ps.option.from > maxOption {
				if err := ps.reject(refuse(ReasonSize, fmt.Errorf("the option has more than %d bytes", maxOption))); err != nil {
					return false, err
				}
				continue
			}
			if !done {
				return false, nil
			}
			ps.option.to = ps.pos
			ps.step = complete
		case inInvalid:
			if done, err := ps.findEnd(p); err != nil || !done {
				if err == nil {
					err = ps.tooLong(uint64(ps.pos))
				}
				return false, err
			}
			ps.step = complete
		case complete:
			return true, ps.tooLong(uint64(ps.pos))
		}
	}
}

// rejected is reject for errors that may be no refusal of the message's shape.
func (ps *parser) rejected(err error) error {
	var why *Refusal
	if !errors.As(err, &why) || why.Reason != ReasonType {
		return err
	}
	return ps.reject(why)
}

// body looks at the second element, which decides the mode; it leaves the step
// as it is if p ends too early to tell.
func (ps *parser) body(p []byte) error {
	q := p[ps.pos:]
	if len(q) == 0 {
		return nil
	}
	if count, head, ok := arrayHeader(q); ok {
		if head == 0 {
			return nil
		}
		if ps.elements > 3 {
			return refuse(ReasonType, errors.New("a message in Forward mode has at most 3 elements"))
		}
		ps.mode = ModeForward
		ps.pos += head
		ps.payload.from = ps.pos
		ps.entries = count
		ps.rest = ps.elements - 2
		ps.stream.reset(ps.limits.depth)
		ps.step = inEntries
		return nil
	}
	if size, head, ok := stringHeader(q); ok {
		if head == 0 {
			return nil
		}
		if ps.elements > 3 {
			return refuse(ReasonType, errors.New("a message in PackedForward mode has at most 3 elements"))
		}
		ps.mode = ModePacked
		ps.pos += head
		ps.payload.from = ps.pos
		ps.bodyEnd = uint64(ps.pos) + size
		ps.rest = ps.elements - 2
		ps.step = inBody
		return ps.tooLong(ps.bodyEnd)
	}
	if _, err := timeLen(q); err != nil {
		return refuse(ReasonType, errors.New("the second element is neither entries nor a time"))
	}
	if ps.elements < 3 {
		return refuse(ReasonType, errors.New("a message in Message mode has at least 3 elements"))
	}
	ps.mode = ModeMessage
	ps.payload.from = ps.pos
	ps.rest = ps.elements - 3
	ps.stream.reset(ps.limits.depth)
	ps.stream.step = atTime
	ps.stream.plainTime = true
	ps.step = inEvent
	return nil
}

// tooLong refuses a message that is, or says it will be, n bytes long.
func (ps *parser) tooLong(n uint64) error {
	if n > uint64(ps.limits.message) {
		return refuse(ReasonSize, fmt.Errorf("the message has at least %d bytes, the limit is %d; raise chunk_size_limit, or lower the sender's chunk size", n, ps.limits.message))
	}
	return nil
}

// streamRefusal gives an error of the scanners its reason.
func streamRefusal(err error) *Refusal {
	switch {
	case errors.Is(err, errTooDeep):
		return refuse(ReasonDepth, err)
	case errors.Is(err, errReserved), errors.Is(err, errCut):
		return refuse(ReasonBroken, err)
	default:
		return refuse(ReasonType, err)
	}
}

// arrayHeader reads the header of an array: its count and its own length, which
// is 0 if p is cut. It is not ok if p begins with anything else.
func arrayHeader(p []byte) (count uint32, n int, ok bool) {
	if len(p) == 0 {
		return 0, 0, true
	}
	switch c := p[0]; {
	case c&0xf0 == 0x90:
		return uint32(c & 0x0f), 1, true
	case c == 0xdc:
		if len(p) < 3 {
			return 0, 0, true
		}
		return uint32(binary.BigEndian.Uint16(p[1:])), 3, true
	case c == 0xdd:
		if len(p) < 5 {
			return 0, 0, true
		}
		return binary.BigEndian.Uint32(p[1:]), 5, true
	}
	return 0, 0, false
}

// stringHeader reads the header of a str or a bin (old senders use either for
// text and for payloads): the length of the content and its own length, which
// is 0 if p is cut. It is not ok if p begins with anything else.
func stringHeader(p []byte) (size uint64, n int, ok bool) {
	if len(p) == 0 {
		return 0, 0, true
	}
	c := p[0]
	if c&0xe0 == 0xa0 {
		return uint64(c & 0x1f), 1, true
	}
	if c >= 0xc4 && c <= 0xc6 || c >= 0xd9 && c <= 0xdb {
		n = headerLen(c)
		if n > len(p) {
			return 0, 0, true
		}
		_, size = headerCounts(p[:n])
		return size, n, true
	}
	return 0, 0, false
}

// mapHeader reads the header of a whole map: its pairs and its own length.
func mapHeader(p []byte) (pairs uint32, n int, ok bool) {
	switch c := p[0]; {
	case c&0xf0 == 0x80:
		return uint32(c & 0x0f), 1, true
	case c == 0xde:
		return uint32(binary.BigEndian.Uint16(p[1:])), 3, true
	case c == 0xdf:
		return binary.BigEndian.Uint32(p[1:]), 5, true
	}
	return 0, 0, false
}

// option is what a server reads of a message's option map.
type option struct {
	chunk       []byte // content of the chunk id
	chunkRaw    []byte // the same with its msgpack header
	compression Compression
}

// parseOption reads an option map that the scanner has found whole. A nil
// stands for no option.
func parseOption(p []byte) (o option, err error) {
	if p[0] == 0xc0 {
		return o, nil
	}
	pairs, n, ok := mapHeader(p)
	if !ok {
		return o, refuse(ReasonType, errors.New("the option is not a map"))
	}
	var bad error // what is wrong with an option; the chunk id is read nevertheless
	for range pairs {
		keyLen, head, isString := stringHeader(p[n:])
		var key []byte
		if isString {
			key = p[n+head : n+head+int(keyLen)]
		}
		size, err := Skip(p[n:])
		if err != nil {
			return o, refuse(ReasonBroken, err)
		}
		n += size
		if size, err = Skip(p[n:]); err != nil {
			return o, refuse(ReasonBroken, err)
		}
		value := p[n : n+size]
		n += size
		switch string(key) {
		case "chunk":
			if value[0] == 0xc0 {
				continue
			}
			// in_forward echoes an id of any type, so weir does.
			_, head, ok := stringHeader(value)
			if !ok {
				head = 0
			}
			if n := len(value) - head; n > maxChunk {
				return o, refuse(ReasonSize, fmt.Errorf("the chunk id has %d bytes, the limit is %d", n, maxChunk))
			}
			o.chunk, o.chunkRaw = value[head:], value
		case "compressed":
			if value[0] == 0xc0 {
				continue
			}
			_, head, ok := stringHeader(value)
			if !ok {
				bad = refuse(ReasonType, errors.New("the option compressed is not a string"))
				continue
			}
			switch string(value[head:]) { // no copy, as long as it gets no name
			case "text", "":
			case "gzip":
				o.compression = Gzip
			case "zstd":
				o.compression = Zstd
			default:
				bad = refuse(ReasonType, fmt.Errorf("payloads compressed as %.20q are not known; gzip, zstd and text are", value[head:]))
			}
		}
	}
	return o, bad
}

// noLimit is a count of events that no stream reaches.
const noLimit = math.MaxInt
