// With WebGPU, on a software adapter if there is no GPU: what the page reports about the adapter, and the whole visit.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { download, generate, idle, judge, missing, MODEL, openQuantized, quantize, start, unpack, visit } from "./support.mjs";

const HELD_OUT = missing ? "" : readFileSync(join(MODEL, "heldout.txt"), "utf8");

describe("a visit with WebGPU", { skip: missing }, () => {
  let place;
  before(async () => (place = await start({ gpu: true })));

  /** Opens the page and returns its device line. Skips the test if there is no adapter. */
  async function visitOnGpu(t) {
    const opened = await visit(place);
    const { page, close } = opened;
    await idle(page);
    if (!(await page.evaluate(async () => (await navigator.gpu?.requestAdapter()) !== null))) {
      await close();
      t.skip("this browser gives no WebGPU adapter");
      return undefined;
    }
    await page.waitForSelector("#device-choice");
    return { ...opened, line: await page.textContent("#device") };
  }

  test("the page names the adapter and its self-check result", async (t) => {
    const opened = await visitOnGpu(t);
    if (opened === undefined) return;
    assert.match(opened.line, /GPU: .*\(webgpu, \w+\), (its kernels were checked against the CPU and agree|not used: )/);
    assert.match(opened.line, /Features: (shader-f16|subgroups|without ).*; buffers up to [\d.]+ [kMG]B\./);
    await opened.close();
  });

  test("a model is quantized, run, validated, saved and reopened on the GPU", async (t) => {
    const opened = await visitOnGpu(t);
    if (opened === undefined) return;
    const { page, complaints, line, close } = opened;
    if (!/agree/.test(line)) {
      await close();
      return t.skip(`the adapter is not used: ${line}`);
    }
    // A software adapter is used only if it is selected.
    await page.selectOption("#device-choice", "gpu");
    await quantize(page, async () => {
      await page.check("[name=method][value=gptq]", { force: true });
      await page.selectOption("[name=calibrationFrom]", "own");
      await page.fill("[name=calibrationText]", HELD_OUT.slice(4000, 8000));
      await page.fill("[name=samples]", "2");
    });
    assert.match(await page.textContent("#shrink-result"), /GPTQ INT4, groups of 32/);

    await generate(page, 12);
    const voices = await page.$$eval(".voice .text", (texts) => texts.map((text) => text.textContent));
    for (const text of voices) assert.ok(text.length > 50, text);
    for (const voice of await page.$$eval(".voice", (found) => found.map((one) => one.textContent))) {
      assert.match(voice, /tokens\/s.*gpu/is);
    }

    await judge(page, HELD_OUT.slice(0, 1000));
    const report = await page.textContent("#report");
    for (const part of ["Perplexity", "KL divergence", "Top-1 agreement"]) assert.ok(report.includes(part), part);
    assert.match(await page.textContent("#report .verdict"), /Accepted|Rejected/);
    assert.equal(await page.locator("#runs-body tbody tr").count(), 2);

    const folder = join(place.folder, "taken-from-the-gpu");
    unpack((await download(page)).bytes, folder);
    await openQuantized(page, folder);
    await generate(page, 12);
    assert.equal(await page.textContent(".voice .text"), voices[1], "the reopened folder generates the same text as the run");
    assert.deepEqual(complaints, []);
    await close();
  });
});
