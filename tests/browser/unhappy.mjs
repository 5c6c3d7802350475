// Failures: the page reports them and keeps working.
import assert from "node:assert/strict";
import { cpSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { generate, idle, judge, missing, MODEL, quantize, start, TOGETHER, visit } from "./support.mjs";

describe("failures", { skip: missing, concurrency: TOGETHER }, () => {
  let place;
  before(async () => (place = await start()));

  /** A modified copy of the shipped checkpoint. */
  function changed(name, change) {
    const folder = join(place.folder, name);
    mkdirSync(folder, { recursive: true });
    for (const file of ["config.json", "tokenizer.json", "model.safetensors"]) cpSync(join(MODEL, file), join(folder, file));
    change(folder);
    return folder;
  }

  test("a broken file is named, and the current model stays open", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    await page.click("#open-other summary");
    const cases = [
      ["cut", (folder) => truncateSync(join(folder, "model.safetensors"), 500_000), /model\.safetensors.*invalid_checkpoint/s],
      ["noise", (folder) => writeFileSync(join(folder, "config.json"), "{ not JSON"), /config\.json.*invalid_checkpoint/s],
      ["alien", (folder) => {
        const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
        writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, model_type: "<img src=x onerror=alert(1)>" }));
      }, /<img src=x onerror=alert\(1\)>.*unsupported_model/s],
    ];
    for (const [name, change, says] of cases) {
      await page.setInputFiles("#pick-folder", changed(name, change));
      await page.waitForFunction((text) => document.querySelector("#model-job [role=alert]")?.textContent.match(text), says.source.replace(".*", "[^]*"));
      assert.match(await page.textContent("#model-job [role=alert]"), says);
      assert.equal(await page.locator("#model-job img").count(), 0, "a file's text is not parsed as markup");
      assert.match(await page.textContent("#card h3"), /tale-llama/);
    }
    // Not a zip.
    await page.setInputFiles("#pick-files", { name: "model.zip", mimeType: "application/zip", buffer: Buffer.from("no zip") });
    await page.waitForFunction(() => document.querySelector("#model-job [role=alert]")?.textContent.includes("not a zip file"));
    await page.fill("#address", `${place.url}nothing-here/`);
    await page.click("#open-address [type=submit]");
    await page.waitForFunction(() => /not_found/.test(document.querySelector("#model-job [role=alert]")?.textContent));
    await quantize(page);
    assert.match(await page.textContent("#shrink-result"), /became/);
    // The only allowed error is the 404 of the missing address.
    assert.deepEqual(complaints.filter((text) => !text.includes("404")), []);
    await close();
  });

  test("quantizing can be cancelled and restarted; a cancelled run keeps nothing", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    await page.check("[name=method][value=awq]", { force: true });
    await page.click("#shrink-form button[type=submit]");
    await page.waitForSelector("#shrink-job progress[value]");
    await page.click("#shrink-job .cancel");
    await page.waitForFunction(() => document.querySelector("#shrink-job").textContent.includes("cancelled"));
    assert.match(await page.textContent("#runs-body"), /No runs yet/);
    await quantize(page, async () => page.check("[name=method][value=rtn]", { force: true }));
    assert.equal(await page.locator("#runs-body tbody tr").count(), 2);
    assert.deepEqual(complaints, []);
    await close();
  });

  test("reloading during a job asks first and starts over", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    await page.check("[name=method][value=gptq]", { force: true });
    await page.click("#shrink-form button[type=submit]");
    await page.waitForSelector("#shrink-job progress[value]");
    const questions = [];
    page.on("dialog", (dialog) => {
      questions.push(dialog.type());
      dialog.accept();
    });
    await page.reload();
    await idle(page);
    assert.deepEqual(questions, ["beforeunload"]);
    assert.match(await page.textContent("#runs-body"), /No runs yet/);
    await quantize(page, async () => page.check("[name=method][value=rtn]", { force: true }));
    assert.equal(await page.locator("#runs-body tbody tr").count(), 2);
    assert.deepEqual(complaints, []);
    await close();
  });

  test("the page asks before an unsaved result is lost", async () => {
    const { page, complaints, close } = await visit(place);
    await idle(page);
    const questions = [];
    page.on("dialog", (dialog) => {
      questions.push(dialog.type());
      dialog.dismiss();
    });
    await page.reload();
    await idle(page);
    assert.deepEqual(questions, [], "there is nothing to lose yet");
    await quantize(page);
    const asked = page.waitForEvent("dialog");
    await page.evaluate(() => setTimeout(() => location.reload()));
    await asked;
    assert.deepEqual(questions, ["beforeunload"]);
    assert.match(await page.textContent("#shrink-result"), /became/);

    const other = changed("other", () => {});
    for (const answer of ["Escape", "Stay here", "Open and discard it"]) {
      await page.setInputFiles("#pick-folder", other);
      await page.waitForSelector("dialog");
      assert.match(await page.textContent("dialog"), /One result is not saved/);
      if (answer === "Escape") await page.keyboard.press("Escape");
      else await page.click(`dialog button:text-is("${answer}")`);
      await page.waitForSelector("dialog", { state: "detached" });
      if (answer.startsWith("Open")) break;
      assert.equal(await page.textContent("#card h3"), "tale-llama");
      assert.match(await page.textContent("#shrink-result"), /became/);
    }
    await page.waitForFunction(() => document.querySelector("#card h3").textContent === "other");
    assert.match(await page.textContent("#runs-body"), /No runs yet/);

    await idle(page);
    await quantize(page);
    await Promise.all([page.waitForEvent("download"), page.click("#save-zip")]);
    await idle(page);
    await page.reload();
    await idle(page);
    assert.deepEqual(questions, ["beforeunload"], "a saved result is not lost");
    assert.deepEqual(complaints, []);
    await close();
  });

  test("a model's name and output are shown as text, never as markup", async () => {
    const markup = "<img src=x onerror=alert(1)>";
    const folder = changed(markup, (at) => {
      const tokenizer = JSON.parse(readFileSync(join(at, "tokenizer.json"), "utf8"));
      const replace = (from, content) => ({ type: "Replace", pattern: { String: from }, content });
      tokenizer.decoder = { type: "Sequence", decoders: [tokenizer.decoder, replace(".", markup), replace("ed", "<b>")] };
      writeFileSync(join(at, "tokenizer.json"), JSON.stringify(tokenizer));
    });
    const { page, complaints, close } = await visit(place);
    const questions = [];
    page.on("dialog", (dialog) => {
      questions.push(dialog.message());
      dialog.dismiss();
    });
    await idle(page);
    await page.setInputFiles("#pick-folder", folder);
    await page.waitForFunction((name) => document.querySelector("#card h3").textContent === name, markup);
    await idle(page);
    await quantize(page, async () => page.check("[name=method][value=ternary]", { force: true }));
    await page.fill("[name=prompt]", `${markup} said Tom.`);
    await generate(page, 60);
    const [original] = await page.$$eval(".voice .text", (texts) => texts.map((text) => text.textContent));
    assert.ok(original.slice(markup.length + 10).includes(markup), original);
    const heldOut = readFileSync(join(MODEL, "heldout.txt"), "utf8").slice(0, 4000);
    await judge(page, heldOut);
    const wrote = await page.$$eval("#report blockquote", (found) => found.map((each) => each.textContent));
    assert.ok(wrote.length > 0 && wrote.some((text) => text.includes("<b>")), wrote.join("\n"));
    assert.equal(await page.locator("img, iframe, body script, [onerror], blockquote b, .text b").count(), 0);
    assert.deepEqual(questions, []);
    assert.deepEqual(complaints, []);
    await close();
  });

  test("the page's policy blocks foreign scripts, markup strings and workers", async () => {
    const { page, close } = await visit(place);
    await idle(page);
    const response = await page.request.get(place.url);
    const policy = response.headers()["content-security-policy"];
    assert.match(policy, /script-src 'self' 'wasm-unsafe-eval';/);
    assert.doesNotMatch(policy, /unsafe-inline|'unsafe-eval'/);
    const tries = await page.evaluate(() => {
      const caught = (work) => {
        try {
          work();
          return "done";
        } catch (error) {
          return error.name;
        }
      };
      return [
        caught(() => (document.body.innerHTML = "<p>markup</p>")),
        caught(() => new Worker("https://example.com/worker.js")),
      ];
    });
    assert.equal(tries[0], "TypeError", "no string becomes markup");
    assert.equal(tries[1], "TypeError", "no worker from another origin");
    await close();
  });

  test("the server supports range requests and sends the right content types", async () => {
    const part = await fetch(new URL("model/model.safetensors", place.url), { headers: { range: "bytes=8-9" } });
    assert.equal(part.status, 206);
    assert.equal(part.headers.get("content-range"), "bytes 8-9/1413880");
    assert.deepEqual(Buffer.from(await part.arrayBuffer()), readFileSync(join(MODEL, "model.safetensors")).subarray(8, 10));
    const cases = [["", /^text\/html/], ["js/main.js", /^text\/javascript/], ["lowbit/dist/engine_bg.wasm", /^application\/wasm$/], ["icon.svg", /^image\/svg\+xml/]];
    for (const [path, type] of cases) {
      const answer = await fetch(new URL(path, place.url), { method: "HEAD" });
      assert.equal(answer.status, 200, path);
      assert.match(answer.headers.get("content-type"), type, path);
      assert.ok(answer.headers.get("content-security-policy").includes("frame-ancestors 'none'"), path);
    }
    assert.equal((await fetch(new URL("js/none.js", place.url))).status, 404);
  });
});
