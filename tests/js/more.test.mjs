// `auto`, chats, cached downloads, and tools for language models.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { sendRange, serve } from "./http.mjs";
import { CALIBRATION, fails, HELD_OUT, lowbit, MODEL, modelFiles, names, temporary } from "./support.mjs";

// Set before any engine's worker starts, because a worker reads the variable once.
const cacheFolder = temporary();
process.env.XDG_CACHE_HOME = cacheFolder;

const engine = lowbit.createEngine();
after(() => engine.dispose());
const original = await engine.openCheckpoint(MODEL);

describe("auto", () => {
  const quick = { texts: HELD_OUT.slice(0, 4000), calibration: { texts: [CALIBRATION], sequenceLength: 64 }, samples: [4, 8] };
  const validate = { speedRounds: 0, maxTokens: 16, prompts: ["Once upon a time"] };

  test("ends with an accepted, usable checkpoint", async () => {
    const events = [];
    const limits = { maxPerplexityIncrease: 0.5 };
    const found = await engine.auto(original, {
      ...quick, bits: 4, validate: { ...validate, limits }, onEvent: (event) => events.push(event),
    });
    assert.deepEqual(events.map(({ kind }) => kind), ["checkpoint", "attempt", "judged"]);
    assert.equal(found.summary.outcome.accepted, events[1].name);
    assert.equal(found.attempts.length, 1);
    assert.equal(found.attempts[0].output, found.accepted);
    assert.equal(found.attempts[0].report.schema, "lowbit.validation/1");
    assert.equal(found.accepted.summary.record.method, "gptq");
    const model = await engine.loadModel(found.accepted, { device: "cpu" });
    assert.match(await model.generate("Once upon a time", { maxTokens: 8 }).text(), /\w/);
  });

  test("tries every attempt before it gives up, and leaves all of them at the target", async () => {
    const target = join(temporary(), "search");
    const limits = { maxPerplexityIncrease: -0.5 };
    const found = await engine.auto(original, { ...quick, bits: 4, target, validate: { ...validate, limits } });
    assert.equal(found.accepted, undefined);
    assert.match(found.recommendation, /train/);
    const attempts = found.summary.variants.map(({ attempt }) => attempt.name);
    assert.deepEqual(attempts.map((name) => name.replace(/.*int/, "int")), ["int4-4", "int4-8", "int4-8-mixed", "int8-8"]);
    assert.deepEqual(names(target), [...attempts, "quantization_summary.json"].sort());
    assert.deepEqual(found.attempts.map(({ name }) => name), attempts);
    assert.ok(found.attempts.every(({ output, report }) => output.readable && !report.accepted));
  });

  test("rejects wrong options", async () => {
    await fails(engine.auto(original, { ...quick, bitz: 4 }), "invalid_argument", /bitz/);
    await fails(engine.auto(original, { texts: HELD_OUT }), "invalid_argument", /calibration text/);
    await fails(engine.auto(original, { ...quick, target: () => new WritableStream() }), "invalid_argument", /streams/);
  });
});

test("a chat reuses the KV cache of its previous messages", async () => {
  const template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
  const files = { ...modelFiles(), "chat_template.jinja": new TextEncoder().encode(template) };
  const model = await engine.loadModel(await engine.openCheckpoint(files), { device: "cpu" });
  assert.ok(model.canChat);
  const options = { maxTokens: 12, ignoreEos: true };
  const first = [{ role: "user", content: "Tell me of a cat and of a dog in a little town." }];
  const one = await model.chat(first, options).result();
  assert.equal(one.reusedTokens, 0);
  const next = [...first, { role: "assistant", content: one.text }, { role: "user", content: "And then?" }];
  const two = await model.chat(next, options).result();
  assert.ok(two.reusedTokens >= one.promptIds.length - 1, `${two.reusedTokens} of ${one.promptIds.length}`);
  // A freshly loaded model generates the same.
  const anew = await engine.loadModel(await engine.openCheckpoint(files), { device: "cpu" });
  assert.deepEqual((await anew.chat(next, options).result()).tokenIds, two.tokenIds);
});

