// Package tap is the source that dumps vbuckets over TAP, from clusters of
// Couchbase Server 1.8 to 4.6: the specification's TAPDumpSource.
//
// # Streams, groups and dumps
//
// The wanted vbuckets are split into streams, each of vbuckets that were active
// on one node, as many as the user asked for (Threads) or a few. A stream dumps
// its vbuckets a group at a time: one TAP connection and one connection for
// statistics, both closed before the next group. Every vbucket is named in
// TAP_CONNECT, so that the end of each can be proven, and a cut costs the
// vbuckets of one group at most. Where the vbuckets of a stream no longer live
// on one node (failover, rebalance), it dumps them node by node.
//
// # The proof of the end (invariant 4)
//
// A dump ends with a close, and so does the dump of a server that is killed. A
// vbucket counts as complete only when all of this holds:
//
//   - the node has said that the vbucket is active, before and after the dump,
//     and before the dump that nothing waits for the disk (3.0 and 4.0 dump from disk);
//   - OPAQUE 8 (close backfill) came for it;
//   - as many live items came as the node counts after the dump, or as many as
//     lie between that and its count before, less the expired items that the
//     dump itself reaped.
//
// A vbucket of which nothing was sent must count 0 items before and after, and
// the server must have closed between two packets. What is not proven is dumped
// again, alone: Read returns a retryable error, the engine opens the stream
// again, and the stream remembers what it has proven. In about one of 170
// complete dumps real servers leave OPAQUE 8 out, by chance; the second dump then
// has it. With the option end-proof=count the counts alone decide in that case, provided
// that the last message asked for an acknowledgement, got it, and the close came
// between two packets; a few deletions could be missing then.
//
// The mark of a complete vbucket (Complete, Items = its live items) comes in the
// batch behind its last item. That batch may hold marks only.
//
// # Items
//
// CAS, revision, flags (put right by each message's own flag), expiry and
// datatype are the source's. Items alias the batch's arena, into which packets
// are read straight from the connection. A deletion carries no value: 3.0 and
// 4.0 send the value of an item that has expired but was not yet reaped along
// with its TAP_DELETE, 2.5.1 does not, and the server itself forgets it in the
// same moment.
package tap
