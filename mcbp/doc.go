// Package mcbp is the memcached binary protocol as Couchbase servers speak it:
// framing, TAP, DCP, and the *_WITH_META family. It has no sockets of its own.
//
// Decoders alias the caller's buffer and encoders append to the caller's
// buffer, so that a steady stream costs no allocation per item. Opcode and
// status names come from gomemcached; everything on the hot path is ours.
//
// Sources: shared design notes "wire.md" (measured on real servers); every
// decoder is checked against recorded exchanges in testdata/captures.
package mcbp
