// All ways to open a model in the page, and to save one.
import assert from "node:assert/strict";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { basename, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { sendRange } from "../js/http.mjs";
import { inShards } from "../js/shards.mjs";
import { generate, GOLDEN, idle, missing, MODEL, quantize, sha256, start, TAKEN, TOGETHER, visit } from "./support.mjs";

const FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];

describe("opening and saving", { skip: missing, concurrency: TOGETHER }, () => {
  let place;
  before(async () => (place = await start()));

  /** A copy of the shipped checkpoint under another name, with some files that do not belong to it. */
  function copy(name) {
    const folder = join(place.folder, name);
    mkdirSync(join(folder, "original"), { recursive: true });
    for (const file of FILES) cpSync(join(MODEL, file), join(folder, file));
    writeFileSync(join(folder, ".hidden"), "no part of it");
    writeFileSync(join(folder, "original/config.json"), "{ no part of it");
    return folder;
  }

  /** Drops local paths onto the page, as a mouse would. */
  async function drop(page, paths) {
    const browser = await page.context().newCDPSession(page);
    const data = { items: [], files: paths, dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver"]) await browser.send("Input.dispatchDragEvent", { type, x: 300, y: 300, data });
    assert.ok(await page.evaluate(() => document.body.classList.contains("dropping")), "the page shows that it accepts the drop");
    await browser.send("Input.dispatchDragEvent", { type: "drop", x: 300, y: 300, data });
    assert.ok(!(await page.evaluate(() => document.body.classList.contains("dropping"))));
    await browser.detach();
  }

  const opened = (page, label) => page.waitForFunction((title) => document.querySelector("#card h3")?.textContent === title, label);

  test("a dropped folder, dropped files and another tool's zip open", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    const folder = copy("dropped-folder");
    await drop(page, [folder]);
    await opened(page, "dropped-folder");
    assert.match(await page.textContent("#card"), /your folder.*705,408/);
    const whole = Object.fromEntries(FILES.map((file) => [file, readFileSync(join(MODEL, file))]));
    const parts = join(place.folder, "dropped-in-parts");
    mkdirSync(join(parts, "weights"), { recursive: true });
    for (const [name, bytes] of Object.entries(inShards(whole, "weights/"))) writeFileSync(join(parts, name), bytes);
    await drop(page, [parts]);
    await opened(page, "dropped-in-parts");
    assert.match(await page.textContent("#card"), /your folder.*705,408/);
    await drop(page, FILES.map((file) => join(folder, file)));
    await opened(page, "Your files");
    assert.match(await page.textContent("#card"), /5 of your files/);
    // Compressed, in a folder, and with a file large enough that the library would use a worker to unpack it.
    const tokenizer = Buffer.concat([readFileSync(join(MODEL, "tokenizer.json")), Buffer.alloc(1 << 20, " ")]);
    const entries = FILES.map((file) => [`packed/${file}`, file === "tokenizer.json" ? tokenizer : readFileSync(join(MODEL, file))]);
    // The page's packages are installed once its site has started.
    const { zipSync } = await import("../../www/node_modules/fflate/esm/browser.js");
    const zip = join(place.folder, "packed.zip");
    writeFileSync(zip, zipSync(Object.fromEntries(entries), { level: 6 }));
    await drop(page, [zip]);
    await opened(page, "packed");
    await idle(page);
    await quantize(page);
    await generate(page, 6);
    assert.equal(await page.locator(".voice").count(), 2);
    assert.deepEqual(complaints, []);
    await close();
  });

  test("a result saved into a folder can be dropped and opened", async () => {
    const { page, complaints, close } = await visit(place, {}, () => {
      // A headless browser shows no picker. A folder of the page's private storage has the same kind of handle.
      globalThis.picks = [];
      globalThis.showDirectoryPicker = async (options) => {
        const pick = picks.shift();
        if (typeof pick === "string") throw new DOMException(`the picker says ${pick}`, pick);
        if (options.mode !== "readwrite") throw new Error("it could not be written into");
        return (await navigator.storage.getDirectory()).getDirectoryHandle("chosen", { create: true });
      };
    });
    await idle(page);
    await quantize(page);
    await generate(page);
    const said = await page.textContent(".voice.second .text");

    await page.evaluate(() => (globalThis.picks = ["AbortError", "NotAllowedError", 0]));
    await page.click("#save-folder");
    await idle(page);
    assert.equal(await page.textContent("#take-job"), "", "closing the picker is not an error");
    await page.click("#save-folder");
    await page.waitForFunction(() => document.querySelector("#take-job [role=alert]")?.textContent.includes("the picker says NotAllowedError"));
    await page.click("#save-folder");
    await page.waitForSelector("#take-result .good");
    assert.match(await page.textContent("#take-result"), /Saved as tale-llama-int4-g32-sym in the folder chosen/);
    assert.equal(await page.textContent("#take-job"), "");

    const saved = await page.evaluate(async () => {
      const chosen = await (await navigator.storage.getDirectory()).getDirectoryHandle("chosen");
      const folder = await chosen.getDirectoryHandle("tale-llama-int4-g32-sym");
      const found = {};
      for await (const [name, handle] of folder) {
        const url = await new Promise(async (read) => {
          const reader = new FileReader();
          reader.onload = () => read(reader.result);
          reader.readAsDataURL(await handle.getFile());
        });
        found[name] = url.split(",")[1];
      }
      return found;
    });
    assert.deepEqual(Object.keys(saved).sort(), TAKEN.filter((name) => name !== "validation_report.json"), "without a report, because it was not validated");
    assert.equal(sha256(Buffer.from(saved["model.safetensors"], "base64")), GOLDEN["model.safetensors"]);
    const folder = join(place.folder, "saved");
    mkdirSync(folder);
    for (const [name, bytes] of Object.entries(saved)) writeFileSync(join(folder, name), bytes, "base64");
    await drop(page, [folder]);
    await opened(page, "saved");
    await idle(page);
    await generate(page);
    assert.equal(await page.textContent(".voice .text"), said);
    assert.deepEqual(complaints, []);
    await close();
  });

  /** A server on another origin, like those that host models. */
  async function elsewhere() {
    const asked = [];
    const server = createServer((request, response) => {
      const allowed = { "access-control-allow-origin": "*", "access-control-allow-headers": "range, if-range", "access-control-expose-headers": "*" };
      if (request.method === "OPTIONS") return response.writeHead(204, allowed).end();
      const { pathname } = new URL(request.url, "http://localhost");
      asked.push(pathname);
      if (pathname.startsWith("/gated/")) return response.writeHead(401, allowed).end();
      const file = basename(pathname);
      if (!FILES.includes(file)) return response.writeHead(404, allowed).end();
      sendRange(request, response, readFileSync(join(MODEL, file)), { ...allowed, etag: '"1"' });
    });
    await new Promise((done) => server.listen(0, "127.0.0.1", done));
    after(() => {
      server.closeAllConnections();
      server.close();
    });
    return { url: `http://127.0.0.1:${server.address().port}`, asked };
  }

  const openAddress = async (page, text) => {
    if (!(await page.isVisible("#address"))) await page.click("#open-other summary");
    await page.fill("#address", text);
    await page.click("#open-address [type=submit]");
  };

  test("a model opens from an address on another server", async () => {
    const { url } = await elsewhere();
    const { page, complaints, close } = await visit(place);
    await idle(page);
    await openAddress(page, `${url}/models/tale`);
    await opened(page, "tale");
    await idle(page);
    await quantize(page);
    assert.match(await page.textContent("#shrink-result"), /1\.41 MB became 77\d kB/);
    assert.deepEqual(complaints, []);
    // Failures there are shown with a hint.
    await openAddress(page, "https://");
    await page.waitForFunction(() => /expected an address/.test(document.querySelector("#model-job [role=alert]")?.textContent));
    assert.equal(await page.textContent("#card h3"), "tale");
    await openAddress(page, "http://127.0.0.1:1/nobody/");
    await page.click("dialog [value=yes]");
    await page.waitForFunction(() => /allow other sites to read its files/.test(document.querySelector("#model-job [role=alert]")?.textContent));
    await close();
  });

  test("a model opens by its hub name and by the URL of its hub page", async () => {
    const { url, asked } = await elsewhere();
    const { page, close } = await visit(place);
    await idle(page);
    // Requests of the page and its worker to the hub are answered by the server above.
    const hub = [];
    await page.context().route("https://huggingface.co/**", async (route) => {
      const { pathname } = new URL(route.request().url());
      hub.push(pathname);
      await route.fulfill({ response: await route.fetch({ url: `${url}${pathname}` }) });
    });
    await openAddress(page, "some-org/tale-llama");
    await page.waitForFunction(() => document.querySelector("#card").textContent.includes("some-org/tale-llama on the Hugging Face hub"));
    await idle(page);
    assert.ok(hub.length > 0 && hub.every((path) => path.startsWith("/some-org/tale-llama/resolve/main/")), hub.join("\n"));
    assert.deepEqual(asked, hub);
    await generate(page, 6);
    assert.ok(hub.some((path) => path.endsWith("/model.safetensors")));

    hub.length = 0;
    await openAddress(page, "https://huggingface.co/some-org/tale-llama/tree/v2");
    await page.waitForFunction(() => document.querySelector("#model-job .job") === null && document.querySelector("#open-other").open === false);
    assert.ok(hub.length > 0 && hub.every((path) => path.startsWith("/some-org/tale-llama/resolve/v2/")), hub.join("\n"));
    await openAddress(page, "gated/model");
    await page.waitForFunction(() => /401.*must be public/s.test(document.querySelector("#model-job [role=alert]")?.textContent));
    await close();
  });

  test("while the shipped model loads, the page says so and can open another model", async () => {
    let release;
    const held = new Promise((resolve) => (release = resolve));
    const { page, complaints, close } = await visit(place, {}, undefined, async (context) => {
      await context.route("**/model/**", async (route) => {
        await held;
        await route.continue().catch(() => {});
      });
    });
    await page.waitForSelector("#device-choice");
    assert.match(await page.textContent("#card"), /is loading/);
    assert.ok(await page.isDisabled("#shrink-form [type=submit]"), "there is no model to quantize yet");
    await page.check("[name=method][value=gptq]", { force: true });
    assert.ok(await page.isVisible("#calibration"));
    await page.check("[name=method][value=rtn]", { force: true });
    await drop(page, [copy("own")]);
    await opened(page, "own");
    await quantize(page);
    assert.match(await page.textContent("#shrink-result"), /became/);
    release();
    assert.equal(await page.textContent("#card h3"), "own", "the model that the user opened stays");
    assert.deepEqual(complaints, []);
    await close();
  });

  test("if the shipped model cannot be loaded, another model can be opened", async () => {
    const { page, close } = await visit(place, {}, undefined, (context) => context.route("**/model/**", (route) => route.abort()));
    await page.waitForSelector("#model-job [role=alert]");
    assert.match(await page.textContent("#model-job"), /model\/\S+: it could not be loaded/);
    assert.match(await page.textContent("#card"), /No model is open yet/);
    await page.waitForSelector("#address", { state: "visible" });
    await page.setInputFiles("#pick-folder", copy("instead"));
    await opened(page, "instead");
    await idle(page);
    await generate(page, 6);
    await close();
  });
});
