"""What the system tests share: checks that print PASS or FAIL, bounded commands, a Debian root, and
machines that boot it with a real systemd as process 1.

Everything is bounded in time, and everything that is started is ended by its own process id.
"""

from .checks import Failed, check, finish, note
from .commands import REPO, free_port, packages, poll, run
from .machine import Machine
from .node import binary, live_cluster, live_node
from .root import root_copy
from .switch import Switch

__all__ = [
    "Failed", "Machine", "REPO", "Switch", "binary", "check", "finish", "free_port", "live_cluster", "live_node",
    "note", "packages", "poll", "root_copy", "run",
]
