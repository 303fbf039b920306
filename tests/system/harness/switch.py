"""A network of the test's own: a bridge in a namespace, which machines are plugged into."""

import os

from .commands import run


class Switch:
    """`with Switch() as switch:`; nothing of the host's network is touched."""

    def __init__(self):
        self._namespace = f"rushkv-switch-{os.getpid()}"
        self._ports = 0

    def __enter__(self):
        run(["ip", "netns", "add", self._namespace])
        try:
            self._ip("link", "add", "bridge", "type", "bridge")
            self._ip("link", "set", "bridge", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        run(["ip", "netns", "delete", self._namespace], ok=None)

    def _ip(self, *words):
        run(["ip", "-n", self._namespace, *words])

    def plug(self, machine, address):
        """Gives a machine an interface with this address (with its prefix length)."""
        self._ports += 1
        port = f"port{self._ports}"
        self._ip("link", "add", port, "type", "veth", "peer", "name", "host0", "netns", str(machine.pid))
        self._ip("link", "set", port, "master", "bridge", "up")
        machine.network(["ip", "address", "add", address, "dev", "host0"])
        machine.network(["ip", "link", "set", "host0", "up"])
