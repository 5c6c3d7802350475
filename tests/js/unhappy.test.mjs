// Failures: each ends in a `LowbitError` with the right code and leaves nothing behind: no unhandled rejection, no
// worker, no scratch file, no output that looks complete. More servers are in open.test.mjs, more targets in
// quantize.test.mjs, more cancelled jobs in jobs.test.mjs, wrong arguments in arguments.test.mjs.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, afterEach, describe, test } from "node:test";
import { sendRange, serve } from "./http.mjs";
import { at, CALIBRATION, fails, HELD_OUT, LITTLE, lowbit, MODEL, modelFiles, names, temporary } from "./support.mjs";

const [scratch, folder] = [temporary(), temporary()];
// Set before any engine's worker starts, because workers put their scratch files there.
process.env.TMPDIR = scratch;
let outputs = 0;
const output = () => join(folder, String((outputs += 1)));

const unheard = [];
process.on("unhandledRejection", (error) => unheard.push(error));
const workers = () => process.report.getReport().workers.length;
process.report.excludeNetwork = true;

const engine = lowbit.createEngine();
after(() => engine.dispose());
const original = await engine.openCheckpoint(MODEL);
const small = await engine.quantize(original, { bits: 8 });
const model = await engine.loadModel(original, { device: "cpu" });
const AT_WORK = workers();

afterEach(async () => {
  // Unhandled rejections are reported after the microtasks.
  await new Promise(setImmediate);
  assert.deepEqual(unheard.splice(0), []);
  assert.deepEqual(names(scratch), [], "no scratch files are left");
});

const judged = { texts: HELD_OUT.slice(0, 600), maxTokens: 4, speedRounds: 0, prompts: ["The cat"], device: "cpu" };
const searched = { texts: HELD_OUT.slice(0, 600), calibration: { texts: [CALIBRATION], sequenceLength: 64 } };
const GPTQ = { method: "gptq", bits: 4, groupSize: 32, calibration: LITTLE };

describe("misbehaving files", () => {
  const files = modelFiles();
  const weights = files["model.safetensors"];
  const cut = (at, n) => weights.slice(at, at + n);
  /** What `read` does for the weights once the checkpoint is open; the error's code and message. */
  const lying = [
    ["return less", (at, n) => cut(at, n - 1), "io", /model\.safetensors.*expected \d+ bytes/],
    ["return more", (at, n) => new Uint8Array(n + 1), "io", /model\.safetensors.*expected \d+ bytes/],
    ["return nothing", () => new Uint8Array(), "io", /model\.safetensors.*got 0/],
    ["return undefined", () => undefined, "invalid_argument", /Uint8Array/],
    ["return a string", () => "bytes", "invalid_argument", /Uint8Array/],
    ["return an array", (at, n) => Array.from(cut(at, n)), "invalid_argument", /Uint8Array/],
    ["return an ArrayBuffer", (at, n) => cut(at, n).buffer, "invalid_argument", /Uint8Array/],
    ["throw", () => { throw new Error("the drive is gone"); }, "io", /the drive is gone/],
    ["throw undefined", () => Promise.reject(), "io", /undefined/],
    ["throw a string", () => { throw "no luck"; }, "io", /no luck/],
    ["throw a disk's error", () => { throw Object.assign(new Error("EIO: i/o error"), { code: "EIO" }); }, "io", /EIO/],
    ["throw a missing file's error", () => { throw Object.assign(new Error("ENOENT: gone"), { code: "ENOENT" }); }, "not_found", /ENOENT/],
  ];
  const checkpoint = async (engine, read, size = weights.length) => {
    let opened = false;
    const file = { size, read: (at, n) => (opened ? read(at, n) : cut(at, n)) };
    const open = await engine.openCheckpoint({ ...files, "model.safetensors": file });
    opened = true;
    return open;
  };
  for (const [name, read, code, pattern] of lying) {
    test(`when they ${name}`, async () => {
      for (const worker of [true, false]) {
        const of = worker ? engine : lowbit.createEngine({ worker });
        const open = await checkpoint(of, read);
        await fails(of.loadModel(open, { device: "cpu" }), code, pattern);
        const target = output();
        await fails(of.quantize(open, { bits: 8, target }), code, pattern);
        assert.equal(names(target).includes("quantization_config.json"), false);
        open.dispose();
        if (!worker) await of.dispose();
      }
    });
  }

  const sizes = [
    ["too large", weights.length + 1, "invalid_checkpoint", /model\.safetensors/],
    ["too small", weights.length - 1, "invalid_checkpoint", /model\.safetensors/],
    ["zero", 0, "invalid_checkpoint", /model\.safetensors/],
    ["negative", -1, "invalid_argument", /model\.safetensors.*size.*-1/],
    ["a fraction", 0.5, "invalid_argument", /model\.safetensors.*size.*0\.5/],
    ["not a number", Number.NaN, "invalid_argument", /model\.safetensors.*size.*NaN/],
    ["infinite", Number.POSITIVE_INFINITY, "invalid_argument", /model\.safetensors.*size/],
  ];
  for (const [name, size, code, pattern] of sizes) {
    test(`when a size is ${name}`, () => fails(checkpoint(engine, cut, size), code, pattern));
  }
});

