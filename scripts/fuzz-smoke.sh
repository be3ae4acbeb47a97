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
    out=$(go test "./$dir" -run '^$' -fuzz "^$target\$" -fuzztime "$time" 2>&1) || { echo "$out" >&2; exit 1; }
  done
done
if [ "$found" = 0 ]; then
  echo "there is no fuzz target" >&2
  exit 1
fi
