// Prints what a page loads, compressed by brotli as servers do it, and fails where it is more than the README promises.
// usage: node sizes.mjs DIST
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants } from "node:zlib";

const dist = process.argv[2];
const compressed = (file) =>
  brotliCompressSync(readFileSync(join(dist, file)), { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }).length;

const KB = 1000;
const script = ["index.browser.js", "worker.browser.js"];
const budgets = [
  ["engine", ["engine_bg.wasm", ...script], 600 * KB],
  ["engine with relaxed SIMD", ["engine_relaxed_bg.wasm", ...script], 600 * KB],
  ["engine and tokenizer", ["engine_relaxed_bg.wasm", "tokenizer_bg.wasm", ...script], 1300 * KB],
];

let over = false;
for (const [name, files, budget] of budgets) {
  const bytes = files.reduce((sum, file) => sum + compressed(file), 0);
  over ||= bytes > budget;
  console.log(`${name}: ${(bytes / KB).toFixed(0)} KB of ${budget / KB} KB by brotli${bytes > budget ? ": TOO LARGE" : ""}`);
}
process.exitCode = over ? 1 : 0;
