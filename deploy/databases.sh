#!/bin/sh
# Run once by the PostgreSQL image (docker-entrypoint-initdb.d): a user with a database each for Synapse and the bridge.
# Synapse insists on the collation C, which POSTGRES_INITDB_ARGS in docker-compose.yml makes the default.
set -eu
for name in synapse trunkline; do
    psql --set ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres \
        --set name="$name" --set password="$(cat "/secrets/$name")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
SQL
done
