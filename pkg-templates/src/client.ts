/// <reference lib="esnext.disposable" preserve="true" />
/**
 * The caller's side: what users of the package hold in their hands.
 *
 * Every object here stands for something that the engine's side holds. Not here: how it is done (`host.ts`, and the Rust crate).
 */
import type { ByteStream } from "./ambient.js";
import { asLowbitError, cancelled, LowbitError } from "./errors.js";
import { fetchWith } from "./folders.js";
import type { ClientPlatform, Thread } from "./platform.js";
import { Reporter } from "./progress.js";
import { calibrationRequest, onlyKnown, plain, tokenIds } from "./requests.js";
import { sourceSpec, targetSpec, unshared, type Remotes } from "./specs.js";
import { connect, type CheckpointRef, type ClientFunctions, type GivenModules, type HostFunctions, type Written } from "./wire.js";
import type {
  AttemptSummary, AutoEvent, AutoOptions, CachedFile, Capabilities, ChatMessage, CheckpointInfo, CheckpointSource, CompareOptions, Comparison,
  ConvertOptions,
  ConvertSummary, DequantizeOptions, EngineOptions, FileWriter, GenerateOptions, GenerateResult, JobOptions, LoadOptions,
  ModelInfo, OpenOptions, PerplexityOptions, PerplexityResult, Plan, PlanOptions, QuantizeOptions, QuantizeSummary,
  RandomAccessFile, Summary, ValidateOptions, ValidationReport,
} from "./types.js";

/** Work that was asked for. */
interface Job {
  told?: (event: AutoEvent) => void;
  reporter?: Reporter;
  piece?: (text: string, tokenId: number) => Promise<void>;
}

type Remote = ReturnType<typeof connect<HostFunctions, ClientFunctions>>;

/** Downloads that are kept from one visit to the next. */
export interface DownloadCache {
  /** Every file of which anything is kept. */
  list(): Promise<CachedFile[]>;
  /** Forgets the file of a URL, or everything. */
  delete(url?: string): Promise<void>;
}

/**
 * The engine: WebAssembly modules, in a worker of their own unless told otherwise. One is made when it is first needed; make
 * others with `createEngine` to run several jobs at once, or to give memory back with `dispose`.
 */
export class Engine {
  readonly #platform: ClientPlatform;
  readonly #inWorker: boolean;
  readonly #modules: GivenModules | undefined;
  #started: Promise<{ thread: Thread; remote: Remote }> | undefined;
  #failure: LowbitError | undefined;
  readonly #jobs = new Map<number, Job>();
  readonly #files = new Map<number, RandomAccessFile>();
  readonly #fetches = new Map<number, ReturnType<typeof fetchWith>>();
  readonly #targets = new Map<number, (file: string) => unknown>();
  readonly #writers = new Map<number, FileWriter>();
  #pending = 0;
  #nextId = 1;
  /** Forgets what nobody holds any more. */
  readonly #registry = new FinalizationRegistry<() => void>((forget) => forget());

  /** @internal Engines are made by `createEngine`. */
  constructor(platform: ClientPlatform, options: EngineOptions & { modules?: GivenModules } = {}) {
    onlyKnown("createEngine", options, ["worker", "modules"]);
    this.#platform = platform;
    this.#inWorker = options.worker ?? true;
    this.#modules = options.modules;
  }

