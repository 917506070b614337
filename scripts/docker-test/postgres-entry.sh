#!/bin/bash
# What the official image's entry script promises, as far as deployments use it: POSTGRES_PASSWORD, POSTGRES_USER,
# POSTGRES_DB (each also as NAME_FILE), POSTGRES_INITDB_ARGS, and /docker-entrypoint-initdb.d at the first start.
set -euo pipefail

value() { # value NAME DEFAULT: from NAME, or from the file that NAME_FILE names
    local file=${1}_FILE
    if [ -n "${!file:-}" ]; then cat "${!file}"; else echo "${!1:-$2}"; fi
}

if [ "$(id -u)" = 0 ]; then
    # Files with secrets may be readable by root only: read them before becoming somebody else.
    POSTGRES_PASSWORD=$(value POSTGRES_PASSWORD "")
    POSTGRES_USER=$(value POSTGRES_USER postgres)
    POSTGRES_DB=$(value POSTGRES_DB "$POSTGRES_USER")
    unset POSTGRES_PASSWORD_FILE POSTGRES_USER_FILE POSTGRES_DB_FILE
    export POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB
    install -d -o postgres -g postgres -m 700 "$PGDATA"
    install -d -o postgres -g postgres -m 775 /var/run/postgresql
    exec gosu postgres "$0" "$@"
fi

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    [ -n "$POSTGRES_PASSWORD" ] || { echo "Error: superuser password is not specified: POSTGRES_PASSWORD" >&2; exit 1; }
    # shellcheck disable=SC2086 # a list of arguments
    initdb --username="$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") ${POSTGRES_INITDB_ARGS:-}
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
    [ "$POSTGRES_DB" = postgres ] || createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sh) if [ -x "$file" ]; then "$file"; else . "$file"; fi ;;
        *.sql) psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --file "$file" ;;
        esac
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@" -c listen_addresses='*'
