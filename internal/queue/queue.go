// Package queue holds the one type that every stage's figures are turned
// into. Whatever holds work on the way of a log event, in the kernel or in
// weir, is shown as a Queue, so that the log, the metrics, the JSON, the
// command line and the page all speak of the same things in the same order.
package queue

import (
	"encoding/json"
	"time"
)

// Name says which stage a Queue belongs to. The constants below are in the
// order in which data passes them.
type Name string

// The queues from the network card's side to the far end.
const (
	// SYN is the listener's half-open connections (state SYN_RECV).
	SYN Name = "syn"
	// Accept is the connections that wait for accept(2).
	Accept Name = "accept"
	// Connections is the open connections of a server.
	Connections Name = "connections"
	// Socket is the bytes that wait unread in the kernel's receive buffers.
	Socket Name = "socket"
	// Memory is the bytes that were read and are not yet committed.
	Memory Name = "memory"
	// Commit is the entries (messages) that wait for fdatasync.
	Commit Name = "commit"
	// Buffer is the bytes on disk that some output has not delivered.
	Buffer Name = "buffer"
	// Output is the bytes that one output has not delivered.
	Output Name = "output"
)

// Unit says what Depth, Capacity and Peak of a Queue count.
type Unit string

// The units that occur.
const (
	UnitConnections Unit = "connections"
	UnitBytes       Unit = "bytes"
	UnitEntries     Unit = "entries"
)

// Queue is one reading of one queue.
type Queue struct {
	// Name is the stage, Instance which one of that stage (an address, a
	// match, an output).
	Name     Name   `json:"queue"`
	Instance string `json:"name"`
	Unit     Unit   `json:"unit"`
	// Depth is the present fill in Unit.
	Depth int64 `json:"depth"`
	// Capacity is the limit in Unit, 0 where there is none.
	Capacity int64 `json:"capacity,omitempty"`
	// Peak is the largest Depth since start.
	Peak int64 `json:"peak"`
	// PeakMinute is the largest Depth of the last minute.
	PeakMinute int64 `json:"peak_minute,omitempty"`
	// Dropped counts what was lost or refused here since start.
	Dropped uint64 `json:"dropped"`
	// DroppedBy splits Dropped by cause, where causes are known.
	DroppedBy map[string]uint64 `json:"dropped_by,omitempty"`
	// OldestAge is how long the oldest item has waited, 0 if nothing waits
	// or the stage cannot tell.
	OldestAge time.Duration `json:"-"`
	// Note is one line a person should read beside the figures: a backlog
	// that was not granted, an output that retries. Empty when all is well.
	Note string `json:"note,omitempty"`
}

// Fill is Depth as a share of Capacity, from 0 to 1 (an accept queue holds one
// more than its capacity, so it can exceed 1); 0 without a capacity.
func (q Queue) Fill() float64 {
	if q.Capacity <= 0 {
		return 0
	}
	return float64(q.Depth) / float64(q.Capacity)
}

// wire is Queue with its age in seconds, as programs expect it.
type wire struct {
	plain
	OldestSeconds float64 `json:"oldest_seconds"`
}

// plain is Queue without its methods, so that encoding it does not recurse.
type plain Queue

// MarshalJSON writes the fields of the struct tags and oldest_seconds.
func (q Queue) MarshalJSON() ([]byte, error) {
	return json.Marshal(wire{plain(q), q.OldestAge.Seconds()})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (q *Queue) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*q = Queue(w.plain)
	q.OldestAge = time.Duration(w.OldestSeconds * float64(time.Second))
	return nil
}
