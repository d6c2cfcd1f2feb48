package fleet

import "time"

// MeasuredCosts are those of weir on one machine: 2 virtual CPUs, Linux 6.18,
// ext4 on a virtual disk, the senders beside it, CPU time of the whole process
// from /proc/PID/task/*/schedstat. Each can be measured again on another
// machine, with a client that does only that:
//
//   - Connection: 20,000 connections over loopback that are opened and closed,
//     eight at a time: 28 to 33 µs.
//   - Accept: 4,000 connections queued while the process is stopped (SIGSTOP),
//     then the time until the queue is empty: 19 to 36 µs each.
//   - Datagram: 20,000 heartbeats one after the other: 12 to 13 µs.
//   - Message: one event in each packed message, each acked before the next, 256
//     connections, so that commits are shared: 17 to 20 µs.
//   - Commit: the same on one connection, where each has its own: 156 to 189 µs,
//     less a message.
//   - Gigabyte: 280 kB in each message of events of 280 bytes, written to a file
//     as JSON: 5.3 s; stored and not delivered: 1.8 to 2.3 s.
func MeasuredCosts() Costs {
	return Costs{
		Accept: 30 * time.Microsecond, Connection: 32 * time.Microsecond, Datagram: 12 * time.Microsecond,
		Message: 18 * time.Microsecond, Commit: 150 * time.Microsecond, Gigabyte: 5300 * time.Millisecond,
	}
}
