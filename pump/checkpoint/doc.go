// Package checkpoint keeps the progress of a copy in a folder, so that a run that
// was stopped, cut or killed at any moment can be gone on with.
//
// The folder holds the file "checkpoint" and, while a run uses it, the locked file
// "lock". The checkpoint is replaced as a whole: written beside, synced, renamed,
// and the folder synced, so that it is either the old or the new one (invariant 3).
// It begins with a line that names its format, its version, a checksum and its
// length; a file that does not agree with it is refused and never guessed at.
//
// What is saved is the contiguous settled prefix of each stream (invariant 2), as
// the engine reports it. Positions in vbuckets are kept by vbucket, since a later
// run may divide the vbuckets into other streams; all others by stream.
//
// A checkpoint belongs to one copy: from this source to this destination with these
// options. Open refuses it for another one. It holds no secret (invariant 9).
package checkpoint
