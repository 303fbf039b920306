// The original's six calls, made by a stock client that loads the original's interface.
//
//     node check_original.js HOST:PORT [HOST:PORT ...]
//
// Asks all the nodes of a cluster, and leaves no keys behind. Exits with 1 if a check fails.
"use strict";

const { randomUUID } = require("node:crypto");
const { call, credentials, load, main } = require("./support");

const { rushkv } = load("rushkv.proto");

main(async (checks, addresses) => {
  const nodes = addresses.map((address) => new rushkv.RushKV(address, credentials.createInsecure()));
  const ask = async (node, method, request) => (await call(node, method, request, { deadlineMs: 5000 })).answer;
  const missing = { success: false, value: Buffer.alloc(0), error: "key not found" };
  const done = { success: true, error: "" };
  const key = `check-original-js-${randomUUID()}-ключ`;
  const value = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));

  for (const [at, node] of nodes.entries()) {
    checks.equal("get of a missing key", await ask(node, "Get", { key }), missing);
    checks.equal(`put through node ${at + 1}`, await ask(node, "Put", { key, value }), done);
    for (const other of nodes) {
      checks.equal("get through each", await ask(other, "Get", { key }), { success: true, value, error: "" });
    }
    const refused = await ask(node, "Put", { key: "", value });
    checks.holds("an empty key is refused in the body", !refused.success && refused.error !== "");
    checks.equal("delete", await ask(nodes[(at + 1) % nodes.length], "Delete", { key }), done);
    checks.equal("delete again", await ask(node, "Delete", { key }), { success: false, error: "key not found" });
  }

  for (const node of nodes) {
    const info = await ask(node, "GetClusterInfo", {});
    const leaders = info.nodes.filter((one) => one.is_leader).map((one) => one.id);
    checks.equal("every member is told, one as the leader", [info.nodes.length, leaders], [nodes.length, [info.leader]]);
    const { id, address, port } = info.nodes[0];
    checks.equal("join of a member", await ask(node, "Join", { node_id: id, address, port }), done);
    const leave = await ask(node, "Leave", { node_id: "node-x" });
    checks.holds("leave of a stranger says no", !leave.success && leave.error !== "");
  }
  for (const node of nodes) node.close();
});
