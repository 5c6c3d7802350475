// The examples of the package's README run unchanged.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const PACKAGE = process.env.LOWBIT_PACKAGE ?? here("../../target/package/lowbit");
const MODEL = here("../fixtures/tale-llama");

const folder = mkdtempSync(join(tmpdir(), "lowbit-readme-"));
mkdirSync(join(folder, "node_modules"));
symlinkSync(PACKAGE, join(folder, "node_modules/lowbit"), "dir");
symlinkSync(MODEL, join(folder, "my-model"), "dir");
// Enough text to calibrate and validate, but quick.
for (const [from, to] of [["calibration.txt", "texts.txt"], ["heldout.txt", "heldout.txt"]]) {
  writeFileSync(join(folder, to), readFileSync(join(MODEL, from), "utf8").slice(0, 6000));
}
after(() => rmSync(folder, { recursive: true, force: true }));

/** What each example prints, in the README's order. */
const PRINTS = [/there lived a .*girl/s, /^quantize|calibrate/s, /\w+/];

describe("the README's examples", () => {
  const examples = [...readFileSync(here("../../pkg-templates/README.md"), "utf8").matchAll(/```js\n(.*?)```/gs)];
  test("all have an expected output", () => assert.equal(examples.length, PRINTS.length));
  examples.forEach(([, text], index) => {
    test(`example ${index + 1}`, () => {
      const file = join(folder, `example-${index + 1}.mjs`);
      writeFileSync(file, text);
      const run = spawnSync(process.execPath, [file], { cwd: folder, encoding: "utf8", timeout: 120_000 });
      assert.equal(run.status, 0, run.stderr);
      assert.match(run.stdout, PRINTS[index]);
      assert.equal(run.stderr, "");
    });
  });
});
