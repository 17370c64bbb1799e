/** The parts of a request: an address, headers and a body that arrive as they were given, or a TypeError. */

/** `text` without a slash at its end. It is an absolute http(s) address without a user, a query and a fragment. */
export function address(text: string, source: string): string {
  const url = parsed(text);
  if (url === undefined || !/^https?:\/\//i.test(text)) {
    throw new TypeError(`${source} is ${JSON.stringify(text)}, which has no scheme or no host: write https://HOST`);
  }
  // Of what may hold a password, nothing is repeated.
  if (url.username || url.password) throw new TypeError(`${source} has a user name or password: leave it out`);
  if (url.search || url.hash) throw new TypeError(`${source} has a query or a fragment: leave it out`);
  return text.replace(/\/+$/, "");
}

function parsed(text: string): URL | undefined {
  try {
    return new URL(text);
  } catch {
    return undefined;
  }
}

/** The Authorization header. Line breaks around a key come with it from files, and are no part of it. */
export function bearer(apiKey: string, source: string): string {
  const key = apiKey.trim();
  if (key === "") throw new TypeError(`${source} is empty`);
  if (/[\s\x00-\x1f\x7f]/.test(key)) {
    throw new TypeError(`${source} has a blank, a line break or another control character in it`);
  }
  return `Bearer ${byteString(key, source)}`;
}

/**
 * An event's key as a header. Refused is what a header cannot hold (control characters) and what HTTP takes off a
 * header (blanks at the ends, RFC 9110, 5.5): two keys that differ in nothing else would be one.
 */
export function keyHeader(name: string, text: string): string {
  if (typeof text !== "string") throw new TypeError(`${name} is a ${typeof text}, not a string`);
  if (text === "") throw new TypeError(`${name} is empty`);
  if (/[\x00-\x08\x0a-\x1f\x7f]/.test(text)) {
    throw new TypeError(`${name} has a line break or another control character in it`);
  }
  if (/^[ \t]|[ \t]$/.test(text)) {
    throw new TypeError(`${name} begins or ends with a blank, which HTTP takes off: trim it, or write it otherwise`);
  }
  return byteString(text, name);
}

/** The path of an event type. Refused is what an address cannot hold or resolves. */
export function pathOf(type: string): string {
  if (typeof type !== "string") throw new TypeError(`type is a ${typeof type}, not a string`);
  if (type === "" || type === "." || type === "..") {
    throw new TypeError(`type is ${JSON.stringify(type)}, which is no event type`);
  }
  wellFormed(type, "type");
  return `/v1/events/${encodeURIComponent(type)}`;
}

/** The UTF-8 of `text`, as the bridge reads it, in a text of one character for each byte, as fetch takes it. */
function byteString(text: string, name: string): string {
  wellFormed(text, name);
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

/** TextEncoder writes U+FFFD for half of a pair: different texts would become the same. */
function wellFormed(text: string, name: string): void {
  if (/\p{Surrogate}/u.test(text)) throw new TypeError(`${name} contains half of a surrogate pair`);
}

/** `payload` as JSON. JSON.stringify alone writes null or {} for some values: they would be lost without a sound. */
export function json(payload: unknown): string {
  if (typeof payload !== "object" || payload === null || Array.isArray(payload)) {
    throw new TypeError("the payload is not an object of fields");
  }
  return JSON.stringify(payload, function (this: Record<string, unknown>, name, value: unknown) {
    const field = `field ${JSON.stringify(name)}`;
    if (typeof value === "number" && !Number.isFinite(value)) {
      throw new TypeError(`${field} is ${value}, which JSON has no word for`);
    }
    const given = this[name];
    if (given instanceof Date && Number.isNaN(given.getTime())) throw new TypeError(`${field} is an invalid Date`);
    if (value instanceof Map || value instanceof Set) {
      throw new TypeError(`${field} is a Map or a Set, which JSON has no word for: make an object or an array of it`);
    }
    return value;
  });
}
