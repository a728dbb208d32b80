#!/bin/sh
# Installs the real clients that the tests drive the server with, where they are missing and apt-get may be used.
set -eu

missing=
need() { # command, package
  command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need curl curl
need nghttp nghttp2-client
need node nodejs
need npm npm
need redis-server redis-server
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
  echo "tools: no apt-get here; tests that need one of$missing will be skipped"
  exit 0
fi
as_root=
if [ "$(id -u)" != 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "tools: neither root nor sudo; tests that need one of$missing will be skipped"
    exit 0
  fi
  as_root="sudo -n"
fi
echo "tools: installing$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
