// Thousands of calls at once against a real bridge: from Node, from several processes, and from Cloudflare's workerd.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { subscribe } from "node:diagnostics_channel";
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";

import { configure, ingest } from "../dist/index.js";
import { SDK, startBridge } from "./world.mjs";

const EVENT = { metric: "seats", limit: 10, used: 11, plan: "pro" };
let bridge;
before(async () => {
  bridge = await startBridge(1_000_000);
});
after(() => bridge?.close());

/** How many rows of `customer_id` the target has. */
const arrived = async (customer_id) => (await bridge.arrived()).filter((row) => row.customer_id === customer_id).length;

test("1,000 and 5,000 calls at once all arrive, each once, over connections that are kept", async () => {
  let connections = 0;
  subscribe("undici:client:connected", () => (connections += 1));
  configure({ url: bridge.url, apiKey: bridge.key });
  for (const many of [1_000, 5_000]) {
    const customer_id = `node-${many}`;
    const sent = await Promise.all(
      Array.from({ length: many }, (_, index) =>
        ingest("usage.limit_reached", { ...EVENT, customer_id }, { idempotencyKey: `${many}-${index}` }),
      ),
    );
    assert.equal(new Set(sent.map(({ id }) => id)).size, many);
    assert.equal(sent.filter(({ duplicate }) => duplicate).length, 0);
    assert.equal(await arrived(customer_id), many);
  }
  // some are made anew that a pause has closed; one a call would be 6,000
  assert.ok(connections >= 1 && connections <= 64, `${connections} connections`);
});

test("ten processes with 300 calls at once do not shut each other out", async () => {
  const script = `
    import { ingest } from ${JSON.stringify(join(SDK, "dist", "index.js"))};
    const event = { metric: "seats", limit: 10, used: 11, plan: "pro", customer_id: "processes" };
    await Promise.all(Array.from({ length: 300 }, () => ingest("usage.limit_reached", event)));`;
  const env = { ...process.env, BRIDGE_URL: bridge.url, BRIDGE_API_KEY: bridge.key };
  const run = () => promisify(execFile)(process.execPath, ["--input-type=module", "--eval", script], { env });
  await Promise.all(Array.from({ length: 10 }, run));
  assert.equal(await arrived("processes"), 3_000);
});

const WORKER = `
  import { configure, ingest } from "outbox-bridge";
  export default {
    async fetch(request, env) {
      const { searchParams } = new URL(request.url);
      const many = Number(searchParams.get("many"));
      configure({ url: searchParams.get("to") ?? env.BRIDGE_URL, apiKey: env.BRIDGE_API_KEY, timeoutMs: 2000, retries: 1 });
      const event = { metric: "seats", limit: 10, used: 11, plan: "pro", customer_id: "workerd" };
      const calls = Array.from({ length: many }, () => ingest("usage.limit_reached", event));
      if (searchParams.has("leave")) return new Response("left");
      try {
        const sent = await Promise.all(calls);
        return Response.json({ ids: new Set(sent.map(({ id }) => id)).size });
      } catch (error) {
        return Response.json({ name: error.name, message: error.message, status: error.status, cause: String(error.cause) });
      }
    },
  };`;

test("in Cloudflare's workerd: one call, 1,000 at once, a redirect, and requests that leave their calls alone", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "sdk-workerd-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const silent = createServer(() => undefined);
  const redirecting = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.once("data", () => socket.end("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"));
  });
  for (const server of [silent, redirecting]) {
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    t.after(() => server.close());
  }
  const port = await freePort();
  cpSync(join(SDK, "dist", "index.js"), join(directory, "sdk.js")); // one file, which can be embedded as it is
  writeFileSync(join(directory, "worker.js"), WORKER);
  writeFileSync(
    join(directory, "config.capnp"),
    `using Workerd = import "/workerd/workerd.capnp";
     const config :Workerd.Config = (
       services = [(name = "main", worker = .worker), (name = "internet", network = (allow = ["private"]))],
       sockets = [(name = "http", address = "127.0.0.1:${port}", http = (), service = "main")]);
     const worker :Workerd.Worker = (
       compatibilityDate = "2024-09-23",
       modules = [(name = "worker.js", esModule = embed "worker.js"),
         (name = "outbox-bridge", esModule = embed "sdk.js")],
       bindings = [(name = "BRIDGE_URL", text = "${bridge.url}"), (name = "BRIDGE_API_KEY", text = "${bridge.key}")]);`,
  );
  const workerd = spawn(join(SDK, "node_modules", ".bin", "workerd"), [
    "serve",
    join(directory, "config.capnp"),
  ], { stdio: "inherit" });
  t.after(() => workerd.kill());
  await listening(port);

  const ask = async (query) => (await fetch(`http://127.0.0.1:${port}/?${query}`)).text();
  assert.deepEqual(JSON.parse(await ask("many=1")), { ids: 1 });
  assert.deepEqual(JSON.parse(await ask("many=1000")), { ids: 1000 });
  assert.equal(await arrived("workerd"), 1001);
  const redirected = JSON.parse(await ask(`many=1&to=http://127.0.0.1:${redirecting.address().port}`));
  assert.equal(redirected.status, 307);
  assert.match(redirected.message, /redirect/);
  // These 32 calls end without a sound when their request is answered; their places must not stay taken.
  const to = `to=http://127.0.0.1:${silent.address().port}`;
  assert.equal(await ask(`many=32&leave&${to}`), "left");
  assert.match(JSON.parse(await ask(`many=1&${to}`)).message, /did not answer within 2000 ms/);
});

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function listening(port) {
  for (;;) {
    const answer = await fetch(`http://127.0.0.1:${port}/?many=0`).catch(() => undefined);
    if (answer !== undefined) return answer.text();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
