/** Reads what callers give as sources and targets. */
import { LowbitError } from "./errors.js";
import { blobFile } from "./folders.js";
import type { ClientPlatform } from "./platform.js";
import type { CheckpointSource, FileLike, OpenOptions, RandomAccessFile, Target } from "./types.js";
import type { FileSpec, SourceSpec, TargetSpec } from "./wire.js";

/** Keeps things of the caller's that the engine's side reaches by number. */
export interface Remotes {
  file(file: RandomAccessFile): number;
  fetch(fetcher: typeof fetch, headers: Record<string, string>): number;
  target(create: (file: string) => unknown): number;
  forget(): void;
}

const HUB = "https://huggingface.co";

/** `org/model`: two names, and no more. */
const REPOSITORY = /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/;

export function sourceSpec(
  source: CheckpointSource, options: OpenOptions, platform: ClientPlatform, remotes: Remotes,
): SourceSpec {
  if (source instanceof URL) return urlSpec(source.href, options, platform, remotes);
  if (typeof source === "string") {
    if (/^[a-z][a-z0-9+.-]+:/i.test(source)) return urlSpec(source, options, platform, remotes);
    if (platform.isPath(source)) return { kind: "path", path: source };
    if (REPOSITORY.test(source)) {
      const revision = encodeURIComponent(options.revision ?? "main");
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
  if (isDirectory(source)) return { kind: "directory", handle: source };
  if (isFileLike(source)) {
    const name = typeof File !== "undefined" && source instanceof File ? source.name : "model.gguf";
    return { kind: "files", name, files: { [name]: fileSpec(source, remotes) } };
  }
  const listed = fileList(source);
  const entries: [string, FileLike][] = listed ? listed.map((file) => [file.name, file]) : Object.entries(source);
  const files = entries.map(([name, file]) => {
    if (!isFileLike(file)) {
      throw new LowbitError("invalid_argument", `${name}: expected bytes, a Blob, or an object with size and read`);
    }
    return [name, fileSpec(file, remotes)] as const;
  });
  return { kind: "files", name: "files", files: Object.fromEntries(files) };
}

function urlSpec(href: string, options: OpenOptions, platform: ClientPlatform, remotes: Remotes): SourceSpec {
  const url = new URL(href);
  if (url.protocol === "file:") return { kind: "path", path: platform.isPath("/") ? fromFileUrl(url) : href };
  if (url.protocol === "opfs:") return { kind: "opfs", path: decodeURIComponent(url.pathname) };
  const { headers = {}, cache = false } = options;
  if (options.fetch !== undefined) return { kind: "remoteUrl", url: href, id: remotes.fetch(options.fetch, headers), cache };
  return { kind: "url", url: href, headers, cache };
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

/** The files of an array or of an `<input>`. */
function fileList(source: object): File[] | undefined {
  const { length } = source as Partial<ArrayLike<File>>;
  return typeof length === "number" ? Array.from(source as ArrayLike<File>) : undefined;
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

/** Whether a blob can go to another thread: in browsers each can, in Node none whose bytes are a file on disk. */
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

/** The same bytes in a buffer of their own: a view would take along all of its buffer when it goes to another thread. */
export function unshared(bytes: Uint8Array): Uint8Array {
  return bytes.byteLength === bytes.buffer.byteLength ? bytes : bytes.slice();
}

export function targetSpec(target: Target | undefined, platform: ClientPlatform, remotes: Remotes): TargetSpec {
  if (target === undefined || target === "memory") return { kind: "memory" };
  if (typeof target === "function") return { kind: "remote", id: remotes.target(target) };
  if (target instanceof URL || typeof target === "string") {
    const text = String(target);
    if (text.startsWith("file:")) return { kind: "path", path: fromFileUrl(new URL(text)) };
    if (text.startsWith("opfs:")) return { kind: "opfs", path: decodeURIComponent(new URL(text).pathname) };
    if (platform.isPath("/")) return { kind: "path", path: text };
    throw new LowbitError(
      "invalid_argument",
      `${text}: there are no paths here; give a directory handle, {opfs: "folder"}, or a function that makes streams`,
    );
  }
  if (typeof target === "object" && target !== null) {
    if (isDirectory(target)) return { kind: "directory", handle: target };
    if ("opfs" in target && typeof target.opfs === "string") return { kind: "opfs", path: target.opfs };
  }
  throw new LowbitError("invalid_argument", "expected a target: memory, a path, a directory handle, {opfs}, or a function");
}
