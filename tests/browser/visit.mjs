// The whole visit in Chromium: open, quantize, generate, validate, save, reopen.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { unzipSync } from "./unzip.mjs";
import { download, generate, GOLDEN, idle, judge, LOWBIT, missing, MODEL, openQuantized, PATIENCE, quantize, sha256, start, TOGETHER, unpack, visit } from "./support.mjs";

const HELD_OUT = missing ? "" : readFileSync(join(MODEL, "heldout.txt"), "utf8").slice(0, 4000);

describe("a visit", { skip: missing, concurrency: TOGETHER }, () => {
  let place;
  before(async () => (place = await start()));

  test("the shipped model opens at start, and its card describes it", async () => {
    const { page, complaints, asked, close } = await visit(place);
    await idle(page);
    const card = await page.textContent("#card");
    for (const fact of ["tale-llama", "llama", "705,408", "29", "3 × 128", "512 tokens"]) assert.ok(card.includes(fact), fact);
    const bars = await page.$$eval(".bars li", (rows) => rows.map((row) => row.innerText.split("\n")[0].replace(" ★", "")));
    assert.deepEqual(bars, ["f32", "f16", "INT8", "INT4", "ternary"]);
    const widths = await page.$$eval(".bars li", (rows) => rows.map((row) =>
      [...row.querySelectorAll("i")].reduce((sum, part) => sum + part.getBoundingClientRect().width, 0)));
    for (let at = 1; at < widths.length; at += 1) assert.ok(widths[at] < widths[at - 1], `${bars[at]} is smaller than ${bars[at - 1]}`);
    await page.waitForSelector("#device-choice");
    assert.match(await page.textContent("#device"), /Runs on CPU .*this browser offers none/);
    assert.ok(asked.every((address) => address.startsWith(place.url)), "there are no requests to other hosts");
    assert.deepEqual(complaints, []);
    await close();
  });

  test("a model is quantized, run, validated, saved and reopened", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    await quantize(page);
    assert.match(await page.textContent("#shrink-result"), /1\.41 MB became 77\d kB/);

    await generate(page);
    const voices = await page.$$eval(".voice .text", (texts) => texts.map((text) => text.textContent));
    assert.equal(voices.length, 2);
    for (const text of voices) assert.ok(text.length > 120, text);
    assert.match(await page.textContent(".voice.second"), /tokens\/s/);
    assert.match(await page.textContent("#first-difference"), /The first \d+ tokens? (is|are) identical; they diverge at token \d+|Both outputs are identical/);
    const marks = await page.$$eval(".voice mark:not([hidden])", (found) => found.map((mark) => mark.textContent.trim()));
    if (voices[0] !== voices[1]) assert.notEqual(marks[0], marks[1]);

    await judge(page, HELD_OUT);
    const report = await page.textContent("#report");
    for (const part of ["Perplexity", "KL divergence", "Top-1 agreement", "Accepted", "Perplexity rises by at most"]) assert.ok(report.includes(part), part);
    assert.equal(await page.locator("#report .plot .dot").count(), 21, "a dot for each linear layer");
    await page.waitForSelector("#report .plot polyline.second");
    const least = await page.inputValue("#weights-of");
    await page.selectOption("#weights-of", "model.layers.0.mlp.gate_proj");
    assert.notEqual(least, "");
    await page.waitForSelector("#report .plot polyline.second");

    await quantize(page, async () => page.check("[name=method][value=ternary]", { force: true }));
    await judge(page, HELD_OUT);
    assert.match(await page.textContent("#report .verdict"), /Rejected\. Too much was lost.*quantization-aware/s);
    const failures = await page.$$eval("#report .failure", (found) => found.map((failure) => ({
      said: failure.querySelector("blockquote").textContent, given: failure.querySelector(".given").textContent,
      marked: failure.querySelector("mark")?.textContent, why: failure.textContent,
    })));
    assert.ok(failures.length > 0, "a ruined model has generation failures");
    for (const { said, given, marked } of failures) assert.ok(said.startsWith(given) && said.length > given.length && said.endsWith(marked ?? ""), said);
    const runs = failures.filter(({ why }) => /characters are a run of/.test(why));
    assert.ok(runs.length > 0 && runs.every(({ marked }) => /^(↵×\d+|(\S)\2{31})/.test(marked)), "a run of one character is highlighted from its start");

    const rows = await page.$$eval("#runs-body tbody tr", (found) => found.map((row) => row.innerText.replace(/\s+/g, " ")));
    assert.equal(rows.length, 3);
    assert.match(rows[1], /RTN INT4.*4\.50.*775 kB.*Accepted/);
    assert.match(rows[2], /Ternary.*2\.00.*637 kB.*Rejected/);
    assert.equal(await page.locator("#runs-body .plot .dot").count(), 3);

    // Save the first run as a zip, unpack it, and open the folder.
    await page.check("#run-1");
    const zip = await download(page);
    assert.equal(zip.name, "tale-llama-int4-g32-sym.zip");
    const folder = join(place.folder, "taken");
    const files = unpack(zip.bytes, folder);
    assert.equal(sha256(files["model.safetensors"]), GOLDEN["model.safetensors"], "the same bytes as from the native command");
    await openQuantized(page, folder);
    assert.ok(await page.isDisabled("#shrink-form [type=submit]"), "a quantized model cannot be quantized again");
    await generate(page);
    const again = await page.textContent(".voice .text");
    assert.equal(again, voices[1], "the reopened folder generates the same text as the run");
    assert.deepEqual(complaints, []);
    await close();
  });

  test("a result is saved in other tools' formats", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    await quantize(page);
    const cases = [["gguf", /\.gguf$/], ["gptq", /gptq\.zip$/], ["awq", /awq\.zip$/]];
    for (const [format, name] of cases) {
      const file = await download(page, format);
      assert.match(file.name, name);
      if (format === "gguf") {
        assert.equal(file.bytes.subarray(0, 4).toString("latin1"), "GGUF");
        continue;
      }
      const files = unzipSync(file.bytes);
      const config = Object.entries(files).find(([path]) => path.endsWith("/config.json"))[1];
      assert.equal(JSON.parse(Buffer.from(config).toString()).quantization_config.quant_method, format);
    }
    assert.deepEqual(complaints, []);
    await close();
  });

  test("GPTQ calibrates on the user's own text, with more bits for attention", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    await quantize(page, async () => {
      await page.check("[name=method][value=gptq]", { force: true });
      await page.selectOption("[name=attention]", "8");
      await page.selectOption("[name=calibrationFrom]", "own");
      await page.fill("[name=calibrationText]", HELD_OUT.repeat(2));
      await page.fill("[name=samples]", "4");
    });
    const result = await page.textContent("#shrink-result");
    assert.match(result, /GPTQ INT4, groups of 32, attention INT8/);
    // INT4 everywhere would be 4.5 bits, INT8 everywhere 8.5.
    const bits = Number(/([\d.]+) bits per/.exec(result)[1]);
    assert.ok(bits > 4.6 && bits < 8.4, String(bits));
    assert.deepEqual(complaints, []);
    await close();
  });

  test("auto makes each attempt a run with its verdict, and ends with an accepted one", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    await quantize(page, async () => {
      await page.check("[name=method][value=auto]", { force: true });
      await page.fill("[name=autoIncrease]", "0.3");
      await page.fill("[name=samples]", "8");
    });
    const rows = await page.$$eval("#runs-body tbody tr", (found) => found.map((row) => row.innerText.replace(/\s+/g, " ")));
    assert.ok(rows.length >= 3, rows.join("\n"));
    assert.ok(rows.slice(1, -1).every((row) => /int4.*Rejected/.test(row)), rows.join("\n"));
    assert.match(rows.at(-1), /Auto: .*Accepted/);
    assert.match(await page.textContent("#report .verdict"), /Accepted/);
    await generate(page, 8);
    assert.deepEqual(complaints, []);
    await close();
  });

  test("the page without its model transfers under 2 MB, and is usable before the model has loaded", async () => {
    const { browser, url } = await start({ compress: true });
    const context = await browser.newContext();
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE);
    let release;
    const held = new Promise((resolve) => (release = resolve));
    await page.route("**/model/**", async (route) => {
      await held;
      await route.continue();
    });
    const sizes = [];
    page.on("response", async (response) => {
      const address = new URL(response.url());
      if (!address.pathname.startsWith("/model/")) sizes.push(response.request().sizes().then(({ responseBodySize }) => [address.pathname, responseBodySize]));
    });
    await page.goto(url);
    await page.selectOption("[name=groupSize]", "64");
    await page.fill("[name=prompt]", "The fox");
    await page.click("#open-other summary");
    assert.ok(await page.isDisabled("#shrink-form [type=submit]"), "there is no model to quantize yet");
    release();
    await idle(page);
    assert.equal(await page.inputValue("[name=prompt]"), "The fox");
    await generate(page, 4);
    const loaded = await Promise.all(sizes);
    const total = loaded.reduce((sum, [, size]) => sum + size, 0);
    console.log(`note: first load with tokenizer ${(total / 1e6).toFixed(2)} MB`);
    // The package's files have their own budgets, checked when it is built. This checks the page's own part.
    const own = loaded.filter(([path]) => !path.startsWith("/lowbit/")).reduce((sum, [, size]) => sum + size, 0);
    assert.ok(own > 0 && own < 100_000, `${own} bytes beside the package`);
    assert.ok(loaded.some(([path]) => /engine(_relaxed)?_bg\.wasm$/.test(path)) && loaded.some(([path]) => path.endsWith("tokenizer_bg.wasm")));
    assert.ok(!loaded.some(([path]) => path.includes("quantizer")), "nothing was quantized yet");
    // The bound is for the published package. A quick build's modules are larger; `cargo xtask package` checks the real
    // ones.
    const { optimized = true } = JSON.parse(readFileSync(join(LOWBIT, "package.json"), "utf8"));
    if (!optimized) console.log("note: this package is a quick build, so its size is not checked");
    else assert.ok(total < 2_000_000, loaded.map(([path, size]) => `${path} ${size}`).join("\n"));
    await context.close();
  });
});
