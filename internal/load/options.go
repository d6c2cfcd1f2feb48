// Package load generates load for any receiver of the Forward protocol and
// measures what becomes of it: rates, latencies, drops in the kernel, the
// server's CPU, lost and repeated events. It is what `weir load` runs.
//
// Messages are templates built once; only ids, tags and times are patched, so
// that the cost of sending is that of the system calls.
package load

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"time"
)

// Modes are the names of Options.Mode.
var modeNames = []string{"packed", "forward", "message", "gzip", "zstd", "json"}

// Limits of Options.
const (
	maxWindow      = 1024    // chunks in flight of one connection
	maxConnections = 1 << 20 // connections or senders
	maxEvents      = 1 << 20 // events of a chunk
	minEventSize   = 64      // bytes: the id and its key take 40 of them
	maxEventSize   = 16 << 20
)

// Options say what to send. The zero value of each is no default: the flags of
// `weir load` have those.
type Options struct {
	// Address is host:port or unix:PATH.
	Address string
	// Mode is one of packed, forward, message, gzip, zstd, json.
	Mode string
	// Events of each chunk; 1 in the modes message and json.
	Events int
	// Size in bytes of one event, [time, record] in msgpack.
	Size int
	// Sample, if not nil, is text whose lines become the records instead: JSON
	// objects as they are, other lines as {"message": line}.
	Sample []byte
	// CompressEach compresses every chunk anew in the modes gzip and zstd, so that
	// the ids of its events are unique; else one compressed chunk is sent again
	// and again, under chunk ids of its own.
	CompressEach bool
	// Tag of all events; with Tags over 1 a number is put behind it.
	Tag  string
	Tags int
	// Ack asks for acks.
	Ack bool
	// AckTimeout is how long an ack may take until the connection is given up and
	// its chunks are sent again.
	AckTimeout time.Duration
	// Connections send side by side; with KeepAlive false each makes a new one for
	// every chunk.
	Connections int
	KeepAlive   bool
	// Window is how many chunks of a connection may wait for their ack.
	Window int
	// Senders, if not 0, replaces Connections by a fleet: each sender flushes one
	// chunk every Flush and sends a heartbeat every HeartbeatEvery.
	Senders        int
	Heartbeat      string // tcp, udp or none
	HeartbeatEvery time.Duration
	Flush          time.Duration
	// Storm, if not 0, connects and closes so many times a second.
	Storm float64
	// Burst, if not 0, opens so many connections at once and then closes them.
	Burst int
	// Idle connections are held open beside the load.
	Idle int
	// Rate in events a second over all connections, by the clock; 0 for as fast
	// as acks and sockets allow.
	Rate float64
	// Duration bounds the run, Count the events; 0 for no bound.
	Duration time.Duration
	Count    uint64

	TLS                           *tls.Config
	SharedKey, Username, Password string
	Hostname                      string

	// PID is the server's, 0 for none.
	PID int
	// Verify are files or patterns in which every acked event (every sent one
	// without acks) must be found, within VerifyWait.
	Verify     []string
	VerifyWait time.Duration

	// Progress, if not nil, gets a line a second; Rewrite makes it one line that
	// is written over.
	Progress io.Writer
	Rewrite  bool
}

// Check returns an error that names the flag for options that make no sense.
func (o *Options) Check() error {
	known := false
	for _, m := range modeNames {
		known = known || m == o.Mode
	}
	ranges := []struct {
		name     string
		v, lo, h int
	}{
		{"events", o.Events, 1, maxEvents}, {"size", o.Size, minEventSize, maxEventSize},
		{"tags", o.Tags, 1, maxTags}, {"connections", o.Connections, 1, maxConnections},
		{"window", o.Window, 1, maxWindow}, {"senders", o.Senders, 0, maxConnections},
		{"burst", o.Burst, 0, maxConnections}, {"idle", o.Idle, 0, maxConnections},
	}
	for _, r := range ranges {
		if r.v < r.lo || r.v > r.h {
			return fmt.Errorf("--%s %d: must be %d to %d", r.name, r.v, r.lo, r.h)
		}
	}
	shapes := 0
	for _, set := range []bool{o.Senders > 0, o.Storm > 0, o.Burst > 0} {
		if set {
			shapes++
		}
	}
	switch {
	case !known:
		return fmt.Errorf("--mode %q: must be one of %v", o.Mode, modeNames)
	case o.Address == "":
		return errors.New("no address to send to")
	case shapes > 1:
		return errors.New("--senders, --storm and --burst exclude each other")
	case (o.Storm > 0 || o.Burst > 0) && len(o.Verify) > 0:
		return errors.New("--verify: --storm and --burst send no events")
	case o.Rate < 0 || o.Storm < 0:
		return errors.New("--rate, --storm: must not be negative")
	case o.Burst == 0 && o.Duration <= 0 && (o.Count == 0 || o.Storm > 0):
		return errors.New("--duration or --count must bound the run")
	case o.Duration < 0 || o.AckTimeout <= 0 || o.VerifyWait < 0:
		return errors.New("--duration, --ack-timeout, --verify-wait: must not be negative")
	case o.Senders > 0 && o.Flush <= 0:
		return errors.New("--flush: must be more than 0")
	case o.Senders > 0 && o.Rate > 0:
		return errors.New("--rate: the rate of --senders is that of --flush")
	case o.Senders > 0 && o.Heartbeat != "none" && o.HeartbeatEvery <= 0:
		return errors.New("--heartbeat: must be tcp:INTERVAL, udp:INTERVAL or none")
	case len(o.Verify) > 0 && (o.Mode == "gzip" || o.Mode == "zstd") && !o.CompressEach:
		return errors.New("--verify: add --compress-each, or the events of all chunks have the same ids")
	case (o.Mode == "message" || o.Mode == "json") && o.Events != 1:
		return fmt.Errorf("--events %d: a message in mode %s has one event", o.Events, o.Mode)
	case len(o.Tag) == 0 || len(o.Tag) > 1000:
		return errors.New("--tag: must have 1 to 1000 bytes")
	}
	return nil
}
