// Options that the package shares with the command line: GGUF output, size targets, memory limits, resuming.
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fails, golden, HELD_OUT, LITTLE, lowbit, MODEL, sha256, temporary } from "./support.mjs";

const engine = lowbit.createEngine();
after(() => engine.dispose());
const original = await engine.openCheckpoint(MODEL);
const GPTQ = { method: "gptq", bits: 4, groupSize: 32, calibration: LITTLE, device: "cpu" };

describe("quantizing to GGUF", () => {
  test("writes the same file as convert, and the result generates text", async () => {
    const small = await engine.quantize(original, { bits: 4, format: "gguf" });
    const files = await small.files();
    assert.deepEqual(Object.keys(files), ["model.gguf"]);
    assert.equal(sha256(files["model.gguf"]), golden.converted.gguf);
    assert.equal(small.info.layout, "gguf");
    assert.equal(small.summary.record.format, "gguf");
    const model = await engine.loadModel(small, { device: "cpu" });
    assert.match(await model.generate("Once upon a time", { maxTokens: 12 }).text(), /\w+ \w+/);
  });

  test("sets the file's name, works with calibration, and rejects a name outside the folder", async () => {
    const small = await engine.quantize(original, { ...GPTQ, format: "gguf", file: "tale.gguf" });
    assert.deepEqual(Object.keys(await small.files()), ["tale.gguf"]);
    assert.equal(small.summary.record.method, "gptq");
    await fails(engine.quantize(original, { format: "gguf", file: "../x.gguf" }), "invalid_argument", /\.\.\/x\.gguf/);
  });
});

test("gptq options are rejected without the method gptq", async () => {
  await fails(engine.quantize(original, { gptq: { refinementPasses: 1 } }), "invalid_argument", /require the method gptq.*rtn/);
});

describe("a size target", () => {
  test("in bits per weight mixes precisions to lose least", async () => {
    const small = await engine.quantize(original, { ...GPTQ, targetBpw: 4.5 });
    const { record, notes } = small.summary;
    assert.ok(record.bitsPerWeight <= 4.5, `${record.bitsPerWeight}`);
    assert.ok(new Set(record.modules.map(({ scheme }) => scheme)).size > 1);
    assert.ok(notes.some((note) => /bytes for the modules/.test(note)), notes.join("\n"));
    small.dispose();
  });

  test("in bytes is not exceeded", async () => {
    const small = await engine.quantize(original, { ...GPTQ, targetBytes: 700_000 });
    assert.ok(small.summary.bytes <= 700_000, `${small.summary.bytes}`);
  });

  test("requires calibration texts, and only one target", async () => {
    await fails(engine.quantize(original, { targetBytes: 700_000 }), "invalid_argument", /calibration texts/);
    await fails(engine.quantize(original, { ...GPTQ, targetBytes: 1, targetBpw: 4 }), "invalid_argument", /not both/);
    await fails(engine.quantize(original, { ...GPTQ, targetBpw: 0 }), "invalid_argument", /targetBpw.*above 0/);
  });
});

test("a run whose planned memory exceeds the limit does not start", async () => {
  await fails(engine.quantize(original, { ...GPTQ, memory: 1_000_000 }), "out_of_memory", /1000000|memory/);
  await fails(engine.quantize(original, { memory: 1e9 }), "invalid_argument", /rtn.*memory/);
});

