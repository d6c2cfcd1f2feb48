// Package fleet computes what a fleet of senders needs of a log server: the
// backlog by simulation of the accept queue, and connections, ports,
// descriptors, CPU and disk from measured costs.
//
// It is pure: the same Fleet, Server and Costs give the same Result on every
// machine, since the random phases of the senders come from a fixed seed.
package fleet

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Heartbeat is how senders ask whether the receiver is there
// (heartbeat_type of fluentd's out_forward).
type Heartbeat string

// The kinds of heartbeat. TCP opens and closes a connection each time, UDP
// sends a datagram, None sends none: heartbeat_type transport over an open
// connection, or Fluent Bit.
const (
	TCP  Heartbeat = "tcp"
	UDP  Heartbeat = "udp"
	None Heartbeat = "none"
)

// Limits of what is simulated.
const (
	maxSenders = maxArrivals / 2
	// maxArrivals bounds memory and time of one simulation, 8 bytes each. When all
	// come back, a sender has two.
	maxArrivals = 8_000_000
)

// Fleet is a fleet of equal senders.
type Fleet struct {
	Senders        int           `json:"senders"`
	Heartbeat      Heartbeat     `json:"heartbeat"`
	HeartbeatEvery time.Duration `json:"heartbeat_every_ns"`
	// FlushEvery is the time between two chunks of a sender, FlushBytes the size
	// of one.
	FlushEvery time.Duration `json:"flush_every_ns"`
	FlushBytes int64         `json:"flush_bytes"`
	// Keepalive: senders keep their connection between flushes. Without it, as
	// fluentd does by default, each flush opens one.
	Keepalive bool `json:"keepalive"`
	// Stall is for how long nothing is accepted and nothing committed: a disk
	// that hangs, a process that is stopped, a restart with a socket that systemd
	// holds.
	Stall time.Duration `json:"stall_ns"`
}

// reconnectWithin is the time in which all senders are back after an outage: a
// SYN without an answer is sent again about every second (tcp_syn_linear_timeouts,
// Linux 6.5), fluentd retries after retry_wait, 1 s, and the phases differ.
const reconnectWithin = time.Second

// Validate says what of f makes no sense.
func (f Fleet) Validate() error {
	switch {
	case f.Senders < 1 || f.Senders > maxSenders:
		return fmt.Errorf("senders %d: give a number from 1 to %d", f.Senders, maxSenders)
	case f.Heartbeat != TCP && f.Heartbeat != UDP && f.Heartbeat != None:
		return fmt.Errorf("heartbeat %q is none of tcp, udp and none", f.Heartbeat)
	case f.Heartbeat != None && f.HeartbeatEvery < time.Millisecond:
		return fmt.Errorf("heartbeat every %v: give at least 1ms, such as tcp:1s", f.HeartbeatEvery)
	case f.FlushEvery < time.Millisecond:
		return fmt.Errorf("flush every %v: give at least 1ms, such as 5s", f.FlushEvery)
	case f.FlushBytes < 0:
		return fmt.Errorf("flush of %d bytes: give a size that is not negative", f.FlushBytes)
	case f.Stall < 0 || f.Stall > time.Hour:
		return fmt.Errorf("stall of %v: give a time from 0s to 1h", f.Stall)
	}
	// What simulate makes for each time that it looks at.
	if n := f.connectionRate()*(f.Stall+2*time.Second).Seconds() + 2*float64(f.Senders); n > maxArrivals {
		return fmt.Errorf("%.0f connections in a stall of %v are more than the %d that are simulated: give fewer senders or a shorter stall", n, f.Stall, maxArrivals)
	}
	return nil
}

// ParseHeartbeat reads KIND:INTERVAL, such as tcp:1s or udp:500ms, or none.
func ParseHeartbeat(text string) (Heartbeat, time.Duration, error) {
	kind, interval, found := strings.Cut(text, ":")
	switch {
	case text == string(None):
		return None, 0, nil
	case kind != string(TCP) && kind != string(UDP):
		return "", 0, fmt.Errorf("heartbeat %q: give tcp:INTERVAL, udp:INTERVAL or none, such as tcp:1s", text)
	case !found:
		interval = "1s" // heartbeat_interval of out_forward
	}
	d, err := time.ParseDuration(interval)
	if err != nil || d < time.Millisecond {
		return "", 0, fmt.Errorf("heartbeat %q: the interval must be a time of at least 1ms, such as %s:1s", text, kind)
	}
	return Heartbeat(kind), d, nil
}

