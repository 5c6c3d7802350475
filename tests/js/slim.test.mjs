// `lowbit/slim`: the program brings the worker and the modules, and nothing is loaded by itself.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { serve } from "./http.mjs";
import { golden, MODEL, modelFiles, PACKAGE, sha256 } from "./support.mjs";

const { exports } = JSON.parse(readFileSync(join(PACKAGE, "package.json")));
const place = (entry, condition) => join(PACKAGE, condition ? exports[entry][condition] : exports[entry]);
const SLIM = place("./slim", "default");
const { createEngine, LowbitError } = await import(pathToFileURL(SLIM).href);

const newWorker = () => new Worker(place("./worker", "node"));
const ended = (worker) => new Promise((resolve) => worker.once("exit", resolve));
const read = (entry) => new Uint8Array(readFileSync(place(entry)));
const engineBytes = read("./engine.wasm");
const tokenizerBytes = read("./tokenizer.wasm");

/** That an engine does what the others do. */
async function works(engine, source = MODEL) {
  const checkpoint = await engine.openCheckpoint(source);
  const small = await engine.quantize(checkpoint, { bits: 8 });
  assert.equal(sha256((await small.files())["model.safetensors"]), golden.quantized.int8["model.safetensors"]);
  const model = await engine.loadModel(small, { device: "cpu" });
  const [{ prompt, token_ids }] = golden.run.int8.greedy;
  assert.deepEqual((await model.generate(prompt, { maxTokens: 3 }).result()).token_ids, token_ids.slice(0, 3));
}

describe("modules may be", () => {
  const url = serve((request, response) => {
    response.writeHead(200, { "content-type": "application/wasm" });
    response.end(request.url === "/engine" ? engineBytes : tokenizerBytes);
  });
  const cases = {
    compiled: async () => ({ engine: await WebAssembly.compile(engineBytes), tokenizer: await WebAssembly.compile(tokenizerBytes) }),
    bytes: () => ({ engine: engineBytes, tokenizer: tokenizerBytes }),
    "ArrayBuffers": () => ({ engine: engineBytes.buffer, tokenizer: tokenizerBytes.buffer }),
    URLs: async () => ({ engine: new URL(`${await url}/engine`), tokenizer: new URL(`${await url}/tokenizer`) }),
  };
  for (const [name, modules] of Object.entries(cases)) {
    test(name, async () => {
      const worker = newWorker();
      const over = ended(worker);
      const engine = createEngine({ worker, modules: await modules() });
      await works(engine);
      assert.equal((await engine.capabilities()).engine, "simd128", "a build that was not given is not looked for");
      await engine.dispose();
      await over;
      assert.equal(engineBytes.length > 1e6 && tokenizerBytes.length > 1e6, true, "what was given is still the caller's");
    });
  }

  test("of both builds, of which the better one is taken where it is right", async () => {
    const modules = { engine: engineBytes, engine_relaxed: read("./engine_relaxed.wasm"), tokenizer: tokenizerBytes };
    const engine = createEngine({ worker: newWorker(), modules });
    await works(engine);
    assert.match((await engine.capabilities()).engine, /^(simd128|relaxed-simd)$/);
    await engine.dispose();
  });
});

test("a worker of the web will do, and files come from wherever the page has them", async () => {
  const inner = newWorker();
  const over = ended(inner);
  // What a page's `Worker` is.
  const worker = {
    postMessage: (message) => inner.postMessage(message),
    addEventListener: (type, listener) => inner.on(type, (value) => listener({ type, ...(type === "message" ? { data: value } : { error: value }) })),
    terminate: () => void inner.terminate(),
  };
  const engine = createEngine({ worker, modules: { engine: engineBytes, tokenizer: tokenizerBytes } });
  await works(engine, modelFiles());
  await engine.dispose();
  await over;
});

test("nothing names a file to load", () => {
  const text = readFileSync(SLIM, "utf8");
  for (const word of ["_bg.wasm", "worker.browser", "worker.node", "new Worker", "import("]) {
    assert.equal(text.includes(word), false, word);
  }
});

test("what is missing or wrong is an error", async (t) => {
  const worker = newWorker();
  t.after(() => worker.terminate());
  const modules = { engine: engineBytes, tokenizer: tokenizerBytes };
  const cases = [
    [undefined, /worker/],
    [{ modules }, /worker/],
    [{ worker }, /modules/],
    [{ worker, modules: {} }, /engine/],
    [{ worker, modules: { engine: engineBytes } }, /tokenizer/],
    [{ worker, modules: { ...modules, engine: "engine.wasm" } }, /engine/],
    [{ worker, modules: { ...modules, cli: engineBytes } }, /cli/],
    [{ worker, modules, wasm: 1 }, /wasm/],
  ];
  for (const [options, pattern] of cases) {
    assert.throws(() => createEngine(options), (error) => error instanceof LowbitError && error.code === "invalid_argument" && pattern.test(error.message));
  }
});

test("a module that is none is an error, and the worker ends with its engine", async () => {
  const worker = newWorker();
  const over = ended(worker);
  const engine = createEngine({ worker, modules: { engine: new Uint8Array(8), tokenizer: tokenizerBytes } });
  await assert.rejects(engine.openCheckpoint(MODEL), (error) => error instanceof LowbitError && error.code === "io" && /cannot be loaded/.test(error.message));
  await engine.dispose();
  await over;
});

test("a worker that is ended by others is an engine that broke down", async () => {
  const worker = newWorker();
  const engine = createEngine({ worker, modules: { engine: engineBytes, tokenizer: tokenizerBytes } });
  const checkpoint = await engine.openCheckpoint(MODEL);
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  const generation = model.generate("Once", { maxTokens: 400, ignoreEos: true });
  await generation[Symbol.asyncIterator]().next();
  await worker.terminate();
  const broke = (error) => error instanceof LowbitError && error.code === "internal" && /broke down/.test(error.message);
  await assert.rejects(generation.text(), broke);
  await assert.rejects(engine.openCheckpoint(MODEL), broke);
  await engine.dispose();
});
