// Running models: greedy text and perplexity equal the native command's. Also generation, logits, chats, validation,
// plans.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { PROMPTS, QUANTIZED, RUN } from "./cases.mjs";
import { CALIBRATION, fails, golden, HELD_OUT, lowbit, MODEL, modelFiles, SHARED } from "./support.mjs";

const engine = lowbit.createEngine();
after(() => engine.dispose());
const original = await engine.openCheckpoint(MODEL);

/** Tolerance of perplexity, because both engines sum in different orders. Measured: within a millionth. */
const SUMMING = 1e-5;

/**
 * Tolerance with GPTQ and AWQ: another order of sums can round some codes differently. Measured: 0.01 % of perplexity.
 */
const LEARNED = 1e-3;

async function made(name) {
  if (name === "original") return original;
  const { options, learns } = QUANTIZED.find((entry) => entry.name === name);
  return engine.quantize(original, { ...options, ...(learns && { calibration: { texts: [CALIBRATION], ...learns } }) });
}

describe("same results as the native command", () => {
  for (const name of RUN) {
    test(name, async (t) => {
      const { perplexity, tokens, greedy } = golden.run[name];
      const model = await engine.loadModel(await made(name), { device: "cpu" });
      assert.equal(model.info.activations, name === "ternary" ? "int8" : "f32");
      const found = await model.perplexity(HELD_OUT);
      assert.equal(found.tokens, tokens);
      const learned = QUANTIZED.find((entry) => entry.name === name)?.learns !== undefined;
      const off = Math.abs(found.perplexity / perplexity - 1);
      assert.ok(off < (learned ? LEARNED : SUMMING), `${found.perplexity}, natively ${perplexity}`);
      for (const { prompt, prompt_ids: promptIds, token_ids: tokenIds, text } of learned ? [] : greedy) {
        const result = await model.generate(prompt, { maxTokens: tokenIds.length, ignoreEos: true }).result();
        assert.deepEqual(result.promptIds, promptIds);
        assert.deepEqual(result.tokenIds, tokenIds);
        assert.equal(result.text, text);
        assert.equal(result.finishReason, "length");
      }
      if (learned) t.diagnostic(`perplexity ${found.perplexity}, natively ${perplexity}`);
      model.dispose();
    });
  }
});

describe("real models, same results as transformers", () => {
  const expected = (file) => JSON.parse(readFileSync(join(SHARED, "expected", file), "utf8")).rows;
  const skip = !existsSync(SHARED) && "skipped: no ../shared folder with real models";
  if (skip) console.log(skip);
  test("greedy text", { skip }, async () => {
    const models = new Map();
    for (const { model: name, prompt, prompt_ids: promptIds, new_ids, text } of expected("greedy.json")) {
      if (!models.has(name)) {
        const checkpoint = await engine.openCheckpoint(join(SHARED, "models", name));
        models.set(name, await engine.loadModel(checkpoint, { device: "cpu" }));
      }
      const result = await models.get(name).generate(prompt, { maxTokens: 64, ignoreEos: true }).result();
      assert.deepEqual(result.promptIds, promptIds, `${name}: ${prompt}`);
      assert.deepEqual(result.tokenIds, new_ids, `${name}: ${prompt}`);
      assert.equal(result.text, text);
    }
  });
  test("perplexity of the short texts", { skip }, async () => {
    for (const { model: name, text, context, perplexity, scored_tokens } of expected("perplexity.json")) {
      if (text !== "stories-short.txt") continue;
      const model = await engine.loadModel(await engine.openCheckpoint(join(SHARED, "models", name)), { device: "cpu" });
      const found = await model.perplexity(readFileSync(join(SHARED, "text", text), "utf8"), { context });
      assert.equal(found.tokens, scored_tokens);
      assert.ok(Math.abs(found.perplexity / perplexity - 1) < 0.001, `${name}: ${found.perplexity}, expected ${perplexity}`);
    }
  });
});