// connectionRate is new TCP connections a second.
func (f Fleet) connectionRate() float64 {
	rate := 0.0
	if f.Heartbeat == TCP {
		rate += float64(f.Senders) / f.HeartbeatEvery.Seconds()
	}
	if !f.Keepalive {
		rate += f.messageRate()
	}
	return rate
}

func (f Fleet) messageRate() float64 { return float64(f.Senders) / f.FlushEvery.Seconds() }

// Costs are what weir spends, from measurements.
type Costs struct {
	// Accept is the time from one accept(2) of the accept loop to the next while
	// connections wait: what is serial for a listener, however many cores.
	Accept time.Duration `json:"accept_ns"`
	// Connection is the CPU, over all threads and with the kernel's part, of a
	// connection that is opened and closed: a TCP heartbeat.
	Connection time.Duration `json:"connection_ns"`
	// Datagram is the CPU of a UDP heartbeat and its answer.
	Datagram time.Duration `json:"datagram_ns"`
	// Message is the CPU of receiving and acking one message, without its bytes
	// and its commit.
	Message time.Duration `json:"message_ns"`
	// Commit is the CPU of one commit, without its bytes.
	Commit time.Duration `json:"commit_ns"`
	// Gigabyte is the CPU of 10^9 bytes of packed payload, received, stored, and
	// delivered to a file.
	Gigabyte time.Duration `json:"gigabyte_ns"`
}

// Server is a machine for weir.
type Server struct {
	Cores float64 `json:"cores"`
	// Backlog is what the kernel granted; 0 leaves the fleet's behaviour at a
	// backlog out of the Result.
	Backlog int `json:"backlog"`
	// CommitTime is how long one small write and fdatasync take.
	CommitTime time.Duration `json:"commit_time_ns"`
	// DiskBytes is the bandwidth for sequential writes in bytes a second; 0 for
	// unknown.
	DiskBytes float64 `json:"disk_bytes_per_second"`
}

const (
	// Headroom is the part of a machine that a steady load may take. What is left
	// drains the queue after a stall: at load u that takes u/(1-u) times as long
	// as the stall.
	Headroom = 0.7
	// margin is what the backlog has beyond the peak of the simulation.
	margin = 1.25
	// TimeWait is how long a closed connection keeps its port on the side that
	// closed first (TCP_TIMEWAIT_LEN in the kernel).
	TimeWait = 60 * time.Second
	// EphemeralPorts is how many ports one address has towards one server
	// (net.ipv4.ip_local_port_range, 32768 to 60999).
	EphemeralPorts = 60999 - 32768 + 1
	// conntrackClosed is how long a closed connection is tracked
	// (net.netfilter.nf_conntrack_tcp_timeout_time_wait).
	conntrackClosed = 120 * time.Second
	// blockSize is what commits are padded to: half of it is lost on average.
	blockSize = 4096
	// reservedFiles are descriptors for chunks, outputs, listeners and the runtime.
	reservedFiles = 256
)

