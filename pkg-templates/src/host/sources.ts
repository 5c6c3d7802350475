/** Opens a caller's source for the engine to read. The kinds of folders are in `folders.ts` and `urls.ts`. */
import { LowbitError } from "../errors.js";
import { directoryFolder, filesFolder, specFile } from "../folders.js";
import type { Folder, HostPlatform, OpenFile, Store } from "../platform.js";
import { opfsDirectory } from "../targets.js";
import { fetchWith, openUrlFile, urlFolder, type Fetch } from "../urls.js";
import type { ClientFunctions, SourceSpec } from "../wire.js";
import type { Readers } from "./readers.js";

/** An open source: a folder, or one file. */
export type Opened = { folder: Folder } | { file: OpenFile };

/** Opens a source, and counts the bytes read from it. */
export async function openSource(
  source: SourceSpec, platform: HostPlatform, caller: ClientFunctions, readers: Readers,
): Promise<Opened> {
  const opened = await readers.read((signal) => openUnmetered(source, platform, caller, signal));
  return "file" in opened ? { file: readers.metered(opened.file) } : { folder: meteredFolder(opened.folder, readers) };
}

/** A folder whose bytes are counted. */
export function meteredFolder(folder: Folder, readers: Readers): Folder {
  readers.folders.push(folder);
  return {
    name: folder.name,
    open: async (file) => {
      const found = await readers.read((signal) => folder.open(file, signal));
      return found && readers.metered(found);
    },
  };
}

async function openUnmetered(
  source: SourceSpec, platform: HostPlatform, caller: ClientFunctions, signal: AbortSignal,
): Promise<Opened> {
  const store = async (wanted: boolean) => (wanted ? platform.store() : undefined);
  switch (source.kind) {
    case "files": {
      const names = Object.keys(source.files);
      const only = names.length === 1 ? names[0]! : undefined;
      if (only !== undefined && only.toLowerCase().endsWith(".gguf")) {
        return { file: specFile(only, source.files[only]!, caller) };
      }
      return { folder: filesFolder(source.name, source.files, caller) };
    }
    case "url":
      return fromUrl(source.url, fetchWith(source.headers ?? {}), signal, await store(source.cache));
    case "remoteUrl":
      // The caller's own `fetch` gets no signal.
      return fromUrl(
        source.url, (url, range, ifRange) => caller.fetchRange(source.id, url, range, ifRange), signal, await store(source.cache),
      );
    case "path":
      if (platform.openPath === undefined) {
        throw new LowbitError("invalid_argument", `${source.path}: paths are not available here; give a URL, files or a directory handle`);
      }
      return platform.openPath(source.path);
    case "opfs":
      return { folder: directoryFolder(await opfsDirectory(source.path)) };
    case "directory":
      return { folder: directoryFolder(source.handle) };
  }
}

async function fromUrl(url: string, get: Fetch, signal: AbortSignal, store?: Store): Promise<Opened> {
  const isFile = new URL(url).pathname.toLowerCase().endsWith(".gguf");
  return isFile ? { file: await openUrlFile(url, get, signal, store) } : { folder: urlFolder(url, get, store) };
}

/** The open folder. Throws `invalid_argument` for a file. */
export function folderOf(opened: Opened): Folder {
  if ("folder" in opened) return opened.folder;
  throw new LowbitError("invalid_argument", `${opened.file.name}: expected a folder with a tokenizer.json but found a file`);
}

export async function readJson(folder: Folder, name: string): Promise<unknown> {
  const file = await folder.open(name);
  if (file === undefined) throw new LowbitError("not_found", `${folder.name}: expected ${name} but found none`);
  return JSON.parse(new TextDecoder().decode(await file.read(0, file.size)));
}
