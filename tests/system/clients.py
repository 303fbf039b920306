#!/usr/bin/env python3
"""Stock gRPC clients of Python and Node.js against a live node and a cluster of three: the original's
calls, rushkv.v1, the descriptor set of `make proto`; Join and Leave of nodes started separately; and the demo
script.

The checks themselves are tests/python/*.py, run in an environment made from requirements.txt, and
tests/node/*.js, run with the packages of package-lock.json.
"""

import hashlib
import os
import pathlib
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import REPO, Failed, binary, check, finish, live_cluster, live_node, note, run

PYTHON = REPO / "tests/python"
NODE = REPO / "tests/node"
CACHE = pathlib.Path(os.environ.get("CACHE") or pathlib.Path.home() / ".cache/rushkv")


def kept(kind, *wanted):
    """A directory for what is installed once: another one for each content of `wanted`."""
    digest = hashlib.sha256()
    for one in wanted:
        digest.update(one)
    return CACHE / f"{kind}-{digest.hexdigest()[:8]}"


def python_environment():
    """The interpreter of a virtual environment with the required packages; made once."""
    base = kept("python", (PYTHON / "requirements.txt").read_bytes(), sys.version.encode())
    if not (base / "complete").exists():
        run([sys.executable, "-m", "venv", "--clear", base], timeout=120)
        run([base / "bin/python", "-m", "pip", "install", "--quiet", "-r", PYTHON / "requirements.txt"], timeout=400)
        (base / "complete").touch()
    return base / "bin/python"


def node_modules():
    """The folder of the packages that the lock file names; made once."""
    lock = (NODE / "package-lock.json").read_bytes()
    base = kept("node", lock, run(["node", "--version"]).stdout.encode())
    if not (base / "complete").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE / name, base)
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=base, timeout=400)
        (base / "complete").touch()
    return base / "node_modules"


def ask(argv, addresses, **options):
    """Runs one client's checks against these servers."""
    done = run([*argv, *addresses], timeout=180, ok=None, **options)
    if done.returncode != 0:
        raise Failed(done.stdout + done.stderr)
    note(done.stdout.strip().splitlines()[-1])


def main():
    with check("the Python environment is there", needed=True):
        python = python_environment()
    with check("the packages of Node.js are there", needed=True):
        modules = node_modules()
    for engine in ("fjall", "sled"):
        settings = ("--set", f"storage.engine={engine}")
        for count, cluster in ((1, live_cluster(1, *settings)), (3, live_cluster(3, *settings))):
            with cluster as nodes:
                addresses = [node.address for node in nodes]
                for script in sorted(PYTHON.glob("check_*.py")):
                    with check(f"Python, {script.name}, {count} nodes, engine {engine}"):
                        ask([python, "-B", script], addresses, cwd=PYTHON)
                for script in sorted(NODE.glob("check_*.js")):
                    with check(f"Node.js, {script.name}, {count} nodes, engine {engine}"):
                        ask(["node", script], addresses, cwd=NODE, env={"NODE_PATH": str(modules)})
        # Separately started, as the original's nodes were.
        for client, argv, options in (
            ("Python", [python, "-B", PYTHON / "join_original.py"], {"cwd": PYTHON}),
            ("Node.js", ["node", NODE / "join_original.js"], {"cwd": NODE, "env": {"NODE_PATH": str(modules)}}),
        ):
            with live_node(*settings, name="one") as one, live_node(*settings, name="another") as another:
                with check(f"{client}, the original's Join and Leave make one cluster of two, and end it, engine {engine}"):
                    ask(argv, [one.address, another.address], **options)
    with live_node() as node, tempfile.TemporaryDirectory(prefix="rushkv-protoset-") as scratch:
        with check("a client that knows only the descriptor set of make proto reads and writes"):
            descriptors = pathlib.Path(scratch) / "rushkv.pb"
            run(["sh", "-c", '"$0" --generate protoset > "$1"', binary("rushkv"), descriptors])
            run([python, "-B", REPO / "tests/system/protoset.py", descriptors, node.address], timeout=60)
        with check("examples/cli_demo.sh runs to its end and leaves no keys"):
            env = {"RUSHKV_CLI": str(binary("rushkv-cli"))}
            note(f"{len(run([REPO / 'examples/cli_demo.sh', node.address], env=env, timeout=120).stdout)} characters")
            left = node.cli("scan", "--keys-only", "-o", "plain").stdout
            if left.strip():
                raise Failed(left)


if __name__ == "__main__":
    finish(main)
