// The package in browsers: a plain page, and pages built by Vite and webpack. Each page uses the package from its main
// thread and from its own module worker.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { extname, join, normalize } from "node:path";
import { after, before, describe, test } from "node:test";
import { sendRange, serve } from "../js/http.mjs";
import { assertExercised, firstOf, input, MODEL, project, tool } from "./support.mjs";

const CHROMIUM = firstOf([process.env.LOWBIT_CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]);
const FIREFOX = firstOf([process.env.LOWBIT_FIREFOX, "/usr/bin/firefox-esr", "/usr/bin/firefox"]);

/** The files that quantize writes. */
const FILES = [
  "config.json", "generation_config.json", "model.safetensors", "quantization_config.json", "tokenizer.json", "tokenizer_config.json",
];

const TYPES = {
  ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json", ".wasm": "application/wasm",
};

/** Serves a folder, the model and the input. Requests for other paths are collected in `strange`. */
async function site(folder, given, strange = []) {
  const url = await serve((request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const send = (path, mayLack = false) => {
      let bytes;
      try {
        bytes = readFileSync(path);
      } catch {
        if (!mayLack) strange.push(pathname);
        return response.writeHead(404).end();
      }
      sendRange(request, response, bytes, { "content-type": TYPES[extname(path)] ?? "application/octet-stream", etag: '"1"' });
    };
    if (pathname === "/input.json") return response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(given));
    const model = /^\/model\/([\w.]+)$/.exec(pathname)?.[1];
    // The package also requests optional files of a checkpoint.
    if (model !== undefined) return send(join(MODEL, model), true);
    if (pathname.startsWith("/model-that-is-not-there/")) return response.writeHead(404).end();
    return send(join(folder, normalize(pathname === "/" ? "/index.html" : pathname)));
  });
  return { url, strange };
}

/**
 * Starts Chromium. Returns a function that opens a page and returns its results, errors and requests to other hosts.
 */
function chromium() {
  let browser;
  before(async () => {
    const { chromium } = (await import(tool("playwright-core/index.js"))).default;
    browser = await chromium.launch({
      executablePath: CHROMIUM,
      headless: true,
      chromiumSandbox: false,
      args: [
        "--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows",
      ],
    });
  });
  after(() => browser?.close());
  return async (url) => {
    const context = await browser.newContext();
    try {
      const page = await context.newPage();
      const complaints = [];
      const elsewhere = [];
      page.on("pageerror", (error) => complaints.push(String(error)));
      page.on("request", (request) => {
        if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(new URL(url).origin)) elsewhere.push(request.url());
      });
      await page.goto(url);
      await page.waitForFunction("globalThis.found !== undefined", undefined, { timeout: 300_000 });
      return { ...(await page.evaluate("globalThis.found")), complaints, elsewhere };
    } finally {
      await context.close();
    }
  };
}

function firefox() {
  let browser;
  before(async () => {
    const puppeteer = (await import(tool("puppeteer-core/lib/puppeteer/puppeteer-core.js"))).default;
    browser = await puppeteer.launch({ browser: "firefox", executablePath: FIREFOX, headless: true });
  });
  after(() => browser?.close());
  return async (url) => {
    const page = await browser.newPage();
    const complaints = [];
    page.on("pageerror", (error) => complaints.push(String(error)));
    await page.goto(url);
    await page.waitForFunction("globalThis.found !== undefined", { timeout: 300_000, polling: 200 });
    const found = JSON.parse(await page.evaluate("JSON.stringify(globalThis.found)"));
    await page.close();
    return { ...found, complaints, elsewhere: [] };
  };
}

function assertPage({ found, error, complaints, elsewhere }, strange) {
  assert.equal(error, undefined);
  assertExercised(found.page);
  const { names, texts } = found.stored;
  assert.deepEqual(names, FILES);
  assert.ok(texts.every((text) => text === texts[0] && text !== ""), texts.join("|"));
  assertExercised(found.inWorker);
  assert.ok(found.ticks > 0, "the page's timers must keep ticking");
  assert.deepEqual(complaints, []);
  assert.deepEqual(elsewhere, [], "there are no requests to other hosts");
  assert.deepEqual(strange, []);
}

/** The page without a bundler, with an import map. */
async function plain() {
  const folder = await project("web");
  // Import maps do not apply in workers.
  const worker = join(folder, "worker.mjs");
  writeFileSync(worker, readFileSync(worker, "utf8").replace('"lowbit"', '"/node_modules/lowbit/dist/index.browser.js"'));
  return folder;
}

async function viteBuild() {
  const folder = await project("web");
  const { build } = await import(tool("vite/dist/node/index.js"));
  const built = { outDir: join(folder, "built"), target: "es2022" };
  await build({ root: folder, configFile: false, logLevel: "error", base: "/", build: built, worker: { format: "es" } });
  return built.outDir;
}

async function webpackBuild() {
  const folder = await project("web");
  const { default: webpack } = await import(tool("webpack/lib/index.js"));
  const path = join(folder, "built");
  const compiler = webpack({
    context: folder, entry: "./main.mjs", mode: "production", target: "web", output: { path, filename: "main.js", publicPath: "/" },
    resolve: { modules: [join(folder, "node_modules")] },
  });
  const stats = await new Promise((done, failed) => compiler.run((error, stats) => (error ? failed(error) : done(stats))));
  await new Promise((done) => compiler.close(done));
  const { errors, warnings } = stats.toJson({ errors: true, warnings: true });
  assert.deepEqual(errors, []);
  const serious = warnings.filter(({ message }) => !/size limit|code splitting/.test(message));
  assert.deepEqual(serious.map(({ message }) => message), []);
  const html = readFileSync(join(folder, "index.html"), "utf8").replace('type="module" src="./main.mjs"', 'defer src="/main.js"');
  writeFileSync(join(path, "index.html"), html);
  return path;
}

describe("Chromium", { skip: CHROMIUM === undefined && "skipped: no Chromium here" }, () => {
  if (CHROMIUM === undefined) return console.log("skipped: the package in Chromium: it is not installed");
  const visit = chromium();
  const builds = {
    "the package works in a plain page": [plain, "/plain.html"],
    "the package works in a page built by Vite": [viteBuild, "/"],
    "the package works in a page built by webpack": [webpackBuild, "/"],
  };
  for (const [name, [build, path]] of Object.entries(builds)) {
    test(name, async () => {
      const { url, strange } = await site(await build(), input);
      assertPage(await visit(`${url}${path}`), strange);
    });
  }
});

describe("Firefox", { skip: FIREFOX === undefined && "skipped: no Firefox here" }, () => {
  if (FIREFOX === undefined) return console.log("skipped: the package in Firefox: it is not installed");
  const visit = firefox();
  test("the package works in a plain page", async () => {
    const { url, strange } = await site(await plain(), input);
    assertPage(await visit(`${url}/plain.html`), strange);
  });
});
