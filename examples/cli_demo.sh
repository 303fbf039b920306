#!/bin/sh
# A tour of rushkv-cli against a running node. Start one first:
#
#   ./rushkv -id=node1 -addr=localhost -port=8080 -data=./data/node1
#
# Usage: examples/cli_demo.sh [HOST:PORT]
# Leaves nothing behind but what it found: its keys start with demo: and are removed.
set -eu

server=${1:-${RUSHKV_SERVER:-localhost:8080}}
cli=${RUSHKV_CLI:-}
if [ -z "$cli" ]; then
    beside=$(dirname "$0")/../rushkv-cli
    if [ -x ./rushkv-cli ]; then cli=./rushkv-cli
    elif [ -x "$beside" ]; then cli=$beside
    else cli=rushkv-cli; fi
fi
if ! command -v "$cli" >/dev/null; then
    echo "cli_demo.sh: there is no rushkv-cli: make build, or set RUSHKV_CLI" >&2
    exit 1
fi

step() {
    printf '\n== %s\n' "$1"
}

# Shows a command and runs it.
run() {
    printf '$ rushkv-cli %s\n' "$*"
    "$cli" -server="$server" "$@"
}

# Runs a command that must end with the given exit code.
expect() {
    want=$1
    shift
    code=0
    run "$@" || code=$?
    if [ "$code" -ne "$want" ]; then
        echo "exit code $code, $want expected" >&2
        exit 1
    fi
    echo "(exit code $code)"
}

step "Batch mode, as in the original"
run -batch -commands="put demo:user:1 {\"name\":\"Alice\",\"age\":30}"
run -batch -commands="get demo:user:1"
run -batch -commands="put demo:user:2 {\"name\":\"Bob; the builder\"}; get demo:user:2; exists demo:user:2"

step "The same as subcommands"
run put demo:greeting "hello, world"
run get demo:greeting
echo
printf 'from a pipe' | run put demo:piped -
run get demo:piped
echo

step "Preconditions: write only what nobody changed"
run put demo:once 1 --if-absent
expect 4 put demo:once 2 --if-absent
run put demo:once 2 --if-version 1

step "What is not there has an exit code of its own"
expect 3 get demo:nothing
expect 3 exists demo:nothing
expect 0 exists demo:once

step "Scans, for people and for programs"
run scan demo: -o table
run scan --prefix demo:user: --limit 1 -o json

step "The cluster"
run cluster -o table
run stats -o table

step "Cleaning up"
run -batch -commands="delete demo:user:1; del demo:user:2; del demo:greeting; del demo:piped; del demo:once"
