/**
 * The public types. `options.generated.ts` has the engine's options. This file has what only JavaScript has: places,
 * signals, listeners.
 *
 * - Options and results are camelCase.
 * - Some results are also files (`ValidationReport`, `QuantizationRecord`, `Summary`). Names in files are snake_case;
 *   `fileText` writes them.
 * - A complete set of names is a union. Those that the crate declares are generated.
 */

import type * as options from "./options.generated.js";
import type { ByteStream, PlatformBlob, PlatformFetch, PlatformFile, PlatformSignal, PlatformUrl } from "./ambient.js";

/** A file that can be read by byte range. */
export interface RandomAccessFile {
  /** Length in bytes. */
  readonly size: number;
  /**
   * Reads exactly `length` bytes from `offset`. The returned array is copied, and may be a view of a larger buffer.
   * Calls may overlap in time.
   */
  read(offset: number, length: number): Promise<Uint8Array> | Uint8Array;
}

/** A directory handle, as from `showDirectoryPicker`. Declared here for programs without the DOM's types. */
export interface DirectoryHandle {
  readonly kind: "directory";
  readonly name: string;
  getFileHandle(name: string, options?: { create?: boolean }): Promise<unknown>;
  removeEntry(name: string): Promise<void>;
}

/** One file of a checkpoint. */
export type FileLike = Uint8Array | ArrayBuffer | PlatformBlob | RandomAccessFile;

/**
 * The place of a checkpoint:
 *
 * - a URL (`https:`, `http:`, `file:`) of a folder or a `.gguf` file, read by range requests;
 * - `"org/model"`, a repository on the Hugging Face hub;
 * - a path that begins with `/`, `./`, `../`, `~/` or a drive letter (Node, Deno, Bun);
 * - files by name, or the `File`s of an `<input>` or a drop; in nested folders, the uppermost folder with a config.json
 *   is the checkpoint;
 * - a directory handle;
 * - one `.gguf` file: a `Blob`, bytes, or an object with `size` and `read`.
 */
export type CheckpointSource =
  | string
  | PlatformUrl
  | ArrayLike<PlatformFile>
  | FileLike
  | DirectoryHandle
  | { readonly [file: string]: FileLike };

/** Options of `openCheckpoint`. */
export interface OpenOptions extends options.OpenOptions {
  /** A folder with the tokenizer's files. Default: the checkpoint. */
  tokenizer?: CheckpointSource;
  /** A branch, tag or commit of a hub repository. Default: `main`. */
  revision?: string;
  /** Headers of all requests, such as `{authorization: "Bearer hf_..."}` for a gated repository on the hub. */
  headers?: Record<string, string>;
  /**
   * Cache downloads, so that a second visit needs no network. The cache is the browser's Cache Storage or
   * `~/.cache/lowbit`. Default: true for the hub, false for other URLs.
   */
  cache?: boolean;
  /** A function for requests, called in the calling thread. Default: the global `fetch`. */
  fetch?: PlatformFetch;
  /** Cancels opening, which rejects with `cancelled`. Later reads have the signal of the job that reads. */
  signal?: PlatformSignal;
}

/** Metadata of a checkpoint, from its configuration and the headers of its files. */
export interface CheckpointInfo {
  path: string;
  architecture: options.Architecture;
  parameters: number;
  bytes: number;
  files: string[];
  tensors: number;
  /** How the files store the weights. */
  layout: options.Layout;
  hiddenSize: number;
  intermediateSize: number;
  numHiddenLayers: number;
  numAttentionHeads: number;
  numKeyValueHeads: number;
  headDim: number;
  vocabSize: number;
  maxPositionEmbeddings: number;
  tieWordEmbeddings: boolean;
  /** Numbers of linear modules in the blocks, by number format. */
  linearFormats: Record<string, number>;
  warnings: string[];
}

