/**
 * The public types. Options are camelCase; documents that are also files (`ValidationReport`, `QuantizationRecord`, `Plan`)
 * are exactly as the files and the command line spell them.
 */

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
export interface OpenOptions {
  /** How a GPTQ checkpoint stores asymmetric zero points, where its files do not say: `v1` minus one, `v2` as they are. */
  gptqZeros?: "v1" | "v2";
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
  /** `llama`, `mistral`, `qwen2`, `qwen3` or `bitnet`. */
  architecture: string;
  parameters: number;
  bytes: number;
  files: string[];
  tensors: number;
  /** How the weights are spelled: `dense`, `compressed-tensors`, `gptq`, `gptq_v2`, `awq`, `bitnet`, `gguf`. */
  layout: string;
  hidden_size: number;
  intermediate_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  num_key_value_heads: number;
  head_dim: number;
  vocab_size: number;
  max_position_embeddings: number;
  tie_word_embeddings: boolean;
  /** How many linear modules of the blocks have each number format. */
  linear_formats: Record<string, number>;
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

/** How many weights of a row share a scale; `-1` for the whole row. */
export type GroupSize = number;

/** How some modules are quantized. Names are those of recipe files, which the command line reads too. */
export interface RecipeRule {
  /** Patterns of module names: `*`, `?`, `[0-3]`, `[!qk]`. */
  modules: string | string[];
  /** Keep the modules in floating point. */
  keep?: boolean;
  bits?: 2 | 3 | 4 | 8;
  group_size?: GroupSize;
  symmetric?: boolean;
  method?: Method;
}

export interface Recipe {
  /** The first rule that matches a module holds for it. */
  rules: RecipeRule[];
}

/**
 * How codes are found: `rtn` rounds to nearest; `gptq` learns from texts which way to round, `awq` which columns to round more
 * finely; `ternary` makes -1, 0 and 1, for models that were trained for it.
 */
export type Method = "rtn" | "gptq" | "awq" | "ternary";

/** How a folder spells quantized weights: as the tools of these names do. */
export type Format = "compressed-tensors" | "gptq" | "gptq-v2" | "awq" | "bitnet";

/** Texts that a method learns from. */
export interface Calibration {
  texts?: readonly string[];
  /** Token ids, after those of the texts. */
  tokens?: Uint32Array | readonly number[];
  /** Windows that are taken. Default: 128. */
  samples?: number;
  /** Tokens of a window, the one in front included. Default: what the model was made for, at most 2048. */
  sequenceLength?: number;
  /** Draw windows from everywhere, by this number, instead of from the start. */
  seed?: number;
}

/** What to quantize to, and how. */
export interface QuantizeOptions extends JobOptions {
  /** Default: `rtn`. `gptq` and `awq` need `calibration`. */
  method?: Method;
  /** Default: 4. */
  bits?: 2 | 3 | 4 | 8;
  /** Weights that share a scale; -1 for a whole row. Default: 128, and -1 for 8 bits. */
  groupSize?: GroupSize;
  /** No zero points. Default: true. */
  symmetric?: boolean;
  /** Rules that give some modules another scheme. */
  recipe?: Recipe;
  /** Quantize the head too. Default: false. */
  quantizeHead?: boolean;
  /** Quantize the embedding too, to so many bits. Default: it stays as it is. */
  quantizeEmbedding?: 2 | 3 | 4 | 8;
  /** For `ternary`. Default: one scale a tensor. */
  ternaryScale?: "tensor" | "channel";
  /** For `ternary`: weights below this share of the scale become 0. */
  sparsityThreshold?: number;
  /** Precision of the activations that the result is meant to run with. */
  activations?: Activations;
  /** Default: `compressed-tensors`, and `bitnet` for ternary weights with one scale a tensor. */
  format?: Format;
  /** Fail where the layout cannot hold a module as asked for, instead of taking the nearest scheme. */
  strict?: boolean;
  gptq?: {
    /** Share of the Hessian's mean diagonal that is added to its diagonal. Default: 0.05. */
    damping?: number;
    /** The order in which columns are rounded. Default: `group-aware`, groups with the largest inputs first. */
    actOrder?: "none" | "group-aware" | "static" | "group-index";
    /** Where the scale of a group comes from. Default: `least-error`. */
    scales?: "range" | "least-error";
    /** How often codes and scales are gone over again for less output error. Default: 2. */
    sweeps?: number;
    /**
     * On whose inputs a layer's original outputs are computed, to which the rounded layer shall come near. Default: `original`,
     * so that a layer makes up for what the layers before it lost.
     */
    referenceInputs?: "original" | "quantized";
  };
  /** For `gptq` and `awq`: what they learn from, best of the kind that the model will read. */
  calibration?: Calibration | readonly string[];
  /** For `gptq` and `awq`: where the model runs that learns. Default: `auto`. */
  device?: Device;
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
  method: string;
  scheme: string;
  format: string;
  activations: string;
  bits_per_weight: number;
  parameters: Record<string, unknown>;
  source: Record<string, unknown>;
  modules: {
    name: string;
    scheme: string;
    method?: string | null;
    reason?: string | null;
    calibration?: {
      method: string;
      output_error?: number | null;
      rtn_output_error?: number | null;
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
  source_bytes: number;
  /** Every quantized module: the error of its weights as signal to noise, and the largest. */
  modules: { name: string; scheme: string; snr_db: number | null; max_abs_error: number }[];
  /** Each module that is not as the options say for all, and why: a rule, a shape. Then what makes the result doubtful. */
  notes: string[];
  /** Bytes that calibrating was to take at its peak, and what they were for; null where nothing was calibrated. */
  planned_memory: {
    block_bytes: number;
    statistics_bytes: number;
    rows_bytes: number;
    working_bytes: number;
    /** All of them, with what the engine takes otherwise. */
    peak_bytes: number;
    scratch_bytes: number;
  } | null;
}

export interface DequantizeOptions extends JobOptions {
  /** Type of the weights. Default: `f16`, but `f32` where the quantized model rounds activations so that f16 would change its predictions. */
  dtype?: "f16" | "f32";
  target?: Target;
}

export interface ConvertOptions extends JobOptions {
  format: Format | "gguf";
  /** Fail where anything would be lost. */
  strict?: boolean;
  /** For `gguf`: what floating-point matrices become. Default: `f16`. */
  ggufType?: "f32" | "f16" | "bf16" | "q8_0" | "q4_0" | "q4_1" | "q4_k" | "tq2_0";
  /** For `gguf`: the name of the file. Default: `model.gguf`. */
  file?: string;
  target?: Target;
}

/** What a conversion kept and lost. */
export interface ConvertSummary {
  format: string;
  notes: string[];
  losses: { name: string; loss: string }[];
  largest_weight_difference: number | null;
}

/** Where a model runs: `auto` takes a GPU where there is one that can. */
export type Device = "auto" | "cpu" | "gpu";

/** Precision of the activations that meet the linear layers. */
export type Activations = "f32" | "int8";

export interface LoadOptions extends JobOptions {
  /** Default: `auto`. */
  device?: Device;
  /** Default: what the checkpoint says, mostly `f32`. */
  activations?: Activations;
}

/** Where and how a model runs. */
export interface ModelInfo {
  device: string;
  activations: Activations;
  /** Why it runs on the CPU although the device was `auto`. */
  why_cpu: string | null;
  max_position_embeddings: number;
  vocab_size: number;
}

export interface GenerateOptions extends JobOptions {
  /** Default: 100. */
  maxTokens?: number;
  /** 0, the default, takes the likeliest token each time. */
  temperature?: number;
  /** Choose among the likeliest `topK` tokens; 0, the default: all. */
  topK?: number;
  /** Choose among the likeliest tokens whose probabilities reach `topP` together. Default: 1, all. */
  topP?: number;
  /** Leave out tokens below this share of the likeliest one's probability. Default: 0. */
  minP?: number;
  /** Above 1, discourages tokens that were there already. Default: 1. */
  repetitionPenalty?: number;
  /** Where the random numbers start: the same seed gives the same text. Default: 0. */
  seed?: number;
  /** Stop before any of these. */
  stop?: readonly string[];
  /** Go on where the model says that it has ended. Default: false. */
  ignoreEos?: boolean;
}

/** A finished generation. */
export interface GenerateResult {
  text: string;
  token_ids: number[];
  prompt_ids: number[];
  /** `eos_token`: the model ended; `length`: after `maxTokens`; `stop_sequence`: before one of `stop`. */
  finish_reason: string;
  /** Tokens of a chat's prompt that an earlier turn had run already. */
  reused_tokens: number;
  tokens_per_second: number | null;
  prefill_seconds: number;
  /** Kernels that a GPU runs for one token. */
  dispatches_per_token: number | null;
}

/** One turn of a chat. The checkpoint's template gets all of it but what is null, as in transformers. */
export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool" | (string & {});
  /** What was said: text or parts, as the template takes them; null or left out where the turn only calls tools. */
  content?: string | null | readonly object[];
  /** What else the template reads: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`. Plain data. */
  [key: string]: unknown;
}

export interface PerplexityOptions extends JobOptions {
  /** Tokens that the model sees at once. Default: what it was made for, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: windows do not overlap. */
  stride?: number;
}

export interface PerplexityResult {
  perplexity: number;
  tokens: number;
  context: number;
  stride: number | null;
}

export interface Limits {
  /** Share by which perplexity may increase. Default: 0.02. */
  maxPerplexityIncrease?: number;
  /** Points by which the benchmark's accuracy may drop. Default: 2. */
  maxBenchmarkDropPoints?: number;
  /** Generation failures that the original does not show. Default: 0. */
  maxNewFailures?: number;
  /** How many times smaller the quantized layers must be than in f16. Default: by scheme, 3.4 for INT4. */
  minMemoryRatio?: number;
  /** How many times faster decoding must be. Default: 1.5. */
  minSpeedRatio?: number;
}

export interface ValidateOptions extends PerplexityOptions {
  /** Texts that the models have not seen; several are put together with a blank line between them. */
  texts: string | readonly string[];
  /** What the report calls the texts. */
  name?: string;
  /** Prompts that both models continue. Default: eight passages of the texts. */
  prompts?: readonly string[];
  /** New tokens for each prompt. Default: 64. */
  maxTokens?: number;
  /** Multiple-choice questions as JSON lines. */
  benchmark?: string;
  /** Rounds of timing; 0 leaves speed out. Default: 7. */
  speedRounds?: number;
  activations?: Activations;
  /** Bytes that two models may take; beyond them they run layer by layer. */
  memory?: number;
  limits?: Limits;
  device?: Device;
}

/** `validation_report.json`. */
export interface ValidationReport {
  schema: "lowbit.validation/1";
  original: { path: string; parameters: number; bytes: number };
  quantized: {
    path: string;
    method: string;
    scheme: string;
    bits_per_weight: number;
    bytes: number;
    activations: string;
  };
  execution: "side-by-side" | "layer-streamed";
  dataset: { name: string; tokens: number; sha256: string };
  perplexity: { original: number | null; quantized: number | null; increase: number | null };
  divergence: { kl_mean: number | null; kl_p99: number | null; top1_agreement: number };
  benchmark: { items: number; original: number; quantized: number; drop_points: number } | null;
  layers: { name: string; scheme: string; snr_db: number | null; max_abs_error: number }[];
  memory: { original_bytes: number; quantized_bytes: number; ratio: number };
  speed: {
    device: string;
    original_tokens_per_second: number;
    quantized_tokens_per_second: number;
    ratio: number;
    spread: number;
  } | null;
  generation: {
    prompts: number;
    /** `text` is what the quantized model wrote after the prompt; of a very long one only its end, after an ellipsis. */
    failures: { prompt: string; kind: string; detail: string; original_also: boolean; text: string }[];
  };
  criteria: { name: string; limit: number; value: number | null; status: "passed" | "failed" | "inconclusive" }[];
  accepted: boolean;
  recommendation: string;
}

/** What a search for a good enough result tries, and by what it judges. */
export interface AutoOptions extends JobOptions {
  /** Texts to judge by, which the models have not seen. */
  texts: string | readonly string[];
  /** What the reports call the texts. */
  name?: string;
  /** Texts to learn from. `samples` here is of no importance; see `samples` below. */
  calibration: Calibration | readonly string[];
  /** Default: `gptq`. */
  method?: "gptq" | "awq";
  /** Where to begin. Default: what `plan` recommends for the size. */
  bits?: 4 | 8;
  /** Bytes that may be used, for that recommendation. */
  memory?: number;
  /** Numbers of calibration samples to try, growing. Default: 512, 2048. */
  samples?: readonly number[];
  /** Where the models run that learn and are judged. Default: `auto`. */
  device?: Device;
  /** How results are judged; see `ValidateOptions`. */
  validate?: Pick<
    ValidateOptions,
    "context" | "stride" | "prompts" | "maxTokens" | "benchmark" | "speedRounds" | "activations" | "limits"
  >;
  /** Gets a folder for each attempt, and `quantization_summary.json`. Default: memory. Streams cannot be read again, so not those. */
  target?: Exclude<Target, (file: string) => unknown>;
  /** Hears what is tried and how it was judged. */
  onEvent?: (event: AutoEvent) => void;
}

export type AutoEvent =
  | { kind: "checkpoint"; name: string; reason: string; rungs: string[] }
  | { kind: "attempt"; name: string; raised: string[] }
  | { kind: "judged"; name: string; report: ValidationReport; judgement: "good" | "bad" | "hopeless" };

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
    method: string;
    scheme: string;
    bits_per_weight: number;
    bytes: number;
    perplexity: number | null;
    perplexity_increase: number | null;
    tokens_per_second: number | null;
    accepted: boolean;
    recommendation: string;
    attempt?: {
      name: string;
      checkpoint: string;
      samples: number;
      tokens: number;
      raised: string[];
      failed: string[];
      good: boolean;
    };
  }[];
  outcome?: { accepted: string | null; recommendation: string };
}

