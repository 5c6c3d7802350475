// Runs the GPU tests in Node or Deno: `program.mjs MODULES WEBGPU` prints the results as one line of JSON. WEBGPU is
// the path of the npm package `webgpu` for Node, or `own` for the runtime's WebGPU.
import { readFile } from "node:fs/promises";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { runGpuTests } from "./run.mjs";

const [modules, webgpu] = process.argv.slice(2);
// As in the package: wgpu requires a browser's `Window` before it looks for a GPU.
globalThis.Window ??= class Window {};
if (webgpu !== "own") {
  const { create, globals } = await import(pathToFileURL(webgpu));
  Object.assign(globalThis, globals);
  Object.defineProperty(globalThis, "navigator", { value: { gpu: create([]) }, configurable: true });
}
const uncaught = new Promise((_, reject) => {
  process.on("uncaughtException", reject);
  process.on("unhandledRejection", reject);
});
let found;
try {
  const engine = await import(pathToFileURL(`${modules}/engine.js`));
  found = await runGpuTests(engine, await readFile(`${modules}/engine_bg.wasm`), uncaught);
} catch (error) {
  found = { error: String(error?.message ?? error) };
}
console.log(JSON.stringify(found));
// An adapter that is still open may keep the program alive.
process.exit(0);
