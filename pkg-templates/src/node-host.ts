/** The engine side's platform in Node, Deno and Bun. */
import { createHash, randomBytes } from "node:crypto";
import { mkdir, mkdtemp, open, readdir, readFile, rename, rm, rmdir, stat, writeFile, type FileHandle } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { setImmediate } from "node:timers/promises";
import { asLowbitError, LowbitError } from "./errors.js";
import { partsOf } from "./folders.js";
import type { Folder, HostPlatform, OpenFile, Scratch, Sink, Store, TargetFolder } from "./platform.js";

/** Suffix of unfinished files, the same as the command line's. */
const UNFINISHED = ".lowbit.tmp";

/** Closes files that were garbage collected. */
const handles = new FinalizationRegistry<FileHandle>((handle) => void handle.close().catch(() => {}));

async function readFully(handle: FileHandle, out: Uint8Array, offset: number, place: string): Promise<void> {
  for (let done = 0; done < out.length; ) {
    const { bytesRead } = await handle.read(out, done, out.length - done, offset + done);
    if (bytesRead === 0) throw new LowbitError("io", `${place}: the file ends at ${offset + done}`);
    done += bytesRead;
  }
}

async function openFile(path: string, name: string): Promise<OpenFile | undefined> {
  let handle: FileHandle;
  let size: number;
  try {
    const found = await stat(path);
    if (!found.isFile()) throw new LowbitError("invalid_argument", `${path}: expected a file but found something else`);
    size = found.size;
    handle = await open(path);
  } catch (error) {
    const { code } = error as { code?: string };
    // ENOTDIR: a part of the path is a file instead of a folder.
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw asLowbitError(error, path);
  }
  const file: OpenFile = {
    name,
    size,
    read: async (offset, length) => {
      try {
        const out = new Uint8Array(length);
        await readFully(handle, out, offset, path);
        return out;
      } catch (error) {
        throw asLowbitError(error, path);
      }
    },
  };
  handles.register(file, handle);
  return file;
}

function folder(path: string): Folder {
  return {
    name: path,
    open: async (file) => {
      const place = join(path, ...partsOf(file));
      return openFile(place, place);
    },
  };
}

function expanded(path: string): string {
  return path === "~" || path.startsWith("~/") ? join(homedir(), path.slice(1)) : path;
}

function target(path: string): TargetFolder {
  const place = (error: unknown, file: string) => asLowbitError(error, join(path, file));
  return {
    name: path,
    existing: folder(path),
    create: async (file): Promise<Sink> => {
      const final = join(path, file);
      const unfinished = join(path, `.${file}.${randomBytes(6).toString("hex")}${UNFINISHED}`);
      let handle: FileHandle;
      try {
        await mkdir(path, { recursive: true });
        handle = await open(unfinished, "wx", 0o666);
      } catch (error) {
        throw place(error, file);
      }
      const clear = () => handle.close().catch(() => {}).then(() => rm(unfinished, { force: true })).catch(() => {});
      return {
        write: async (bytes) => {
          try {
            for (let done = 0; done < bytes.length; ) done += (await handle.write(bytes, done)).bytesWritten;
          } catch (error) {
            throw place(error, file);
          }
        },
        finish: async () => {
          try {
            await handle.sync();
            await handle.close();
            await rename(unfinished, final);
          } catch (error) {
            await clear();
            throw place(error, file);
          }
        },
        abort: clear,
      };
    },
    remove: async (file) => {
      try {
        await rm(join(path, file), { force: true });
      } catch (error) {
        throw place(error, file);
      }
    },
    removeUnfinished: async () => {
      const names = await readdir(path).catch(() => [] as string[]);
      for (const name of names.filter((name) => name.endsWith(UNFINISHED))) await rm(join(path, name), { force: true });
    },
  };
}

/** Scratch blobs as files of a folder. `known` exist already. */
function folderScratch(path: string, known: [string, FileHandle, number][], end: () => Promise<unknown>): Scratch {
  const blobs = new Map(known.map(([name, handle, size]) => [name, { handle, size }]));
  const place = (name: string) => join(path, ...partsOf(name));
  const found = (name: string) => {
    const blob = blobs.get(name);
    if (blob === undefined) throw new LowbitError("not_found", `there is no scratch blob ${name}`);
    return blob;
  };
  return {
    writeAt: async (name, offset, bytes) => {
      let blob = blobs.get(name);
      try {
        if (offset > (blob?.size ?? 0)) throw new LowbitError("invalid_argument", `scratch blob ${name}: the write would leave a gap`);
        if (blob === undefined) {
          blob = { handle: await open(place(name), "wx+", 0o600), size: 0 };
          blobs.set(name, blob);
        }
        for (let done = 0; done < bytes.length; ) {
          done += (await blob.handle.write(bytes, done, bytes.length - done, offset + done)).bytesWritten;
        }
        blob.size = Math.max(blob.size, offset + bytes.length);
      } catch (error) {
        throw asLowbitError(error, path);
      }
    },
    readAt: async (name, offset, length) => {
      const out = new Uint8Array(length);
      await readFully(found(name).handle, out, offset, `scratch blob ${name}`);
      return out;
    },
    size: async (name) => blobs.get(name)?.size,
    delete: async (name) => {
      const blob = blobs.get(name);
      blobs.delete(name);
      await blob?.handle.close();
      await rm(place(name), { force: true });
    },
    names: async () => [...blobs.keys()],
    dispose: async () => {
      for (const { handle } of blobs.values()) await handle.close().catch(() => {});
      await end().catch(() => {});
    },
  };
}

