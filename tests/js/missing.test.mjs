// Missing files on servers: web pages in their place, and all kinds of error answers.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { sendRange, serve } from "./http.mjs";
import { inShards } from "./shards.mjs";
import { at, fails, lowbit, modelFiles, temporary } from "./support.mjs";

// Set before any engine's worker starts, because a worker reads the variable once.
const cacheFolder = temporary();
process.env.XDG_CACHE_HOME = cacheFolder;

const engine = lowbit.createEngine();
after(() => engine.dispose());

const bytesOf = (text) => new Uint8Array(Buffer.from(text));
const TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
const plain = modelFiles();
const { "tokenizer_config.json": settings, ...rest } = plain;
/**
 * The model with its chat template in tokenizer_config.json. A page in place of chat_template.jinja must not hide it.
 */
const files = { ...rest, "tokenizer_config.json": bytesOf(JSON.stringify({ ...JSON.parse(Buffer.from(settings)), chat_template: TEMPLATE })) };
const without = (...names) => Object.fromEntries(Object.entries(files).filter(([name]) => !names.includes(name)));

/** Serves files under `/model/`. `absent` answers for missing files; `present` returns headers, or answers itself. */
async function site(files, absent, { present = () => ({}), asked = [] } = {}) {
  const url = await serve((request, response) => {
    const name = decodeURIComponent(request.url.replace("/model/", ""));
    asked.push(name);
    const bytes = Object.hasOwn(files, name) ? Buffer.from(files[name]) : undefined;
    if (bytes === undefined) return absent(request, response, name);
    const headers = present(name, request, response);
    return headers && sendRange(request, response, bytes, headers);
  });
  return `${url}/model/`;
}

/** The prompt's token ids for a chat with the message "Hi". */
async function promptOf(checkpoint) {
  const model = await engine.loadModel(checkpoint, { device: "cpu" });
  const { promptIds } = await model.chat([{ role: "user", content: "Hi" }], { maxTokens: 1 }).result();
  model.dispose();
  return promptIds;
}

/** The names of the files of its INT8 version. */
async function writtenOf(checkpoint) {
  const output = await engine.quantize(checkpoint, { bits: 8 });
  const names = Object.keys(await output.files()).sort();
  output.dispose();
  return names;
}

const PAGE = "<!doctype html>\n<html><head><title>My App</title></head><body></body></html>\n";
const send = (response, text, headers) => response.writeHead(200, { "content-length": Buffer.byteLength(text), ...headers }).end(text);
const html = { "content-type": "text/html" };

/** The ways in which servers answer with a page. */
const PAGES = {
  "with 200 and its type": (_, response) => send(response, PAGE, html),
  "with 200, its type and charset": (_, response) => send(response, PAGE, { "content-type": "text/html; charset=utf-8" }),
  "without a length": (_, response) => response.writeHead(200, html).end(PAGE),
  "by ranges": (request, response) => sendRange(request, response, Buffer.from(PAGE), { ...html, etag: '"page"' }),
  "by ranges without its type": (request, response) => sendRange(request, response, Buffer.from(PAGE), { etag: '"page"' }),
  "with 200 and no type": (_, response) => send(response, PAGE, {}),
  "labelled as plain text": (_, response) => send(response, PAGE, { "content-type": "text/plain" }),
  "labelled as binary": (_, response) => send(response, PAGE, { "content-type": "application/octet-stream" }),
  "in XHTML": (_, response) => send(response, `<?xml version="1.0"?>\n${PAGE}`, { "content-type": "application/xhtml+xml" }),
  "with a byte order mark, newlines and comments first": (_, response) => send(response, `\ufeff\n<!-- built -->\n<!-- today -->${PAGE}`, {}),
  "of a few words": (_, response) => send(response, "Not Found", html),
  "with an empty body": (_, response) => send(response, "", html),
  "without end": (_, response) => {
    response.writeHead(200, html);
    const more = () => {
      while (!response.destroyed && response.write(PAGE.repeat(1000)));
    };
    response.on("drain", more).on("error", () => {});
    more();
  },
};

