// Long jobs: they can be cancelled in every phase, report progress, and do not block the caller's thread.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { PROMPTS } from "./cases.mjs";
import { fails, golden, HELD_OUT, LITTLE, lowbit, MODEL, modelFiles, names, sha256, temporary } from "./support.mjs";

const [prompt] = PROMPTS;
const GPTQ = { method: "gptq", bits: 4, groupSize: 32, calibration: LITTLE };

/** Asserts that an engine still works. */
async function stillWorks(engine) {
  const checkpoint = await engine.openCheckpoint(MODEL);
  const small = await engine.quantize(checkpoint, { bits: 8 });
  assert.equal(sha256((await small.files())["model.safetensors"]), golden.quantized.int8["model.safetensors"]);
  const model = await engine.loadModel(small, { device: "cpu" });
  const { tokenIds } = await model.generate(prompt, { maxTokens: 3 }).result();
  assert.deepEqual(tokenIds, golden.run.int8.greedy[0].token_ids.slice(0, 3));
  model.dispose();
  small.dispose();
  checkpoint.dispose();
}

/** A signal, and a function `now` that aborts it. */
function stopper() {
  const controller = new AbortController();
  return { signal: controller.signal, now: () => controller.abort(new Error("the user had enough")) };
}

/** The model's files. Each read calls `onRead` and awaits its result, so a job can be cancelled in the middle. */
function readable(onRead) {
  return Object.fromEntries(
    Object.entries(modelFiles()).map(([name, bytes]) => [
      name, { size: bytes.length, read: async (at, n) => (await onRead(name), await new Promise(setImmediate), bytes.slice(at, at + n)) },
    ]),
  );
}

