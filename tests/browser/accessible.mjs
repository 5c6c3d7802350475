// Accessibility: runs axe on each state of the page, in both themes, at desktop and phone width; tests keyboard-only
// use.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { generate, idle, judge, missing, MODEL, quantize, start, TOGETHER, visit } from "./support.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const HELD_OUT = readFileSync(join(MODEL, "heldout.txt"), "utf8").slice(0, 4000);

const WIDTHS = [1280, 360];

/** The dark theme differs only in its colours, so only these rules are checked there. */
const COLOURS = { type: "rule", values: ["color-contrast", "link-in-text-block"] };

/** `LOWBIT_PICTURES=DIR` saves a screenshot of each state for review. */
const PICTURES = process.env.LOWBIT_PICTURES;

describe("accessibility", { skip: missing, concurrency: TOGETHER }, () => {
  let place;
  before(async () => (place = await start()));

  /** Checks the page in its current state. */
  async function looks(page, state) {
    if (!(await page.evaluate(() => "axe" in globalThis))) await page.evaluate(AXE);
    for (const width of WIDTHS) {
      await page.setViewportSize({ width, height: 900 });
      for (const colorScheme of ["light", "dark"]) {
        await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
        const where = `${state}, ${colorScheme}, ${width} pixels`;
        const options = { resultTypes: ["violations"], ...(colorScheme === "dark" && { runOnly: COLOURS }) };
        const { violations } = await page.evaluate((given) => axe.run(document, given), options);
        const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join("; ")}`);
        assert.deepEqual(found, [], where);
        const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.ok(over <= 0, `${where}: the page is ${over} pixels too wide`);
        if (PICTURES) {
          mkdirSync(PICTURES, { recursive: true });
          await page.evaluate(() => scrollTo({ top: 0, behavior: "instant" }));
          await page.screenshot({ path: join(PICTURES, `${state}-${width}-${colorScheme}.png`.replaceAll(" ", "-")), fullPage: true });
        }
      }
    }
    await page.setViewportSize({ width: 1280, height: 900 });
  }

  test("axe reports no violations in any state of the page", async () => {
    let release;
    const held = new Promise((resolve) => (release = resolve));
    const { page, close } = await visit(place, {}, undefined, (context) => context.route("**/model/**", async (route) => {
      await held;
      await route.continue();
    }));
    await page.waitForSelector("#device-choice");
    await looks(page, "loading");
    release();
    await idle(page);
    await page.click("#open-other summary");
    await looks(page, "at the start");

    await page.setInputFiles("#pick-files", { name: "model.zip", mimeType: "application/zip", buffer: Buffer.from("no zip") });
    await page.waitForSelector("#model-job [role=alert]");
    await page.check("[name=method][value=awq]", { force: true });
    await page.selectOption("[name=calibrationFrom]", "own");
    await page.fill("[name=calibrationText]", HELD_OUT.repeat(8));
    await page.fill("[name=samples]", "256");
    await page.click("#shrink-form button[type=submit]");
    await page.waitForSelector("#shrink-job progress[value]");
    await looks(page, "a failure and work");
    await page.click("#shrink-job .cancel");
    await page.waitForSelector("#shrink-job .notice");
    await page.click("#open-other summary");
    await page.check("[name=method][value=auto]", { force: true });
    await looks(page, "cancelled");

    await quantize(page, async () => page.check("[name=method][value=rtn]", { force: true }));
    await page.setInputFiles("#pick-folder", MODEL);
    await page.waitForSelector("dialog");
    await looks(page, "a question");
    await page.keyboard.press("Escape");
    await generate(page, 40);
    await judge(page, HELD_OUT);
    await page.waitForSelector("#report .plot polyline.second");
    await page.click("#report details summary");
    await Promise.all([page.waitForEvent("download"), page.click("#save-zip")]);
    await page.waitForSelector("#take-result .notice");
    await looks(page, "accepted and saved");

    await quantize(page, async () => page.check("[name=method][value=ternary]", { force: true }));
    await generate(page, 40);
    await judge(page, HELD_OUT);
    await page.waitForSelector("#report .verdict.failed");
    await page.waitForSelector("#report .failure mark");
    await page.waitForSelector("#report .plot polyline.second");
    await looks(page, "rejected");
    await close();
  });

  test("axe reports no violations without a model", async () => {
    const { page, close } = await visit(place, {}, undefined, (context) => context.route("**/model/**", (route) => route.abort()));
    await page.waitForSelector("#model-job [role=alert]");
    await page.waitForSelector("#device-choice");
    assert.match(await page.textContent("#shrink-says"), /Open a model first/);
    await looks(page, "no model");
    await close();
  });

  test("the whole page works with the keyboard alone", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    const press = (...keys) => keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve());
    const here = (selector) => page.evaluate((found) => document.activeElement?.matches(found) ?? false, selector);
    /** Presses Tab until the control has the focus. Never moves backwards. */
    const tabTo = async (selector) => {
      for (let presses = 0; presses < 60; presses += 1) {
        await press("Tab");
        if (await here(selector)) return assert.ok(await page.evaluate(() => {
          const { outlineStyle } = getComputedStyle(document.activeElement.closest("label:has(:focus-visible)") ?? document.activeElement);
          return outlineStyle !== "none" || getComputedStyle(document.activeElement).outlineStyle !== "none";
        }), `${selector}: the focus must be visible`);
      }
      assert.fail(`${selector} cannot be reached`);
    };

    await press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the model");
    await press("Enter");
    await tabTo("#open-other summary");
    await press("Enter");
    await page.waitForSelector("#address", { state: "visible" });
    await press("Enter");
    await page.waitForSelector("#address", { state: "hidden" });

    // Start the slowest method and cancel it.
    await tabTo("[name=method]");
    await press("ArrowDown", "ArrowDown");
    assert.ok(await page.isChecked("[name=method][value=awq]"));
    assert.ok(await page.isVisible("#calibration"));
    await tabTo("#shrink-form button[type=submit]");
    await press("Enter");
    await page.waitForSelector("#shrink-job progress[value]");
    await tabTo("#shrink-job .cancel");
    await press("Enter");
    await page.waitForFunction(() => document.querySelector("#shrink-job").textContent.includes("cancelled"));
    await idle(page);
    assert.ok(await here("#shrink-form button[type=submit]"), "the focus must return to the button");

    await page.focus("[name=method][value=awq]");
    await press("ArrowUp", "ArrowUp");
    assert.ok(await page.isChecked("[name=method][value=rtn]"));
    await tabTo("[name=bits]");
    await press("ArrowLeft");
    assert.ok(await page.isChecked("[name=bits][value='8']"));
    assert.equal(await page.inputValue("[name=groupSize]"), "-1");
    await tabTo("#shrink-form button[type=submit]");
    await press("Enter");
    await page.waitForSelector("#shrink-result .headline");
    await idle(page);
    assert.match(await page.textContent("#shrink-result"), /RTN INT8, whole rows/);
    assert.ok(await here("#shrink-form button[type=submit]"));

    await tabTo("[name=prompt]");
    await press("Control+a");
    await page.keyboard.type("The fox");
    await tabTo("[name=maxTokens]");
    await press("Control+a");
    await page.keyboard.type("8");
    await press("Enter");
    await page.waitForSelector("#first-difference:not(:empty)");
    await idle(page);
    assert.match(await page.textContent(".voice .text"), /^The fox./);

    await tabTo("[name=textFrom]");
    await press("m");
    await tabTo("[name=ownText]");
    await page.keyboard.insertText(HELD_OUT);
    await page.focus("[name=textFrom]");
    await tabTo("[name=speed]");
    await press("Space");
    await tabTo("#judge-form button[type=submit]");
    await press("Enter");
    await page.waitForSelector("#report .verdict");
    await idle(page);
    await page.waitForSelector("#report .plot polyline.second");
    await tabTo("#weights-of");
    await press("Home");
    assert.equal(await page.inputValue("#weights-of"), "model.layers.0.self_attn.q_proj");
    await tabTo("#run-1");
    await tabTo("[name=format]");
    await tabTo("#save-zip");
    const [file] = await Promise.all([page.waitForEvent("download"), press("Enter")]);
    assert.match(file.suggestedFilename(), /int8.*\.zip$/);
    assert.deepEqual(complaints, []);
    await close();
  });

  test("the theme follows the system until another is chosen, and the choice is remembered", async () => {
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
