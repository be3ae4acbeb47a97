// Package recovery gets back the vbuckets that a Couchbase cluster lost with a
// node of which there was no replica, from another cluster that still holds
// them (its XDCR partner, as a rule).
//
// Run drives the specification's main control function in phases: Plan reads both
// clusters and changes nothing; Prepare makes the missing vbuckets replicas at
// their owners; Transfer pumps them there, over what both sides speak (Engine);
// Verify compares item counts, then what the owners hold with the source
// (Options.Verify); then they are made active and published.
//
// The last step is where the two REST interfaces of destinations differ. A
// Publisher (the specification's own) activates all verified vbuckets with one
// request, then publishes the map. A Committer (what servers from 2.1 on have)
// does both for one vbucket at a time, and deletes what is not committed when the
// recovery stops: vbuckets are verified and committed while others are still
// transferred, and the phases Verify and Commit are left with those that did not
// agree or could not be committed at once.
//
// A vbucket goes on to the next step alone: one that fails is named in the Result
// and does not hold up the others. Running again does only what is still missing.
// See docs/recovery.md for the operator's view.
package recovery
