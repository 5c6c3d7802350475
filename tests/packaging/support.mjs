// Shared by the tests of the packed package: fresh projects that install it, running programs, and the expected
// results.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { accessSync, cpSync, existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import { CALIBRATION_BYTES, HELD_OUT_BYTES, LITTLE } from "../js/cases.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const root = join(here, "../..");

/** The tarball from `npm pack`. */
export const TARBALL = resolve(process.env.LOWBIT_TARBALL ?? join(root, "target/package/lowbit-0.1.0.tgz"));
accessSync(TARBALL);

export const MODEL = join(root, "tests/fixtures/tale-llama");
const golden = JSON.parse(readFileSync(join(root, "tests/js/golden.json"), "utf8"));
const start = (file, bytes) => readFileSync(join(MODEL, file), "utf8").slice(0, bytes);

/** The input of the consumers. */
export const input = {
  source: MODEL,
  heldOut: start("heldout.txt", HELD_OUT_BYTES),
  calibration: { texts: [start("calibration.txt", CALIBRATION_BYTES)], ...LITTLE },
  prompt: golden.run.original.greedy[0].prompt,
};

/** The path of a tool from `package.json`. */
export const tool = (path) => join(here, "node_modules", path);
assert.ok(existsSync(tool("")), "the tools are missing (run `npm ci --ignore-scripts` in tests/packaging)");

/** Runs a program to its end. Resolves to its standard output. */
export function run(program, args, { cwd, env = {}, seconds = 300 } = {}) {
  return new Promise((done, failed) => {
    const options = { cwd, env: { ...process.env, ...env }, timeout: seconds * 1000, maxBuffer: 1 << 26 };
    execFile(program, args, options, (error, stdout, stderr) => {
      if (error) failed(new Error(`${program} ${args.join(" ")}: ${error.message}\n${stdout}\n${stderr}`));
      else done(stdout);
    });
  });
}

/** A new project in a temporary folder, with the package installed from the tarball and some of `consumers/`. */
export async function project(...consumers) {
  const folder = mkdtempSync(join(tmpdir(), "lowbit-consumer-"));
  after(() => rm(folder, { recursive: true, force: true, maxRetries: 5 }));
  for (const consumer of ["exercise.mjs", ...consumers]) {
    const from = join(here, "consumers", consumer);
    cpSync(from, consumer.endsWith(".mjs") ? join(folder, consumer) : folder, { recursive: true });
  }
  const manifest = { name: "consumer", private: true, type: "module", dependencies: { lowbit: `file:${TARBALL}` } };
  writeFileSync(join(folder, "package.json"), JSON.stringify(manifest));
  writeFileSync(join(folder, "input.json"), JSON.stringify(input));
  await run("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=peer", "--offline", "--loglevel=error"], { cwd: folder });
  return folder;
}

/**
 * Tolerances of perplexity. GPTQ's codes depend on the order of sums, which differs with relaxed SIMD. tests/js is
 * stricter.
 */
const LEARNED = 0.01;
const SUMMING = 1e-4;

/** Asserts that a consumer's results equal the native command's. */
export function assertExercised({ parameters, schemes, automatic, capabilities, errors }) {
  assert.equal(parameters, 705_408);
  for (const [name, of] of [["rtn", "int4 group 32"], ["gptq", "gptq int4 group 32"]]) {
    const { layout, sha256, text, tokenIds, perplexity, phases } = schemes[name];
    const wanted = golden.run[of];
    assert.equal(layout, "compressed-tensors");
    assert.ok(Math.abs(perplexity / wanted.perplexity - 1) < (name === "gptq" ? LEARNED : SUMMING), `${name}: perplexity ${perplexity}, natively ${wanted.perplexity}`);
    assert.equal(tokenIds.length, 16);
    assert.ok(text.length > 16);
    assert.ok(Array.isArray(phases));
    if (name === "gptq") continue;
    assert.deepEqual(tokenIds, wanted.greedy[0].token_ids.slice(0, 16));
    assert.ok(wanted.greedy[0].text.startsWith(text), text);
    assert.equal(sha256, golden.quantized[of]["model.safetensors"]);
  }
  assert.equal(automatic.vocabSize, 2048);
  assert.match(capabilities.engine, /^(simd128|relaxed-simd)$/);
  assert.equal(capabilities.worker, true);
  assert.deepEqual(errors, { misspelled: "invalid_argument", missing: "not_found" });
}

/** The first of `paths` that exists. */
export const firstOf = (paths) => paths.find((path) => path !== undefined && existsSync(path));
