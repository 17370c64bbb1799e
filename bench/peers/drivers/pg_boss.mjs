// pg-boss: batches of up to 2,000 jobs, one statement each; woken by NOTIFY, and on while batches are full.
import { PgBoss } from "pg-boss";
import { connect, upsert } from "./target.mjs";

const QUEUE = "events";
const boss = new PgBoss({
  connectionString: process.env.SOURCE_URL,
  useListenNotify: true,
  // a batch whose worker was killed is retried when it has expired: looked for every second
  superviseIntervalSeconds: 1,
  monitorIntervalSeconds: 1,
});
boss.on("error", console.error);
await boss.start();

if (process.argv[2] === "setup") {
  // a table of its own, which pg-boss recommends for a large queue
  await boss.createQueue(QUEUE, { partition: true, notify: true, expireInSeconds: 10, retryLimit: 20 });
  await boss.stop();
} else {
  const target = await connect();
  const options = {
    batchSize: 2000,
    burstWhenBatchFull: true,
    pollingIntervalSeconds: 0.5,
    notifyPollingIntervalSeconds: 0.5,
  };
  await boss.work(QUEUE, options, async (jobs) => {
    await upsert(target, jobs.map(({ id, data }) => ({ id, payload: JSON.stringify(data) })));
  });
}