describe("a web page in place of a missing file", () => {
  let prompt;
  let written;
  before(async () => {
    const local = await engine.openCheckpoint(files);
    prompt = await promptOf(local);
    written = await writtenOf(local);
  });

  for (const [name, absent] of Object.entries(PAGES)) {
    test(`${name} counts as missing`, async () => {
      const checkpoint = await engine.openCheckpoint(await site(files, absent));
      assert.deepEqual(await promptOf(checkpoint), prompt);
      assert.deepEqual(await writtenOf(checkpoint), written);
      checkpoint.dispose();
      await fails(engine.openCheckpoint(await site(without("config.json"), absent)), "not_found", /no config\.json.* for config\.json the server answered with a web page/);
    });
  }

  test("counts as missing with the caller's own fetch too, with and without streams", async () => {
    const base = await site(without("generation_config.json"), PAGES["with 200 and its type"]);
    const mine = {
      "with streams": fetch,
      "without streams": async (url, init) => {
        const response = await fetch(url, init);
        return { status: response.status, headers: response.headers, arrayBuffer: () => response.arrayBuffer() };
      },
    };
    for (const [name, fetch] of Object.entries(mine)) {
      await at(name, async () => assert.deepEqual(await promptOf(await engine.openCheckpoint(base, { fetch })), prompt));
    }
  });

  const required = [
    ["a configuration", ["config.json"], "not_found", /no config\.json/],
    ["weights", ["model.safetensors"], "not_found", /model\.safetensors/],
    ["weights, with other pages too", ["model.safetensors", "generation_config.json"], "not_found", /model\.safetensors/],
  ];
  for (const [name, names, code, pattern] of required) {
    test(`is named in the error if it replaces ${name}`, async () => {
      const error = await fails(engine.openCheckpoint(await site(without(...names), PAGES["with 200 and its type"])), code, pattern);
      assert.match(error.message, new RegExp(`for ${names[0]} the server answered with a web page \\(HTML\\) titled "My App" in place of the file$`));
    });
  }

  test("is named in errors about a tokenizer that it replaces, and not in unrelated errors", async () => {
    const checkpoint = await engine.openCheckpoint(await site(without("tokenizer.json"), PAGES["by ranges"]));
    await fails(checkpoint.tokenize("a"), "not_found", /tokenizer\.json.*web page/);
    const other = await fails(engine.quantize(checkpoint, { groupSize: 96, strict: true }), "unsupported_format");
    assert.doesNotMatch(other.message, /web page/);
    const url = await site({ "config.json": files["config.json"] }, PAGES["by ranges"]);
    const given = await engine.openCheckpoint(files, { tokenizer: url });
    await fails(given.tokenize("a"), "not_found", /tokenizer\.json.*web page/);
    await fails(engine.openCheckpoint(await site({ ...files, "config.json": bytesOf("{") }, PAGES["by ranges"])), "invalid_checkpoint", /config\.json: expected JSON.*\d$/);
  });

  test("does not count as the last file of a finished output", async () => {
    const output = await engine.quantize(await engine.openCheckpoint(files), { bits: 8 });
    const { "quantization_config.json": last, ...unfinished } = await output.files();
    assert.ok(last !== undefined);
    await fails(engine.openCheckpoint(await site(unfinished, PAGES["with 200 and its type"])), "unfinished_output", /quantization_config\.json.*web page/);
  });

  test("is an error if it replaces a GGUF file", async () => {
    for (const [name, absent] of Object.entries(PAGES)) {
      const url = `${await site({}, absent)}model.gguf`;
      await at(name, () => fails(engine.openCheckpoint(url), "not_found", /model\.gguf: the server answered with a web page \(HTML\)/));
    }
    await fails(engine.openCheckpoint(`${await site({}, (_, response) => response.writeHead(404).end())}model.gguf`), "not_found", /no such file/);
  });

  test("is an error if it appears while weights are read", async () => {
    let opened = false;
    const absent = PAGES["with 200 and its type"];
    const present = (name, request, response) => (opened ? void absent(request, response) : { etag: '"one"' });
    const checkpoint = await engine.openCheckpoint(await site(files, absent, { present }));
    opened = true;
    await fails(engine.loadModel(checkpoint, { device: "cpu" }), "io", /model\.safetensors: the server answered with a web page \(HTML\) titled "My App"/);
  });
});

