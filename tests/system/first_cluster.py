#!/usr/bin/env python3
"""docs/operations/first-cluster.md, followed to the letter on three machines that boot a real systemd.

Blocks of `bash` run on the machines that the line "**On kv1, kv2**" before them names; a block of `text`
is what the command before it must have printed at its end.
"""

import concurrent.futures
import contextlib
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import REPO, Failed, Machine, Switch, check, finish, note, packages, root_copy

PAGE = REPO / "docs/operations/first-cluster.md"
MACHINES = {"kv1": "10.0.0.1", "kv2": "10.0.0.2", "kv3": "10.0.0.3"}
BLOCK_SECONDS = 120


def steps():
    """The page as (heading, machines, script, expected); expected is None where the page shows nothing."""
    found, heading, names, block = [], "", [], None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if block is not None:
            if line == "```":
                kind, lines = block
                text = "\n".join(lines)
                if kind == "bash":
                    found.append([heading, names, text, None])
                else:
                    found[-1][3] = text
                block = None
            else:
                block[1].append(line)
        elif line.startswith("## "):
            heading = line[3:]
        elif seen := re.fullmatch(r"\*\*On (.+)\*\*", line):
            names = seen[1].split(", ")
        elif line in ("```bash", "```text"):
            block = (line[3:], [])
    return found


@contextlib.contextmanager
def booted():
    """The three machines, on one network, with the package in /root."""
    package = packages("deb")
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(Switch())
        roots = {name: stack.enter_context(root_copy(name)) for name in MACHINES}
        machines = {name: Machine(root, name) for name, root in roots.items()}
        for name, machine in machines.items():
            stack.enter_context(machine)
            switch.plug(machine, f"{MACHINES[name]}/24")
            machine.copy_in(package, f"/root/{package.name}")
        yield machines


def follow(machine, script, expected):
    done = machine.run(["bash", "-euc", script], timeout=BLOCK_SECONDS, ok=None)
    if done.returncode != 0:
        log = machine.run(["journalctl", "--no-pager", "-o", "cat", "-u", "rushkv"], ok=None).stdout
        raise Failed(f"exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}\n{log[-3000:]}")
    if expected is not None and not done.stdout.rstrip().endswith(expected):
        raise Failed(f"it printed\n{done.stdout}\nand the page shows\n{expected}")
    return done.stdout


def main():
    with booted() as machines:
        with check("three machines boot, each with its address"):
            for name, machine in machines.items():
                seen = machine.run(["hostname", "-I"]).stdout.strip()
                if seen != MACHINES[name]:
                    raise Failed(f"{name} has the address {seen!r}")
        for heading, names, script, expected in steps():
            first = script.splitlines()[0]
            with check(f"{heading}: {', '.join(names)}: {first}", needed=True):
                with concurrent.futures.ThreadPoolExecutor() as pool:
                    for said in pool.map(lambda name: follow(machines[name], script, expected), names):
                        for line in said.splitlines()[-12:]:
                            note(line)


finish(main)
