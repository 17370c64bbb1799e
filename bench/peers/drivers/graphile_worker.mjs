// graphile-worker: its local queue and batched completions. A task is one job; the rows of tasks that run at the same
// time go into one statement, and each task is done when that has committed.
import { run, runMigrations } from "graphile-worker";
import { connect, upsert } from "./target.mjs";

const source = process.env.SOURCE_URL;
const quiet = { log: (level, message) => level === "error" && console.error(message) };

if (process.argv[2] === "setup") {
  await runMigrations({ connectionString: source });
} else {
  const target = await connect();
  let waiting = [];
  let writing = false;

  async function write() {
    writing = true;
    while (waiting.length > 0) {
      const batch = waiting;
      waiting = [];
      try {
        await upsert(target, batch.map(({ event }) => event));
        for (const { done } of batch) done();
      } catch (error) {
        for (const { failed } of batch) failed(error);
      }
    }
    writing = false;
  }

  function event({ id, payload }) {
    return new Promise((done, failed) => {
      waiting.push({ event: { id, payload: JSON.stringify(payload) }, done, failed });
      // the tasks that are started in the same turn are in the same statement
      if (!writing) {
        writing = true;
        setImmediate(write);
      }
    });
  }

  const { Logger } = await import("graphile-worker");
  await run({
    taskList: { event },
    preset: {
      worker: {
        connectionString: source,
        concurrentJobs: 200,
        maxPoolSize: 20,
        pollInterval: 1000,
        localQueue: { size: 1000 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
        logger: new Logger(() => quiet.log),
      },
    },
  });
}
