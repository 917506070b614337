#!/bin/sh
# Installs the Debian packages that a make target needs, and says which and why. Does nothing when all is there.
#
#   scripts/need.sh build|test|demo
set -eu
what=${1:?build, test or demo}

have() { command -v "$1" >/dev/null 2>&1; }

missing=""
why=""
need() { # need PACKAGE REASON
    missing="$missing $1"
    why="$why
  $1: $2"
}

have go || { echo "Please install Go 1.26 or newer (https://go.dev/dl/); everything else is installed by itself." >&2; exit 1; }
have gcc || need gcc "compiles the binding to libopus"
[ -e /usr/include/stdlib.h ] || need libc6-dev "headers for the C compiler"
have pkg-config || need pkg-config "finds libopus"
have pkg-config && pkg-config --exists opus || need libopus-dev "the Opus codec"
case $what in
test)
    have espeak-ng || need espeak-ng "speaks the prompts that are built in"
    [ -n "$(ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || have initdb || need postgresql "store tests run against a private cluster"
    ;;
demo)
    [ -n "${OFFLINE:-}" ] || { have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null; } || need python3-venv "Synapse, the real homeserver, runs in a virtual environment"
    ;;
esac
[ -n "$missing" ] || exit 0

have apt-get || { echo "Please install (Debian's names):$why" >&2; exit 1; }
sudo=""
if [ "$(id -u)" != 0 ]; then
    sudo=sudo
    have sudo || { echo "Please run as root: apt-get install$missing  (because:$why)" >&2; exit 1; }
fi
echo "Installing with apt-get${sudo:+ (through sudo)}:$why"
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
