/**
 * The options as the engine reads them. Written by `cargo xtask generate` from what the crate declares; changes belong there.
 */
import type { KeptPlace, Recipe } from "./types.js";

/**
 * The precision of the activations that meet a quantized weight. An option of the run, recorded in every report.
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

/** What a search for a good enough result tries, and by what it judges. */
export interface AutoRequest {
  /** The text to predict. */
  texts: string | readonly string[];
  /** What results call the text. Default: text. */
  name?: string;
  /** Tokens that the model sees at once. Default: what the model was made for, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: windows do not overlap. */
  stride?: number;
  /** What is learned from. */
  calibration?: TextsOptions;
  /** Numbers of calibration samples to try, growing. Default: 512, 2048. */
  samples?: readonly number[];
  /** How codes are found. Default: gptq. */
  method?: LearningMethod;
  /** Where to begin, 4 or 8 bits. Default: what a plan recommends for the size. */
  bits?: 2 | 3 | 4 | 8;
  /** The most bits a weight that may be used, with scales, in place of bits to begin with: each layer gets what fits best. */
  targetBpw?: number;
  /** What is measured beside perplexity. */
  validate?: MeasureOptions;
  /** Memory that may be used, in bytes; two models that take more run layer by layer. Default: what is free, where that is known. */
  memory?: number;
  /** Hold one block at a time instead of two models, however much memory there is. Default: false. */
  layerStreamed?: boolean;
  /** Hold both models, however little memory there is. Default: false. */
  sideBySide?: boolean;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}

/** What a method learns from. */
export interface CalibrationRequest {
  /** Texts to learn from. */
  texts?: readonly string[];
  /** Token ids, after those of the texts. */
  tokens?: Uint32Array | readonly number[];
  /** Tokens of a sample, the one in front included. Default: what the model was made for, at most 2048. */
  sequenceLength?: number;
  /** Draw samples from everywhere in the texts, by this number, instead of from their start. */
  seed?: number;
  /** Calibration samples. Default: 128. */
  samples?: number;
}

/**
 * The order in which columns are rounded.
 *
 * - `none`: As columns are stored
 * - `group-aware`: Groups with the largest inputs first, and so the columns of each group; the result is stored like any other
 * - `static`: Columns with the largest inputs first, on groups as they are stored, whose scales are found beforehand
 * - `group-index`: Columns with the largest inputs first, with groups along that order; the result names each column's group (g_idx)
 */
export type ColumnOrder = "none" | "group-aware" | "static" | "group-index";

/** What two models continue. */
export interface CompareRequest {
  /** Texts to continue. */
  prompts: readonly string[];
  /** At most this many new tokens. Default: 64. */
  maxTokens?: number;
  /** Precision of the activations that meet the linear layers. Default: what the checkpoint says, mostly f32. */
  activations?: Activations;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}

