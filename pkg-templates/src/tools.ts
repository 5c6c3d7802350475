/**
 * The package's main functions as tools for language models. A tool has a name, a description, a JSON Schema of its
 * arguments, and `call`, which takes such arguments and returns a result for `JSON.stringify`.
 */
import type { Api } from "./api.js";
import * as schemas from "./schemas.generated.js";
import type { CompareOptions, JobOptions, QuantizeOptions, ValidateOptions } from "./types.js";

/** A JSON Schema of an object. */
export interface ObjectSchema {
  type: "object";
  properties: Record<string, object>;
  required: string[];
  additionalProperties: false;
}

/** A tool for language models. */
export interface Tool {
  name: "quantize_model" | "validate_quantization" | "compare_outputs";
  description: string;
  parameters: ObjectSchema;
  call(args: Record<string, unknown>, options?: JobOptions): Promise<unknown>;
}

const PLACE = "A path, a URL, or the Hugging Face hub name (org/model)";
const place = (what: string) => ({ type: "string", description: `${PLACE} ${what}` });

/** The schema of a request, with the checkpoints that it needs. */
function schema(places: Record<string, object>, request: Described, required = Object.keys(places)): ObjectSchema {
  return {
    type: "object",
    properties: { ...places, ...request.properties },
    required: [...required, ...request.required],
    additionalProperties: false,
  };
}

/** A schema generated from the crate's options. */
interface Described {
  readonly properties: Record<string, object>;
  readonly required: readonly string[];
}

const QUANTIZE = schema(
  {
    checkpoint: place("of the checkpoint to quantize"),
    target: { type: "string", description: "The path of the folder to write. Without it, the result is measured and discarded" },
  },
  schemas.QuantizeRequest,
  ["checkpoint"],
);

const VALIDATE = schema(
  { original: place("of the original checkpoint"), quantized: place("of the quantized checkpoint") },
  schemas.ValidateRequest,
);

const COMPARE = schema(
  { a: place("of one checkpoint"), b: place("of another checkpoint with the same vocabulary") },
  schemas.CompareRequest,
);

/** The tools, which call `api`. */
export function toolsOf(api: Pick<Api, "openCheckpoint" | "quantize" | "validate" | "compare">): readonly Tool[] {
  return [
    {
      name: "quantize_model",
      description: "Quantizes a language model: writes its weights with few bits, and reports the error of each layer.",
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
        "Compares a quantized language model with its original: perplexity, divergence, broken text, memory, speed, and a verdict.",
      parameters: VALIDATE,
      call: async ({ original, quantized, ...args }, options) => {
        using first = await api.openCheckpoint(original as string, { signal: options?.signal });
        using second = await api.openCheckpoint(quantized as string, { signal: options?.signal });
        return await api.validate(first, second, { ...(args as unknown as ValidateOptions), ...options });
      },
    },
    {
      name: "compare_outputs",
      description: "Continues the same prompts with two language models, and reports where their outputs first differ.",
      parameters: COMPARE,
      call: async ({ a, b, ...args }, options) => {
        using first = await api.openCheckpoint(a as string, { signal: options?.signal });
        using second = await api.openCheckpoint(b as string, { signal: options?.signal });
        return await api.compare(first, second, { ...(args as unknown as CompareOptions), ...options });
      },
    },
  ];
}