describe("a misbehaving server", () => {
  const files = modelFiles();
  const bytes = files["model.safetensors"];
  /** Opens a checkpoint from a server. After that, `answer` answers requests for the weights. */
  const site = async (answer, headers = { etag: '"one"' }) => {
    let opened = false;
    const url = await serve((request, response) => {
      const name = request.url.split("/").pop();
      if (files[name] === undefined) return response.writeHead(404).end();
      if (opened && name === "model.safetensors") return answer(request, response);
      return sendRange(request, response, Buffer.from(files[name]), headers);
    });
    const open = await engine.openCheckpoint(url);
    opened = true;
    return open;
  };
  const first = (request) => Number(/\d+/.exec(request.headers.range)[0]);
  const cases = [
    ["sends more than requested", (request, response) => {
      response.writeHead(206, { "content-range": `bytes ${first(request)}-${bytes.length - 1}/${bytes.length}` });
      response.end(Buffer.concat([bytes, bytes]));
    }, "io", /more than was asked/],
    ["sends another range", (request, response) => {
      const length = Number(/-(\d+)/.exec(request.headers.range)[1]) - first(request) + 1;
      response.writeHead(206, { "content-range": `bytes 1-${length}/${bytes.length}` }).end(bytes.subarray(1, length + 1));
    }, "io", /offset/],
    ["has a changed file, with another length", (request, response) =>
      sendRange(request, response, Buffer.from(bytes.subarray(0, -1)), {}), "changed", /changed/, {}],
    ["has a changed file, with another date", (request, response) =>
      sendRange(request, response, Buffer.from(bytes), { "last-modified": "Sat, 02 Jan 2027 00:00:00 GMT" }), "changed", /changed/,
      { "last-modified": "Fri, 01 Jan 2027 00:00:00 GMT" }],
    ["locks the file", (_, response) => response.writeHead(401).end("who are you?"), "io", /401/],
    ["hangs up", (request) => request.socket.destroy(), "io", /model\.safetensors/],
  ];
  for (const [name, answer, code, pattern, headers] of cases) {
    test(name, async () => {
      const open = await site(answer, headers);
      await fails(engine.loadModel(open, { device: "cpu" }), code, pattern);
      open.dispose();
    });
  }

  test("sends an endless file without range requests", async () => {
    let sent = 0;
    const url = await serve((request, response) => {
      if (!request.url.endsWith("config.json")) return response.writeHead(404).end();
      const block = Buffer.alloc(1 << 22, " ");
      response.writeHead(200);
      const more = () => {
        while (!response.destroyed && response.write(block)) sent += block.length;
        sent += block.length;
      };
      response.on("drain", more);
      response.on("error", () => {});
      return more();
    });
    await fails(engine.openCheckpoint(url), "io", /config\.json.*range requests.*more than 67108864 bytes/);
    assert.ok(sent < 300e6, `${sent} bytes`);
  });
});

/** `wait` returns a promise that never settles; `waited` resolves when `wait` is called. */
function never() {
  let begun;
  const waited = new Promise((resolve) => (begun = resolve));
  return { waited, wait: () => (begun(), new Promise(() => {})) };
}

