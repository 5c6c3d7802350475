import { api } from "./api.js";
import { toolsOf } from "./tools.js";
import { platform } from "./node.js";

export * from "./exports.js";
const functions = api(platform);

export const {
  createEngine, openCheckpoint, quantize, dequantize, convert, loadModel, validate, auto, perplexity, compare, plan, capabilities,
  cache,
} = functions;

/** The main functions as tools for language models. */
export const tools = toolsOf(functions);
