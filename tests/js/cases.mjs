// Test cases of quantization, each as arguments of the command line and as options of the package.

/** How much of each text is used: enough for a meaningful result, but quick. */
export const HELD_OUT_BYTES = 2500;
export const CALIBRATION_BYTES = 12_000;
const SAMPLES = 4;
const SEQUENCE_LENGTH = 128;

export const PROMPTS = ["Once upon a time", "A cold wind blew over the hills, and Hazel the fox"];
export const NEW_TOKENS = 32;

const calibrated = ["--samples", String(SAMPLES), "--sequence-length", String(SEQUENCE_LENGTH)];
export const LITTLE = { samples: SAMPLES, sequenceLength: SEQUENCE_LENGTH };

/**
 * `args` are arguments of `lowbit quantize`, `options` those of `quantize`. `learns` is the calibration, if the case
 * needs one. `same` tells whether both write the same bytes, or only weights of the same quality.
 */
export const QUANTIZED = [
  { name: "int4 group 32", args: ["--bits", "4", "--group-size", "32"], options: { bits: 4, groupSize: 32 }, same: true },
  {
    name: "int4 group 128 with zero points",
    args: ["--bits", "4", "--asym"], options: { bits: 4, symmetric: false }, same: true,
  },
  { name: "int8", args: ["--bits", "8"], options: { bits: 8 }, same: true },
  { name: "int3 group 64", args: ["--bits", "3", "--group-size", "64"], options: { bits: 3, groupSize: 64 }, same: true },
  { name: "int2 group 32", args: ["--bits", "2", "--group-size", "32"], options: { bits: 2, groupSize: 32 }, same: true },
  {
    name: "int4 as awq",
    args: ["--bits", "4", "--group-size", "32", "--asym", "--format", "awq"],
    options: { bits: 4, groupSize: 32, symmetric: false, format: "awq" }, same: true,
  },
  {
    name: "int4 as gptq",
    args: ["--bits", "4", "--group-size", "32", "--format", "gptq"],
    options: { bits: 4, groupSize: 32, format: "gptq" }, same: true,
  },
  {
    name: "int4 with head and embedding",
    args: ["--bits", "4", "--group-size", "32", "--quantize-embedding", "8"],
    options: { bits: 4, groupSize: 32, quantizeEmbedding: 8 }, same: true,
  },
  { name: "ternary", args: ["--method", "ternary"], options: { method: "ternary" }, same: true },
  {
    name: "ternary by channel",
    args: ["--method", "ternary", "--ternary-scale", "channel"],
    options: { method: "ternary", ternaryScale: "channel" }, same: true,
  },
  {
    name: "gptq int4 group 32",
    args: ["--method", "gptq", "--bits", "4", "--group-size", "32", ...calibrated],
    options: { method: "gptq", bits: 4, groupSize: 32 }, learns: LITTLE, same: false,
  },
  {
    name: "awq int4 group 32",
    args: ["--method", "awq", "--bits", "4", "--group-size", "32", ...calibrated],
    options: { method: "awq", bits: 4, groupSize: 32 }, learns: LITTLE, same: false,
  },
];

/** Conversions by `lowbit convert`, of `int4 group 32` unless `of` says otherwise. `file` is compared. */
export const CONVERTED = [
  { name: "gguf", args: ["--format", "gguf"], options: { format: "gguf" }, file: "model.gguf" },
  { name: "gguf q8_0", of: "original", args: ["--format", "gguf", "--gguf-type", "q8_0"], options: { format: "gguf", ggufType: "q8_0" }, file: "model.gguf" },
  { name: "gptq", args: ["--format", "gptq"], options: { format: "gptq" }, file: "model.safetensors" },
];

/** The cases whose greedy text and perplexity are compared. */
export const RUN = ["original", "int4 group 32", "int8", "ternary", "gptq int4 group 32", "awq int4 group 32"];
