#!/bin/sh
# Three nodes as one cluster, on localhost:8080 to 8082, their data in ./data/cluster. Ctrl-C stops them.
set -eu
cd "$(dirname "$0")"
make --no-print-directory build MODE="${MODE:-dev}"
mkdir -p data/cluster
peers=localhost:8080,localhost:8081,localhost:8082
pids=
for n in 1 2 3; do
    # In a session of its own, so that Ctrl-C reaches it once: through this script.
    RUSHKV__PEERS=$peers setsid ./rushkv -id="node$n" -addr=localhost -port=$((8079 + n)) -data="./data/cluster/node$n" \
        >>"data/cluster/node$n.log" 2>&1 &
    pids="$pids $!"
done
stop() {
    trap - INT TERM
    # Only the processes started here; each hands over what it leads and closes its data.
    kill $pids 2>/dev/null || true
    wait
    exit "$1"
}
trap 'stop 0' INT TERM
# Who answers need not be ours: something else may have had the port.
all_run() {
    for pid in $pids; do
        if ! kill -0 "$pid" 2>/dev/null; then
            echo "run_cluster.sh: a node has ended (is another one running?); the end of the logs:" >&2
            tail -n 3 data/cluster/node*.log >&2
            stop 1
        fi
    done
}
tries=0
while :; do
    is_healthy=no
    if ./rushkvctl -s localhost:8080 cluster health >/dev/null 2>&1; then is_healthy=yes; fi
    all_run
    if [ "$is_healthy" = yes ]; then
        # One that can't have its port ends a moment after its start.
        sleep 0.5
        all_run
        break
    fi
    tries=$((tries + 1))
    if [ "$tries" -ge 120 ]; then
        echo "run_cluster.sh: the cluster did not form within a minute; see data/cluster/*.log" >&2
        stop 1
    fi
    sleep 0.5
done
./rushkvctl -s localhost:8080 node list
echo "the cluster serves; logs in data/cluster; Ctrl-C stops it" >&2
wait
