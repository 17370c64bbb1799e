/**
 * Put events into an Outbox Bridge. `ingest` resolves once the event is committed in your database.
 *
 * It asks again after lost connections, time-outs and refusals that pass, always with the same idempotency key: the
 * event is there once, whichever answer was lost. Of many calls at once some are under way, the others wait.
 */
import { IngestError, refusal } from "./error.js";
import { Lane, sleep } from "./lane.js";
import { address, bearer, json, keyHeader, pathOf } from "./request.js";

export { IngestError, type Problem } from "./error.js";

/**
 * Event type to payload. Empty here: `bridge schema event --typescript > bridge-events.d.ts` fills it from your
 * contracts, and then `ingest` takes these types and payloads only.
 */
// eslint-disable-next-line @typescript-eslint/no-empty-object-type
export interface Events {}

/** The event types that your contracts name; any text while there are none. */
export type EventType = [keyof Events] extends [never] ? string : Extract<keyof Events, string>;

/** Fields by name: an interface, a type or a class; no array, Map or Set. */
export type Fields = object & { readonly [Symbol.iterator]?: never };

/** A contract that allows more fields has an index signature, which an interface of its fields has not. */
type Named<E> = { [K in keyof E as string extends K ? never : K]: E[K] };

/** The payload of an event type. */
export type Payload<T extends string> = T extends keyof Events
  ? Events[T] | (Named<Events[T]> & Fields)
  : Record<string, unknown> | Fields;

export interface IngestOptions {
  /** Events of one type with the same key are the same event; made at random when absent. */
  idempotencyKey?: string | undefined;
  /** Ordering key: events with the same one are applied in order. */
  key?: string | undefined;
  /** Of several sources that the bridge reads, the one whose outbox gets the event. Default: configure's. */
  source?: string | undefined;
  /** Gives up, also before its turn and between attempts. */
  signal?: AbortSignal | undefined;
}

export interface Ingested {
  /** The event's id; the first event's when it was there before. */
  id: string;
  /** The idempotency key was used before: nothing was added. */
  duplicate: boolean;
}

export interface Configuration {
  /** Where the bridge's ingress listens. Default: BRIDGE_URL. */
  url?: string | undefined;
  /** One of its `ingress.api_keys`. Default: BRIDGE_API_KEY. */
  apiKey?: string | undefined;
  /** Of several sources that the bridge reads, the one whose outbox gets the events. */
  source?: string | undefined;
  /** For one attempt; waiting for a turn is not counted. Default: 10 s. */
  timeoutMs?: number | undefined;
  /** Attempts after the first. Default: 8, which outlast a restart of the bridge. */
  retries?: number | undefined;
  /** Calls under way at a time, of this process to this address; more wait. Default: 16. */
  concurrency?: number | undefined;
  /** Instead of the platform's own. */
  fetch?: typeof globalThis.fetch | undefined;
}

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
const LONGEST_RETRY_AFTER_MS = 30_000;
/** A rate's refusals are waited out so long; they are no failed attempts. */
const LONGEST_OVER_RATE_MS = 60_000;

/** Of the whole process: a program may hold this module twice, as an ES module and as CommonJS. */
interface Shared {
  configured: Configuration;
  /** By address and API key: the bridge counts both of a rate. */
  lanes: Map<string, Lane>;
}
const SHARED = Symbol.for("outbox-bridge/1");
const shared = ((globalThis as { [SHARED]?: Shared })[SHARED] ??= { configured: {}, lanes: new Map() });

/** Set what the environment does not say. Replaces what an earlier call set. */
export function configure(configuration: Configuration): void {
  shared.configured = { ...configuration };
}

/**
 * Put one event in. Resolves after its commit.
 *
 * Rejects with IngestError: at once for what can never be taken (a broken contract, a wrong key), after the retries
 * for the rest. Rejects with TypeError, before anything is sent, for what would not arrive as it is: a payload that
 * JSON has no words for (NaN, a bigint, a Map), a key with a line break or with blanks at its ends, an address
 * without a scheme.
 */
