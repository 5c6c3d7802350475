// Writes and reads zip files with fflate. Written zips are not compressed, because weights do not compress.
import { unzipSync, zip } from "../vendor/fflate.js";
import { filesByName } from "./places.js";

/** A zip that contains the files in one folder. */
export function zipped(folder, files) {
  const entries = Object.fromEntries(Object.entries(files).map(([name, bytes]) => [`${folder}/${name}`, [bytes, { level: 0 }]]));
  return new Promise((resolve, reject) => {
    zip(entries, (error, bytes) => (error ? reject(error) : resolve(new Blob([bytes], { type: "application/zip" }))));
  });
}

/** The files of a zip, by their names in the checkpoint's folder. */
export async function bytesOfZip(blob) {
  const given = new Uint8Array(await blob.arrayBuffer());
  let files;
  try {
    // Synchronous, because fflate starts its workers from text, which the page's policy rejects.
    files = unzipSync(given);
  } catch (error) {
    throw new Error(`${blob.name}: not a zip file that can be read (${error.message})`);
  }
  return filesByName(Object.entries(files).filter(([path]) => !path.endsWith("/")));
}

/** Hands a file to the browser's downloads. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  // Once it has started, the download keeps the blob alive.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
