// The work that every driver in JavaScript does: one statement a batch, prepared, on one connection.
import { readFileSync } from "node:fs";
import pg from "pg";

const text = readFileSync(new URL("upsert.sql", import.meta.url), "utf8");

export async function connect() {
  const client = new pg.Client(process.env.TARGET_URL);
  await client.connect();
  return client;
}

// events: [{ id, payload }], the payload as JSON text, which goes through as it is
export function upsert(client, events) {
  const rows = events.map(({ id, payload }) => `{"id":"${id}","payload":${payload}}`);
  return client.query({ name: "upsert", text, values: [`[${rows.join(",")}]`] });
}
