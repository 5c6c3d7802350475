// What axe finds, in both themes and at the width of a phone; and that a keyboard is enough.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { generate, idle, judge, missing, MODEL, quantize, start, visit } from "./support.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const HELD_OUT = readFileSync(join(MODEL, "heldout.txt"), "utf8").slice(0, 3000);

/** What counts: nobody must be kept out. */
const GRAVE = new Set(["serious", "critical"]);

describe("accessibility", { skip: missing }, () => {
  let place;
  before(async () => (place = await start()));

  async function grave(page) {
    const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
    return found.violations.filter(({ impact }) => GRAVE.has(impact)).map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join("; ")}`);
  }

  test("axe finds nothing serious, before and after, light and dark, wide and narrow", async () => {
    const { page, close } = await visit(place);
    // The policy stops scripts that are put into the page, but not those of the browser's own tools.
    await idle(page);
    await page.evaluate(AXE);
    const looks = async (when) => {
      for (const colorScheme of ["light", "dark"]) {
        for (const width of [1280, 390]) {
          await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
          await page.setViewportSize({ width, height: 900 });
          assert.deepEqual(await grave(page), [], `${when}, ${colorScheme}, ${width}`);
          const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
          assert.ok(over <= 0, `${when}, ${width}: the page is ${over} pixels too wide`);
        }
      }
      await page.setViewportSize({ width: 1280, height: 900 });
    };
    await page.click("#open-other summary");
    await looks("at the start");
    await quantize(page);
    await generate(page, 12);
    await judge(page, HELD_OUT);
    await page.waitForSelector("#report .plot polyline.second");
    await page.check("[name=method][value=gptq]", { force: true });
    await looks("with a report");
    await close();
  });

  test("a keyboard is enough", async () => {
    const { page, close } = await visit(place);
    await idle(page);
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the model");
    await page.focus("[name=method][value=rtn]");
    await page.keyboard.press("ArrowDown");
    assert.ok(await page.isChecked("[name=method][value=gptq]"));
    assert.ok(await page.isVisible("#calibration"));
    await page.keyboard.press("ArrowUp");
    await page.keyboard.press("Tab");
    await page.keyboard.press("ArrowLeft");
    assert.ok(await page.isChecked("[name=bits][value='8']"));
    assert.equal(await page.inputValue("[name=groupSize]"), "-1");
    await page.focus("#shrink-form button[type=submit]");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#shrink-result .headline");
    assert.match(await page.textContent("#shrink-result"), /RTN INT8, whole rows/);
    await close();
  });

  test("the theme is the system's until another is chosen, and that is remembered", async () => {
    const { page, close } = await visit(place, { colorScheme: "dark" });
    const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const dark = await paper();
    await page.click("#theme-toggle");
    const light = await paper();
    assert.notEqual(light, dark);
    await page.reload();
    assert.equal(await paper(), light);
    await page.click("#theme-toggle");
    assert.equal(await paper(), dark);
    await close();
  });
});