/** What a conversion makes. */
export interface ConvertRequest {
  /** The layout to write. */
  format: Format;
  /** Fail where anything would be lost. Default: false. */
  strict?: boolean;
  /** For gguf: what floating-point matrices of the blocks become. Default: f16. */
  ggufType?: GgufType;
  /** For gguf: the name of the file. Default: model.gguf. */
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

/** What dequantizing makes, and on what its predictions are compared. */
export interface DequantizeRequest {
  /** Type of the weights. Default: f16; f32 where the quantized model rounds activations so that f16 would change its predictions. */
  dtype?: FloatType;
  /** Compare predictions on this text. */
  texts?: string | readonly string[];
  /** Tokens that the model sees at once. Default: what the model was made for, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: windows do not overlap. */
  stride?: number;
  /** The share of predictions that the dequantized model shall keep of the original's. Default: 0.995; 0.99 for training. */
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
 * How the two models were run; of no influence on any figure but speed
 *
 * - `side-by-side`: Both in memory
 * - `layer-streamed`: Block by block, hidden states in scratch; speed is not measured
 */
export type Execution = "side-by-side" | "layer-streamed";

/**
 * What went wrong in a generated text
 *
 * - `repetition_loop`: The end of the text is one cycle of tokens over and over
 * - `degenerate_text`: Hardly any variety, or hardly any text
 * - `non_finite_logits`: NaN or infinity came out of the model
 * - `empty_output`: Nothing but white space came out
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
 * A type of weights in floating point.
 *
 * - `f16`: Half precision
 * - `f32`: Single precision
 */
export type FloatType = "f16" | "f32";

/**
 * How weights are spelled: as the tools of these names do.
 *
 * - `compressed-tensors`: compressed-tensors, which vLLM and transformers read
 * - `gptq`: GPTQ as version 1, which every tool reads
 * - `gptq-v2`: GPTQ with zero points as they are
 * - `awq`: AWQ's gemm
 * - `bitnet`: BitNet's ternary weights, as transformers has them
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
 * What floating-point matrices become in a GGUF file, by the names of the format.
 *
 * - `f32`: Single precision
 * - `f16`: Half precision
 * - `bf16`: bfloat16
 * - `q8_0`: 8 bits
 * - `q4_0`: 4 bits
 * - `q4_1`: 4 bits and a minimum
 * - `q4_k`: 4 bits in blocks of 256 columns
 * - `tq2_0`: Ternary; rows of 256 columns
 */
export type GgufType = "f32" | "f16" | "bf16" | "q8_0" | "q4_0" | "q4_1" | "q4_k" | "tq2_0";

/** How GPTQ works. */
export interface GptqOptions {
  /** gptq: share of the Hessian's mean diagonal that is added to its diagonal. Default: 0.05. */
  damping?: number;
  /** gptq: the order in which columns are rounded. Default: group-aware. */
  actOrder?: ColumnOrder;
  /** gptq: where the scale of a group comes from. Default: least-error. */
  scales?: ScaleRule;
  /** gptq: how often codes and scales are gone over again for less output error; 0: gptq alone. Not with groups along the order of columns, which are scattered. Default: 2. */
  refinementPasses?: number;
  /** gptq: the inputs that define a layer's target output. Default: original. */
  referenceInputs?: ReferenceInputs;
}

/**
 * The two versions, as people name them.
 *
 * - `v1`: Files store the zero point minus one
 * - `v2`: Files store the zero point as it is
 */
export type GptqZeros = "v1" | "v2";

/**
 * What a report means for what to try next
 *
 * - `good`: Quality and generation are within the limits, or could not be told
 * - `bad`: One of them is not
 * - `hopeless`: The original itself has no finite perplexity here, so that no precision can be judged
 */
export type Judgement = "good" | "bad" | "hopeless";

/**
 * How weights are spelled in files
 *
 * - `dense`: As floating-point numbers
 * - `compressed-tensors`: compressed-tensors, which vLLM and transformers read
 * - `gptq`: GPTQ as version 1, which every tool reads
 * - `gptq_v2`: GPTQ with zero points as they are
 * - `awq`: AWQ's gemm
 * - `bitnet`: BitNet's ternary weights, as transformers has them
 * - `gguf`: One file for llama.cpp
 */
export type Layout = "dense" | "compressed-tensors" | "gptq" | "gptq_v2" | "awq" | "bitnet" | "gguf";

/**
 * The methods that learn from texts.
 *
 * - `gptq`: Which way to round, column by column
 * - `awq`: Which columns to round more finely
 */
export type LearningMethod = "gptq" | "awq";

/** What a model must reach. */
export interface Limits {
  /** Perplexity must increase by less than this share. Default: 0.02. */
  maxPerplexityIncrease?: number;
  /** Benchmark accuracy must drop by less than so many points. Default: 2.0. */
  maxBenchmarkDropPoints?: number;
  /** At most so many generation failures that the original does not show. Default: 0. */
  maxNewFailures?: number;
  /** Quantized layers must be so many times smaller than in f16. Default: by scheme, 3.4 for INT4. */
  minMemoryRatio?: number;
  /** Decoding must be so many times faster. Default: 1.5. */
  minSpeedRatio?: number;
}

/** How a model is loaded. */
export interface LoadRequest {
  /** Precision of the activations that meet the linear layers. Default: what the checkpoint says, mostly f32. */
  activations?: Activations;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}

/** What to measure beside perplexity, and by what to judge it. */
export interface MeasureOptions {
  /** Prompts that both models continue. Default: passages of the text. */
  prompts?: readonly string[];
  /** New tokens for each prompt. Default: 64. */
  maxTokens?: number;
  /** Multiple-choice questions as JSON lines. */
  benchmark?: string;
  /** Rounds of the speed measurement; 0 leaves it out. Default: 7. */
  speedRounds?: number;
  /** By what the measurements are judged. */
  limits?: Limits;
  /** Precision of the quantized model's activations. Default: what the checkpoint says, mostly f32. */
  activations?: Activations;
}

/**
 * How codes are found.
 *
 * - `rtn`: Round to nearest
 * - `gptq`: Learn from calibration texts which way to round, column by column
 * - `awq`: Learn from calibration texts which columns to round more finely
 * - `ternary`: -1, 0 and 1 as BitNet b1.58 makes them
 */
export type Method = "rtn" | "gptq" | "awq" | "ternary";

/** What a caller knows about a checkpoint that its files do not say. */
export interface OpenOptions {
  /** How a GPTQ checkpoint stores asymmetric zero points: v1 minus one, v2 as they are. Default: what the files say. */
  gptqZeros?: GptqZeros;
}

/** The text that a model predicts. */
export interface PerplexityRequest {
  /** The text to predict. */
  texts: string | readonly string[];
  /** What results call the text. Default: text. */
  name?: string;
  /** Tokens that the model sees at once. Default: what the model was made for, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: windows do not overlap. */
  stride?: number;
}

/** For what a plan of memory is made. */
export interface PlanRequest {
  /** Memory that may be used, in bytes. */
  memory?: number;
  /** Tokens that the KV cache has room for. Default: what the model was made for, at most 2048. */
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

/** What to quantize to, and how. */
export interface QuantizeRequest {
  /** How codes are found; gptq and awq need calibration texts. Default: rtn. */
  method?: Method;
  /** Bits of a weight. Default: 4. */
  bits?: 2 | 3 | 4 | 8;
  /** Weights that share a scale; -1: a whole row. Default: 128, and -1 for 8 bits. */
  groupSize?: number;
  /** Whether groups have no zero point of their own. Default: true. */
  symmetric?: boolean;
  /** Rules that give some modules other bits, group size or method, or keep them. */
  recipe?: Recipe;
  /** Choose bits for each module so that all files' tensors take at most so many bytes; by what each loses on the calibration texts. */
  targetBytes?: number;
  /** The same, for mean bits of a weight in the quantized modules, scales and zero points included. */
  targetBpw?: number;
  /** Quantize the head too. Default: false. */
  quantizeHead?: boolean;
  /** Quantize the embedding too, to so many bits. */
  quantizeEmbedding?: 2 | 3 | 4 | 8;
  /** What a ternary scale is for. Default: tensor. */
  ternaryScale?: TernaryScale;
  /** Ternary weights below this share of the scale become 0. Default: those that round to 0. */
  sparsityThreshold?: number;
  /** Precision of the activations that the result is meant to run with. */
  activations?: Activations;
  /** The layout to write. Default: compressed-tensors, and bitnet for ternary weights with one scale a tensor. */
  format?: Format;
  /** The name of a GGUF file. Default: model.gguf. */
  file?: string;
  /** Fail where the layout cannot hold a module as asked for, instead of taking the nearest scheme. Default: false. */
  strict?: boolean;
  /** Go back to the grid that a dequantized checkpoint was on: unchanged weights get the codes that they had. Default: false. */
  fromMetadata?: boolean;
  /** How gptq works. */
  gptq?: GptqOptions;
  /** What gptq and awq learn from, best of the kind that the model will read. */
  calibration?: CalibrationRequest;
  /** Methods that calibrate: do not start where more memory than this would be needed, in bytes. Runs on the CPU then, for which it is planned, unless a device is chosen. */
  memory?: number;
  /** Methods that calibrate: keep what is done here, and go on from there after a run that was stopped. It is empty again when the work is done. */
  resume?: KeptPlace;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}

/**
 * Whose inputs define the outputs that a quantized layer is fitted to.
 *
 * - `original`: The original model's: a layer makes up for what the layers before it lost
 * - `quantized`: Those that the quantized layers before it make, as GPTQ's authors have it
 */
export type ReferenceInputs = "original" | "quantized";

/**
 * Where the scale of a group comes from.
 *
 * - `range`: The range of its weights, as GPTQ's authors have it
 * - `least-error`: A search for the least error, each weight's counted by its importance
 */
export type ScaleRule = "range" | "least-error";

/**
 * How a criterion came out
 *
 * - `passed`: Within the limit
 * - `failed`: Outside the limit, or not a finite number
 * - `inconclusive`: The measurement cannot tell; does not reject
 */
export type Status = "passed" | "failed" | "inconclusive";

/**
 * What a ternary scale is for.
 *
 * - `tensor`: A whole matrix
 * - `channel`: A row of it
 */
export type TernaryScale = "tensor" | "channel";

/** Texts that a method learns from, and how they are cut. */
export interface TextsOptions {
  /** Texts to learn from. */
  texts?: readonly string[];
  /** Token ids, after those of the texts. */
  tokens?: Uint32Array | readonly number[];
  /** Tokens of a sample, the one in front included. Default: what the model was made for, at most 2048. */
  sequenceLength?: number;
  /** Draw samples from everywhere in the texts, by this number, instead of from their start. */
  seed?: number;
}

/** What a validation measures, and by what it judges. */
export interface ValidateRequest {
  /** The text to predict. */
  texts: string | readonly string[];
  /** What results call the text. Default: text. */
  name?: string;
  /** Tokens that the model sees at once. Default: what the model was made for, at most 2048. */
  context?: number;
  /** Tokens from the start of one window to the next. Default: windows do not overlap. */
  stride?: number;
  /** Prompts that both models continue. Default: passages of the text. */
  prompts?: readonly string[];
  /** New tokens for each prompt. Default: 64. */
  maxTokens?: number;
  /** Multiple-choice questions as JSON lines. */
  benchmark?: string;
  /** Rounds of the speed measurement; 0 leaves it out. Default: 7. */
  speedRounds?: number;
  /** By what the measurements are judged. */
  limits?: Limits;
  /** Precision of the quantized model's activations. Default: what the checkpoint says, mostly f32. */
  activations?: Activations;
  /** Memory that may be used, in bytes; two models that take more run layer by layer. Default: what is free, where that is known. */
  memory?: number;
  /** Hold one block at a time instead of two models, however much memory there is. Default: false. */
  layerStreamed?: boolean;
  /** Hold both models, however little memory there is. Default: false. */
  sideBySide?: boolean;
  /** Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto. */
  device?: DeviceChoice;
  /** Run on the GPU adapter with this in its name, as the list of devices has it. */
  gpu?: string;
}
