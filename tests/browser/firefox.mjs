// The whole visit in Firefox, where models run on the CPU. Uses puppeteer, because playwright needs its own build of
// Firefox. So the steps of support.mjs are repeated here in a short form.
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { GOLDEN, missingFirefox, MODEL, PATIENCE, sha256, startFirefox, unpack } from "./support.mjs";

const HELD_OUT = readFileSync(join(MODEL, "heldout.txt"), "utf8").slice(0, 4000);

describe("a visit in Firefox", { skip: missingFirefox }, () => {
  let place;
  before(async () => (place = await startFirefox()));

  async function visit() {
    const page = await place.browser.newPage();
    await page.setViewport({ width: 1280, height: 900 });
    const complaints = [];
    page.on("pageerror", (error) => complaints.push(`uncaught: ${error.message}`));
    page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
    await page.goto(place.url);
    await page.evaluate(() => {
      globalThis.refused = [];
      document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => refused.push(`${violatedDirective} ${blockedURI}`));
    });
    return { page, complaints };
  }

  /** Polls the page until `holds`. The driver's own wait makes functions from text, which the page's policy rejects. */
  async function until(page, holds, ...given) {
    const end = Date.now() + PATIENCE;
    while (!(await page.evaluate(holds, ...given))) {
      assert.ok(Date.now() < end, `timed out waiting for ${holds}`);
      await pause(100);
    }
  }

  const idle = (page) => until(page, () =>
    document.querySelector("#card h3") !== null && document.querySelector(".job") === null && !document.querySelector("#talk-form [type=submit]").disabled);
  const text = (page, selector) => page.evaluate((found) => document.querySelector(found).textContent, selector);
  const texts = (page, selector) => page.evaluate((found) => [...document.querySelectorAll(found)].map((each) => each.textContent), selector);
  const fill = (page, name, value) => page.evaluate((field, given) => {
    const found = document.querySelector(`[name=${field}]`);
    if (found.type === "checkbox") found.checked = given;
    else found.value = given;
    found.dispatchEvent(new Event("input", { bubbles: true }));
    found.dispatchEvent(new Event("change", { bubbles: true }));
  }, name, value);
  const press = async (page, selector) => {
    await page.click(selector);
    await idle(page);
  };
  const choose = async (page, ...paths) => {
    await page.evaluate(() => (document.querySelector("#open-other").open = true));
    await (await page.$("#pick-files")).uploadFile(...paths);
  };

  async function downloaded(name) {
    const at = join(place.downloads, name);
    const end = Date.now() + PATIENCE;
    // Firefox writes a .part file and renames it at the end.
    while (!existsSync(at) || readdirSync(place.downloads).some((file) => file.endsWith(".part"))) {
      assert.ok(Date.now() < end, `timed out waiting for ${name} among ${readdirSync(place.downloads)}`);
      await pause(100);
    }
    return at;
  }

  test("a model is quantized, run, validated, saved and reopened", async () => {
    const { page, complaints } = await visit();
    await idle(page);
    await until(page, () => document.querySelector("#device-choice") !== null);
    assert.match(await text(page, "#device"), /Runs on CPU .*this browser offers none/);

    await press(page, "#shrink-form button[type=submit]");
    assert.match(await text(page, "#shrink-result"), /1\.41 MB became 77\d kB/);

    await fill(page, "maxTokens", "24");
    await press(page, "#talk-form button[type=submit]");
    const voices = await texts(page, ".voice .text");
    assert.equal(voices.length, 2);
    for (const said of voices) assert.ok(said.length > 120, said);
    assert.match(await text(page, ".voice.second"), /tokens\/s.*CPU/s);
    assert.match(await text(page, "#first-difference"), /identical; they diverge at token|Both outputs are identical/);

    await fill(page, "textFrom", "own");
    await fill(page, "ownText", HELD_OUT);
    await fill(page, "speed", false);
    await press(page, "#judge-form button[type=submit]");
    assert.match(await text(page, "#report .verdict"), /Accepted/);
    await until(page, () => document.querySelector("#report .plot polyline.second") !== null);
    const rows = await texts(page, "#runs-body tbody tr");
    assert.equal(rows.length, 2);
    assert.match(rows[1], /RTN INT4.*4\.50.*775 kB.*Accepted/);

    assert.equal(await page.evaluate(() => document.querySelector("#save-folder").hidden), true, "this browser has no folder picker");
    await press(page, "#save-zip");
    const zip = await downloaded("tale-llama-int4-g32-sym.zip");
    const folder = join(place.folder, "taken-by-firefox");
    const files = unpack(readFileSync(zip), folder);
    assert.equal(sha256(files["model.safetensors"]), GOLDEN["model.safetensors"]);

    for (const [paths, label] of [[Object.keys(files).map((name) => join(folder, name)), "Your files"], [[zip], "tale-llama-int4-g32-sym"]]) {
      await choose(page, ...paths);
      await until(page, (title) => document.querySelector("#card h3")?.textContent === title, label);
      await idle(page);
      assert.match(await text(page, "#card"), /compressed-tensors/);
      await press(page, "#talk-form button[type=submit]");
      assert.equal(await text(page, ".voice .text"), voices[1], "the reopened model generates the same text as the run");
    }
    assert.deepEqual(await page.evaluate(() => refused), []);
    assert.deepEqual(complaints, []);
    await page.close();
  });

  test("a broken file is named, a job is cancelled, and the page keeps working", async () => {
    const { page, complaints } = await visit();
    await idle(page);
    const noise = join(place.folder, "noise.zip");
    writeFileSync(noise, "no zip");
    await choose(page, noise);
    await until(page, () => /noise\.zip: not a zip file/.test(document.querySelector("#model-job [role=alert]")?.textContent));
    await page.evaluate(() => document.querySelector("[name=method][value=awq]").click());
    await page.click("#shrink-form button[type=submit]");
    await until(page, () => document.querySelector("#shrink-job progress[value]") !== null);
    await page.evaluate(() => document.querySelector("#shrink-job .cancel").click());
    await until(page, () => document.querySelector("#shrink-job").textContent.includes("cancelled"));
    assert.match(await text(page, "#runs-body"), /No runs yet/);
    await page.evaluate(() => document.querySelector("[name=method][value=rtn]").click());
    await press(page, "#shrink-form button[type=submit]");
    assert.match(await text(page, "#shrink-result"), /became/);
    assert.deepEqual(complaints, []);
    await page.close();
  });
});
