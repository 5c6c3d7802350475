/**
 * The options as the engine reads them. Written by `cargo xtask generate` from what the crate declares; changes belong there.
 */
import type { KeptPlace, Recipe } from "./types.js";

/**
 * The precision of activations in products with quantized weights. An option of the run, recorded in every report.
 *
 * - `f32`: Single precision; weights are dequantized on the fly
 * - `int8`: Each token's activations are rounded to 8 bits; products are summed as integers
 */
export type Activations = "f32" | "int8";

/**
 * What an adapter is
 *
 * - `discrete`: A GPU with memory of its own
 * - `integrated`: A GPU that shares the processor's memory
 * - `virtual`: A GPU behind virtualization
 * - `other`: Not known, as in browsers
 * - `software`: A program that computes on the processor
 */
export type AdapterKind = "discrete" | "integrated" | "virtual" | "other" | "software";

/**
 * The families of decoders that share the one implementation, by the `model_type` of config.json
 *
 * - `llama`: Llama 1 to 3 and everything that calls itself `llama`
 * - `mistral`: Mistral without a sliding window
 * - `qwen2`: Qwen 2 and 2.5: biases on q, k and v
 * - `qwen3`: Qwen 3: each head of q and k is normalized
 * - `bitnet`: BitNet b1.58: squared ReLU and a norm before each output projection
 */
export type Architecture = "llama" | "mistral" | "qwen2" | "qwen3" | "bitnet";

/** Attempts and limits of a search. */
export interface AutoRequest {
  /** The text to predict. */
  texts: string | readonly string[];
  /** Name of the text in results. Default: text. */
  name?: string;
  /** Tokens in a window. Default: the model's context, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: no overlap. */
  stride?: number;
  /** Calibration texts. */
  calibration?: TextsOptions;
  /** Numbers of calibration samples to try, ascending. Default: 512, 2048. */
  samples?: readonly number[];
  /** Quantization method. Default: gptq. */
  method?: LearningMethod;
  /** Initial precision, 4 or 8 bits. Default: recommended for the model's size. */
  bits?: 2 | 3 | 4 | 8;
  /** Upper limit of mean bits per weight with scales, instead of an initial precision; bits are chosen for each layer. */
  targetBpw?: number;
  /** Measurements besides perplexity. */
  validate?: MeasureOptions;
  /** Available memory in bytes; two models that need more run layer by layer. Default: free memory, if known. */
  memory?: number;
  /** Always hold one block at a time instead of two models. Default: false. */
  layerStreamed?: boolean;
  /** Always hold both models. Default: false. */
  sideBySide?: boolean;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}

/** Calibration data. */
export interface CalibrationRequest {
  /** Calibration texts. */
  texts?: readonly string[];
  /** Token ids, appended to those of the texts. */
  tokens?: Uint32Array | readonly number[];
  /** Tokens in a sample, including the BOS token. Default: the model's context, at most 2048. */
  sequenceLength?: number;
  /** Seed to draw samples from the whole texts instead of their start. */
  seed?: number;
  /** Calibration samples. Default: 128. */
  samples?: number;
}

/**
 * Column orders of rounding.
 *
 * - `none`: Stored order
 * - `group-aware`: Groups with the largest inputs first, and columns within a group likewise; the order is not stored
 * - `static`: Columns with the largest inputs first; groups in stored order, with scales determined beforehand
 * - `group-index`: Columns with the largest inputs first, with groups along that order; each column's group is stored (g_idx)
 */
export type ColumnOrder = "none" | "group-aware" | "static" | "group-index";

/** Prompts for two models. */
export interface CompareRequest {
  /** Texts to continue. */
  prompts: readonly string[];
  /** At most this many new tokens. Default: 64. */
  maxTokens?: number;
  /** Precision of the linear layers' input activations. Default: the checkpoint's, usually f32. */
  activations?: Activations;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}

/** The output of a conversion. */
export interface ConvertRequest {
  /** The layout to write. */
  format: Format;
  /** Fail if anything would be lost. Default: false. */
  strict?: boolean;
  /** For gguf: the type of the blocks' floating-point matrices. Default: f16. */
  ggufType?: GgufType;
  /** For gguf: the file name. Default: model.gguf. */
  file?: string;
}

/**
 * By what a quantized model is judged
 *
 * - `perplexity_increase`: Quality, decided by perplexity: quantized / original - 1
 * - `benchmark_drop_points`: Quality, decided by the benchmark: the drop in points
 * - `new_generation_failures`: Failures that only the quantized model shows
 * - `memory_ratio`: f16 bytes / packed bytes
 * - `speed_ratio`: Quantized / original tokens per second
 */
