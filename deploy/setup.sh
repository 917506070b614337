#!/bin/sh
# The first step of `docker compose up`: makes secrets, once, and writes the configurations of all services from the
# templates in this folder, each time. So .env and the templates are what you edit; then: docker compose up -d --force-recreate
#
#   /secrets   passwords of the database users      -> postgres
#   /synapse   homeserver.yaml, keys, registration  -> synapse (user 991 of its image)
#   /bridge    config.yaml, registration.yaml       -> bridge  (user 1337)
set -eu
umask 077

: "${SERVER_NAME:?}" "${PUBLIC_IP:?}" "${SIP_PORT:?}" "${SYNAPSE_PORT:?}" "${PHONES:?}"
readonly synapse_user=991 bridge_user=1337

secret() { # secret FILE: a random text, unless the file is there already; via a second name, so that none is ever half written
    [ -s "$1" ] && return
    od -An -v -N24 -tx1 /dev/urandom | tr -d ' \n' >"$1.new"
    mv "$1.new" "$1"
}

render() { # render TEMPLATE FILE
    # @NAME@ in a template becomes the variable; ~ cannot be in any of them.
    sed -e "s~@SERVER_NAME@~$SERVER_NAME~g" -e "s~@PUBLIC_IP@~$PUBLIC_IP~g" -e "s~@SIP_PORT@~$SIP_PORT~g" \
        -e "s~@SYNAPSE_PORT@~$SYNAPSE_PORT~g" -e "s~@PHONES@~$PHONES~g" "$1" >"$2.new"
    mv "$2.new" "$2"
}

passfile() { # passfile USER FILE: libpq's password file
    printf '*:*:*:%s:%s\n' "$1" "$(cat "/secrets/$1")" >"$2"
}

if [ -e /synapse/homeserver.yaml ] && ! grep -qxF "server_name: \"$SERVER_NAME\"" /synapse/homeserver.yaml; then
    echo "SERVER_NAME is $SERVER_NAME now, but the first start made another homeserver: $(grep '^server_name:' /synapse/homeserver.yaml)." \
        "Change it back, or forget everything with: docker compose down --volumes" >&2
    exit 2
fi

for user in postgres synapse trunkline; do
    secret "/secrets/$user"
done
chmod 755 /secrets
chmod 444 /secrets/* # the database's own user reads them; nobody else mounts this volume

render /deploy/bridge.yaml /bridge/config.yaml
passfile trunkline /bridge/pgpass
if [ ! -e /bridge/registration.yaml ]; then
    bridge -c /bridge/config.yaml -g >/dev/null
    echo "Wrote a registration with new tokens."
fi

render /deploy/homeserver.yaml /synapse/homeserver.yaml
passfile synapse /synapse/pgpass
cp /bridge/registration.yaml /synapse/trunkline-registration.yaml
for name in registration_shared_secret macaroon_secret_key form_secret; do
    secret "/synapse/$name"
done
if [ ! -s /synapse/signing.key ]; then
    # As Synapse's --generate-keys writes it: algorithm, version, the seed in base64 without padding.
    echo "ed25519 a_trunk $(head -c 32 /dev/urandom | base64 | tr -d '=\n')" >/synapse/signing.key.new
    mv /synapse/signing.key.new /synapse/signing.key
fi

chown -R $bridge_user:$bridge_user /bridge
chown $synapse_user:$synapse_user /synapse /synapse/*
echo "Configured $SERVER_NAME; phones and browsers reach it at $PUBLIC_IP (SIP $SIP_PORT, Matrix http://$PUBLIC_IP:$SYNAPSE_PORT)."
