/**
 * Connection to the engine's thread: starts the thread on first use, runs calls and jobs on it, and ends it.
 *
 * Not here: the calls themselves (`engine.ts`, `checkpoint.ts`, `model.ts`), and the caller's files and targets that
 * the engine uses (`lent.ts`).
 */
import { asLowbitError, cancelled, LowbitError } from "../errors.js";
import type { ClientPlatform, Thread } from "../platform.js";
import { Reporter } from "../progress.js";
import type { Remotes } from "../specs.js";
import type { AutoEvent, JobOptions } from "../types.js";
import { connect, type ClientFunctions, type GivenModules, type HostFunctions } from "../wire.js";
import { Lent } from "./lent.js";

/** Milliseconds that an engine has to stop its work and clean up before its thread is terminated. */
const GRACE_MS = 2000;

/** The functions of the engine side. */
export type Remote = ReturnType<typeof connect<HostFunctions, ClientFunctions>>;

/** The listeners of a job. */
interface Job {
  told?: (event: AutoEvent) => void;
  reporter?: Reporter;
  piece?: (text: string, tokenId: number) => Promise<void>;
}

/** Listeners besides progress. */
export type Hears = Pick<Job, "piece" | "told">;

/** An engine's thread and all calls to it. */
export class Connection {
  readonly #platform: ClientPlatform;
  readonly #modules: GivenModules | undefined;
  /** Whether the engine runs in its own thread. */
  readonly inWorker: boolean;
  #started: Promise<{ thread: Thread; remote: Remote }> | undefined;
  /** Why the engine is unusable; `undefined` while it works. */
  #failure: LowbitError | undefined;
  #ending: Promise<void> | undefined;
  readonly #jobs = new Map<number, Job>();
  /** Objects in use. Keeps them from garbage collection, which would dispose of them on the engine side. */
  readonly #used = new Set<readonly object[]>();
  readonly #lent = new Lent();
  #pending = 0;
  #nextJob = 1;
  /** Disposes of objects that were garbage collected. */
  readonly #registry = new FinalizationRegistry<() => void>((forget) => forget());

  constructor(platform: ClientPlatform, inWorker: boolean, modules: GivenModules | undefined) {
    this.#platform = platform;
    this.inWorker = inWorker;
    this.#modules = modules;
  }

  /** Whether the engine is unusable. */
  get failed(): boolean {
    return this.#failure !== undefined;
  }

  /** A registry of the caller's objects that the engine reaches by number. */
  lend(): Remotes {
    return this.#lent.keep(this.inWorker);
  }

  /** Calls `forget` once: when `holder` is garbage collected, or when the returned function is called. */
  watch(holder: object, forget: () => void): () => void {
    const once = { done: false };
    const run = () => {
      if (once.done) return;
      once.done = true;
      this.#registry.unregister(once);
      forget();
    };
    this.#registry.register(holder, run, once);
    return run;
  }

  /** Runs a job, which can be cancelled and reports progress. `uses` are the objects that it needs. */
  async run<T>(
    { onProgress, signal }: JobOptions,
    uses: readonly object[],
    work: (remote: Remote, job: number) => Promise<T>,
    hears: Hears = {},
  ): Promise<T> {
    if (signal?.aborted) throw cancelled(signal.reason);
    const id = this.#nextJob++;
    const reporter = onProgress && new Reporter(onProgress);
    this.#jobs.set(id, { ...(reporter && { reporter }), ...hears });
    const abort = () => this.tell((remote) => remote.abort(id));
    signal?.addEventListener("abort", abort, { once: true });
    try {
      return await this.ask(uses, (remote) => work(remote, id));
    } catch (error) {
      const known = asLowbitError(error);
      throw known.code === "cancelled" && signal?.aborted ? cancelled(signal.reason) : known;
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#jobs.delete(id);
      reporter?.end();
    }
  }

