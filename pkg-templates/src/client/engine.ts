/// <reference lib="esnext.disposable" preserve="true" />
/**
 * The engine as users of the package see it.
 *
 * Objects on this side are handles of objects on the engine side. Not here: the work itself (`host.ts` and the Rust
 * crate).
 */
import { LowbitError } from "../errors.js";
import type { ClientPlatform } from "../platform.js";
import type { AutoRequest, QuantizeRequest } from "../options.generated.js";
import { calibrationRequest, expect, jobOptions, onlyKnown, optionsOf, plain } from "../requests.js";
import { keptSpec, sourceSpec, targetSpec, type Remotes } from "../specs.js";
import type { GivenModules, Searched, TargetSpec, Written } from "../wire.js";
import type {
  AttemptSummary, AutoOptions, CachedFile, Capabilities, CheckpointSource, CompareOptions, Comparison, ConvertOptions, ConvertSummary,
  DequantizeOptions, DequantizeSummary, EngineOptions, JobOptions, LoadOptions, OpenOptions, Plan, PlanOptions, QuantizeOptions, QuantizeSummary, Summary,
  ValidateOptions, ValidationReport,
} from "../types.js";
import { Checkpoint, idOf, Output } from "./checkpoint.js";
import { Connection, type Remote } from "./connection.js";
import { Model } from "./model.js";

/** Cached downloads. */
export interface DownloadCache {
  /** All files with cached parts. */
  list(): Promise<CachedFile[]>;
  /** Deletes the cached parts of the file at a URL, or of all files. */
  delete(url?: string): Promise<void>;
}

/** The result of `auto`. */
export interface AutoResult {
  /** The first attempt that is good enough; `undefined` if none is. */
  accepted: Output<AttemptSummary> | undefined;
  /** What to do next, in one sentence. */
  recommendation: string;
  /** All attempts, in order. Dispose of the outputs that you do not need. */
  attempts: { name: string; output: Output<AttemptSummary>; report: ValidationReport }[];
  /** The content of `quantization_summary.json`. */
  summary: Summary;
}

const OPEN_OPTIONS = ["gptqZeros", "allowUnknown", "tokenizer", "revision", "headers", "fetch", "cache", "signal"];

/**
 * The engine: WebAssembly modules, by default in their own worker. The package's functions share one engine. Create
 * others with `createEngine` to run several jobs at once, or to free all memory with `dispose`.
 *
 * Every method rejects with `invalid_argument` for a wrong or unknown option, and after `dispose`. Jobs reject with
 * `cancelled` if their `signal` aborts.
 */
export class Engine {
  readonly #platform: ClientPlatform;
  /** @internal */
  readonly connection: Connection;

  /** @internal Call `createEngine`. */
  constructor(platform: ClientPlatform, options: EngineOptions & { modules?: GivenModules } = {}) {
    const { worker = true, modules } = optionsOf("createEngine", options);
    onlyKnown("createEngine", options, ["worker", "modules"]);
    expect(typeof worker === "boolean", "createEngine", "`worker` to be true or false", worker);
    this.#platform = platform;
    this.connection = new Connection(platform, worker, modules);
  }

