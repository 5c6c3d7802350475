/** Opens a caller's target for a job to write. The kinds of folders are in `targets.ts` and `folders.ts`. */
import { LowbitError } from "../errors.js";
import { MemoryFolder } from "../folders.js";
import type { HostPlatform, TargetFolder } from "../platform.js";
import { callerTarget, directoryTarget, opfsDirectory } from "../targets.js";
import type { ClientFunctions, TargetSpec } from "../wire.js";
import { unlessAborted, type Job } from "./jobs.js";

/** An open target. */
export interface Place {
  target: TargetFolder;
  readable: boolean;
  memory?: MemoryFolder;
  /** Opens the folder of that name inside it. */
  inside(name: string): Promise<Place>;
}

/** Opens a target for one job. */
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
        throw new LowbitError("invalid_argument", `${target.path}: paths are not available here; give a directory handle`);
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
      const inside = () => Promise.reject(new LowbitError("invalid_argument", "a target of streams has no folders"));
      return { target: stoppable(callerTarget(target.id, caller), job), readable: false, inside };
    }
  }
}

/** A folder whose unfinished files are deleted before the job ends. */
function tidied(target: TargetFolder, job: Job): TargetFolder {
  return {
    ...target,
    create: async (file) => {
      const sink = await target.create(file);
      return { ...sink, abort: () => job.after(sink.abort()) };
    },
  };
}

/** A folder with writers of the caller. These may block forever, but a cancelled job does not wait for them. */
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
        // A writer that arrives after the cancellation is aborted at once.
        void creating.then((sink) => sink.abort(), () => {});
        throw error;
      }
    },
  };
}