describe("callbacks and servers that never answer", () => {
  const files = modelFiles();
  for (const worker of [true, false]) {
    const where = worker ? "" : ", in the caller's thread";
    const cases = {
      "a read while opening": (of, wait, signal) =>
        of.openCheckpoint({ ...files, "config.json": { size: 600, read: wait } }, { signal }),
      "a tokenizer's read": async (of, wait, signal) => {
        const { "tokenizer.json": tokenizer, ...rest } = files;
        let opened = false;
        const read = (at, n) => (opened ? wait() : tokenizer.slice(at, at + n));
        const open = await of.openCheckpoint({ ...rest, "tokenizer.json": { size: tokenizer.length, read } });
        opened = true;
        return of.quantize(open, { ...GPTQ, signal });
      },
      "a server": async (of, wait, signal) => {
        const url = await serve(wait);
        return of.openCheckpoint(url, { signal });
      },
      "a fetch": (of, wait, signal) => of.openCheckpoint("org/model", { fetch: wait, signal }),
      "a target function": async (of, wait, signal) =>
        of.quantize(await of.openCheckpoint(MODEL), { bits: 8, target: wait, signal }),
      "a writer": async (of, wait, signal) =>
        of.quantize(await of.openCheckpoint(MODEL), { bits: 8, target: () => ({ write: wait, close() {} }), signal }),
      "a writer's close": async (of, wait, signal) =>
        of.convert(await of.openCheckpoint(MODEL), { format: "gguf", target: () => ({ write() {}, close: wait, abort: wait }), signal }),
    };
    for (const [name, work] of Object.entries(cases)) {
      test(`${name} is abandoned on a signal${where}`, async () => {
        const of = worker ? engine : lowbit.createEngine({ worker });
        const { waited, wait } = never();
        const controller = new AbortController();
        const working = work(of, wait, controller.signal);
        await Promise.race([waited, working]);
        controller.abort(new Error("enough"));
        assert.equal((await fails(working, "cancelled")).cause.message, "enough");
        if (!worker) await of.dispose();
      });
      test(`${name} is abandoned when its engine is disposed${where}`, async () => {
        const of = lowbit.createEngine({ worker });
        const { waited, wait } = never();
        const working = work(of, wait);
        await Promise.race([waited, working]);
        await Promise.all([of.dispose(), fails(working, "invalid_argument", /disposed/)]);
      });
    }

    test(`a read that another job still needs is not abandoned${where}`, async () => {
      const of = worker ? engine : lowbit.createEngine({ worker });
      const bytes = files["model.safetensors"];
      let release;
      let reading;
      const begun = new Promise((resolve) => (reading = resolve));
      let opened = false;
      const read = async (at, n) => {
        if (opened) {
          reading();
          await (release ??= Promise.withResolvers?.() ?? resolvers()).promise;
        }
        return bytes.slice(at, at + n);
      };
      const open = await of.openCheckpoint({ ...files, "model.safetensors": { size: bytes.length, read } });
      opened = true;
      const controller = new AbortController();
      const stopped = of.loadModel(open, { device: "cpu", signal: controller.signal });
      const goesOn = of.loadModel(open, { device: "cpu" });
      await begun;
      controller.abort();
      setTimeout(() => release.resolve(), 20);
      await fails(stopped, "cancelled");
      assert.equal((await (await goesOn).generate("Once", { maxTokens: 2 }).result()).tokenIds.length, 2);
      open.dispose();
      if (!worker) await of.dispose();
    });
  }
});

function resolvers() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}

