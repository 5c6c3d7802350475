/** The models that callers hold by number. Each does one thing at a time. */
import { LowbitError } from "../errors.js";
import { useHeld, type HeldCheckpoint } from "./checkpoints.js";
import { unlessAborted, type Job } from "./jobs.js";
import type { EngineModel } from "./modules.js";
import { Shared } from "./shared.js";

export interface HeldModel {
  handle: EngineModel;
  /** Stays as long as the model does, for its tokenizer. */
  checkpoint: HeldCheckpoint;
  /** The end of the work that was asked for last. */
  queue: Promise<unknown>;
  shared: Shared;
}

export class Models {
  readonly #held = new Map<number, HeldModel>();
  #nextId = 1;

  /** Does work with a model, which stays until that has ended, whoever disposes of it. */
  use<T>(job: Job, id: number, work: (held: HeldModel) => Promise<T>): Promise<T> {
    const held = this.#held.get(id);
    if (held === undefined) throw new LowbitError("invalid_argument", "the model was disposed of");
    return held.shared.during(() => useHeld(job, held.checkpoint, () => work(held)));
  }

  keep(handle: EngineModel, checkpoint: HeldCheckpoint): number {
    const id = this.#nextId++;
    checkpoint.shared.hold();
    const shared = new Shared(() => {
      handle.free();
      checkpoint.shared.release();
    });
    this.#held.set(id, { handle, checkpoint, queue: Promise.resolve(), shared });
    return id;
  }

  /** Does `work` after everything that the model was asked before. */
  queued<T>(model: HeldModel, job: Job, work: () => Promise<T>): Promise<T> {
    const before = model.queue;
    const run = unlessAborted(job.signal, () => before).then(work);
    // Who gives up waiting does not let those behind overtake those before.
    model.queue = Promise.allSettled([before, run]);
    return run;
  }

  /** Frees a model, once what it is doing has ended. */
  dispose(id: number): void {
    const held = this.#held.get(id);
    this.#held.delete(id);
    held?.shared.release();
  }

  end(): void {
    for (const id of [...this.#held.keys()]) this.dispose(id);
  }
}
