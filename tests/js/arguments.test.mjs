// Wrong arguments: every function rejects them with a `LowbitError` that names the argument, before any work starts.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { at, CALIBRATION, fails, HELD_OUT, LITTLE, lowbit, MODEL } from "./support.mjs";

const engine = lowbit.createEngine();
const other = lowbit.createEngine();
after(async () => {
  await Promise.all([engine.dispose(), other.dispose()]);
});
const original = await engine.openCheckpoint(MODEL);
const small = await engine.quantize(original, { bits: 8 });
const model = await engine.loadModel(original, { device: "cpu" });
const foreign = await other.openCheckpoint(MODEL);
const gone = await engine.openCheckpoint(MODEL);
gone.dispose();

const circular = {};
circular.itself = circular;
const judged = { texts: HELD_OUT.slice(0, 600), maxTokens: 4, speedRounds: 0, prompts: ["The cat"], device: "cpu" };
const searched = { texts: HELD_OUT.slice(0, 600), calibration: { texts: [CALIBRATION], sequenceLength: 64 } };
const GPTQ = { method: "gptq", bits: 4, groupSize: 32, calibration: LITTLE };

/** For each function: arguments, a pattern of the message, and the error's code unless it is `invalid_argument`. */
const WRONG_ARGUMENTS = {
  openCheckpoint: [
    ...[undefined, null, 5, true, () => {}, Symbol("x")].map((source) => [[source], /place/]),
    [["nothing like a place"], /URL.*path.*org\/model/],
    [[""], /URL.*path.*org\/model/],
    [["http://"], /http:\/\/.*URL/],
    [[{ "config.json": 5 }], /config\.json.*bytes/],
    [[[null]], /0: expected bytes/],
    [[{ length: 1 }], /0: expected bytes/],
    [[[{ name: "config.json" }]], /config\.json.*bytes/],
    [[{ kind: "directory", name: "mine", getFileHandle: () => {} }], /mine.*worker/],
    [[MODEL, null], /options.*null/],
    [[MODEL, "main"], /options.*string/],
    [[MODEL, { revison: "main" }], /revison/],
    [[MODEL, { onProgress: () => {} }], /onProgress/],
    [[MODEL, { gptqZeros: "v3" }], /gptqZeros.*v3/],
    [[MODEL, { gptqZeros: 1 }], /openCheckpoint.*gptqZeros.*v1, v2.*1/],
    [[MODEL, { tokenizer: 5 }], /place.*5/],
    [[MODEL, { tokenizer: join(MODEL, "config.json") }], /config\.json.*folder/],
    [[MODEL, { signal: "now" }], /signal.*AbortSignal/],
    [["org/model", { revision: 5 }], /revision/],
    [["org/model", { fetch: "https://example.org" }], /fetch.*function/],
    [["org/model", { fetch: () => "not an answer" }], /fetch.*Response/],
    [["org/model", { headers: "x" }], /headers/],
    [["org/model", { headers: { "not a name": "x" } }], /headers/],
    [["org/model", { cache: "yes" }], /cache.*true or false/],
  ],
  quantize: [
    ...[undefined, null, 5, {}, MODEL].map((checkpoint) => [[checkpoint], /checkpoint, as openCheckpoint/]),
    [[gone], /disposed/],
    [[foreign], /another engine/],
    [[original, null], /options.*null/],
    [[original, []], /options.*array/],
    [[original, { bitz: 4 }], /bitz/],
    [[original, { bits: "4" }], /"4"/],
    [[original, { bits: 5 }], /bits.*5/],
    [[original, { bits: 4.5 }], /4\.5/],
    [[original, { bits: Number.NaN }], /bits.*NaN/],
    [[original, { groupSize: 0 }], /group size.*0/],
    [[original, { groupSize: -2 }], /group size.*-2/],
    [[original, { method: "best" }], /best/],
    [[original, { format: "zip" }], /format.*zip/],
    [[original, { symmetric: "no" }], /"no"/],
    [[original, { method: "ternary", bits: 4 }], /ternary/],
    [[original, { method: "gptq" }], /gptq.*calibration/],
    [[original, { calibration: ["x"] }], /rtn.*calibration/],
    [[original, { device: "cpu" }], /rtn.*device/],
    [[original, { ...GPTQ, device: "tpu" }], /device.*tpu/],
    [[original, { ...GPTQ, calibration: 5 }], /calibration.*5/],
    [[original, { ...GPTQ, calibration: "a text" }], /calibration.*string/],
    [[original, { ...GPTQ, calibration: [] }], /calibration/],
    [[original, { ...GPTQ, calibration: [5] }], /5/],
    [[original, { ...GPTQ, calibration: { tokens: 5 } }], /token ids.*5/],
    [[original, { ...GPTQ, calibration: { tokens: [1, -1] } }], /-1/],
    [[original, { ...GPTQ, calibration: { tokens: [1e6], samples: 1, sequenceLength: 2 } }], /1000000/],
    [[original, { ...GPTQ, calibration: [""] }], /token/],
    [[original, { ...GPTQ, calibration: { ...LITTLE, samples: 0 } }], /sample.*0/],
    [[original, { ...GPTQ, calibration: { ...LITTLE, sequenceLength: 1 } }], /sequenceLength.*2.*1/],
    [[original, { ...GPTQ, gptq: { damping: -1 } }], /damping/],
    [[original, { ...GPTQ, gptq: { actOrder: "up" } }], /actOrder.*up/],
    [[original, { recipe: { rules: [{ modules: 5 }] } }], /pattern.*module/],
    [[original, { recipe: { rules: [{ modules: "[", bits: 8 }] } }], /\[/],
    [[original, { recipe: circular }], /plain data/],
    [[original, { recipe: { rules: 1n } }], /rules.*bigint/],
    [[original, { onProgress: 5 }], /onProgress.*function/],
    [[original, { signal: {} }], /signal.*AbortSignal/],
    [[original, { target: null }], /target/],
    [[original, { target: "" }], /target/],
    [[original, { target: new URL("https://example.org/x") }], /target.*example/],
    [[original, { target: { kind: "directory", name: "mine", getFileHandle: () => {} } }], /mine.*worker/],
  ],
  dequantize: [
    [[null], /checkpoint/],
    [[small, null], /options/],
    [[small, { dtype: "f8" }], /dtype.*f8/],
    [[small, { dtype: 16 }], /dtype.*16/],
    [[small, { bits: 4 }], /bits/],
    [[small, { target: 5 }], /target/],
  ],
  convert: [
    [[null, { format: "gguf" }], /checkpoint/],
    [[original], /format/],
    [[original, {}], /format/],
    [[original, { format: "zip" }], /format.*zip/],
    [[original, { format: "gguf", ggufType: "q9" }], /ggufType.*q9/],
    [[original, { format: "gptq", ggufType: "f16" }], /GGUF type.*gptq/],
    [[original, { format: "gguf", file: "../x.gguf" }], /\.\.\/x\.gguf/],
    [[original, { format: "gguf", target: [] }], /target/],
  ],
  loadModel: [
    [[null], /checkpoint/],
    [[gone], /disposed/],
    [[original, { device: "tpu" }], /device.*tpu/],
    [[original, { device: 1 }], /1/],
    [[original, { device: "cpu", activations: "f16" }], /activations.*f16/],
    [[original, { gpu: true }], /gpu/],
    [[original, "cpu"], /options.*string/],
  ],
  validate: [
    [[original], /validate|checkpoint/],
    [[original, null, judged], /checkpoint/],
    [[original, foreign, judged], /engine/],
    [[original, small], /texts/],
    [[original, small, { ...judged, texts: 5 }], /texts.*5/],
    [[original, small, { ...judged, texts: [5] }], /texts/],
    [[original, small, { ...judged, texts: "" }], /text/],
    [[original, small, { ...judged, prompts: "The cat" }], /The cat/],
    [[original, small, { ...judged, context: 1 }], /context/],
    [[original, small, { ...judged, stride: 0 }], /stride/],
    [[original, small, { ...judged, speedRounds: -1 }], /-1/],
    [[original, small, { ...judged, limits: { maxPerplexityIncrease: "small" } }], /small/],
    [[original, small, { ...judged, limits: { maxPerplexity: 1 } }], /maxPerplexity/],
    [[original, small, { ...judged, benchmark: "not JSON" }], /benchmark/],
    [[original, small, { ...judged, tekst: "x" }], /tekst/],
  ],
  auto: [
    [[null, searched], /checkpoint/],
    [[[], searched], /at least one/],
    [[[original, 5], searched], /checkpoint/],
    [[original], /texts/],
    [[original, { ...searched, texts: undefined }], /texts/],
    [[original, { ...searched, validate: 5 }], /validate.*5/],
    [[original, { ...searched, validate: { limit: 5 } }], /limit/],
    [[original, { ...searched, onEvent: "tell" }], /onEvent.*function/],
    [[original, { ...searched, samples: 5 }], /5/],
    [[original, { ...searched, samples: [] }], /samples/],
    [[original, { ...searched, bits: 3 }], /3/],
    [[original, { ...searched, method: "rtn" }], /rtn/],
    [[original, { ...searched, target: 5 }], /target/],
  ],
  compare: [
    [[original, null, { prompts: ["x"] }], /checkpoint/],
    [[original, original], /prompts/],
    [[original, original, { prompts: [] }], /prompt/],
    [[original, original, { prompts: "The cat" }], /The cat/],
    [[original, original, { prompts: ["x"], maxTokens: -1 }], /-1/],
    [[original, original, { prompts: ["x"], device: "tpu" }], /tpu/],
  ],
  plan: [
    ...[undefined, null, "7B"].map((subject) => [[subject], /checkpoint/]),
    ...[Number.NaN, -5, 0, 1.5, Number.POSITIVE_INFINITY].map((subject) => [[subject], /parameters/]),
    [[original, 5], /options/],
    [[original, { memory: -1 }], /-1/],
    [[original, { memory: "8GB" }], /8GB/],
    [[1e9, { context: 1, tokens: 5 }], /tokens/],
  ],
};

describe("wrong arguments", () => {
  const shown = (value) => {
    if (value === original || value === small || value === foreign || value === gone) return "…";
    return (JSON.stringify(value, (_, v) => (typeof v === "bigint" || v === circular ? String(v) : typeof v === "string" ? v.slice(0, 20) : v)) ?? String(value)).slice(0, 70);
  };
  for (const [name, cases] of Object.entries(WRONG_ARGUMENTS)) {
    test(name, async () => {
      for (const [args, pattern, code = "invalid_argument"] of cases) {
        const call = `${name}(${args.map(shown).join(", ")})`;
        for (const [where, run] of [["engine", () => engine[name](...args)], ["lowbit", () => lowbit[name](...args)]]) {
          // Called without an engine, the function uses the checkpoint's engine, so this is no error.
          if (where === "lowbit" && args[0] === foreign) continue;
          const started = run();
          assert.ok(started instanceof Promise, `${call} of ${where} throws instead of rejecting`);
          await at(`${where}: ${call}`, () => fails(started, code, pattern));
        }
      }
    });
  }

  test("createEngine", async () => {
    for (const [options, pattern] of [[null, /options/], [5, /options/], [{ wroker: true }, /wroker/], [{ worker: "yes" }, /true or false/]]) {
      await fails(async () => lowbit.createEngine(options), "invalid_argument", pattern);
    }
  });

  test("methods of models and checkpoints", async () => {
    const ids = [0, 1];
    const options = { maxTokens: 2 };
    const cases = [
      ...[undefined, null, 5, {}, ["a"]].map((prompt) => [() => model.generate(prompt, options).text(), /token ids/]),
      ...[[-1], [1.5], [Number.NaN], [2 ** 32]].map((prompt) => [() => model.generate(prompt, options).text(), /token ids/]),
      [() => model.generate([2048], options).text(), /2048/],
      [() => model.generate([], options).text(), /token|empty/],
      [() => model.generate("x", null).text(), /options/],
      [() => model.generate("x", 5).text(), /options/],
      [() => model.generate("x", { maxToken: 5 }).text(), /maxToken/],
      [() => model.generate("x", { maxTokens: -1 }).text(), /-1/],
      [() => model.generate("x", { maxTokens: "5" }).text(), /5/],
      [() => model.generate("x", { temperature: -1 }).text(), /temperature/],
      [() => model.generate("x", { temperature: Number.POSITIVE_INFINITY }).text(), /temperature.*Infinity/],
      [() => model.generate("x", { topP: 2 }).text(), /top.?p/i],
      [() => model.generate("x", { minP: -1 }).text(), /min.?p/i],
      [() => model.generate("x", { repetitionPenalty: 0 }).text(), /repetition/],
      [() => model.generate("x", { stop: "y" }).text(), /y/],
      [() => model.generate("x", { seed: -1 }).text(), /-1/],
      [() => model.generate("x", { signal: "now" }).text(), /signal.*AbortSignal/],
      [() => model.generate("x", { onProgress: {} }).text(), /onProgress/],
      [async () => { for await (const _ of model.generate(5)) assert.fail("a piece"); }, /token ids/],
      ...[undefined, null, "Hello", 5, {}].map((messages) => [() => model.chat(messages).text(), /messages/]),
      ...[undefined, null, "0", 5, [-1]].map((ids) => [() => model.logits(ids), /token ids/]),
      [() => model.logits([]), /token/],
      [() => model.logits([2048]), /2048/],
      [() => model.logits(ids, { device: "cpu" }), /device/],
      [() => model.logits(ids, 5), /options/],
      [() => model.logprobs("0"), /token ids/],
      ...[undefined, null, 5, ["x"]].map((text) => [() => model.perplexity(text), /string/]),
      [() => model.perplexity(""), /text|token/],
      [() => model.perplexity("A cat", { context: 1 }), /context/],
      [() => model.perplexity("A cat", { contxt: 8 }), /contxt/],
      ...[undefined, null, {}, original].map((model) => [() => lowbit.perplexity(model, "A cat"), /model, as loadModel/]),
      ...[undefined, null, 5, ["x"]].map((text) => [() => model.tokenize(text), /tokenize.*string/]),
      ...[undefined, null, 5, ["x"]].map((text) => [() => original.tokenize(text), /tokenize.*string/]),
      ...[undefined, "x", [-1]].map((ids) => [() => model.detokenize(ids), /token ids/]),
      [() => engine.cache.delete(5), /URL/],
    ];
    for (const [run, pattern] of cases) {
      await at(run, () => fails(run, "invalid_argument", pattern));
    }
    // The model still works.
    assert.equal((await model.generate("Once", options).result()).tokenIds.length, 2);
  });
});
