/**
 * The public types. What the engine reads of options is in `options.generated.ts`; here is what only JavaScript has: places, signals,
 * listeners. Options and results are camelCase. Where a result is also a file (`ValidationReport`, `QuantizationRecord`,
 * `Summary`), the file spells its names as the command line does, and `fileText` writes it so. Sets of names that are complete
 * are unions; those that the crate declares are written from there.
 */

import type * as options from "./options.generated.js";
import type { ByteStream, PlatformBlob, PlatformFetch, PlatformFile, PlatformSignal, PlatformUrl } from "./ambient.js";

/** A file that can be read by range. */
export interface RandomAccessFile {
  /** Length in bytes. */
  readonly size: number;
  /**
   * Gives exactly `length` bytes from `offset` on. The array is not kept, and may be a view of something larger. Calls may
   * overlap.
   */
  read(offset: number, length: number): Promise<Uint8Array> | Uint8Array;
}

/** A directory handle, as `showDirectoryPicker` gives it. Named here, for programs without the types of browsers. */
export interface DirectoryHandle {
  readonly kind: "directory";
  readonly name: string;
  getFileHandle(name: string, options?: { create?: boolean }): Promise<unknown>;
  removeEntry(name: string): Promise<void>;
}

/** One file of a checkpoint. */
export type FileLike = Uint8Array | ArrayBuffer | PlatformBlob | RandomAccessFile;

/**
 * Where a checkpoint is:
 *
 * - a URL (`https:`, `http:`, `file:`) of a folder or of a `.gguf` file, read by range requests;
 * - `"org/model"`, a repository of the Hugging Face hub;
 * - a path that begins with `/`, `./`, `../`, `~/` or a drive letter (Node, Deno, Bun);
 * - files by name, or the `File`s of an `<input>` or a drop; of a folder with folders in it, the files of the uppermost one with a config.json count;
 * - a directory handle;
 * - one file: a `.gguf` as a `Blob`, as bytes, or as anything that has `size` and `read`.
 */
export type CheckpointSource =
  | string
  | PlatformUrl
  | ArrayLike<PlatformFile>
  | FileLike
  | DirectoryHandle
  | { readonly [file: string]: FileLike };

/** How a checkpoint is opened. */
export interface OpenOptions extends options.OpenOptions {
  /** Take the tokenizer from another folder. */
  tokenizer?: CheckpointSource;
  /** A branch, tag or commit of a hub repository. Default: `main`. */
  revision?: string;
  /** Headers of the requests, such as `{authorization: "Bearer hf_..."}` for a gated repository of the hub. */
  headers?: Record<string, string>;
  /**
   * Keep what is downloaded, so that a second visit needs no network: in the browser's cache storage, or in `~/.cache/lowbit`.
   * Default: true for the hub, false for other URLs.
   */
  cache?: boolean;
  /** Makes the requests instead of the global `fetch`, in the calling thread. */
  fetch?: PlatformFetch;
  /** Stops opening; it then fails with the code `cancelled`. Later reads are stopped by the signal of the work that reads. */
  signal?: PlatformSignal;
}

/** What a checkpoint is, from its configuration and the headers of its files. */
export interface CheckpointInfo {
  path: string;
  architecture: options.Architecture;
  parameters: number;
  bytes: number;
  files: string[];
  tensors: number;
  /** How the weights are spelled. */
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
  /** How many linear modules of the blocks have each number format. */
  linearFormats: Record<string, number>;
  warnings: string[];
}

/** One report of long work. */
export interface Progress {
  /** `load`, `quantize`, `calibrate`, `perplexity`, `generate`, `speed`, ... */
  phase: string;
  /** Units done and in all; the unit depends on the phase. */
  done: number;
  total: number;
  /** Bytes read from the checkpoint's files so far. */
  bytes: number;
  /** The tensor, prompt or text at hand; may be empty. */
  item: string;
  /** Seconds that this phase will still take at its speed so far; `undefined` while that is not known. */
  etaSeconds?: number;
}

/** What all long work takes. */
export interface JobOptions {
  /**
   * Hears how far the work is, at most every 50 milliseconds; work that is over sooner may tell nothing. What it throws does
   * not stop the work, and is reported as what any listener throws.
   */
  onProgress?: (progress: Progress) => void;
  /** Stops the work at its next step; it then fails with the code `cancelled`, and `cause` is the signal's reason. */
  signal?: PlatformSignal;
}

/** How some modules are quantized. Names are those of recipe files, which the command line reads too. */
export interface RecipeRule {
  /** Patterns of module names: `*`, `?`, `[0-3]`, `[!qk]`. */
  modules: string | string[];
  /** Keep the modules in floating point. */
  keep?: boolean;
  bits?: 2 | 3 | 4 | 8;
  /** Weights of a row that share a scale; -1 for the whole row. */
  group_size?: number;
  symmetric?: boolean;
  method?: options.Method;
}

