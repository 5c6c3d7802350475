// Shared by the browser tests: starts browsers and the page's server, and has a function for each step of a visit.
//
//   LOWBIT_PACKAGE    the built package; default: target/package/lowbit
//   LOWBIT_CHROMIUM   path of Chromium; default: the usual paths below /usr/bin
//   LOWBIT_FIREFOX    path of Firefox; default: the usual paths below /usr/bin
//   LOWBIT_PORT       port of the page's server; default: a free one
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { unzipSync } from "./unzip.mjs";

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));

export const LOWBIT = process.env.LOWBIT_PACKAGE ?? path("../../target/package/lowbit");
export const MODEL = path("../fixtures/tale-llama");

const BROWSERS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const executablePath = process.env.LOWBIT_CHROMIUM ?? BROWSERS.find((place) => existsSync(place));
const firefoxPath = process.env.LOWBIT_FIREFOX ?? ["/usr/bin/firefox-esr", "/usr/bin/firefox"].find((place) => existsSync(place));

const unbuilt = !existsSync(join(LOWBIT, "package.json")) && `${LOWBIT} is missing (run cargo xtask package)`;

/** Why the tests cannot run; false if they can. */
export const missing = executablePath === undefined ? "chromium is not installed (LOWBIT_CHROMIUM can name it)" : unbuilt;
export const missingFirefox = firefoxPath === undefined ? "firefox is not installed (LOWBIT_FIREFOX can name it)" : unbuilt;

const golden = JSON.parse(readFileSync(path("../js/golden.json"), "utf8"));

/** Digests of the shipped model quantized to INT4 by the native command, with the page's default settings. */
export const GOLDEN = golden.quantized["int4 group 32"];
export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** The files of a saved result. */
export const TAKEN = [
  "config.json", "generation_config.json", "model.safetensors", "quantization_config.json", "tokenizer.json",
  "tokenizer_config.json", "validation_report.json",
];

/** Timeout of each step. It is long because the machine may be busy with other tests. */
export const PATIENCE = 300_000;

/** Pages open at a time. Each keeps one processor busy, sometimes two. */
export const TOGETHER = 2;

const open = new Map();

/**
 * A server and a browser, started on first use. `gpu` enables WebGPU, which falls back to SwiftShader without a GPU.
 * `compress` serves text files with brotli, which takes a while to prepare.
 */
export async function start({ gpu = false, compress = false } = {}) {
  const site = await once(`site ${compress}`, () => startSite(compress));
  const browser = await once(`browser ${gpu}`, async () => {
    const launched = await launch(gpu);
    return { launched, close: () => launched.close() };
  });
  return { browser: browser.launched, root: site.root, folder: site.folder, url: site.url };
}

function once(name, make) {
  if (!open.has(name)) open.set(name, make());
  return open.get(name);
}

/** Closes all servers and browsers. */
export async function closeAll() {
  for (const started of open.values()) await (await started).close();
}

async function startSite(compress) {
  const www = path("../../www");
  if (!existsSync(join(www, "node_modules/sirv"))) {
    const npm = spawnSync("npm", ["ci", "--no-audit", "--no-fund", "--ignore-scripts"], { cwd: www, encoding: "utf8" });
    if (npm.status !== 0) throw new Error(`npm ci in www failed: ${npm.stderr}`);
  }
  const { assemble } = await import("../../www/site.mjs");
  const { serve } = await import("../../www/serve.mjs");
  const folder = mkdtempSync(join(tmpdir(), "lowbit-site-"));
  const root = assemble({ package: LOWBIT, out: join(folder, "site"), compress });
  const server = await serve({ root, port: compress ? 0 : Number(process.env.LOWBIT_PORT ?? 0) });
  const close = async () => {
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  };
  return { root, folder, url: server.url, close };
}

function launch(gpu) {
  const quiet = ["--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
  return chromium.launch({
    executablePath, headless: true, chromiumSandbox: false, args: [...quiet, ...(gpu ? ["--enable-unsafe-webgpu"] : [])],
  });
}

/** Firefox without WebGPU, and its download folder. */
export async function startFirefox() {
  const { folder, url } = await once("site false", () => startSite(false));
  return once("firefox", async () => {
    const { default: puppeteer } = await import("puppeteer-core");
    const downloads = join(folder, "downloads");
    mkdirSync(downloads);
    const browser = await puppeteer.launch({
      browser: "firefox", executablePath: firefoxPath, headless: true,
      extraPrefsFirefox: {
        "browser.download.folderList": 2, "browser.download.dir": downloads, "browser.download.useDownloadDir": true,
        "browser.download.alwaysOpenPanel": false, "dom.webgpu.enabled": false,
      },
    });
    return { browser, downloads, folder, url, close: () => browser.close() };
  });
}

/**
 * Opens the page; collects its errors in `complaints` and its requests in `asked`. `first` runs in the page before its
 * own scripts. `prepare` gets the browser's context before the page is requested.
 */
export async function visit({ browser, url }, options = {}, first = undefined, prepare = async () => {}) {
  const context = await browser.newContext({ acceptDownloads: true, viewport: { width: 1280, height: 900 }, ...options });
  if (first !== undefined) await context.addInitScript(first);
  await prepare(context);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  await page.goto(url);
  return { page, complaints, asked, close: () => context.close() };
}

/** Waits until the model is open and no job is running. */
export async function idle(page) {
  await page.waitForSelector("#card h3");
  await page.waitForFunction(() => document.querySelector(".job") === null && !document.querySelector("#talk-form [type=submit]").disabled);
}

export async function quantize(page, fill = async () => {}) {
  await fill();
  await page.click("#shrink-form button[type=submit]");
  await idle(page);
}

export async function generate(page, tokens = 24) {
  await page.fill("[name=maxTokens]", String(tokens));
  await page.click("#talk-form button[type=submit]");
  await idle(page);
}

/** Validates on a text. Speed is not measured, because machines that run tests are busy. */
export async function judge(page, text) {
  await page.selectOption("[name=textFrom]", "own");
  await page.fill("[name=ownText]", text);
  await page.uncheck("[name=speed]");
  await page.click("#judge-form button[type=submit]");
  await idle(page);
}

/** Downloads the result, converted to another tool's layout if `format` names one. */
export async function download(page, format = "") {
  await page.selectOption("[name=format]", format);
  const [file] = await Promise.all([page.waitForEvent("download"), page.click("#save-zip")]);
  await idle(page);
  const at = await file.path();
  assert.ok(statSync(at).size > 100_000);
  return { name: file.suggestedFilename(), bytes: readFileSync(at) };
}

/** Unpacks a downloaded zip into `folder`. Returns its files by name. */
export function unpack(zip, folder) {
  const files = Object.entries(unzipSync(zip)).map(([path, bytes]) => [path.split("/").pop(), bytes]);
  assert.deepEqual(files.map(([name]) => name).sort(), TAKEN);
  mkdirSync(folder, { recursive: true });
  for (const [name, bytes] of files) writeFileSync(join(folder, name), bytes);
  return Object.fromEntries(files);
}

/** Opens a folder of quantized weights. */
export async function openQuantized(page, folder) {
  await page.click("#open-other summary");
  await page.setInputFiles("#pick-folder", folder);
  await page.waitForFunction(() => document.querySelector("#card").textContent.includes("compressed-tensors"));
  await idle(page);
}
