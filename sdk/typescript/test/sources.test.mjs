// A bridge that reads two sources: the call says whose outbox gets its event.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { configure, ingest, IngestError } from "../dist/index.js";
import { startBridge } from "./world.mjs";

const EVENT = { customer_id: "cus_2", metric: "seats", limit: 10, used: 11, plan: "pro" };

let bridge;
before(async () => {
  bridge = await startBridge(200, "eu");
});
after(() => bridge?.close());

test("a call, else the configuration, chooses the source", async () => {
  configure({ url: bridge.url, apiKey: bridge.key, source: "eu" });
  await ingest("usage.limit_reached", EVENT);
  await ingest("usage.limit_reached", EVENT);
  await ingest("usage.limit_reached", EVENT, { source: "source" });
  assert.deepEqual([await bridge.outbox("source"), await bridge.outbox("eu")], [1, 2]);
});

test("no source, and one that is not there, are refused at once with the known ones", async () => {
  configure({ url: bridge.url, apiKey: bridge.key });
  for (const [source, words] of [[undefined, /names one of source, eu/], ["uk", /no such source/]]) {
    await assert.rejects(ingest("usage.limit_reached", EVENT, { source }), (error) => {
      assert.ok(error instanceof IngestError);
      assert.equal(error.status, 400);
      assert.match(error.message, words);
      return true;
    });
  }
});
