/**
 * The way to the engine's side: starts its thread when it is first needed, asks it for work, and says when it ended.
 *
 * Not here: what is asked for (`engine.ts`, `checkpoint.ts`, `model.ts`), and what the engine's side reads and writes on the
 * caller's (`lent.ts`).
 */
import { asLowbitError, cancelled, LowbitError } from "../errors.js";
import type { ClientPlatform, Thread } from "../platform.js";
import { Reporter } from "../progress.js";
import type { Remotes } from "../specs.js";
import type { AutoEvent, JobOptions } from "../types.js";
import { connect, type ClientFunctions, type GivenModules, type HostFunctions } from "../wire.js";
import { Lent } from "./lent.js";

/** How long an engine may take to end its work and to tidy up before its thread is ended. */
const GRACE_MS = 2000;

/** The functions of the engine's side. */
export type Remote = ReturnType<typeof connect<HostFunctions, ClientFunctions>>;

/** Work that was asked for. */
interface Job {
  told?: (event: AutoEvent) => void;
  reporter?: Reporter;
  piece?: (text: string, tokenId: number) => Promise<void>;
}

/** What work tells beside its progress. */
export type Hears = Pick<Job, "piece" | "told">;

/** An engine's thread, and all talk with it. */
export class Connection {
  readonly #platform: ClientPlatform;
  readonly #modules: GivenModules | undefined;
  /** Whether the engine runs in a thread of its own. */
  readonly inWorker: boolean;
  #started: Promise<{ thread: Thread; remote: Remote }> | undefined;
  /** Why nothing can be asked for any more. */
  #failure: LowbitError | undefined;
  #ending: Promise<void> | undefined;
  readonly #jobs = new Map<number, Job>();
  /** What is used right now: it must not be collected, and so forgotten, because its program has let go of it. */
  readonly #used = new Set<readonly object[]>();
  readonly #lent = new Lent();
  #pending = 0;
  #nextJob = 1;
  /** Forgets what nobody holds any more. */
  readonly #registry = new FinalizationRegistry<() => void>((forget) => forget());

  constructor(platform: ClientPlatform, inWorker: boolean, modules: GivenModules | undefined) {
    this.#platform = platform;
    this.inWorker = inWorker;
    this.#modules = modules;
  }

  /** Whether nothing can be asked for any more. */
  get failed(): boolean {
    return this.#failure !== undefined;
  }

  /** Keeps things of the caller's that the engine's side reaches by number. */
  lend(): Remotes {
    return this.#lent.keep(this.inWorker);
  }

  /** Calls `forget` when `holder` is gone, or when what it gives is called; once. */
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

  /** Work that can be stopped, tells how far it is, and uses some objects. */
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

  /** Asks the engine's side without a job. */
  async ask<T>(objects: readonly object[], work: (remote: Remote) => Promise<T>): Promise<T> {
    // A list of its own, for each use.
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
      // Work that was stopped because the engine ends says so, and when it has.
      await this.#ending;
      throw this.#failure ?? known;
    } finally {
      this.#hold(thread, false);
    }
  }

  /** While anything is asked for, the thread keeps the program alive. */
  #hold(thread: Thread, more: boolean): void {
    this.#pending += more ? 1 : -1;
    if (this.#pending === (more ? 1 : 0)) thread.hold(more);
  }

  /** Tells the engine's side, if it still runs, and hears of no failure. */
  tell(work: (remote: Remote) => Promise<unknown>): void {
    if (this.#started === undefined || this.#failure !== undefined) return;
    void this.#ask(work).catch(() => {});
  }

  /** Ends the thread. Whatever is asked or waited for fails. */
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

/** Waits for `work`, but no longer than so many milliseconds, and hears of no failure. */
async function within(milliseconds: number, work: Promise<unknown>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, milliseconds)));
  await Promise.race([work.catch(() => {}), late]);
  clearTimeout(timer);
}

/** Calls a listener. What it throws is for the program to see, as with any listener, and not for who called. */
function reported(listener: () => void): void {
  try {
    listener();
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}