export interface Recipe {
  /** The first rule that matches a module holds for it. */
  rules: RecipeRule[];
}

/** What a method learns from: texts, or more to choose. */
export type Calibration = options.CalibrationRequest | readonly string[];

/**
 * Where a job that was stopped can be gone on with later: a path (Node, Deno, Bun), or `{opfs: "folder"}` (the browser's private
 * file system, where the engine runs in a worker).
 */
export type KeptPlace = (string & {}) | PlatformUrl | { readonly opfs: string };

/** What to quantize to, and how. */
export interface QuantizeOptions extends JobOptions, Omit<options.QuantizeRequest, "calibration"> {
  /** For `gptq`, `awq` and targets: what they learn from, best of the kind that the model will read. */
  calibration?: Calibration;
  /** Where the result goes. Default: memory. */
  target?: Target;
}

/**
 * Takes one file front to back. `abort` is called instead of `close` where the file will not be whole, and where a `write` that
 * takes too long is not waited for any more. A failure whose `code` is
 * `ENOSPC`, or whose `name` is `QuotaExceededError`, becomes the code `storage_full`.
 */
export interface FileWriter {
  write(bytes: Uint8Array): Promise<unknown> | unknown;
  close(): Promise<unknown> | unknown;
  abort?(reason?: unknown): Promise<unknown> | unknown;
}

/**
 * Where files are written:
 *
 * - `"memory"`, the default: they stay beside the engine, and `files()` hands them out;
 * - a path (Node, Deno, Bun), or `{opfs: "folder"}` (the browser's private file system);
 * - a directory handle;
 * - a function that gives a stream or a writer for each file. Such a result cannot be read again by this package.
 */
export type Target =
  | "memory"
  | (string & {})
  | PlatformUrl
  | { readonly opfs: string }
  | DirectoryHandle
  | ((file: string) => ByteStream | FileWriter | Promise<ByteStream | FileWriter>);

/** `quantization_config.json`: how a folder was made. */
export interface QuantizationRecord {
  schema: "lowbit.quantization/1";
  version: string;
  /** `qat`: trained to be quantized; `unknown`: by another tool. */
  method: options.Method | "qat" | "unknown";
  /** Of most modules, as `int4-g32-sym`. */
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

/** What quantizing gave. */
export interface QuantizeSummary {
  record: QuantizationRecord;
  /** Bytes of all tensors in the output, and in the source. */
  bytes: number;
  sourceBytes: number;
  /** Every quantized module: the error of its weights as signal to noise, and the largest. */
  modules: { name: string; scheme: string; snrDb: number | null; maxAbsError: number }[];
  /** What is not as the options say for all, and why: a line for each rule, one for each module whose shape does not allow it. Then what makes the result doubtful. */
  notes: string[];
  /** Bytes that calibrating was to take at its peak, and what they were for; null where nothing was calibrated. */
  plannedMemory: {
    blockBytes: number;
    statisticsBytes: number;
    rowsBytes: number;
    workingBytes: number;
    /** All of them, with what the engine takes otherwise. */
    peakBytes: number;
    scratchBytes: number;
  } | null;
}

export interface DequantizeOptions extends JobOptions, options.DequantizeRequest {
  target?: Target;
}

/** What the predictions of two models have in common. */
export interface Agreement {
  tokens: number;
  /** Shares of equal predictions. */
  quantizedDequantized: number;
  quantizedDequantizedF32: number;
  /** Of the original's predictions, where it was given. */
  retention: number | null;
  minRetention: number;
}

/** `quantization_metadata.json`: what a dequantized folder was before; and how its predictions agree, where a text was given. */
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

export interface ConvertOptions extends JobOptions, options.ConvertRequest {
  target?: Target;
}

/** What a conversion kept and lost. */
export interface ConvertSummary {
  format: options.Layout;
  notes: string[];
  losses: { name: string; loss: string }[];
  largestWeightDifference: number;
}

export interface LoadOptions extends JobOptions, options.LoadRequest {}

/** Where and how a model runs. */
export interface ModelInfo {
  device: string;
  activations: options.Activations;
  /** Why it runs on the CPU although the device was `auto`. */
  fallbackReason: string | null;
  maxPositionEmbeddings: number;
  vocabSize: number;
}

export interface GenerateOptions extends JobOptions, options.GenerateOptions {}

/** A token, and the text that it brought: whole characters, perhaps none. */
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
  /** Tokens of a chat's prompt that an earlier turn had run already. */
  reusedTokens: number;
  tokensPerSecond: number | null;
  prefillSeconds: number;
  /** Kernels that a GPU runs for one token. */
  dispatchesPerToken: number | null;
}

