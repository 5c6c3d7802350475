// Lifetimes: engines, workers, models and memory are freed, and programs exit by themselves.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { Worker } from "node:worker_threads";
import { PROMPTS } from "./cases.mjs";
import { ENTRY, fails, lowbit, MODEL, modelFiles, PACKAGE } from "./support.mjs";

// Memories of the modules that this thread loads: the engine's builds, then the tokenizer. All engines of this thread
// share them. The quantizer has no memory of its own.
const memories = [];
const { instantiate } = WebAssembly;
WebAssembly.instantiate = async (...args) => {
  const made = await instantiate(...args);
  const { memory } = (made.instance ?? made).exports;
  if (memory !== undefined) memories.push(memory);
  return made;
};

const endings = {
  "after opening": "await openCheckpoint(MODEL);",
  "after quantizing and generating, with nothing disposed":
    "const c = await openCheckpoint(MODEL); const q = await quantize(c, { bits: 8 }); const m = await loadModel(q, { device: 'cpu' }); await m.generate('Once', { maxTokens: 2 }).text();",
  "with the engine in the caller's thread": "const e = createEngine({ worker: false }); await e.openCheckpoint(MODEL);",
  "after an error": "await openCheckpoint('/nowhere').catch(() => {});",
  "after leaving a loop": "const m = await loadModel(await openCheckpoint(MODEL), { device: 'cpu' }); for await (const p of m.generate('Once', { maxTokens: 300 })) break;",
};
for (const [name, work] of Object.entries(endings)) {
  test(`a program exits by itself ${name}`, () => {
    const code = `import { openCheckpoint, quantize, loadModel, createEngine } from ${JSON.stringify(ENTRY)}; const MODEL = ${JSON.stringify(MODEL)}; ${work} console.log("done");`;
    const { status, stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", code], { encoding: "utf8", timeout: 120_000 });
    assert.equal(stdout, "done\n", stderr);
    assert.equal(status, 0, stderr);
  });
}

test("a disposed engine rejects all calls, and another engine works", async () => {
  const engine = lowbit.createEngine();
  const checkpoint = await engine.openCheckpoint(MODEL);
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  const running = model.generate(PROMPTS[0], { maxTokens: 400, ignoreEos: true }).text();
  await engine.dispose();
  for (const work of [running, engine.openCheckpoint(MODEL), checkpoint.tokenize("a"), model.logits([0])]) {
    await fails(work, "invalid_argument", /disposed/);
  }
  await engine.dispose();
  const other = lowbit.createEngine();
  assert.equal((await other.openCheckpoint(MODEL)).info.layout, "dense");
  await other.dispose();
});

test("disposed checkpoints and models reject all calls; a model outlives its checkpoint", async () => {
  const engine = lowbit.createEngine();
  const checkpoint = await engine.openCheckpoint(MODEL);
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  checkpoint.dispose();
  checkpoint.dispose();
  await fails(() => engine.quantize(checkpoint), "invalid_argument", /disposed/);
  assert.equal((await model.logits([0])).length, 1);
  assert.match(await model.generate(PROMPTS[0], { maxTokens: 4 }).text(), /\w/);
  assert.equal(await model.detokenize(await model.tokenize("A cat")), "A cat");
  assert.ok((await model.perplexity("A cat and a dog")).perplexity > 1);
  model.dispose();
  await fails(() => model.logits([0]), "invalid_argument", /disposed/);
  await engine.dispose();
});

test("a running job keeps what it needs from being garbage-collected", async () => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc");
  const turn = () => new Promise((done) => setTimeout(done, 1));
  const files = Object.fromEntries(
    Object.entries(modelFiles()).map(([name, bytes]) => [
      name, { size: bytes.length, read: async (at, n) => (await turn(), bytes.slice(at, at + n)) },
    ]),
  );
  const collected = async (working) => {
    await turn();
    gc();
    await turn();
    return working;
  };
  for (const worker of [true, false]) {
    const engine = lowbit.createEngine({ worker });
    const open = () => engine.openCheckpoint(files);
    const small = await collected(engine.quantize(await open(), { bits: 8 }));
    await collected(engine.convert(await open(), { format: "gguf" }));
    await collected(engine.compare(await open(), small, { prompts: [PROMPTS[0]], maxTokens: 2, device: "cpu" }));
    assert.ok((await collected((await open()).tokenize("A cat"))).length > 0);
    assert.ok("config.json" in (await small.files()));
    const model = await collected(engine.loadModel(await open(), { device: "cpu" }));
    // It is enough to hold the generation; the model may be out of scope.
    const generation = ((of) => of.generate(PROMPTS[0], { maxTokens: 2 }))(model);
    assert.match(await collected(generation.text()), /\w/);
    await engine.dispose();
  }
});

