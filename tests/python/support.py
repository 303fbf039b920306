"""Shared by the client checks: code generated from the interface, checks that are counted."""

import contextlib
import importlib
import pathlib
import sys
import tempfile

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Kept until the process ends: the generated modules are imported from it.
_generated = tempfile.TemporaryDirectory(prefix="rushkv-python-")


def generate(directory, *files):
    """Generates Python code for proto files under `directory` and makes it importable."""
    arguments = ["protoc", f"-I{directory}", f"--python_out={_generated.name}", f"--grpc_python_out={_generated.name}"]
    if protoc.main(arguments + [str(file) for file in files]) != 0:
        sys.exit(f"protoc failed on {files} in {directory}")
    if _generated.name not in sys.path:
        sys.path.insert(0, _generated.name)
    importlib.invalidate_caches()


@contextlib.contextmanager
def connected(addresses):
    """A channel to each address, ready."""
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(address)) for address in addresses]
        for channel in channels:
            grpc.channel_ready_future(channel).result(timeout=10)
        yield channels


class Checks:
    """Runs named checks, goes on after a failure, and ends with the number of both."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def equal(self, name, actual, expected):
        self.true(name, actual == expected, f"{actual!r} is not {expected!r}")

    def true(self, name, holds, otherwise="does not hold"):
        if holds:
            self.passed += 1
            print(f"ok      {name}")
        else:
            self.failed += 1
            print(f"FAILED  {name}: {otherwise}")

    def fails(self, name, call, code, reason, happened="no", **metadata):
        """`call` must fail with this code and a google.rpc.ErrorInfo of ours that says all this."""
        try:
            call()
        except grpc.RpcError as error:
            self.equal(f"{name}: code", error.code(), code)
            info = error_info(error)
            if info is None:
                self.true(f"{name}: has an ErrorInfo", False, f"{error.details()!r} has none")
                return
            self.equal(f"{name}: reason", (info.domain, info.reason), ("rushkv", reason))
            expected = {"happened": happened, **metadata}
            self.equal(f"{name}: metadata", {key: info.metadata.get(key) for key in expected}, expected)
            self.true(f"{name}: has a message", bool(error.details()))
        else:
            self.true(name, False, "it succeeded")

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed or not self.passed else 0)


def error_info(error):
    """The google.rpc.ErrorInfo of a failed call, or None."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    return None
