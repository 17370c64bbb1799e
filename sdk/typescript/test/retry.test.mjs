// What ingest does when answers fail: a server that answers by a script.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { afterEach, test } from "node:test";

import { configure, ingest, IngestError } from "../dist/index.js";

const ANSWER = { status: 202, body: '{"id":"0190f1c2-0000-7000-8000-000000000001"}' };
let server;
afterEach(() => {
  server?.closeAllConnections();
  server?.close();
});

/** Answers with the steps in turn, the last one for ever: {status, headers, body}, "cut" or "silence". */
async function script(...steps) {
  const requests = [];
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      requests.push({ path: request.url, headers: request.headers, body, at: performance.now() });
      const step = steps[Math.min(requests.length, steps.length) - 1];
      if (step === "cut") request.socket.destroy();
      else if (step !== "silence") response.writeHead(step.status, step.headers).end(step.body);
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${server.address().port}`;
  configure({ url, apiKey: "k", timeoutMs: 300 });
  return requests;
}

test("lost connections, time-outs, 429 and 503 are tried again with one idempotency key", async () => {
  const requests = await script("cut", "silence", { status: 429 }, { status: 503, body: "<html>" }, ANSWER);
  assert.deepEqual(await ingest("a b", { n: 1 }), { id: JSON.parse(ANSWER.body).id, duplicate: false });
  assert.equal(requests.length, 5);
  assert.equal(new Set(requests.map(({ headers }) => headers["idempotency-key"])).size, 1);
  assert.match(requests[0].headers["idempotency-key"], /^[0-9a-f-]{36}$/);
  assert.deepEqual(new Set(requests.map(({ path, body }) => path + body)), new Set(['/v1/events/a%20b{"n":1}']));
});

test("retry-after is waited for", async () => {
  const requests = await script({ status: 503, headers: { "retry-after": "1" } }, ANSWER);
  await ingest("a", {});
  assert.ok(requests[1].at - requests[0].at >= 990);
});

test("after the last attempt the error says so and carries the key", async () => {
  const problem = { type: "urn:x", title: "Nothing was stored", status: 503, detail: "try again" };
  const requests = await script({ status: 503, body: JSON.stringify(problem) });
  configure({ url: `http://127.0.0.1:${server.address().port}`, apiKey: "k", retries: 1 });
  await assert.rejects(ingest("a", {}, { idempotencyKey: "mine" }), (error) => {
    assert.ok(error instanceof IngestError);
    assert.deepEqual(error.problem, problem);
    assert.equal(error.idempotencyKey, "mine");
    assert.equal(error.retryable, true);
    return true;
  });
  assert.equal(requests.length, 2);
});

for (const status of [400, 401, 404, 413, 415, 422]) {
  test(`${status} is not tried again`, async () => {
    const requests = await script({ status }, ANSWER);
    await assert.rejects(ingest("a", {}), { status, retryable: false });
    assert.equal(requests.length, 1);
  });
}

test("a redirect is not followed: the key would go with it", async () => {
  await script({ status: 307, headers: { location: "http://127.0.0.1:1/" } });
  configure({ url: `http://127.0.0.1:${server.address().port}`, apiKey: "k", retries: 0 });
  await assert.rejects(ingest("a", {}), { name: "IngestError" });
});

test("a signal ends the attempts", async () => {
  const requests = await script("silence");
  const stopped = ingest("a", {}, { signal: AbortSignal.timeout(100) });
  await assert.rejects(stopped, { name: "TimeoutError" });
  assert.equal(requests.length, 1);
});

test("what JSON has no word for is refused before anything is sent", async () => {
  const requests = await script(ANSWER);
  await assert.rejects(ingest("a", { n: [Number.NaN] }), TypeError);
  await assert.rejects(ingest("a", { n: 10n }), TypeError);
  assert.equal(requests.length, 0);
});

test("without an address or a key it says what to set", async () => {
  configure({});
  delete process.env.BRIDGE_URL;
  await assert.rejects(ingest("a", {}), /BRIDGE_URL/);
  process.env.BRIDGE_URL = "http://127.0.0.1:1";
  await assert.rejects(ingest("a", {}), /BRIDGE_API_KEY/);
});
