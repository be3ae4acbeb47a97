// Package interop has no code but tests: what this project writes must be readable
// by clients that others wrote, and what it reads must be what they read. The
// clients are gocbcore, gomemcached and the Couchbase Node.js SDK, which brings a
// client in C++.
package interop