  /** Calls the engine without a job. */
  async ask<T>(objects: readonly object[], work: (remote: Remote) => Promise<T>): Promise<T> {
    // A new array, so that each call has its own entry in the set.
    const uses = [...objects];
    this.#used.add(uses);
    try {
      return await this.#ask(work);
    } finally {
      this.#used.delete(uses);
    }
  }

  async #ask<T>(work: (remote: Remote) => Promise<T>): Promise<T> {
    if (this.#failure !== undefined) throw this.#failure;
    this.#started ??= this.#start();
    let started;
    try {
      started = await this.#started;
    } catch (error) {
      this.#started = undefined;
      throw asLowbitError(error);
    }
    if (this.#failure !== undefined) {
      await this.#ending;
      throw this.#failure;
    }
    const { thread, remote } = started;
    this.#hold(thread, true);
    try {
      return await work(remote);
    } catch (error) {
      const known = asLowbitError(error);
      if (known.code === "internal" && this.#failure === undefined) {
        this.#failure = known;
        void this.dispose();
      }
      // Work that was stopped by the engine's end fails with that reason, after the engine has ended.
      await this.#ending;
      throw this.#failure ?? known;
    } finally {
      this.#hold(thread, false);
    }
  }

  /** Counts pending calls. The thread keeps the program alive while there is one. */
  #hold(thread: Thread, more: boolean): void {
    this.#pending += more ? 1 : -1;
    if (this.#pending === (more ? 1 : 0)) thread.hold(more);
  }

  /** Calls the engine if it runs. Ignores failures. */
  tell(work: (remote: Remote) => Promise<unknown>): void {
    if (this.#started === undefined || this.#failure !== undefined) return;
    void this.#ask(work).catch(() => {});
  }

  /** Ends the thread. Pending and later calls fail with `invalid_argument`. */
  dispose(): Promise<void> {
    this.#failure ??= new LowbitError("invalid_argument", "the engine was disposed of");
    this.#ending ??= this.#end(this.#failure);
    return this.#ending;
  }

  async #end(failure: LowbitError): Promise<void> {
    const started = this.#started;
    this.#started = undefined;
    const { thread, remote } = (await started?.catch(() => undefined)) ?? {};
    if (thread === undefined || remote === undefined) return;
    this.#hold(thread, true);
    await within(GRACE_MS, remote.end());
    this.#hold(thread, false);
    remote.$close(failure);
    this.#lent.abandon(failure);
    await thread.terminate();
  }

  async #start(): Promise<{ thread: Thread; remote: Remote }> {
    const thread = this.inWorker ? this.#platform.startWorker() : await this.#platform.startHere();
    const remote = connect<HostFunctions, ClientFunctions>(thread.port, {
      progress: (job, progress) => this.#jobs.get(job)?.reporter?.take(progress),
      told: (job, event) => reported(() => this.#jobs.get(job)?.told?.(event)),
      piece: async (job, text, tokenId) => this.#jobs.get(job)?.piece?.(text, tokenId),
      ...this.#lent.functions,
    });
    thread.onFailure((error) => {
      const text = (error as { message?: string } | undefined)?.message ?? "its worker ended";
      this.#failure ??= new LowbitError("internal", `the engine broke down: ${text}`, { cause: error });
      remote.$close(this.#failure);
      this.#lent.abandon(this.#failure);
    });
    if (this.#modules !== undefined) {
      this.#hold(thread, true);
      try {
        await remote.use(this.#modules);
      } catch (error) {
        this.#failure ??= asLowbitError(error);
        await thread.terminate();
        throw this.#failure;
      } finally {
        this.#hold(thread, false);
      }
    }
    return { thread, remote };
  }
}

/** Waits for `work`, at most for the given time. Ignores failures. */
async function within(milliseconds: number, work: Promise<unknown>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, milliseconds)));
  await Promise.race([work.catch(() => {}), late]);
  clearTimeout(timer);
}

/** Calls a listener. Its exceptions become uncaught errors of the program, as for any event listener. */
function reported(listener: () => void): void {
  try {
    listener();
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}
