// Package simcluster is an embedded Couchbase-like cluster over real loopback
// sockets: KV, TAP, DCP, statistics and REST of servers 2.5.1 to 7.6 with their
// quirks, users, TLS and collections, failover, the recovery interface of real
// servers and the proposal's, and scripted faults. It is for demonstrations,
// tests and plugin authors.
//
// What it plays was measured on real servers (design notes "wire.md" and
// "rest.md", testdata/captures); docs/simulator.md lists where it differs.
package simcluster