export interface CompareOptions extends JobOptions {
  prompts: readonly string[];
  /** Default: 64. */
  maxTokens?: number;
  device?: Device;
}

/** What two models made of one prompt. */
export interface Comparison {
  prompt: string;
  a: { token_ids: number[]; text: string; finish_reason: string | null };
  b: { token_ids: number[]; text: string; finish_reason: string | null };
  /** The first new token, counted from 0, in which they differ. */
  first_difference: number | null;
}

export interface PlanOptions {
  /** Bytes that may be used. */
  memory?: number;
  /** Tokens that the KV cache has room for. */
  context?: number;
}

/** What a model needs at each precision. */
export interface Plan {
  parameters: number;
  estimated: boolean;
  context: number;
  memory: number | null;
  precisions: {
    precision: "f32" | "f16" | "int8" | "int4" | "ternary";
    linear_bytes: number;
    embedding_bytes: number;
    head_bytes: number;
    norm_bytes: number;
    weight_bytes: number;
    kv_cache_bytes: number;
    working_bytes: number;
    total_bytes: number;
    fits: number | null;
  }[];
  recommendation: { precision: string; reason: string };
}

/** What models can run on here. */
export interface Capabilities {
  /** `simd128`, or `relaxed-simd` where the processor and the runtime do it right. */
  engine: string;
  /** Whether the engine runs in a thread of its own. */
  worker: boolean;
  cpu: string;
  adapters: {
    name: string;
    api: string;
    kind: "discrete" | "integrated" | "virtual" | "software" | "other";
    /** The driver in words; browsers do not tell. */
    driver: string;
    max_binding_bytes: number;
    /** Kernels that run because this adapter has more than WebGPU's core. */
    fast_kernels: string[];
    /** Fast kernels that failed the check and gave way to simpler ones: a sentence each. */
    replaced: string[];
    /** Why no model can run on it; null where its kernels compute what the CPU computes. */
    error: string | null;
  }[];
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
