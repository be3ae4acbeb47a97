#!/usr/bin/env bash
# Runs every fuzz target of the module for a short time each. The tests of a folder
# are built once for all of its targets.
set -eu
cd "$(dirname "$0")/.."
time=${1:-5s}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
found=0
for dir in $(git ls-files '*_test.go' | xargs grep -lE '^func Fuzz' | xargs -n1 dirname | sort -u); do
  go test -c -fuzz=Fuzz -o "$work/fuzz.test" "./$dir"
  for target in $(cat "$dir"/*_test.go | grep -oE '^func Fuzz[A-Za-z0-9_]+' | sed 's/^func //'); do
    found=$((found + 1))
    echo "fuzz $dir $target"
    if ! out=$(cd "$dir" && "$work/fuzz.test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$time" -test.fuzzminimizetime 20x -test.fuzzcachedir "$work/cache" 2>&1); then
      # A run that is merely cut off by its time while an input is under way also
      # counts as failed; a finding always writes its input.
      case "$out" in
        *"Failing input written"* | *"panic:"*) echo "$out" >&2; exit 1 ;;
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