describe("cancelled in every reported phase", () => {
  const limits = { maxPerplexityIncrease: 9 };
  const works = {
    load: ({ target, ...options }) => engine.loadModel(original, { device: "cpu", ...options }),
    "quantize rtn": (options) => engine.quantize(original, { bits: 4, ...options }),
    "quantize gptq": (options) => engine.quantize(original, { ...GPTQ, ...options }),
    "quantize awq": (options) => engine.quantize(original, { ...GPTQ, method: "awq", ...options }),
    convert: (options) => engine.convert(original, { format: "gguf", ggufType: "q4_k", ...options }),
    dequantize: (options) => engine.dequantize(small, options),
    perplexity: ({ target, ...options }) => model.perplexity(HELD_OUT, { context: 64, ...options }),
    validate: ({ target, ...options }) => engine.validate(original, small, { ...judged, speedRounds: 1, ...options }),
    auto: (options) => engine.auto(original, { ...searched, bits: 4, samples: [4], validate: { ...judged, device: undefined, texts: undefined, limits }, ...options }),
    compare: ({ target, ...options }) => engine.compare(original, small, { prompts: ["The cat"], maxTokens: 100, device: "cpu", ...options }),
    generate: ({ target, ...options }) => model.generate("Once", { maxTokens: 100, ignoreEos: true, ...options }).text(),
  };
  for (const [name, work] of Object.entries(works)) {
    test(name, async (t) => {
      const phases = new Set();
      await work({ onProgress: ({ phase }) => phases.add(phase) });
      t.diagnostic([...phases].join(", ") || "finished before its first report");
      for (const phase of phases) {
        const target = output();
        const controller = new AbortController();
        let reports = 0;
        const onProgress = (progress) => {
          if (controller.signal.aborted) reports += 1;
          if (progress.phase === phase) controller.abort(new Error("enough"));
        };
        const outcome = await work({ target, onProgress, signal: controller.signal }).then(() => "done", (error) => error);
        // The last phase may end before it can be cancelled, or be too short to be reported every time.
        if (outcome === "done") continue;
        await fails(Promise.reject(outcome), "cancelled");
        assert.equal(outcome.cause.message, "enough");
        assert.ok(reports < 2, `${phase}: ${reports} reports after the signal`);
        const found = names(target);
        assert.deepEqual(found.filter((file) => /quantization_config|gguf$|tmp$/.test(file)), [], `${name} at ${phase}`);
      }
    });
  }
});

describe("a target that fails", () => {
  const full = () => {
    throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
  };
  const quota = () => {
    throw new DOMException("the quota has been exceeded", "QuotaExceededError");
  };
  const made = {
    quantize: (target, of = engine, from = original) => of.quantize(from, { bits: 8, target }),
    "quantize gptq": (target, of = engine, from = original) => of.quantize(from, { ...GPTQ, target }),
    convert: (target, of = engine, from = original) => of.convert(from, { format: "gguf", target }),
    dequantize: (target, of = engine, from = small) => of.dequantize(from, { target }),
  };
  for (const [name, work] of Object.entries(made)) {
    test(name, async () => {
      const cases = [
        [{ write: full }, "storage_full", /ENOSPC/],
        [{ write: quota }, "storage_full", /quota/],
        [{ write: () => Promise.reject() }, "io", /undefined/],
        [{ close: full }, "storage_full", /ENOSPC/],
        [{ close: () => Promise.reject(new TypeError("it is closed")) }, "io", /it is closed/],
      ];
      for (const [broken, code, pattern] of cases) {
        const [opened, closed, aborted] = [[], [], []];
        const target = (file) => {
          opened.push(file);
          return { write() {}, close: () => void closed.push(file), abort: () => void aborted.push(file), ...broken };
        };
        await fails(work(target), code, pattern);
        await new Promise((resolve) => setTimeout(resolve, 5));
        if (broken.write !== undefined) assert.deepEqual(aborted, opened.slice(-1), "the open file is aborted");
        assert.equal(closed.includes("quantization_config.json"), false);
      }
    });
  }

  test("a WritableStream that errored without a reason", async () => {
    const target = () => new WritableStream({ start: (controller) => controller.error() });
    await fails(engine.quantize(original, { bits: 8, target }), "io", /undefined/);
  });

  /** A directory of a private file system, in memory, with room for `room` bytes. */
  function directory(room, files = {}) {
    const missing = () => {
      throw new DOMException("no such entry", "NotFoundError");
    };
    return {
      files, kind: "directory", name: "small",
      getFileHandle: async (name, { create = false } = {}) => {
        if (!(name in files)) files[name] = create ? new Uint8Array() : missing();
        const pieces = [];
        return {
          getFile: async () => new File([files[name]], name),
          createWritable: async () => ({
            write: async (bytes) => ((room -= bytes.length) < 0 ? quota() : void pieces.push(bytes.slice())),
            close: async () => void (files[name] = Buffer.concat(pieces)),
            abort: async () => {},
          }),
        };
      },
      getDirectoryHandle: async () => missing(),
      removeEntry: async (name) => void (name in files ? delete files[name] : missing()),
      keys: async function* () {
        yield* Object.keys(files);
      },
    };
  }

  test("a full private file system", async () => {
    const of = lowbit.createEngine({ worker: false });
    const from = await of.openCheckpoint(MODEL);
    const ample = directory(1e9);
    await of.quantize(from, { bits: 8, target: ample });
    const whole = Object.keys(ample.files).sort();
    assert.ok(whole.includes("quantization_config.json"));
    const bytes = Object.values(ample.files).reduce((sum, { length }) => sum + length, 0);
    for (const room of [0, 100, bytes / 2, bytes - 1]) {
      const target = directory(room);
      await fails(of.quantize(from, { bits: 8, target }), "storage_full", /small\/.*quota/);
      const { files } = target;
      assert.equal("quantization_config.json" in files, false, `with room for ${room} bytes`);
      assert.ok(Object.values(files).every(({ length }) => length > 0), "no empty entry is left");
      const code = "config.json" in files ? "unfinished_output" : "not_found";
      await at(Object.keys(files), () => fails(of.openCheckpoint(directory(0, files)), code));
    }
    await of.dispose();
  });

  test("a cancelled job leaves an earlier result either whole or marked as unfinished", async () => {
    const target = output();
    await engine.quantize(original, { bits: 8, target });
    const controller = new AbortController();
    const working = engine.quantize(original, { ...GPTQ, target, signal: controller.signal, onProgress: () => controller.abort() });
    await fails(working, "cancelled");
    if (!names(target).includes("quantization_config.json")) await fails(engine.openCheckpoint(target), "unfinished_output");
    else assert.equal((await engine.openCheckpoint(target)).info.layout, "compressed-tensors");
  });
});

