/**
 * The package's main functions as tools that a language model can call: a name, a description, a JSON Schema of the arguments,
 * and `call`, which takes arguments of that schema and gives something that `JSON.stringify` can write.
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

/** One tool. */
export interface Tool {
  name: "quantize_model" | "validate_quantization" | "compare_outputs";
  description: string;
  parameters: ObjectSchema;
  call(args: Record<string, unknown>, options?: JobOptions): Promise<unknown>;
}

const PLACE = "A path, a URL, or org/model of the Hugging Face hub";
const place = (what: string) => ({ type: "string", description: `${PLACE} ${what}` });

/** The schema of a request, with the places that it is about. */
function schema(places: Record<string, object>, request: Described, required = Object.keys(places)): ObjectSchema {
  return {
    type: "object",
    properties: { ...places, ...request.properties },
    required: [...required, ...request.required],
    additionalProperties: false,
  };
}

/** A schema that was written from the crate's options. */
interface Described {
  readonly properties: Record<string, object>;
  readonly required: readonly string[];
}

const QUANTIZE = schema(
  {
    checkpoint: place("of the checkpoint to quantize"),
    target: { type: "string", description: "The path of the folder to write. Left out, the result is measured and not kept" },
  },
  schemas.QuantizeRequest,
  ["checkpoint"],
);

const VALIDATE = schema(
  { original: place("of the original checkpoint"), quantized: place("of the quantized checkpoint") },
  schemas.ValidateRequest,
);

const COMPARE = schema(
  { a: place("of one checkpoint"), b: place("of another one of the same vocabulary") },
  schemas.CompareRequest,
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