export type Criterion = "perplexity_increase" | "benchmark_drop_points" | "new_generation_failures" | "memory_ratio" | "speed_ratio";

/** The output of dequantizing, and the comparison of its predictions. */
export interface DequantizeRequest {
  /** Type of the weights. Default: f16; f32 where f16 would change the predictions because activations are rounded. */
  dtype?: FloatType;
  /** Compare predictions on this text. */
  texts?: string | readonly string[];
  /** Tokens in a window. Default: the model's context, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: no overlap. */
  stride?: number;
  /** Minimal share of the original's predictions that the dequantized model must keep. Default: 0.995; 0.99 for training. */
  minRetention?: number;
}

/**
 * Where a model is to run.
 *
 * - `auto`: On a GPU where there is one that can, otherwise on the CPU; not on a software adapter, which is slower
 * - `cpu`: On the CPU
 * - `gpu`: On a GPU
 */
export type DeviceChoice = "auto" | "cpu" | "gpu";

/**
 * How the two models were run; affects no figure but speed
 *
 * - `side-by-side`: Both in memory
 * - `layer-streamed`: Block by block, hidden states in scratch; speed is not measured
 */
export type Execution = "side-by-side" | "layer-streamed";

/**
 * A kind of failure in a generated text
 *
 * - `repetition_loop`: The text ends in a repeating cycle of tokens
 * - `degenerate_text`: Little variety, or mostly characters that are not text
 * - `non_finite_logits`: The model's logits contain NaN or infinity
 * - `empty_output`: Only white space was generated
 */
export type FailureKind = "repetition_loop" | "degenerate_text" | "non_finite_logits" | "empty_output";

/**
 * Why generation ended, by the names of Hugging Face's text-generation interfaces
 *
 * - `eos_token`: The model chose an end-of-sequence token
 * - `stop_sequence`: A stop string was complete
 * - `length`: As many tokens as were asked for
 */
export type FinishReason = "eos_token" | "stop_sequence" | "length";

/**
 * Floating-point types of weights.
 *
 * - `f16`: Half precision
 * - `f32`: Single precision
 */
export type FloatType = "f16" | "f32";

/**
 * Layouts of the output.
 *
 * - `compressed-tensors`: compressed-tensors, for vLLM and transformers
 * - `gptq`: GPTQ version 1, read by every tool
 * - `gptq-v2`: GPTQ version 2, with exact zero points
 * - `awq`: AWQ gemm
 * - `bitnet`: BitNet ternary weights, as in transformers
 * - `gguf`: One file for llama.cpp
 */
export type Format = "compressed-tensors" | "gptq" | "gptq-v2" | "awq" | "bitnet" | "gguf";

/** How text is generated. */
export interface GenerateOptions {
  /** At most this many new tokens. Default: 100. */
  maxTokens?: number;
  /** 0 takes the likeliest token each time; above, logits are divided by it. Default: 0.0. */
  temperature?: number;
  /** Choose among so many of the likeliest tokens; 0: all. Default: 0. */
  topK?: number;
  /** Choose among the likeliest tokens that together reach this probability; 1: all. Default: 1.0. */
  topP?: number;
  /** Leave out tokens below this share of the likeliest one's probability. Default: 0.0. */
  minP?: number;
  /** Above 1: discourage tokens that the prompt or the output already has. Default: 1.0. */
  repetitionPenalty?: number;
  /** Where the random numbers start: the same seed gives the same text. Default: 0. */
  seed?: number;
  /** Stop before any of these texts. */
  stop?: readonly string[];
  /** Go on after an end-of-sequence token. Default: false. */
  ignoreEos?: boolean;
  /** Let the text begin as it follows the prompt, with the space that stands between them, and not as other tools report it. Default: false. */
  continuePrompt?: boolean;
}

/**
 * GGUF types for floating-point matrices.
 *
 * - `f32`: Single precision
 * - `f16`: Half precision
 * - `bf16`: bfloat16
 * - `q8_0`: 8 bits
 * - `q4_0`: 4 bits
 * - `q4_1`: 4 bits with a minimum
 * - `q4_k`: 4 bits, blocks of 256 columns
 * - `tq2_0`: Ternary, blocks of 256 columns
 */
export type GgufType = "f32" | "f16" | "bf16" | "q8_0" | "q4_0" | "q4_1" | "q4_k" | "tq2_0";

