#!/usr/bin/env python3
"""run_cluster.sh as its user runs it: three nodes on 8080 to 8082 become one cluster, and Ctrl-C ends them."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import REPO, Failed, binary, check, finish, poll, run

PORTS = (8080, 8081, 8082)
TOOLS = ("rushkv", "rushkvctl", "rushkv-cli")


def is_taken(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cli(port, *words):
    return run([binary("rushkv-cli"), "--server", f"localhost:{port}", *words]).stdout


def main():
    with check("ports 8080 to 8082 are free", needed=True):
        if taken := [port for port in PORTS if is_taken(port)]:
            raise Failed(f"something listens on {taken}: stop it, the script has no other ports")
    with tempfile.TemporaryDirectory(prefix="rushkv-run-cluster-", dir="/var/tmp") as scratch:
        scratch = pathlib.Path(scratch)
        shutil.copy(REPO / "run_cluster.sh", scratch)
        # The tools are built already: the script's `make build` finds nothing to do.
        (scratch / "Makefile").write_text("build:\n", encoding="utf-8")
        for name in TOOLS:
            (scratch / name).symlink_to(binary(name))
        log = scratch / "log"
        with open(log, "wb") as out:
            script = subprocess.Popen(
                ["./run_cluster.sh"], cwd=scratch, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                # A shell can't trap what was ignored when it started, as SIGINT is in a background job.
                start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        try:
            with check("it says when it serves, and lists three nodes", needed=True):
                said = lambda: script.poll() is None and "the cluster serves" in log.read_text(errors="replace")
                try:
                    poll("it serves", said, 90)
                except Failed as error:
                    raise Failed(f"{error}\n{log.read_text(errors='replace')}") from None
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("node")]
                if len(lines) != 3:
                    raise Failed(log.read_text(errors="replace"))
            with check("what is put through 8080 is read through 8081 and 8082"):
                cli(8080, "put", "greeting", "hello")
                for port in PORTS[1:]:
                    if (seen := cli(port, "get", "greeting").rstrip("\n")) != "hello":
                        raise Failed(f"{port}: {seen!r}")
            with check("Ctrl-C ends it with 0, and nothing listens any more"):
                # As a terminal sends it: to the script's process group, of which the nodes are none.
                os.killpg(script.pid, signal.SIGINT)
                if (code := script.wait(60)) != 0:
                    raise Failed(f"exit code {code}\n{log.read_text(errors='replace')}")
                poll("the ports are free", lambda: not any(map(is_taken, PORTS)), 10)
        finally:
            if script.poll() is None:
                script.terminate()
                script.wait(60)


if __name__ == "__main__":
    finish(main)
