"""A live node on loopback: the binary under test, free ports, a scratch data directory."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request

from .checks import Failed
from .commands import REPO, free_port, poll, run


class Node:
    """Use `live_node()`."""

    def __init__(self, scratch, extra, name="test", port=None):
        self.port = port or free_port()
        self.metrics_port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.metrics = f"http://127.0.0.1:{self.metrics_port}"
        self.log_path = scratch / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [
                    binary("rushkv"), f"-id={name}", "-addr=127.0.0.1", f"-port={self.port}", f"-data={scratch / 'data'}",
                    "--set", f"metrics.addr=127.0.0.1:{self.metrics_port}", *extra,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=scratch, start_new_session=True,
            )

    def log(self):
        return self.log_path.read_text(errors="replace")[-4000:]

    def get(self, path):
        """GETs from the HTTP endpoint: status and body; status 0 while nobody answers."""
        try:
            with urllib.request.urlopen(self.metrics + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def cli_argv(self, *words):
        return [binary("rushkv-cli"), "--server", self.address, *words]

    def cli(self, *words, **options):
        return run(self.cli_argv(*words), **options)

    def _ready(self):
        if self.process.poll() is not None:
            raise Failed(f"the node ended with {self.process.returncode}:\n{self.log()}")
        return self.get("/readyz")[0] == 200

    def await_ready(self):
        try:
            poll("the node is ready", self._ready, 60)
        except Failed as error:
            raise Failed(f"{error}\n{self.log()}") from None

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
                raise Failed(f"the node did not stop within 60 s of SIGTERM:\n{self.log()}") from None


def binary(name):
    """A binary under test: in $RUSHKV_BIN, or where `make build` puts it."""
    path = pathlib.Path(os.environ.get("RUSHKV_BIN", REPO)).resolve() / name
    if not path.exists():
        raise Failed(f"{path} is not there: run make build")
    return path


@contextlib.contextmanager
def live_node(*extra, name="test"):
    """A node that serves; stopped, and its data removed, at the end."""
    with live_cluster(1, *extra, name=name) as (node,):
        yield node


@contextlib.contextmanager
def live_cluster(count, *extra, name="test"):
    """So many nodes of one cluster, all of which serve; stopped, and their data removed, at the end. Several are
    called node1, node2, ..., a single one `name`."""
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="rushkv-node-", dir="/var/tmp"))
    nodes = []
    try:
        ports = [free_port() for _ in range(count)]
        if count > 1:
            extra = ("--set", "peers=" + ",".join(f"127.0.0.1:{port}" for port in ports), *extra)
        for number, port in enumerate(ports, 1):
            (scratch / str(number)).mkdir()
            nodes.append(Node(scratch / str(number), extra, f"node{number}" if count > 1 else name, port))
        for node in nodes:
            node.await_ready()
        yield nodes
    finally:
        # All of them, whatever becomes of one.
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, scratch)
            for node in nodes:
                stack.callback(node.stop)
