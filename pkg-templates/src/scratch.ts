/** Scratch space in the thread's memory, outside the engine's: blobs as pieces of equal length. */
import { LowbitError } from "./errors.js";
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
      if (offset > blob.size) throw new LowbitError("invalid_argument", `scratch blob ${name} would have a hole`);
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
    dispose: async () => blobs.clear(),
  };
}
