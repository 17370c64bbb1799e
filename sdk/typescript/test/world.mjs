// The real bridge behind the tests, and a consumer's project in which the packed SDK is installed under an alias.
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export const SDK = dirname(dirname(fileURLToPath(import.meta.url)));
export const ROOT = dirname(dirname(SDK));
const TSC = join(SDK, "node_modules", "typescript", "bin", "tsc");

export function python() {
  const found = process.env.BRIDGE_PYTHON ?? join(ROOT, ".venv", "bin", "python");
  if (!existsSync(found)) throw new Error(`no ${found}: run make setup, or set BRIDGE_PYTHON`);
  return found;
}

/**
 * A running bridge that takes `rate` events a second, of `source` and the sources named:
 * { url, key, config, source_dsn, arrived(), outbox(source), close() }.
 */
export async function startBridge(rate, ...sources) {
  const child = spawn(python(), ["-m", "tests.support.sdk_world", `${rate}`, ...sources], { cwd: ROOT, stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error("the bridge's world has ended");
    return JSON.parse(value);
  };
  return {
    ...(await next()),
    outbox: (source) => (child.stdin.write(`outbox ${source}\n`), next()),
    arrived: () => (child.stdin.write("arrived\n"), next()),
    close: () => (child.stdin.end(), ended),
  };
}

/** `bridge schema event ...` for this bridge's configuration. */
export function schema(bridge, ...given) {
  const env = { ...process.env, SOURCE_DSN: bridge.source_dsn, WAREHOUSE_DSN: bridge.source_dsn };
  const command = ["-m", "bridge", "schema", "event", "-c", bridge.config, ...given];
  return execFileSync(python(), command, { cwd: ROOT, env, encoding: "utf8" });
}

/** A project with the packed SDK as @ingestlayer/sdk. */
export function makeConsumer() {
  const directory = mkdtempSync(join(tmpdir(), "sdk-consumer-"));
  const run = (command, ...given) => execFileSync(command, given, { cwd: directory, encoding: "utf8", stdio: "pipe" });
  const packed = run("npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", directory, SDK).trim().split("\n").at(-1);
  writeFileSync(join(directory, "package.json"), JSON.stringify({ name: "consumer", private: true, type: "module" }));
  const alias = `@ingestlayer/sdk@file:./${packed}`;
  run("npm", "install", "--offline", "--no-audit", "--no-fund", alias);
  return {
    directory,
    write: (name, text) => writeFileSync(join(directory, name), text),
    /** Compiles; what the compiler says, empty when it is content. */
    compile: (...files) => {
      const options = "--strict --target ES2022 --module NodeNext --lib ES2022,DOM --pretty false".split(" ");
      try {
        run(process.execPath, TSC, ...options, ...files);
        return "";
      } catch (error) {
        return error.stdout;
      }
    },
    run: (environment, ...given) =>
      execFileSync(process.execPath, given, { cwd: directory, encoding: "utf8", env: { ...process.env, ...environment } }),
    remove: () => rmSync(directory, { recursive: true, force: true }),
  };
}
