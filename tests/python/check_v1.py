"""Every call of rushkv.v1, made by a stock client, with the detail of each error.

    python check_v1.py HOST:PORT [HOST:PORT ...]

Asks a server that forms a cluster of one, or all the nodes of a cluster, and leaves no keys behind. Exits
with 1 if a check fails.
"""

import argparse
import time
import uuid

import grpc
from grpc import StatusCode
from support import ROOT, Checks, connected, generate

generate(ROOT / "proto", "rushkv/v1/kv.proto", "rushkv/v1/cluster.proto")
from rushkv.v1 import cluster_pb2, cluster_pb2_grpc, kv_pb2, kv_pb2_grpc  # noqa: E402

DEADLINE_S = 10
MIB = 1024 * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("addresses", nargs="+", metavar="HOST:PORT")
    arguments = parser.parse_args()
    checks = Checks()
    with connected(arguments.addresses) as channels:
        nodes = [kv_pb2_grpc.KvStub(channel) for channel in channels]
        kv = nodes[0]
        prefix = f"check-v1-{uuid.uuid4()}/".encode()
        single(checks, kv, prefix)
        limits(checks, kv, prefix)
        batches(checks, kv, prefix)
        scans(checks, kv, prefix)
        for channel in channels:
            cluster(checks, cluster_pb2_grpc.ClusterStub(channel), len(channels))
            health(checks, channel)
        if len(nodes) > 1:
            stub = cluster_pb2_grpc.ClusterStub(channels[0])
            across(checks, nodes, prefix, stub, arguments.addresses)
    checks.end()


def put(kv, key, value=b"v", **precondition):
    precondition = kv_pb2.Precondition(**precondition) if precondition else None
    return kv.Put(kv_pb2.PutRequest(key=key, value=value, precondition=precondition), timeout=DEADLINE_S)


def delete(kv, key, **precondition):
    precondition = kv_pb2.Precondition(**precondition) if precondition else None
    return kv.Delete(kv_pb2.DeleteRequest(key=key, precondition=precondition), timeout=DEADLINE_S)


def get(kv, key, consistency=kv_pb2.CONSISTENCY_LINEARIZABLE):
    return kv.Get(kv_pb2.GetRequest(key=key, consistency=consistency), timeout=DEADLINE_S)


def single(checks, kv, prefix):
    key = prefix + b"\x00\xffbytes"
    checks.equal("get of a missing key has no record", get(kv, key).HasField("record"), False)
    first = put(kv, key, b"one", absent=True)
    checks.equal("the first put makes version 1", first.version, 1)
    checks.fails(
        "put of a present key that must be absent",
        lambda: put(kv, key, absent=True),
        StatusCode.FAILED_PRECONDITION,
        "PRECONDITION_FAILED",
        current_version="1",
    )
    second = put(kv, key, b"two", version=1)
    checks.equal("a put with the right version makes the next", second.version, 2)
    checks.true("revisions grow", second.revision > first.revision, f"{first} {second}")
    written = kv_pb2.Record(
        key=key, value=b"two", version=2, create_revision=first.revision, mod_revision=second.revision
    )
    checks.equal("linearizable get", get(kv, key).record, written)
    stale, until = None, time.monotonic() + DEADLINE_S
    while stale != written and time.monotonic() < until:  # it may lag
        stale = get(kv, key, kv_pb2.CONSISTENCY_STALE).record
    checks.equal("stale get, after a while", stale, written)
    checks.fails(
        "put with an old version",
        lambda: put(kv, key, version=1),
        StatusCode.FAILED_PRECONDITION,
        "PRECONDITION_FAILED",
        current_version="2",
    )
    checks.fails(
        "delete with an old version",
        lambda: delete(kv, key, version=1),
        StatusCode.FAILED_PRECONDITION,
        "PRECONDITION_FAILED",
        current_version="2",
    )
    deleted = delete(kv, key, version=2)
    checks.true("delete", deleted.existed and deleted.revision > second.revision, repr(deleted))
    checks.equal("delete again finds nothing", delete(kv, key).existed, False)
    checks.fails(
        "put with the version of a key that is gone",
        lambda: put(kv, key, version=2),
        StatusCode.FAILED_PRECONDITION,
        "PRECONDITION_FAILED",
        current_version="0",
    )
    checks.equal("a key made again begins at version 1", put(kv, key).version, 1)
    delete(kv, key)


