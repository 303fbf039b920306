"""The original's six calls, made by a stock client generated from the original's interface.

    python check_original.py HOST:PORT [HOST:PORT ...] [--proto FILE]

Asks a server that forms a cluster of one, or all the nodes of a cluster, and leaves no keys behind. Exits
with 1 if a check fails.
"""

import argparse
import importlib
import pathlib
import uuid

from support import ROOT, Checks, connected, generate

DEADLINE_S = 5  # what the original's Go clients wait


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("addresses", nargs="+", metavar="HOST:PORT")
    parser.add_argument("--proto", type=pathlib.Path, default=ROOT / "proto" / "rushkv.proto")
    arguments = parser.parse_args()

    proto = arguments.proto.resolve()
    generate(proto.parent, proto.name)
    pb = importlib.import_module(f"{proto.stem}_pb2")
    stubs = importlib.import_module(f"{proto.stem}_pb2_grpc")

    checks = Checks()
    with connected(arguments.addresses) as channels:
        nodes = [stubs.RushKVStub(channel) for channel in channels]
        keys(checks, pb, nodes[0])
        if len(nodes) == 1:
            alone(checks, pb, nodes[0])
        else:
            together(checks, pb, nodes)
    checks.end()


def keys(checks, pb, stub):
    key = f"check-original-{uuid.uuid4()}"
    value = bytes(range(256))

    def put(key, value):
        return stub.Put(pb.PutRequest(key=key, value=value), timeout=DEADLINE_S)

    def get(key):
        return stub.Get(pb.GetRequest(key=key), timeout=DEADLINE_S)

    def delete(key):
        return stub.Delete(pb.DeleteRequest(key=key), timeout=DEADLINE_S)

    checks.equal("get of a missing key", get(key), pb.GetResponse(success=False, error="key not found"))
    checks.equal("put", put(key, value), pb.PutResponse(success=True))
    checks.equal("get", get(key), pb.GetResponse(success=True, value=value))
    checks.equal("put over it", put(key, b"second"), pb.PutResponse(success=True))
    checks.equal("get sees it", get(key), pb.GetResponse(success=True, value=b"second"))
    checks.equal("put of nothing", put(key, b""), pb.PutResponse(success=True))
    checks.equal("an empty value is there", get(key), pb.GetResponse(success=True))
    checks.equal("delete", delete(key), pb.DeleteResponse(success=True))
    checks.equal("delete again", delete(key), pb.DeleteResponse(success=False, error="key not found"))
    checks.equal("get after delete", get(key), pb.GetResponse(success=False, error="key not found"))

    wide = key + "-ключ-键-🔑"
    checks.equal("put of a key beyond ASCII", put(wide, b"v"), pb.PutResponse(success=True))
    checks.equal("get of it", get(wide), pb.GetResponse(success=True, value=b"v"))
    checks.equal("delete of it", delete(wide), pb.DeleteResponse(success=True))

    for name, answer in [
        ("an empty key", put("", b"v")),
        ("a key over the limit", put("k" * 4097, b"v")),
        ("a value over the limit", put(key, bytes(1024 * 1024 + 1))),
    ]:
        checks.true(f"{name} is refused in the body", not answer.success and answer.error, repr(answer))
    checks.equal("a refused put wrote nothing", get(key).success, False)


def alone(checks, pb, stub):
    info = stub.GetClusterInfo(pb.ClusterInfoRequest(), timeout=DEADLINE_S)
    checks.equal("a cluster of one", len(info.nodes), 1)
    itself = info.nodes[0]
    checks.equal("exactly one leader", [node.id for node in info.nodes if node.is_leader], [info.leader])
    checks.true("the node has an address", itself.address and itself.port > 0, repr(itself))

    join = stub.Join(
        pb.JoinRequest(node_id=itself.id, address=itself.address, port=itself.port), timeout=DEADLINE_S
    )
    checks.equal("join of itself", join, pb.JoinResponse(success=True))
    join = stub.Join(pb.JoinRequest(node_id="node-x", address="localhost", port=1), timeout=DEADLINE_S)
    nobody = not join.success and "localhost:1" in join.error
    checks.true("join of an address where nobody is says no", nobody, repr(join))
    leave = stub.Leave(pb.LeaveRequest(node_id=itself.id), timeout=DEADLINE_S)
    checks.true("leave says no", not leave.success and "last member" in leave.error, repr(leave))
    leave = stub.Leave(pb.LeaveRequest(node_id="node-x"), timeout=DEADLINE_S)
    checks.true("leave of a stranger says no", not leave.success and leave.error, repr(leave))
    again = stub.GetClusterInfo(pb.ClusterInfoRequest(), timeout=DEADLINE_S)
    checks.equal("nothing of that changed the cluster", again, info)


def together(checks, pb, nodes):
    """Any node answers for any key, and all of them tell the same cluster."""
    prefix = f"check-original-{uuid.uuid4()}/"
    many = [f"{prefix}{number}" for number in range(40)]
    for at, node in enumerate(nodes):
        others = nodes[:at] + nodes[at + 1 :]
        put = [node.Put(pb.PutRequest(key=key, value=b"v%d" % at), timeout=DEADLINE_S).success for key in many]
        checks.equal(f"{len(many)} puts through node {at + 1}", put, [True] * len(many))
        for other in others:
            got = [other.Get(pb.GetRequest(key=key), timeout=DEADLINE_S).value for key in many]
            checks.equal("are seen through another one", got, [b"v%d" % at] * len(many))
    for number, key in enumerate(many):
        deleted = nodes[number % len(nodes)].Delete(pb.DeleteRequest(key=key), timeout=DEADLINE_S)
        if not deleted.success:
            checks.true(f"delete of {key}", False, repr(deleted))
    gone = pb.GetResponse(success=False, error="key not found")
    for node in nodes:
        got = [node.Get(pb.GetRequest(key=key), timeout=DEADLINE_S) for key in many]
        checks.equal("deletes through any node are seen through all", got, [gone] * len(many))
        refused = node.Put(pb.PutRequest(key="k" * 4097, value=b"v"), timeout=DEADLINE_S)
        checks.true("a key over the limit is refused in the body", not refused.success and refused.error, repr(refused))

    told = [node.GetClusterInfo(pb.ClusterInfoRequest(), timeout=DEADLINE_S) for node in nodes]
    checks.equal("every member is told", [len(info.nodes) for info in told], [len(nodes)] * len(nodes))
    for info in told:
        leaders = [node.id for node in info.nodes if node.is_leader]
        checks.equal("exactly one leader", leaders, [info.leader])
        checks.equal("the same members by every node", members(info), members(told[0]))
    first = told[0].nodes[0]
    for node in nodes:
        join = pb.JoinRequest(node_id=first.id, address=first.address, port=first.port)
        checks.equal("join of a member", node.Join(join, timeout=DEADLINE_S), pb.JoinResponse(success=True))
        leave = node.Leave(pb.LeaveRequest(node_id="node-x"), timeout=DEADLINE_S)
        checks.true("leave of a stranger says no", not leave.success and leave.error, repr(leave))
    again = nodes[-1].GetClusterInfo(pb.ClusterInfoRequest(), timeout=DEADLINE_S)
    checks.equal("nothing of that changed the members", members(again), members(told[0]))


def members(info):
    return sorted((node.id, node.address, node.port) for node in info.nodes)


if __name__ == "__main__":
    main()
