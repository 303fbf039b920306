"""Two nodes started separately become one cluster by the original's Join, and one again by its Leave, made by a
stock client generated from the original's interface.

    python join_original.py HOST:PORT HOST:PORT

Asks the first to take the second in, and to let it go again. Exits with 1 if a check fails.
"""

import argparse
import importlib
import time

import grpc

from support import ROOT, Checks, connected, generate

DEADLINE_S = 5  # what the original's Go clients wait
SETTLED_S = 60  # a node that joins starts anew, one that leaves hands its copies over first


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("addresses", nargs=2, metavar="HOST:PORT")
    arguments = parser.parse_args()
    generate(ROOT / "proto", "rushkv.proto")
    pb = importlib.import_module("rushkv_pb2")
    stubs = importlib.import_module("rushkv_pb2_grpc")
    checks = Checks()
    with connected(arguments.addresses) as channels:
        first, second = (stubs.RushKVStub(channel) for channel in channels)
        come_and_go(checks, pb, first, second)
    checks.end()


def come_and_go(checks, pb, first, second):
    def info(node):
        return node.GetClusterInfo(pb.ClusterInfoRequest(), timeout=DEADLINE_S)

    def put(node, key, value):
        return node.Put(pb.PutRequest(key=key, value=value), timeout=DEADLINE_S)

    def get(node, key):
        return node.Get(pb.GetRequest(key=key), timeout=DEADLINE_S)

    def settle(name, nodes, wanted):
        """Each of the nodes tells these members, and one of them as the leader."""
        deadline = time.monotonic() + SETTLED_S
        while True:
            try:
                told = [info(node) for node in nodes]
                seen = [(members(one), [node.id for node in one.nodes if node.is_leader] == [one.leader]) for one in told]
            except grpc.RpcError as error:  # it starts anew
                seen = error.details()
            if seen == [(wanted, True)] * len(nodes):
                checks.true(name, True)
                return
            if time.monotonic() > deadline:
                checks.equal(f"{name} within {SETTLED_S} s", seen, [(wanted, True)] * len(nodes))
                return
            time.sleep(0.1)

    (here,), (there,) = info(first).nodes, info(second).nodes
    checks.true("they are two clusters of one", here.id != there.id, repr((here, there)))
    both, alone = sorted([key_of(here), key_of(there)]), [key_of(here)]
    checks.equal("put before the join", put(first, "join-original/before", b"1"), pb.PutResponse(success=True))

    join = first.Join(pb.JoinRequest(node_id=there.id, address=there.address, port=there.port), timeout=DEADLINE_S)
    checks.equal("join", join, pb.JoinResponse(success=True))
    settle("both tell both members", [first, second], both)
    before = pb.GetResponse(success=True, value=b"1")
    checks.equal("the one that joined answers for what was there", get(second, "join-original/before"), before)
    checks.equal("put through it", put(second, "join-original/after", b"2"), pb.PutResponse(success=True))
    after = pb.GetResponse(success=True, value=b"2")
    checks.equal("is seen through the other", get(first, "join-original/after"), after)

    leave = first.Leave(pb.LeaveRequest(node_id=there.id), timeout=DEADLINE_S)
    checks.equal("leave", leave, pb.LeaveResponse(success=True))
    settle("one member is left", [first], alone)
    checks.equal("which has every key", [get(first, f"join-original/{key}") for key in ("before", "after")], [before, after])
    leave = first.Leave(pb.LeaveRequest(node_id=here.id), timeout=DEADLINE_S)
    checks.true("the last one can't leave", not leave.success and "last member" in leave.error, repr(leave))


def key_of(node):
    return (node.id, node.address, node.port)


def members(info):
    return sorted(key_of(node) for node in info.nodes)


if __name__ == "__main__":
    main()
