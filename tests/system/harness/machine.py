"""A machine: a Debian root booted by systemd-nspawn, so that its process 1 is a real systemd."""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

from .checks import Failed
from .commands import poll, run

_PR_SET_PDEATHSIG = 1


def _die_with_parent():
    """In the child: a test that is killed takes its machine along."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _parent_and_inner_pid(pid):
    """A process's parent, and its id in its innermost namespace; None if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.rstrip("\n").split(":", 1) for line in status)
        return int(fields["PPid"]), [int(part) for part in fields["NSpid"].split()]
    except (OSError, KeyError, ValueError):
        return None


class Machine:
    """`with Machine(root) as machine:` boots and, at the end, powers off. `name`: its host name."""

    def __init__(self, root, name="box"):
        self.root = pathlib.Path(root)
        self.pid = None
        self._host = name
        self._name = f"rushkv-{os.getpid()}-{name}"
        self._nspawn = None
        self._console = None

    def __enter__(self):
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_):
        self._end()

    def _boot(self):
        self._console = tempfile.TemporaryFile()
        self._nspawn = subprocess.Popen(
            [
                "systemd-nspawn", "--quiet", "--boot", "-D", str(self.root), "--register=no", "--keep-unit",
                "--private-network", "--console=pipe", "--machine", self._name, "--hostname", self._host,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self.pid = poll("the machine's process 1", self._find_init, 30)
        poll("the machine's systemd", self._booted, 90, every=0.3)

    def _find_init(self):
        if self._nspawn.poll() is not None:
            raise Failed(f"systemd-nspawn ended with {self._nspawn.returncode}:\n{self.console()}")
        seen = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (found := _parent_and_inner_pid(entry)):
                seen[int(entry)] = found
        for pid, (parent, inner) in seen.items():
            if len(inner) > 1 and inner[-1] == 1:
                while parent in seen and parent != self._nspawn.pid:
                    parent = seen[parent][0]
                if parent == self._nspawn.pid:
                    return pid
        return None

    def _booted(self):
        if self._nspawn.poll() is not None:
            raise Failed(f"systemd-nspawn ended with {self._nspawn.returncode}:\n{self.console()}")
        state = self.run(["systemctl", "is-system-running"], ok=None, timeout=10).stdout.strip()
        return state in ("running", "degraded")

    def console(self):
        """What the machine has written on its console."""
        self._console.seek(0)
        return self._console.read()[-4000:].decode(errors="replace")

    def _end(self):
        """SIGTERM asks for a power off; a second one insists. Both go to the one process we started."""
        try:
            if self._nspawn is not None:
                for patience in (30, 30):
                    if self._nspawn.poll() is not None:
                        break
                    self._nspawn.send_signal(signal.SIGTERM)
                    try:
                        self._nspawn.wait(patience)
                    except subprocess.TimeoutExpired:
                        continue
                if self._nspawn.poll() is None:
                    # Its process 1 first, or it would be left behind.
                    if self.pid is not None and _parent_and_inner_pid(self.pid):
                        os.kill(self.pid, signal.SIGKILL)
                    self._nspawn.kill()
                    self._nspawn.wait(10)
        finally:
            # nspawn leaves this directory behind where /run is not a tmpfs.
            shutil.rmtree(f"/run/systemd/nspawn/propagate/{self._name}", ignore_errors=True)
            if self._console is not None:
                self._console.close()

    def run(self, argv, **options):
        """Runs a command in the machine, as root; options as for `commands.run`."""
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb"]
        return run(["nsenter", "-t", self.pid, "-a", "--", *clean, *argv], **options)

    def network(self, argv, **options):
        """Runs a command of the host in the machine's network."""
        return run(["nsenter", "-t", self.pid, "-n", "--", *argv], **options)

    def http(self, url, timeout=10):
        """GETs a URL inside the machine's network: the status and the body."""
        program = (
            "import sys, urllib.request, urllib.error\n"
            "try: answer = urllib.request.urlopen(sys.argv[1], timeout=5)\n"
            "except urllib.error.HTTPError as error: answer = error\n"
            "print(answer.status); print(answer.read().decode())\n"
        )
        status, _, body = self.network(["python3", "-c", program, url], timeout=timeout).stdout.partition("\n")
        return int(status), body

    def put(self, path, text):
        """Writes a file in the machine."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def read(self, path):
        """A file of the machine."""
        return (self.root / path.lstrip("/")).read_text(encoding="utf-8")

    def exists(self, path):
        return os.path.lexists(self.root / path.lstrip("/"))

    def copy_in(self, source, path):
        """Copies a file of the host into the machine."""
        shutil.copy(source, self.root / path.lstrip("/"))

    def show(self, unit, *properties):
        """Properties of a unit, as systemctl shows them."""
        out = self.run(["systemctl", "show", unit, "-p", ",".join(properties)]).stdout
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def read_proc(self, pid, name):
        """/proc/<pid>/<name> of a process of the machine, as a table of its lines."""
        lines = self.run(["cat", f"/proc/{pid}/{name}"]).stdout.splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def journal(self, unit, since=None):
        """A unit's journal, messages only."""
        argv = ["journalctl", "--no-pager", "-o", "cat", "-u", unit]
        return self.run(argv + (["--since", since] if since else [])).stdout

    def now(self):
        """The machine's time as `journalctl --since` takes it; a second apart from what came before."""
        time.sleep(1.1)
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
