/** The package's functions, on an engine that is made when it is first needed. */
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

/** What every entry point exports. */
export interface Api {
  /** An engine of its own, with a worker of its own. */
  createEngine(options?: EngineOptions): Engine;
  /** Opens a checkpoint: its configuration and the headers of its files, never the weights. */
  openCheckpoint(source: CheckpointSource, options?: OpenOptions): Promise<Checkpoint>;
  /** Quantizes a checkpoint. The result can be used as a checkpoint at once. */
  quantize(checkpoint: Checkpoint, options?: QuantizeOptions): Promise<Output<QuantizeSummary>>;
  /** Writes an ordinary floating-point checkpoint from a quantized one, for training to go on from. */
  dequantize(checkpoint: Checkpoint, options?: DequantizeOptions & { original?: Checkpoint }): Promise<Output<DequantizeSummary>>;
  /** Converts a checkpoint to another tool's format. */
  convert(checkpoint: Checkpoint, options: ConvertOptions): Promise<Output<ConvertSummary>>;
  /** Loads a model onto a device. */
  loadModel(checkpoint: Checkpoint, options?: LoadOptions): Promise<Model>;
  /** Judges a quantized model against its original. */
  validate(original: Checkpoint, quantized: Checkpoint, options: ValidateOptions): Promise<ValidationReport>;
  /** Quantizes and validates, and tries the next thing until the quality is good enough: more samples, mixed precision, INT8. */
  auto(checkpoints: Checkpoint | readonly Checkpoint[], options: AutoOptions): Promise<AutoResult>;
  /** How well a model predicts a text. */
  perplexity(model: Model, text: string, options?: PerplexityOptions): Promise<PerplexityResult>;
  /** Lets two models continue the same prompts. */
  compare(a: Checkpoint, b: Checkpoint, options: CompareOptions): Promise<Comparison[]>;
  /** What a checkpoint, or a model of so many parameters, needs at each precision. */
  plan(subject: Checkpoint | number, options?: PlanOptions): Promise<Plan>;
  /** What models can run on here. */
  capabilities(): Promise<Capabilities>;
  /** What is kept of downloads. */
  readonly cache: DownloadCache;
}

/** The one engine of some checkpoints. */
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

/** The functions for a place that the package runs in. */
export function api(platform: ClientPlatform): Api {
  let shared: Engine | undefined;
  const engine = () => {
    // One that broke down is of no use to anybody who begins anew.
    if (shared === undefined || shared.connection.failed) shared = new Engine(platform);
    return shared;
  };
  return {
    createEngine: (options) => new Engine(platform, options),
    openCheckpoint: (source, options) => engine().openCheckpoint(source, options),
    // A checkpoint knows its engine; work on it is done there.
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