describe("a file that a server labels as a web page", () => {
  const naive = (request, response) => response.writeHead(404, html).end("no such file");
  for (const ranges of [true, false]) {
    test(`still counts as a file${ranges ? "" : ", without ranges"}`, async () => {
      const templates = [TEMPLATE, `<s>${TEMPLATE}`, `<|im_start|>${TEMPLATE}`, `<!-- mine -->${TEMPLATE}`, `A chat.\n${TEMPLATE}`];
      for (const template of templates) {
        const all = { ...plain, "chat_template.jinja": bytesOf(template) };
        const present = (name, request, response) => (ranges ? html : void send(response, Buffer.from(all[name]), html));
        const prompt = await promptOf(await engine.openCheckpoint(await site(all, naive, { present })));
        await at(template, async () => assert.deepEqual(prompt, await promptOf(await engine.openCheckpoint(all))));
      }
    });
  }
});

describe("an error answer", () => {
  const answer = (status, headers) => (_, response) => response.writeHead(status, headers).end();
  const hub = (status, code, message) => answer(status, { "x-error-code": code, "x-error-message": message });
  const TOKEN = { authorization: "Bearer secret" };
  const none = "the file is ignored where it is optional";
  // The answer; the outcome if the file is optional; code and message if the file is config.json.
  const cases = [
    ["404", answer(404), {}, none, "not_found", /no config\.json in it$/],
    ["410", answer(410), {}, none, "not_found", /for config\.json the server answered 410$/],
    ["403", answer(403), {}, none, "not_found", /for config\.json the server answered 403$/],
    ["403 with a token", answer(403), TOKEN, none, "not_found", /for config\.json the server answered 403$/],
    ["401", answer(401), {}, none, "io", /for config\.json the server answered 401: a token goes into `headers`$/],
    ["401 with a token", answer(401), TOKEN, "io", "io", /config\.json: the server answered 401: it does not take the `authorization` in `headers`$/],
    ["401 with a page", (_, response) => response.writeHead(401, html).end(PAGE), {}, none, "io", /answered 401: a token/],
    ["404 with a page", (_, response) => response.writeHead(404, html).end(PAGE), {}, none, "not_found", /no config\.json in it$/],
    ["the hub's 404 for a file", hub(404, "EntryNotFound", "Entry not found"), {}, none, "not_found", /no config\.json in it$/],
    ["the hub's 401 with its code for a missing file", hub(401, "EntryNotFound", "Entry not found"), {}, none, "not_found", /no config\.json in it$/],
    ["the hub's 404 for a revision", hub(404, "RevisionNotFound", "Invalid rev id: x"), {}, none, "not_found", /for config\.json the server answered 404: Invalid rev id: x$/],
    ["the hub's 401 for a repository", hub(401, "RepoNotFound", "Repository not found"), {}, "io", "io", /config\.json: the server answered 401: Repository not found$/],
    ["the hub's 403 for a gated repository", hub(403, "GatedRepo", "Access is restricted."), TOKEN, "io", "io", /config\.json: the server answered 403: Access is restricted\.$/],
    ["a hub's code without a message", answer(403, { "x-error-code": "GatedRepo" }), {}, "io", "io", /config\.json: the server answered 403$/],
    ["429", answer(429), {}, "io", "io", /config\.json: the server answered 429$/],
    ["500", answer(500), {}, "io", "io", /config\.json: the server answered 500$/],
    ["500 with a page", (_, response) => response.writeHead(500, html).end(PAGE), {}, "io", "io", /config\.json: the server answered 500$/],
    ["204", answer(204), {}, "io", "io", /config\.json: the server answered 204$/],
  ];
  for (const [name, absent, headers, optional, code, pattern] of cases) {
    test(name, async () => {
      const opening = engine.openCheckpoint(await site(without("generation_config.json"), absent), { headers });
      if (optional === none) (await opening).dispose();
      // The message names whichever missing optional file is requested first.
      else await fails(opening, optional, /(adapter|generation)_config\.json: the server answered/);
      await fails(engine.openCheckpoint(await site(without("config.json"), absent), { headers }), code, pattern);
    });
  }

  test("for a shard is in the error", async () => {
    const shards = inShards(files);
    for (const [absent, code, pattern] of [
      [answer(404), "invalid_checkpoint", /model-00002-of-00002\.safetensors/],
      [answer(401), "io", /for model-00002-of-00002\.safetensors the server answered 401: a token/],
      [PAGES["by ranges"], "invalid_checkpoint", /for model-00002-of-00002\.safetensors the server answered with a web page/],
    ]) {
      const { "model-00002-of-00002.safetensors": gone, ...rest } = shards;
      await fails(engine.openCheckpoint(await site(rest, absent)), code, pattern);
    }
  });
});

