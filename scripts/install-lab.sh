#!/bin/sh
# Installs what the lab (make e2e, make lab) needs and builds its pages. Says what it does and why; does nothing, in a
# blink, when all is there. As an ordinary user it asks for sudo.
#
#   scripts/install-lab.sh          everything
#   scripts/install-lab.sh pages    only the pages: npm packages and their bundle
set -eu
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1; }

missing=""
why=""
extra=""
need() { # need PACKAGE REASON: wants a Debian package
    missing="$missing $1"
    why="$why
  $1: $2"
}

install_packages() {
    have chromium || have chromium-browser || have google-chrome || need chromium "the browser that runs hydrogen and matrix-js-sdk"
    have baresip || need baresip-core "the phone"
    have sipp || need sip-tester "many calls at once"
    have sipsak || need sipsak "asks the bridge what it can do"
    have kamailio || [ -x /usr/sbin/kamailio ] || need kamailio "a registrar and proxy"
    [ -n "$(ls /usr/lib/*/kamailio/modules/tls.so 2>/dev/null)" ] || need kamailio-tls-modules "the same over TLS"
    have svmap || extra=sipvicious # a scanner, which must find nothing; not every Debian has it
    have espeak-ng || need espeak-ng "speech for microphones"
    have sox || need sox "converts speech to 8 and 48 kHz"
    have node || need nodejs "bundles the pages"
    have npm || need npm "fetches the Matrix clients"
    [ -n "$(ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || have initdb || need postgresql "a private database for Synapse and the bridge"
    have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null || need python3-venv "Synapse runs in a virtual environment"
    [ -n "$missing$extra" ] || return 0

    have apt-get || {
        [ -n "$missing" ] || return 0
        echo "The lab needs these Debian packages (or what they are called here); please install them:$why" >&2
        exit 1
    }
    sudo=""
    if [ "$(id -u)" != 0 ]; then
        sudo=sudo
        have sudo || [ -n "$missing" ] || return 0
        have sudo || { echo "Please run as root: apt-get install$missing  (because:$why)" >&2; exit 1; }
    fi
    echo "Installing for the lab with apt-get${sudo:+ (through sudo)}:$why${extra:+
  $extra: scans the bridge}"
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get update -qq
    for package in $extra; do
        if apt-cache show "$package" >/dev/null 2>&1; then missing="$missing $package"; fi
    done
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086 # a list of words
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# install_pages fetches and bundles only when the lock file or a page has changed since.
install_pages() {
    cd test/lab/pages
    lock=$(cat package.json package-lock.json .npmrc | sha256sum)
    sources=$(cat package-lock.json ./*.js ./*.mjs ./*.html | sha256sum)
    if [ "$(cat node_modules/.lock-stamp 2>/dev/null)" != "$lock" ]; then
        echo "Fetching the lab's Matrix clients with npm (hydrogen-view-sdk, matrix-js-sdk; about 100 MB, 10 s)"
        npm ci --no-progress --loglevel=error
        printf '%s\n' "$lock" >node_modules/.lock-stamp
    fi
    if [ "$(cat dist/.stamp 2>/dev/null)" != "$sources" ]; then
        echo "Bundling the lab's pages"
        npm run --silent --loglevel=error build
        printf '%s\n' "$sources" >dist/.stamp
    fi
    cd - >/dev/null
}

[ "${1:-all}" = pages ] || install_packages
install_pages
