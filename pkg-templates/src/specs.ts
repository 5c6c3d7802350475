/** Turns the caller's sources and targets into messages for the engine side. */
import { LowbitError } from "./errors.js";
import { blobFile } from "./folders.js";
import { expect } from "./requests.js";
import type { ClientPlatform } from "./platform.js";
import type { CheckpointSource, FileLike, OpenOptions, RandomAccessFile, Target, KeptPlace } from "./types.js";
import type { FileSpec, KeptSpec, SourceSpec, TargetSpec } from "./wire.js";

/** Registers the caller's objects, which the engine side reaches by number. */
export interface Remotes {
  /** Whether the engine side is another thread. Objects that are not registered here are then sent to it. */
  readonly apart: boolean;
  file(file: RandomAccessFile): number;
  fetch(fetcher: typeof fetch, headers: Record<string, string>): number;
  target(create: (file: string) => unknown): number;
  forget(): void;
}

const HUB = "https://huggingface.co";

/** `org/model`: exactly two names. */
const REPOSITORY = /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/;

/** Whether a string is a path, on platforms with paths. */
export function isPath(text: string): boolean {
  return /^(\/|\.\.?(\/|\\|$)|~(\/|$)|[A-Za-z]:[\\/])/.test(text);
}

export function sourceSpec(
  source: CheckpointSource, options: OpenOptions, platform: ClientPlatform, remotes: Remotes,
): SourceSpec {
  if (source instanceof URL) return urlSpec(source.href, options, platform, remotes);
  if (typeof source === "string") {
    if (isUrl(source)) return urlSpec(source, options, platform, remotes);
    if (platform.isPath(source)) return { kind: "path", path: source };
    if (REPOSITORY.test(source)) {
      const { revision: named = "main" } = options;
      expect(typeof named === "string" && named !== "", "openCheckpoint", "`revision` to be a branch, tag or commit", named);
      const revision = encodeURIComponent(named);
      const url = `${HUB}/${source}/resolve/${revision}/`;
      return urlSpec(url, { ...options, cache: options.cache ?? true }, platform, remotes);
    }
    if (typeof location !== "undefined") return urlSpec(new URL(source, location.href).href, options, platform, remotes);
    throw new LowbitError(
      "invalid_argument",
      `expected a URL, a path that begins with ./ or /, or "org/model" but found ${JSON.stringify(source)}`,
    );
  }
  if (source === null || typeof source !== "object") {
    throw new LowbitError("invalid_argument", `expected a checkpoint's place but found ${String(source)}`);
  }
  if (isDirectory(source)) return { kind: "directory", handle: handleThat(source, remotes) };
  if (isFileLike(source)) {
    const name = typeof File !== "undefined" && source instanceof File ? source.name : "model.gguf";
    return { kind: "files", name, files: { [name]: fileSpec(source, remotes) } };
  }
  const files = named(source).map(([name, file]) => {
    if (!isFileLike(file)) {
      throw new LowbitError("invalid_argument", `${name}: expected bytes, a Blob, or an object with size and read`);
    }
    return [name, fileSpec(file, remotes)] as const;
  });
  return { kind: "files", name: "files", files: Object.fromEntries(files) };
}

function urlSpec(href: string, options: OpenOptions, platform: ClientPlatform, remotes: Remotes): SourceSpec {
  const url = parsed(href);
  if (url.protocol === "file:") return { kind: "path", path: platform.isPath("/") ? fromFileUrl(url) : href };
  if (url.protocol === "opfs:") return { kind: "opfs", path: decodeURIComponent(url.pathname) };
  const { cache = false } = options;
  expect(typeof cache === "boolean", "openCheckpoint", "`cache` to be true or false", cache);
  const headers = headersOf(options.headers);
  expect(options.fetch === undefined || typeof options.fetch === "function", "openCheckpoint", "`fetch` to be a function", options.fetch);
  if (options.fetch !== undefined) return { kind: "remoteUrl", url: href, id: remotes.fetch(options.fetch, headers), cache };
  return { kind: "url", url: href, headers, cache };
}

function isUrl(text: string): boolean {
  // A single letter is a Windows drive.
  return /^[a-z][a-z0-9+.-]+:/i.test(text);
}

function parsed(href: string): URL {
  try {
    return new URL(href);
  } catch (error) {
    throw new LowbitError("invalid_argument", `${href}: expected a URL`, { cause: error });
  }
}

/** Headers as plain data, from any form that `Headers` accepts. */
function headersOf(headers: OpenOptions["headers"]): Record<string, string> {
  try {
    return Object.fromEntries(new Headers(headers));
  } catch (error) {
    throw new LowbitError("invalid_argument", `openCheckpoint: expected \`headers\` by name: ${(error as Error).message}`, { cause: error });
  }
}

function fromFileUrl(url: URL): string {
  const path = decodeURIComponent(url.pathname);
  return /^\/[A-Za-z]:\//.test(path) ? path.slice(1) : path;
}

function isDirectory(source: object): source is FileSystemDirectoryHandle {
  return (source as { kind?: unknown }).kind === "directory" && "getFileHandle" in source;
}

function isFileLike(value: unknown): value is FileLike {
  if (value === null || typeof value !== "object") return false;
  if (value instanceof Blob || value instanceof ArrayBuffer || ArrayBuffer.isView(value)) return true;
  const { size, read } = value as Partial<RandomAccessFile>;
  return typeof size === "number" && typeof read === "function";
}

