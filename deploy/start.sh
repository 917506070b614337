#!/bin/sh
# Starts the bridge in its container. What is missing in /data at the first starts is written there, and the next step
# is told. With arguments it is the bridge's own command line:
#
#   docker run --rm -v /var/lib/trunkline:/data trunkline -doctor
set -eu
umask 077

[ $# -eq 0 ] || exec bridge "$@"

stop() { # nothing can run yet: exit code 2, as for any other fault of the configuration
    echo "$*" >&2
    exit 2
}

if [ ! -e /data/config.yaml ]; then
    [ -w /data ] || stop "/data must belong to user 1337: chown -R 1337:1337 the folder or volume that is mounted there."
    bridge -e >/data/config.yaml
    stop "Wrote /data/config.yaml, the example with every option explained. Set at least homeserver.domain, sip.trunks" \
        "and routes in it, and behind NAT the advertise options; then start the container again."
fi
# Succeeds only where there is no registration yet; every other fault is told by the bridge itself.
if said=$(bridge -c /data/config.yaml -g 2>/dev/null); then
    stop "$said Then start the container again."
fi
# -keep: the bridge is started again at once when it dies, and its sockets are kept meanwhile.
exec bridge -keep -c /data/config.yaml
