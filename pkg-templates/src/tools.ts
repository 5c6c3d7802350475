/**
 * The package's main functions as tools that a language model can call: a name, a description, a JSON Schema of the arguments,
 * and `call`, which takes arguments of that schema and gives something that `JSON.stringify` can write.
 */
import type { Api } from "./api.js";
import type { CompareOptions, JobOptions, QuantizeOptions, ValidateOptions } from "./types.js";

/** A JSON Schema of an object. */
export interface ObjectSchema {
  type: "object";
  properties: Record<string, object>;
  required: string[];
  additionalProperties: false;
}

/** One tool. */
export interface Tool {
  name: "quantize_model" | "validate_quantization" | "compare_outputs";
  description: string;
  parameters: ObjectSchema;
  call(args: Record<string, unknown>, options?: JobOptions): Promise<unknown>;
}

const PLACE = "A path, a URL, or org/model of the Hugging Face hub";
const text = (description: string) => ({ type: "string", description });
const texts = (description: string) => ({ type: "array", items: { type: "string" }, minItems: 1, description });
const count = (description: string, minimum = 1) => ({ type: "integer", minimum, description });
const yes = (description: string) => ({ type: "boolean", description });
const one = (values: readonly (string | number)[], description: string) => ({ enum: values, description });

const device = one(["auto", "cpu", "gpu"], "Where models run. Default: auto");

function schema(properties: Record<string, object>, required: string[]): ObjectSchema {
  return { type: "object", properties, required, additionalProperties: false };
}

const QUANTIZE = schema(
  {
    checkpoint: text(`${PLACE} of the checkpoint to quantize`),
    target: text("The path of the folder to write. Left out, the result is measured and not kept"),
    method: one(["rtn", "gptq", "awq", "ternary"], "How codes are found; gptq and awq need calibration. Default: rtn"),
    bits: one([2, 3, 4, 8], "Bits of a weight. Default: 4"),
    groupSize: { type: "integer", minimum: -1, description: "Weights that share a scale; -1: a row. Default: 128, and -1 for 8 bits" },
    symmetric: yes("No zero points. Default: true"),
    quantizeHead: yes("Quantize the head too. Default: false"),
    format: one(["compressed-tensors", "gptq", "gptq-v2", "awq", "bitnet"], "How the weights are spelled"),
    strict: yes("Fail where the layout cannot hold a module as asked for"),
    recipe: {
      type: "object",
      description: "Rules that give some modules another scheme; the first that matches a module holds for it",
      properties: {
        rules: {
          type: "array",
          minItems: 1,
          items: schema(
            {
              modules: { description: "Patterns of module names", anyOf: [text("A pattern"), texts("Patterns")] },
              keep: yes("Keep the modules in floating point"),
              bits: one([2, 3, 4, 8], "Bits of a weight"),
              group_size: { type: "integer", minimum: -1, description: "Weights that share a scale" },
              symmetric: yes("No zero points"),
              method: one(["rtn", "gptq"], "How codes are found"),
            },
            ["modules"],
          ),
        },
      },
      required: ["rules"],
      additionalProperties: false,
    },
    calibration: schema(
      {
        texts: texts("Texts to learn from, of the kind that the model will read"),
        samples: count("Windows that are taken. Default: 128"),
        sequenceLength: count("Tokens of a window", 2),
        seed: count("Draw windows from everywhere, by this number", 0),
      },
      ["texts"],
    ),
    device,
  },
  ["checkpoint"],
);

const VALIDATE = schema(
  {
    original: text(`${PLACE} of the original checkpoint`),
    quantized: text(`${PLACE} of the quantized checkpoint`),
    texts: texts("Texts that the models have not seen"),
    prompts: texts("Prompts that both models continue. Default: passages of the texts"),
    maxTokens: count("New tokens for each prompt. Default: 64"),
    context: count("Tokens that the models see at once", 2),
    benchmark: text("Multiple-choice questions as JSON lines"),
    speedRounds: count("Rounds of timing; 0 leaves speed out. Default: 7", 0),
    limits: schema(
      {
        maxPerplexityIncrease: { type: "number", description: "Share by which perplexity may increase. Default: 0.02" },
        maxBenchmarkDropPoints: { type: "number", description: "Points by which accuracy may drop. Default: 2" },
        maxNewFailures: count("Generation failures that the original does not show. Default: 0", 0),
        minMemoryRatio: { type: "number", description: "How many times smaller the quantized layers must be" },
        minSpeedRatio: { type: "number", description: "How many times faster decoding must be. Default: 1.5" },
      },
      [],
    ),
    device,
  },
  ["original", "quantized", "texts"],
);

const COMPARE = schema(
  {
    a: text(`${PLACE} of one checkpoint`),
    b: text(`${PLACE} of another one of the same vocabulary`),
    prompts: texts("Texts to continue"),
    maxTokens: count("New tokens for each prompt. Default: 64"),
    device,
  },
  ["a", "b", "prompts"],
);

/** The tools of an entry point. */
export function toolsOf(api: Pick<Api, "openCheckpoint" | "quantize" | "validate" | "compare">): readonly Tool[] {
  return [
    {
      name: "quantize_model",
      description: "Makes a language model smaller: writes its weights with few bits, and says what that cost each layer.",
      parameters: QUANTIZE,
      call: async ({ checkpoint, ...args }, options) => {
        using source = await api.openCheckpoint(checkpoint as string, { signal: options?.signal });
        using output = await api.quantize(source, { ...(args as QuantizeOptions), ...options });
        return output.summary;
      },
    },
    {
      name: "validate_quantization",
      description:
        "Judges a quantized language model against its original: perplexity, divergence, broken text, memory, speed, and a verdict.",
      parameters: VALIDATE,
      call: async ({ original, quantized, ...args }, options) => {
        using first = await api.openCheckpoint(original as string, { signal: options?.signal });
        using second = await api.openCheckpoint(quantized as string, { signal: options?.signal });
        return await api.validate(first, second, { ...(args as unknown as ValidateOptions), ...options });
      },
    },
    {
      name: "compare_outputs",
      description: "Lets two language models continue the same prompts, and says where they first differ.",
      parameters: COMPARE,
      call: async ({ a, b, ...args }, options) => {
        using first = await api.openCheckpoint(a as string, { signal: options?.signal });
        using second = await api.openCheckpoint(b as string, { signal: options?.signal });
        return await api.compare(first, second, { ...(args as unknown as CompareOptions), ...options });
      },
    },
  ];
}
