#!/usr/bin/env bash
# Runs the tests under the race detector. That makes them about ten times as slow
# and looks at goroutines only: so property tests draw fewer cases, and the tests
# of reliability break and kill less often. `make test` runs both in full.
set -eu
cd "$(dirname "$0")/.."
# Each process would wait a second at its end; cli alone starts hundreds.
export GORACE="atexit_sleep_ms=20 ${GORACE:-}"
list=$(go list -f '{{.ImportPath}} {{.TestImports}} {{.XTestImports}}' ./... | grep -v '^[^ ]*/reliability ')
rapid=pgregory.net/rapid # a package without it does not know its flag
set -x
# Allocations are counted in `make test`: the detector makes some of its own.
go test -race -skip '^TestNoAllocationPerItem$' $(grep -v "$rapid" <<<"$list" | cut -d' ' -f1)
go test -race $(grep "$rapid" <<<"$list" | cut -d' ' -f1) -rapid.checks=20
go test -race ./reliability -rapid.checks=20 -kills 30 -share 12
