#!/bin/sh
# Speaks the built-in prompts with espeak-ng into bridge/sound/fallback, from where they are built into the bridge. Does
# nothing when they are up to date. Without espeak-ng it says so and the bridge is built without words: its prompts are
# then those of Asterisk's sound sets, or tones.
#
#   scripts/make-sounds.sh [-f]        -f: speak again, and fail without espeak-ng
set -eu
cd "$(dirname "$0")/.."
folder=bridge/sound/fallback
stamp=$folder/made-from
force=${1:-}

source=$(cat bridge/sound/make/*.go bridge/sound/wav.go bridge/sound/resample.go | cksum)
[ "$force" = -f ] || [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$source" ] || exit 0

if ! command -v espeak-ng >/dev/null 2>&1; then
    echo "espeak-ng is not installed: the bridge is built without spoken prompts (Debian: apt-get install espeak-ng)" >&2
    [ "$force" = -f ] && exit 1
    exit 0
fi
rm -rf "$folder"/?? "$stamp"
go run ./bridge/sound/make "$folder"
echo "$source" >"$stamp"