describe("an engine that is disposed during a job", () => {
  for (const worker of [true, false]) {
    test(worker ? "in its worker" : "in the caller's thread", async () => {
      const of = lowbit.createEngine({ worker });
      const from = await of.openCheckpoint(MODEL);
      const path = output();
      let given;
      const reason = new Promise((resolve) => (given = resolve));
      const stuck = never();
      const target = () => ({ write: stuck.wait, close() {}, abort: given });
      const reported = new Promise((resolve) => {
        const working = of.quantize(from, { ...GPTQ, target: path, onProgress: resolve });
        working.catch(() => {});
      });
      const writing = of.quantize(from, { bits: 8, target });
      await Promise.all([reported, stuck.waited]);
      await of.dispose();
      await fails(writing, "invalid_argument", /disposed/);
      assert.equal((await reason) instanceof lowbit.LowbitError, true, "a stream is aborted, not left open");
      assert.deepEqual(names(path).filter((file) => /quantization_config|tmp$/.test(file)), []);
    });
  }
});

for (const [name, end, reason] of [
  ["its job was cancelled", (controller) => controller.abort(), "cancelled"],
  ["its engine was disposed", (_, of) => of.dispose(), "invalid_argument"],
]) {
  test(`a stream that arrives after ${name} is aborted`, async () => {
    const of = lowbit.createEngine();
    const from = await of.openCheckpoint(MODEL);
    const controller = new AbortController();
    let give;
    const asked = new Promise((resolve) => {
      const target = () => new Promise((made) => resolve((give = made)));
      of.quantize(from, { bits: 8, target, signal: controller.signal }).catch(() => {});
    });
    await asked;
    await end(controller, of);
    const { code } = await new Promise((abort) => give({ write: () => assert.fail("written"), close() {}, abort }));
    assert.equal(code, reason);
    await of.dispose();
  });
}

test("listeners that throw do not stop the job, and their errors are reported", async () => {
  const thrown = [];
  const hear = (error) => thrown.push(error.message);
  const before = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", hear);
  try {
    const work = { ...searched, bits: 4, samples: [4], validate: { ...judged, device: undefined, texts: undefined, limits: { maxPerplexityIncrease: 9 } } };
    const found = await engine.auto(original, {
      ...work,
      onEvent: () => { throw new Error("an event"); },
      onProgress: () => { throw new Error("a report"); },
    });
    assert.equal(found.attempts.length, 1);
    await new Promise((resolve) => setTimeout(resolve, 5));
    assert.deepEqual([...new Set(thrown)].sort(), ["a report", "an event"]);
  } finally {
    process.off("uncaughtException", hear);
    for (const listener of before) process.on("uncaughtException", listener);
  }
});

test("no worker is left", () => assert.equal(workers(), AT_WORK));
