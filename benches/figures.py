"""What the scripts here share: tables, the machine's own figures, servers that run while they are measured."""

import contextlib
import json
import os
import pathlib
import re
import platform
import socket
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests/system"))
from harness import Failed, poll, run

CARGO = os.environ.get("CARGO", "cargo")


def say(text):
    print(text, file=sys.stderr, flush=True)


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def load():
    return os.getloadavg()[0]


def used_s(pids):
    """Seconds of processor time that processes have used."""
    fields = [pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def thousands(rate):
    return f"{rate / 1000:.1f} k" if rate < 99_950 else f"{rate / 1000:.0f} k"


def fdatasync_us(directory, count=4000):
    """Latencies of writing 4 KiB within a file that is there and calling fdatasync, sorted."""
    block = os.urandom(4096)
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(count):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        latencies = []
        for number in range(count):
            began = time.perf_counter()
            os.pwrite(file.fileno(), block, number * 4096)
            os.fdatasync(file.fileno())
            latencies.append((time.perf_counter() - began) * 1e6)
    return sorted(latencies)


def machine():
    model = next(
        (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if "model name" in line),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    kind = run(["findmnt", "-no", "FSTYPE", "-T", "/var/tmp"]).stdout.strip()
    sync = fdatasync_us("/var/tmp")
    at = lambda share: f"{sync[int((len(sync) - 1) * share)] / 1000:.2f} ms"
    print("### machine\n")
    table(
        ["what", "is"],
        [
            ["date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())],
            ["commit", run(["git", "describe", "--always", "--dirty"]).stdout.strip()],
            ["processor", f"{os.cpu_count()} cores, {model}"],
            ["memory", f"{memory} GiB"],
            ["kernel", platform.release()],
            ["file system", kind],
            ["write of 4 KiB + fdatasync", f"p50 {at(0.5)}, p99 {at(0.99)}, max {at(1)}"],
            ["load before", f"{load():.2f}"],
        ],
    )


def peers_binary():
    """The bench `peers`: $PEERS, or built now."""
    if given := os.environ.get("PEERS"):
        return str(pathlib.Path(given).resolve())
    argv = [CARGO, "bench", "--locked", "--bench", "peers", "--no-run", "--message-format=json"]
    lines = run(argv, timeout=1800).stdout.splitlines()
    found = [json.loads(line) for line in lines if '"executable":"' in line]
    return next(line["executable"] for line in found if line["target"]["name"] == "peers")


def last_json(text):
    return json.loads(text.strip().splitlines()[-1])


@contextlib.contextmanager
def server(argv, ready):
    """A process with a scratch directory of its own, put for `DIR` in its arguments."""
    with tempfile.TemporaryDirectory(prefix="rushkv-peer-", dir="/var/tmp") as scratch:
        argv = [re.sub(r"(^|=)DIR(?=/|$)", rf"\g<1>{scratch}", str(word)) for word in argv]
        say("$ " + " ".join(argv))
        with open(pathlib.Path(scratch) / "log", "wb") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=scratch, start_new_session=True
            )

        def running():
            if process.poll() is not None:
                tail = (pathlib.Path(scratch) / "log").read_text(errors="replace")[-2000:]
                raise Failed(f"{argv[0]} ended with {process.returncode}:\n{tail}")
            return True

        try:
            poll(f"{argv[0]} answers", lambda: running() and ready(), 20)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
