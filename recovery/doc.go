// Package recovery gets back the vbuckets that a Couchbase cluster lost with a
// node of which there was no replica, from another cluster that still holds
// them (its XDCR partner, as a rule).
//
// Run drives the specification's main control function in six phases: Plan
// reads both clusters and changes nothing; Prepare puts the new node in the old
// one's place and makes the missing vbuckets replicas at their owners; Transfer
// pumps them from a TAP dump into TAP pushes; Verify compares item counts;
// Activate makes the verified vbuckets active; Publish makes the cluster's map
// name them and reads it back.
//
// A vbucket goes on to the next phase alone: one that fails stays what it was,
// is named in the Result, and does not hold up the others. Running again does
// only what is still missing.
//
// Where the destination's REST interface differs, a Dialect hides it. See
// docs/recovery.md for the operator's view.
package recovery
