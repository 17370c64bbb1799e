/** What the bridge says of a request that it refuses (RFC 9457, problem+json). */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  /** The field of the payload, or the header, that is refused. */
  field?: string;
}

const BRAND = Symbol.for("outbox-bridge/IngestError");

/** The event was not taken, or nobody answered that it was. */
export class IngestError extends Error {
  /** True for the errors of every copy of this module: a program may hold an ES module and a CommonJS one. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    const native = Function.prototype[Symbol.hasInstance].call(this, value);
    return native || (this === IngestError && typeof value === "object" && value !== null && BRAND in value);
  }

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
    Object.defineProperty(this, BRAND, { value: true });
    this.status = facts.status;
    this.problem = facts.problem;
    this.retryable = facts.retryable;
    this.idempotencyKey = facts.idempotencyKey;
  }
}

/** The error of an answer that is neither 200 nor 202. */
export function refusal(status: number, text: string, idempotencyKey: string): IngestError {
  if (status === 0 || (status >= 300 && status < 400)) return redirected(status, idempotencyKey);
  const retryable = status < 300 || status === 408 || status === 429 || status >= 500;
  let problem: Problem | undefined;
  try {
    const read = JSON.parse(text) as Partial<Problem> | null;
    if (typeof read?.detail === "string" && typeof read.type === "string") problem = read as Problem;
  } catch {
    // somebody between us and the bridge answered
  }
  const other = status < 300 ? ", and no event's id: it is not the bridge that answers at this address" : "";
  const message = problem === undefined ? `HTTP ${status}${other}` : `${problem.title}: ${problem.detail} (${status})`;
  return new IngestError(message, {
    idempotencyKey,
    retryable,
    status,
    ...(problem === undefined ? {} : { problem }),
  });
}

/** Status 0 is all that a browser tells of a redirect (Fetch, "opaque-redirect filtered response"). */
function redirected(status: number, idempotencyKey: string): IngestError {
  const message = "the bridge's address answers with a redirect, which is not followed, because the API key would go "
    + "with it: set the address that it leads to (https instead of http, perhaps)";
  return new IngestError(message, { idempotencyKey, retryable: false, ...(status === 0 ? {} : { status }) });
}