/** Options of GPTQ. */
export interface GptqOptions {
  /** gptq: damping, as a share of the Hessian's mean diagonal. Default: 0.05. */
  damping?: number;
  /** gptq: column order of rounding. Default: group-aware. */
  actOrder?: ColumnOrder;
  /** gptq: rule for a group's scale. Default: least-error. */
  scales?: ScaleRule;
  /** gptq: refinement passes over codes and scales after rounding; 0: none; ignored with act-order group-index. Default: 2. */
  refinementPasses?: number;
  /** gptq: the inputs that define a layer's target output. Default: original. */
  referenceInputs?: ReferenceInputs;
}

/**
 * The two versions, under their usual names.
 *
 * - `v1`: Files store the zero point minus one
 * - `v2`: Files store the zero point as it is
 */
export type GptqZeros = "v1" | "v2";

/**
 * Judgement of an attempt
 *
 * - `good`: Quality and generation are within the limits, or undetermined
 * - `bad`: One of them is beyond its limit
 * - `hopeless`: The original's perplexity is not finite, so that nothing can be judged
 */
export type Judgement = "good" | "bad" | "hopeless";

/**
 * How weights are spelled in files
 *
 * - `dense`: As floating-point numbers
 * - `compressed-tensors`: compressed-tensors, for vLLM and transformers
 * - `gptq`: GPTQ version 1, read by every tool
 * - `gptq_v2`: GPTQ version 2, with exact zero points
 * - `awq`: AWQ gemm
 * - `bitnet`: BitNet ternary weights, as in transformers
 * - `gguf`: One file for llama.cpp
 */
export type Layout = "dense" | "compressed-tensors" | "gptq" | "gptq_v2" | "awq" | "bitnet" | "gguf";

/**
 * The calibrated methods.
 *
 * - `gptq`: Rounds column by column and compensates errors
 * - `awq`: Scales columns with large inputs
 */
export type LearningMethod = "gptq" | "awq";

/** The limits of the verdict. */
export interface Limits {
  /** Perplexity may increase by less than this fraction. Default: 0.02. */
  maxPerplexityIncrease?: number;
  /** Benchmark accuracy may drop by less than this many percentage points. Default: 2.0. */
  maxBenchmarkDropPoints?: number;
  /** Allowed number of generation failures that the original does not show. Default: 0. */
  maxNewFailures?: number;
  /** Required ratio of f16 to packed bytes of the quantized layers. Default: by scheme, 3.4 for INT4. */
  minMemoryRatio?: number;
  /** Required decoding speed, as a multiple of the original's. Default: 1.5. */
  minSpeedRatio?: number;
}

/** How a model is loaded. */
export interface LoadRequest {
  /** Precision of the linear layers' input activations. Default: the checkpoint's, usually f32. */
  activations?: Activations;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}

/** Measurements besides perplexity, and their limits. */
export interface MeasureOptions {
  /** Prompts that both models continue. Default: passages of the text. */
  prompts?: readonly string[];
  /** New tokens for each prompt. Default: 64. */
  maxTokens?: number;
  /** Multiple-choice questions as JSON lines. */
  benchmark?: string;
  /** Rounds of the speed measurement; 0 turns it off. Default: 7. */
  speedRounds?: number;
  /** Limits of the verdict. */
  limits?: Limits;
  /** Precision of the quantized model's activations. Default: the checkpoint's, usually f32. */
  activations?: Activations;
}

/**
 * Quantization methods.
 *
 * - `rtn`: Round to nearest
 * - `gptq`: GPTQ: calibrated rounding, column by column, with error compensation
 * - `awq`: AWQ: calibrated scaling of columns with large inputs
 * - `ternary`: -1, 0 and 1, as in BitNet b1.58
 */
export type Method = "rtn" | "gptq" | "awq" | "ternary";

/** What a caller knows about a checkpoint beyond its files. */
export interface OpenOptions {
  /** How a GPTQ checkpoint stores asymmetric zero points: v1 minus one, v2 unchanged. Default: from the files. */
  gptqZeros?: GptqZeros;
}

/** The text for perplexity. */
export interface PerplexityRequest {
  /** The text to predict. */
  texts: string | readonly string[];
  /** Name of the text in results. Default: text. */
  name?: string;
  /** Tokens in a window. Default: the model's context, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: no overlap. */
  stride?: number;
}

/** The workload of a memory plan. */
export interface PlanRequest {
  /** Available memory in bytes. */
  memory?: number;
  /** Tokens in the KV cache. Default: the model's context, at most 2048. */
  context?: number;
}

/**
 * A precision of the linear layers
 *
 * - `f32`: Single precision
 * - `f16`: Half precision
 * - `int8`: 8 bits
 * - `int4`: 4 bits
 * - `ternary`: -1, 0 and 1
 */
export type Precision = "f32" | "f16" | "int8" | "int4" | "ternary";

