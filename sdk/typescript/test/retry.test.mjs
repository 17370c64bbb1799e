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

for (const status of [301, 302, 303, 307, 308]) {
  test(`a redirect ${status} is not followed, for the key would go with it, and not tried again`, async () => {
    const requests = await script({ status, headers: { location: "/elsewhere" } }, ANSWER);
    await assert.rejects(ingest("a", {}), { name: "IngestError", status, retryable: false, message: /redirect/ });
    assert.deepEqual(requests.map(({ path }) => path), ["/v1/events/a"]);
  });
}

for (const body of ["<html>sign in</html>", "{}", "null", '{"id":7}', ""]) {
  test(`200 with ${JSON.stringify(body)} is not taken for a stored event`, async () => {
    await script({ status: 200, body });
    configure({ url: `http://127.0.0.1:${server.address().port}`, apiKey: "k", retries: 1 });
    await assert.rejects(ingest("a", {}), { name: "IngestError", status: 200, message: /not the bridge/ });
  });
}

test("over the rate it waits and counts no failed attempt", async () => {
  const over = { status: 429, headers: { "retry-after": "0" } };
  const requests = await script(over, over, over, over, ANSWER);
  configure({ url: `http://127.0.0.1:${server.address().port}`, apiKey: "k", retries: 1 });
  await ingest("a", {});
  assert.equal(requests.length, 5);
});

test("a rate's refusal holds back the calls that wait, so that they are not refused, too", async () => {
  const requests = await script({ status: 429, headers: { "retry-after": "1" } }, ANSWER);
  configure({ url: `http://127.0.0.1:${server.address().port}`, apiKey: "k", concurrency: 1 });
  await Promise.all([ingest("a", {}), ingest("b", {}), ingest("c", {})]);
  assert.ok(requests[1].at - requests[0].at >= 990);
  assert.equal(requests.length, 4);
});

for (const concurrency of [1, 3]) {
  test(`of 20 calls ${concurrency} are under way, the others wait in order, and a signal ends the waiting`, async () => {
    let under = 0;
    let most = 0;
    const order = [];
    server = createServer((request, response) => {
      most = Math.max(most, (under += 1));
      order.push(request.url.split("/").at(-1));
      setTimeout(() => ((under -= 1), response.writeHead(ANSWER.status).end(ANSWER.body)), 10);
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    configure({ url: `http://127.0.0.1:${server.address().port}`, apiKey: "k", concurrency });
    const given = Array.from({ length: 20 }, (_, index) => `e${index}`);
    const stopped = new AbortController();
    const calls = given.map((type) => ingest(type, {}, type === "e10" ? { signal: stopped.signal } : {}));
    stopped.abort(new Error("enough"));
    await assert.rejects(calls[10], /enough/);
    await Promise.all(calls.filter((_, index) => index !== 10));
    assert.equal(most, concurrency);
    const arrived = concurrency === 1 ? order : order.slice().sort();
    const sent = given.filter((type) => type !== "e10");
    assert.deepEqual(arrived, concurrency === 1 ? sent : sent.sort());
  });
}

test("a caller in a loop does not overtake those that wait", async () => {
  await script(ANSWER);
  configure({ url: `http://127.0.0.1:${server.address().port}`, apiKey: "k", concurrency: 1 });
  let waits = true;
  let rounds = 0;
  const loop = async () => {
    while (waits && rounds < 200) {
      rounds += 1;
      await ingest("loop", {});
    }
  };
  const looping = loop();
  await ingest("single", {}).then(() => (waits = false));
  await looping;
  assert.ok(rounds < 5, `${rounds} rounds`);
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
  for (const lost of [new Map([["a", 1]]), new Set([1]), new Date(Number.NaN), Number.POSITIVE_INFINITY]) {
    await assert.rejects(ingest("a", { deep: [{ lost }] }), { name: "TypeError", message: /field "lost" is/ });
  }
  for (const payload of [undefined, null, 1, "text", [1], () => 1, Symbol("x")]) {
    await assert.rejects(ingest("a", payload), { name: "TypeError", message: /not an object of fields/ });
  }
  for (const type of ["", ".", "..", "\ud800", undefined]) {
    await assert.rejects(ingest(type, {}), { name: "TypeError", message: /^type / });
  }
  assert.equal(requests.length, 0);
});

test("without an address or a key it says what to set", async () => {
  configure({});
  delete process.env.BRIDGE_URL;
  await assert.rejects(ingest("a", {}), /BRIDGE_URL/);
  process.env.BRIDGE_URL = "http://127.0.0.1:1";
  await assert.rejects(ingest("a", {}), /BRIDGE_API_KEY/);
});

test("an address that fetch would take otherwise than it is meant is refused, and its password is not repeated", async () => {
  for (const [url, said] of [
    ["bridge:8080", /^url is "bridge:8080", which has no scheme or no host: write https:\/\/HOST$/],
    ["bridge.internal", /no scheme/],
    ["127.0.0.1:8080", /no scheme/],
    ["//bridge", /no scheme/],
    ["http:bridge", /no scheme/],
    ["ftp://bridge", /no scheme/],
    ["https://", /no host/],
    ["https://user:s3cret@bridge", /^url has a user name or password/],
    ["https://bridge?key=s3cret", /^url has a query/],
    ["https://bridge/#s3cret", /^url has a query/],
  ]) {
    configure({ url, apiKey: "k" });
    await assert.rejects(ingest("a", {}), (error) => {
      assert.equal(error.constructor, TypeError);
      assert.match(error.message, said);
      assert.doesNotMatch(error.message, /s3cret/);
      return true;
    });
  }
});

test("an API key with a line break at its end is the key of a file, any other blank is refused and not repeated", async () => {
  const requests = await script(ANSWER);
  const url = `http://127.0.0.1:${server.address().port}`;
  for (const apiKey of ["s3\ncret", "s3 cret", "s3\r\nx-y: z", "s3\0cret", " \n"]) {
    configure({ url, apiKey });
    await assert.rejects(ingest("a", {}), (error) => {
      assert.equal(error.constructor, TypeError);
      assert.match(error.message, /^apiKey (has a blank|is empty)/);
      assert.doesNotMatch(error.message, /s3/);
      return true;
    });
  }
  assert.equal(requests.length, 0);
  for (const apiKey of ["s3cret\n", "s3cret\r\n"]) {
    configure({ url, apiKey });
    await ingest("a", {});
  }
  assert.deepEqual(requests.map(({ headers }) => headers.authorization), ["Bearer s3cret", "Bearer s3cret"]);
});