  /**
   * Opens a checkpoint. Reads its configuration and the headers of its files, not the weights.
   *
   * Rejects with `not_found` if a file is missing, `unsupported_model` or `unsupported_format` for an unsupported
   * feature, `invalid_checkpoint` if files contradict each other, `unfinished_output` if their writer was stopped.
   */
  async openCheckpoint(source: CheckpointSource, options: OpenOptions = {}): Promise<Checkpoint> {
    onlyKnown("openCheckpoint", optionsOf("openCheckpoint", options), OPEN_OPTIONS);
    const [given, job] = jobOptions("openCheckpoint", options as OpenOptions & JobOptions);
    const { tokenizer, gptqZeros, allowUnknown } = given;
    const request = plain("openCheckpoint", { gptqZeros, allowUnknown });
    const remotes = this.connection.lend();
    try {
      const spec = sourceSpec(source, given, this.#platform, remotes);
      const codec = tokenizer === undefined ? undefined : sourceSpec(tokenizer, given, this.#platform, remotes);
      const opened = await this.connection.run(job, [], (remote, id) => remote.open(id, spec, codec, request));
      return new Checkpoint(this, opened, remotes.forget);
    } catch (error) {
      remotes.forget();
      throw error;
    }
  }

  /**
   * Quantizes a checkpoint. The result is a checkpoint too.
   *
   * Rejects with `out_of_memory` before it starts if calibration needs more than `memory`; `storage_full` if the target
   * is full.
   */
  async quantize(checkpoint: Checkpoint, options: QuantizeOptions = {}): Promise<Output<QuantizeSummary>> {
    const [{ target, calibration, resume, ...rest }, job] = jobOptions("quantize", options);
    const learns = calibration !== undefined && { calibration: calibrationRequest("quantize", calibration) };
    const request: QuantizeRequest = plain("quantize", { ...rest, ...learns });
    const source = this.#id(checkpoint);
    return this.#write([checkpoint], target, job, (remote, id, place, remotes) => {
      const kept = resume === undefined ? undefined : keptSpec(resume, this.#platform, remotes);
      return remote.quantize(id, source, request, kept, place);
    });
  }

  /**
   * Writes a floating-point checkpoint from a quantized one, for further training. With `texts`, also measures how
   * often the quantized model, its dequantized form and the `original`, if given, predict the same tokens.
   *
   * Rejects with `invalid_argument` if the checkpoint is not quantized.
   */
  async dequantize(checkpoint: Checkpoint, options: DequantizeOptions & { original?: Checkpoint } = {}): Promise<Output<DequantizeSummary>> {
    const [{ target, original, ...rest }, job] = jobOptions("dequantize", options);
    const request = plain("dequantize", rest);
    const [source, other] = [this.#id(checkpoint), original && this.#id(original)];
    const uses = original === undefined ? [checkpoint] : [checkpoint, original];
    return this.#write(uses, target, job, (remote, id, place) => remote.dequantize(id, source, other, request, place));
  }

  /**
   * Converts a checkpoint to another tool's format.
   *
   * Rejects with `unsupported_format` if the format would lose something and `strict` is set.
   */
  async convert(checkpoint: Checkpoint, options: ConvertOptions): Promise<Output<ConvertSummary>> {
    const [{ target, ...rest }, job] = jobOptions("convert", options);
    const request = plain("convert", rest);
    const source = this.#id(checkpoint);
    return this.#write([checkpoint], target, job, (remote, id, place) => remote.convert(id, source, request, place));
  }

  /**
   * Loads a model onto the GPU or the CPU.
   *
   * Rejects with `no_device` if the requested device is missing, `out_of_memory` if the model does not fit.
   */
  async loadModel(checkpoint: Checkpoint, options: LoadOptions = {}): Promise<Model> {
    const [rest, job] = jobOptions("loadModel", options);
    const request = plain("loadModel", rest);
    const source = this.#id(checkpoint);
    const loaded = await this.connection.run(job, [checkpoint], (remote, id) => remote.load(id, source, request));
    return new Model(this.connection, checkpoint, loaded);
  }

  /**
   * Measures a quantized model and its original, and gives a verdict with a recommendation. A bad result does not
   * reject: its report has `accepted: false`.
   */
  async validate(original: Checkpoint, quantized: Checkpoint, options: ValidateOptions): Promise<ValidationReport> {
    const [rest, job] = jobOptions("validate", options);
    const request = plain("validate", rest);
    const [a, b] = [this.#id(original), this.#id(quantized)];
    return this.connection.run(job, [original, quantized], (remote, id) => remote.validate(id, a, b, request));
  }

  /** Quantizes and validates until the quality is good enough. Tries more samples, mixed precision, then INT8. */
  async auto(checkpoints: Checkpoint | readonly Checkpoint[], options: AutoOptions): Promise<AutoResult> {
    const [given, job] = jobOptions("auto", options);
    const { calibration, target, onEvent, ...rest } = given;
    expect(onEvent === undefined || typeof onEvent === "function", "auto", "`onEvent` to be a function", onEvent);
    const learns = calibration !== undefined && { calibration: calibrationRequest("auto", calibration) };
    const request: AutoRequest = plain("auto", { ...rest, ...learns });
    const list: unknown = checkpoints instanceof Checkpoint ? [checkpoints] : checkpoints;
    expect(Array.isArray(list), "auto", "a checkpoint or some of them", list);
    const sources = list.map((each: Checkpoint) => this.#id(each));
    const remotes = this.connection.lend();
    let searched: Searched;
    try {
      const place = targetSpec(target, this.#platform, remotes);
      searched = await this.connection.run(job, list, (remote, id) => remote.auto(id, sources, request, place), { told: onEvent });
    } finally {
      remotes.forget();
    }
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

  /** Continues the same prompts with two models, and reports where their outputs first differ. */
  async compare(a: Checkpoint, b: Checkpoint, options: CompareOptions): Promise<Comparison[]> {
    const [rest, job] = jobOptions("compare", options);
    const request = plain("compare", rest);
    const [first, second] = [this.#id(a), this.#id(b)];
    return this.connection.run(job, [a, b], (remote, id) => remote.compare(id, first, second, request));
  }

  /**
   * Estimates the memory in bytes that a checkpoint, or a model with a number of parameters, needs at each precision.
   */
  async plan(subject: Checkpoint | number, options: PlanOptions = {}): Promise<Plan> {
    const request = plain("plan", optionsOf("plan", options));
    if (typeof subject === "number") {
      expect(Number.isSafeInteger(subject) && subject > 0, "plan", "a number of parameters", subject);
      return this.connection.ask([], (remote) => remote.planParameters(subject, request));
    }
    const checkpoint = this.#id(subject);
    return this.connection.ask([subject], (remote) => remote.plan(checkpoint, request));
  }

  /**
   * Lists the devices that can run models here. Compares every GPU adapter with the CPU first, which takes a moment.
   */
  async capabilities(): Promise<Capabilities> {
    const found = await this.connection.ask([], (remote) => remote.capabilities());
    return { ...found, worker: this.connection.inWorker };
  }

  /** Cached downloads. */
  readonly cache: DownloadCache = {
    list: () => this.connection.ask([], (remote) => remote.listCache()),
    delete: async (url) => {
      expect(url === undefined || typeof url === "string", "cache.delete", "the text of a URL", url);
      return this.connection.ask([], (remote) => remote.deleteCache(url));
    },
  };

  /** Ends the engine and its thread, and frees all memory. Its checkpoints, outputs and models become unusable. */
  dispose(): Promise<void> {
    return this.connection.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  /** The number of a checkpoint of this engine; throws for another engine's. */
  #id(checkpoint: Checkpoint): number {
    const id = idOf(checkpoint);
    if (checkpoint.engine === this) return id;
    throw new LowbitError("invalid_argument", "the checkpoint belongs to another engine");
  }

  async #write<T>(
    sources: readonly Checkpoint[],
    target: QuantizeOptions["target"],
    options: JobOptions,
    work: (remote: Remote, job: number, place: TargetSpec, remotes: Remotes) => Promise<Written<T>>,
  ): Promise<Output<T>> {
    const remotes = this.connection.lend();
    try {
      const place = targetSpec(target, this.#platform, remotes);
      const written = await this.connection.run(options, sources, (remote, job) => work(remote, job, place, remotes));
      return new Output(this, written);
    } finally {
      remotes.forget();
    }
  }
}
