/** Opens the places that callers name, for the engine to write. What is there to write to is in `targets.ts` and `folders.ts`. */
import { LowbitError } from "../errors.js";
import { directoryFolder, MemoryFolder } from "../folders.js";
import type { Folder, HostPlatform, TargetFolder } from "../platform.js";
import { callerTarget, directoryTarget, EMPTY, opfsDirectory } from "../targets.js";
import type { ClientFunctions, TargetSpec } from "../wire.js";

/** A place that is written, and the same place to read from. */
export interface Place {
  target: TargetFolder;
  existing: Folder;
  readable: boolean;
  memory?: MemoryFolder;
  /** A folder of that name inside it. */
  inside(name: string): Promise<Place>;
}

export async function openPlace(target: TargetSpec, platform: HostPlatform, caller: ClientFunctions): Promise<Place> {
  const open = (other: TargetSpec) => openPlace(other, platform, caller);
  switch (target.kind) {
    case "memory": {
      const memory = new MemoryFolder("memory");
      return { target: memory, existing: memory, readable: true, memory, inside: () => open(target) };
    }
    case "path": {
      if (platform.targetAtPath === undefined) {
        throw new LowbitError("invalid_argument", `${target.path}: there are no paths here; give a directory handle`);
      }
      const inside = (name: string) => open({ kind: "path", path: `${target.path}/${name}` });
      return { ...(await platform.targetAtPath(target.path)), readable: true, inside };
    }
    case "opfs":
      return open({ kind: "directory", handle: await opfsDirectory(target.path) });
    case "directory": {
      const { handle } = target;
      const inside = async (name: string) =>
        open({ kind: "directory", handle: await handle.getDirectoryHandle(name, { create: true }) });
      return { target: directoryTarget(handle), existing: directoryFolder(handle), readable: true, inside };
    }
    case "remote": {
      const inside = () => Promise.reject(new LowbitError("invalid_argument", "streams hold no folders"));
      return { target: callerTarget(target.id, caller), existing: EMPTY, readable: false, inside };
    }
  }
}
