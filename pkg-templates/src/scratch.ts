/** Scratch space in the thread's memory, outside the engine's, as pieces of equal length; and in OPFS. */
import { asLowbitError, LowbitError } from "./errors.js";
import type { Scratch } from "./platform.js";

const PIECE = 1 << 22;

interface Blob {
  size: number;
  pieces: Uint8Array[];
}

export function memoryScratch(): Scratch {
  const blobs = new Map<string, Blob>();
  const each = (offset: number, length: number, visit: (piece: number, start: number, at: number, part: number) => void) => {
    for (let done = 0; done < length; ) {
      const start = (offset + done) % PIECE;
      const part = Math.min(length - done, PIECE - start);
      visit(Math.floor((offset + done) / PIECE), start, done, part);
      done += part;
    }
  };
  return {
    writeAt: async (name, offset, bytes) => {
      const blob = blobs.get(name) ?? { size: 0, pieces: [] };
      if (offset > blob.size) throw new LowbitError("invalid_argument", `scratch blob ${name}: the write would leave a gap`);
      blobs.set(name, blob);
      try {
        each(offset, bytes.length, (piece, start, at, part) => {
          (blob.pieces[piece] ??= new Uint8Array(PIECE)).set(bytes.subarray(at, at + part), start);
        });
      } catch (error) {
        throw new LowbitError("storage_full", `no memory for scratch blob ${name}`, { cause: error });
      }
      blob.size = Math.max(blob.size, offset + bytes.length);
    },
    readAt: async (name, offset, length) => {
      const blob = blobs.get(name);
      if (blob === undefined) throw new LowbitError("not_found", `there is no scratch blob ${name}`);
      if (offset + length > blob.size) throw new LowbitError("io", `scratch blob ${name} ends at ${blob.size}`);
      const out = new Uint8Array(length);
      each(offset, length, (piece, start, at, part) => out.set(blob.pieces[piece]!.subarray(start, start + part), at));
      return out;
    },
    size: async (name) => blobs.get(name)?.size,
    delete: async (name) => void blobs.delete(name),
    names: async () => [...blobs.keys()],
    dispose: async () => blobs.clear(),
  };
}

/** A `FileSystemSyncAccessHandle`: reads and writes an OPFS file in place. Exists only in workers. */
interface SyncHandle {
  read(bytes: Uint8Array, options: { at: number }): number;
  write(bytes: Uint8Array, options: { at: number }): number;
  getSize(): number;
  flush(): void;
  close(): void;
}

async function syncHandle(file: FileSystemHandle): Promise<SyncHandle> {
  const { createSyncAccessHandle: open } = file as { createSyncAccessHandle?: () => Promise<SyncHandle> };
  if (open === undefined) {
    throw new LowbitError("invalid_argument", "resuming from the private file system (OPFS) needs an engine that runs in a worker");
  }
  return open.call(file);
}

/** Scratch space in a folder of the browser's private file system (OPFS), where it is kept. */
export async function opfsScratch(folder: FileSystemDirectoryHandle): Promise<Scratch> {
  const blobs = new Map<string, SyncHandle>();
  for await (const [name, entry] of folder.entries()) {
    if (entry.kind === "file") blobs.set(name, await syncHandle(entry));
  }
  const found = (name: string) => {
    const blob = blobs.get(name);
    if (blob === undefined) throw new LowbitError("not_found", `there is no scratch blob ${name}`);
    return blob;
  };
  return {
    writeAt: async (name, offset, bytes) => {
      if (offset > (blobs.get(name)?.getSize() ?? 0)) throw new LowbitError("invalid_argument", `scratch blob ${name}: the write would leave a gap`);
      try {
        if (!blobs.has(name)) blobs.set(name, await syncHandle(await folder.getFileHandle(name, { create: true })));
        const blob = found(name);
        if (blob.write(bytes, { at: offset }) !== bytes.length) throw new Error("the write was incomplete");
        blob.flush();
      } catch (error) {
        throw asLowbitError(error, `scratch blob ${name}`);
      }
    },
    readAt: async (name, offset, length) => {
      const out = new Uint8Array(length);
      if (found(name).read(out, { at: offset }) === length) return out;
      throw new LowbitError("io", `scratch blob ${name} ends at ${found(name).getSize()}`);
    },
    size: async (name) => blobs.get(name)?.getSize(),
    delete: async (name) => {
      blobs.get(name)?.close();
      if (blobs.delete(name)) await folder.removeEntry(name);
    },
    names: async () => [...blobs.keys()],
    dispose: async () => blobs.forEach((blob) => blob.close()),
  };
}
