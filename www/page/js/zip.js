// Zip files, by fflate: what is taken away in one piece, and opened again. Weights do not shrink, so nothing is compressed.
import { unzip, zip } from "../vendor/fflate.js";

/** A zip with the files in a folder. */
export function zipped(folder, files) {
  const entries = Object.fromEntries(Object.entries(files).map(([name, bytes]) => [`${folder}/${name}`, [bytes, { level: 0 }]]));
  return new Promise((resolve, reject) => {
    zip(entries, (error, bytes) => (error ? reject(error) : resolve(new Blob([bytes], { type: "application/zip" }))));
  });
}

/** The files of a zip, by name; folders in it are left out of the names. */
export async function bytesOfZip(blob) {
  const given = new Uint8Array(await blob.arrayBuffer());
  const files = await new Promise((resolve, reject) => {
    unzip(given, (error, found) => (error ? reject(new Error(`${blob.name}: not a zip file (${error.message})`)) : resolve(found)));
  });
  const named = Object.entries(files).filter(([path]) => !path.endsWith("/"));
  return Object.fromEntries(named.map(([path, bytes]) => [path.split("/").pop(), bytes]));
}

/** Hands a file to the browser's downloads. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  // The download has its own hold on the blob once it has begun.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
