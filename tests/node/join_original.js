// Two nodes started separately become one cluster by the original's Join, and the first of them leaves by its
// Leave, made by a stock client that loads the original's interface.
//
//     node join_original.js HOST:PORT HOST:PORT
//
// Asks the first to take the second in, and the second to let the first go. Exits with 1 if a check fails.
"use strict";

const { setTimeout: sleep } = require("node:timers/promises");
const util = require("node:util");
const { call, credentials, load, main } = require("./support");

const { rushkv } = load("rushkv.proto");

// A node that joins starts anew, one that leaves hands its copies over first.
const SETTLED_MS = 60_000;

main(async (checks, addresses) => {
  const [first, second] = addresses.map((address) => new rushkv.RushKV(address, credentials.createInsecure()));
  const ask = async (node, method, request) => (await call(node, method, request, { deadlineMs: 5000 })).answer;
  const done = { success: true, error: "" };
  const place = ({ id, address, port }) => `${id} ${address}:${port}`;

  /** Each of the nodes tells these members, and one of them as the leader. */
  async function settle(name, nodes, wanted) {
    const expected = nodes.map(() => [wanted, true]);
    const deadline = Date.now() + SETTLED_MS;
    for (;;) {
      let seen;
      try {
        const told = await Promise.all(nodes.map((node) => ask(node, "GetClusterInfo", {})));
        seen = told.map((info) => {
          const leaders = info.nodes.filter((one) => one.is_leader).map((one) => one.id);
          return [info.nodes.map(place).sort(), util.isDeepStrictEqual(leaders, [info.leader])];
        });
      } catch (error) {
        seen = error.message; // it starts anew
      }
      if (util.isDeepStrictEqual(seen, expected)) return checks.holds(name, true);
      if (Date.now() > deadline) return checks.equal(`${name} within ${SETTLED_MS} ms`, seen, expected);
      await sleep(100);
    }
  }

  const [here, there] = await Promise.all(
    [first, second].map(async (node) => {
      const { nodes } = await ask(node, "GetClusterInfo", {});
      checks.equal("a cluster of one", nodes.length, 1);
      return nodes[0];
    }),
  );
  checks.holds("they have names of their own", here.id !== there.id, here.id);
  checks.equal("put before the join", await ask(first, "Put", { key: "join-js/before", value: Buffer.from("1") }), done);

  const { id, address, port } = there;
  checks.equal("join", await ask(first, "Join", { node_id: id, address, port }), done);
  await settle("both tell both members", [first, second], [place(here), place(there)].sort());
  const found = { success: true, value: Buffer.from("1"), error: "" };
  checks.equal("the one that joined answers for what was there", await ask(second, "Get", { key: "join-js/before" }), found);

  checks.equal("leave", await ask(second, "Leave", { node_id: here.id }), done);
  await settle("the one that joined is left", [second], [place(there)]);
  checks.equal("and has every key", await ask(second, "Get", { key: "join-js/before" }), found);
  const last = await ask(second, "Leave", { node_id: there.id });
  checks.holds("the last one can't leave", !last.success && last.error.includes("last member"), last.error);
  first.close();
  second.close();
});
