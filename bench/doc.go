// Package bench holds whole-transfer tests and benchmarks: every part real or
// over real sockets, counted at the destination.
package bench
