// Package buffer keeps log messages on disk until every output has delivered
// them.
//
// Guarantees:
//
//   - Waiter.Done(nil) comes only after the entry is on stable storage:
//     fdatasync(2) has returned (with Durability Fsync).
//   - An entry is stored whole or not at all; a crash or power cut at any point
//     loses no entry that was reported durable.
//   - An entry whose tag and chunk id were reported durable, within the newest
//     DedupeWindow of them and DedupeAge, is ErrDuplicate and not stored again,
//     also after a restart and when the first one is delivered. A full
//     disk does not end that: room for an id is taken before it is acked. Only a log
//     of ids that cannot be written (EIO) and a crash before it can be again, or an
//     end while the disk is full, make it forget those of a chunk.
//   - A commit never rewrites a block that holds earlier data of its chunk: it begins on a
//     multiple of BlockSize and is padded to one.
//   - A cursor's position and its output's state are saved as one.
//   - Every entry carries checksums. What a damaged chunk still holds is
//     delivered, the events lost are counted, the file is kept as .damaged.
//
// Limits: TotalLimit undelivered bytes, with the action of Options.Overflow
// beyond it; 4 MiB gathered for the next commit, then Append waits; an entry of
// up to 4 GiB. Descriptors: one for writing and one for each cursor, however
// much data waits. Memory: 16 MiB of the newest commits; for each cursor a batch,
// and a second one while it is behind.
//
// Assumptions: the file system keeps what fdatasync has acknowledged; a write
// changes no other blocks than its own; one process uses a directory (a lock
// sees to it).
package buffer