for (const worker of [true, false]) {
  describe(worker ? "cancelled in a worker" : "cancelled in the caller's thread", () => {
    const engine = lowbit.createEngine({ worker });
    after(() => engine.dispose());
    const folder = temporary();

    /** Each starts a job with the signal, and aborts it in the named phase. */
    const phases = {
      "before the start": async ({ signal, now }) => {
        now();
        return engine.openCheckpoint(MODEL, { signal });
      },
      opening: ({ signal, now }) => engine.openCheckpoint(readable((name) => name === "model.safetensors" && now()), { signal }),
      "loading": async ({ signal, now }) => {
        let reads = 0;
        const checkpoint = await engine.openCheckpoint(readable((name) => name === "model.safetensors" && ++reads === 3 && now()));
        return engine.loadModel(checkpoint, { device: "cpu", signal });
      },
      "quantizing to memory": async ({ signal, now }) => {
        let reads = 0;
        const checkpoint = await engine.openCheckpoint(readable((name) => name === "model.safetensors" && ++reads === 5 && now()));
        return engine.quantize(checkpoint, { bits: 4, signal });
      },
      "quantizing to a path": async ({ signal, now }) => {
        let reads = 0;
        const checkpoint = await engine.openCheckpoint(readable((name) => name === "model.safetensors" && ++reads === 5 && now()));
        return engine.quantize(checkpoint, { bits: 4, target: join(folder, "rtn"), signal });
      },
      "gptq, at its second report": async ({ signal, now }) => {
        let reports = 0;
        const checkpoint = await engine.openCheckpoint(MODEL);
        return engine.quantize(checkpoint, { ...GPTQ, target: join(folder, "gptq"), signal, onProgress: () => ++reports === 2 && now() });
      },
      "awq, at its first report": async ({ signal, now }) => {
        const checkpoint = await engine.openCheckpoint(MODEL);
        return engine.quantize(checkpoint, { ...GPTQ, method: "awq", target: join(folder, "awq"), signal, onProgress: now });
      },
      "converting": async ({ signal, now }) => {
        let reads = 0;
        const checkpoint = await engine.openCheckpoint(readable((name) => name === "model.safetensors" && ++reads === 5 && now()));
        return engine.convert(checkpoint, { format: "gguf", signal, target: join(folder, "gguf") });
      },
      generating: async ({ signal, now }) => {
        const model = await engine.loadModel(await engine.openCheckpoint(MODEL), { device: "cpu" });
        for await (const _ of model.generate(prompt, { maxTokens: 400, ignoreEos: true, signal })) now();
      },
      "a generation in the queue": async ({ signal, now }) => {
        const model = await engine.loadModel(await engine.openCheckpoint(MODEL), { device: "cpu" });
        const first = model.generate(prompt, { maxTokens: 30, ignoreEos: true }).text();
        const second = model.generate(prompt, { maxTokens: 1, signal }).text();
        now();
        await assert.rejects(second, { code: "cancelled" });
        assert.ok((await first).length > 30, "the running generation continues");
        return second;
      },
      "perplexity, at its first report": async ({ signal, now }) => {
        const model = await engine.loadModel(await engine.openCheckpoint(MODEL), { device: "cpu" });
        return model.perplexity(HELD_OUT.repeat(8), { context: 128, signal, onProgress: now });
      },
      "validating, at its first report": async ({ signal, now }) => {
        const original = await engine.openCheckpoint(MODEL);
        const small = await engine.quantize(original, { bits: 4 });
        return engine.validate(original, small, { texts: HELD_OUT.repeat(4), device: "cpu", signal, onProgress: now });
      },
      "comparing, at its first report": async ({ signal, now }) => {
        const original = await engine.openCheckpoint(MODEL);
        return engine.compare(original, original, { prompts: PROMPTS, maxTokens: 200, device: "cpu", signal, onProgress: now });
      },
    };
    for (const [name, work] of Object.entries(phases)) {
      test(name, async () => {
        const stop = stopper();
        const error = await fails(work(stop), "cancelled");
        assert.equal(error.cause?.message, "the user had enough");
        await stillWorks(engine);
      });
    }

    test("a cancelled job leaves no output that looks complete", async () => {
      for (const name of ["rtn", "gptq", "awq", "gguf"]) {
        const found = names(join(folder, name));
        assert.deepEqual(found.filter((file) => /tmp$|^model|quantization_config|gguf$/.test(file)), [], name);
        if (found.length > 0) await fails(engine.openCheckpoint(join(folder, name)), "unfinished_output");
      }
    });

    test("leaving the loop ends the generation and frees the model", async () => {
      const model = await engine.loadModel(await engine.openCheckpoint(MODEL), { device: "cpu" });
      const generation = model.generate(prompt, { maxTokens: 400, ignoreEos: true });
      for await (const piece of generation) {
        assert.ok(piece.text.length > 0);
        break;
      }
      await fails(generation.result(), "cancelled");
      assert.equal((await model.generate(prompt, { maxTokens: 2 }).result()).tokenIds.length, 2);
    });

    test("an error in the loop ends the generation too", async () => {
      const model = await engine.loadModel(await engine.openCheckpoint(MODEL), { device: "cpu" });
      const generation = model.generate(prompt, { maxTokens: 400, ignoreEos: true });
      const loop = async () => {
        for await (const _ of generation) throw new Error("mine");
      };
      await assert.rejects(loop, /mine/);
      await fails(generation.result(), "cancelled");
    });

    test("progress is reported, and a timer ticks between any two reports", async () => {
      // Slow reads, so that every machine takes long enough for an estimate of the remaining time.
      const checkpoint = await engine.openCheckpoint(readable((name) => name.endsWith(".safetensors") && new Promise((done) => setTimeout(done, 50))));
      const reports = [];
      let ticks = 0;
      const timer = setInterval(() => ticks++, 0);
      await engine.quantize(checkpoint, { ...GPTQ, onProgress: (progress) => reports.push({ ...progress, ticks, at: performance.now() }) });
      clearInterval(timer);
      assert.ok(reports.length >= 3, `${reports.length} reports`);
      for (const [index, { phase, done, total, bytes, item, etaSeconds, ticks, at }] of reports.entries()) {
        assert.equal(typeof phase, "string");
        assert.ok(phase !== "" && Number.isInteger(done) && Number.isInteger(total) && done >= 0 && done <= total, `${phase} ${done} of ${total}`);
        assert.ok(Number.isInteger(bytes) && bytes >= (reports[index - 1]?.bytes ?? 1));
        assert.equal(typeof item, "string");
        assert.ok(etaSeconds === undefined || (etaSeconds >= 0 && Number.isFinite(etaSeconds)), String(etaSeconds));
        const before = reports[index - 1];
        if (before === undefined) continue;
        assert.ok(ticks > before.ticks, `no tick between reports ${index - 1} and ${index}`);
        // Node's timers may fire a millisecond early.
        assert.ok(at - before.at >= 48, `${at - before.at} ms`);
      }
      assert.ok(reports.some(({ etaSeconds }) => etaSeconds !== undefined), "some report has an estimate of the remaining time");
    });

  });
}