/** A progress report of a job. */
export interface Progress {
  /** `load`, `quantize`, `calibrate`, `perplexity`, `generate`, `speed`, ... */
  phase: string;
  /** Units done, of `total`. The unit depends on the phase. */
  done: number;
  total: number;
  /** Bytes read from the checkpoint's files so far. */
  bytes: number;
  /** The current tensor, prompt or text; may be empty. */
  item: string;
  /** Estimated seconds until the end of this phase; `undefined` while unknown. */
  etaSeconds?: number;
}

/** Options of every job. */
export interface JobOptions {
  /**
   * Receives progress, at most every 50 milliseconds. A short job may report nothing. An exception in it does not stop
   * the job, and becomes an uncaught error, as in an event listener.
   */
  onProgress?: (progress: Progress) => void;
  /** Cancels the job at its next step. It rejects with `cancelled`; `cause` is the signal's reason. */
  signal?: PlatformSignal;
}

/** A rule for some modules. Names are snake_case, as in recipe files, which the command line reads too. */
export interface RecipeRule {
  /** Patterns of module names: `*`, `?`, `[0-3]`, `[!qk]`. */
  modules: string | string[];
  /** Keep the modules in floating point. Default: false. */
  keep?: boolean;
  bits?: 2 | 3 | 4 | 8;
  /** Weights per scale; -1: a whole row. */
  group_size?: number;
  symmetric?: boolean;
  method?: options.Method;
}

export interface Recipe {
  /** The first matching rule applies to a module. */
  rules: RecipeRule[];
}

/** Calibration data: texts, or an object with more options. */
export type Calibration = options.CalibrationRequest | readonly string[];

/**
 * The place of a resumable job's state: a path (Node, Deno, Bun), or `{opfs: "folder"}` (the browser's private file
 * system; the engine must run in a worker).
 */
export type KeptPlace = (string & {}) | PlatformUrl | { readonly opfs: string };

/** Options of `quantize`. */
export interface QuantizeOptions extends JobOptions, Omit<options.QuantizeRequest, "calibration"> {
  /** Calibration data for `gptq`, `awq` and size targets, preferably similar to the model's later input. */
  calibration?: Calibration;
  /** Where to write the result. Default: memory. */
  target?: Target;
}

/**
 * Writes one file, front to back. `abort` is called instead of `close` if the file stays incomplete, even while a
 * `write` is pending. A failure with the `code` `ENOSPC` or the `name` `QuotaExceededError` becomes `storage_full`.
 */
export interface FileWriter {
  write(bytes: Uint8Array): Promise<unknown> | unknown;
  close(): Promise<unknown> | unknown;
  abort?(reason?: unknown): Promise<unknown> | unknown;
}

/**
 * The place of output files:
 *
 * - `"memory"`, the default: `files()` returns copies;
 * - a path (Node, Deno, Bun), or `{opfs: "folder"}` (the browser's private file system);
 * - a directory handle;
 * - a function that returns a stream or a writer for each file. This package cannot read such a result back.
 */
export type Target =
  | "memory"
  | (string & {})
  | PlatformUrl
  | { readonly opfs: string }
  | DirectoryHandle
  | ((file: string) => ByteStream | FileWriter | Promise<ByteStream | FileWriter>);

/** `quantization_config.json`: how a folder was quantized. */
export interface QuantizationRecord {
  schema: "lowbit.quantization/1";
  version: string;
  /** `qat`: quantization-aware training; `unknown`: by another tool. */
  method: options.Method | "qat" | "unknown";
  /** The scheme of most modules, such as `int4-g32-sym`. */
  scheme: string;
  format: options.Layout;
  activations: options.Activations;
  bitsPerWeight: number;
  parameters: Record<string, unknown>;
  source: Record<string, unknown>;
  modules: {
    name: string;
    scheme: string;
    method?: string | null;
    reason?: string | null;
    calibration?: {
      method: string;
      outputError?: number | null;
      rtnOutputError?: number | null;
      damping?: number | null;
      ratio?: number;
      clipped?: boolean;
      reason?: string;
    } | null;
  }[];
}

