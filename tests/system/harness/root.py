"""A Debian root to boot: made once by debootstrap and kept in the cache, laid under an
overlay for each run."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import tempfile

from .checks import Failed, note
from .commands import run

SUITE = "bookworm"
INCLUDE = ["systemd", "systemd-sysv", "dbus", "iproute2", "procps", "rpm"]


def _cache():
    return pathlib.Path(os.environ.get("CACHE") or pathlib.Path.home() / ".cache/rushkv")


def _mirror():
    """A Debian mirror, as apt's own sources name it."""
    lines = run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    ).stdout.split("\n")
    rows = [line.split() for line in lines if len(line.split()) == 3]
    for row in rows:
        if row[0] == SUITE and row[1] == "Debian":
            return row[2]
    raise Failed(f"apt's sources name no Debian mirror with {SUITE}; run apt-get update first")


def _base():
    """The cached root; made if it is missing, by one process at a time."""
    arch = run(["dpkg", "--print-architecture"]).stdout.strip()
    tag = hashlib.sha256(" ".join(INCLUDE).encode()).hexdigest()[:8]
    base = _cache() / f"root-{SUITE}-{arch}-{tag}"
    base.parent.mkdir(parents=True, exist_ok=True)
    with open(base.with_suffix(".lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.is_dir():
            part = base.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            note(f"debootstrap {SUITE} into {base} (once, about a minute)")
            run(
                ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDE)}", SUITE, part, _mirror()],
                timeout=600,
            )
            shutil.rmtree(part / "var/cache/apt/archives", ignore_errors=True)
            part.rename(base)
    return base


@contextlib.contextmanager
def root_copy(name="box"):
    """A root of one's own, with this host name: an overlay on the cached one, removed at the end."""
    base = _base()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="rushkv-root-", dir="/var/tmp"))
    root = scratch / "root"
    try:
        for part in ("root", "upper", "work"):
            (scratch / part).mkdir()
        layers = f"lowerdir={base},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
        run(["mount", "-t", "overlay", "overlay", "-o", layers, root])
        # Names that must not come from the host.
        (root / "etc/hostname").write_text(f"{name}\n", encoding="ascii")
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost {name}\n::1 localhost\n", encoding="ascii")
        yield root
    finally:
        if os.path.ismount(root):
            run(["umount", root], ok=None)
        if os.path.ismount(root):
            run(["umount", "--lazy", root])
        run(["rm", "-rf", "--one-file-system", scratch], timeout=120)
