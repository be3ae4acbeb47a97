#!/usr/bin/env bash
# Installs what the tests need beside Go: Debian's memcached, the real server
# that sinks are tested against, jq, which our jsonl is to be usable with, and
# node with npm for the Node.js SDK (see nodesdk.sh). What is there is left alone.
set -eu
cd "$(dirname "$0")/.."

install() { # install COMMAND PACKAGE…: the packages, unless the command is there
  command -v "$1" >/dev/null 2>&1 && return
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "the tests need $1, and apt-get is not here: install it by hand" >&2
    exit 1
  fi
  name=$1
  shift
  sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo"
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  command -v "$name" >/dev/null
}

install memcached memcached
install jq jq
install npm nodejs npm
scripts/nodesdk.sh