describe("cached downloads", () => {
  const files = modelFiles();
  let version = "1";
  let online = true;
  let requests = 0;
  const site = serve((request, response) => {
    if (!online) return request.socket.destroy();
    requests += 1;
    const bytes = files[new URL(request.url, "http://localhost").pathname.split("/").pop()];
    if (bytes === undefined) return response.writeHead(404).end();
    return sendRange(request, response, Buffer.from(bytes), { etag: `"${version}"` });
  });
  const read = async () => {
    const checkpoint = await engine.openCheckpoint(`${await site}/model/`, { cache: true });
    const model = await engine.loadModel(checkpoint, { device: "cpu" });
    return model.generate("Once upon a time", { maxTokens: 8 }).text();
  };

  test("are used offline", async () => {
    const text = await read();
    const kept = await engine.cache.list();
    const weights = kept.find(({ url }) => url.endsWith("/model.safetensors"));
    assert.equal(weights.size, files["model.safetensors"].length);
    assert.equal(weights.bytes, weights.size);
    online = false;
    assert.equal(await read(), text);
    online = true;
  });

  test("are downloaded again only if the file changed", async () => {
    requests = 0;
    await read();
    const unchanged = requests;
    version = "2";
    requests = 0;
    await read();
    assert.ok(requests > unchanged, `${requests} requests after a change, ${unchanged} before`);
  });

  test("can be deleted, one by one or all", async () => {
    const url = `${await site}/model/model.safetensors`;
    await engine.cache.delete(url);
    assert.ok(!(await engine.cache.list()).some((file) => file.url === url));
    await engine.cache.delete();
    assert.deepEqual(await engine.cache.list(), []);
    online = false;
    await fails(read(), "io");
    online = true;
  });

  test("are the default for the hub", async () => {
    const local = await site;
    const options = { fetch: (url, init) => fetch(String(url).replace("https://huggingface.co/some/tale/resolve/main", `${local}/model`), init) };
    const visit = async (more) => {
      const checkpoint = await engine.openCheckpoint("some/tale", { ...options, ...more });
      const model = await engine.loadModel(checkpoint, { device: "cpu" });
      return model.generate("Once upon a time", { maxTokens: 4 }).text();
    };
    const text = await visit({ cache: false });
    assert.deepEqual(await engine.cache.list(), []);
    assert.equal(await visit(), text);
    const urls = (await engine.cache.list()).map(({ url }) => url);
    assert.ok(urls.length > 2 && urls.every((url) => url.startsWith("https://huggingface.co/some/tale/resolve/main/")), String(urls));
    online = false;
    assert.equal(await visit(), text);
    online = true;
    await engine.cache.delete();
  });

  test("are not the default for other servers", async () => {
    await engine.openCheckpoint(`${await site}/model/`);
    assert.deepEqual(await engine.cache.list(), []);
  });
});

describe("tools for language models", () => {
  const tool = (name) => lowbit.tools.find((each) => each.name === name);

  test("have the documented names and valid schemas", () => {
    assert.deepEqual(lowbit.tools.map(({ name }) => name), ["quantize_model", "validate_quantization", "compare_outputs"]);
    for (const { description, parameters } of lowbit.tools) {
      assert.ok(description.length > 20);
      assert.equal(parameters.type, "object");
      assert.ok(parameters.required.every((name) => name in parameters.properties));
      assert.deepEqual(JSON.parse(JSON.stringify(parameters)), parameters);
    }
  });

  test("work with plain JSON arguments", async () => {
    const target = join(temporary(), "small");
    const made = await tool("quantize_model").call({ checkpoint: MODEL, target, bits: 4, groupSize: 32, strict: true });
    assert.equal(made.record.scheme, "int4-g32-sym");
    const judged = await tool("validate_quantization").call({
      original: MODEL, quantized: target, texts: [HELD_OUT.slice(0, 2000)], speedRounds: 0, maxTokens: 8, device: "cpu",
      prompts: ["The cat"], context: 128, limits: { maxPerplexityIncrease: 1, maxNewFailures: 9 },
    });
    assert.equal(judged.schema, "lowbit.validation/1");
    const [pair] = await tool("compare_outputs").call({ a: MODEL, b: target, prompts: ["The cat"], maxTokens: 8, device: "cpu" });
    assert.equal(pair.prompt, "The cat");
    assert.deepEqual(JSON.parse(JSON.stringify(judged)), judged);
  });

  test("reject arguments that are not in their schemas", async () => {
    await fails(tool("quantize_model").call({ checkpoint: MODEL, group_size: 32 }), "invalid_argument", /group_size/);
  });
});
