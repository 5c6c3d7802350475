/** Writable folders: behind a directory handle, and with writers of the caller. Memory is in `folders.ts`. */
import { asLowbitError, LowbitError } from "./errors.js";
import { directoryFolder } from "./folders.js";
import type { Folder, Sink, TargetFolder } from "./platform.js";
import type { ClientFunctions } from "./wire.js";

/** Suffix of unfinished files, the same as the command line's. */
const UNFINISHED = ".lowbit.tmp";

/**
 * A folder behind a handle. `createWritable` writes to a copy that replaces the file on `close`, so only whole files
 * appear.
 */
export function directoryTarget(handle: FileSystemDirectoryHandle): TargetFolder {
  const place = (file: string, error: unknown) => asLowbitError(error, `${handle.name || "folder"}/${file}`);
  const remove = async (file: string) => {
    try {
      await handle.removeEntry(file);
    } catch (error) {
      if ((error as { name?: string }).name !== "NotFoundError") throw place(file, error);
    }
  };
  return {
    name: handle.name || "folder",
    existing: directoryFolder(handle),
    create: async (file): Promise<Sink> => {
      let existed = true;
      let stream: FileSystemWritableFileStream;
      try {
        await handle.getFileHandle(file).catch((error: { name?: string }) => {
          if (error.name !== "NotFoundError") throw error;
          existed = false;
        });
        const entry = await handle.getFileHandle(file, { create: true });
        stream = await entry.createWritable();
      } catch (error) {
        throw place(file, error);
      }
      return {
        write: async (bytes) => {
          try {
            await stream.write(bytes as Uint8Array<ArrayBuffer>);
          } catch (error) {
            throw place(file, error);
          }
        },
        finish: async () => {
          try {
            await stream.close();
          } catch (error) {
            if (!existed) await remove(file).catch(() => {});
            throw place(file, error);
          }
        },
        // Remove the empty file that was created for the stream.
        abort: () =>
          stream
            .abort()
            .catch(() => {})
            .then(() => (existed ? undefined : remove(file)))
            .catch(() => {}),
      };
    },
    remove,
    removeUnfinished: async () => {
      // These come from a killed command line. A browser removes its own swap files.
      for await (const name of handle.keys()) {
        if (name.endsWith(UNFINISHED)) await remove(name);
      }
    },
  };
}

/** A folder whose writers the caller creates. Its files cannot be read back. */
export function callerTarget(
  id: number,
  caller: Pick<ClientFunctions, "createFile" | "writeFile" | "closeFile" | "abortFile">,
): TargetFolder {
  return {
    name: "target",
    existing: EMPTY,
    create: async (file) => {
      const writer = await caller.createFile(id, file);
      return {
        write: (bytes) => caller.writeFile(writer, bytes),
        finish: () => caller.closeFile(writer),
        abort: () => void caller.abortFile(writer).catch(() => {}),
      };
    },
    // There are no earlier files.
    remove: async () => {},
    removeUnfinished: async () => {},
  };
}

/** A folder without files. */
const EMPTY: Folder = { name: "target", open: async () => undefined };

/** A folder of the browser's private file system (OPFS). Created if missing. */
export async function opfsDirectory(path: string): Promise<FileSystemDirectoryHandle> {
  if (typeof navigator === "undefined" || navigator.storage?.getDirectory === undefined) {
    throw new LowbitError("invalid_argument", "the private file system (OPFS) is not available here; give another place");
  }
  let handle = await navigator.storage.getDirectory();
  for (const name of path.split("/").filter((part) => part !== "")) {
    handle = await handle.getDirectoryHandle(name, { create: true });
  }
  return handle;
}