/** Options of quantizing. */
export interface QuantizeRequest {
  /** Quantization method; gptq and awq need calibration texts. Default: rtn. */
  method?: Method;
  /** Bits per weight. Default: 4. */
  bits?: 2 | 3 | 4 | 8;
  /** Weights per scale; -1: a whole row. Default: 128, and -1 for 8 bits. */
  groupSize?: number;
  /** Symmetric codes, without zero points. Default: true. */
  symmetric?: boolean;
  /** Rules that change bits, group size or method of some modules, or keep them in floating point. */
  recipe?: Recipe;
  /** Choose bits for each module so that all output tensors take at most so many bytes, by sensitivity on the calibration texts. */
  targetBytes?: number;
  /** The same for mean bits per weight of the quantized modules, including scales and zero points. */
  targetBpw?: number;
  /** Quantize the head too. Default: false. */
  quantizeHead?: boolean;
  /** Quantize the embedding too, to this many bits. */
  quantizeEmbedding?: 2 | 3 | 4 | 8;
  /** Weights per ternary scale. Default: tensor. */
  ternaryScale?: TernaryScale;
  /** Ternary threshold: weights below this share of the scale become 0. Default: 0.5, rounding to nearest. */
  sparsityThreshold?: number;
  /** Precision of activations declared in the output. */
  activations?: Activations;
  /** The layout to write. Default: compressed-tensors; bitnet for ternary weights with one scale a tensor. */
  format?: Format;
  /** Name of a GGUF file. Default: model.gguf. */
  file?: string;
  /** Fail if the layout cannot hold a module's scheme, instead of using the nearest one. Default: false. */
  strict?: boolean;
  /** Round a dequantized checkpoint to its former grid; unchanged weights get their former codes. Default: false. */
  fromMetadata?: boolean;
  /** Options of gptq. */
  gptq?: GptqOptions;
  /** Calibration texts of gptq and awq, preferably like those the model will read. */
  calibration?: CalibrationRequest;
  /** Calibrated methods: refuse to start if more bytes of memory are needed; then runs on the CPU unless a device is given. */
  memory?: number;
  /** Calibrated methods: keep finished blocks here and continue after an interruption; emptied at the end. */
  resume?: KeptPlace;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}

/**
 * Inputs that define a layer's target output.
 *
 * - `original`: The unquantized model's; corrects errors of earlier layers
 * - `quantized`: The quantized model's, as in GPTQ's paper
 */
export type ReferenceInputs = "original" | "quantized";

/**
 * Rules for a group's scale.
 *
 * - `range`: The range of its weights, as in GPTQ's paper
 * - `least-error`: A search for the least error, weighted by importance
 */
export type ScaleRule = "range" | "least-error";

/**
 * The result of a criterion
 *
 * - `passed`: Within the limit
 * - `failed`: Outside the limit, or not a finite number
 * - `inconclusive`: The measurement cannot tell; does not reject
 */
export type Status = "passed" | "failed" | "inconclusive";

/**
 * Granularities of ternary scales.
 *
 * - `tensor`: A whole matrix
 * - `channel`: A row
 */
export type TernaryScale = "tensor" | "channel";

/** Calibration texts and their samples. */
export interface TextsOptions {
  /** Calibration texts. */
  texts?: readonly string[];
  /** Token ids, appended to those of the texts. */
  tokens?: Uint32Array | readonly number[];
  /** Tokens in a sample, including the BOS token. Default: the model's context, at most 2048. */
  sequenceLength?: number;
  /** Seed to draw samples from the whole texts instead of their start. */
  seed?: number;
}

/** Measurements and limits of a validation. */
export interface ValidateRequest {
  /** The text to predict. */
  texts: string | readonly string[];
  /** Name of the text in results. Default: text. */
  name?: string;
  /** Tokens in a window. Default: the model's context, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: no overlap. */
  stride?: number;
  /** Prompts that both models continue. Default: passages of the text. */
  prompts?: readonly string[];
  /** New tokens for each prompt. Default: 64. */
  maxTokens?: number;
  /** Multiple-choice questions as JSON lines. */
  benchmark?: string;
  /** Rounds of the speed measurement; 0 turns it off. Default: 7. */
  speedRounds?: number;
  /** Limits of the verdict. */
  limits?: Limits;
  /** Precision of the quantized model's activations. Default: the checkpoint's, usually f32. */
  activations?: Activations;
  /** Available memory in bytes; two models that need more run layer by layer. Default: free memory, if known. */
  memory?: number;
  /** Always hold one block at a time instead of two models. Default: false. */
  layerStreamed?: boolean;
  /** Always hold both models. Default: false. */
  sideBySide?: boolean;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}
