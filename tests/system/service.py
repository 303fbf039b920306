#!/usr/bin/env python3
"""The .deb on a booted Debian: install, serve, crash, hang, reload, misconfigure, upgrade, remove, purge."""

import pathlib
import signal
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import Failed, Machine, check, finish, note, packages, poll, root_copy

UNIT = "rushkv.service"
DATA = "/var/lib/rushkv"
SETTINGS = "/etc/rushkv/rushkv.toml"
OVERRIDE = "/etc/rushkv/conf.d/90-test.toml"
DROP_IN = "/etc/systemd/system/rushkv.service.d/test.conf"


class Node:
    """What the checks do with the service in the machine."""

    def __init__(self, machine):
        self.machine = machine

    def systemctl(self, *words, timeout=100, ok=(0,)):
        return self.machine.run(["systemctl", *words], timeout=timeout, ok=ok)

    def state(self):
        names = ("ActiveState", "SubState", "MainPID", "NRestarts", "Result", "ExecMainStatus", "StatusText")
        return self.machine.show(UNIT, *names)

    def pid(self):
        return int(self.state()["MainPID"])

    def await_active(self, seconds=60, other_than=None):
        def active():
            state = self.state()
            return state["ActiveState"] == "active" and int(state["MainPID"]) not in (0, other_than) and state

        try:
            return poll("the service is active", active, seconds)
        except Failed as error:
            raise Failed(f"{error}\n{self.state()}\n{self.machine.journal(UNIT)[-3000:]}") from None

    def cli(self, *words, ok=(0,), stdin=None):
        return self.machine.run(["rushkv-cli", *words], timeout=60, ok=ok, stdin=stdin)

    def expect_value(self, key, value):
        seen = self.cli("get", key).stdout.rstrip("\n")
        if seen != value:
            raise Failed(f"get {key}: {seen!r}, wanted {value!r}")

    def await_journal(self, needle, since, seconds=20):
        try:
            return poll(
                f"the journal says {needle!r}",
                lambda: next((line for line in self.machine.journal(UNIT, since).splitlines() if needle in line), None),
                seconds,
                every=0.3,
            )
        except Failed as error:
            raise Failed(f"{error}\n{self.machine.journal(UNIT, since)[-3000:]}") from None

    def dpkg(self, *words):
        return self.machine.run(["dpkg", *words], timeout=120).stdout


def expect(what, holds):
    if not holds:
        raise Failed(what)


def install(node, package):
    machine = node.machine
    machine.copy_in(package, "/root/rushkv.deb")
    with check("dpkg -i: installed, neither enabled nor started, and it says the next command", needed=True):
        said = node.dpkg("-i", "/root/rushkv.deb")
        expect(f"no next command in:\n{said}", "systemctl enable --now rushkv" in said)
        expect("enabled", node.systemctl("is-enabled", UNIT, ok=None).stdout.strip() == "disabled")
        expect("started", node.systemctl("is-active", UNIT, ok=None).stdout.strip() == "inactive")
    with check("the account is there, the settings are root's, and they check out"):
        machine.run(["id", "rushkv"])
        owner = machine.run(["stat", "-c", "%U:%G:%a", SETTINGS, "/etc/rushkv"]).stdout.split()
        expect(f"owners {owner}", owner == ["root:root:644", "root:root:755"])
        machine.run(["rushkv", "--config", SETTINGS, "--check-config"])
    with check("systemctl enable --now rushkv returns once it serves", needed=True):
        node.systemctl("enable", "--now", UNIT)
        node.cli("put", "first", "word")
        node.expect_value("first", "word")
        note(f"status: {node.state()['StatusText']}")
        note(machine.run(["du", "-sh", DATA]).stdout.strip())
    with check("the data directory is the account's alone"):
        owner = machine.run(["stat", "-L", "-c", "%U:%a", DATA]).stdout.strip()
        expect(f"{owner}", owner == "rushkv:700")


