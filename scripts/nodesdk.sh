#!/usr/bin/env bash
# Installs the Couchbase Node.js SDK, which tests use as an independent client.
set -eu
cd "$(dirname "$0")/.."
dir=.cache/nodesdk
[ -d "$dir/node_modules/couchbase" ] && exit 0
mkdir -p "$dir"
echo '{"name":"nodesdk","private":true}' > "$dir/package.json"
npm install --prefix "$dir" --no-audit --no-fund --loglevel=error couchbase@4.7.1
