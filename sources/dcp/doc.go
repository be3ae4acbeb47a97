// Package dcp is the source that streams vbuckets over DCP, from clusters of
// Couchbase Server 3.0 and later.
//
// # Streams, groups and legs
//
// The wanted vbuckets are split into streams, each of vbuckets that were active
// on one node, as many as the user asked for (Threads) or a few. A stream has one
// DCP connection at a time and on it the streams of a group of vbuckets
// (Options.OpenVBuckets). Every STREAM_REQ has an end, the high seqno that the
// node told on a connection of the same kind: streams without an end have crashed
// or parked real servers. What a vbucket is streamed up to one such end is a leg;
// a vbucket that was written to meanwhile gets another one, and so does, with
// Options.Follow, every vbucket that changed since.
//
// # The proof of the end (invariant 4)
//
// A vbucket is complete only when STREAM_END came with status 0, the end of the
// leg was reached (by a mutation, SEQNO_ADVANCED or the snapshot's bounds), and
// the node's own count of live items confirms it:
//
//   - all came in one snapshot, in which a key is there once, and they are as many
//     as the node counted at the moment of the end; or
//   - the vbucket has not changed since the end, and as many came as the node
//     counts (at least as many, where several snapshots may repeat a key); or
//   - a snapshot came whole that goes beyond the end: what the vbucket held then has
//     all come. A vbucket that is written to faster than its legs are is chased for
//     such a one, with a leg that ends far ahead and is closed when it has come.
//
// A key that is written again between the asking for the end and the reading lies
// behind the end and does not come in that leg; hence no bounds of counts prove
// anything while a vbucket changes.
//
// Where the node's count is of something else (one collection was asked for, a
// collection was dropped and is not purged yet) the seqnos decide. What is not
// proven is streamed again from the start, and then a named error.
//
// # Going on
//
// Every batch ends with a mark of each vbucket in it: seqno, snapshot, failover
// log and counts. A stream that breaks goes on there, on whichever node the
// vbucket is active by then; so does a later run that is given the marks. Where
// that node has another history (rollback), the stream goes back to where the two
// part, says so in the log, and streams the new branch from there whole.
//
// # Flow control
//
// The node may have Options.BufferSize bytes under way that are not acknowledged.
// Those of a batch are acknowledged when the engine says that it is settled
// (Acknowledge), so a slow destination slows the node down and nothing piles up
// (invariant 7). Acknowledgements are gathered: one is sent for a quarter of the
// window, or 10 ms after the first bytes that wait for it. While bytes are unacknowledged the node's silence is not held
// against it. Who drives a stream without the engine must call Acknowledge with
// each batch's marks, or the node stops when the buffer size is used up.
//
// # Items
//
// CAS, revision, flags, expiry and datatype are the source's, values stay as they
// are stored: snappy (unless the destination does not take it, or Options.Uncompress),
// extended attributes in front (unless Options.Xattrs is off), also in deletions. A
// deletion's Expiry is its time, where the server tells it (5.5 and later). Items of named collections carry the collection's names.
// Prepared durable writes are not asked for: what is committed comes as a plain
// item. Items alias the batch's arena, into which packets are read straight from
// the connection.
package dcp
