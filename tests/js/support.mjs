// Shared by the tests of the npm package: the built package, fixtures, and checks of errors.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { CALIBRATION_BYTES, HELD_OUT_BYTES, LITTLE as SHORT } from "./cases.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** The folder of the built package. */
export const PACKAGE = resolve(process.env.LOWBIT_PACKAGE ?? join(root, "target/package/lowbit"));
/** Its entry point in Node. */
export const ENTRY = pathToFileURL(join(PACKAGE, JSON.parse(readFileSync(join(PACKAGE, "package.json"))).exports["."].node)).href;

export const lowbit = await import(ENTRY);

/** The model that ships with the repository. */
export const MODEL = join(root, "tests/fixtures/tale-llama");
/** Real models beside the repository. They are optional. */
export const SHARED = join(root, "../shared");

export const golden = JSON.parse(readFileSync(new URL("golden.json", import.meta.url), "utf8"));

/** The text of a fixture, or its start. All of them are ASCII. */
const text = (file, bytes) => readFileSync(join(MODEL, file), "utf8").slice(0, bytes);
export const HELD_OUT = text("heldout.txt", HELD_OUT_BYTES);
export const CALIBRATION = text("calibration.txt", CALIBRATION_BYTES);

/** A quick calibration. */
export const LITTLE = { texts: [CALIBRATION], ...SHORT };

/** The files of the shipped checkpoint, by name. */
export function modelFiles() {
  const names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
  return Object.fromEntries(names.map((name) => [name, new Uint8Array(readFileSync(join(MODEL, name)))]));
}

export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** A temporary folder, removed after the tests. */
export function temporary() {
  const path = mkdtempSync(join(tmpdir(), "lowbit-js-"));
  after(() => rm(path, { recursive: true, force: true }));
  return path;
}

/** The sorted names in a folder; empty if there is no folder. */
export function names(folder) {
  try {
    return readdirSync(folder).sort();
  } catch (error) {
    if (error.code === "ENOENT") return [];
    throw error;
  }
}

/**
 * Asserts that `work` fails with a `LowbitError` of this code and a message that matches `pattern`. Returns the error.
 */
export async function fails(work, code, pattern = /./) {
  let thrown;
  try {
    await (typeof work === "function" ? work() : work);
  } catch (error) {
    thrown = error;
  }
  assert.ok(thrown !== undefined, `expected the error ${code}, but nothing failed`);
  assert.ok(thrown instanceof lowbit.LowbitError, `expected a LowbitError but found ${thrown?.stack ?? thrown}`);
  assert.equal(thrown.code, code, thrown.message);
  assert.match(thrown.message, pattern);
  assert.doesNotMatch(thrown.message, /\n/, "one sentence");
  return thrown;
}

/** Runs `check` and adds `place` to the message of a failure, to name one of many cases. */
export async function at(place, check) {
  try {
    await check();
  } catch (error) {
    throw new Error(`${place}: ${error.message}`, { cause: error });
  }
}
