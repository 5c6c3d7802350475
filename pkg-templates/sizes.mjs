// Measures the files that a page loads, raw and compressed with brotli. Writes a table into the package's README, and
// fails above the README's limits.
// usage: node sizes.mjs PACKAGE
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants } from "node:zlib";

const folder = process.argv[2];
const KB = 1000;
const kilobytes = (bytes) => `${(bytes / KB).toFixed(0)} KB`;

const measured = new Map();
/** Total bytes of files: raw, and with brotli. */
function sizes(files) {
  const sum = [0, 0];
  for (const file of files) {
    if (!measured.has(file)) {
      const bytes = readFileSync(join(folder, "dist", file));
      const params = { [constants.BROTLI_PARAM_QUALITY]: 11 };
      measured.set(file, [bytes.length, brotliCompressSync(bytes, { params }).length]);
    }
    measured.get(file).forEach((bytes, index) => (sum[index] += bytes));
  }
  return sum;
}

const script = ["index.browser.js", "worker.browser.js"];
const modules = ["engine_bg.wasm", "engine_relaxed_bg.wasm", "quantizer_bg.wasm", "quantizer_relaxed_bg.wasm", "tokenizer_bg.wasm"];
const rows = [...modules.map((file) => [file]), script, ["cli.wasm"]].map((files) => {
  const names = files.map((file) => `\`${file}\``).join(", ");
  return `| ${[names, ...sizes(files).map(kilobytes)].join(" | ")} |`;
});
const table = ["| files | size | brotli |", "|---|---|---|", ...rows].join("\n");
console.log(table);
const readme = join(folder, "README.md");
const text = readFileSync(readme, "utf8");
const place = /^<!-- .* table of sizes .* -->$/m;
if (!place.test(text)) throw new Error(`${readme}: expected a comment that marks the place of the table of sizes but found none`);
writeFileSync(readme, text.replace(place, table));

// The tokenizer has its own budget: it is loaded with the first text, and is as large as everything else together.
for (const [name, files, budget] of [
  ["to load models and generate text", ["engine_bg.wasm", ...script], 450 * KB],
  ["to load models and generate text, with relaxed SIMD", ["engine_relaxed_bg.wasm", ...script], 450 * KB],
  ["all but the tokenizer", ["engine_bg.wasm", "quantizer_bg.wasm", ...script], 750 * KB],
  ["all but the tokenizer, with relaxed SIMD", ["engine_relaxed_bg.wasm", "quantizer_relaxed_bg.wasm", ...script], 750 * KB],
  ["tokenizer", ["tokenizer_bg.wasm"], 700 * KB],
]) {
  const [, bytes] = sizes(files);
  const isOver = bytes > budget;
  if (isOver) process.exitCode = 1;
  console.log(`${name}: ${kilobytes(bytes)} of ${kilobytes(budget)} with brotli${isOver ? ": TOO LARGE" : ""}`);
}
