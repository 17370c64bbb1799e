/**
 * Put events into an Outbox Bridge. `ingest` resolves once the event is committed in your database.
 *
 * It asks again after lost connections, time-outs and refusals that pass, always with the same idempotency key: the
 * event is there once, whichever answer was lost.
 */

/**
 * Event type to payload. Empty here: `bridge schema event --typescript > bridge-events.d.ts` fills it from your
 * contracts, and then `ingest` takes these types and payloads only.
 */
// eslint-disable-next-line @typescript-eslint/no-empty-object-type
export interface Events {}

/** The event types that your contracts name; any text while there are none. */
export type EventType = [keyof Events] extends [never] ? string : Extract<keyof Events, string>;

/** The payload of an event type. */
export type Payload<T extends string> = T extends keyof Events ? Events[T] : Record<string, unknown>;

export interface IngestOptions {
  /** Events of one type with the same key are the same event; made at random when absent. */
  idempotencyKey?: string;
  /** Ordering key: events with the same one are applied in order. */
  key?: string;
  /** Gives up, also between attempts. */
  signal?: AbortSignal;
}

export interface Ingested {
  /** The event's id; the first event's when it was there before. */
  id: string;
  /** The idempotency key was used before: nothing was added. */
  duplicate: boolean;
}

export interface Configuration {
  /** Where the bridge's ingress listens. Default: BRIDGE_URL. */
  url?: string;
  /** One of its `ingress.api_keys`. Default: BRIDGE_API_KEY. */
  apiKey?: string;
  /** For one attempt. Default: 10 s. */
  timeoutMs?: number;
  /** Attempts after the first. Default: 4. */
  retries?: number;
  /** Instead of the platform's own. */
  fetch?: typeof globalThis.fetch;
}

/** What the bridge says of a request that it refuses (RFC 9457, problem+json). */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  /** The field of the payload, or the header, that is refused. */
  field?: string;
}

/** The event was not taken, or nobody answered that it was. */
export class IngestError extends Error {
  override readonly name = "IngestError";
  /** HTTP status; absent when there was no answer. */
  readonly status: number | undefined;
  /** What the bridge said, where it said something. */
  readonly problem: Problem | undefined;
  /** Sending the same event again can help; do so with the same idempotency key. */
  readonly retryable: boolean;
  /** The key that was sent. */
  readonly idempotencyKey: string;

  constructor(
    message: string,
    facts: { idempotencyKey: string; retryable: boolean; status?: number; problem?: Problem; cause?: unknown },
  ) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.status = facts.status;
    this.problem = facts.problem;
    this.retryable = facts.retryable;
    this.idempotencyKey = facts.idempotencyKey;
  }
}

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
const LONGEST_RETRY_AFTER_MS = 30_000;

let configured: Configuration = {};

/** Set what the environment does not say. Replaces what an earlier call set. */
export function configure(configuration: Configuration): void {
  configured = { ...configuration };
}

/**
 * Put one event in. Resolves after its commit.
 *
 * Rejects with IngestError: at once for what can never be taken (a broken contract, a wrong key), after the retries
 * for the rest. Rejects with TypeError for a payload that JSON has no words for (NaN, a bigint).
 */
export async function ingest<T extends EventType>(
  type: T,
  payload: Payload<T>,
  options: IngestOptions = {},
): Promise<Ingested> {
  const { url, apiKey, timeoutMs, retries, fetch } = settings();
  const idempotencyKey = options.idempotencyKey ?? globalThis.crypto.randomUUID();
  const headers: Record<string, string> = {
    authorization: `Bearer ${apiKey}`,
    "content-type": "application/json",
    "idempotency-key": asHeader(idempotencyKey),
  };
  if (options.key !== undefined) headers["x-outbox-key"] = asHeader(options.key);
  const target = `${url}/v1/events/${encodeURIComponent(type)}`;
  const request = { method: "POST", headers, body: json(payload), redirect: "error" as const };

  for (let attempt = 0; ; attempt += 1) {
    options.signal?.throwIfAborted();
    const timeout = AbortSignal.timeout(timeoutMs);
    const signal = options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]);
    let error: IngestError;
    let retryAfterMs = 0;
    try {
      const answer = await fetch(target, { ...request, signal });
      const text = await answer.text();
      if (answer.status === 202 || answer.status === 200) return ingested(text);
      retryAfterMs = 1000 * Number(answer.headers.get("retry-after") ?? 0) || 0;
      error = refusal(answer.status, text, idempotencyKey);
    } catch (cause) {
      options.signal?.throwIfAborted();
      const what = timeout.aborted ? `did not answer within ${timeoutMs} ms` : "could not be reached";
      error = new IngestError(`the bridge at ${url} ${what}`, { idempotencyKey, retryable: true, cause });
    }
    if (!error.retryable || attempt >= retries) throw error;
    const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempt);
    const pause = Math.min(retryAfterMs, LONGEST_RETRY_AFTER_MS) + Math.random() * longest;
    await sleep(pause, options.signal);
  }
}

function settings(): Required<Configuration> {
  const environment = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env ?? {};
  const url = configured.url ?? environment["BRIDGE_URL"];
  const apiKey = configured.apiKey ?? environment["BRIDGE_API_KEY"];
  if (!url) throw new TypeError("where is the bridge? set BRIDGE_URL, or call configure({ url })");
  if (!apiKey) throw new TypeError("no API key: set BRIDGE_API_KEY, or call configure({ apiKey })");
  return {
    url: url.replace(/\/+$/, ""),
    apiKey,
    timeoutMs: configured.timeoutMs ?? 10_000,
    retries: configured.retries ?? 4,
    fetch: configured.fetch ?? globalThis.fetch,
  };
}

/** JSON.stringify writes null for NaN and infinities: a number that turns into nothing without a sound. */
function json(payload: unknown): string {
  return JSON.stringify(payload, (name, value: unknown) => {
    if (typeof value === "number" && !Number.isFinite(value)) {
      throw new TypeError(`field ${JSON.stringify(name)} is ${value}, which JSON has no word for`);
    }
    return value;
  });
}

/** A header's text as the UTF-8 that the bridge reads; fetch takes one character for one byte. */
function asHeader(text: string): string {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

function ingested(text: string): Ingested {
  const answer = JSON.parse(text) as { id: string; duplicate?: boolean };
  return { id: answer.id, duplicate: answer.duplicate === true };
}

function refusal(status: number, text: string, idempotencyKey: string): IngestError {
  const retryable = status === 408 || status === 429 || status >= 500;
  let problem: Problem | undefined;
  try {
    const read = JSON.parse(text) as Partial<Problem> | null;
    if (typeof read?.detail === "string" && typeof read.type === "string") problem = read as Problem;
  } catch {
    // somebody between us and the bridge answered
  }
  const message = problem === undefined ? `HTTP ${status}` : `${problem.title}: ${problem.detail} (${status})`;
  return new IngestError(message, {
    idempotencyKey,
    retryable,
    status,
    ...(problem === undefined ? {} : { problem }),
  });
}

function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
