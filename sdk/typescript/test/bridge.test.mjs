// The packed SDK against a real bridge: the product page's snippet as it stands there, types, refusals.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { configure, ingest, IngestError } from "../dist/index.js";
import { makeConsumer, schema, SDK, startBridge } from "./world.mjs";

const EVENT = { customer_id: "cus_2", metric: "seats", limit: 10, used: 11, plan: "pro" };
const SNIPPET = readFileSync(join(SDK, "test", "snippet.ts"), "utf8");
const ACCOUNT = `
declare const account: {
  id: string;
  plan: { apiLimit: number; name: string };
  usage: { apiCalls: number };
};
declare const period: string;
`;

let bridge, consumer;
before(async () => {
  bridge = await startBridge(200);
  consumer = makeConsumer();
  consumer.write("account.d.ts", ACCOUNT);
  consumer.write("bridge-events.d.ts", schema(bridge, "--typescript", "--module", "@ingestlayer/sdk"));
  configure({ url: bridge.url, apiKey: bridge.key });
});
after(async () => {
  consumer?.remove();
  await bridge?.close();
});

test("the product page's snippet compiles and runs unchanged, and its event reaches the table", async () => {
  consumer.write("snippet.ts", SNIPPET);
  assert.equal(consumer.compile("snippet.ts", "account.d.ts", "bridge-events.d.ts"), "");
  consumer.write(
    "account.mjs",
    `globalThis.account = { id: "cus_1", plan: { apiLimit: 100000, name: "pro" }, usage: { apiCalls: 95210 } };
     globalThis.period = "2026-11";`,
  );
  const environment = { BRIDGE_URL: bridge.url, BRIDGE_API_KEY: bridge.key };
  for (let time = 0; time < 2; time += 1) consumer.run(environment, "--import", "./account.mjs", "snippet.js");
  const rows = (await bridge.arrived()).filter((row) => row.customer_id === "cus_1");
  assert.deepEqual(rows, [{ customer_id: "cus_1", metric: "api-calls", limit: 100000, used: 95210, plan: "pro" }]);
});

test("a metric that the contract does not know does not compile, and the right one is named", () => {
  consumer.write("wrong.ts", SNIPPET.replace('metric: "api-calls"', 'metric: "api-cals"'));
  const said = consumer.compile("wrong.ts", "account.d.ts", "bridge-events.d.ts");
  assert.match(said, /wrong\.ts\(4,1\): error TS\d+: .*"api-cals".*Did you mean '"api-calls"'/s);
});

test("neither a wrong event type, nor a missing field, nor a field of another type compiles", () => {
  for (const [from, to, words] of [
    ['"usage.limit_reached"', '"usage.limit_reachd"', /"usage\.limit_reachd"/],
    ["plan: account.plan.name,", "", /Property 'plan' is missing/],
    ["used: account.usage.apiCalls", "used: account.id", /'string' is not assignable to type 'number'/],
  ]) {
    consumer.write("wrong.ts", SNIPPET.replace(from, to));
    assert.match(consumer.compile("wrong.ts", "account.d.ts", "bridge-events.d.ts"), words);
  }
});

test("without declarations any type and payload compile", () => {
  consumer.write("free.ts", SNIPPET.replace("usage.limit_reached", "anything.goes"));
  assert.equal(consumer.compile("free.ts", "account.d.ts"), "");
});

test("the same idempotency key gives the first event's id", async () => {
  const idempotencyKey = "Schlüssel 鍵 1";
  const first = await ingest("usage.limit_reached", EVENT, { idempotencyKey, key: "cus_2" });
  const again = await ingest("usage.limit_reached", EVENT, { idempotencyKey });
  assert.equal(first.duplicate, false);
  assert.deepEqual(again, { id: first.id, duplicate: true });
});

test("a broken contract is told with its field and not tried again", async () => {
  const broken = ingest("usage.limit_reached", { ...EVENT, metric: "api-cals" }, { idempotencyKey: "x" });
  await assert.rejects(broken, (error) => {
    assert.ok(error instanceof IngestError);
    assert.equal(error.status, 422);
    assert.equal(error.problem.field, "metric");
    assert.equal(error.retryable, false);
    assert.equal(error.idempotencyKey, "x");
    assert.match(error.message, /not one of seats, api-calls, storage/);
    return true;
  });
});

test("a wrong key is told at once", async () => {
  configure({ url: bridge.url, apiKey: "wrong" });
  await assert.rejects(ingest("usage.limit_reached", EVENT), { name: "IngestError", status: 401, retryable: false });
  configure({ url: `${bridge.url}/`, apiKey: bridge.key });
});

test("an interface is a payload with declarations, too", () => {
  consumer.write(
    "shapes.ts",
    `import { ingest } from "@ingestlayer/sdk";
     interface Usage { customer_id: string; metric: "seats"; limit: number; used: number; plan: string }
     declare const usage: Usage;
     await ingest("usage.limit_reached", usage, { idempotencyKey: undefined });`,
  );
  assert.equal(consumer.compile("shapes.ts", "bridge-events.d.ts"), "");
});

test("keys that HTTP would change or cannot hold are refused before anything is sent, the others are two keys", async () => {
  const event = { ...EVENT, customer_id: "cus_keys" };
  for (const bad of ["a ", " a", "a\t", "a\n", "a\r\nx: y", "a\0b", "a\u001fb", "", "a\ud800"]) {
    for (const options of [{ idempotencyKey: bad }, { key: bad }]) {
      await assert.rejects(ingest("usage.limit_reached", event, options), (error) => {
        assert.ok(error instanceof TypeError);
        assert.match(error.message, /^(idempotencyKey|key) (has a line break|begins or ends|is empty|contains half)/);
        return true;
      });
    }
  }
  const keys = ["a", "a  b", "a b", "a\u00a0", "a\u0085", "\u2028a", "ａ", "a\u0301", "\u00e1", "😀"];
  const sent = [];
  for (const idempotencyKey of keys) sent.push(await ingest("usage.limit_reached", event, { idempotencyKey }));
  assert.equal(new Set(sent.map(({ id }) => id)).size, keys.length);
  assert.equal((await bridge.arrived()).filter((row) => row.customer_id === "cus_keys").length, keys.length);
});

test("a burst over the key's rate waits for its turn and all of it arrives", async () => {
  configure({ url: bridge.url, apiKey: bridge.key, retries: 1 });
  const sent = await Promise.all(
    Array.from({ length: 1000 }, (_, used) => ingest("usage.limit_reached", { ...EVENT, customer_id: "cus_3", used })),
  );
  assert.equal(new Set(sent.map(({ id }) => id)).size, 1000);
  const rows = (await bridge.arrived()).filter((row) => row.customer_id === "cus_3");
  assert.equal(rows.length, 1000);
});