def limits(checks, kv, prefix):
    key = prefix + b"limits"
    invalid = (StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    large = (StatusCode.INVALID_ARGUMENT, "TOO_LARGE")
    checks.fails("put of an empty key", lambda: put(kv, b""), *invalid)
    checks.fails("get of an empty key", lambda: get(kv, b""), *invalid)
    checks.fails("delete of an empty key", lambda: delete(kv, b""), *invalid)
    checks.fails("put of a key over the limit", lambda: put(kv, b"k" * 4097), *large, limit="4096", size="4097")
    checks.fails("get of a key over the limit", lambda: get(kv, b"k" * 4097), *large)
    checks.fails("put of a value over the limit", lambda: put(kv, key, bytes(MIB + 1)), *large, limit=str(MIB))
    checks.fails("put of 3.5 MiB", lambda: put(kv, key, bytes(7 * MIB // 2)), *large)
    checks.fails("put of 5 MiB", lambda: put(kv, key, bytes(5 * MIB)), *large)
    checks.fails("put with version 0", lambda: put(kv, key, version=0), *invalid)
    checks.fails("put with absent = false", lambda: put(kv, key, absent=False), *invalid)
    checks.fails("delete with absent", lambda: delete(kv, key, absent=True), *invalid)
    checks.fails("get with an unknown consistency", lambda: get(kv, key, 7), *invalid)
    checks.equal("nothing of that wrote", get(kv, key).HasField("record"), False)

    longest = (prefix + b"k" * 4096)[:4096]
    checks.equal("the largest key and value", put(kv, longest, bytes(MIB)).version, 1)
    checks.equal("come back whole", len(get(kv, longest).record.value), MIB)
    checks.true("and are deleted", delete(kv, longest).existed)


def batches(checks, kv, prefix):
    keys = [prefix + b"batch/%04d" % index for index in range(300)]

    def write(*operations):
        request = kv_pb2.BatchWriteRequest(operations=operations)
        return kv.BatchWrite(request, timeout=DEADLINE_S).outcomes

    def put_of(key, value=b"v", **precondition):
        precondition = kv_pb2.Precondition(**precondition) if precondition else None
        return kv_pb2.WriteOperation(put=kv_pb2.PutRequest(key=key, value=value, precondition=precondition))

    def delete_of(key):
        return kv_pb2.WriteOperation(delete=kv_pb2.DeleteRequest(key=key))

    def read(keys):
        return kv.BatchGet(kv_pb2.BatchGetRequest(keys=keys), timeout=DEADLINE_S).results

    outcomes = write(*[put_of(key, key) for key in keys])
    checks.equal("a batch of puts", [outcome.put.version for outcome in outcomes], [1] * len(keys))
    results = read(keys)
    checks.equal("is read back in order", [result.record.value for result in results], keys)

    outcomes = write(
        put_of(keys[0], b"new", version=1), put_of(keys[1], absent=True), delete_of(keys[2]), delete_of(keys[2])
    )
    checks.equal(
        "each operation has its outcome",
        [outcome.WhichOneof("outcome") for outcome in outcomes],
        ["put", "error", "delete", "delete"],
    )
    error = outcomes[1].error
    checks.equal(
        "the failed one says why",
        (error.reason, error.happened, error.code, error.metadata["current_version"]),
        ("PRECONDITION_FAILED", "no", StatusCode.FAILED_PRECONDITION.value[0], "1"),
    )
    checks.equal("one key, in order", [outcomes[2].delete.existed, outcomes[3].delete.existed], [True, False])
    results = read([keys[0], keys[2], keys[1]])
    checks.equal(
        "and the others took place",
        [result.WhichOneof("result") for result in results],
        ["record", "not_found", "record"],
    )

    large = (StatusCode.INVALID_ARGUMENT, "TOO_LARGE")
    checks.fails("4097 operations", lambda: write(*[put_of(keys[0])] * 4097), *large, limit="4096")
    checks.fails("3 MiB of values", lambda: write(*[put_of(key, bytes(MIB)) for key in keys[:3]]), *large)
    checks.fails("4097 keys", lambda: read([keys[0]] * 4097), *large, limit="4096")
    checks.fails(
        "an empty operation",
        lambda: write(put_of(keys[3], b"bad batch"), kv_pb2.WriteOperation()),
        StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        index="1",
    )
    checks.equal("refuses the whole batch", read([keys[3]])[0].record.value, keys[3])

    for key in keys[:4]:
        write(put_of(key, bytes(MIB)))
    kinds = [result.WhichOneof("result") for result in read(keys[:4])]
    checks.equal("a full answer says what it left out", kinds, ["record", "record", "not_read", "not_read"])
    existed = [outcome.delete.existed for outcome in write(*[delete_of(key) for key in keys])]
    checks.equal("a batch of deletes", existed, [True] * len(keys))


def scans(checks, kv, prefix):
    prefix += b"scan/"
    keys = [prefix + b"%05d" % index for index in range(3000)]
    for at in range(0, len(keys), 1000):
        puts = [kv_pb2.WriteOperation(put=kv_pb2.PutRequest(key=key, value=key)) for key in keys[at : at + 1000]]
        kv.BatchWrite(kv_pb2.BatchWriteRequest(operations=puts), timeout=DEADLINE_S)

    def scan(**request):
        return list(kv.Scan(kv_pb2.ScanRequest(**request), timeout=DEADLINE_S))

    def keys_of(messages):
        return [record.key for message in messages for record in message.records]

    for reverse in (False, True):
        expected = keys[::-1] if reverse else keys
        messages = scan(prefix=prefix, reverse=reverse)
        checks.equal(f"scan, reverse {reverse}", keys_of(messages), expected)
        checks.equal("the last message has no token", messages[-1].page_token, b"")
        token = messages[0].page_token
        rest = scan(prefix=prefix, reverse=reverse, page_token=token)
        checks.equal("goes on after the first message", keys_of(rest), expected[len(messages[0].records) :])
    checks.fails(
        "a token of another direction",
        lambda: scan(prefix=prefix, page_token=token),
        StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
    )
    checks.equal("values come along", [r.value for m in scan(prefix=prefix) for r in m.records], keys)
    only = scan(prefix=prefix, keys_only=True, limit=7)
    checks.equal("limit", keys_of(only), keys[:7])
    checks.true("keys only", not any(record.value for message in only for record in message.records))
    checks.true("a limit leaves a token", only[-1].page_token != b"")
    checks.equal("start and end", keys_of(scan(start=keys[5], end=keys[8])), keys[5:8])
    checks.equal("an empty range", keys_of(scan(start=keys[8], end=keys[5])), [])
    invalid = (StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    checks.fails("prefix and start", lambda: scan(prefix=prefix, start=keys[0]), *invalid)
    checks.fails("a token that is none", lambda: scan(prefix=prefix, page_token=b"?"), *invalid)
    for at in range(0, len(keys), 1000):
        deletes = [kv_pb2.WriteOperation(delete=kv_pb2.DeleteRequest(key=key)) for key in keys[at : at + 1000]]
        kv.BatchWrite(kv_pb2.BatchWriteRequest(operations=deletes), timeout=DEADLINE_S)
    checks.equal("nothing is left", keys_of(scan(prefix=prefix)), [])


def across(checks, nodes, prefix, cluster_stub, addresses):
    """Any node answers for any key, with the same details; and tells who leads it."""
    keys = [prefix + b"across/%02d" % index for index in range(40)]
    for at, node in enumerate(nodes):
        versions = [put(node, key, b"v%d" % at).version for key in keys]
        checks.equal(f"puts through node {at + 1}", versions, [at + 1] * len(keys))
        for other in nodes:
            found = [get(other, key).record.value for key in keys]
            checks.equal("are seen through each", found, [b"v%d" % at] * len(keys))
    for node in nodes:
        for key in keys[:8]:
            checks.fails(
                "a conflict has its details through any node",
                lambda: put(node, key, absent=True),
                StatusCode.FAILED_PRECONDITION,
                "PRECONDITION_FAILED",
                current_version=str(len(nodes)),
            )
        results = node.BatchGet(kv_pb2.BatchGetRequest(keys=keys), timeout=DEADLINE_S).results
        checks.equal("a batch over all partitions", [result.record.key for result in results], keys)
        messages = node.Scan(kv_pb2.ScanRequest(prefix=prefix + b"across/"), timeout=DEADLINE_S)
        scanned = [record.key for message in messages for record in message.records]
        checks.equal("a scan over all nodes is in order", scanned, keys)

    partitions = cluster_stub.ListPartitions(cluster_pb2.ListPartitionsRequest(), timeout=DEADLINE_S).partitions
    checks.equal("every partition has its copies", {len(one.replicas) for one in partitions}, {len(nodes)})
    for key in keys[:8]:
        # A leadership may move between the calls: then they are made again.
        for _ in range(10):
            told = []
            for node in nodes:
                _, call = node.Get.with_call(kv_pb2.GetRequest(key=key), timeout=DEADLINE_S)
                told.append(dict(call.initial_metadata()).get("rushkv-leader"))
            leaders = {address for address in told if address}
            agreed = told.count(None) == 1 and leaders == {addresses[told.index(None)]}
            if agreed:
                break
        checks.true("one node leads a key, and the others tell its address", agreed, repr(told))
    checks.fails(
        "a call that is meant for another cluster",
        lambda: nodes[0].Get(
            kv_pb2.GetRequest(key=keys[0]), timeout=DEADLINE_S, metadata=[("rushkv-cluster", "another")]
        ),
        StatusCode.UNAVAILABLE,
        "UNAVAILABLE",
        meant_for_cluster="another",
    )
    for number, key in enumerate(keys):
        delete(nodes[number % len(nodes)], key)
    checks.equal("nothing is left", [get(nodes[0], key).HasField("record") for key in keys], [False] * len(keys))


def cluster(checks, stub, count):
    info = stub.Info(cluster_pb2.InfoRequest(), timeout=DEADLINE_S)
    checks.equal(f"a cluster of {count}", info.node_count, count)
    checks.equal("every partition has a leader", info.partitions_led, info.partition_count)
    checks.equal("no problems", list(info.problems), [])
    nodes = stub.ListNodes(cluster_pb2.ListNodesRequest(), timeout=DEADLINE_S).nodes
    names = [node.name for node in nodes]
    checks.true(
        "the nodes are listed", len(names) == count and {info.answered_by.name, info.leader} <= {*names}, repr(names)
    )
    partitions = stub.ListPartitions(cluster_pb2.ListPartitionsRequest(), timeout=DEADLINE_S).partitions
    checks.equal("every partition is listed", len(partitions), info.partition_count)
    ordered = sorted(partitions, key=lambda partition: partition.first_hash)
    edges = [-1] + [partition.last_hash for partition in ordered]
    checks.true(
        "they cover every hash once",
        all(partition.first_hash == edge + 1 for partition, edge in zip(ordered, edges)) and edges[-1] == 2**64 - 1,
        repr(edges),
    )
    located = stub.LocateKey(cluster_pb2.LocateKeyRequest(key=b"user:1"), timeout=DEADLINE_S)
    partition = located.partition
    checks.true("a key is located in its range", partition.first_hash <= located.hash <= partition.last_hash)
    tagged = [
        stub.LocateKey(cluster_pb2.LocateKeyRequest(key=key), timeout=DEADLINE_S).hash
        for key in (b"a{tag}1", b"b{tag}2")
    ]
    checks.equal("keys of one tag stay together", tagged[0], tagged[1])
    checks.fails(
        "locate of an empty key",
        lambda: stub.LocateKey(cluster_pb2.LocateKeyRequest(), timeout=DEADLINE_S),
        StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
    )
    watch = stub.WatchTopology(cluster_pb2.WatchTopologyRequest(), timeout=DEADLINE_S)
    topology = next(watch)
    watch.cancel()
    checks.equal("a watch begins with what is", (topology.epoch, len(topology.nodes)), (info.epoch, count))
    checks.equal("and names its cluster", topology.cluster_id, info.cluster_id)


def health(checks, channel):
    """grpc.health.v1 by its bytes, which spares another dependency: field 1 is the name, and 1 is SERVING."""
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    for service in (b"", b"rushkv.RushKV", b"rushkv.v1.Kv", b"rushkv.v1.Cluster"):
        request = bytes([0x0A, len(service)]) + service
        checks.equal(f"{service.decode() or 'the server'} is serving", check(request, timeout=DEADLINE_S), b"\x08\x01")
    try:
        check(b"\x0a\x04nope", timeout=DEADLINE_S)
        checks.true("an unknown service has no health", False)
    except grpc.RpcError as error:
        checks.equal("an unknown service has no health", error.code(), StatusCode.NOT_FOUND)


if __name__ == "__main__":
    main()
