// rushkv.v1, made by a stock client, with the detail of errors.
//
//     node check_v1.js HOST:PORT [HOST:PORT ...]
//
// Asks all the nodes of a cluster, and leaves no keys behind. Exits with 1 if a check fails.
"use strict";

const { randomUUID } = require("node:crypto");
const { call, credentials, grpc, load, main, stream } = require("./support");

const { v1 } = load("rushkv/v1/kv.proto", "rushkv/v1/cluster.proto").rushkv;
const { FAILED_PRECONDITION, INVALID_ARGUMENT, UNAVAILABLE } = grpc.status;

main(async (checks, addresses) => {
  const connect = (Stub) => addresses.map((address) => new Stub(address, credentials.createInsecure()));
  const nodes = connect(v1.Kv);
  const ask = async (node, method, request) => (await call(node, method, request)).answer;
  const prefix = Buffer.from(`check-v1-js-${randomUUID()}/`);
  const keys = Array.from({ length: 24 }, (_, at) => Buffer.concat([prefix, Buffer.from([0, 255, at])]));

  for (const [at, node] of nodes.entries()) {
    const value = Buffer.from(`v${at}`);
    const precondition = at === 0 ? { absent: true } : { version: String(at) };
    for (const key of keys) await ask(node, "Put", { key, value, precondition });
    for (const other of nodes) {
      const found = await Promise.all(keys.map((key) => ask(other, "Get", { key })));
      const seen = found.map(({ record }) => [record.version, record.value.toString()]);
      checks.equal(`puts through node ${at + 1} are seen`, seen, Array(keys.length).fill([String(at + 1), `v${at}`]));
    }
  }
  const last = String(nodes.length);
  const invalid = [INVALID_ARGUMENT, "INVALID_ARGUMENT"];
  for (const node of nodes) {
    const conflict = { key: keys[0], value: Buffer.from("x"), precondition: { absent: true } };
    const told = { current_version: last };
    await checks.fails("a conflict", ask(node, "Put", conflict), FAILED_PRECONDITION, "PRECONDITION_FAILED", told);
    await checks.fails("an empty key", ask(node, "Get", { key: Buffer.alloc(0) }), ...invalid);
    const long = { key: Buffer.alloc(4097, "k") };
    await checks.fails("a long key", ask(node, "Get", long), INVALID_ARGUMENT, "TOO_LARGE", { limit: "4096" });

    const { outcomes } = await ask(node, "BatchWrite", {
      operations: [{ put: conflict }, { put: { key: keys[1], value: Buffer.from("batch") } }],
    });
    const told_ = [outcomes[0].error.reason, outcomes[0].error.happened, outcomes[1].outcome];
    checks.equal("a batch tells each outcome", told_, ["PRECONDITION_FAILED", "no", "put"]);
    const { results } = await ask(node, "BatchGet", { keys });
    checks.equal("a batch over all partitions", results.map(({ record }) => record.key), keys);
    const messages = await stream(node, "Scan", { prefix });
    checks.equal("a scan is in order", messages.flatMap(({ records }) => records).map(({ key }) => key), keys);
  }

  const another = new grpc.Metadata();
  another.set("rushkv-cluster", "another");
  const meant = call(nodes[0], "Get", { key: keys[0] }, { metadata: another });
  await checks.fails("a call for another cluster", meant, UNAVAILABLE, "UNAVAILABLE", { meant_for_cluster: "another" });

  for (const cluster of connect(v1.Cluster)) {
    const info = await ask(cluster, "Info", {});
    checks.equal("the cluster is told", [info.node_count, info.problems], [nodes.length, []]);
    const { partition, hash } = await ask(cluster, "LocateKey", { key: keys[0] });
    const inside = BigInt(partition.first_hash) <= BigInt(hash) && BigInt(hash) <= BigInt(partition.last_hash);
    checks.holds("a key is located in its range", inside);
    cluster.close();
  }
  for (const [at, key] of keys.entries()) await ask(nodes[at % nodes.length], "Delete", { key });
  checks.equal("nothing is left", (await stream(nodes[0], "Scan", { prefix })).flatMap(({ records }) => records), []);
  for (const node of nodes) node.close();
});
