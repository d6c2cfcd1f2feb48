// Package status serves what weir knows of itself over HTTP: Prometheus
// metrics, the queues as JSON, fluentd's monitor_agent JSON and health.
//
// Everything is drawn from one Snapshot, so that no two surfaces can tell
// different stories.
package status

import (
	"time"

	"weir/internal/doctor"
	"weir/internal/queue"
)

// Snapshot is one consistent reading of the whole process.
type Snapshot struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`

	Listeners []Listener    `json:"listeners"`
	Queues    []queue.Queue `json:"queues"`
	Buffers   []Buffer      `json:"buffers"`
	Outputs   []Output      `json:"outputs"`
	Balance   []Balance     `json:"balance"`
	Traffic   Traffic       `json:"traffic"`
	// Quarantines hold what could never be taken, one for each match.
	Quarantines []Quarantine `json:"quarantines"`

	// Damaged tells of each buffer which chunks were moved aside.
	Damaged []Damaged `json:"damaged"`

	// AckLatency is the time from a whole message read to its ack written.
	AckLatency Histogram `json:"-"`
	// CommitLatency is the time of one write and fdatasync, by buffer.
	CommitLatency map[string]Histogram `json:"-"`

	// TCPStates counts the connections of the listening ports by state, as
	// the kernel has them.
	TCPStates map[string]int64 `json:"tcp_connections"`
	// Kernel holds the counters of the network namespace (all listeners'
	// together), by their names in /proc/net/netstat.
	Kernel map[string]uint64 `json:"kernel"`

	// Problems says why weir is not ready, one line each; empty when it is.
	Problems []string `json:"problems"`
	// Warnings says what an operator should mend although weir works.
	Warnings []string `json:"warnings"`

	// Alerts are the warnings that are on, and those that ended of late.
	Alerts []Alert `json:"alerts"`
	// Senders are some of the senders, most heartbeats first; SendersKnown is
	// how many the table holds.
	Senders      []Sender `json:"senders"`
	SendersKnown int      `json:"senders_known"`
	// Findings are what the doctor found that is not as it should be.
	Findings []doctor.Finding `json:"findings"`

	// Inputs describes the configured sources for monitor_agent.
	Inputs []Input `json:"-"`
}

// Ready reports whether weir takes and stores messages.
func (s *Snapshot) Ready() bool { return len(s.Problems) == 0 }

// Listener is one listening socket and its backlog, as asked and as granted by
// the kernel (tcpi_sacked of the listener, tcp(7)).
type Listener struct {
	Name    string `json:"name"`
	Asked   int    `json:"backlog_asked"`
	Granted int    `json:"backlog_granted"`
	// LimitedBy is the sysctl that kept Granted below Asked, or empty.
	LimitedBy string `json:"limited_by,omitempty"`
	// Mend is the command that raises the limit, or empty.
	Mend string `json:"mend,omitempty"`
	// TCPStates counts its connections by state, as the kernel has them; of several
	// listeners on an address the first one has them all.
	TCPStates map[string]int64 `json:"tcp_connections,omitempty"`
}

// Alert is a warning with its cause, from when it began until it was over.
type Alert struct {
	// Name is the alert's stable name, such as "accept_queue_high"; Subject is
	// which listener, buffer or output it is about.
	Name    string `json:"name"`
	Subject string `json:"subject"`
	// Message is what happens, with its figures and the cause; Mend is the
	// command that mends it, or empty.
	Message string     `json:"message"`
	Mend    string     `json:"mend,omitempty"`
	Since   time.Time  `json:"since"`
	Until   *time.Time `json:"until,omitempty"`
}

// Sender is what one address has done since weir first saw it.
type Sender struct {
	Address string `json:"address"`
	// Open connections now, and all that were accepted.
	Open     int64  `json:"open_connections"`
	Accepted uint64 `json:"accepted_connections"`
	// ConnectionsPerSecond and HeartbeatsPerSecond are rates of the last
	// seconds.
	ConnectionsPerSecond float64 `json:"connections_per_second"`
	HeartbeatsPerSecond  float64 `json:"heartbeats_per_second"`
	// Heartbeats by transport: connect, nil, udp.
	Heartbeats map[string]uint64 `json:"heartbeats"`
	Messages   uint64            `json:"messages"`
	Events     uint64            `json:"events"`
	Bytes      uint64            `json:"bytes"`
	Acks       uint64            `json:"acks"`
	// Resends counts messages whose chunk id was stored before.
	Resends uint64 `json:"resends"`
	// Invalid counts messages of which something could not be taken.
	Invalid uint64 `json:"invalid_messages"`
	// InvalidEvents counts those that were set aside.
	InvalidEvents     uint64    `json:"invalid_events"`
	HandshakeFailures uint64    `json:"handshake_failures"`
	LastSeen          time.Time `json:"last_seen"`
	// Features are what of the protocol it uses: packed, gzip, ack, tls, ….
	Features []string `json:"features"`
}

// Traffic is what came in since start.
type Traffic struct {
	// Messages, Events and Bytes of stored messages, by mode of the protocol.
	Messages map[string]uint64 `json:"messages"`
	Events   map[string]uint64 `json:"events"`
	Bytes    map[string]uint64 `json:"bytes"`
	Acks     uint64            `json:"acks"`
	// Duplicates counts messages that were stored before and came again; they are
	// in none of the above but Acks.
	Duplicates uint64 `json:"duplicates"`
	// Heartbeats by transport: connect, nil, udp.
	Heartbeats map[string]uint64 `json:"heartbeats"`
	// Connections by result: accepted, refused, handshake_failed, half_closed, idle,
	// aged, acks_unread.
	Connections map[string]uint64 `json:"connections"`
	// Waits counts by limit how often a connection was read no further for a while:
	// in_flight, unread_acks, gzip, zstd, poller; and how often new ones were left in
	// the accept queue, in a storm: accept.
	Waits map[string]uint64 `json:"waits"`
	// Refused counts messages that were not taken and not acked, by reason.
	Refused map[string]uint64 `json:"refused_messages"`
	// Invalid counts messages, by reason, of which at least a part went to a
	// quarantine; InvalidEvents the events of those parts as far as they can be
	// told apart. NilRecords counts events without a record, which are skipped.
	Invalid       map[string]uint64 `json:"invalid_messages"`
	InvalidEvents uint64            `json:"invalid_events"`
	NilRecords    uint64            `json:"nil_records"`
}

// Buffer is the storage of one <match>; how full it is, is its queue's. Counters
// count since start.
type Buffer struct {
	// Name is that of its queue; Path is its directory.
	Name string `json:"name"`
	Path string `json:"path"`
	// Bytes are undelivered, of the slowest output, of at most Limit
	// (total_limit_size); Overflow is what happens beyond that (overflow_action).
	Bytes    int64  `json:"bytes"`
	Limit    int64  `json:"limit"`
	Overflow string `json:"overflow_action"`
	// Chunks are the files in use: those with undelivered entries, and the one that is
	// written. Spares are delivered ones that wait to be used again.
	Chunks int `json:"chunks"`
	Spares int `json:"spare_files"`
	// Oldest is the age of the oldest undelivered entry, in seconds.
	Oldest float64 `json:"oldest_seconds"`
	// Commits are writes that became durable, FailedCommits those that did not.
	Commits       uint64 `json:"commits"`
	FailedCommits uint64 `json:"failed_commits"`
	// Recovered is the events that the start found undelivered, of the slowest
	// output.
	Recovered uint64 `json:"recovered_events"`
	// DroppedChunks made room for newer ones (drop_oldest_chunk).
	DroppedChunks uint64 `json:"dropped_chunks"`
	// ChunkIDs are known, so that their resends are not stored again.
	ChunkIDs int `json:"chunk_ids"`
	// Durable: an ack waits for fdatasync (durability). Direct: commits pass the page
	// cache by (O_DIRECT, open(2)).
	Durable bool `json:"durable"`
	Direct  bool `json:"direct_io"`
	// ReadAhead is the memory in bytes that outputs which are behind take to read
	// their next batch while one is delivered.
	ReadAhead int64 `json:"read_ahead_bytes"`
	// DiskFree and DiskSize are those of its file system in bytes, 0 until sampled.
	DiskFree int64 `json:"disk_free"`
	DiskSize int64 `json:"disk_size"`
}

// Writes says in a few words how its commits reach the disk.
func (b *Buffer) Writes() string {
	switch {
	case !b.Durable:
		return "no fdatasync"
	case b.Direct:
		return "O_DIRECT"
	}
	return "page cache"
}

// Quarantine is what of a match's messages could never be taken.
type Quarantine struct {
	Match string `json:"match"`
	Items int    `json:"items"`
	Bytes int64  `json:"bytes"`
	Limit int64  `json:"limit"`
	// Dropped counts items that made room for newer ones.
	Dropped uint64 `json:"dropped"`
}

// Damaged is the chunks of a buffer that were moved aside as .damaged after
// their readable part was delivered.
type Damaged struct {
	Match  string `json:"match"`
	Chunks int    `json:"chunks"`
	Bytes  int64  `json:"bytes"`
	Limit  int64  `json:"limit"`
	// Dropped counts chunks that made room for newer ones.
	Dropped uint64 `json:"dropped"`
}

// Balance is the sum of promise P5 for one output:
// Recovered + Received = Delivered + Buffered + Dropped, all in events.
type Balance struct {
	// Output is the output's id, Match the pattern of its <match>.
	Output    string `json:"output"`
	Match     string `json:"match"`
	Recovered uint64 `json:"recovered"`
	Received  uint64 `json:"received"`
	Delivered uint64 `json:"delivered"`
	Buffered  uint64 `json:"buffered"`
	// Dropped counts events by cause; the cause is never empty.
	Dropped map[string]uint64 `json:"dropped"`
}

// DroppedTotal sums Dropped over its causes.
func (b Balance) DroppedTotal() uint64 {
	var n uint64
	for _, v := range b.Dropped {
		n += v
	}
	return n
}

// Holds reports whether the sum is even. While messages are on their way it
// may be off by those; at a quiet moment it must hold.
func (b Balance) Holds() bool { return b.Unaccounted() == 0 }

// Unaccounted is how many events are on their way between two of the counters,
// negative if more have left than have come.
func (b Balance) Unaccounted() int64 {
	return int64(b.Recovered+b.Received) - int64(b.Delivered+b.Buffered+b.DroppedTotal())
}

// Output is one output plugin's state.
type Output struct {
	ID    string `json:"id"`
	Type  string `json:"type"`
	Match string `json:"match"`
	// Config is the effective configuration with secrets masked.
	Config map[string]string `json:"config,omitempty"`

	DeliveredEvents uint64 `json:"delivered_events"`
	DeliveredBytes  uint64 `json:"delivered_bytes"`
	Batches         uint64 `json:"batches"`
	PendingBytes    int64  `json:"pending_bytes"`
	PendingChunks   int64  `json:"pending_chunks"`
	// Capacity is the buffer's total_limit_size in bytes.
	Capacity int64 `json:"capacity"`
	// Retries counts failed deliveries since start, Step those in a row.
	Retries   uint64     `json:"retries"`
	Step      int        `json:"retry_step"`
	NextRetry *time.Time `json:"next_retry,omitempty"`
	LastError string     `json:"last_error,omitempty"`
	// FirstFailure is when the failures in a row began.
	FirstFailure *time.Time `json:"first_failure,omitempty"`
	// Messages came for the match since start; FlushSeconds is what successful
	// deliveries took, SlowFlushes counts those of 20 s and more.
	Messages     uint64  `json:"messages"`
	FlushSeconds float64 `json:"flush_seconds"`
	SlowFlushes  uint64  `json:"slow_flushes"`
	// SecondaryBatches counts deliveries to the secondary output, DroppedChunks
	// those of the buffer that made room (drop_oldest_chunk).
	SecondaryBatches uint64 `json:"secondary_batches"`
	DroppedChunks    uint64 `json:"dropped_chunks"`
}

// Input is one source plugin for monitor_agent.
type Input struct {
	ID     string
	Type   string
	Config map[string]string
	Events uint64
	Bytes  uint64
}

// Histogram is a latency distribution: Counts[i] observations took at most
// Bounds[i] seconds (cumulative, as Prometheus has it).
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Count  uint64
	Sum    float64 // seconds
}
