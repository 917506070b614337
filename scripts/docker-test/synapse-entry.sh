#!/bin/sh
# What the official image's start.py does in its mode "run": /data/homeserver.yaml must exist; the server runs as user
# UID:GID, 991 unless told otherwise, and nothing is chowned.
set -eu
config=${SYNAPSE_CONFIG_PATH:-/data/homeserver.yaml}
[ -e "$config" ] || { echo "Config file '$config' does not exist." >&2; exit 2; }
if [ "$(id -u)" = 0 ]; then
    exec gosu "${UID:-991}:${GID:-991}" python -m synapse.app.homeserver --config-path "$config"
fi
exec python -m synapse.app.homeserver --config-path "$config"
