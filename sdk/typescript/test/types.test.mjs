// The packed SDK's types: how each kind of project finds them, and what compiles without contracts.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { after, before, test } from "node:test";

import ts from "typescript";

import { makeConsumer, SDK } from "./world.mjs";

const PROJECTS = {
  "node10, CommonJS": ["commonjs", "--module CommonJS --moduleResolution node10 --lib ES2022,DOM"],
  "node16, CommonJS": ["commonjs", "--module Node16 --moduleResolution node16 --lib ES2022,DOM"],
  "node16, ES modules": ["module", "--module Node16 --moduleResolution node16 --lib ES2022,DOM"],
  "nodenext, CommonJS": ["commonjs", "--module NodeNext --lib ES2022,DOM"],
  "nodenext, ES modules": ["module", "--module NodeNext --lib ES2022,DOM"],
  "bundler": ["module", "--module ESNext --moduleResolution bundler --lib ES2022,DOM"],
  "bundler, types of Node without those of the DOM": [
    "module",
    "--module ESNext --moduleResolution bundler --lib ES2022 --types node",
  ],
  "exact optional properties": [
    "module",
    "--module NodeNext --lib ES2022,DOM --exactOptionalPropertyTypes",
  ],
};
const TAKEN = `
import { configure, ingest, IngestError, type Configuration } from "@ingestlayer/sdk";
interface Usage { customer_id: string; used: number; nested: { a: string }[]; at: Date }
interface Maybe { note?: string }
class Parcel { constructor(readonly length: number) {} }
declare const usage: Usage, maybe: Maybe, record: Record<string, unknown>, url: string | undefined;
const configuration: Configuration = { url, concurrency: 4 };
configure(configuration);
export const calls = [
  ingest("usage", usage), ingest("usage", maybe), ingest("usage", new Parcel(3)), ingest("usage", record),
  ingest("usage", { length: 3, type: "x" }, { idempotencyKey: undefined, key: undefined, signal: undefined }),
  ingest("usage", {}).catch((error: unknown) => error instanceof IngestError && error.status),
];
`;
const REFUSED = ["[1]", '"text"', "7", "null", "undefined", "new Map()", "new Set()"];

/** Where the compiler finds errors, file:line, and what it says. As tsc, but the libraries are read once. */
const libraries = new Map();
function errors(options, ...files) {
  const words = `--strict --target ES2022 --noEmit --skipLibCheck ${options}`.split(" ");
  const read = ts.parseCommandLine(words);
  assert.deepEqual(read.errors, []);
  const host = ts.createCompilerHost(read.options);
  const { getSourceFile } = host;
  host.getCurrentDirectory = () => consumer.directory;
  host.getSourceFile = (name, how, ...rest) => {
    if (name.startsWith(consumer.directory)) return getSourceFile(name, how, ...rest);
    const key = JSON.stringify([name, how.languageVersion ?? how, how.impliedNodeFormat]);
    if (!libraries.has(key)) libraries.set(key, getSourceFile(name, how, ...rest));
    return libraries.get(key);
  };
  const program = ts.createProgram(files.map((name) => join(consumer.directory, name)), read.options, host);
  const found = ts.getPreEmitDiagnostics(program);
  const places = found.map(({ file, start }) =>
    file === undefined ? "options" : `${basename(file.fileName)}:${file.getLineAndCharacterOfPosition(start).line + 1}`,
  );
  return [places, found.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, "\n")).join("\n")];
}

let consumer;
before(() => {
  consumer = makeConsumer();
  cpSync(join(SDK, "node_modules", "@types"), join(consumer.directory, "node_modules", "@types"), { recursive: true });
  cpSync(join(SDK, "node_modules", "undici-types"), join(consumer.directory, "node_modules", "undici-types"), {
    recursive: true,
  });
});
after(() => consumer?.remove());

for (const [name, [type, options]] of Object.entries(PROJECTS)) {
  test(`a project of the kind "${name}" finds them, and its payloads may be interfaces`, () => {
    consumer.write("package.json", JSON.stringify({ name: "consumer", private: true, type }));
    consumer.write("taken.ts", TAKEN);
    consumer.write(
      "wrong.ts",
      `import { ingest } from "@ingestlayer/sdk";\n${REFUSED.map((value) => `void ingest("a", ${value});`).join("\n")}`,
    );
    const [places, said] = errors(options, "taken.ts", "wrong.ts");
    assert.deepEqual(places, REFUSED.map((_, index) => `wrong.ts:${index + 2}`), said);
  });
}

test("declarations of contracts are found by each kind of project", () => {
  const declared = `import "@ingestlayer/sdk";
    declare module "@ingestlayer/sdk" { interface Events { usage: { used: number } } }`;
  const text = `import { ingest } from "@ingestlayer/sdk";
    void ingest("usage", { used: 1 });
    void ingest("usage", { used: "x" });
    void ingest("other", { used: 1 });`;
  for (const kind of ["node10, CommonJS", "node16, CommonJS", "nodenext, ES modules", "bundler"]) {
    const [type, options] = PROJECTS[kind];
    consumer.write("package.json", JSON.stringify({ name: "consumer", private: true, type }));
    consumer.write("events.d.ts", declared);
    consumer.write("one.ts", text);
    const [places, said] = errors(options, "one.ts", "events.d.ts");
    assert.deepEqual(places, ["one.ts:3", "one.ts:4"], `${kind}: ${said}`);
  }
});

test("a CommonJS project runs, and shares its configuration and errors with the ES module", () => {
  consumer.write("package.json", JSON.stringify({ name: "consumer", private: true, type: "commonjs" }));
  consumer.write(
    "both.js",
    `const { configure, ingest, IngestError } = require("@ingestlayer/sdk");
     import("@ingestlayer/sdk").then(async (esm) => {
       configure({ url: "http://127.0.0.1:9", apiKey: "k", retries: 0 });
       const error = await esm.ingest("a", {}).catch((reason) => reason);
       console.log(esm.ingest !== ingest, error instanceof IngestError, error instanceof esm.IngestError, {} instanceof IngestError);
     });`,
  );
  assert.equal(consumer.run({}, "both.js").trim(), "true true true false");
});

test("are the types wrong? No, in no kind of project", () => {
  const attw = join(SDK, "node_modules", ".bin", "attw");
  const packed = readdirSync(consumer.directory).find((name) => name.endsWith(".tgz"));
  const said = execFileSync(attw, [packed, "--format", "json"], { encoding: "utf8", cwd: consumer.directory });
  const { analysis, problems } = JSON.parse(said);
  assert.deepEqual(problems ?? {}, {});
  assert.deepEqual(analysis.problems, []);
  assert.deepEqual(Object.keys(analysis.entrypoints["."].resolutions).sort(), [
    "bundler",
    "node10",
    "node16-cjs",
    "node16-esm",
  ]);
});