def sandbox(node):
    machine = node.machine
    with check("the process holds no privilege: account, capabilities, seccomp, no new ones"):
        status = machine.read_proc(node.pid(), "status")
        wanted = {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
        seen = {name: status[name] for name in wanted}
        expect(f"{seen}", seen == wanted)
        expect(f"runs as {status['Uid']}", status["Uid"].split()[0] != "0")
    with check("systemd-analyze rates the running unit at 1.2 or better"):
        note(machine.run(["systemd-analyze", "security", "--threshold=12", UNIT]).stdout.strip().splitlines()[-1][2:])
    with check("probes answer and the process's own metrics work inside the sandbox"):
        for probe in ("livez", "readyz"):
            status, body = machine.http(f"http://127.0.0.1:9180/{probe}")
            expect(f"/{probe}: {status} {body}", status == 200)
        _, body = machine.http("http://127.0.0.1:9180/metrics")
        for name in ("process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"):
            expect(f"no {name} in /metrics", f"\n{name} " in body)
    with check("no system call was refused"):
        log = machine.journal(UNIT)
        for line in log.splitlines():
            expect(line, "Operation not permitted" not in line and "SIGSYS" not in line)


def crash(node):
    machine = node.machine
    with check("kill -9 under load: it comes back by itself, and every acknowledged write is there"):
        writer = (
            "i=0; while rushkv-cli put crash:$i value-$i >/dev/null 2>&1; "
            "do echo $i > /root/acknowledged; i=$((i+1)); done"
        )
        argv = ["nsenter", "-t", str(machine.pid), "-a", "--", "timeout", "20", "sh", "-c", writer]
        load = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            poll("200 writes", lambda: machine.exists("/root/acknowledged") and _last(machine) >= 200, 19)
            before = node.state()
            machine.run(["kill", "-9", before["MainPID"]])
            load.wait(30)
        finally:
            if load.poll() is None:
                load.terminate()
                load.wait(10)
        after = node.await_active(other_than=int(before["MainPID"]))
        expect(f"{before} -> {after}", int(after["NRestarts"]) == int(before["NRestarts"]) + 1)
        acknowledged = _last(machine) + 1
        reader = (
            f"i=0; while [ $i -lt {acknowledged} ]; do "
            'seen=$(rushkv-cli get crash:$i); [ "$seen" = "value-$i" ] || echo "crash:$i is $seen"; i=$((i+1)); done'
        )
        wrong = machine.run(["sh", "-c", reader], timeout=120, ok=None).stdout
        expect(f"of {acknowledged} acknowledged writes:\n{wrong}", not wrong)
        node.expect_value("first", "word")
        note(f"{acknowledged} writes acknowledged across the kill, all there")


def _last(machine):
    text = machine.read("/root/acknowledged").strip()
    return int(text) if text else -1


def hang(node):
    machine = node.machine
    with check("a process that hangs (SIGSTOP) is ended by the watchdog and started again"):
        machine.put(DROP_IN, "[Service]\nWatchdogSec=3\n")
        node.systemctl("daemon-reload")
        node.systemctl("restart", UNIT)
        since = machine.now()
        before = node.await_active()
        machine.run(["kill", f"-{int(signal.SIGSTOP)}", before["MainPID"]])
        node.await_journal("Watchdog timeout", since)
        after = node.await_active(other_than=int(before["MainPID"]))
        expect(f"{before} -> {after}", int(after["NRestarts"]) >= 1)
        node.expect_value("first", "word")
    with check("a healthy one is left alone by the same watchdog"):
        pid = node.pid()
        machine.run(["sleep", "7"])
        expect(f"pid {pid} -> {node.pid()}", node.pid() == pid)
    machine.run(["rm", "-r", "/etc/systemd/system/rushkv.service.d"])
    node.systemctl("daemon-reload")


def reload(node):
    machine = node.machine
    with check("systemctl reload takes a changed log level without a restart"):
        pid = node.pid()
        since = machine.now()
        machine.put(OVERRIDE, '[log]\nlevel = "debug"\n')
        node.systemctl("reload", UNIT)
        node.await_journal("log.level", since)
        expect("restarted", node.await_active()["MainPID"] == str(pid))
        node.expect_value("first", "word")
    with check("a reload with a mistake fails, keeps the old settings and names the mistake"):
        since = machine.now()
        machine.put(OVERRIDE, '[log]\nlevle = "debug"\n')
        expect("it succeeded", node.systemctl("reload", UNIT, ok=None).returncode != 0)
        node.await_journal("levle", since)
        expect("restarted", node.await_active()["MainPID"] == str(pid))
        node.expect_value("first", "word")


def misconfigure(node):
    machine = node.machine
    with check("a start with a mistake exits 78, once, and names file, line and key"):
        since = machine.now()
        node.systemctl("restart", UNIT, ok=None)
        state = node.state()
        expect(f"{state}", state["ActiveState"] == "failed" and state["ExecMainStatus"] == "78")
        machine.run(["sleep", "3"])
        state = node.state()
        expect(f"tried again: {state}", state["ActiveState"] == "failed" and state["NRestarts"] == "0")
        line = node.await_journal("levle", since)
        expect(f"no place in: {line}", "90-test.toml:2" in machine.journal(UNIT, since))
        note(line.strip())
    with check("mended, it starts with its data"):
        machine.run(["rm", OVERRIDE])
        node.systemctl("start", UNIT)
        node.expect_value("first", "word")
    with check("another engine on the old data directory is refused in words, a few times, and changes nothing"):
        machine.put(OVERRIDE, '[storage]\nengine = "sled"\n')
        since = machine.now()
        node.systemctl("restart", UNIT, ok=None)
        line = node.await_journal("was written with fjall", since)
        note(line.strip())
        node.await_journal("Start request repeated too quickly", since, seconds=40)
        expect(f"{node.state()}", node.state()["ActiveState"] == "failed")
        machine.run(["rm", OVERRIDE])
        node.systemctl("reset-failed", UNIT)
        node.systemctl("start", UNIT)
        node.expect_value("first", "word")


def other_engine(node):
    """sled makes its files synchronous (chattr +S): the sandbox must let it."""
    machine = node.machine
    with check("sled serves in the same sandbox, and its data survives a kill -9"):
        node.systemctl("stop", UNIT, timeout=70)
        machine.run(["mv", DATA, f"{DATA}.fjall"])
        machine.put(OVERRIDE, '[storage]\nengine = "sled"\n')
        node.systemctl("start", UNIT)
        machine.run(["rushkv-cli", "put", "engine", "sled"])
        pid = node.pid()
        machine.run(["kill", "-9", str(pid)])
        node.await_active(other_than=pid)
        node.expect_value("engine", "sled")
        node.systemctl("stop", UNIT, timeout=70)
        machine.run(["rm", "-r", DATA, OVERRIDE])
        machine.run(["mv", f"{DATA}.fjall", DATA])
        node.systemctl("start", UNIT)
        node.expect_value("first", "word")


def stop(node):
    with check("systemctl stop ends it cleanly within its deadline"):
        node.systemctl("stop", UNIT, timeout=70)
        state = node.state()
        expect(f"{state}", state["ActiveState"] == "inactive" and state["Result"] == "success")
    with check("an upgrade leaves a stopped service stopped"):
        node.dpkg("-i", "/root/rushkv.deb")
        expect(f"{node.state()}", node.state()["ActiveState"] == "inactive")
    with check("an upgrade restarts a running service"):
        node.systemctl("start", UNIT)
        pid = node.pid()
        node.dpkg("-i", "/root/rushkv.deb")
        node.await_active(other_than=pid)
        node.expect_value("first", "word")


def remove(node):
    machine = node.machine
    machine.put("/etc/rushkv/conf.d/50-own.toml", '[log]\nlevel = "info"\n')
    with check("dpkg --remove stops it and keeps settings and data"):
        node.dpkg("--remove", "rushkv")
        expect("still running", not _processes(machine))
        for path in (SETTINGS, "/etc/rushkv/conf.d/50-own.toml"):
            expect(f"{path} is gone", machine.exists(path))
        expect("the data is gone", machine.exists(f"{DATA}/.") and machine.run(["ls", DATA]).stdout.strip())
        expect("the unit is still there", not machine.exists("/usr/lib/systemd/system/rushkv.service"))
    with check("installed again it serves the old data"):
        node.dpkg("-i", "/root/rushkv.deb")
        node.systemctl("enable", "--now", UNIT)
        node.expect_value("first", "word")
    with check("dpkg --purge removes the package's settings, keeps the admin's and the data, and says where it is"):
        said = node.dpkg("--purge", "rushkv")
        expect("still running", not _processes(machine))
        expect("settings are still there", not machine.exists(SETTINGS))
        expect("the admin's file is gone", machine.exists("/etc/rushkv/conf.d/50-own.toml"))
        expect("the data is gone", machine.run(["ls", DATA]).stdout.strip())
        expect(f"not said:\n{said}", DATA in said)
        expect("still enabled", not machine.exists("/etc/systemd/system/multi-user.target.wants/rushkv.service"))


def _processes(machine):
    return machine.run(["pgrep", "-x", "rushkv"], ok=None).stdout.split()


def main():
    package = packages("deb")
    with root_copy() as root:
        with Machine(root) as machine:
            with check("Debian boots with systemd as process 1"):
                note(machine.run(["systemctl", "--version"]).stdout.splitlines()[0])
            node = Node(machine)
            install(node, package)
            sandbox(node)
            crash(node)
            hang(node)
            reload(node)
            misconfigure(node)
            other_engine(node)
            stop(node)
            remove(node)


finish(main)
