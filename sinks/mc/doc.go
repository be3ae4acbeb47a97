// Package mc writes items into memcached servers: Sink into a single one,
// CBSink into the nodes of a Couchbase cluster by vbucket. sinks/tap builds on
// CBSink.
//
// All of them send quiet requests, read answers while they write, and put a
// fence behind each batch (package pipe); an item is Done only when the fence
// was answered and its own request was not (invariant 1). What an answer means
// for an item is decided in one place, status.go. Lost and silent connections
// settle everything unconfirmed with Retry; the next Write connects again.
package mc
