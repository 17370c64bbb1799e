/**
 * The way to one bridge: some calls are under way, the others wait for their turn, first come, first served.
 *
 * A thousand calls at once would open a thousand connections, more than the bridge takes (`ingress.max_connections`).
 */

/** A place among the calls that are under way. */
export interface Place {
  /** performance.now() after which the call that has it cannot be alive. */
  until: number;
}

interface Waiting {
  holdMs: number;
  take(place: Place): void;
}

/**
 * In Cloudflare's Workers a call ends without a sound, its `finally` too, when the request that made it has ended,
 * and may not wake another request's. So there a waiting call looks for itself, and a place is taken back in time.
 * https://developers.cloudflare.com/workers/runtime-apis/web-standards/#navigatoruseragent
 */
const LOOKS = (globalThis as { navigator?: { userAgent?: string } }).navigator?.userAgent === "Cloudflare-Workers";
const LOOK_MS = 20;

export class Lane {
  readonly #places = new Set<Place>();
  readonly #waiting = new Set<Waiting>();
  #limit: number;
  #opensAt = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  setLimit(limit: number): void {
    this.#limit = limit;
  }

  /** Resolves with a place, to be left within `holdMs`. Rejects with the signal's reason. */
  async enter(holdMs: number, signal: AbortSignal | undefined): Promise<Place> {
    signal?.throwIfAborted();
    while (LOOKS && !this.#isFree()) {
      await sleep(LOOK_MS, signal);
      this.#takeBack();
    }
    if (this.#waiting.size === 0 && this.#isFree()) return this.#place(holdMs);
    return new Promise((resolve, reject) => {
      const stop = (): void => {
        this.#waiting.delete(waiting);
        reject(signal?.reason as Error);
      };
      const waiting = {
        holdMs,
        take: (place: Place): void => {
          signal?.removeEventListener("abort", stop);
          resolve(place);
        },
      };
      this.#waiting.add(waiting);
      signal?.addEventListener("abort", stop, { once: true });
    });
  }

  leave(place: Place): void {
    const free = (): void => {
      this.#places.delete(place);
      this.#fill();
    };
    // Node's fetch has its connection back a moment after the answer: who begins earlier opens another one
    if (LOOKS) free();
    else setTimeout(free, 0);
  }

  /** Nobody begins for so long: the bridge asked for it. */
  pause(milliseconds: number): void {
    this.#opensAt = Math.max(this.#opensAt, performance.now() + milliseconds);
    if (!LOOKS) setTimeout(() => this.#fill(), milliseconds + 1);
  }

  #isFree(): boolean {
    return this.#places.size < this.#limit && performance.now() >= this.#opensAt;
  }

  /** Hands a place on: a call that comes at this moment does not overtake those that wait. */
  #fill(): void {
    for (const waiting of this.#waiting) {
      if (!this.#isFree()) return;
      this.#waiting.delete(waiting);
      waiting.take(this.#place(waiting.holdMs));
    }
  }

  #place(holdMs: number): Place {
    const place = { until: performance.now() + holdMs };
    this.#places.add(place);
    return place;
  }

  #takeBack(): void {
    const now = performance.now();
    for (const place of this.#places) if (place.until < now) this.#places.delete(place);
  }
}

/** Rejects with the signal's reason. */
export function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
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
