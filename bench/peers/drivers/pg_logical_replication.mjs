// pg-logical-replication: pgoutput, acknowledged by hand. The library gives one message after the other; batches are
// this file's: what has come while the batch before was written, up to 2,000 events.
import pg from "pg";
import pgLogical from "pg-logical-replication";
import { connect, upsert } from "./target.mjs";

const { LogicalReplicationService, PgoutputPlugin } = pgLogical;
const MOST = 2000;

// jsonb and timestamptz stay text: the payload goes through as it is
for (const type of [3802, 1184]) pg.types.setTypeParser(type, (value) => value);

const target = await connect();
const service = new LogicalReplicationService(
  { connectionString: process.env.SOURCE_URL },
  // its timer would acknowledge what has been received, written or not (2.5.0): ours answers the server's heartbeats
  { acknowledge: { auto: false, timeoutSeconds: 0 } },
);

let waiting = [];
let open = [];
let writing = false;
let written = null;

async function write() {
  if (writing) return;
  writing = true;
  while (waiting.length > 0) {
    const batch = waiting.slice(0, MOST);
    waiting = waiting.slice(MOST);
    await upsert(target, batch);
    const last = batch[batch.length - 1].commit;
    if (last) {
      written = last;
      await service.acknowledge(written);
    }
    // a stream that is faster than the target waits in the kernel, not here
    if (waiting.length < MOST) service._connection?.stream?.resume?.();
  }
  writing = false;
}

service.on("data", (_lsn, message) => {
  if (message.tag === "insert") {
    open.push({ id: message.new.id, payload: message.new.payload, commit: null });
  } else if (message.tag === "commit" && open.length > 0) {
    open[open.length - 1].commit = message.commitEndLsn;
    waiting.push(...open);
    open = [];
    if (waiting.length > 4 * MOST) service._connection?.stream?.pause?.();
    write().catch(fail);
  }
});
service.on("heartbeat", (_lsn, _time, wanted) => {
  if (wanted && written) service.acknowledge(written);
});
service.on("error", fail);

function fail(error) {
  console.error(error);
  process.exit(1); // started again, it reads from what it has acknowledged
}

await service
  .subscribe(new PgoutputPlugin({ protoVersion: 1, publicationNames: [process.env.PUBLICATION] }), process.env.SLOT)
  .catch(fail);
