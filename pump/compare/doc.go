// Package compare finds out whether a destination holds what a source has.
//
// Run reads both sides at the same time, each by the pump's own engine, so that
// broken streams are opened again and an end is proven, never assumed (invariant
// 4): a side that could not be read whole is an error, never "equal". A destination
// that cannot be read is asked for the source's keys instead (pump.Looker).
//
// What was read becomes records of a few dozen bytes, dealt out by the hash of
// their key to partitions. Partitions that do not fit into the memory granted go to
// temporary files (invariant 7). When both sides have come to their end, partition
// after partition is joined; of several records of one key the last one of each
// side counts.
//
// Keys that differ are looked at a second time, on both sides, before they are
// reported: what was only written meanwhile is no difference. The second reading
// also brings the source's whole item, which repairs the destination.
//
// Values are compared by a hash of 64 bits whose seed is new in each process: two
// values that differ pass for equal once in 2^64.
package compare
