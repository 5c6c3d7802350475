/** The package's functions. They share one engine, which is created on first use. */
import { Checkpoint, type Output } from "./client/checkpoint.js";
import { Engine, type AutoResult, type DownloadCache } from "./client/engine.js";
import { Model } from "./client/model.js";
import { LowbitError } from "./errors.js";
import type { ClientPlatform } from "./platform.js";
import type {
  AutoOptions, Capabilities, CheckpointSource, CompareOptions, Comparison, ConvertOptions, ConvertSummary, DequantizeOptions, DequantizeSummary, EngineOptions,
  LoadOptions, OpenOptions, PerplexityOptions, PerplexityResult, Plan, PlanOptions, QuantizeOptions, QuantizeSummary,
  ValidateOptions, ValidationReport,
} from "./types.js";

/**
 * The functions of every entry point. Failures are `LowbitError`s: `invalid_argument` for a wrong or unknown option,
 * `cancelled` if the `signal` aborts the work.
 */
export interface Api {
  /** Creates a separate engine with its own worker. */
  createEngine(options?: EngineOptions): Engine;
  /**
   * Opens a checkpoint. Reads its configuration and the headers of its files, not the weights.
   *
   * Rejects with `not_found` if a file is missing, `unsupported_model` or `unsupported_format` for an unsupported
   * feature, `invalid_checkpoint` if files contradict each other, `unfinished_output` if their writer was stopped.
   */
  openCheckpoint(source: CheckpointSource, options?: OpenOptions): Promise<Checkpoint>;
  /**
   * Quantizes a checkpoint. The result is a checkpoint too.
   *
   * Rejects with `out_of_memory` before it starts if calibration needs more than `memory`; `storage_full` if the target
   * is full.
   */
  quantize(checkpoint: Checkpoint, options?: QuantizeOptions): Promise<Output<QuantizeSummary>>;
  /**
   * Writes a floating-point checkpoint from a quantized one, for further training. With `texts`, also measures how
   * often the quantized model, its dequantized form and the `original`, if given, predict the same tokens.
   *
   * Rejects with `invalid_argument` if the checkpoint is not quantized.
   */
  dequantize(checkpoint: Checkpoint, options?: DequantizeOptions & { original?: Checkpoint }): Promise<Output<DequantizeSummary>>;
  /**
   * Converts a checkpoint to another tool's format.
   *
   * Rejects with `unsupported_format` if the format would lose something and `strict` is set.
   */
  convert(checkpoint: Checkpoint, options: ConvertOptions): Promise<Output<ConvertSummary>>;
  /**
   * Loads a model onto the GPU or the CPU.
   *
   * Rejects with `no_device` if the requested device is missing, `out_of_memory` if the model does not fit.
   */
  loadModel(checkpoint: Checkpoint, options?: LoadOptions): Promise<Model>;
  /**
   * Measures a quantized model and its original, and gives a verdict with a recommendation. A bad result does not
   * reject: its report has `accepted: false`.
   */
  validate(original: Checkpoint, quantized: Checkpoint, options: ValidateOptions): Promise<ValidationReport>;
  /** Quantizes and validates until the quality is good enough. Tries more samples, mixed precision, then INT8. */
  auto(checkpoints: Checkpoint | readonly Checkpoint[], options: AutoOptions): Promise<AutoResult>;
  /**
   * Measures the perplexity of a text. Rejects with `invalid_argument` if the text is too short, `non_finite` if logits
   * are NaN.
   */
  perplexity(model: Model, text: string, options?: PerplexityOptions): Promise<PerplexityResult>;
  /** Continues the same prompts with two models, and reports where their outputs first differ. */
  compare(a: Checkpoint, b: Checkpoint, options: CompareOptions): Promise<Comparison[]>;
  /**
   * Estimates the memory in bytes that a checkpoint, or a model with a number of parameters, needs at each precision.
   */
  plan(subject: Checkpoint | number, options?: PlanOptions): Promise<Plan>;
  /** Lists the devices that can run models here. */
  capabilities(): Promise<Capabilities>;
  /** Cached downloads. */
  readonly cache: DownloadCache;
}

/** The engine that all of the checkpoints belong to. */
function of(...checkpoints: Checkpoint[]): Engine {
  if (checkpoints.length === 0) throw new LowbitError("invalid_argument", "expected at least one checkpoint");
  for (const checkpoint of checkpoints) {
    if (!(checkpoint instanceof Checkpoint)) {
      throw new LowbitError("invalid_argument", "expected a checkpoint, as openCheckpoint gives it");
    }
    if (checkpoint.engine !== checkpoints[0]!.engine) {
      throw new LowbitError("invalid_argument", "the checkpoints belong to different engines");
    }
  }
  return checkpoints[0]!.engine;
}

/** The functions for one platform. */
export function api(platform: ClientPlatform): Api {
  let shared: Engine | undefined;
  const engine = () => {
    // A new call gets a new engine if the old one broke down.
    if (shared === undefined || shared.connection.failed) shared = new Engine(platform);
    return shared;
  };
  return {
    createEngine: (options) => new Engine(platform, options),
    openCheckpoint: (source, options) => engine().openCheckpoint(source, options),
    // Work on a checkpoint runs in the checkpoint's engine.
    quantize: async (checkpoint, options) => of(checkpoint).quantize(checkpoint, options),
    dequantize: async (checkpoint, options) => of(checkpoint).dequantize(checkpoint, options),
    convert: async (checkpoint, options) => of(checkpoint).convert(checkpoint, options),
    loadModel: async (checkpoint, options) => of(checkpoint).loadModel(checkpoint, options),
    validate: async (original, quantized, options) => of(original, quantized).validate(original, quantized, options),
    auto: async (checkpoints, options) =>
      of(...(Array.isArray(checkpoints) ? checkpoints : [checkpoints])).auto(checkpoints, options),
    perplexity: async (model, text, options) => {
      if (model instanceof Model) return model.perplexity(text, options);
      throw new LowbitError("invalid_argument", "expected a model, as loadModel gives it");
    },
    compare: async (a, b, options) => of(a, b).compare(a, b, options),
    plan: async (subject, options) =>
      (typeof subject === "number" ? engine() : of(subject)).plan(subject, options),
    capabilities: () => engine().capabilities(),
    cache: { list: () => engine().cache.list(), delete: (url) => engine().cache.delete(url) },
  };
}
