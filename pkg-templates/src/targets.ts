/** Folders that are written: behind a directory handle, and with the caller. Memory is in `folders.ts`. */
import { asLowbitError, LowbitError } from "./errors.js";
import { directoryFolder } from "./folders.js";
import type { Folder, Sink, TargetFolder } from "./platform.js";
import type { ClientFunctions } from "./wire.js";

/** How the names of unfinished files end, as the command line has it. */
const UNFINISHED = ".lowbit.tmp";

/**
 * A handle of a folder. `createWritable` writes to a copy that takes the file's place when it is closed, so a file appears
 * only when it is whole.
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
        // The empty entry that was made for the stream must not look like a file.
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
      // What a killed command line left; a browser clears its own swap files away.
      for await (const name of handle.keys()) {
        if (name.endsWith(UNFINISHED)) await remove(name);
      }
    },
  };
}

/** Writers that the caller makes. What they wrote cannot be read from here. */
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
    // Nothing was there before.
    remove: async () => {},
    removeUnfinished: async () => {},
  };
}

/** A folder without files. */
const EMPTY: Folder = { name: "target", open: async () => undefined };

/** A folder of the browser's private file system, made where it is not there yet. */
export async function opfsDirectory(path: string): Promise<FileSystemDirectoryHandle> {
  if (typeof navigator === "undefined" || navigator.storage?.getDirectory === undefined) {
    throw new LowbitError("invalid_argument", "there is no private file system (OPFS) here; give another place");
  }
  let handle = await navigator.storage.getDirectory();
  for (const name of path.split("/").filter((part) => part !== "")) {
    handle = await handle.getDirectoryHandle(name, { create: true });
  }
  return handle;
}