describe("a model", () => {
  let model;
  const [prompt] = PROMPTS;
  before(async () => (model = await engine.loadModel(original, { device: "cpu" })));

  test("streams text in pieces, and returns its result repeatedly", async () => {
    const generation = model.generate(prompt, { maxTokens: 16 });
    const pieces = [];
    for await (const piece of generation) pieces.push(piece);
    const { text, token_ids } = golden.run.original.greedy[0];
    assert.deepEqual(pieces.map(({ tokenId }) => tokenId), token_ids.slice(0, 16), "one piece per token");
    const said = pieces.map((piece) => piece.text).join("");
    assert.ok(said.length > 16 && text.startsWith(said));
    assert.equal(await generation.text(), said);
    const { tokenIds, tokensPerSecond, prefillSeconds } = await generation.result();
    assert.equal(tokenIds.length, 16);
    assert.ok(tokensPerSecond > 0 && prefillSeconds >= 0);
  });

  test("accepts token ids as a prompt", async () => {
    const { prompt_ids: promptIds, token_ids: tokenIds } = golden.run.original.greedy[0];
    for (const ids of [promptIds, Uint32Array.from(promptIds)]) {
      const result = await model.generate(ids, { maxTokens: 8 }).result();
      assert.deepEqual(result.promptIds, promptIds);
      assert.deepEqual(result.tokenIds, tokenIds.slice(0, 8));
    }
  });

  test("stops at a stop sequence", async () => {
    const result = await model.generate(prompt, { maxTokens: 64, stop: ["river"] }).result();
    assert.equal(result.text, ", in a little town beside a dark ");
    assert.equal(result.finishReason, "stop_sequence");
  });

  test("samples the same text with the same seed", async () => {
    const sample = (seed) => model.generate(prompt, { maxTokens: 24, temperature: 1.2, topK: 40, topP: 0.95, seed }).text();
    const [a, again, b] = [await sample(1), await sample(1), await sample(2)];
    assert.equal(a, again);
    assert.notEqual(a, b);
  });

  test("queues concurrent calls and answers them in order", async () => {
    const order = [];
    const asked = [
      model.generate(prompt, { maxTokens: 12 }).text().then((text) => order.push(["first", text])),
      model.generate(prompt, { maxTokens: 2 }).text().then((text) => order.push(["second", text])),
      model.logits([0]).then(() => order.push(["logits"])),
      model.perplexity(HELD_OUT.slice(0, 100)).then(() => order.push(["perplexity"])),
    ];
    await Promise.all(asked);
    assert.deepEqual(order.map(([name]) => name), ["first", "second", "logits", "perplexity"]);
    assert.ok(order[0][1].startsWith(order[1][1]));
  });

  test("returns logits for each token, and log-probabilities that agree with them", async () => {
    const { prompt_ids: promptIds, token_ids: tokenIds } = golden.run.original.greedy[0];
    const ids = [...promptIds, ...tokenIds.slice(0, 4)];
    const rows = await model.logits(ids);
    assert.equal(rows.length, ids.length);
    assert.ok(rows.every((row) => row instanceof Float32Array && row.length === 2048 && row.every(Number.isFinite)));
    for (let at = promptIds.length - 1; at < ids.length - 1; at++) {
      assert.equal(rows[at].indexOf(Math.max(...rows[at])), ids[at + 1], "the most likely token is the greedy one");
    }
    const logprobs = await model.logprobs(ids);
    assert.equal(logprobs.length, ids.length - 1);
    for (const [at, logprob] of logprobs.entries()) {
      const sum = rows[at].reduce((total, value) => total + Math.exp(value), 0);
      const naive = Math.log(Math.exp(rows[at][ids[at + 1]]) / sum);
      assert.ok(Math.abs(logprob - naive) < 1e-4 && logprob < 0, `${logprob} and ${naive}`);
    }
    assert.deepEqual(await model.logprobs(Uint32Array.from(ids)), logprobs);
  });

  test("its perplexity agrees with its log-probabilities", async () => {
    const text = HELD_OUT.slice(0, 300);
    const ids = await model.tokenize(text);
    const logprobs = await model.logprobs(ids);
    const wanted = Math.exp(-logprobs.reduce((sum, value) => sum + value, 0) / logprobs.length);
    const { perplexity, tokens } = await lowbit.perplexity(model, text);
    assert.equal(tokens, logprobs.length);
    assert.ok(Math.abs(perplexity / wanted - 1) < 1e-4, `${perplexity} and ${wanted}`);
  });

  test("tokenizes and detokenizes to the same text", async () => {
    for (const text of ["Once upon a time", "Grüße, 世界! 🦔", "", "a  b\n\n c"]) {
      const ids = await model.tokenize(text);
      assert.ok(ids instanceof Uint32Array && ids[0] === 0);
      assert.equal(await model.detokenize(ids), text);
      assert.equal(await original.detokenize([...ids]), text);
    }
  });

  test("rejects a chat without a chat template", async () => {
    assert.equal(model.canChat, false);
    await fails(model.chat([{ role: "user", content: "Hello" }]).text(), "not_found", /template/);
  });

  test("passes every key of a message to the chat template", async () => {
    const files = modelFiles();
    files["chat_template.jinja"] = new TextEncoder().encode(
      "{% for m in messages %}{{ m.name }}:{{ m.content }}{{ m.reasoning_content }}" +
        "{% for call in m.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %};{% endfor %}",
    );
    const chatty = await engine.loadModel(await engine.openCheckpoint(files), { device: "cpu" });
    const calls = [{ type: "function", function: { name: "weather", arguments: { town: "Ulm", days: 2 } } }];
    const messages = [
      { role: "assistant", content: null, tool_calls: calls, reasoning_content: "hm" },
      { role: "tool", name: "weather", content: "5 < 6" },
    ];
    const { promptIds } = await chatty.chat(messages, { maxTokens: 1, ignoreEos: true }).result();
    assert.equal(await chatty.detokenize(promptIds), ':hmweather{"town": "Ulm", "days": 2};weather:5 < 6;');
  });

  test("formats a chat with its template", async () => {
    const files = modelFiles();
    files["chat_template.jinja"] = new TextEncoder().encode(
      "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:",
    );
    const chatty = await engine.loadModel(await engine.openCheckpoint(files), { device: "cpu" });
    assert.equal(chatty.canChat, true);
    const messages = [{ role: "system", content: "Be kind." }, { role: "user", content: "Once upon" }];
    const { promptIds, tokenIds } = await chatty.chat(messages, { maxTokens: 5, ignoreEos: true }).result();
    assert.equal(await chatty.detokenize(promptIds), "system: Be kind.\nuser: Once upon\nassistant:");
    assert.equal(tokenIds.length, 5);
    await fails(chatty.chat([{ content: "Hello" }]).text(), "invalid_argument", /messages\[0\].*role/);
    await fails(chatty.chat([messages[0], { role: 5 }]).text(), "invalid_argument", /messages\[1\].*role/);
    await fails(chatty.chat([null]).text(), "invalid_argument", /messages\[0\]/);
    await fails(chatty.chat([]).text(), "invalid_argument", /message/);
  });

  test("runs with INT8 activations on request", async () => {
    const int8 = await engine.loadModel(await made("int4 group 32"), { device: "cpu", activations: "int8" });
    assert.equal(int8.info.activations, "int8");
    const { perplexity } = await int8.perplexity(HELD_OUT);
    assert.ok(Math.abs(perplexity / golden.run["int4 group 32"].perplexity - 1) < 0.05, String(perplexity));
  });
});

