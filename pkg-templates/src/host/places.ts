/** Opens the places that callers name, for the engine to write. What is there to write to is in `targets.ts` and `folders.ts`. */
import { LowbitError } from "../errors.js";
import { MemoryFolder } from "../folders.js";
import type { HostPlatform, TargetFolder } from "../platform.js";
import { callerTarget, directoryTarget, opfsDirectory } from "../targets.js";
import type { ClientFunctions, TargetSpec } from "../wire.js";
import { unlessAborted, type Job } from "./jobs.js";

/** A place that is written. */
export interface Place {
  target: TargetFolder;
  readable: boolean;
  memory?: MemoryFolder;
  /** A folder of that name inside it. */
  inside(name: string): Promise<Place>;
}

/** What a caller named, for one job to write. */
export async function openPlace(
  target: TargetSpec, platform: HostPlatform, caller: ClientFunctions, job: Job,
): Promise<Place> {
  const open = (other: TargetSpec) => openPlace(other, platform, caller, job);
  switch (target.kind) {
    case "memory": {
      const memory = new MemoryFolder("memory");
      return { target: memory, readable: true, memory, inside: () => open(target) };
    }
    case "path": {
      if (platform.targetAtPath === undefined) {
        throw new LowbitError("invalid_argument", `${target.path}: there are no paths here; give a directory handle`);
      }
      const inside = (name: string) => open({ kind: "path", path: `${target.path}/${name}` });
      return { target: tidied(await platform.targetAtPath(target.path), job), readable: true, inside };
    }
    case "opfs":
      return open({ kind: "directory", handle: await opfsDirectory(target.path) });
    case "directory": {
      const { handle } = target;
      const inside = async (name: string) =>
        open({ kind: "directory", handle: await handle.getDirectoryHandle(name, { create: true }) });
      return { target: tidied(directoryTarget(handle), job), readable: true, inside };
    }
    case "remote": {
      const inside = () => Promise.reject(new LowbitError("invalid_argument", "streams hold no folders"));
      return { target: stoppable(callerTarget(target.id, caller), job), readable: false, inside };
    }
  }
}

/** A folder whose unfinished files are gone when the job is over. */
function tidied(target: TargetFolder, job: Job): TargetFolder {
  return {
    ...target,
    create: async (file) => {
      const sink = await target.create(file);
      return { ...sink, abort: () => job.after(sink.abort()) };
    },
  };
}

/** A folder whose writers are the caller's, who may let the engine wait for ever: then a job that was told to stop does not. */
function stoppable(target: TargetFolder, job: Job): TargetFolder {
  return {
    ...target,
    create: async (file) => {
      const creating = target.create(file);
      try {
        const sink = await unlessAborted(job.signal, () => creating);
        return {
          write: (bytes) => unlessAborted(job.signal, () => sink.write(bytes)),
          finish: () => unlessAborted(job.signal, () => sink.finish()),
          abort: () => sink.abort(),
        };
      } catch (error) {
        // A writer that comes too late is given up at once.
        void creating.then((sink) => sink.abort(), () => {});
        throw error;
      }
    },
  };
}
