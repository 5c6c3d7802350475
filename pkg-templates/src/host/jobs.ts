/** Running jobs: cancellation and progress. */
import { cancelled, LowbitError } from "../errors.js";
import type { HostPlatform } from "../platform.js";
import type { ClientFunctions } from "../wire.js";
import type { Readers } from "./readers.js";

/** A running job. */
export class Job {
  readonly #stop = new AbortController();
  readonly #after: Promise<unknown>[] = [];

  /** Aborts when the job is cancelled. */
  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  stop(): void {
    this.#stop.abort();
  }

  /** Adds cleanup that must finish before the job counts as ended. */
  after(tidying: Promise<unknown> | void): void {
    if (tidying !== undefined) this.#after.push(tidying);
  }

  /** Waits for the cleanup. Ignores its failures: the job's own result is known already. */
  async tidied(): Promise<void> {
    await Promise.allSettled(this.#after);
  }
}

export class Jobs {
  readonly #platform: HostPlatform;
  readonly #caller: () => ClientFunctions;
  /** Jobs by the caller's numbers. */
  readonly #named = new Map<number, Job>();
  readonly #running = new Map<Job, Promise<unknown>>();
  #ended = false;

  constructor(platform: HostPlatform, caller: () => ClientFunctions) {
    this.#platform = platform;
    this.#caller = caller;
  }

  /** Runs a job. With a number, its caller can cancel it. */
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

  /** Cancels a job at its next step. */
  abort(id: number): void {
    this.#named.get(id)?.stop();
  }

  /** Cancels all jobs, and waits for their end. */
  async end(): Promise<void> {
    this.#ended = true;
    for (const job of this.#running.keys()) job.stop();
    await Promise.allSettled(this.#running.values());
  }

  /** A job's progress and cancellation, for the engine's bindings. */
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

/** Throws `cancelled` if the signal is aborted. */
export function stopIfAborted(signal: AbortSignal): void {
  if (signal.aborted) throw cancelled();
}

/** The result of `work`, or `cancelled` as soon as the signal aborts: the caller's code may never finish. */
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