  /** Opens a checkpoint: its configuration and the headers of its files, never the weights. */
  async openCheckpoint(source: CheckpointSource, options: OpenOptions = {}): Promise<Checkpoint> {
    onlyKnown("openCheckpoint", options, ["gptqZeros", "tokenizer", "revision", "headers", "fetch", "cache", "signal"]);
    const { tokenizer, signal, gptqZeros } = options;
    const remotes = this.#remotes();
    const spec = sourceSpec(source, options, this.#platform, remotes);
    const codec = tokenizer === undefined ? undefined : sourceSpec(tokenizer, options, this.#platform, remotes);
    const opened = await this.#run({ signal }, (remote, job) => remote.open(job, spec, codec, gptqZeros === undefined ? {} : { gptqZeros }));
    return new Checkpoint(this, opened, remotes.forget);
  }

  /** Quantizes a checkpoint. The result can be used as a checkpoint at once. */
  async quantize(checkpoint: Checkpoint, options: QuantizeOptions = {}): Promise<Output<QuantizeSummary>> {
    const { target, onProgress, signal, calibration, ...rest } = options;
    const request = plain("quantize", { ...rest, ...(calibration && { calibration: calibrationRequest(calibration) }) });
    return this.#write(target, { onProgress, signal }, (remote, job, place) =>
      remote.quantize(job, idOf(checkpoint), request, place),
    );
  }

  /** Writes an ordinary floating-point checkpoint from a quantized one, for training to go on from. */
  async dequantize(checkpoint: Checkpoint, options: DequantizeOptions = {}): Promise<Output<object>> {
    onlyKnown("dequantize", options, ["dtype", "target", "onProgress", "signal"]);
    const { target, dtype = "f16", ...job } = options;
    return this.#write(target, job, (remote, id, place) => remote.dequantize(id, idOf(checkpoint), dtype, place));
  }

  /** Spells a checkpoint as other tools do. */
  async convert(checkpoint: Checkpoint, options: ConvertOptions): Promise<Output<ConvertSummary>> {
    const { target, onProgress, signal, ...rest } = options;
    const request = plain("convert", rest);
    return this.#write(target, { onProgress, signal }, (remote, job, place) =>
      remote.convert(job, idOf(checkpoint), request, place),
    );
  }

  /** Loads a model onto a device. */
  async loadModel(checkpoint: Checkpoint, options: LoadOptions = {}): Promise<Model> {
    const { onProgress, signal, ...rest } = options;
    const request = plain("loadModel", rest);
    const loaded = await this.#run({ onProgress, signal }, (remote, job) => remote.load(job, idOf(checkpoint), request));
    return new Model(this, checkpoint, loaded);
  }

