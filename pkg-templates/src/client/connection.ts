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
  #failure: LowbitError | undefined;
  readonly #jobs = new Map<number, Job>();
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

  /** Keeps things of the caller's that the engine's side reaches by number. */
  lend(): Remotes {
    return this.#lent.keep();
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

  /** Work that can be stopped, and tells how far it is. */
  async run<T>(
    { onProgress, signal }: JobOptions,
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
      return await this.ask((remote) => work(remote, id));
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
  async ask<T>(work: (remote: Remote) => Promise<T>): Promise<T> {
    if (this.#failure !== undefined) throw this.#failure;
    this.#started ??= this.#start();
    let started;
    try {
      started = await this.#started;
    } catch (error) {
      this.#started = undefined;
      throw asLowbitError(error);
    }
    const { thread, remote } = started;
    this.#pending += 1;
    if (this.#pending === 1) thread.hold(true);
    try {
      return await work(remote);
    } catch (error) {
      throw asLowbitError(error);
    } finally {
      this.#pending -= 1;
      if (this.#pending === 0) thread.hold(false);
    }
  }

  /** Tells the engine's side, if it still runs, and hears of no failure. */
  tell(work: (remote: Remote) => Promise<unknown>): void {
    if (this.#started === undefined || this.#failure !== undefined) return;
    void this.ask(work).catch(() => {});
  }

  /** Ends the thread. Whatever is asked or waited for fails. */
  async dispose(): Promise<void> {
    this.#failure ??= new LowbitError("invalid_argument", "the engine was disposed of");
    const started = this.#started;
    this.#started = undefined;
    const { thread, remote } = (await started?.catch(() => undefined)) ?? {};
    remote?.$close(this.#failure);
    thread?.terminate();
  }

  async #start(): Promise<{ thread: Thread; remote: Remote }> {
    const thread = this.inWorker ? this.#platform.startWorker() : await this.#platform.startHere();
    const remote = connect<HostFunctions, ClientFunctions>(thread.port, {
      progress: (job, progress) => this.#jobs.get(job)?.reporter?.take(progress),
      told: (job, event) => this.#jobs.get(job)?.told?.(event),
      piece: async (job, text, tokenId) => this.#jobs.get(job)?.piece?.(text, tokenId),
      ...this.#lent.functions,
    });
    thread.onFailure((error) => {
      const text = (error as { message?: string } | undefined)?.message ?? "its worker ended";
      this.#failure ??= new LowbitError("internal", `the engine broke down: ${text}`, { cause: error });
      remote.$close(this.#failure);
    });
    if (this.#modules !== undefined) await remote.use(this.#modules);
    return { thread, remote };
  }
}