test("memory does not grow from 5 to 50 cycles of loading, generating and disposing", async () => {
  const engine = lowbit.createEngine();
  const checkpoint = await engine.openCheckpoint(MODEL);
  const bytes = [];
  for (let cycle = 1; cycle <= 50; cycle++) {
    const model = await engine.loadModel(checkpoint, { device: "cpu" });
    await model.generate(PROMPTS[0], { maxTokens: 2 }).text();
    model.dispose();
    if (cycle === 5 || cycle === 50) bytes.push((await engine.capabilities()).memory);
  }
  assert.equal(bytes[0], bytes[1]);
  await engine.dispose();
});

test("a crashed engine reports it, and the next call without an engine gets a new one", async (t) => {
  const workers = new Set();
  const { ref } = Worker.prototype;
  Worker.prototype.ref = function () {
    workers.add(this);
    return ref.call(this);
  };
  t.after(() => (Worker.prototype.ref = ref));
  const checkpoint = await lowbit.openCheckpoint(MODEL);
  const model = await lowbit.loadModel(checkpoint, { device: "cpu" });
  const [worker] = workers;
  const speaking = model.generate(PROMPTS[0], { maxTokens: 400, ignoreEos: true });
  await speaking[Symbol.asyncIterator]().next();
  await Promise.all([worker.terminate(), fails(speaking.text(), "internal", /broke down/)]);
  await fails(lowbit.quantize(checkpoint), "internal", /broke down/);
  assert.equal((await lowbit.openCheckpoint(MODEL)).info.layout, "dense");
});

describe("in the caller's own thread", () => {
  /**
   * How much the tokenizers' memory may grow. The library keeps a tokenizer's cached words after it is freed, 0.8 KB
   * here. A tokenizer that is not freed takes 1.5 MB.
   */
  const WORDS = 512 << 10;
  /** Each uses an engine and disposes of nothing. */
  const uses = {
    "a model that has generated": async (engine) => {
      const small = await engine.quantize(await engine.openCheckpoint(MODEL), { bits: 8 });
      await (await engine.loadModel(small, { device: "cpu" })).generate(PROMPTS[0], { maxTokens: 2 }).text();
    },
    "a running generation and a checkpoint being read": async (engine) => {
      const checkpoint = await engine.openCheckpoint(MODEL);
      const model = await engine.loadModel(checkpoint, { device: "cpu" });
      await model.generate(PROMPTS[0], { maxTokens: 400, ignoreEos: true })[Symbol.asyncIterator]().next();
      for (const work of [model.logits([0]), engine.loadModel(checkpoint), checkpoint.tokenize("a")]) work.catch(() => {});
    },
    "a model whose checkpoint is disposed": async (engine) => {
      const checkpoint = await engine.openCheckpoint(MODEL);
      const model = await engine.loadModel(checkpoint, { device: "cpu" });
      checkpoint[Symbol.dispose]();
      await model.generate(PROMPTS[0], { maxTokens: 1 }).text();
    },
  };
  for (const [name, use] of Object.entries(uses)) {
    test(`memory does not grow from 5 to 50 engines, each disposed with ${name}`, async () => {
      const bytes = [];
      for (let cycle = 1; cycle <= 50; cycle++) {
        const engine = lowbit.createEngine({ worker: false });
        await use(engine);
        await engine.dispose();
        if (cycle === 5 || cycle === 50) bytes.push(memories.map(({ buffer }) => buffer.byteLength).reverse());
      }
      const [[tokenizer, ...engines], [later, ...laterEngines]] = bytes;
      assert.ok(engines.some((size) => size > 1e6), String(engines));
      assert.deepEqual(laterEngines, engines);
      assert.ok(later - tokenizer <= WORDS, `${later - tokenizer} bytes more`);
    });
  }

  test("two engines that start at once share one instance of each module", () => {
    // A thread that has loaded none yet.
    const code = `
      import { createEngine } from ${JSON.stringify(ENTRY)};
      const { instantiate } = WebAssembly;
      let count = 0;
      WebAssembly.instantiate = (...args) => (count++, instantiate(...args));
      const engines = [createEngine({ worker: false }), createEngine({ worker: false })];
      const [one, two] = await Promise.all(engines.map((engine) => engine.openCheckpoint(${JSON.stringify(MODEL)})));
      await Promise.all([one.tokenize("a"), two.tokenize("a")]);
      await engines[0].dispose();
      const ended = await one.tokenize("a").catch(({ code }) => code);
      console.log(JSON.stringify([count, (await two.tokenize("a")).length > 0, ended]));`;
    const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", code], { encoding: "utf8", timeout: 120_000 });
    const [count, works, ended] = JSON.parse(stdout || stderr);
    // The build with relaxed SIMD may be loaded first and then rejected.
    assert.ok(count === 2 || count === 3, `${count} modules`);
    assert.deepEqual([works, ended], [true, "invalid_argument"]);
  });
});

test("the engine's modules contain no code of the command line", () => {
  for (const name of ["engine_bg.wasm", "quantizer_bg.wasm", "tokenizer_bg.wasm"]) {
    const module = readFileSync(join(PACKAGE, "dist", name));
    for (const word of ["clap_builder", "clap::", "Usage: lowbit"]) assert.equal(module.includes(word), false, `${name}: ${word}`);
  }
});
