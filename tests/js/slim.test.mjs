// `lowbit/slim`: the program provides the worker and the modules, and the package loads nothing by itself.
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
const quantizerBytes = read("./quantizer.wasm");
const tokenizerBytes = read("./tokenizer.wasm");
const all = { engine: engineBytes, quantizer: quantizerBytes, tokenizer: tokenizerBytes };

/** Asserts that an engine gives the same results as others. */
async function works(engine, source = MODEL) {
  const checkpoint = await engine.openCheckpoint(source);
  const small = await engine.quantize(checkpoint, { bits: 8 });
  assert.equal(sha256((await small.files())["model.safetensors"]), golden.quantized.int8["model.safetensors"]);
  const model = await engine.loadModel(small, { device: "cpu" });
  const [{ prompt, token_ids: tokenIds }] = golden.run.int8.greedy;
  assert.deepEqual((await model.generate(prompt, { maxTokens: 3 }).result()).tokenIds, tokenIds.slice(0, 3));
}

describe("modules may be", () => {
  const url = serve((request, response) => {
    response.writeHead(200, { "content-type": "application/wasm" });
    response.end(all[request.url.slice(1)]);
  });
  const cases = {
    compiled: (bytes) => WebAssembly.compile(bytes),
    bytes: (bytes) => bytes,
    "ArrayBuffers": (bytes) => bytes.buffer,
    URLs: async (_, name) => new URL(`${await url}/${name}`),
  };
  for (const [name, given] of Object.entries(cases)) {
    test(name, async () => {
      const worker = newWorker();
      const over = ended(worker);
      const modules = {};
      for (const [module, bytes] of Object.entries(all)) modules[module] = await given(bytes, module);
      const engine = createEngine({ worker, modules });
      await works(engine);
      assert.equal((await engine.capabilities()).engine, "simd128", "a build that was not given is not loaded");
      await engine.dispose();
      await over;
      assert.ok(Object.values(all).every(({ length }) => length > 1e6), "the given bytes are not detached");
    });
  }

  test("given in both builds, of which the faster one that works is used", async () => {
    const modules = { ...all, engine_relaxed: read("./engine_relaxed.wasm"), quantizer_relaxed: read("./quantizer_relaxed.wasm") };
    const engine = createEngine({ worker: newWorker(), modules });
    await works(engine);
    assert.match((await engine.capabilities()).engine, /^(simd128|relaxed-simd)$/);
    await engine.dispose();
  });
});

test("a web worker works, with files in memory", async () => {
  const inner = newWorker();
  const over = ended(inner);
  // The interface of a page's `Worker`.
  const worker = {
    postMessage: (message) => inner.postMessage(message),
    addEventListener: (type, listener) => inner.on(type, (value) => listener({ type, ...(type === "message" ? { data: value } : { error: value }) })),
    terminate: () => void inner.terminate(),
  };
  const engine = createEngine({ worker, modules: all });
  await works(engine, modelFiles());
  await engine.dispose();
  await over;
});

test("generation needs no quantizer, and quantize names the missing module", async () => {
  const engine = createEngine({ worker: newWorker(), modules: { engine: engineBytes, tokenizer: tokenizerBytes } });
  const checkpoint = await engine.openCheckpoint(MODEL);
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  const speaks = async () => assert.match(await model.generate("Once", { maxTokens: 3 }).text(), /\w/);
  await speaks();
  const needed = (error) => error.code === "invalid_argument" && /needs the module quantizer,/.test(error.message);
  await assert.rejects(engine.quantize(checkpoint, { bits: 8 }), needed);
  await speaks();
  await engine.dispose();
});

test("a quantizer from another build is rejected", async () => {
  // The quantizer imports the memory under the name of the digest that identifies the build.
  const { name } = WebAssembly.Module.imports(new WebAssembly.Module(quantizerBytes)).find(({ kind }) => kind === "memory");
  const other = Buffer.from(quantizerBytes);
  other.write("f".repeat(name.length), other.indexOf(name));
  const engine = createEngine({ worker: newWorker(), modules: { ...all, quantizer: other } });
  const refused = (error) => error.code === "io" && /^the quantizer cannot be loaded: it is from another build/.test(error.message);
  await assert.rejects(engine.quantize(await engine.openCheckpoint(MODEL), { bits: 8 }), refused);
  await engine.dispose();
});

test("the slim entry point names no file to load", () => {
  const text = readFileSync(SLIM, "utf8");
  for (const word of ["_bg.wasm", "worker.browser", "worker.node", "new Worker", "import("]) {
    assert.equal(text.includes(word), false, word);
  }
});

test("missing and wrong options are errors", async (t) => {
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
    [{ worker, modules: { ...modules, quantizer: 1 } }, /quantizer/],
    [{ worker, modules: { ...all, engine_relaxed: engineBytes } }, /quantizer_relaxed/],
    [{ worker, modules: { ...modules, cli: engineBytes } }, /cli/],
    [{ worker, modules, wasm: 1 }, /wasm/],
  ];
  for (const [options, pattern] of cases) {
    assert.throws(() => createEngine(options), (error) => error instanceof LowbitError && error.code === "invalid_argument" && pattern.test(error.message));
  }
});

test("an invalid module is an error, and the worker ends with its engine", async () => {
  const worker = newWorker();
  const over = ended(worker);
  const engine = createEngine({ worker, modules: { engine: new Uint8Array(8), tokenizer: tokenizerBytes } });
  await assert.rejects(engine.openCheckpoint(MODEL), (error) => error instanceof LowbitError && error.code === "io" && /cannot be loaded/.test(error.message));
  await engine.dispose();
  await over;
});

test("an engine whose worker was terminated reports a crash", async () => {
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
