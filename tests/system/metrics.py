#!/usr/bin/env python3
"""A real Prometheus scrapes a live node under load: every query of every dashboard must find data."""

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
from harness import REPO, Failed, check, finish, free_port, live_node, note, poll, run

# Scraped every second here, so that rates exist soon: four scrapes, as Grafana would choose.
RATE_INTERVAL = "8s"


class Prometheus:
    """A server of Debian's package on loopback, with the scrape example's job pointed at `target`."""

    def __init__(self, scratch, target):
        example = (REPO / "etc/prometheus.yml").read_text(encoding="utf-8")
        config, changes = re.subn(r"scrape_interval: 15s", "scrape_interval: 1s", example)
        config, more = re.subn(r'"127\.0\.0\.1:9180"', json.dumps(target), config)
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
        if self.process.poll() is not None:
            self.log.seek(0)
            raise Failed(f"prometheus ended:\n{self.log.read()[-3000:].decode()}")
        try:
            result = self.ask("query", query='up{job="rushkv"}')["result"]
        except OSError:
            return False
        return bool(result) and result[0]["value"][1] == "1"

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


def load(node, seconds):
    """Calls of every kind, successes and failures, for a while."""
    bench = subprocess.Popen(
        [*map(str, node.cli_argv("bench", "mixed", "-c", "8", "-d", f"{seconds}s", "--keys", "500"))],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            node.cli("put", "taken", "value", "--if-version", "999", ok=None)
            node.cli("get", "nothing-there", ok=None)
            node.cli("scan", "--limit", "10", ok=None)
            with socket.create_connection(("127.0.0.1", node.port), timeout=5) as garbage:
                garbage.sendall(b"GET / HTTP/1.0\r\n\r\n")  # refused: not HTTP/2
            time.sleep(0.5)
        bench.wait(60)
    finally:
        if bench.poll() is None:
            bench.terminate()
            bench.wait(20)
    if bench.returncode != 0:
        raise Failed(f"rushkv-cli bench ended with {bench.returncode}")


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


def main():
    with tempfile.TemporaryDirectory(prefix="rushkv-prometheus-") as scratch, live_node() as node:
        scratch = pathlib.Path(scratch)
        prometheus = Prometheus(scratch, f"127.0.0.1:{node.metrics_port}")
        try:
            with check("Prometheus scrapes the node, by the scrape example", needed=True):
                poll("a scrape", prometheus.scraped, 30, every=0.3)
            with check("load of every kind", needed=True):
                load(node, 14)
            queries(prometheus)
            with check("every metric is in docs/metrics.md"):
                body, names = exported(node)
                missing = sorted(names - documented())
                if missing:
                    raise Failed(f"not documented: {missing}")
                note(f"{len(names)} metrics, {len(body.splitlines())} lines")
            with check("promtool finds nothing to say about the metrics"):
                report = run(["promtool", "check", "metrics"], stdin=body, ok=None)
                complaints = [
                    line for line in (report.stdout + report.stderr).splitlines() if line.startswith("rushkv_")
                ]
                if complaints:
                    raise Failed("\n".join(complaints))
        finally:
            prometheus.stop()


if __name__ == "__main__":
    finish(main)
