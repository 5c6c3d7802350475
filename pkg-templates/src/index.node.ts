import { api } from "./api.js";
import { platform } from "./node.js";

export * from "./exports.js";
export const {
  createEngine, openCheckpoint, quantize, dequantize, convert, loadModel, validate, perplexity, compare, plan, capabilities,
} = api(platform);
