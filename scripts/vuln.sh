#!/usr/bin/env bash
# Known vulnerabilities that the code of these packages can reach, of modules and of Go itself. A finding always fails. Where
# nothing could be checked it says so and fails, too; only CI goes on then, unless VULNDB names a database.
#
#   [VULNDB=https://vuln.go.dev | file:///folder] scripts/vuln.sh PACKAGE...
#
# A folder is a copy of the database: index/db.json, index/modules.json, ID/GO-*.json (https://go.dev/security/vuln/database).
set -euo pipefail
db=${VULNDB:-https://vuln.go.dev}
case $db in /*) db=file://$db ;; esac
bin=$(cd "$(dirname "$0")/.." && mkdir -p build && cd build && pwd)
scan() { timeout "$1" "$bin/govulncheck" -db "$db" "${@:2}"; }

# looks tells whether the database answers and is one: it must know a vulnerability that is known for long. No code is read for that.
looks() { [[ $(scan 20 -mode=query -format json golang.org/x/text@v0.3.6) == *'"id": "GO-2021-0113"'* ]]; }

unchecked() {
    printf '\n*** KNOWN VULNERABILITIES WERE NOT LOOKED FOR: %s\n*** Run "make vuln" where %s can be reached, or with VULNDB= and a copy of it.\n\n' "$1" "$db" >&2
    [ -n "${CI:-}" ] && [ -z "${VULNDB:-}" ] && exit 0
    exit 1
}

GOBIN=$bin timeout 300 go install golang.org/x/vuln/cmd/govulncheck@v1.9.0 || unchecked "govulncheck can't be built"
looks || unchecked "the database does not answer"
code=0
scan 600 "$@" || code=$?
case $code in
0) ;;
3) echo "A finding of Go's own packages is mended by a newer Go ($(go env GOVERSION) is in use), one of a module by a newer version in go.mod." >&2; exit 3 ;;
*) looks || unchecked "the database has gone away"; exit "$code" ;; # it is the code, then, that can't be read
esac
