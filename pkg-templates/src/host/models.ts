/** Loaded models by number. Each handles one request at a time. */
import { LowbitError } from "../errors.js";
import { useHeld, type HeldCheckpoint } from "./checkpoints.js";
import { unlessAborted, type Job } from "./jobs.js";
import type { EngineModel } from "./modules.js";
import { Shared } from "./shared.js";

export interface HeldModel {
  handle: EngineModel;
  /** Held as long as the model, for its tokenizer. */
  checkpoint: HeldCheckpoint;
  /** Settles when the latest request and all before it have ended. */
  queue: Promise<unknown>;
  shared: Shared;
}

export class Models {
  readonly #held = new Map<number, HeldModel>();
  #nextId = 1;

  /** Runs work with a model. It stays loaded until that ends, even if the caller disposes of it. */
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

  /** Runs `work` after all earlier requests to the model. */
  queued<T>(model: HeldModel, job: Job, work: () => Promise<T>): Promise<T> {
    const before = model.queue;
    const run = unlessAborted(job.signal, () => before).then(work);
    // A request that is cancelled while it waits must not let later ones overtake earlier ones.
    model.queue = Promise.allSettled([before, run]);
    return run;
  }

  /** Frees a model after its current work has ended. */
  dispose(id: number): void {
    const held = this.#held.get(id);
    this.#held.delete(id);
    held?.shared.release();
  }

  end(): void {
    for (const id of [...this.#held.keys()]) this.dispose(id);
  }
}
