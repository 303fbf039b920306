#!/usr/bin/env python3
"""A real Prometheus scrapes a live cluster under load: every query of every dashboard must find data."""

import itertools
import json
import math
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from dashboards import panels_of
from harness import REPO, Failed, check, finish, free_port, live_cluster, note, poll, run

NODES = 3

# Scraped every second here, so that rates exist soon: four scrapes, as Grafana would choose.
RATE_INTERVAL = "8s"


class Prometheus:
    """A server of Debian's package on loopback, with the scrape example's job pointed at `targets`."""

    def __init__(self, scratch, targets):
        example = (REPO / "etc/prometheus.yml").read_text(encoding="utf-8")
        config, changes = re.subn(r"scrape_interval: 15s", "scrape_interval: 1s", example)
        config, more = re.subn(r'"127\.0\.0\.1:9180"', json.dumps(targets)[1:-1], config)
        if (changes, more) != (1, 1):
            raise Failed("etc/prometheus.yml does not look as this test knows it")
        (scratch / "prometheus.yml").write_text(config, encoding="utf-8")
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = open(scratch / "log", "w+b")
        self.process = subprocess.Popen(
            [
                "prometheus", f"--config.file={scratch / 'prometheus.yml'}",
                f"--storage.tsdb.path={scratch / 'tsdb'}", f"--web.listen-address={self.url[7:]}",
            ],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
        )

    def ask(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise Failed(f"{path} {parameters}: {error.read().decode()}") from None

    def scraped(self):
        """Every node was, at the last try."""
        if self.process.poll() is not None:
            self.log.seek(0)
            raise Failed(f"prometheus ended:\n{self.log.read()[-3000:].decode()}")
        try:
            result = self.ask("query", query='up{job="rushkv"}')["result"]
        except OSError:
            return False
        return len(result) == NODES and all(sample["value"][1] == "1" for sample in result)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.log.close()


def substitute(text):
    for name, value in (
        ("__rate_interval", RATE_INTERVAL), ("__interval", "1s"), ("job", "rushkv"), ("instance", ".+"),
    ):
        text = text.replace("${" + name + "}", value).replace("$" + name, value)
    return text


def load(nodes, seconds):
    """Calls of every kind on every node, successes and failures, for a while."""
    benches = [
        subprocess.Popen(
            # A prefix each: it refuses to measure with keys that are there already.
            [*map(str, node.cli_argv(
                "bench", "mixed", "-c", "3", "-d", f"{seconds}s", "--keys", "500", "--prefix", f"bench-{node.port}/",
            ))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in nodes
    ]
    try:
        deadline = time.monotonic() + seconds
        keys = itertools.count()
        while time.monotonic() < deadline:
            for node in nodes:
                # A new client does not know who leads: two of three go to a node that passes them on.
                node.cli("put", f"key-{next(keys)}", "value", ok=None)
                node.cli("put", "taken", "value", "--if-version", "999", ok=None)
                node.cli("get", "nothing-there", ok=None)
                node.cli("scan", "--limit", "10", ok=None)
                with socket.create_connection(("127.0.0.1", node.port), timeout=5) as garbage:
                    garbage.sendall(b"GET / HTTP/1.0\r\n\r\n")  # refused: not HTTP/2
            time.sleep(0.2)
        reports = [bench.communicate(timeout=60)[0] for bench in benches]
    finally:
        for bench in benches:
            if bench.poll() is None:
                bench.terminate()
                bench.wait(20)
    for bench, report in zip(benches, reports):
        if bench.returncode != 0:
            raise Failed(f"rushkv-cli bench ended with {bench.returncode}\n{report[-2000:]}")


def finite(result):
    return [sample for sample in result if not math.isnan(float(sample["value"][1]))]


def queries(prometheus):
    for file in sorted((REPO / "packaging/dashboards").glob("*.json")):
        dashboard = json.loads(file.read_text(encoding="utf-8"))
        for variable in dashboard["templating"]["list"]:
            if variable["type"] != "query":
                continue
            with check(f"{file.name}: variable {variable['name']} has values"):
                query = variable["query"]["query"] if isinstance(variable["query"], dict) else variable["query"]
                metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
                values = prometheus.ask(f"label/{label}/values", **{"match[]": substitute(metric)})
                if not values:
                    raise Failed(query)
        for panel in panels_of(dashboard):
            with check(f"{file.name}: '{panel['title']}' shows data"):
                for target in panel["targets"]:
                    expression = substitute(target["expr"])
                    found = finite(prometheus.ask("query", query=expression)["result"])
                    if not found:
                        raise Failed(f"nothing for {expression}")


def documented():
    text = (REPO / "docs/metrics.md").read_text(encoding="utf-8")
    return {found for found in re.findall(r"^\| `(\w+)", text, re.M)}


def exported(node):
    status, body = node.get("/metrics")
    if status != 200:
        raise Failed(f"/metrics: {status}")
    return body, set(re.findall(r"^# TYPE (\S+)", body, re.M))


def value(node, series):
    """A series' value at one node now; labels as they are written."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", exported(node)[0], re.M)
    if not found:
        raise Failed(f"no {series}")
    return float(found[1])


def expect(node, **wanted):
    """Waits until these gauges have the wanted values, or do what is wanted of them."""
    def met(name, want):
        seen = value(node, f"rushkv_{name}")
        return want(seen) if callable(want) else seen == want

    for name, want in wanted.items():
        try:
            poll(name, lambda: met(name, want), 30)
        except Failed as error:
            raise Failed(f"{error}: it is {value(node, f'rushkv_{name}')}") from None


def load_shows(nodes):
    """The queries find series; here it is that they say something."""
    for node in nodes:
        for series in (
            'rushkv_routing_calls_total{served="local"}', 'rushkv_routing_calls_total{served="forwarded"}',
            "rushkv_raft_entries_sent_total", "rushkv_raft_entries_received_total",
        ):
            if value(node, series) == 0:
                raise Failed(f"{node.address}: {series} is 0")
        peers = re.findall(r'^rushkv_transport_connected\{class="append",peer="\d"} 1$', exported(node)[0], re.M)
        if len(peers) != NODES - 1:
            raise Failed(f"{node.address}: {peers}")
        expect(
            node, cluster_members=NODES, cluster_has_leader=1, cluster_epoch=value(nodes[0], "rushkv_cluster_epoch"),
            node_partitions_without_leader=0, raft_followers_silent=0, raft_replication_lag_entries=0,
        )


def nodes_go(nodes):
    first, second, third = nodes
    with check("a node that is away shows as silent and behind, and as a member"):
        third.stop()
        for number in range(64):
            first.cli("put", f"unseen-{number}", "value")
        for node in (first, second):
            expect(
                node, cluster_members=NODES, cluster_has_leader=1, node_partitions_without_leader=0,
                raft_followers_silent=lambda count: count > 0, raft_replication_lag_entries=lambda lag: lag > 0,
            )
    with check("one that is left alone knows no leaders"):
        second.process.kill()
        second.process.wait(10)
        held = value(first, "rushkv_node_replicas")
        expect(first, cluster_members=NODES, cluster_has_leader=0, node_partitions_without_leader=held)


def main():
    with tempfile.TemporaryDirectory(prefix="rushkv-prometheus-") as scratch, live_cluster(NODES) as nodes:
        scratch = pathlib.Path(scratch)
        prometheus = Prometheus(scratch, [f"127.0.0.1:{node.metrics_port}" for node in nodes])
        try:
            with check("Prometheus scrapes the nodes, by the scrape example", needed=True):
                poll("a scrape", prometheus.scraped, 30, every=0.3)
            with check("load of every kind", needed=True):
                load(nodes, 14)
            queries(prometheus)
            with check("the cluster's metrics say what went on"):
                load_shows(nodes)
            with check("the metrics are those of docs/metrics.md"):
                body, names = exported(nodes[0])
                if names != documented():
                    raise Failed(f"not both documented and there: {sorted(names ^ documented())}")
                note(f"{len(names)} metrics, {len(body.splitlines())} lines")
            with check("promtool finds nothing to say about the metrics"):
                report = run(["promtool", "check", "metrics"], stdin=body, ok=None)
                complaints = [
                    line for line in (report.stdout + report.stderr).splitlines() if line.startswith("rushkv_")
                ]
                if complaints:
                    raise Failed("\n".join(complaints))
            nodes_go(nodes)
        finally:
            prometheus.stop()


if __name__ == "__main__":
    finish(main)
