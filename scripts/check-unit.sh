#!/bin/bash
# Lets systemd read a unit file and complain, where there is systemd. The program need not be installed.
set -u
unit=$1 name=$(basename "$1")
command -v systemd-analyze >/dev/null || exit 0
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "$unit" >"$dir/$name"
said=$(systemd-analyze verify --man=no "$dir/$name" 2>&1)
code=$?
about=$(grep -F "$name" <<<"$said") && echo "$about" >&2
# What it does not take, or passes over, is an error; the rest are hints, of which each systemd has its own.
if [ -n "$about" ] && { [ $code != 0 ] || grep -qi 'ignoring' <<<"$about"; }; then
  exit 1
fi
[ $code = 0 ] || echo "$unit was not checked: $said" >&2 # systemd-analyze does not run everywhere
