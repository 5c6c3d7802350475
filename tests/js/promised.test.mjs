// Other guarantees of the package: entry points, ownership of memory, repeated reading, signals, devices.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fails, golden, lowbit, MODEL, modelFiles, PACKAGE } from "./support.mjs";

const manifest = JSON.parse(readFileSync(join(PACKAGE, "package.json"), "utf8"));
const engine = lowbit.createEngine();
after(() => engine.dispose());
const checkpoint = await engine.openCheckpoint(MODEL);

describe("the entry points", () => {
  const entries = Object.entries(manifest.exports);
  const files = ([, entry]) => (typeof entry === "string" ? [entry] : Object.values(entry));

  test("name existing files, list types first, and have only ES modules", () => {
    const modules = ["engine", "engine_relaxed", "quantizer", "quantizer_relaxed", "tokenizer"].map((name) => `./${name}.wasm`);
    for (const name of [".", "./slim", "./worker", ...modules, "./package.json"]) {
      assert.ok(name in manifest.exports, name);
    }
    for (const entry of entries) {
      for (const file of files(entry)) assert.ok(existsSync(join(PACKAGE, file)), file);
      const conditions = Object.keys(typeof entry[1] === "string" ? {} : entry[1]);
      assert.ok(!conditions.includes("types") || conditions[0] === "types", entry[0]);
      assert.equal(conditions.includes("require"), false);
    }
    assert.deepEqual(Object.keys(manifest.exports["."]), ["types", "deno", "bun", "node", "default"]);
    assert.equal(manifest.type, "module");
    assert.equal(manifest.dependencies, undefined);
    assert.equal(manifest.peerDependenciesMeta.webgpu.optional, true);
  });

  test("use no SharedArrayBuffer", () => {
    const scripts = entries.flatMap(files).filter((file) => file.endsWith(".js"));
    assert.ok(scripts.length >= 5);
    for (const file of scripts) assert.equal(readFileSync(join(PACKAGE, file), "utf8").includes("SharedArrayBuffer"), false, file);
  });

  test("export the same names in Node and browsers", async () => {
    const [node, browser] = await Promise.all(["node", "default"].map((condition) => import(join(PACKAGE, manifest.exports["."][condition]))));
    assert.deepEqual(Object.keys(browser).sort(), Object.keys(node).sort());
    const wanted = [
      "Checkpoint", "Engine", "Generation", "LowbitError", "Model", "Output", "auto", "cache", "capabilities", "compare", "convert",
      "createEngine", "dequantize", "fileText", "loadModel", "openCheckpoint", "perplexity", "plan", "quantize", "tools", "validate",
    ];
    assert.deepEqual(Object.keys(node).sort(), wanted);
  });
});

test("the caller's arrays are neither modified nor detached", async () => {
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  const { prompt_ids: promptIds } = golden.run.original.greedy[0];
  // A view in the middle of a larger buffer.
  const memory = new Uint32Array([7, ...promptIds, 7]);
  const ids = memory.subarray(1, -1);
  await model.generate(ids, { maxTokens: 2 }).result();
  await model.logits(ids);
  await model.logprobs(ids);
  await model.detokenize(ids);
  const tokens = Uint32Array.from({ length: 512 }, (_, index) => index);
  await engine.quantize(checkpoint, { method: "gptq", groupSize: 32, calibration: { tokens, samples: 2, sequenceLength: 64 } });
  assert.deepEqual([...memory], [7, ...promptIds, 7]);
  assert.equal(tokens.length, 512);

  const files = modelFiles();
  const given = [];
  const kept = (bytes) => ({
    size: bytes.length,
    read: (at, n) => {
      const part = bytes.slice(at, at + n);
      given.push([part, n]);
      return part;
    },
  });
  const lent = Object.fromEntries(Object.entries(files).map(([name, bytes]) => [name, kept(bytes)]));
  await engine.quantize(await engine.openCheckpoint(lent), { bits: 8 });
  assert.ok(given.length > 20 && given.every(([{ length }, n]) => length === n), "the bytes from `read` are not detached");
});

test("a generation can be read repeatedly and by several readers at once", async () => {
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  const generation = model.generate("Once upon a time", { maxTokens: 12 });
  const read = async () => {
    const pieces = [];
    for await (const piece of generation) pieces.push(piece);
    return pieces;
  };
  const [one, two] = await Promise.all([read(), read()]);
  assert.ok(one.length > 4);
  assert.deepEqual(two, one);
  assert.deepEqual(await read(), one);
  assert.equal(await generation.text(), one.map(({ text }) => text).join(""));
});

test("Symbol.dispose and Symbol.asyncDispose work", async () => {
  const of = lowbit.createEngine();
  const small = await of.quantize(await of.openCheckpoint(MODEL), { bits: 8 });
  const model = await of.loadModel(small, { device: "cpu" });
  model[Symbol.dispose]();
  small[Symbol.dispose]();
  await fails(() => model.tokenize("a"), "invalid_argument", /model was disposed/);
  await fails(() => small.files(), "invalid_argument", /disposed/);
  await of[Symbol.asyncDispose]();
  await fails(() => of.openCheckpoint(MODEL), "invalid_argument", /engine was disposed/);
});

test("an aborted signal cancels every job before it starts", async () => {
  const signal = AbortSignal.abort(new Error("too late"));
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  const untouched = () => assert.fail("the job started");
  const works = [
    () => engine.openCheckpoint({ "config.json": { size: 1, read: untouched } }, { signal }),
    () => engine.quantize(checkpoint, { target: untouched, signal }),
    () => engine.dequantize(checkpoint, { target: untouched, signal }),
    () => engine.convert(checkpoint, { format: "gguf", target: untouched, signal }),
    () => engine.loadModel(checkpoint, { signal }),
    () => engine.validate(checkpoint, checkpoint, { texts: "A cat", signal }),
    () => engine.auto(checkpoint, { texts: "A cat", calibration: ["A dog"], onEvent: untouched, signal }),
    () => engine.compare(checkpoint, checkpoint, { prompts: ["A cat"], signal }),
    () => model.generate("A cat", { signal }).text(),
    () => model.chat([{ role: "user", content: "A cat" }], { signal }).result(),
    () => model.logits([0], { signal }),
    () => model.logprobs([0], { signal }),
    () => model.perplexity("A cat", { signal }),
  ];
  for (const work of works) assert.equal((await fails(work, "cancelled")).cause.message, "too late", String(work));
});

const TEXT = readFileSync(join(MODEL, "heldout.txt"), "utf8").slice(0, 600);

test("without a GPU, `gpu` fails with an install hint, and `auto` runs on the CPU with a reason", async (t) => {
  const { adapters } = await engine.capabilities();
  if (adapters.length > 0) return t.skip("skipped: there is a GPU here");
  const learning = { method: "gptq", calibration: { texts: [TEXT], samples: 1, sequenceLength: 32 }, device: "gpu" };
  for (const work of [
    () => engine.loadModel(checkpoint, { device: "gpu" }),
    () => engine.quantize(checkpoint, learning),
    () => engine.auto(checkpoint, { texts: TEXT, ...learning }),
    () => engine.validate(checkpoint, checkpoint, { texts: TEXT, device: "gpu" }),
  ]) await fails(work(), "no_device", /npm install webgpu/);
  const model = await engine.loadModel(checkpoint, { device: "auto" });
  assert.match(model.info.device, /^cpu/);
  assert.ok(model.info.fallbackReason.length > 10);
});