describe("validation", () => {
  test("validate returns a complete report", async () => {
    const small = await made("int4 group 32");
    const report = await engine.validate(original, small, {
      texts: [HELD_OUT.slice(0, 600), HELD_OUT.slice(600)], name: "stories", prompts: PROMPTS, maxTokens: 16, speedRounds: 0, device: "cpu",
    });
    assert.equal(report.schema, "lowbit.validation/1");
    assert.equal(report.original.parameters, 705_408);
    assert.equal(report.quantized.method, "rtn");
    assert.equal(report.dataset.name, "stories");
    assert.equal(report.execution, "side-by-side");
    assert.equal(report.speed, null);
    assert.equal(report.generation.prompts, PROMPTS.length);
    assert.equal(report.layers.length, 21);
    assert.ok(report.memory.ratio > 3);
    const { original: before, quantized: after, increase } = report.perplexity;
    assert.ok(Math.abs(increase - (after / before - 1)) < 1e-9);
    assert.ok(report.divergence.klMean > 0 && report.divergence.top1Agreement > 0.8);
    assert.ok(report.criteria.every(({ status }) => ["passed", "failed", "inconclusive"].includes(status)));
    assert.equal(typeof report.accepted, "boolean");
    assert.ok(report.recommendation.length > 10);
    // The file has the command line's spelling of keys.
    const file = JSON.parse(lowbit.fileText(report));
    assert.deepEqual(
      [file.divergence.kl_p99, file.divergence.top1_agreement, file.quantized.bits_per_weight],
      [report.divergence.klP99, report.divergence.top1Agreement, report.quantized.bitsPerWeight],
    );
  });

  test("validate accepts a single text", async () => {
    const report = await engine.validate(original, await made("int8"), { texts: HELD_OUT, prompts: [PROMPTS[0]], maxTokens: 4, speedRounds: 0, device: "cpu" });
    const { perplexity, tokens } = golden.run.original;
    assert.equal(report.dataset.tokens, tokens);
    assert.ok(Math.abs(report.perplexity.original / perplexity - 1) < SUMMING);
    assert.ok(Math.abs(report.perplexity.quantized / golden.run.int8.perplexity - 1) < SUMMING);
  });

  test("limits decide the verdict", async () => {
    const small = await made("ternary");
    const options = { texts: HELD_OUT, prompts: [PROMPTS[0]], maxTokens: 4, speedRounds: 0, device: "cpu" };
    const report = await engine.validate(original, small, options);
    assert.equal(report.accepted, false);
    assert.match(report.recommendation, /train/);
    const status = (limits) =>
      engine.validate(original, small, { ...options, limits }).then(({ criteria }) => criteria.find(({ name }) => name.includes("perplexity")).status);
    assert.equal(await status({ maxPerplexityIncrease: 0.02 }), "failed");
    assert.equal(await status({ maxPerplexityIncrease: 1000 }), "passed");
  });

  test("validation rejects a quantized checkpoint with another chat template", async () => {
    const small = await made("int8");
    const options = { texts: HELD_OUT, prompts: [PROMPTS[0]], maxTokens: 4, speedRounds: 0, device: "cpu" };
    assert.deepEqual((await engine.validate(original, small, options)).reading, []);
    const template = new TextEncoder().encode("{{ messages[0].content }}");
    const other = await engine.openCheckpoint({ ...(await small.files()), "chat_template.jinja": template });
    const { accepted, reading, criteria } = await engine.validate(original, other, options);
    assert.equal(accepted, false);
    assert.deepEqual(reading, [{ kind: "chat_template", detail: "only the quantized model has a chat template" }]);
    assert.equal(criteria.find(({ name }) => name === "reading_problems").status, "failed");
  });

  test("with little memory, validation is layer-streamed, with the same figures", async () => {
    const small = await made("int8");
    const options = { texts: HELD_OUT, prompts: [PROMPTS[0]], maxTokens: 4, speedRounds: 0, device: "cpu" };
    const [both, streamed] = [await engine.validate(original, small, options), await engine.validate(original, small, { ...options, memory: 1 })];
    assert.deepEqual([both.execution, streamed.execution], ["side-by-side", "layer-streamed"]);
    assert.ok(Math.abs(streamed.perplexity.quantized / both.perplexity.quantized - 1) < SUMMING);
  });

  test("compare shows where two models diverge", async () => {
    const [same] = await engine.compare(original, original, { prompts: [PROMPTS[0]], maxTokens: 8, device: "cpu" });
    assert.equal(same.firstDifference, null);
    const found = await engine.compare(original, await made("ternary"), { prompts: PROMPTS, maxTokens: 8, device: "cpu" });
    assert.deepEqual(found.map(({ prompt }) => prompt), PROMPTS);
    for (const [at, { a, b, firstDifference }] of found.entries()) {
      assert.deepEqual(a.tokenIds, golden.run.original.greedy[at].token_ids.slice(0, 8));
      assert.deepEqual(b.tokenIds, golden.run.ternary.greedy[at].token_ids.slice(0, 8));
      assert.equal(firstDifference, a.tokenIds.findIndex((id, place) => id !== b.tokenIds[place]));
    }
  });

  test("plan gives the memory for a checkpoint or a number of parameters", async () => {
    for (const plan of [await engine.plan(original), await engine.plan(500_000_000, { memory: 1e9, context: 1024 })]) {
      assert.deepEqual(plan.precisions.map(({ precision }) => precision), ["f32", "f16", "int8", "int4", "ternary"]);
      const bytes = plan.precisions.map(({ totalBytes }) => totalBytes);
      assert.deepEqual(bytes, [...bytes].sort((a, b) => b - a));
      assert.ok(plan.recommendation.reason.length > 10);
    }
    assert.equal((await lowbit.plan(original)).parameters, 705_408);
  });

  test("capabilities describe the engine and its devices", async () => {
    const found = await engine.capabilities();
    assert.match(found.engine, /^(simd128|relaxed-simd)$/);
    assert.equal(found.worker, true);
    assert.match(found.cpu, /^cpu/);
    assert.ok(Array.isArray(found.adapters));
    assert.ok(found.memory > 1e6);
  });
});