/** Scratch space in a new folder in the system's temporary folder. */
async function scratch(): Promise<Scratch> {
  const path = await mkdtemp(join(tmpdir(), "lowbit-"));
  return folderScratch(path, [], () => rm(path, { recursive: true, force: true }));
}

/** Scratch space in a folder that is kept unless it is empty at the end. */
async function keptScratch(path: string): Promise<Scratch> {
  try {
    await mkdir(path, { recursive: true });
    const known: [string, FileHandle, number][] = [];
    for (const entry of await readdir(path, { withFileTypes: true })) {
      if (!entry.isFile()) continue;
      const handle = await open(join(path, entry.name), "r+");
      known.push([entry.name, handle, (await handle.stat()).size]);
    }
    return folderScratch(path, known, () => rmdir(path));
  } catch (error) {
    throw asLowbitError(error, path);
  }
}

/** A store in the user's cache folder: `NAME.bin` holds the bytes, `NAME.key` the key. */
async function store(): Promise<Store> {
  const folder = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "lowbit");
  const place = (key: string, end: string) => join(folder, createHash("sha256").update(key).digest("hex") + end);
  const write = async (path: string, bytes: Uint8Array | string) => {
    const unfinished = `${path}.${randomBytes(6).toString("hex")}${UNFINISHED}`;
    await writeFile(unfinished, bytes);
    await rename(unfinished, path);
  };
  return {
    get: async (key) => {
      const bytes = await readFile(place(key, ".bin")).catch(() => undefined);
      return bytes && new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
    },
    put: async (key, bytes) => {
      await mkdir(folder, { recursive: true });
      await write(place(key, ".bin"), bytes);
      await write(place(key, ".key"), key);
    },
    keys: async () => {
      const names = await readdir(folder).catch(() => [] as string[]);
      const keys = names.filter((name) => name.endsWith(".key"));
      return Promise.all(keys.map((name) => readFile(join(folder, name), "utf8")));
    },
    delete: async (key) => {
      await rm(place(key, ".key"), { force: true });
      await rm(place(key, ".bin"), { force: true });
    },
  };
}

/** The used part of the optional package `webgpu`. */
interface Dawn {
  create(options: string[]): unknown;
  globals: object;
}

/**
 * Defines the globals that wgpu requires before it uses `navigator.gpu`: `Window` or `WorkerGlobalScope`. Node has
 * neither, and before version 21 no `navigator`.
 */
function looksLikeABrowser(): void {
  const scope = globalThis as { Window?: unknown; WorkerGlobalScope?: unknown; navigator?: object };
  if (scope.Window === undefined && scope.WorkerGlobalScope === undefined) scope.Window = class Window {};
  scope.navigator ??= {};
}

async function prepareGpu(): Promise<void> {
  looksLikeABrowser();
  const scope = globalThis as { navigator?: { gpu?: unknown } };
  if (scope.navigator?.gpu !== undefined) return;
  let dawn: Dawn;
  try {
    // A literal name would make bundlers require the optional package.
    const name = "webgpu";
    dawn = (await import(name)) as Dawn;
  } catch (error) {
    throw new LowbitError("no_device", "WebGPU is not available; `npm install webgpu` adds it", { cause: error });
  }
  for (const [name, value] of Object.entries(Object.getOwnPropertyDescriptors(dawn.globals))) {
    if (!(name in globalThis)) Object.defineProperty(globalThis, name, value);
  }
  Object.defineProperty(scope.navigator!, "gpu", { value: dawn.create([]), configurable: true });
}

looksLikeABrowser();

export const platform: HostPlatform = {
  module: async (name) => readFile(new URL(`./${name}_bg.wasm`, import.meta.url)),
  openPath: async (path) => {
    const place = expanded(path);
    try {
      if ((await stat(place)).isDirectory()) return { folder: folder(place) };
    } catch (error) {
      throw asLowbitError(error, place);
    }
    const file = await openFile(place, place);
    if (file === undefined) throw new LowbitError("not_found", `${place}: there is no such file`);
    return { file };
  },
  targetAtPath: async (path) => {
    const place = resolve(expanded(path));
    if (basename(place) === "") throw new LowbitError("invalid_argument", `${path}: expected a folder other than the root`);
    return target(place);
  },
  scratch,
  keptScratch: async (place) => {
    if ("path" in place) return keptScratch(resolve(expanded(place.path)));
    throw new LowbitError("invalid_argument", "the private file system (OPFS) is not available here; give a path");
  },
  store,
  prepareGpu,
  turn: () => setImmediate(),
};
