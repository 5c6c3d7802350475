// Runs the consumer in the page and again in the page's own module worker. The test waits for `globalThis.found`.
import * as lowbit from "lowbit";
import { exercise } from "./exercise.mjs";

/** Uses the browser's private file system as a target, and a directory handle in it as a source and a target. */
async function inPrivateFiles(source, { prompt }) {
  const original = await lowbit.openCheckpoint(source);
  const small = await lowbit.quantize(original, { bits: 8, target: { opfs: "a folder/small" } });
  const root = await navigator.storage.getDirectory();
  const folder = await (await root.getDirectoryHandle("a folder")).getDirectoryHandle("small");
  const names = [];
  for await (const name of folder.keys()) names.push(name);
  const found = { names: names.sort(), texts: [] };
  // In sequence, because the last one overwrites what the first two read.
  const ways = [async () => small, () => lowbit.openCheckpoint(folder), () => lowbit.quantize(original, { bits: 8, target: folder })];
  for (const way of ways) {
    const checkpoint = await way();
    const model = await lowbit.loadModel(checkpoint, { device: "cpu" });
    found.texts.push(await model.generate(prompt, { maxTokens: 4 }).text());
    model.dispose();
  }
  return found;
}

async function run() {
  const input = await (await fetch("/input.json")).json();
  const source = new URL("/model", location.href).href;
  let ticks = 0;
  const timer = setInterval(() => ticks++, 5);
  const page = await exercise(lowbit, source, input);
  clearInterval(timer);
  const stored = await inPrivateFiles(source, input);
  const worker = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
  const inWorker = await new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => ("error" in data ? reject(new Error(data.error)) : resolve(data.found));
    worker.onerror = (event) => reject(new Error(`the worker failed: ${event.message}`));
    worker.postMessage({ source, input });
  });
  return { page, stored, inWorker, ticks };
}

run().then(
  (found) => (globalThis.found = { found }),
  (error) => (globalThis.found = { error: `${error?.stack ?? error}` }),
);
