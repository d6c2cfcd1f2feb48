// Package alert turns readings of weir's queues into warnings that begin, last
// and end: "12 connections dropped in 1 s; backlog 1024 of 16384 asked, limited
// by net.core.somaxconn", with the command that mends it.
//
// It looks at nothing by itself: an Evaluator is given one Reading after the
// other. Log, metrics, JSON, command line and page show the one list it keeps.
package alert

import (
	"time"

	"weir/netopt"
)

// Reading is one look at everything that an alert may be about. Counters count
// since some fixed time; what matters is how they grow.
type Reading struct {
	At        time.Time
	Listeners []Listener
	// Kernel is the counters of the network namespace, read after Listeners.
	Kernel netopt.Counters
	// Syncookies and MaxSynBacklog are net.ipv4.tcp_syncookies and
	// tcp_max_syn_backlog, -1 if unknown.
	Syncookies, MaxSynBacklog int
	Sources                   []Source
	Buffers                   []Buffer
	Outputs                   []Output
	Certificates              []Certificate
	// Dropped counts events that were lost beside those of outputs, by cause.
	Dropped map[string]uint64
	// Problems are why weir is not ready.
	Problems []string
}

// Listener is one listening socket.
type Listener struct {
	Name string
	// Asked and Granted are its backlog, LimitedBy the sysctl between them, Mend
	// the command that raises that.
	Asked, Granted  int
	LimitedBy, Mend string
	Queue           netopt.Queue
	// Sharing is how many listeners its address has (SO_REUSEPORT); States are of
	// all of them, and given with the first alone.
	Sharing int
	// States of its port; CloseWait was sampled at SampledAt, zero if never.
	States    netopt.PortStates
	SampledAt time.Time
}

// Source is a <source>'s server.
type Source struct {
	Name        string
	Open, Limit int
	// Refused counts connections over a limit.
	Refused uint64
	// MemoryWaiting counts connections that wait for the budget now,
	// MemoryRefused messages that waited too long.
	MemoryWaiting           int
	MemoryHeld, MemoryLimit int64
	MemoryRefused           uint64
	// Unanswered counts UDP heartbeats.
	Unanswered uint64
}

// Buffer is the storage of a <match>. Sizes are bytes.
type Buffer struct {
	Name, Path     string
	Backlog, Limit int64
	Overflow       string // overflow_action
	// Refused counts messages that found the buffer full.
	Refused uint64
	Failing string // why storing fails now, empty if it works
	// PendingAge is how long the oldest uncommitted message has waited.
	PendingAge time.Duration
	// DiskFree and DiskSize are those of its file system, 0 if unknown.
	DiskFree, DiskSize int64
	ChunkLimit         int64
}

// Output is what empties a buffer.
type Output struct {
	Name      string
	Step      int // failures in a row
	NextRetry time.Time
	LastError string
	// Dropped counts lost events by cause.
	Dropped map[string]uint64
}

// Certificate is what a listener with TLS shows to senders.
type Certificate struct {
	// Name is its file, or the source that made it.
	Name string
	// Subject is whose it is; it is valid until Expires. Of a chain it is the
	// certificate that ends first.
	Subject string
	Expires time.Time
}
