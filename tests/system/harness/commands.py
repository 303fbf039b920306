"""Commands with a deadline, polling, ports, and where the packages under test are."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from .checks import Failed

REPO = pathlib.Path(__file__).resolve().parents[3]

# A script that is told to stop leaves by the same door as one that ends: its `finally` blocks run.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run(argv, timeout=60, ok=(0,), stdin=None, cwd=REPO, env=None):
    """Runs a command to its end, with output captured as text (`stdout`, `stderr`, `returncode`).

    `ok`: the exit codes that are expected, None for any; another one raises `Failed`.
    """
    argv = [str(part) for part in argv]
    try:
        done = subprocess.run(
            argv,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        seen = (late.stdout or b"") + (late.stderr or b"")
        raise Failed(f"{' '.join(argv)}: not done after {timeout} s\n{seen[-2000:]!r}") from None
    if ok is not None and done.returncode not in ok:
        raise Failed(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done


def poll(what, condition, seconds, every=0.1):
    """Waits until `condition()` is truthy and returns that; raises `Failed` naming `what` otherwise."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(every)


GIVEN_OUT = set()


def free_port():
    """A TCP port on loopback that nobody listens on, below those that connections going out are given. Each is given
    out once: whoever asked may not listen on it yet."""
    for _ in range(100):
        port = random.randrange(10_000, 30_000)
        if port in GIVEN_OUT:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            GIVEN_OUT.add(port)
            return port
    raise Failed("no free port in 100 tries")


def packages(suffix):
    """The one package file `*.<suffix>` in target/packages."""
    found = sorted((REPO / "target/packages").glob(f"*.{suffix}"))
    if len(found) != 1:
        raise Failed(f"target/packages has {len(found)} .{suffix} files, wanted one: run make {suffix}")
    return found[0]
