// Runs the kernels' tests on the package's platforms: the GPU kernels' in Chromium, Firefox, Deno and Node, the CPU
// kernels' in both builds of the engine. The tests are compiled into the modules that `cargo xtask package --fast`
// makes.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { extname, join, resolve } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { serve } from "../js/http.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const firstOf = (paths) => paths.find((path) => path !== undefined && existsSync(path));

/** A copy of the modules with a package.json of type "module"; without it, Node takes their JavaScript for CommonJS. */
const MODULES = mkdtempSync(join(tmpdir(), "lowbit-kernels-"));
after(() => rmSync(MODULES, { recursive: true, force: true }));
cpSync(resolve(process.env.LOWBIT_MODULES ?? join(here, "../../target/package/modules")), MODULES, { recursive: true });
writeFileSync(join(MODULES, "package.json"), JSON.stringify({ type: "module" }));

const CHROMIUM = firstOf([process.env.LOWBIT_CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]);
const FIREFOX = firstOf([process.env.LOWBIT_FIREFOX, "/usr/bin/firefox-esr", "/usr/bin/firefox"]);
const DENO = process.env.LOWBIT_DENO;

/** The number of tests in `src/backend/gpu/tests.rs`. It is fixed here so that a lost test is noticed. */
const GPU_TESTS = 25;

const engine = await import(pathToFileURL(join(MODULES, "engine.js")));
const untested = engine.gpuTests === undefined && "these modules were built without the kernels' tests (`cargo xtask package --fast` has them)";

/**
 * Browsers are skipped by default, because each takes up to ten minutes. Chromium includes SwiftShader; Firefox finds
 * an adapter only if Vulkan has one. Deno has the same native WebGPU as Firefox and always runs the tests.
 */
const rarely = process.env.LOWBIT_KERNELS !== "all" && "takes minutes: LOWBIT_KERNELS=all runs it";

/** Skips the test if there is no adapter. Otherwise asserts that all GPU tests passed. */
function judge(context, { none, error, adapter, passed }) {
  if (none !== undefined) return context.skip(`no adapter: ${none}`);
  assert.equal(error, undefined);
  assert.equal(Object.keys(passed).length, GPU_TESTS);
  console.log(`${context.name}: ${GPU_TESTS} tests on ${adapter}`);
}

async function site() {
  const types = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
  return await serve((request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const path = pathname.startsWith("/modules/") ? join(MODULES, pathname.slice(8)) : join(here, pathname);
    if (!existsSync(path)) return response.writeHead(404).end();
    response.writeHead(200, { "content-type": types[extname(path)] ?? "application/octet-stream" }).end(readFileSync(path));
  });
}

const READY = "globalThis.found !== undefined";
const PATIENCE = { timeout: 900_000, polling: 500 };

/** Waits for `ready`, then checks the page's results. On a timeout, the error names the GPU test that was running. */
async function judgePage(context, page, ready) {
  await ready.catch(async (error) => {
    throw new Error(`${await page.evaluate("globalThis.running")}: ${error.message}`);
  });
  judge(context, JSON.parse(await page.evaluate("JSON.stringify(globalThis.found)")));
}

test("GPU kernels in Chromium", { skip: untested || rarely || (CHROMIUM === undefined && "it is not installed") }, async (context) => {
  const { chromium } = await import("playwright-core");
  const args = ["--enable-unsafe-webgpu", "--no-first-run", "--disable-background-networking", "--disable-renderer-backgrounding"];
  const browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, chromiumSandbox: false, args });
  try {
    const page = await browser.newPage();
    await page.goto(`${await site()}/page.html`);
    await judgePage(context, page, page.waitForFunction(READY, undefined, PATIENCE));
  } finally {
    await browser.close();
  }
});

test("GPU kernels in Firefox", { skip: untested || rarely || (FIREFOX === undefined && "it is not installed") }, async (context) => {
  const { default: puppeteer } = await import("puppeteer-core");
  const extraPrefsFirefox = { "dom.webgpu.enabled": true, "gfx.webgpu.ignore-blocklist": true };
  const browser = await puppeteer.launch({ browser: "firefox", executablePath: FIREFOX, headless: true, extraPrefsFirefox, protocolTimeout: PATIENCE.timeout });
  try {
    const page = await browser.newPage();
    await page.goto(`${await site()}/page.html`);
    await judgePage(context, page, page.waitForFunction(READY, PATIENCE));
  } finally {
    await browser.close();
  }
});

async function program(command, args) {
  const options = { timeout: PATIENCE.timeout, maxBuffer: 1 << 24 };
  const { stdout } = await promisify(execFile)(command, args, options);
  return JSON.parse(stdout.trim().split("\n").at(-1));
}

test("GPU kernels in Deno", { skip: untested || (DENO === undefined && "it is not installed") }, async (context) => {
  judge(context, await program("node", [DENO, "run", "--allow-all", join(here, "program.mjs"), MODULES, "own"]));
});

test("GPU kernels in Node with the package `webgpu`", { skip: untested }, async (context) => {
  const webgpu = fileURLToPath(import.meta.resolve("webgpu"));
  judge(context, await program("node", [join(here, "program.mjs"), MODULES, webgpu]));
});

for (const name of ["engine", "engine_relaxed"]) {
  test(`CPU kernels in ${name}`, { skip: untested }, async (context) => {
    const module = await import(pathToFileURL(join(MODULES, `${name}.js`)));
    const wasm = readFileSync(join(MODULES, `${name}_bg.wasm`));
    if (!WebAssembly.validate(wasm)) {
      assert.equal(name, "engine_relaxed");
      return context.skip("this Node has no relaxed SIMD");
    }
    await module.default({ module_or_path: wasm });
    let worst = 0;
    for (const seed of [1, 2]) {
      let comparisons, difference;
      try {
        [comparisons, difference] = module.checkCpuKernels(seed);
      } catch (error) {
        // The package makes the same check when it loads this build, and then uses the other one.
        if (name === "engine_relaxed" && error.code === "wrong_result") return context.skip(`this Node's relaxed SIMD: ${error.message}`);
        throw error;
      }
      assert.ok(comparisons > 1000, `${comparisons} comparisons`);
      worst = Math.max(worst, difference);
    }
    console.log(`${name}: largest difference from the reference ${worst.toExponential(1)}`);
  });
}