/** The result of `quantize`. */
export interface QuantizeSummary {
  record: QuantizationRecord;
  /** Bytes of all tensors in the output. */
  bytes: number;
  /** Bytes of all tensors in the source. */
  sourceBytes: number;
  /**
   * The quantized modules. `snrDb`: signal-to-noise ratio of the weights in dB; null if exact. `maxAbsError`: the
   * largest error of a weight.
   */
  modules: { name: string; scheme: string; snrDb: number | null; maxAbsError: number }[];
  /**
   * Deviations from the options, with reasons: a line for each recipe rule, and for each module whose shape does not
   * allow the scheme. Then warnings about the result.
   */
  notes: string[];
  /** Planned memory of calibration in bytes; null without calibration. All but `scratchBytes` are taken at the peak. */
  plannedMemory: {
    /** The weights of one block. */
    blockBytes: number;
    /** Second moments of inputs, and derived matrices. */
    statisticsBytes: number;
    /** Rows being quantized, and packed matrices. */
    rowsBytes: number;
    /** Hidden states of one batch of tokens, keys and values. */
    workingBytes: number;
    /** The sum, with the engine's own memory and a heap gap. */
    peakBytes: number;
    /** Scratch space: hidden states of all samples, and finished matrices. */
    scratchBytes: number;
  } | null;
}

/** Options of `dequantize`. */
export interface DequantizeOptions extends JobOptions, options.DequantizeRequest {
  /** Where to write the result. Default: memory. With `texts`, not streams. */
  target?: Target;
}

/** Fractions of positions, from 0 to 1, at which two models predict the same next token. */
export interface Agreement {
  /** Predicted tokens. */
  tokens: number;
  /** Quantized against dequantized, at the quantized checkpoint's precision of activations. */
  quantizedDequantized: number;
  /** The same with `f32` activations. */
  quantizedDequantizedF32: number;
  /** Original against dequantized; null without an original. */
  retention: number | null;
  /** The lower limit of `retention`. */
  minRetention: number;
}

/**
 * `quantization_metadata.json`: how a dequantized folder was quantized before. With a text, also how often the
 * predictions agree.
 */
export interface DequantizeSummary {
  schema: "lowbit.dequantization/1";
  version: string;
  dtype: "F16" | "F32";
  method: options.Method | "qat" | "unknown" | "none";
  scheme: string;
  activations: options.Activations;
  source: Record<string, unknown>;
  modules: { name: string; scheme: string; sparsity: number }[];
  agreement: Agreement | null;
}

/** Options of `convert`. */
export interface ConvertOptions extends JobOptions, options.ConvertRequest {
  /** Where to write the result. Default: memory. */
  target?: Target;
}

/** The result of `convert`: what was kept and what was lost. */
export interface ConvertSummary {
  format: options.Layout;
  notes: string[];
  losses: { name: string; loss: string }[];
  largestWeightDifference: number;
}

/** Options of `loadModel`. */
export interface LoadOptions extends JobOptions, options.LoadRequest {}

/** A loaded model's device and sizes. */
export interface ModelInfo {
  device: string;
  activations: options.Activations;
  /** Why the device `auto` fell back to the CPU; null if it did not. */
  fallbackReason: string | null;
  maxPositionEmbeddings: number;
  vocabSize: number;
}

/** Options of `generate` and `chat`. */
export interface GenerateOptions extends JobOptions, options.GenerateOptions {}

/** A generated token, and the text that it completes: whole characters, possibly none. */
export interface Piece {
  tokenId: number;
  text: string;
}

/** A finished generation. */
export interface GenerateResult {
  text: string;
  tokenIds: number[];
  promptIds: number[];
  finishReason: options.FinishReason;
  /** Tokens of a chat's prompt that are reused from an earlier turn's KV cache. */
  reusedTokens: number;
  /** Decoding speed; null if only one token was generated. */
  tokensPerSecond: number | null;
  prefillSeconds: number;
  /** GPU kernels per token; null on the CPU. */
  dispatchesPerToken: number | null;
}