  /** Judges a quantized model against its original. */
  async validate(original: Checkpoint, quantized: Checkpoint, options: ValidateOptions): Promise<ValidationReport> {
    const { texts, onProgress, signal, ...rest } = options;
    const text = typeof texts === "string" ? texts : (texts ?? []).join("\n\n");
    const request = plain("validate", { ...rest, text });
    return this.#run({ onProgress, signal }, (remote, job) =>
      remote.validate(job, idOf(original), idOf(quantized), request),
    );
  }

  /** Quantizes and validates, and tries the next thing until the quality is good enough. */
  async auto(checkpoints: Checkpoint | readonly Checkpoint[], options: AutoOptions): Promise<AutoResult> {
    const { texts, name, calibration, target, validate, onEvent, onProgress, signal, ...rest } = options;
    const list = checkpoints instanceof Checkpoint ? [checkpoints] : checkpoints;
    const text = typeof texts === "string" ? texts : (texts ?? []).join("\n\n");
    const request = plain("auto", {
      ...rest,
      ...(calibration && { calibration: calibrationRequest(calibration) }),
      validate: { ...validate, text, ...(name !== undefined && { name }) },
    });
    const remotes = this.#remotes();
    const place = targetSpec(target, this.#platform, remotes);
    const searched = await this.#run(
      { onProgress, signal },
      (remote, job) => remote.auto(job, list.map(idOf), request, place),
      { told: onEvent },
    );
    const { outcome } = searched;
    const attempts = searched.attempts.map(({ name, written }, index) => ({
      name, output: new Output(this, written), report: outcome.reports[index]!,
    }));
    return {
      attempts,
      accepted: attempts.find(({ name }) => name === outcome.summary.outcome?.accepted)?.output,
      recommendation: outcome.summary.outcome?.recommendation ?? "",
      summary: outcome.summary,
    };
  }

  /** Lets two models continue the same prompts. */
  async compare(a: Checkpoint, b: Checkpoint, options: CompareOptions): Promise<Comparison[]> {
    const { onProgress, signal, ...rest } = options;
    const request = plain("compare", rest);
    return this.#run({ onProgress, signal }, (remote, job) => remote.compare(job, idOf(a), idOf(b), request));
  }

  /** What a checkpoint, or a model of so many parameters, needs at each precision. */
  async plan(subject: Checkpoint | number, options: PlanOptions = {}): Promise<Plan> {
    const request = plain("plan", options) as PlanOptions;
    return this.#call((remote) =>
      typeof subject === "number" ? remote.planParameters(subject, request) : remote.plan(idOf(subject), request),
    );
  }

  /** What models can run on here. Every GPU adapter is checked against the CPU, which takes a moment. */
  async capabilities(): Promise<Capabilities> {
    const found = await this.#call((remote) => remote.capabilities());
    return { ...found, worker: this.#inWorker };
  }

  /** What is kept of downloads. */
  readonly cache: DownloadCache = {
    list: () => this.#call((remote) => remote.listCache()),
    delete: (url) => this.#call((remote) => remote.deleteCache(url)),
  };

  /** Ends the engine and its thread, and gives all memory back. What it held cannot be used any more. */
  async dispose(): Promise<void> {
    this.#failure ??= new LowbitError("invalid_argument", "the engine was disposed of");
    const started = this.#started;
    this.#started = undefined;
    const { thread, remote } = (await started?.catch(() => undefined)) ?? {};
    remote?.$close(this.#failure);
    thread?.terminate();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  /** @internal */
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

  /** @internal Asks the engine's side without a job. */
  async ask<T>(work: (remote: Remote) => Promise<T>): Promise<T> {
    return this.#call(work);
  }

  /** @internal Tells the engine's side, if it still runs, and hears of no failure. */
  tell(work: (remote: Remote) => Promise<unknown>): void {
    const started = this.#started;
    if (started === undefined || this.#failure !== undefined) return;
    void this.#call(work).catch(() => {});
  }

  /** @internal */
  run<T>(options: JobOptions, work: (remote: Remote, job: number) => Promise<T>, piece?: Job["piece"]): Promise<T> {
    return this.#run(options, work, piece && { piece });
  }

  async #write<T>(
    target: QuantizeOptions["target"],
    options: JobOptions,
    work: (remote: Remote, job: number, place: ReturnType<typeof targetSpec>) => Promise<Written<T>>,
  ): Promise<Output<T>> {
    const remotes = this.#remotes();
    try {
      const place = targetSpec(target, this.#platform, remotes);
      const written = await this.#run(options, (remote, job) => work(remote, job, place));
      return new Output(this, written);
    } finally {
      remotes.forget();
    }
  }

  /** Things of the caller's that the engine's side reaches by number. */
  #remotes(): Remotes {
    const ids: number[] = [];
    const keep = <T>(map: Map<number, T>, value: T): number => {
      const id = this.#nextId++;
      ids.push(id);
      map.set(id, value);
      return id;
    };
    return {
      file: (file) => keep(this.#files, file),
      fetch: (fetcher, headers) => keep(this.#fetches, fetchWith(headers, fetcher)),
      target: (create) => keep(this.#targets, create),
      forget: () => ids.forEach((id) => [this.#files, this.#fetches, this.#targets].forEach((map) => map.delete(id))),
    };
  }

  async #run<T>(
    { onProgress, signal }: JobOptions,
    work: (remote: Remote, job: number) => Promise<T>,
    hears: Pick<Job, "piece" | "told"> = {},
  ): Promise<T> {
    if (signal?.aborted) throw cancelled(signal.reason);
    const id = this.#nextId++;
    const reporter = onProgress && new Reporter(onProgress);
    this.#jobs.set(id, { ...(reporter && { reporter }), ...hears });
    const abort = () => this.tell((remote) => remote.abort(id));
    signal?.addEventListener("abort", abort, { once: true });
    try {
      return await this.#call((remote) => work(remote, id));
    } catch (error) {
      const known = asLowbitError(error);
      throw known.code === "cancelled" && signal?.aborted ? cancelled(signal.reason) : known;
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#jobs.delete(id);
      reporter?.end();
    }
  }

  async #call<T>(work: (remote: Remote) => Promise<T>): Promise<T> {
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

  async #start(): Promise<{ thread: Thread; remote: Remote }> {
    const thread = this.#inWorker ? this.#platform.startWorker() : await this.#platform.startHere();
    const remote = connect<HostFunctions, ClientFunctions>(thread.port, this.#functions());
    thread.onFailure((error) => {
      const text = (error as { message?: string } | undefined)?.message ?? "its worker ended";
      this.#failure ??= new LowbitError("internal", `the engine broke down: ${text}`, { cause: error });
      remote.$close(this.#failure);
    });
    if (this.#modules !== undefined) await remote.use(this.#modules);
    return { thread, remote };
  }

  #functions(): ClientFunctions {
    const writer = (id: number): FileWriter => {
      const found = this.#writers.get(id);
      if (found === undefined) throw new LowbitError("io", "the file is not being written any more");
      return found;
    };
    return {
      progress: (job, progress) => this.#jobs.get(job)?.reporter?.take(progress),
      told: (job, event) => this.#jobs.get(job)?.told?.(event),
      piece: async (job, text, tokenId) => this.#jobs.get(job)?.piece?.(text, tokenId),
      readFile: async (id, offset, length) => {
        const file = this.#files.get(id);
        if (file === undefined) throw new LowbitError("io", "the file is not open any more");
        const bytes: unknown = await file.read(offset, length);
        if (bytes instanceof Uint8Array) return unshared(bytes);
        throw new LowbitError("invalid_argument", "expected `read` to give a Uint8Array but found something else");
      },
      fetchRange: async (id, url, range, ifRange) => {
        const get = this.#fetches.get(id);
        if (get === undefined) throw new LowbitError("io", "the checkpoint is not open any more");
        return get(url, range, ifRange);
      },
      createFile: async (target, file) => {
        const create = this.#targets.get(target);
        if (create === undefined) throw new LowbitError("io", "the target is not open any more");
        const made = await create(file);
        if (!isStream(made) && !isWriter(made)) {
          throw new LowbitError("invalid_argument", `${file}: expected a stream or a writer but found something else`);
        }
        const id = this.#nextId++;
        this.#writers.set(id, isStream(made) ? made.getWriter() : made);
        return id;
      },
      writeFile: async (id, bytes) => void (await writer(id).write(bytes)),
      closeFile: async (id) => {
        const closing = writer(id);
        this.#writers.delete(id);
        await closing.close();
      },
      abortFile: async (id) => {
        const aborting = writer(id);
        this.#writers.delete(id);
        await aborting.abort?.(cancelled());
      },
    };
  }
}

function isStream(made: unknown): made is ByteStream {
  return typeof (made as { getWriter?: unknown } | null)?.getWriter === "function";
}

function isWriter(made: unknown): made is FileWriter {
  const { write, close } = (made ?? {}) as Partial<FileWriter>;
  return typeof write === "function" && typeof close === "function";
}

const ids = new WeakMap<Checkpoint, number | undefined>();

function idOf(checkpoint: Checkpoint): number {
  if (!(checkpoint instanceof Checkpoint)) {
    throw new LowbitError("invalid_argument", "expected a checkpoint, as openCheckpoint gives it");
  }
  const id = ids.get(checkpoint);
  if (id !== undefined) return id;
  throw new LowbitError(
    "invalid_argument",
    checkpoint.readable
      ? "the checkpoint was disposed of"
      : "the result was written to streams, which this package cannot read; open it from where it went",
  );
}

/** An open checkpoint: what it is, and its tokenizer. Models are loaded from it with `loadModel`. */
export class Checkpoint {
  /** @internal */
  readonly engine: Engine;
  readonly #info: CheckpointInfo | undefined;
  readonly #forget: () => void;

  /** @internal */
  constructor(engine: Engine, opened: CheckpointRef | undefined, forget: () => void = () => {}) {
    this.engine = engine;
    this.#info = opened?.info;
    ids.set(this, opened?.id);
    const id = opened?.id;
    this.#forget = engine.watch(this, () => {
      forget();
      if (id !== undefined) engine.tell((remote) => remote.disposeCheckpoint(id));
    });
  }

  /** Whether this package can read it: false for a result that went to streams. */
  get readable(): boolean {
    return this.#info !== undefined;
  }

  /** Architecture, sizes, number formats. */
  get info(): CheckpointInfo {
    if (this.#info === undefined) idOf(this);
    return this.#info!;
  }

  /** The ids of a prompt, with the tokens that the model expects in front. */
  tokenize(text: string): Promise<Uint32Array> {
    return this.engine.ask((remote) => remote.encode(idOf(this), text));
  }

  /** The text of ids, without special tokens. */
  detokenize(ids: Uint32Array | readonly number[]): Promise<string> {
    return this.engine.ask((remote) => remote.decode(idOf(this), tokenIds(ids)));
  }

  /** Gives back what the engine holds for it. Models that were loaded from it go on. */
  dispose(): void {
    ids.set(this, undefined);
    this.#forget();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What a job wrote: a checkpoint, unless it went to streams, and the record of the job. */
export class Output<T> extends Checkpoint {
  /** What was done, and what was lost by it. */
  readonly summary: T;
  readonly #folder: number | undefined;

  /** @internal */
  constructor(engine: Engine, written: Written<T>) {
    super(engine, written.checkpoint);
    this.summary = written.summary;
    this.#folder = written.folder;
  }

  /** Copies of the files, by name, of a result that was kept in memory. */
  async files(): Promise<Record<string, Uint8Array>> {
    const folder = this.#folder;
    if (folder === undefined) {
      throw new LowbitError("invalid_argument", "the files are at the target; only results in memory are handed out");
    }
    idOf(this);
    return this.engine.ask((remote) => remote.files(folder));
  }
}

/** How a search ended. */
export interface AutoResult {
  /** The result that is good enough; `undefined` where none is. */
  accepted: Output<AttemptSummary> | undefined;
  /** What to do now. */
  recommendation: string;
  /** Everything that was tried, in that order. Dispose of what is not needed. */
  attempts: { name: string; output: Output<AttemptSummary>; report: ValidationReport }[];
  /** As `quantization_summary.json` has it. */
  summary: Summary;
}

/** A model on a device. It does one thing at a time; what is asked meanwhile waits. */
export class Model {
  readonly #engine: Engine;
  #id: number | undefined;
  readonly #forget: () => void;
  /** Where and how it runs. */
  readonly info: ModelInfo;
  /** What it was loaded from. */
  readonly checkpoint: Checkpoint;
  /** Whether the checkpoint has a chat template. */
  readonly canChat: boolean;

  /** @internal */
  constructor(engine: Engine, checkpoint: Checkpoint, loaded: { id: number; info: ModelInfo; chat: boolean }) {
    this.#engine = engine;
    this.#id = loaded.id;
    this.info = loaded.info;
    this.checkpoint = checkpoint;
    this.canChat = loaded.chat;
    const { id } = loaded;
    this.#forget = engine.watch(this, () => engine.tell((remote) => remote.disposeModel(id)));
  }

  get #held(): number {
    if (this.#id === undefined) throw new LowbitError("invalid_argument", "the model was disposed of");
    return this.#id;
  }

  /** Continues a prompt: text, or token ids that are taken as they are. */
  generate(prompt: string | Uint32Array | readonly number[], options: GenerateOptions = {}): Generation {
    return new Generation("generate", options, async (request, job, piece) => {
      const given = typeof prompt === "string" ? prompt : tokenIds(prompt);
      return this.#engine.run(job, (remote, id) => remote.generate(id, this.#held, given, request), piece);
    });
  }

  /** Answers the last message of a chat, by the checkpoint's template. */
  chat(messages: readonly ChatMessage[], options: GenerateOptions = {}): Generation {
    return new Generation("chat", options, async (request, job, piece) => {
      const given = plain("chat", messages) as ChatMessage[];
      return this.#engine.run(job, (remote, id) => remote.chat(id, this.#held, given, request), piece);
    });
  }

  /** The logits after each token: one array of `vocab_size` for each id. */
  async logits(ids: Uint32Array | readonly number[], options: JobOptions = {}): Promise<Float32Array[]> {
    onlyKnown("logits", options, ["onProgress", "signal"]);
    const given = tokenIds(ids);
    const all = await this.#engine.run(options, (remote, job) => remote.logits(job, this.#held, given));
    const width = this.info.vocab_size;
    return Array.from(given, (_, row) => all.subarray(row * width, (row + 1) * width));
  }

  /** The logarithm of each token's probability after those before it; the first has none. */
  async logprobs(ids: Uint32Array | readonly number[], options: JobOptions = {}): Promise<Float64Array> {
    const rows = await this.logits(ids, options);
    return Float64Array.from(rows.slice(0, -1), (row, at) => {
      const largest = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
      const sum = row.reduce((total, value) => total + Math.exp(value - largest), 0);
      return row[Number(ids[at + 1])]! - largest - Math.log(sum);
    });
  }

  /** How well the model predicts a text. */
  async perplexity(text: string, options: PerplexityOptions = {}): Promise<PerplexityResult> {
    const { onProgress, signal, ...rest } = options;
    const request = plain("perplexity", { ...rest, text });
    return this.#engine.run({ onProgress, signal }, (remote, job) => remote.perplexity(job, this.#held, request));
  }

  /** The ids of a prompt, with the tokens that the model expects in front. */
  tokenize(text: string): Promise<Uint32Array> {
    return this.checkpoint.tokenize(text);
  }

  /** The text of ids, without special tokens. */
  detokenize(ids: Uint32Array | readonly number[]): Promise<string> {
    return this.checkpoint.detokenize(ids);
  }

  /** Gives the model's memory back, on the GPU too, once what it is doing has ended. */
  dispose(): void {
    this.#id = undefined;
    this.#forget();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Starts a generation; pieces go to `piece`, which may make the model wait. */
type Start = (
  request: object,
  job: JobOptions,
  piece: (text: string, tokenId: number) => Promise<void>,
) => Promise<GenerateResult>;

/**
 * Text as it comes. `for await` gives pieces, and leaving the loop ends the generation; `text()` and `result()` wait for all
 * of it. It begins when it is first asked for anything.
 */
export class Generation implements AsyncIterable<string> {
  readonly #start: Start;
  readonly #what: string;
  readonly #request: object;
  readonly #job: JobOptions;
  readonly #stop = new AbortController();
  readonly #pieces: string[] = [];
  #result: Promise<GenerateResult> | undefined;
  #ended = false;
  /** Called when there is a piece, or none will come. */
  #wake: () => void = () => {};

  /** @internal */
  constructor(what: string, options: GenerateOptions, start: Start) {
    const { onProgress, signal, ...request } = options;
    this.#start = start;
    this.#what = what;
    this.#request = request;
    const either = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal;
    this.#job = { signal: either, ...(onProgress && { onProgress }) };
  }

  /** All that is known of it, once it has ended. */
  result(): Promise<GenerateResult> {
    if (this.#result === undefined) {
      const piece = async (text: string) => {
        if (text === "") return;
        this.#pieces.push(text);
        this.#wake();
      };
      const begin = async () => this.#start(plain(this.#what, this.#request), this.#job, piece);
      this.#result = begin().finally(() => {
        this.#ended = true;
        this.#wake();
      });
      // Whoever iterates hears of a failure there; it is no unhandled rejection here.
      this.#result.catch(() => {});
    }
    return this.#result;
  }

  /** The whole text. */
  async text(): Promise<string> {
    return (await this.result()).text;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, GenerateResult, undefined> {
    const result = this.result();
    try {
      for (;;) {
        const piece = this.#pieces.shift();
        if (piece !== undefined) yield piece;
        else if (this.#ended) return await result;
        else await new Promise<void>((resolve) => (this.#wake = resolve));
      }
    } finally {
      if (!this.#ended) {
        this.#stop.abort();
        await result.catch(() => {});
      }
    }
  }
}