describe("a resumable run", () => {
  test("resumes after a stop, writes the same files, and removes its state", async () => {
    const place = join(temporary(), "state");
    const whole = await engine.quantize(original, GPTQ);
    const stop = new AbortController();
    let finished = 0;
    const stopped = engine.quantize(original, {
      ...GPTQ,
      resume: place,
      signal: stop.signal,
      // Stop when the first block is done and the second is running.
      onProgress: ({ phase, done, total }) => {
        if (phase === "calibrate" && done / total > 0.6 && ++finished > 1) stop.abort();
      },
    });
    await fails(stopped, "cancelled");
    assert.ok(readdirSync(place).length > 0);
    const other = engine.quantize(original, { ...GPTQ, bits: 3, resume: place });
    await fails(other, "invalid_argument", /another run/);
    const resumed = await engine.quantize(original, { ...GPTQ, resume: place });
    assert.ok(resumed.summary.notes.some((note) => /resuming: \d+ of 3 blocks/.test(note)), resumed.summary.notes.join("\n"));
    const [a, b] = [await whole.files(), await resumed.files()];
    assert.deepEqual(Object.keys(b), Object.keys(a));
    for (const name of Object.keys(a)) assert.equal(sha256(b[name]), sha256(a[name]), name);
    assert.ok(!existsSync(place));
  });

  test("requires a folder of its own", async () => {
    const place = temporary();
    mkdirSync(join(place, "mine"));
    writeFileSync(join(place, "mine", "letter.txt"), "dear");
    await fails(engine.quantize(original, { ...GPTQ, resume: join(place, "mine") }), "invalid_argument", /other files/);
    await fails(engine.quantize(original, { ...GPTQ, resume: "memory" }), "invalid_argument", /resume/);
    await fails(engine.quantize(original, { ...GPTQ, resume: { opfs: "x" } }), "invalid_argument", /OPFS/);
    await fails(engine.quantize(original, { resume: join(place, "other") }), "invalid_argument", /rtn.*resume/);
  });
});

describe("dequantizing", () => {
  test("reports agreement of predictions, and requantizing gives the same bytes", async () => {
    const small = await engine.quantize(original, { bits: 4, groupSize: 32 });
    const wide = await engine.dequantize(small, { texts: HELD_OUT, context: 128, original });
    const { agreement } = wide.summary;
    assert.ok(agreement.quantizedDequantized > 0.99, `${agreement.quantizedDequantized}`);
    assert.ok(agreement.retention > 0.5 && agreement.minRetention === 0.995);
    const back = await engine.quantize(wide, { fromMetadata: true });
    assert.equal(sha256((await back.files())["model.safetensors"]), golden.quantized["int4 group 32"]["model.safetensors"]);
    await fails(engine.quantize(wide, { fromMetadata: true, bits: 4 }), "invalid_argument", /no other option/);
    assert.equal((await engine.dequantize(small)).summary.agreement, null);
    for (const options of [{ original }, { context: 64 }, { minRetention: 0.5 }]) {
      await fails(engine.dequantize(small, options), "invalid_argument", /require a text/);
    }
    const target = () => new WritableStream();
    await fails(engine.dequantize(small, { texts: HELD_OUT, target }), "invalid_argument", /cannot be streams/);
  });
});

test("layer-streamed validation gives the same figures as side by side", async () => {
  const small = await engine.quantize(original, { bits: 4, groupSize: 32 });
  const options = { texts: HELD_OUT, context: 128, speedRounds: 0, maxTokens: 4, device: "cpu" };
  const [beside, streamed] = [
    await engine.validate(original, small, { ...options, sideBySide: true }),
    await engine.validate(original, small, { ...options, layerStreamed: true }),
  ];
  assert.deepEqual([beside.execution, streamed.execution], ["side-by-side", "layer-streamed"]);
  assert.deepEqual(streamed.perplexity, beside.perplexity);
  await fails(engine.validate(original, small, { ...options, sideBySide: true, memory: 1 }), "invalid_argument", /at most one of/);
});

test("the schema of quantize_model has every method and option", async () => {
  const { parameters } = lowbit.tools.find(({ name }) => name === "quantize_model");
  assert.deepEqual(parameters.properties.method.enum, ["rtn", "gptq", "awq", "ternary"]);
  assert.ok(parameters.properties.format.enum.includes("gguf"));
  assert.deepEqual(parameters.properties.recipe.properties.rules.items.properties.method.enum, ["rtn", "gptq", "awq", "ternary"]);
  for (const name of ["targetBytes", "targetBpw", "memory", "resume", "gptq", "calibration"]) assert.ok(name in parameters.properties, name);
});
