// Package forward receives the Fluentd Forward protocol, versions 0 and 1, as
// specified in Forward-Protocol-Specification-v1 and as fluentd's in_forward
// takes it: Message, Forward, PackedForward and CompressedPackedForward (gzip,
// zstd), JSON on the same port, heartbeats of all kinds, the handshake, acks.
//
// A Server hands each whole, checked message to a Handler and acks it when the
// handler says that it is durable. The package knows nothing of disks, and a
// Handler need know nothing of sockets.
//
// What callers may rely on:
//
//   - A message is handed over whole or not at all: its end was found and every
//     event in it checked, also inside packed and compressed payloads.
//   - Acks echo the chunk id byte for byte, in the order of the messages of
//     their connection, and only after Done(nil).
//   - A message that fails closes its own connection, after the acks of the
//     messages before it; it is counted by reason and logged with the sender.
//   - Memory stays within Config.Memory, whatever senders claim or send: lengths
//     in headers reserve nothing. One message alone may exceed the budget if it
//     is within MessageSizeLimit and nothing else is held.
//   - A connection that waits for its next message holds no read buffer. It has no
//     goroutine either if its last messages were small; one of TLS has, and all have
//     with IdleTimeout, MaxConnectionAge or SourceHostnameKey.
//   - A Handler that blocks holds up its own connection, and all others that have
//     nothing under way for at most half a second.
package forward
