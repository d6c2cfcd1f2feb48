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
	"net"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Modes are the names of Options.Mode.
var modeNames = []string{"packed", "forward", "message", "gzip", "zstd", "json"}

// Limits of Options.
const (
	maxWindow      = 1024    // chunks in flight of one connection
	maxConnections = 1 << 20 // connections or senders
	maxEvents      = 1 << 20 // events of a chunk
	minEventSize   = 80      // bytes: the id and its key take 40 of them
	maxEventSize   = 16 << 20
	maxChunk       = 256 << 20 // bytes of events of a chunk
	maxMemory      = 4 << 30   // bytes of chunks of all connections
	maxRate        = 1e9       // a second: the clock counts nanoseconds
	maxCount       = 1 << 62
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
	// Sample, if not nil, is text whose lines become the records instead, in turn:
	// JSON objects as they are, other lines as {"message": line}. A field "id" makes
	// room for that of the event.
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
	// Stop, if not nil, ends the run when it is closed, as if Duration were over.
	Stop <-chan struct{}

	TLS                           *tls.Config
	SharedKey, Username, Password string
	Hostname                      string

	// PID is the server's, 0 for none.
	PID int
	// Verify are files or patterns in which every acked event (every sent one
	// without acks) must be found, within VerifyWait.
	Verify     []string
	VerifyWait time.Duration

	// Progress, if not nil, gets a line a second; with Width over 0 it is one line that
	// is written over, cut to so many columns.
	Progress io.Writer
	Width    int
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
	chunk := int64(o.Events) * int64(o.Size)
	switch {
	case !known:
		return fmt.Errorf("--mode %q: must be one of %v", o.Mode, modeNames)
	case shapes > 1:
		return errors.New("--senders, --storm and --burst exclude each other")
	case (o.Storm > 0 || o.Burst > 0) && len(o.Verify) > 0:
		return errors.New("--verify: --storm and --burst send no events")
	case !(o.Rate >= 0 && o.Rate <= maxRate): // neither is NaN
		return fmt.Errorf("--rate %v: must be 0 to %.0f", o.Rate, float64(maxRate))
	case !(o.Storm >= 0 && o.Storm <= maxRate):
		return fmt.Errorf("--storm %v: must be 0 to %.0f", o.Storm, float64(maxRate))
	case o.Count > maxCount:
		return fmt.Errorf("--count %d: must be 0 to %d", o.Count, uint64(maxCount))
	case o.Storm > 0 && o.Count > 0:
		return errors.New("--count: --storm sends no events; bound it by --duration")
	case o.Burst == 0 && o.Duration <= 0 && o.Count == 0:
		return errors.New("--duration or --count must bound the run")
	case o.Duration < 0 || o.VerifyWait < 0:
		return errors.New("--duration, --verify-wait: must not be negative")
	case o.AckTimeout <= 0:
		return errors.New("--ack-timeout: must be more than 0")
	case o.PID < 0:
		return fmt.Errorf("--pid %d: must be the number of a process", o.PID)
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
	case o.Sample == nil && chunk > maxChunk:
		return fmt.Errorf("--events %d of --size %d: a chunk of %s; at most %d MiB", o.Events, o.Size, size(float64(chunk)), maxChunk>>20)
	case o.Sample == nil && o.Senders == 0 && int64(o.Connections)*chunk > maxMemory:
		return fmt.Errorf("--connections %d: each holds a chunk of %s, together more than %d GiB; give fewer --events or --connections", o.Connections, size(float64(chunk)), maxMemory>>30)
	case len(o.Tag) == 0 || len(o.Tag) > 1000:
		return errors.New("--tag: must have 1 to 1000 bytes")
	}
	for _, pattern := range o.Verify {
		if _, err := filepath.Match(pattern, ""); err != nil {
			return fmt.Errorf("--verify %s: %w", pattern, err)
		}
	}
	return o.checkAddress()
}

// checkAddress finds an address that cannot be meant, before it is taken for a
// receiver that does not answer.
func (o *Options) checkAddress() error {
	if path, ok := strings.CutPrefix(o.Address, "unix:"); ok {
		switch {
		case path == "":
			return errors.New("address unix: lacks the path of the socket")
		case o.Burst > 0:
			return errors.New("--burst: needs HOST:PORT, a unix socket has another queue")
		case o.Senders > 0 && o.Heartbeat == "udp":
			return errors.New("--heartbeat udp: needs HOST:PORT, a unix socket has no UDP")
		}
		return nil
	}
	_, port, err := net.SplitHostPort(o.Address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil || port == "" {
		return fmt.Errorf("address %q: must be HOST:PORT, such as 127.0.0.1:24224, or unix:PATH", o.Address)
	}
	return nil
}

// spareFiles are descriptors for everything but connections: the runtime's, those of
// connects under way, files that are read.
const spareFiles = 64

// checkFiles finds a limit of descriptors that is too low before half of the
// connections are made. Go raises the soft limit to the hard one by itself.
func (o *Options) checkFiles() error {
	need := uint64(max(o.Connections, o.Senders) + o.Idle + o.Burst + spareFiles)
	if o.Senders > 0 && o.Heartbeat == "udp" {
		need += uint64(o.Senders)
	}
	if o.Storm > 0 {
		need += stormWorkers
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit RLIMIT_NOFILE: %w", err)
	}
	if need > limit.Cur {
		return fmt.Errorf("%d connections need %d descriptors, the limit of open files is %d: ulimit -n %d", need-spareFiles, need, limit.Cur, need)
	}
	return nil
}
