#!/usr/bin/env bash
# Formatting, vet, staticcheck, the layer rules of .depguard.yaml, tidy modules.
set -eu
cd "$(dirname "$0")/.."
bad=$(git ls-files '*.go' | xargs gofmt -l)
if [ -n "$bad" ]; then
  echo "not formatted:" >&2
  echo "$bad" >&2
  exit 1
fi
tool() { go tool -modfile=tools/go.mod "$@"; }
go vet ./...
tool staticcheck ./...
tool depguard ./...
go mod tidy -diff
(cd examples/sink-plugin && go mod tidy -diff)
(cd tools && go mod verify >/dev/null)
echo "lint: clean"
