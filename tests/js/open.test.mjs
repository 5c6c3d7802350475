// Sources of checkpoints: paths, URLs, servers of all kinds, files in memory, blobs, and objects with range reads.
import assert from "node:assert/strict";
import { openAsBlob, readFileSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import { runInNewContext } from "node:vm";
import { fails, golden, lowbit, MODEL, modelFiles, temporary } from "./support.mjs";
import { sendRange, serve } from "./http.mjs";

const { createEngine } = lowbit;
const engine = createEngine();
after(() => engine.dispose());

const files = modelFiles();
const folder = temporary();
const GGUF = join(folder, "model.gguf");

before(async () => {
  const converted = await engine.convert(await engine.openCheckpoint(MODEL), { format: "gguf" });
  writeFileSync(GGUF, (await converted.files())["model.gguf"]);
});

/** Asserts that a checkpoint is the fixtures' model, including weights and tokenizer. */
async function isTheModel(checkpoint, { layout = "dense" } = {}) {
  assert.equal(checkpoint.info.architecture, "llama");
  assert.equal(checkpoint.info.parameters, 705_408);
  assert.equal(checkpoint.info.layout, layout);
  const { prompt, prompt_ids: promptIds, token_ids: tokenIds } = golden.run.original.greedy[0];
  assert.deepEqual([...(await checkpoint.tokenize(prompt))], promptIds);
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  const { tokenIds: found } = await model.generate(prompt, { maxTokens: 4 }).result();
  assert.deepEqual(found, tokenIds.slice(0, 4));
  model.dispose();
  checkpoint.dispose();
}

/** A caller's file that counts the bytes read. */
function counted(bytes, read) {
  const file = { size: bytes.length, bytes: 0, read: (offset, length) => ((file.bytes += length), read(offset, length)) };
  return file;
}

const asBlobs = (of = files) => Object.entries(of).map(([name, bytes]) => new File([bytes], name));

describe("a checkpoint opens from", () => {
  const sources = {
    "a path": () => MODEL,
    "a path with ./": () => `./${join("tests/fixtures/tale-llama")}`,
    "a file: URL": () => pathToFileURL(MODEL),
    "a file: URL as a string": () => pathToFileURL(MODEL).href,
    "bytes by name": () => files,
    "ArrayBuffers by name": () => Object.fromEntries(Object.entries(files).map(([name, { buffer }]) => [name, buffer])),
    "blobs by name": () => Object.fromEntries(Object.entries(files).map(([name, bytes]) => [name, new Blob([bytes])])),
    "a list of files": () => asBlobs(),
    "an array-like of files, such as a FileList": () => ({ length: 5, ...asBlobs() }),
    "blobs on disk": async () => ({ ...files, "model.safetensors": await openAsBlob(join(MODEL, "model.safetensors")) }),
    "files with size and read": () =>
      Object.fromEntries(Object.entries(files).map(([name, bytes]) => [name, counted(bytes, (at, n) => bytes.subarray(at, at + n))])),
    "files whose bytes are a subclass of Uint8Array or from another realm": () => {
      class Mine extends Uint8Array {
        get length() {
          return 0;
        }
      }
      const foreign = runInNewContext("Uint8Array");
      return Object.fromEntries(
        Object.entries(files).map(([name, bytes], index) => {
          const of = index % 2 === 0 ? Mine : foreign;
          return [name, counted(bytes, (at, n) => new of(bytes.slice(at, at + n).buffer))];
        }),
      );
    },
    "files with an asynchronous read": () =>
      Object.fromEntries(Object.entries(files).map(([name, bytes]) => [name, counted(bytes, async (at, n) => bytes.slice(at, at + n))])),
  };
  for (const [name, source] of Object.entries(sources)) {
    test(name, async () => {
      const cwd = process.cwd();
      // The worker keeps the working directory that the program had when the worker started.
      if (name.includes("./")) process.chdir(new URL("../..", import.meta.url).pathname);
      try {
        await isTheModel(await engine.openCheckpoint(await source()));
      } finally {
        process.chdir(cwd);
      }
    });
  }

  const ggufs = {
    "a path": () => GGUF,
    "a Blob": async () => new Blob([await readFile(GGUF)]),
    "a File": async () => new File([await readFile(GGUF)], "some name.gguf"),
    bytes: () => readFile(GGUF),
    "an ArrayBuffer": async () => new Uint8Array(await readFile(GGUF)).buffer,
    "size and read": async () => {
      const bytes = new Uint8Array(await readFile(GGUF));
      return counted(bytes, (at, n) => bytes.subarray(at, at + n));
    },
    "a URL": async () => {
      const bytes = readFileSync(GGUF);
      return `${await serve((request, response) => sendRange(request, response, bytes))}/some/model.gguf`;
    },
  };
  for (const [name, source] of Object.entries(ggufs)) {
    test(`a GGUF file as ${name}`, async () => isTheModel(await engine.openCheckpoint(await source()), { layout: "gguf" }));
  }

  test("a GGUF file with a tokenizer from elsewhere", async () => {
    await isTheModel(await engine.openCheckpoint(GGUF, { tokenizer: MODEL }), { layout: "gguf" });
  });
});

test("opening reads headers, not weights", async () => {
  const bytes = files["model.safetensors"];
  const weights = counted(bytes, (at, n) => bytes.subarray(at, at + n));
  const checkpoint = await engine.openCheckpoint({ ...files, "model.safetensors": weights });
  assert.ok(weights.bytes > 0 && weights.bytes < 10_000, `${weights.bytes} bytes`);
  checkpoint.dispose();
});

test("the caller's bytes are not modified or detached", async () => {
  const given = modelFiles();
  const checkpoint = await engine.openCheckpoint(given);
  await engine.quantize(checkpoint, { bits: 8 });
  for (const [name, bytes] of Object.entries(given)) assert.deepEqual(bytes, files[name], name);
});

describe("from a server", () => {
  /** Serves the model's files through `answer`. Requests are collected in `asked`. */
  async function site(answer, asked = []) {
    const url = await serve((request, response) => {
      const name = decodeURIComponent(new URL(request.url, "http://localhost").pathname.split("/").pop());
      asked.push({ name, path: request.url, range: request.headers.range, ifRange: request.headers["if-range"], headers: request.headers });
      const bytes = files[name];
      if (bytes === undefined) return response.writeHead(404).end("no such file");
      answer(request, response, bytes, name);
    });
    return url;
  }

  test("with range requests, only the needed bytes are fetched", async () => {
    const asked = [];
    const url = await site((request, response, bytes) => sendRange(request, response, bytes, { etag: '"one"' }), asked);
    const checkpoint = await engine.openCheckpoint(`${url}/models/tale`);
    assert.ok(asked.every(({ range }) => range !== undefined), "every request has a range");
    assert.ok(asked.every(({ path }) => path.startsWith("/models/tale/")));
    await isTheModel(checkpoint);
    const later = asked.filter(({ name, range }) => name === "model.safetensors" && !range.startsWith("bytes=0-"));
    assert.ok(later.length > 0);
    assert.ok(later.every(({ ifRange }) => ifRange === '"one"'), "later requests ask for the same version of the file");
  });

  test("without range requests, whole files are fetched", async () => {
    const asked = [];
    const url = await site((_, response, bytes) => response.writeHead(200, { "content-length": bytes.length }).end(bytes), asked);
    await isTheModel(await engine.openCheckpoint(new URL(`${url}/tale/`)));
  });

  test("a server with weak tags works, if its ranges are right", async () => {
    const url = await site((request, response, bytes) => sendRange(request, response, bytes, { etag: 'W/"weak"' }));
    await isTheModel(await engine.openCheckpoint(url));
  });

  test("a hub name works with revision, headers and the caller's own fetch", async () => {
    const asked = [];
    const url = await site((request, response, bytes) => sendRange(request, response, bytes, { etag: '"one"' }), asked);
    const urls = [];
    const checkpoint = await engine.openCheckpoint("some-org/tale-llama", {
      revision: "refs/pr/1",
      headers: { authorization: "Bearer secret" },
      fetch: (address, init) => {
        urls.push(String(address));
        return fetch(String(address).replace("https://huggingface.co", url), init);
      },
    });
    assert.ok(urls.includes("https://huggingface.co/some-org/tale-llama/resolve/refs%2Fpr%2F1/config.json"), urls[0]);
    assert.ok(asked.every(({ headers }) => headers.authorization === "Bearer secret"));
    await isTheModel(checkpoint);
  });

  test("headers are sent with every request", async () => {
    const asked = [];
    const url = await site((request, response, bytes) => sendRange(request, response, bytes), asked);
    const checkpoint = await engine.openCheckpoint(url, { headers: { "x-key": "1" } });
    assert.ok(asked.length > 0 && asked.every(({ headers }) => headers["x-key"] === "1"));
    checkpoint.dispose();
  });

  const only = (broken, otherwise = sendRange) => (request, response, bytes, name) =>
    name === "model.safetensors" ? broken(request, response, bytes) : otherwise(request, response, bytes);

  const failures = [
    ["a missing folder", (_, response) => response.writeHead(404).end(), "not_found", /config\.json/],
    ["a server error", (_, response) => response.writeHead(500).end(), "io", /config\.json.*500/],
    ["a private repository", (_, response) => response.writeHead(401).end(), "io", /config\.json.*401.*headers/],
    [
      "a gated repository", (_, response) => response.writeHead(403, { "x-error-message": "Access is restricted." }).end(),
      "io", /config\.json.*403.*Access is restricted/,
    ],
    ["a bucket without list permission", (_, response) => response.writeHead(403).end(), "not_found", /config\.json/],
    ["a missing weight file", only((_, response) => response.writeHead(404).end()), "not_found", /model\.safetensors/],
    [
      "a download that breaks off",
      only((_, response, bytes) => {
        response.writeHead(200, { "content-length": bytes.length });
        response.write(bytes.subarray(0, 1000), () => response.destroy());
      }),
      "io",
      /model\.safetensors/,
    ],
    [
      "a range that breaks off",
      only((_, response, bytes) => {
        response.writeHead(206, { "content-range": `bytes 0-262143/${bytes.length}`, "content-length": 262_144 });
        response.write(bytes.subarray(0, 1000), () => response.destroy());
      }),
      "io",
      /model\.safetensors/,
    ],
    [
      "a large file on a server without range requests",
      only((_, response) => {
        response.writeHead(200, { "content-length": 5_000_000_000 });
        response.flushHeaders();
      }),
      "io",
      /model\.safetensors.*range requests.*5000000000/,
    ],
    [
      "a server that does not send the file's length",
      only((_, response, bytes) => response.writeHead(206, { "content-range": "bytes 0-99/*" }).end(bytes.subarray(0, 100))),
      "io",
      /model\.safetensors.*how long/,
    ],
  ];
  for (const [name, answer, code, pattern] of failures) {
    test(`${name} is an error`, async () => {
      const url = await site(answer);
      await fails(engine.openCheckpoint(url), code, pattern);
    });
  }

  /**
   * Cases: what happens to the file, the answers while the model is loaded, the error's code, and the file's first tag.
   */
  const afterOpening = [
    ["gets a new tag", (request, response, bytes) => sendRange(request, response, bytes, { etag: '"two"' }), "changed"],
    ["gets a new weak tag", (request, response, bytes) => sendRange(request, response, bytes, { etag: 'W/"two"' }), "changed", 'W/"one"'],
    ["goes away", (_, response) => response.writeHead(404).end(), "io"],
    [
      "returns less than requested",
      (request, response, bytes) => {
        const start = Number(/\d+/.exec(request.headers.range)[0]);
        response.writeHead(206, { etag: '"one"', "content-range": `bytes ${start}-${start + 9}/${bytes.length}` });
        response.end(bytes.subarray(start, start + 10));
      },
      "io",
    ],
  ];
  for (const [name, later, code, etag = '"one"'] of afterOpening) {
    test(`a file that ${name} while it is read is an error`, async () => {
      let opened = false;
      const url = await site((request, response, bytes) =>
        opened ? later(request, response, bytes) : sendRange(request, response, bytes, { etag }),
      );
      const checkpoint = await engine.openCheckpoint(url);
      opened = true;
      await fails(engine.loadModel(checkpoint, { device: "cpu" }), code, /model\.safetensors/);
      checkpoint.dispose();
    });
  }

  test("an unreachable server is an error", async () => {
    await fails(engine.openCheckpoint("http://127.0.0.1:1/model"), "io", /127\.0\.0\.1:1/);
  });

  test("a fetch that throws is an error with its message", async () => {
    const fetch = () => {
      throw new TypeError("no network today");
    };
    await fails(engine.openCheckpoint("org/model", { fetch }), "io", /no network today/);
  });
});

describe("unknown keys", () => {
  const json = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
  const bytes = (object) => new TextEncoder().encode(JSON.stringify(object));
  const edited = (file, changes) => ({ ...files, [file]: bytes({ ...json(files[file]), ...changes }) });

  test("of config.json are rejected by name, and ignored if they are allowed", async () => {
    const source = edited("config.json", { logit_scale: 0.5 });
    await fails(engine.openCheckpoint(source), "unsupported_model", /config\.json: unknown key `logit_scale` = 0\.5/);
    await fails(engine.openCheckpoint(source, { allowUnknown: ["logit_bias"] }), "unsupported_model", /logit_scale/);
    await fails(engine.openCheckpoint(source, { allowUnknown: "logit_scale" }), "invalid_argument", /allowUnknown/);
    const checkpoint = await engine.openCheckpoint(source, { allowUnknown: ["logit_scale"] });
    assert.match(checkpoint.info.warnings.join(), /the unknown key `logit_scale` is ignored/);
    // The output opens without the option, and its record names the key.
    const small = await engine.quantize(checkpoint, { bits: 8 });
    assert.deepEqual(small.summary.record.source.ignoredKeys, ["logit_scale"]);
    const again = await engine.openCheckpoint(await small.files());
    assert.match(again.info.warnings.join(), /logit_scale/);
  });

  test("of tokenizer_config.json are rejected when the tokenizer is needed", async () => {
    const source = edited("tokenizer_config.json", { do_lower_case: true });
    const checkpoint = await engine.openCheckpoint(source);
    await fails(checkpoint.tokenize("Once"), "tokenizer", /tokenizer_config\.json: unknown key `do_lower_case` = true/);
    const allowed = await engine.openCheckpoint(source, { allowUnknown: ["do_lower_case"] });
    assert.ok((await allowed.tokenize("Once")).length > 0);
  });
});
