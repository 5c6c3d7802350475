import { api } from "./api.js";
import { platform } from "./browser.js";

export * from "./exports.js";
export const {
  createEngine, openCheckpoint, quantize, dequantize, convert, loadModel, validate, perplexity, compare, plan, capabilities,
} = api(platform);