/** A message of a chat. The checkpoint's template gets all fields that are not null, as in transformers. */
export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool" | (string & {});
  /** Text, or the parts that the template accepts. Null or absent if the message only calls tools. */
  content?: string | null | readonly object[];
  /** Other fields that the template reads, as plain data: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`. */
  [key: string]: unknown;
}

/** Options of `perplexity`. */
export interface PerplexityOptions extends JobOptions, Omit<options.PerplexityRequest, "texts"> {}

/** The perplexity of a text. */
export interface PerplexityResult {
  perplexity: number;
  /** Scored tokens. */
  tokens: number;
  context: number;
  stride: number | null;
}

/** Options of `validate`. */
export interface ValidateOptions extends JobOptions, options.ValidateRequest {}

/** `validation_report.json`: measurements of both models, and the verdict. */
export interface ValidationReport {
  schema: "lowbit.validation/1";
  original: { path: string; parameters: number; bytes: number };
  quantized: {
    path: string;
    method: options.Method | "qat" | "unknown";
    scheme: string;
    bitsPerWeight: number;
    bytes: number;
    activations: options.Activations;
  };
  execution: options.Execution;
  /** The text. `tokens`: scored tokens; `sha256`: of the text's bytes. */
  dataset: { name: string; tokens: number; sha256: string };
  /** `increase`: quantized / original - 1. */
  perplexity: { original: number | null; quantized: number | null; increase: number | null };
  /** KL divergence in nats, mean and 99th percentile; fraction of positions with the same predicted token. */
  divergence: { klMean: number | null; klP99: number | null; top1Agreement: number };
  /** Accuracies from 0 to 1, and the drop in percentage points; null without a benchmark. */
  benchmark: { items: number; original: number; quantized: number; dropPoints: number } | null;
  /** Signal-to-noise ratio of the weights in dB (null if exact), and the largest absolute error of a weight. */
  layers: { name: string; scheme: string; snrDb: number | null; maxAbsError: number }[];
  /** Bytes of the quantized layers, at f16 and packed. `ratio`: f16 / packed. */
  memory: { originalBytes: number; quantizedBytes: number; ratio: number };
  /** Median decoding speeds; null if not measured. The middle half of the rounds is within `ratio ± spread`. */
  speed: {
    device: string;
    originalTokensPerSecond: number;
    quantizedTokensPerSecond: number;
    ratio: number;
    spread: number;
  } | null;
  generation: {
    prompts: number;
    /** `text`: the quantized model's output. Of a very long one only the end, after an ellipsis. */
    failures: { prompt: string; kind: options.FailureKind; detail: string; originalAlso: boolean; text: string }[];
  };
  /** Tensors that nothing reads, and differences of the two tokenizers and chat templates. */
  reading: { kind: options.ReadingProblemKind; detail: string }[];
  criteria: { name: options.Criterion; limit: number; value: number | null; status: options.Status }[];
  /** Whether no criterion failed. */
  accepted: boolean;
  /** What to try next. */
  recommendation: string;
}

/** Options of `auto`: its attempts and its criteria. */
export interface AutoOptions extends JobOptions, Omit<options.AutoRequest, "calibration"> {
  /** Calibration texts. */
  calibration: options.TextsOptions | readonly string[];
  /**
   * Where to write a folder for each attempt, and `quantization_summary.json`. Default: memory. Not streams, which
   * cannot be read back.
   */
  target?: Exclude<Target, (file: string) => unknown>;
  /** Receives attempts and their judgements. */
  onEvent?: (event: AutoEvent) => void;
}

/** The result of a search. */
export interface SearchOutcome {
  summary: Summary;
  reports: ValidationReport[];
}

/**
 * An event of `auto`:
 *
 * - `ranked`: a checkpoint was ranked by its loss on the text, in nats;
 * - `checkpoint`: the attempts of a checkpoint begin; `reason` explains the initial precision;
 * - `attempt`: an attempt begins; `promoted` are modules with more bits than the others;
 * - `judged`: an attempt was judged.
 */
