// Assembles the demo page: a folder of static files for any web host.
//
//   index.html, js/, style/   the page itself, from page/
//   lowbit/                   the package's browser files
//   lowbit.js                 re-exports the package's entry point for the page
//   model/                    the checkpoint that ships with the repository
//   vendor/                   fflate, for zip files
//
// usage: node site.mjs --package DIR --out DIR [--compress]
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, extname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { brotliCompressSync, constants } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const MODEL = join(here, "../tests/fixtures/tale-llama");

/** The files of the shipped checkpoint that the page reads. */
const MODEL_FILES = [
  "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
  "calibration.txt", "heldout.txt", "prompts.txt",
];

/** File types that are worth compressing. */
const TEXT = new Set([".html", ".css", ".js", ".json", ".svg", ".txt", ".wasm"]);

/** Brotli levels above 9 take many times as long and save a few per cent. */
const QUALITY = 9;

/** Recreates the folder `out`. `package` is the built package's folder; `compress` adds a `.br` to each text file. */
export function assemble({ package: lowbit, out, compress = false }) {
  const manifest = join(lowbit, "package.json");
  if (!existsSync(manifest)) throw new Error(`${lowbit}: expected the built package (run cargo xtask package)`);
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  cpSync(join(here, "page"), out, { recursive: true });
  const { main, files } = browserFiles(JSON.parse(readFileSync(manifest, "utf8")), lowbit);
  for (const file of files) copy(join(lowbit, file), join(out, "lowbit", file));
  // Not an import map: that would be an inline script, which the page's policy forbids.
  writeFileSync(join(out, "lowbit.js"), `export * from "./${join("lowbit", main).replaceAll("\\", "/")}";\n`);
  for (const file of MODEL_FILES) copy(join(MODEL, file), join(out, "model", file));
  const fflate = join(here, "node_modules/fflate");
  if (!existsSync(fflate)) throw new Error(`${fflate}: missing (run npm ci in www)`);
  copy(join(fflate, "esm/browser.js"), join(out, "vendor/fflate.js"));
  copy(join(fflate, "LICENSE"), join(out, "vendor/fflate.LICENSE.txt"));
  if (compress) compressAll(out);
  return out;
}

/** The browser's entry point in the package's `exports`, and the files that it may load. */
function browserFiles({ exports }, lowbit) {
  const main = exports["."].default;
  const folder = dirname(main);
  const node = new Set([exports["."].node, exports["./worker"].node].map((file) => resolve(lowbit, file)));
  const files = readdirSync(join(lowbit, folder))
    .filter((file) => [".js", ".wasm"].includes(extname(file)))
    .map((file) => join(folder, file))
    .filter((file) => !node.has(resolve(lowbit, file)) && !/\.node\.js$/.test(file));
  return { main, files };
}

function copy(from, to) {
  mkdirSync(dirname(to), { recursive: true });
  cpSync(from, to);
}

function compressAll(folder) {
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || !TEXT.has(extname(entry.name))) continue;
    const path = join(entry.parentPath ?? entry.path, entry.name);
    const bytes = readFileSync(path);
    const params = { [constants.BROTLI_PARAM_QUALITY]: QUALITY, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length };
    writeFileSync(`${path}.br`, brotliCompressSync(bytes, { params }));
  }
}

/** The policy from the page's `<meta>`. */
export function policy() {
  const html = readFileSync(join(here, "page/index.html"), "utf8");
  const found = /http-equiv="Content-Security-Policy"\s+content="([^"]+)"/.exec(html);
  if (found === null) throw new Error("page/index.html has no Content-Security-Policy");
  return found[1].replace(/\s+/g, " ").trim();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: { package: { type: "string" }, out: { type: "string" }, compress: { type: "boolean" } },
  });
  if (values.package === undefined || values.out === undefined) {
    console.error("usage: node site.mjs --package DIR --out DIR [--compress]");
    process.exit(2);
  }
  console.log(assemble({ package: resolve(values.package), out: resolve(values.out), compress: values.compress ?? false }));
}
