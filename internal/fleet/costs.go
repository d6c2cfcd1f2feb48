package fleet

import "time"

// MeasuredCosts are those of weir on one machine: 2 virtual CPUs shared with the
// senders, Linux 6.18, ext4 on a virtual disk, weir with its default
// configuration. Measure them again on another machine with weir load, which
// reports the CPU of the server whose --pid it is given:
//
//   - Connection: weir load --storm 5000 --duration 5s: 20 to 30 µs; when many wait
//     at once, 10 to 23 µs.
//   - Accept: 4,000 connections queued while weir is stopped (SIGSTOP), then the
//     time until the queue is empty, by ss -ltn: 18 to 36 µs each. The accept loop
//     also ends those that only connect and close.
//   - Datagram: 20,000 UDP heartbeats one after the other: 12 to 23 µs.
//   - Message: weir load --mode message --connections 256: 10 to 16 µs for each
//     event, which is a message here, with its share of commits.
//   - Commit: the same with --connections 1, where each message has a commit of
//     its own: 87 to 108 µs, less a message.
//   - Gigabyte: weir load --connections 4 --count 1500000 --verify DIRECTORY, 416 MB
//     of events of 277 bytes, until all is written to files as JSON: 2.2 to 2.6 s.
//     Receiving and storing alone is 0.5 to 0.7 s of it.
func MeasuredCosts() Costs {
	return Costs{
		Accept: 30 * time.Microsecond, Connection: 30 * time.Microsecond, Datagram: 15 * time.Microsecond,
		Message: 12 * time.Microsecond, Commit: 85 * time.Microsecond, Gigabyte: 2450 * time.Millisecond,
	}
}