export type AutoEvent =
  | { kind: "ranked"; name: string; nats: number }
  | { kind: "checkpoint"; name: string; reason: string; attempts: string[] }
  | { kind: "attempt"; name: string; promoted: string[] }
  | { kind: "judged"; name: string; report: ValidationReport; judgement: options.Judgement };

/** The output of an attempt. */
export interface AttemptSummary {
  record: QuantizationRecord;
  /** Bytes of all tensors. */
  bytes: number;
}

/** `quantization_summary.json`: all attempts of a search. */
export interface Summary {
  schema: "lowbit.summary/1";
  variants: {
    path: string;
    method: options.Method | "qat" | "unknown";
    scheme: string;
    bitsPerWeight: number;
    bytes: number;
    perplexity: number | null;
    perplexityIncrease: number | null;
    tokensPerSecond: number | null;
    accepted: boolean;
    recommendation: string;
    attempt?: {
      /** The name of its folder. */
      name: string;
      /** The source checkpoint. */
      checkpoint: string;
      /** Calibration samples. */
      samples: number;
      /** Calibration tokens. */
      tokens: number;
      /** Modules that got more bits than the others. */
      promoted: string[];
      /** Criteria that failed. */
      failed: string[];
      /** Whether quality and generation are within the limits. Memory and speed do not count. */
      good: boolean;
    };
  }[];
  outcome?: { accepted: string | null; recommendation: string };
}

/** Options of `compare`. */
export interface CompareOptions extends JobOptions, options.CompareRequest {}

/** Two models' continuations of a prompt. */
export interface Comparison {
  prompt: string;
  a: { tokenIds: number[]; text: string; finishReason: options.FinishReason | null };
  b: { tokenIds: number[]; text: string; finishReason: options.FinishReason | null };
  /** Index of the first new token that differs, from 0; null if none does. */
  firstDifference: number | null;
}

/** Options of `plan`. */
export interface PlanOptions extends options.PlanRequest {}

/** The memory of a model in bytes at each precision. */
export interface Plan {
  parameters: number;
  /** Whether the dimensions were estimated from a number of parameters. */
  estimated: boolean;
  /** Tokens in the KV cache. */
  context: number;
  /** Available bytes; null if not given. */
  memory: number | null;
  precisions: {
    precision: options.Precision;
    linearBytes: number;
    embeddingBytes: number;
    headBytes: number;
    normBytes: number;
    weightBytes: number;
    kvCacheBytes: number;
    workingBytes: number;
    totalBytes: number;
    /** Number of models of this size that fit into `memory` together; null if it is not given. */
    fits: number | null;
  }[];
  recommendation: { precision: options.Precision; reason: string };
}

/** The processor and the GPU adapters. */
export interface Devices {
  cpu: string;
  adapters: {
    name: string;
    api: string;
    kind: options.AdapterKind;
    /** Name of the driver; browsers do not report it. */
    driver: string;
    maxBindingBytes: number;
    /** Faster kernels that need optional features of WebGPU, which this adapter has. */
    fastKernels: string[];
    /** Fast kernels that failed the self-check and were replaced by simpler ones: a sentence for each. */
    replaced: string[];
    /** Why no model can run on it; null if its kernels agree with the CPU. */
    error: string | null;
  }[];
}

/** The devices and the engine that are available here. */
export interface Capabilities extends Devices {
  /** `relaxed-simd` if the runtime supports it and passes the self-check. */
  engine: "simd128" | "relaxed-simd";
  /** Whether the engine runs in its own thread. */
  worker: boolean;
  /** Bytes of the engine's memory. */
  memory: number;
}

/** A cached download. */
export interface CachedFile {
  url: string;
  /** Bytes of the file. */
  size: number;
  /** Bytes in the cache. */
  bytes: number;
}

/** Options of `createEngine`. */
export interface EngineOptions {
  /** Run in a worker, so that the calling thread stays responsive. Default: true. */
  worker?: boolean;
}
