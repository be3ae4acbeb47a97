// Package simcluster is an embedded Couchbase-like cluster over real loopback
// sockets: KV, TAP, statistics and REST of servers 2.5.1, 3.0.3 and 4.0 with
// their quirks, failover, the recovery proposal's endpoints and scripted faults.
// It is for demonstrations, tests and plugin authors.
//
// What it plays was measured on real servers (design notes "wire.md" and
// "rest.md", testdata/captures); docs/simulator.md lists where it differs.
package simcluster
