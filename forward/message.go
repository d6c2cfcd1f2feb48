package forward

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Mode is one of the event modes of the Forward protocol
// (Forward-Protocol-Specification-v1, "Event Modes").
type Mode uint8

// The modes. JSON input becomes ModeMessage or ModeForward.
const (
	ModeMessage Mode = iota
	ModeForward
	ModePacked
	ModeCompressed
	modes // how many there are
)

// String is the name that metrics and logs use.
func (m Mode) String() string {
	switch m {
	case ModeMessage:
		return "message"
	case ModeForward:
		return "forward"
	case ModePacked:
		return "packed"
	case ModeCompressed:
		return "compressed"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// Compression says how a Message's payload is compressed.
type Compression uint8

// The compressions of the protocol's option "compressed".
const (
	Uncompressed Compression = iota
	Gzip
	Zstd
)

// Message is one whole message of the protocol, checked: every event in Payload
// is valid. Tag, Chunk and Payload are valid only until Handle returns.
type Message struct {
	Mode Mode
	Tag  []byte
	// Chunk is the sender's chunk id (option "chunk"), opaque bytes; nil if the
	// sender wants no ack.
	Chunk []byte
	// Events is how many events the payload holds, counted and not believed.
	Events int
	// Payload holds pieces whose concatenation is the event stream: msgpack
	// [time, record] one after the other, compressed as Compression says.
	Payload [][]byte
	// Size is the length of Payload in bytes.
	Size        int
	Compression Compression
	Received    time.Time
	Remote      net.Addr
	// Invalid is what of the message is not in Payload, because it can never be
	// taken; nil if all of it is. It must be kept before Done is called with nil,
	// or it is lost. Events may be 0 then, and Payload empty.
	Invalid *Invalid
	// Duplicate may be set by the handler before Done(nil): the message was stored
	// before and is not stored again. It is acked, and counted as nothing else.
	Duplicate bool
	// Batched says that Flush of a Flusher is called after this message, and maybe
	// others of other senders.
	Batched bool

	session *session
	wantAck bool
	ack     []byte // copy of the chunk id as it came: msgpack with its header, or JSON text
	charged int64  // bytes of the memory budget held until Done
	pieces  [2][]byte
	next    *Message // in the session's order of arrival
	done    bool
	err     error
}

// Done reports the outcome; the handler calls it exactly once, from any
// goroutine, during Handle or after it. With nil the message is durable, and it
// is acked if the sender asked for it, after the acks of the messages before
// it. With an error there is no ack: the acks of earlier messages are still
// sent, then the connection is closed, so that the sender learns at once that
// it must send the message again. The error is counted under its Reason, see
// Refusal. Done may write acks, as far as the socket takes them at once, and never
// waits for the sender.
func (m *Message) Done(err error) { m.session.complete(m, err) }

// setChunk takes the chunk id of the option, for the ack.
func (m *Message) setChunk(o option) {
	m.Chunk, m.wantAck = o.chunk, true
	m.ack = append(m.ack[:0], o.chunkRaw...)
}

// Handler takes the messages of a Server.
type Handler interface {
	// Handle takes one message and sees to it that Done is called. It may block,
	// which stops the reading of that connection. ctx ends when the server is
	// closed: Handle must not block on then, for Close waits for it.
	Handle(ctx context.Context, m *Message)
}

// Flusher is a Handler that gains from handling messages of several senders
// together: it may put off what it does for those that are Batched.
type Flusher interface {
	Handler
	// Flush is called after some messages that were Batched, by the goroutine that
	// has called Handle. It sees to it that they will be Done. It may block, as
	// Handle may.
	Flush()
}

// Refusal is an error with the short reason under which it is counted.
// Handlers may pass one to Done; any other error counts as "handler".
type Refusal struct {
	Reason string
	Err    error
}

// Error gives the reason and the cause.
func (r *Refusal) Error() string { return r.Reason + ": " + r.Err.Error() }

// Unwrap gives the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// Reasons for which a Server refuses a message.
const (
	ReasonNotForward  = "not_forward"  // the stream is no Forward protocol at all
	ReasonBroken      = "broken"       // no valid msgpack or JSON
	ReasonType        = "wrong_type"   // valid, but not what the protocol wants there
	ReasonDepth       = "too_deep"     // nested deeper than MaxDepth
	ReasonSize        = "too_large"    // longer than MessageSizeLimit
	ReasonDecompress  = "decompress"   // compressed payload that does not decompress
	ReasonInflated    = "decompressed" // decompressed payload over DecompressionSizeLimit
	ReasonRatio       = "ratio"        // decompressed payload over DecompressionRatioLimit times the compressed
	ReasonCut         = "cut"          // the connection ended in the middle of a message
	ReasonStalled     = "stalled"      // the rest of a message did not come in time
	ReasonSlow        = "slow"         // a message came slower than MinRate
	ReasonConnections = "connections"  // the sender behind a balancer has too many
	ReasonProxy       = "proxy"        // no PROXY header where one must be
	ReasonMemory      = "memory"       // no room in the memory budget in time
	ReasonHandler     = "handler"      // the handler gave no reason of its own
)

// refuse makes a *Refusal, choosing the reason for errors that have their own.
func refuse(reason string, err error) *Refusal {
	return &Refusal{Reason: reason, Err: err}
}