/** Checks that the engine side can use a handle. */
function handleThat(handle: FileSystemDirectoryHandle, { apart }: Remotes): FileSystemDirectoryHandle {
  let works = !apart;
  try {
    // An object that only imitates a handle cannot be cloned, or loses its methods.
    works ||= "getFileHandle" in structuredClone(handle);
  } catch {
    works = false;
  }
  if (works) return handle;
  throw new LowbitError(
    "invalid_argument",
    `${handle.name}: the directory handle cannot go to a worker; use createEngine({ worker: false }), or give files`,
  );
}

/** Files by name, from an object, an array or an `<input>`. */
function named(source: object): [string, unknown][] {
  const { length } = source as Partial<ArrayLike<unknown>>;
  if (typeof length !== "number") return Object.entries(source);
  const files = Array.from(source as ArrayLike<Partial<File> | null | undefined>);
  const named = files.map((file, index): [string, unknown] => [file?.webkitRelativePath || (file?.name ?? String(index)), file]);
  const folder = checkpointFolder(named.map(([path]) => path));
  return named.flatMap(([path, file]) => (path.startsWith(folder) ? [[path.slice(folder.length), file]] : []));
}

/**
 * The checkpoint's folder among files with paths, with a trailing `/`: the uppermost folder with a config.json, or else
 * the uppermost with any file. Its subfolders may hold shards of the model, and other models too.
 */
function checkpointFolder(paths: readonly string[]): string {
  const configs = paths.filter((path) => /(^|\/)config\.json$/.test(path));
  const depth = (path: string) => path.split("/").length;
  const among = configs.length > 0 ? configs : paths;
  const least = Math.min(...among.map(depth));
  const folders = new Set(among.filter((path) => depth(path) === least).map((path) => path.slice(0, path.lastIndexOf("/") + 1)));
  const [folder = "", other] = folders;
  if (other === undefined || configs.length === 0) return folder;
  throw new LowbitError("invalid_argument", `expected one checkpoint but found several: ${[...folders].slice(0, 4).join(", ")}`);
}

function fileSpec(file: FileLike, remotes: Remotes): FileSpec {
  if (file instanceof Blob) {
    return travels(file) ? { kind: "blob", blob: file } : { kind: "remote", id: remotes.file(blobFile(blobName(file), file)), size: file.size };
  }
  if (file instanceof ArrayBuffer) return { kind: "bytes", bytes: new Uint8Array(file) };
  if (ArrayBuffer.isView(file)) {
    return { kind: "bytes", bytes: unshared(new Uint8Array(file.buffer, file.byteOffset, file.byteLength)) };
  }
  return { kind: "remote", id: remotes.file(file), size: file.size };
}

/** Whether a blob can be sent to another thread. In Node, one that is backed by a file on disk cannot. */
function travels(blob: Blob): boolean {
  try {
    structuredClone(blob);
    return true;
  } catch {
    return false;
  }
}

function blobName(blob: Blob): string {
  return typeof File !== "undefined" && blob instanceof File ? blob.name : "blob";
}

/**
 * The bytes as a plain `Uint8Array` that fills its buffer. A view would take its whole buffer along to another thread,
 * and the engine expects no subclass.
 */
export function unshared(bytes: Uint8Array): Uint8Array {
  const plain = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return plain.byteLength === plain.buffer.byteLength ? plain : plain.slice();
}

/** Whether a value is a `Uint8Array`, also from another realm, such as a frame's or a test runner's. */
export function isBytes(value: unknown): value is Uint8Array {
  return ArrayBuffer.isView(value) && Object.prototype.toString.call(value) === "[object Uint8Array]";
}

/** The place of a resumable job's state. */
export function keptSpec(place: KeptPlace, platform: ClientPlatform, remotes: Remotes): KeptSpec {
  const spec = place === "memory" ? undefined : targetSpec(place, platform, remotes);
  if (spec?.kind === "path") return { path: spec.path };
  if (spec?.kind === "opfs") return { opfs: spec.path };
  throw new LowbitError("invalid_argument", "expected a place to resume from: a path or {opfs}");
}

export function targetSpec(target: Target | undefined, platform: ClientPlatform, remotes: Remotes): TargetSpec {
  if (target === undefined || target === "memory") return { kind: "memory" };
  if (typeof target === "function") return { kind: "remote", id: remotes.target(target) };
  if (target instanceof URL || typeof target === "string") {
    const text = String(target);
    const url = isUrl(text) ? parsed(text) : undefined;
    if (url?.protocol === "file:") return { kind: "path", path: fromFileUrl(url) };
    if (url?.protocol === "opfs:") return { kind: "opfs", path: decodeURIComponent(url.pathname) };
    if (url !== undefined || text === "") {
      throw new LowbitError("invalid_argument", `expected a writable target but found ${JSON.stringify(text)}`);
    }
    if (platform.isPath("/")) return { kind: "path", path: text };
    throw new LowbitError(
      "invalid_argument",
      `${text}: paths are not available here; give a directory handle, {opfs: "folder"}, or a function that creates streams`,
    );
  }
  if (typeof target === "object" && target !== null) {
    if (isDirectory(target)) return { kind: "directory", handle: handleThat(target, remotes) };
    if ("opfs" in target && typeof target.opfs === "string") return { kind: "opfs", path: target.opfs };
  }
  throw new LowbitError("invalid_argument", "expected a target: memory, a path, a directory handle, {opfs}, or a function");
}
