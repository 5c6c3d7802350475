/** Folders that can be read anywhere: in memory, behind a directory handle, with the caller. Those behind a URL are in `urls.ts`. */
import { asLowbitError, LowbitError } from "./errors.js";
import type { Folder, OpenFile, Sink, TargetFolder } from "./platform.js";
import type { ClientFunctions, FileSpec } from "./wire.js";

/**
 * The parts of a file's name inside a folder, which may be in folders of that one. Names come from files that anyone may have
 * written: nothing passes that leads out of the folder on any platform. Windows leaves out dots and spaces at a part's end, so there
 * is none of nothing else.
 */
export function partsOf(file: string): string[] {
  const parts = file.split("/");
  if (!parts.some((part) => /^[. ]*$|[\\:\p{Cc}]/u.test(part))) return parts;
  throw new LowbitError("invalid_argument", `expected the name of a file inside the folder but found ${JSON.stringify(file.slice(0, 120))}`);
}

/** Bytes in one piece. */
export function bytesFile(name: string, bytes: Uint8Array): OpenFile {
  return { name, size: bytes.length, read: async (offset, length) => bytes.subarray(offset, offset + length) };
}

/** A `Blob` or a `File`. */
export function blobFile(name: string, blob: Blob): OpenFile {
  return {
    name,
    size: blob.size,
    read: async (offset, length) => {
      try {
        return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      } catch (error) {
        // Browsers say this of a file that was changed or removed since it was chosen.
        const gone = (error as { name?: string }).name === "NotReadableError";
        if (gone) throw new LowbitError("changed", `${name}: the file changed or went away while it was read`);
        throw asLowbitError(error, name);
      }
    },
  };
}

/** What is needed of the caller's thread. */
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

/** Files by name. */
export function filesFolder(name: string, files: Record<string, FileSpec>, caller: Caller): Folder {
  return {
    name,
    open: async (file) => {
      const spec = Object.hasOwn(files, file) ? files[file] : undefined;
      return spec && specFile(file, spec, caller);
    },
  };
}

/** A handle of a folder on disk or of the browser's private file system. */
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

/** A folder in the thread's own memory, outside the engine's. */
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

/** Pieces in one. */
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
