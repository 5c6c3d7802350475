/**
 * Folders that every platform can read: in memory, behind a directory handle, on the caller's side. URLs are in
 * `urls.ts`.
 */
import { asLowbitError, LowbitError } from "./errors.js";
import type { Folder, OpenFile, Sink, TargetFolder } from "./platform.js";
import type { ClientFunctions, FileSpec } from "./wire.js";

/**
 * Splits a file's path inside a folder into its parts. Paths come from untrusted files, so any part that could lead out
 * of the folder on any platform is refused. Windows drops trailing dots and spaces, so a part of only these is refused
 * too.
 */
export function partsOf(file: string): string[] {
  const parts = file.split("/");
  if (!parts.some((part) => /^[. ]*$|[\\:\p{Cc}]/u.test(part))) return parts;
  throw new LowbitError("invalid_argument", `expected the name of a file inside the folder but found ${JSON.stringify(file.slice(0, 120))}`);
}

/** A file of bytes in memory. */
export function bytesFile(name: string, bytes: Uint8Array): OpenFile {
  return { name, size: bytes.length, read: async (offset, length) => bytes.subarray(offset, offset + length) };
}

/** A file of a `Blob` or a `File`. */
export function blobFile(name: string, blob: Blob): OpenFile {
  return {
    name,
    size: blob.size,
    read: async (offset, length) => {
      try {
        return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      } catch (error) {
        // Browsers throw this for a file that was changed or removed after the user chose it.
        const gone = (error as { name?: string }).name === "NotReadableError";
        if (gone) throw new LowbitError("changed", `${name}: the file changed or disappeared while it was read`);
        throw asLowbitError(error, name);
      }
    },
  };
}

/** The functions that are needed from the caller's side. */
type Caller = Pick<ClientFunctions, "readFile" | "fetchRange">;

export function specFile(name: string, spec: FileSpec, caller: Caller): OpenFile {
  switch (spec.kind) {
    case "bytes":
      return bytesFile(name, spec.bytes);
    case "blob":
      return blobFile(name, spec.blob);
    case "remote":
      return { name, size: spec.size, read: (offset, length) => caller.readFile(spec.id, offset, length) };
  }
}

/** A folder of files by name. */
export function filesFolder(name: string, files: Record<string, FileSpec>, caller: Caller): Folder {
  return {
    name,
    open: async (file) => {
      const spec = Object.hasOwn(files, file) ? files[file] : undefined;
      return spec && specFile(file, spec, caller);
    },
  };
}

/** A folder behind a handle, on disk or in the browser's private file system (OPFS). */
export function directoryFolder(handle: FileSystemDirectoryHandle): Folder {
  return {
    name: handle.name || "folder",
    open: async (file) => {
      const parts = partsOf(file);
      const last = parts.pop()!;
      try {
        let folder = handle;
        for (const part of parts) folder = await folder.getDirectoryHandle(part);
        return blobFile(file, await (await folder.getFileHandle(last)).getFile());
      } catch (error) {
        const name = (error as { name?: string }).name;
        if (name === "NotFoundError" || name === "TypeMismatchError") return undefined;
        throw asLowbitError(error, file);
      }
    },
  };
}

/** A folder in the thread's memory, outside the engine's. */
export class MemoryFolder implements Folder, TargetFolder {
  readonly #files = new Map<string, Uint8Array>();

  constructor(readonly name: string) {}

  get existing(): Folder {
    return this;
  }

  async open(file: string): Promise<OpenFile | undefined> {
    const bytes = this.#files.get(file);
    return bytes && bytesFile(file, bytes);
  }

  async create(file: string): Promise<Sink> {
    let pieces: Uint8Array[] = [];
    return {
      write: async (bytes) => void pieces.push(bytes),
      finish: async () => {
        this.#files.set(file, joined(pieces));
        pieces = [];
      },
      abort: () => {
        pieces = [];
      },
    };
  }

  async remove(file: string): Promise<void> {
    this.#files.delete(file);
  }

  async removeUnfinished(): Promise<void> {}

  /** Copies of all files, by name. */
  copies(): Record<string, Uint8Array> {
    return Object.fromEntries([...this.#files].map(([name, bytes]) => [name, bytes.slice()]));
  }
}

/** Concatenates pieces. Throws `storage_full` if they do not fit in memory. */
export function joined(pieces: readonly Uint8Array[]): Uint8Array {
  if (pieces.length === 1) return pieces[0]!;
  try {
    const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let at = 0;
    for (const piece of pieces) {
      whole.set(piece, at);
      at += piece.length;
    }
    return whole;
  } catch (error) {
    throw new LowbitError("storage_full", "the file does not fit in memory; give a `target`", { cause: error });
  }
}
