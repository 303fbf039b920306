#!/usr/bin/env python3
"""Stock gRPC clients of Python against a live node: the original's calls, rushkv.v1, the descriptor
set of `make proto`; and the demo script.

The checks themselves are tests/python/*.py, run in an environment made from requirements.txt.
"""

import hashlib
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import REPO, Failed, binary, check, finish, live_node, note, run

HERE = REPO / "tests/python"


def environment():
    """The interpreter of a virtual environment with the required packages; made once."""
    wanted = (HERE / "requirements.txt").read_bytes()
    cache = pathlib.Path(os.environ.get("CACHE") or pathlib.Path.home() / ".cache/rushkv")
    base = cache / f"python-{hashlib.sha256(wanted + sys.version.encode()).hexdigest()[:8]}"
    if not (base / "complete").exists():
        run([sys.executable, "-m", "venv", "--clear", base], timeout=120)
        run([base / "bin/python", "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"], timeout=400)
        (base / "complete").touch()
    return base / "bin/python"


def main():
    with check("the Python environment is there", needed=True):
        python = environment()
    for engine in ("fjall", "sled"):
        with live_node("--set", f"storage.engine={engine}") as node:
            for script in sorted(HERE.glob("check_*.py")):
                with check(f"{script.name}, engine {engine}"):
                    done = run([python, "-B", script, node.address], timeout=180, cwd=HERE, ok=None)
                    if done.returncode != 0:
                        raise Failed(done.stdout + done.stderr)
                    note(done.stdout.strip().splitlines()[-1])
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


finish(main)
