// The package in programs: Node with an ES module and with strict TypeScript, Deno, Bun.
import assert from "node:assert/strict";
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { assertExercised, project, run, tool } from "./support.mjs";

test("the package works in Node, from an ES module", async () => {
  const folder = await project("node");
  assertExercised(JSON.parse(await run(process.execPath, ["main.mjs", "input.json"], { cwd: folder })));
  assert.deepEqual(readdirSync(join(folder, "node_modules")).filter((name) => !name.startsWith(".")), ["lowbit"], "it has no dependencies");
});

/** `lib` settings that the type declarations must support: without platform types, and with the DOM's. */
const LIBRARIES = { "the language alone": ["ES2023"], "the language and the DOM": ["ES2023", "DOM", "DOM.Iterable"] };

test("the package works in Node, from strict TypeScript", async (t) => {
  const folder = await project("typescript");
  for (const [name, lib] of Object.entries(LIBRARIES)) {
    for (const module of ["NodeNext", "ESNext"]) {
      await t.test(`${name}, modules as ${module}`, async () => {
        const compilerOptions = {
          strict: true, skipLibCheck: false, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, target: "ES2022", lib, module,
          moduleResolution: module === "NodeNext" ? "NodeNext" : "Bundler", types: [], outDir: "built",
        };
        writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["main.ts"] }));
        await run(process.execPath, [tool("typescript/bin/tsc"), "--project", "."], { cwd: folder });
      });
    }
  }
  await t.test("the program runs", async () => {
    const found = JSON.parse(await run(process.execPath, ["built/main.js", "input.json"], { cwd: folder }));
    assert.equal(found.parameters, 705_408);
    assert.equal(found.layout, "compressed-tensors");
    assert.equal(found.method, "gptq");
    assert.equal(found.code, "invalid_checkpoint");
    assert.equal(found.tokens, 4);
    assert.equal(found.chat, "not_found");
    assert.equal(found.schema, "lowbit.validation/1");
    assert.deepEqual([found.converted, found.wide], ["gguf", "dense"]);
  });
});

/** Deno's command from its npm package. The task runner sets it. */
const DENO = process.env.LOWBIT_DENO;

test("the package works in Deno", { skip: DENO ? false : "LOWBIT_DENO is not set" }, async () => {
  const folder = await project("deno");
  const rights = ["--allow-read", "--allow-write", "--allow-env", "--allow-sys", "--node-modules-dir=manual", "--no-prompt"];
  const env = { DENO_NO_UPDATE_CHECK: "1", DENO_DIR: join(folder, ".deno") };
  const args = ["run", "--check", ...rights, "main.ts", "input.json"];
  assertExercised(JSON.parse(await run(process.execPath, [DENO, ...args], { cwd: folder, env })));
});

test("the package works in Bun", async (t) => {
  const builds = existsSync(tool("@oven")) ? readdirSync(tool("@oven")).map((name) => tool(`@oven/${name}/bin/bun`)) : [];
  const works = async (path) => run(path, ["--version"]).then(() => true, () => false);
  let bun;
  for (const build of builds) if (bun === undefined && (await works(build))) bun = build;
  if (bun === undefined) {
    console.log("skipped: the package in Bun: Bun does not run here");
    return t.skip("skipped: Bun does not run here");
  }
  const folder = await project("node");
  assertExercised(JSON.parse(await run(bun, ["main.mjs", "input.json"], { cwd: folder })));
});
