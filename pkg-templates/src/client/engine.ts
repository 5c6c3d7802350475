/// <reference lib="esnext.disposable" preserve="true" />
/**
 * The engine: what users of the package ask for work.
 *
 * Every object of this side stands for something that the engine's side holds. Not here: how it is done (`host.ts`, and the
 * Rust crate).
 */
import { LowbitError } from "../errors.js";
import type { ClientPlatform } from "../platform.js";
import { calibrationRequest, onlyKnown, plain } from "../requests.js";
import { sourceSpec, targetSpec } from "../specs.js";
import type { GivenModules, Written } from "../wire.js";
import type {
  AttemptSummary, AutoOptions, CachedFile, Capabilities, CheckpointSource, CompareOptions, Comparison, ConvertOptions, ConvertSummary,
  DequantizeOptions, EngineOptions, JobOptions, LoadOptions, OpenOptions, Plan, PlanOptions, QuantizeOptions, QuantizeSummary, Summary,
  ValidateOptions, ValidationReport,
} from "../types.js";
import { Checkpoint, idOf, Output } from "./checkpoint.js";
import { Connection, type Remote } from "./connection.js";
import { Model } from "./model.js";

/** Downloads that are kept from one visit to the next. */
export interface DownloadCache {
  /** Every file of which anything is kept. */
  list(): Promise<CachedFile[]>;
  /** Forgets the file of a URL, or everything. */
  delete(url?: string): Promise<void>;
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

/**
 * The engine: WebAssembly modules, in a worker of their own unless told otherwise. One is made when it is first needed; make
 * others with `createEngine` to run several jobs at once, or to give memory back with `dispose`.
 */
export class Engine {
  readonly #platform: ClientPlatform;
  /** @internal */
  readonly connection: Connection;

  /** @internal Engines are made by `createEngine`. */
  constructor(platform: ClientPlatform, options: EngineOptions & { modules?: GivenModules } = {}) {
    onlyKnown("createEngine", options, ["worker", "modules"]);
    this.#platform = platform;
    this.connection = new Connection(platform, options.worker ?? true, options.modules);
  }

  /** Opens a checkpoint: its configuration and the headers of its files, never the weights. */
  async openCheckpoint(source: CheckpointSource, options: OpenOptions = {}): Promise<Checkpoint> {
    onlyKnown("openCheckpoint", options, ["gptqZeros", "tokenizer", "revision", "headers", "fetch", "cache", "signal"]);
    const { tokenizer, signal, gptqZeros } = options;
    const remotes = this.connection.lend();
    const spec = sourceSpec(source, options, this.#platform, remotes);
    const codec = tokenizer === undefined ? undefined : sourceSpec(tokenizer, options, this.#platform, remotes);
    const opened = await this.connection.run({ signal }, (remote, job) => remote.open(job, spec, codec, gptqZeros === undefined ? {} : { gptqZeros }));
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
    const loaded = await this.connection.run({ onProgress, signal }, (remote, job) => remote.load(job, idOf(checkpoint), request));
    return new Model(this.connection, checkpoint, loaded);
  }

  /** Judges a quantized model against its original. */
  async validate(original: Checkpoint, quantized: Checkpoint, options: ValidateOptions): Promise<ValidationReport> {
    const { texts, onProgress, signal, ...rest } = options;
    const text = typeof texts === "string" ? texts : (texts ?? []).join("\n\n");
    const request = plain("validate", { ...rest, text });
    return this.connection.run({ onProgress, signal }, (remote, job) =>
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
    const remotes = this.connection.lend();
    const place = targetSpec(target, this.#platform, remotes);
    const searched = await this.connection.run(
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
    return this.connection.run({ onProgress, signal }, (remote, job) => remote.compare(job, idOf(a), idOf(b), request));
  }

  /** What a checkpoint, or a model of so many parameters, needs at each precision. */
  async plan(subject: Checkpoint | number, options: PlanOptions = {}): Promise<Plan> {
    const request = plain("plan", options) as PlanOptions;
    return this.connection.ask((remote) =>
      typeof subject === "number" ? remote.planParameters(subject, request) : remote.plan(idOf(subject), request),
    );
  }

  /** What models can run on here. Every GPU adapter is checked against the CPU, which takes a moment. */
  async capabilities(): Promise<Capabilities> {
    const found = await this.connection.ask((remote) => remote.capabilities());
    return { ...found, worker: this.connection.inWorker };
  }

  /** What is kept of downloads. */
  readonly cache: DownloadCache = {
    list: () => this.connection.ask((remote) => remote.listCache()),
    delete: (url) => this.connection.ask((remote) => remote.deleteCache(url)),
  };

  /** Ends the engine and its thread, and gives all memory back. What it held cannot be used any more. */
  dispose(): Promise<void> {
    return this.connection.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #write<T>(
    target: QuantizeOptions["target"],
    options: JobOptions,
    work: (remote: Remote, job: number, place: ReturnType<typeof targetSpec>) => Promise<Written<T>>,
  ): Promise<Output<T>> {
    const remotes = this.connection.lend();
    try {
      const place = targetSpec(target, this.#platform, remotes);
      const written = await this.connection.run(options, (remote, job) => work(remote, job, place));
      return new Output(this, written);
    } finally {
      remotes.forget();
    }
  }
}
