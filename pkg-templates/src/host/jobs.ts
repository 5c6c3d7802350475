/** Work under way on the engine's side: it can be told to stop, and tells how far it is. */
import { cancelled, LowbitError } from "../errors.js";
import type { HostPlatform } from "../platform.js";
import type { ClientFunctions } from "../wire.js";
import type { Readers } from "./readers.js";

/** Work under way. */
export class Job {
  readonly #stop = new AbortController();
  readonly #after: Promise<unknown>[] = [];

  /** Comes when the work is told to stop. */
  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  stop(): void {
    this.#stop.abort();
  }

  /** Tidying that has to be done before the work counts as ended. */
  after(tidying: Promise<unknown> | void): void {
    if (tidying !== undefined) this.#after.push(tidying);
  }

  /** Waits for the tidying. Whatever fails there is of no interest: why the work ended is known already. */
  async tidied(): Promise<void> {
    await Promise.allSettled(this.#after);
  }
}

export class Jobs {
  readonly #platform: HostPlatform;
  readonly #caller: () => ClientFunctions;
  /** By the numbers that callers gave them. */
  readonly #named = new Map<number, Job>();
  readonly #running = new Map<Job, Promise<unknown>>();
  #ended = false;

  constructor(platform: HostPlatform, caller: () => ClientFunctions) {
    this.#platform = platform;
    this.#caller = caller;
  }

  /** Does work, under a number where its caller may want to stop it. */
  async run<T>(id: number | undefined, work: (job: Job) => Promise<T>): Promise<T> {
    if (this.#ended) throw new LowbitError("invalid_argument", "the engine was disposed of");
    const job = new Job();
    if (id !== undefined) this.#named.set(id, job);
    const running = this.#run(job, work);
    this.#running.set(job, running);
    try {
      return await running;
    } finally {
      this.#running.delete(job);
      if (id !== undefined) this.#named.delete(id);
    }
  }

  async #run<T>(job: Job, work: (job: Job) => Promise<T>): Promise<T> {
    try {
      return await work(job);
    } finally {
      await job.tidied();
    }
  }

  /** Tells work to stop at its next step. */
  abort(id: number): void {
    this.#named.get(id)?.stop();
  }

  /** Stops everything; resolves when it has. */
  async end(): Promise<void> {
    this.#ended = true;
    for (const job of this.#running.keys()) job.stop();
    await Promise.allSettled(this.#running.values());
  }

  /** How the engine's bindings tell of a job's progress, and hear of its end. */
  control(id: number, job: Job, readers?: Readers) {
    return {
      progress: (phase: string, done: number, total: number, item: string) =>
        this.#caller().progress(id, { phase, done, total, item, bytes: readers?.bytes ?? 0 }),
      cancelled: () => job.signal.aborted,
      turn: () => this.#platform.turn(),
      now: () => performance.now(),
    };
  }
}

/** Fails where the signal has come. */
export function stopIfAborted(signal: AbortSignal): void {
  if (signal.aborted) throw cancelled();
}

/** What `work` gives, unless the signal comes first: code of others may take for ever. */
export async function unlessAborted<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  stopIfAborted(signal);
  let stop = () => {};
  const stopped = new Promise<never>((_, reject) => {
    stop = () => reject(cancelled());
    signal.addEventListener("abort", stop);
  });
  try {
    return await Promise.race([work(), stopped]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