/** One turn of a chat. The checkpoint's template gets all of it but what is null, as in transformers. */
export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool" | (string & {});
  /** What was said: text or parts, as the template takes them; null or left out where the turn only calls tools. */
  content?: string | null | readonly object[];
  /** What else the template reads: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`. Plain data. */
  [key: string]: unknown;
}

export interface PerplexityOptions extends JobOptions, Omit<options.PerplexityRequest, "texts"> {}

export interface PerplexityResult {
  perplexity: number;
  tokens: number;
  context: number;
  stride: number | null;
}

export interface ValidateOptions extends JobOptions, options.ValidateRequest {}

/** `validation_report.json`. */
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
  dataset: { name: string; tokens: number; sha256: string };
  perplexity: { original: number | null; quantized: number | null; increase: number | null };
  divergence: { klMean: number | null; klP99: number | null; top1Agreement: number };
  benchmark: { items: number; original: number; quantized: number; dropPoints: number } | null;
  layers: { name: string; scheme: string; snrDb: number | null; maxAbsError: number }[];
  memory: { originalBytes: number; quantizedBytes: number; ratio: number };
  speed: {
    device: string;
    originalTokensPerSecond: number;
    quantizedTokensPerSecond: number;
    ratio: number;
    spread: number;
  } | null;
  generation: {
    prompts: number;
    /** `text` is what the quantized model wrote after the prompt; of a very long one only its end, after an ellipsis. */
    failures: { prompt: string; kind: options.FailureKind; detail: string; originalAlso: boolean; text: string }[];
  };
  criteria: { name: options.Criterion; limit: number; value: number | null; status: options.Status }[];
  accepted: boolean;
  recommendation: string;
}

/** What a search for a good enough result tries, and by what it judges. */
export interface AutoOptions extends JobOptions, Omit<options.AutoRequest, "calibration"> {
  /** Texts to learn from. */
  calibration: options.TextsOptions | readonly string[];
  /** Gets a folder for each attempt, and `quantization_summary.json`. Default: memory. Streams cannot be read again, so not those. */
  target?: Exclude<Target, (file: string) => unknown>;
  /** Hears what is tried and how it was judged. */
  onEvent?: (event: AutoEvent) => void;
}

/** How a search ended. */
export interface SearchOutcome {
  summary: Summary;
  reports: ValidationReport[];
}

export type AutoEvent =
  | { kind: "ranked"; name: string; nats: number }
  | { kind: "checkpoint"; name: string; reason: string; attempts: string[] }
  | { kind: "attempt"; name: string; promoted: string[] }
  | { kind: "judged"; name: string; report: ValidationReport; judgement: options.Judgement };

/** What an attempt of a search made. */
export interface AttemptSummary {
  record: QuantizationRecord;
  /** Bytes of all tensors. */
  bytes: number;
}

/** `quantization_summary.json`: all attempts. */
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
      name: string;
      checkpoint: string;
      samples: number;
      tokens: number;
      promoted: string[];
      failed: string[];
      good: boolean;
    };
  }[];
  outcome?: { accepted: string | null; recommendation: string };
}

export interface CompareOptions extends JobOptions, options.CompareRequest {}

/** What two models made of one prompt. */
export interface Comparison {
  prompt: string;
  a: { tokenIds: number[]; text: string; finishReason: options.FinishReason | null };
  b: { tokenIds: number[]; text: string; finishReason: options.FinishReason | null };
  /** The first new token, counted from 0, in which they differ. */
  firstDifference: number | null;
}

export interface PlanOptions extends options.PlanRequest {}

/** What a model needs at each precision. */
export interface Plan {
  parameters: number;
  estimated: boolean;
  context: number;
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
    /** The driver in words; browsers do not tell. */
    driver: string;
    maxBindingBytes: number;
    /** Kernels that run because this adapter has more than WebGPU's core. */
    fastKernels: string[];
    /** Fast kernels that failed the check and gave way to simpler ones: a sentence each. */
    replaced: string[];
    /** Why no model can run on it; null where its kernels compute what the CPU computes. */
    error: string | null;
  }[];
}

/** What models can run on here. */
export interface Capabilities extends Devices {
  /** `relaxed-simd` where the processor and the runtime do it right. */
  engine: "simd128" | "relaxed-simd";
  /** Whether the engine runs in a thread of its own. */
  worker: boolean;
  /** Bytes of the engine's memory. */
  memory: number;
}

/** A download of which something is kept. */
export interface CachedFile {
  url: string;
  /** Bytes of the file, and how many of them are kept. */
  size: number;
  bytes: number;
}

/** How an engine is made. */
export interface EngineOptions {
  /** Run in a worker, so that the calling thread stays free. Default: true. */
  worker?: boolean;
}
