/** The models that callers hold by number. Each does one thing at a time. */
import { LowbitError } from "../errors.js";
import type { HeldCheckpoint } from "./checkpoints.js";
import { stopIfAborted, type Job } from "./jobs.js";
import type { EngineModel } from "./modules.js";

export interface HeldModel {
  handle: EngineModel;
  checkpoint: HeldCheckpoint;
  /** The end of the work that was asked for last. */
  queue: Promise<unknown>;
}

export class Models {
  readonly #held = new Map<number, HeldModel>();
  #nextId = 1;

  get(id: number): HeldModel {
    const held = this.#held.get(id);
    if (held === undefined) throw new LowbitError("invalid_argument", "the model was disposed of");
    return held;
  }

  keep(handle: EngineModel, checkpoint: HeldCheckpoint): number {
    const id = this.#nextId++;
    this.#held.set(id, { handle, checkpoint, queue: Promise.resolve() });
    return id;
  }

  /** Does `work` after everything that the model was asked before. */
  queued<T>(model: HeldModel, job: Job, work: () => Promise<T>): Promise<T> {
    const run = model.queue.then(() => {
      stopIfAborted(job);
      return work();
    });
    model.queue = run.catch(() => {});
    return run;
  }

  /** Frees a model once what it is doing has ended. */
  async dispose(id: number): Promise<void> {
    const held = this.#held.get(id);
    this.#held.delete(id);
    await held?.queue.catch(() => {});
    held?.handle.free();
  }
}