// Result is what a fleet needs.
type Result struct {
	Fleet  Fleet  `json:"fleet"`
	Server Server `json:"server"`

	// Connections are new TCP connections a second.
	Connections float64 `json:"connections_per_second"`
	Heartbeats  float64 `json:"heartbeats_per_second"`
	Messages    float64 `json:"messages_per_second"`
	Bytes       float64 `json:"bytes_per_second"`

	// Steady is the accept queue without a stall, Stalled with one at the worst of
	// the simulated moments, Storm when all senders come back after an outage and
	// weir stalls as they do. All three with a backlog without limit.
	Steady  Queue `json:"steady"`
	Stalled Queue `json:"stalled"`
	Storm   Queue `json:"storm"`
	// Backlog is what to ask for: the largest of the three and a quarter more,
	// as a power of two.
	Backlog int `json:"backlog"`
	// StalledHere and StormHere are the same with the server's backlog; nil if it
	// is not given.
	StalledHere *Queue `json:"stalled_with_server_backlog,omitempty"`
	StormHere   *Queue `json:"storm_with_server_backlog,omitempty"`

	// Open is the most connections open at once, Descriptors what RLIMIT_NOFILE
	// must allow.
	Open        int `json:"open_connections"`
	Descriptors int `json:"descriptors"`
	// Conntrack is entries of nf_conntrack, where it is loaded.
	Conntrack int `json:"conntrack_entries"`
	// SenderPorts is ports that one sender has in TIME_WAIT and open;
	// BalancerPorts what a load balancer needs that connects from an address of
	// its own; BalancerAddresses how many addresses that takes.
	SenderPorts       int `json:"sender_ports"`
	BalancerPorts     int `json:"balancer_ports"`
	BalancerAddresses int `json:"balancer_addresses"`

	// Cores is CPU in cores; AcceptLoad the part of its time that one accept loop
	// is busy.
	Cores      float64 `json:"cores"`
	AcceptLoad float64 `json:"accept_load"`
	// Commits are fdatasyncs a second, DiskBytes what is written, with padding.
	Commits   float64 `json:"commits_per_second"`
	DiskBytes float64 `json:"disk_bytes_per_second"`
	// StallMemory is bytes that arrive in one Stall and wait in memory.
	StallMemory int64 `json:"stall_memory_bytes"`

	// Load is the steady load as a part of what one server may take (Headroom
	// considered): over 1, one is not enough. Bound is what comes to its end first:
	// "cpu", "accept loop" or "disk". Servers is how many it takes.
	Load    float64 `json:"load"`
	Bound   string  `json:"bound"`
	Servers int     `json:"servers"`
}

// Simulate computes what f needs on servers like s at costs c.
func Simulate(f Fleet, s Server, c Costs) (*Result, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	r := &Result{Fleet: f, Server: s}
	r.rates(c)
	r.queues(c)
	r.ports()
	return r, nil
}

// rates fills in what is proportional to the senders.
func (r *Result) rates(c Costs) {
	f, s := r.Fleet, r.Server
	r.Connections, r.Messages = f.connectionRate(), f.messageRate()
	if f.Heartbeat != None {
		r.Heartbeats = float64(f.Senders) / f.HeartbeatEvery.Seconds()
	}
	r.Bytes = r.Messages * float64(f.FlushBytes)
	r.Commits = commitRate(r.Messages, s.CommitTime)
	r.DiskBytes = r.Bytes + r.Commits*blockSize/2
	r.StallMemory = int64(r.Bytes * f.Stall.Seconds())

	cpu := r.Connections*c.Connection.Seconds() + r.Messages*c.Message.Seconds() + r.Commits*c.Commit.Seconds() + r.Bytes/1e9*c.Gigabyte.Seconds()
	if f.Heartbeat == UDP {
		cpu += r.Heartbeats * c.Datagram.Seconds()
	}
	r.Cores = cpu
	r.AcceptLoad = r.Connections * c.Accept.Seconds()

	r.Load, r.Bound = r.AcceptLoad/Headroom, "accept loop"
	if load := r.Cores / (max(s.Cores, 1e-9) * Headroom); load > r.Load {
		r.Load, r.Bound = load, "cpu"
	}
	if s.DiskBytes > 0 {
		if load := r.DiskBytes / (s.DiskBytes * Headroom); load > r.Load {
			r.Load, r.Bound = load, "disk"
		}
	}
	r.Servers = max(1, int(math.Ceil(r.Load)))
}

// commitRate is commits a second of a group commit that takes t, with messages
// at random moments: after each commit the next begins at once if a message has
// come meanwhile, else when one comes.
func commitRate(messages float64, t time.Duration) float64 {
	if messages == 0 {
		return 0
	}
	return 1 / (t.Seconds() + math.Exp(-messages*t.Seconds())/messages)
}

// ports fills in what connections take elsewhere.
func (r *Result) ports() {
	f := r.Fleet
	open := f.Senders // each has at most one data connection
	// Heartbeats that wait to be accepted are open as well.
	r.Open = open + max(r.Stalled.Peak, r.Storm.Peak)
	r.Descriptors = r.Open + reservedFiles
	perSender := r.Connections / float64(f.Senders)
	r.SenderPorts = int(math.Ceil(perSender*TimeWait.Seconds())) + 1
	r.BalancerPorts = int(math.Ceil(r.Connections*TimeWait.Seconds())) + open
	r.BalancerAddresses = (r.BalancerPorts + EphemeralPorts - 1) / EphemeralPorts
	r.Conntrack = int(math.Ceil(r.Connections*conntrackClosed.Seconds())) + open
}
