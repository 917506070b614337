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
# The bridge can be built without its voice, and does without recorded ones: they are no reason to fail.
wanted=""
have espeak-ng || wanted=espeak-ng
case $what in
test)
    [ -z "$wanted" ] || need espeak-ng "speaks the prompts that are built in"
    wanted=""
    # CI checks that all languages which the image has can say everything; elsewhere one will do.
    for language in en ${CI:+es fr it ru}; do
        [ -n "$(ls -d "/usr/share/asterisk/sounds/$language"_* 2>/dev/null)" ] || wanted="$wanted asterisk-core-sounds-$language-wav"
    done
    [ -n "$(ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || have initdb || need postgresql "store tests run against a private cluster"
    ;;
demo)
    [ -n "${OFFLINE:-}" ] || { have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null; } || need python3-venv "Synapse, the real homeserver, runs in a virtual environment"
    ;;
esac
if [ -z "$missing" ]; then
    [ -n "$wanted" ] || exit 0
    have apt-get && { [ "$(id -u)" = 0 ] || { have sudo && sudo -n true 2>/dev/null; }; } || exit 0 # make-sounds.sh says what is missing
fi
have apt-get || { echo "Please install (Debian's names):$why" >&2; exit 1; }
sudo=""
if [ "$(id -u)" != 0 ]; then
    sudo=sudo
    have sudo || { echo "Please run as root: apt-get install$missing  (because:$why)" >&2; exit 1; }
fi
install() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
if [ -n "$missing" ]; then
    echo "Installing with apt-get${sudo:+ (through sudo)}:$why"
    $sudo apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    install $missing
fi
if [ -n "$wanted" ]; then
    echo "Installing with apt-get${sudo:+ (through sudo)}, for prompts:" $wanted
    # shellcheck disable=SC2086 # a list of words
    { [ -n "$missing" ] || $sudo apt-get update -qq; } && install $wanted || echo "$wanted can't be installed; going on without." >&2
fi
