#!/bin/bash
# Runs every fuzz target for the given time, one after the other.
set -euo pipefail
time=${1:-10s}
go list ./bridge/... ./db/... ./matrixcall/... ./sip/... ./transcode/... | while read -r package; do
    for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
        echo "== $package $target"
        go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package"
    done
done
