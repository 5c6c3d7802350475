/** Work under way on the engine's side: it can be told to stop, and tells how far it is. */
import { LowbitError } from "../errors.js";
import type { HostPlatform } from "../platform.js";
import type { ClientFunctions } from "../wire.js";

/** Work under way. */
export interface Job {
  readonly id: number;
  aborted: boolean;
}

/** What is counted of a checkpoint's files. */
export interface Meter {
  /** Bytes read so far. */
  bytes: number;
  /** The work that opens the checkpoint, while it does: nothing else looks there whether it goes on. */
  opening?: Job;
}

export class Jobs {
  readonly #platform: HostPlatform;
  readonly #caller: () => ClientFunctions;
  readonly #running = new Map<number, Job>();

  constructor(platform: HostPlatform, caller: () => ClientFunctions) {
    this.#platform = platform;
    this.#caller = caller;
  }

  /** Does work under the number that its caller gave it. */
  async run<T>(id: number, work: (job: Job) => Promise<T>): Promise<T> {
    const job = { id, aborted: false };
    this.#running.set(id, job);
    try {
      return await work(job);
    } finally {
      this.#running.delete(id);
    }
  }

  /** Tells work to stop at its next step. */
  abort(id: number): void {
    const job = this.#running.get(id);
    if (job !== undefined) job.aborted = true;
  }

  /** How the engine's bindings tell of a job's progress, and hear of its end. */
  control(job: Job, meter: Meter) {
    return {
      progress: (phase: string, done: number, total: number, item: string) =>
        this.#caller().progress(job.id, { phase, done, total, item, bytes: meter.bytes }),
      cancelled: () => job.aborted,
      turn: () => this.#platform.turn(),
      now: () => performance.now(),
    };
  }
}

export function stopIfAborted(job: Job | undefined): void {
  if (job?.aborted) throw new LowbitError("cancelled", "cancelled before the end");
}
