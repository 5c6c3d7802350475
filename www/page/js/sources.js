// Sources of checkpoints: this site, an address, the hub, a file picker, a drop, a zip. Each has a `source`, which the
// package opens, and a `read` function for ranges of single files, which the histogram uses.
import { filesByName, isShard, placeOf } from "./places.js";
import { bytesOfZip } from "./zip.js";

const SHIPPED = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];

/** The checkpoint that ships with the page. */
export async function shipped(signal) {
  const files = await Promise.all(SHIPPED.map(async (name) => [name, await fetched(name, signal)]));
  const source = Object.fromEntries(files);
  return { source, label: "tale-llama", from: "shipped with this page", read: fromFiles(source), shipped: true };
}

/** A text that ships with the checkpoint. */
export async function shippedText(name, signal) {
  return (await fetched(name, signal)).text();
}

async function fetched(name, signal) {
  const response = await fetch(new URL(`model/${name}`, document.baseURI), { signal }).catch((error) => {
    signal?.throwIfAborted();
    // The browser's message does not name the file.
    throw new Error(`model/${name}: it could not be loaded (${error.message})`);
  });
  if (!response.ok) throw new Error(`model/${name}: the server answered ${response.status}`);
  return response.blob();
}

/** An address or the name of a hub repository. */
export function address(text) {
  const { source, revision, base, label, from } = placeOf(text, document.baseURI);
  const read = async (name, start, end) => {
    // A shard may be in a folder.
    const path = name.split("/").map(encodeURIComponent).join("/");
    const response = await fetch(new URL(path, base), { headers: { range: `bytes=${start}-${end - 1}` } });
    if (response.status !== 206) throw new Error(`${name}: expected a byte range (status 206) but the server answered ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  };
  return { source, options: { revision }, label, from, read };
}

/** Files from a picker or a drop. */
export async function files(list) {
  const chosen = [...list].filter((file) => file.name !== "" && !file.name.startsWith("."));
  if (chosen.length === 0) throw new Error("expected files but found none");
  const zip = chosen.length === 1 && /\.zip$/i.test(chosen[0].name) ? chosen[0] : undefined;
  if (zip !== undefined) {
    const source = await bytesOfZip(zip);
    return { source, label: zip.name.replace(/\.zip$/i, ""), from: zip.name, read: fromFiles(source) };
  }
  const folder = chosen[0].webkitRelativePath?.split("/")[0];
  const label = folder || (chosen.length === 1 ? chosen[0].name : "Your files");
  const from = folder ? "your folder" : `${chosen.length} of your files`;
  return { ...named(chosen.map((file) => [file.webkitRelativePath || file.name, file])), label, from };
}

function named(entries) {
  const source = filesByName(entries);
  return { source, read: fromFiles(source) };
}

/** Dropped files, or a dropped folder, read through its entry. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry.isDirectory);
  if (folder === undefined) return files(transfer.files);
  const found = await filesOf(folder);
  if (found.length === 0) throw new Error("expected files but found none");
  return { ...named(found), label: folder.name, from: "your folder" };
}

/** The files of a dropped folder by their paths in it. From its subfolders, only shards. */
async function filesOf(folder, path = "") {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    // A reader returns entries in batches, then an empty batch.
    const portion = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (portion.length === 0) break;
    found.push(...portion.filter(({ name }) => !name.startsWith(".")));
  }
  const lists = found.map(async (entry) => {
    if (entry.isDirectory) return filesOf(entry, `${path}${entry.name}/`);
    if (path !== "" && !isShard(entry.name)) return [];
    return [[path + entry.name, await new Promise((resolve, reject) => entry.file(resolve, reject))]];
  });
  return (await Promise.all(lists)).flat();
}

function fromFiles(source) {
  return async (name, start, end) => {
    const file = source[name];
    if (file === undefined) throw new Error(`${name}: no such file`);
    if (file instanceof Blob) return new Uint8Array(await file.slice(start, end).arrayBuffer());
    return file.subarray(start, end);
  };
}
