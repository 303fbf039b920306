// Shared by the client checks: services from the interface's own files, checks that are counted, and the
// detail that a failure carries.
"use strict";

const path = require("node:path");
const util = require("node:util");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");

const PROTO = path.resolve(__dirname, "../../proto");
const DEADLINE_MS = 10_000;

/** The packages of these proto files, 64-bit numbers as strings, as most programs load them. */
function load(...files) {
  const options = { includeDirs: [PROTO], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };
  return grpc.loadPackageDefinition(loader.loadSync(files, options));
}

/** Makes a unary call; resolves to the answer, its initial metadata beside it. */
function call(stub, method, request, { metadata = new grpc.Metadata(), deadlineMs = DEADLINE_MS } = {}) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + deadlineMs;
    let initial;
    const made = stub[method](request, metadata, { deadline }, (error, answer) =>
      error ? reject(error) : resolve({ answer, initial }),
    );
    made.on("metadata", (received) => (initial = received));
  });
}

/** Every message of a stream. */
async function stream(stub, method, request) {
  const messages = [];
  for await (const message of stub[method](request, { deadline: Date.now() + DEADLINE_MS })) messages.push(message);
  return messages;
}

// google.rpc, as far as we need it: https://google.aip.dev/193
const details = protobuf.parse(
  `
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`,
  { keepCase: true },
).root;

/** The google.rpc.ErrorInfo of a failed call, or undefined. */
function errorInfo(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes) return undefined;
  const status = details.lookupType("google.rpc.Status").decode(bytes);
  const found = status.details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
  return found && details.lookupType("google.rpc.ErrorInfo").decode(found.value);
}

/** Runs named checks, goes on after a failure, and ends with the number of both. */
class Checks {
  passed = 0;
  failed = 0;

  holds(name, holds, otherwise = "does not hold") {
    if (holds) this.passed += 1;
    else this.failed += 1;
    console.log(holds ? `ok      ${name}` : `FAILED  ${name}: ${otherwise}`);
  }

  equal(name, actual, expected) {
    const told = `${util.inspect(actual, { depth: 5 })} is not ${util.inspect(expected, { depth: 5 })}`;
    this.holds(name, util.isDeepStrictEqual(actual, expected), told);
  }

  /** `promise` must fail with this code and an ErrorInfo of ours that says all this. */
  async fails(name, promise, code, reason, metadata = {}) {
    try {
      await promise;
    } catch (error) {
      const info = errorInfo(error);
      const expected = { happened: "no", ...metadata };
      const seen = info && Object.fromEntries(Object.keys(expected).map((key) => [key, info.metadata[key]]));
      this.equal(name, [error.code, info?.domain, info?.reason, seen], [code, "rushkv", reason, expected]);
      return;
    }
    this.holds(name, false, "it succeeded");
  }

  end() {
    console.log(`${this.passed} passed, ${this.failed} failed`);
    process.exitCode = this.failed || !this.passed ? 1 : 0;
  }
}

/** Runs `checks(...)` over the addresses of the command line. */
function main(run) {
  const addresses = process.argv.slice(2);
  if (addresses.length === 0) {
    console.error(`usage: node ${path.basename(process.argv[1])} HOST:PORT [HOST:PORT ...]`);
    process.exit(2);
  }
  const checks = new Checks();
  run(checks, addresses).then(
    () => checks.end(),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
}

module.exports = { call, credentials: grpc.credentials, grpc, load, main, stream };
