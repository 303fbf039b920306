#!/usr/bin/env python3
"""A million keys from a file, on both engines: imported, exported, compared; restarts timed.

    tests/system/million.py [KEYS]   other than 1,000,000 of them, for a quick look

The export must hold exactly the records of the file, in key order. Then the node is killed with
SIGKILL, restarted, stopped, restarted: each time the export must be the same, byte for byte.
"""

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import struct
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import Failed, check, finish, note, poll, run
from harness.node import Node

KEYS = 1_000_000
ENGINES = ("fjall", "sled")

# For one import or export. A release build takes a tenth of it on a free machine.
COMMAND_SECONDS = 300


def record(n):
    """Record number `n`, the same in every run: a key and a value, mostly short text."""
    draw = hashlib.blake2b(struct.pack("<Q", n), digest_size=64).digest()
    kind = n % 16
    if kind == 0:  # not UTF-8, with zero bytes and what comes last in any order
        key = b"\xff\x00" + draw[:4] + struct.pack(">Q", n)
    elif kind == 1:
        key = f"ключ/鍵/{n}/🦀".encode()
    elif kind == 2:  # what JSON must escape
        key = f'"quoted\\{n}"\n\t\x01'.encode()
    elif n % 4099 == 0:  # long
        key = f"long:{n}:".encode() + b"k" * 3000
    else:
        key = f"user:{draw[:6].hex()}:{n}".encode()
    if n % 11 == 0:
        value = b""
    elif n % 7 == 0:
        value = draw * 2  # 128 bytes, not UTF-8
    elif n % 10007 == 0:
        value = draw.hex().encode() * 512  # 64 KiB
    else:
        value = draw.hex().encode()  # 128 bytes
    return key, value


def field(name, data):
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def raw(line, name):
    if name in line:
        return line[name].encode()
    return base64.b64decode(line[f"{name}_base64"], validate=True)


def digest(value):
    return hashlib.blake2b(value, digest_size=12).digest()


def write_file(path, keys):
    """Writes the records in the order of their numbers, which is not that of their keys."""
    with open(path, "w", encoding="utf-8") as file:
        for n in range(keys):
            key, value = record(n)
            file.write(json.dumps({**field("key", key), **field("value", value)}, ensure_ascii=n % 2 == 0))
            file.write("\n")


def expected(keys):
    """Every key, with the digest of its value."""
    table = {}
    for n in range(keys):
        key, value = record(n)
        table[key] = digest(value)
    if len(table) != keys:
        raise Failed(f"the generator made {keys - len(table)} keys twice")
    return table


def compare(path, keys):
    """The export against the records: each there once, with its value, in key order, and no other."""
    wanted = expected(keys)
    last = None
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            line = json.loads(text)
            key = raw(line, "key")
            if last is not None and key <= last:
                raise Failed(f"line {number}: {key[:80]!r} does not come after {last[:80]!r}")
            last = key
            value = wanted.pop(key, None)
            if value is None:
                raise Failed(f"line {number}: {key[:80]!r} was never imported")
            if value != digest(raw(line, "value")):
                raise Failed(f"line {number}: {key[:80]!r} has another value")
    if wanted:
        raise Failed(f"{len(wanted)} keys are missing, {next(iter(wanted))[:80]!r} for one")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def memory_mb(node):
    """Resident now, and at most so far."""
    status = pathlib.Path(f"/proc/{node.process.pid}/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return tuple(int(fields[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM"))


def disk_mb(path):
    return int(run(["du", "-s", "--block-size=1M", path]).stdout.split()[0])


class Bench:
    """One engine's node on a directory that outlives it, and what was measured."""

    def __init__(self, engine, scratch, keys):
        self.engine = engine
        self.scratch = scratch
        self.keys = keys
        self.node = None
        self.figures = {}

    def start(self, name=None):
        """Starts the node; keeps the time until it is ready as `name`."""
        began = time.monotonic()
        self.node = Node(self.scratch, ["--set", f"storage.engine={self.engine}"])
        poll("the node is ready", self.node._ready, 120, every=0.005)
        if name:
            self.figures[name] = round(time.monotonic() - began, 2)

    def stop(self, name=None):
        began = time.monotonic()
        self.node.stop()
        if self.node.process.returncode != 0:
            raise Failed(f"stopped with {self.node.process.returncode}:\n{self.node.log()}")
        if name:
            self.figures[name] = round(time.monotonic() - began, 2)

    def kill(self):
        os.kill(self.node.process.pid, signal.SIGKILL)
        self.node.process.wait(10)

    def timed(self, name, *words):
        began = time.monotonic()
        done = self.node.cli(*words, timeout=COMMAND_SECONDS)
        self.figures[name] = round(time.monotonic() - began, 1)
        return done

    def stats(self):
        return json.loads(self.node.cli("stats", "-o", "json").stdout)

    def import_(self, source):
        done = json.loads(self.timed("import_s", "import", source, "-o", "json").stdout)
        if (done["written"], done["complete"]) != (self.keys, True):
            raise Failed(f"{done}")
        self.count()
        rss, peak = memory_mb(self.node)
        data = self.scratch / "data"
        self.figures |= {"rss_after_import_mb": rss, "rss_peak_mb": peak, "disk_after_import_mb": disk_mb(data)}

    def count(self):
        counted = self.stats()["keys"]
        if counted != self.keys:
            raise Failed(f"stats counts {counted} keys")

    def export(self, name):
        """The hash of an export; the file is `export` in the scratch directory."""
        self.timed(name, "export", "--force", self.scratch / "export")
        return sha256(self.scratch / "export")

    def same(self, first):
        self.count()
        if self.export("export_again_s") != first:
            raise Failed("the export is not the same as before")


@contextlib.contextmanager
def bench(engine, keys):
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="rushkv-million-", dir="/var/tmp"))
    one = Bench(engine, scratch, keys)
    try:
        yield one
    finally:
        try:
            if one.node is not None:
                one.node.stop()
        finally:
            shutil.rmtree(scratch)


def through(engine, source, keys):
    """Every step with one engine, each a check; returns the figures."""
    with bench(engine, keys) as one:
        with check(f"{engine}: import writes {keys} keys and stats counts them", needed=True):
            one.start()
            one.import_(source)
        with check(f"{engine}: the export is what was imported, in key order", needed=True):
            first = one.export("export_s")
            compare(one.scratch / "export", keys)
        with check(f"{engine}: the same after kill -9 and a restart", needed=True):
            one.kill()
            one.start("restart_after_kill_s")
            one.figures["rss_after_restart_mb"] = memory_mb(one.node)[0]
            one.same(first)
        with check(f"{engine}: the same after a stop and a restart", needed=True):
            one.stop("stop_s")
            one.figures["disk_stopped_mb"] = disk_mb(one.scratch / "data")
            one.start("restart_after_stop_s")
            one.same(first)
        note("  ".join(f"{name} {value}" for name, value in one.figures.items()))
        return one.figures


def measure(keys=KEYS, engines=ENGINES):
    """Both engines' figures, from one file."""
    with tempfile.TemporaryDirectory(prefix="rushkv-million-", dir="/var/tmp") as scratch:
        source = pathlib.Path(scratch) / "records.jsonl"
        write_file(source, keys)
        size = source.stat().st_size
        note(f"{keys} records, {size >> 20} MiB of JSON lines")
        return {engine: through(engine, source, keys) for engine in engines} | {"file_mb": size >> 20}


if __name__ == "__main__":
    finish(lambda: measure(int(sys.argv[1]) if len(sys.argv) > 1 else KEYS))
