#!/usr/bin/env bash
# Installs what the tests need beside Go: Debian's memcached, which is the real
# server that sinks are tested against, and an SDK (nodesdk.sh). It does nothing where that is there.
set -eu
"$(dirname "$0")/nodesdk.sh"
if command -v memcached >/dev/null 2>&1; then
  exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
  echo "memcached is needed for the tests and apt-get is not here: install memcached by hand" >&2
  exit 1
fi
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends memcached >/dev/null
command -v memcached >/dev/null
