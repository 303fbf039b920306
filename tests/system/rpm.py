#!/usr/bin/env python3
"""The .rpm, installed and removed by rpm itself on a booted Debian: its scriptlets meet a real systemd.

`--nodeps`, since Debian's rpm database has no packages: `packages.py` checks what the package requires.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import Failed, Machine, check, finish, note, packages, root_copy

UNIT = "rushkv.service"
DATA = "/var/lib/rushkv"
SETTINGS = "/etc/rushkv/rushkv.toml"


def expect(what, holds):
    if not holds:
        raise Failed(what)


def scriptlets(machine, package):
    def rpm(*words):
        done = machine.run(["rpm", "--nodeps", *words], timeout=120)
        return done.stdout + done.stderr

    def get(key):
        return machine.run(["rushkv-cli", "get", key], timeout=60).stdout.rstrip("\n")

    def unit_state():
        return machine.show(UNIT, "ActiveState", "MainPID", "UnitFileState")

    machine.copy_in(package, "/root/rushkv.rpm")
    with check("rpm -i: installed, account made, neither enabled nor started, and it says the next command", needed=True):
        said = rpm("-i", "/root/rushkv.rpm")
        expect(f"no next command in:\n{said}", "systemctl enable --now rushkv" in said)
        machine.run(["id", "rushkv"])
        state = unit_state()
        expect(f"{state}", state["ActiveState"] == "inactive" and state["UnitFileState"] == "disabled")
    with check("it serves", needed=True):
        machine.run(["systemctl", "enable", "--now", UNIT], timeout=100)
        machine.run(["rushkv-cli", "put", "first", "word"])
        expect("another value", get("first") == "word")
    with check("rpm -V finds every file as packaged"):
        said = machine.run(["rpm", "-V", "--nodeps", "rushkv"], ok=None).stdout
        expect(said, not said.strip())
    with check("an upgrade restarts a running service"):
        before = unit_state()["MainPID"]
        rpm("-U", "--replacepkgs", "--force", "/root/rushkv.rpm")
        after = unit_state()
        expect(f"{before} -> {after}", after["ActiveState"] == "active" and after["MainPID"] not in ("0", before))
        expect("another value", get("first") == "word")
    with check("rpm -e stops and disables it, keeps the data and changed settings, and says where the data is"):
        machine.put(SETTINGS, machine.read(SETTINGS) + "\n# changed\n")
        said = rpm("-e", "rushkv")
        expect("still running", not machine.run(["pgrep", "-x", "rushkv"], ok=None).stdout.split())
        expect("the data is gone", machine.run(["ls", DATA]).stdout.strip())
        expect("the settings are gone", machine.read(SETTINGS + ".rpmsave").endswith("# changed\n"))
        expect("still enabled", not machine.exists("/etc/systemd/system/multi-user.target.wants/rushkv.service"))
        expect(f"not said:\n{said}", DATA in said)
    with check("installed again it serves the old data"):
        rpm("-i", "/root/rushkv.rpm")
        machine.run(["systemctl", "enable", "--now", UNIT], timeout=100)
        expect("another value", get("first") == "word")


def main():
    package = packages("rpm")
    with root_copy() as root, Machine(root) as machine:
        note(machine.run(["rpm", "--version"]).stdout.strip())
        scriptlets(machine, package)


finish(main)