describe("web pages and the cache", () => {
  const kept = (key) => join(cacheFolder, "lowbit", createHash("sha256").update(key).digest("hex"));
  /** Adds an entry to the cache, like an earlier version that took pages for files. */
  const put = (key, value) => {
    mkdirSync(join(cacheFolder, "lowbit"), { recursive: true });
    writeFileSync(`${kept(key)}.key`, key);
    writeFileSync(`${kept(key)}.bin`, value);
  };
  const keptText = () => readdirSync(join(cacheFolder, "lowbit")).map((name) => readFileSync(join(cacheFolder, "lowbit", name), "latin1")).join("\n");
  /** A server that can go offline, or be hidden by a login page. */
  const moody = async (files) => {
    const mood = { online: true, portal: false, asked: [] };
    const answer = (request, response) => (mood.online ? PAGES["by ranges"](request, response) : request.socket.destroy());
    const present = (name, request, response) => (mood.online && !mood.portal ? { etag: `"${name}"` } : void answer(request, response));
    mood.url = await site(files, answer, { present, asked: mood.asked });
    return mood;
  };
  const open = (url) => engine.openCheckpoint(url, { cache: true });
  let prompt;
  before(async () => (prompt = await promptOf(await engine.openCheckpoint(files))));

  test("pages are not cached, and do not appear offline", async () => {
    const mood = await moody(files);
    assert.deepEqual(await promptOf(await open(mood.url)), prompt);
    assert.doesNotMatch(keptText(), /doctype/);
    assert.deepEqual((await engine.cache.list()).map(({ url }) => url).filter((url) => /jinja|index/.test(url)), []);
    mood.online = false;
    assert.deepEqual(await promptOf(await open(mood.url)), prompt);
    const bare = await moody({});
    await fails(open(bare.url), "not_found", /web page/);
    bare.online = false;
    await fails(open(bare.url), "not_found", /for config\.json the server answered with a web page/);
  });

  test("pages cached by an earlier version are ignored", async () => {
    const mood = await moody(files);
    assert.deepEqual(await promptOf(await open(mood.url)), prompt);
    const url = `${mood.url}chat_template.jinja`;
    for (const online of [false, true]) {
      mood.online = online;
      put(`file ${url}`, JSON.stringify({ size: PAGE.length, etag: '"page"' }));
      put(`block 0 "page" ${url}`, PAGE);
      assert.deepEqual(await promptOf(await open(mood.url)), prompt, online ? "online" : "offline");
    }
  });

  test("a network's login page does not evict cached files", async () => {
    const mood = await moody(files);
    assert.deepEqual(await promptOf(await open(mood.url)), prompt);
    mood.portal = true;
    await fails(open(mood.url), "not_found", /titled "My App"/);
    mood.portal = false;
    mood.asked.length = 0;
    assert.deepEqual(await promptOf(await open(mood.url)), prompt);
    const times = (name) => mood.asked.filter((asked) => asked === name).length;
    assert.equal(times("model.safetensors"), 1, "its bytes are still cached");
    assert.equal(times("config.json"), 1);
    mood.online = false;
    assert.deepEqual(await promptOf(await open(mood.url)), prompt);
  });
});