export async function ingest<T extends EventType>(
  type: T,
  payload: Payload<T>,
  options: IngestOptions = {},
): Promise<Ingested> {
  const { url, authorization, timeoutMs, retries, lane, fetch } = settings();
  const { signal } = options;
  const idempotencyKey = options.idempotencyKey ?? globalThis.crypto.randomUUID();
  const headers: Record<string, string> = {
    authorization,
    "content-type": "application/json",
    "idempotency-key": keyHeader("idempotencyKey", idempotencyKey),
  };
  if (options.key !== undefined) headers["x-outbox-key"] = keyHeader("key", options.key);
  const source = options.source ?? shared.configured.source;
  if (source !== undefined) headers["x-outbox-source"] = keyHeader("source", source);
  const target = url + pathOf(type);
  const request = { method: "POST", headers, body: json(payload) };

  /** One attempt. An answer or an error, and how long the bridge asks to wait. */
  const attempt = async (): Promise<Ingested | { error: IngestError; afterMs: number }> => {
    const clock = deadline(timeoutMs, signal);
    try {
      // Workers have no redirect: "error"; an answer of another host would mean that it was given the API key.
      const answer = await fetch(target, { ...request, redirect: "manual", signal: clock.signal });
      const text = await answer.text();
      const stored = answer.status === 202 || answer.status === 200 ? ingested(text) : undefined;
      if (stored !== undefined) return stored;
      const afterMs = 1000 * Number(answer.headers.get("retry-after") ?? 0) || 0;
      const error = refusal(answer.status, text, idempotencyKey);
      return { error, afterMs: Math.min(Math.max(afterMs, 0), LONGEST_RETRY_AFTER_MS) };
    } catch (cause) {
      signal?.throwIfAborted();
      const what = clock.over() ? `did not answer within ${timeoutMs} ms` : "could not be reached";
      const error = new IngestError(`the bridge at ${url} ${what}`, { idempotencyKey, retryable: true, cause });
      return { error, afterMs: 0 };
    } finally {
      clock.end();
    }
  };

  let failed = 0;
  let overRateSince: number | undefined;
  for (;;) {
    const place = await lane.enter(timeoutMs + 1_000, signal);
    let outcome;
    try {
      outcome = await attempt();
      if ("id" in outcome) return outcome;
      if (outcome.error.status === 429) lane.pause(outcome.afterMs);
    } finally {
      lane.leave(place);
    }
    const { error, afterMs } = outcome;
    overRateSince ??= performance.now();
    const waitsForItsTurn = error.status === 429 && retries > 0 && performance.now() - overRateSince < LONGEST_OVER_RATE_MS;
    if (error.status !== 429) overRateSince = undefined;
    if (!error.retryable || (!waitsForItsTurn && failed >= retries)) throw error;
    const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failed);
    if (!waitsForItsTurn) failed += 1;
    await sleep(afterMs + Math.random() * longest, signal);
  }
}

interface Settings {
  url: string;
  authorization: string;
  timeoutMs: number;
  retries: number;
  lane: Lane;
  fetch: typeof globalThis.fetch;
}

function settings(): Settings {
  const { configured, lanes } = shared;
  const environment = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env ?? {};
  const url = configured.url ?? environment["BRIDGE_URL"];
  const apiKey = configured.apiKey ?? environment["BRIDGE_API_KEY"];
  if (!url) throw new TypeError("where is the bridge? set BRIDGE_URL, or call configure({ url })");
  if (!apiKey) throw new TypeError("no API key: set BRIDGE_API_KEY, or call configure({ apiKey })");
  const base = address(url, configured.url === undefined ? "BRIDGE_URL" : "url");
  const authorization = bearer(apiKey, configured.apiKey === undefined ? "BRIDGE_API_KEY" : "apiKey");
  const concurrency = configured.concurrency ?? 16;
  if (!(concurrency >= 1)) throw new TypeError(`concurrency is ${concurrency}: at least 1`);
  const name = `${base} ${authorization}`;
  let lane = lanes.get(name);
  if (lane === undefined) lanes.set(name, (lane = new Lane(concurrency)));
  lane.setLimit(concurrency);
  return {
    url: base,
    authorization,
    timeoutMs: configured.timeoutMs ?? 10_000,
    retries: configured.retries ?? 8,
    lane,
    fetch: configured.fetch ?? globalThis.fetch,
  };
}

/** A signal for one attempt. AbortSignal.any and .timeout leave timers and listeners behind, thousands of them. */
function deadline(milliseconds: number, outer: AbortSignal | undefined) {
  const controller = new AbortController();
  let over = false;
  const stop = (): void => controller.abort(outer?.reason);
  const timer = setTimeout(() => {
    over = true;
    controller.abort(new DOMException("no answer in time", "TimeoutError"));
  }, milliseconds);
  outer?.addEventListener("abort", stop, { once: true });
  return {
    signal: controller.signal,
    over: (): boolean => over,
    end: (): void => {
      clearTimeout(timer);
      outer?.removeEventListener("abort", stop);
    },
  };
}

/** Undefined for what is no answer of a bridge: a proxy's page comes with 200, too. */
function ingested(text: string): Ingested | undefined {
  try {
    const { id, duplicate } = JSON.parse(text) as { id?: unknown; duplicate?: unknown };
    return typeof id === "string" ? { id, duplicate: duplicate === true } : undefined;
  } catch {
    return undefined;
  }
}
