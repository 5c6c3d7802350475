// Which of the package's WebAssembly modules are loaded, and when: generation does not load the quantizer.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { ENTRY, golden, HELD_OUT, MODEL, PACKAGE, sha256, temporary } from "./support.mjs";

/** A copy of the package, with functions that remove and restore its quantizer files. */
async function copied() {
  const folder = join(temporary(), "lowbit");
  cpSync(PACKAGE, folder, { recursive: true });
  const quantizers = ["quantizer_bg.wasm", "quantizer_relaxed_bg.wasm"].map((name) => join("dist", name));
  const lowbit = await import(ENTRY.replace(pathToFileURL(PACKAGE).href, pathToFileURL(folder).href));
  return {
    lowbit,
    hide: () => quantizers.forEach((file) => rmSync(join(folder, file))),
    bring: () => quantizers.forEach((file) => cpSync(join(PACKAGE, file), join(folder, file))),
  };
}

for (const worker of [true, false]) {
  test(`${worker ? "in a worker" : "in the caller's thread"}: generation needs no quantizer, and jobs that need it name the missing module`, async () => {
    const { lowbit, hide, bring } = await copied();
    hide();
    const engine = lowbit.createEngine({ worker });
    const checkpoint = await engine.openCheckpoint(MODEL);
    await engine.plan(checkpoint);
    await engine.plan(1e9);
    await engine.capabilities();
    const model = await engine.loadModel(checkpoint, { device: "cpu" });
    const [{ prompt, token_ids: tokenIds }] = golden.run.original.greedy;
    const speaks = async () => assert.deepEqual((await model.generate(prompt, { maxTokens: 3 }).result()).tokenIds, tokenIds.slice(0, 3));
    await speaks();
    await model.logits(await model.tokenize(prompt));
    await model.perplexity(HELD_OUT.slice(0, 200));

    const absent = (error) => error.code === "io" && /^the quantizer cannot be loaded: .*quantizer.*_bg\.wasm/.test(error.message);
    const judged = { texts: HELD_OUT.slice(0, 200), maxTokens: 2, speedRounds: 0, prompts: [prompt], device: "cpu" };
    const works = {
      quantize: () => engine.quantize(checkpoint, { bits: 8 }),
      convert: () => engine.convert(checkpoint, { format: "gguf" }),
      dequantize: () => engine.dequantize(checkpoint),
      validate: () => engine.validate(checkpoint, checkpoint, judged),
      compare: () => engine.compare(checkpoint, checkpoint, { prompts: [prompt], maxTokens: 2, device: "cpu" }),
      auto: () => engine.auto(checkpoint, { texts: HELD_OUT.slice(0, 200), device: "cpu" }),
    };
    for (const [name, work] of Object.entries(works)) await assert.rejects(work, absent, name);
    await speaks();

    // A later call may succeed, for example when the network is back. Open checkpoints and models continue in one
    // memory.
    bring();
    const small = await engine.quantize(checkpoint, { bits: 8 });
    assert.equal(sha256((await small.files())["model.safetensors"]), golden.quantized.int8["model.safetensors"]);
    await speaks();
    await engine.dispose();
  });
}

test("each module is loaded once, even with concurrent calls", () => {
  const code = `
    import { createEngine } from ${JSON.stringify(ENTRY)};
    const { instantiate } = WebAssembly;
    const all = [];
    WebAssembly.instantiate = (module, imports) => (all.push(Object.keys(imports).join()), instantiate(module, imports));
    const engines = [createEngine({ worker: false }), createEngine({ worker: false })];
    await Promise.all(engines.map(async (engine) => {
      const checkpoint = await engine.openCheckpoint(${JSON.stringify(MODEL)});
      await Promise.all([engine.quantize(checkpoint, { bits: 8 }), engine.quantize(checkpoint, { bits: 4 })]);
    }));
    console.log(all.filter((imports) => imports === "first").length);`;
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", code], { encoding: "utf8", timeout: 120_000 });
  assert.equal(stdout.trim(), "1", stderr);
});

test("the quantizer imports everything else from its engine", () => {
  for (const build of ["", "_relaxed"]) {
    const parts = ["engine", "quantizer"].map((name) => readFileSync(join(PACKAGE, "dist", `${name}${build}_bg.wasm`)));
    if (!parts.every((bytes) => WebAssembly.validate(bytes))) {
      console.log("note: this Node has no relaxed SIMD, so only the other build is checked");
      continue;
    }
    const [first, later] = parts.map((bytes) => new WebAssembly.Module(bytes));
    assert.deepEqual(WebAssembly.Module.exports(later), [], "the bindings call only the engine");
    const had = new Set(WebAssembly.Module.exports(first).map(({ name, kind }) => `${kind} ${name}`));
    const wanted = WebAssembly.Module.imports(later);
    assert.ok(wanted.some(({ kind }) => kind === "memory") && wanted.some(({ kind }) => kind === "table"));
    assert.deepEqual(wanted.filter(({ module, name, kind }) => module !== "first" || !had.has(`${kind} ${name}`)), []);
  }
});
