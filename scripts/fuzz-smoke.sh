#!/usr/bin/env bash
# Runs every fuzz target of the module for a short time each.
set -eu
cd "$(dirname "$0")/.."
time=${1:-5s}
found=0
for file in $(git ls-files '*_test.go' | xargs grep -lE '^func Fuzz'); do
  dir=$(dirname "$file")
  for target in $(grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | sed 's/^func //'); do
    found=$((found + 1))
    echo "fuzz $dir $target"
    if ! out=$(go test "./$dir" -run '^$' -fuzz "^$target\$" -fuzztime "$time" 2>&1); then
      # A run that is merely cut off by its time while an input is under way also
      # counts as failed for go test; a finding always writes its input.
      case "$out" in
        *"Failing input written"* | *"panic:"* | *"build failed"*) echo "$out" >&2; exit 1 ;;
        *"context deadline exceeded"*) echo "  ended by its time" ;;
        *) echo "$out" >&2; exit 1 ;;
      esac
    fi
  done
done
if [ "$found" = 0 ]; then
  echo "there is no fuzz target" >&2
  exit 1
fi
